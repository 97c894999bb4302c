"""Model directories: `config.toml` and weights, checked when loaded.

Two containers of the same keys are read: dorado's (one TorchScript file a tensor, `4.rnn.weight_ih_l0.tensor`) and our
own (`model.safetensors`). Nothing in either is executed.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from porestream.models.chemistry import Chemistry, chemistry_of_model
from porestream.models.config import ModelConfig, ModelError, load_config
from porestream.models.torchscript import read_tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class ModelBundle:
    """A checked model: its name, configuration, float32 tensors and digest."""

    name: str
    config: ModelConfig
    chemistry: Chemistry
    tensors: dict[str, torch.Tensor] = field(repr=False)
    sha256: bytes


def load_bundle(directory: Path) -> ModelBundle:
    """Read and check a model directory.

    The digest covers config.toml and every tensor's name, shape and float32 bytes, so the same model has the same
    digest in either container.

    Raises
    ------
    ModelError
        Missing, unknown or unsafe files, an unsupported layer, a wrong shape, or weights that are not finite.
    """
    directory = Path(directory).resolve()
    config = load_config(directory)
    tensors = _tensors(directory)
    _check_tensors(tensors, config, directory)
    digest = hashlib.sha256((directory / "config.toml").read_bytes())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].numpy().tobytes())
    return ModelBundle(
        directory.name, config, chemistry_of_model(directory.name, config.sample_rates_hz), tensors, digest.digest()
    )


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    bundle = directory / "model.safetensors"
    try:
        if bundle.is_file():
            tensors = safetensors.torch.load_file(bundle)
        else:
            tensors = {file.name.removesuffix(".tensor"): read_tensor(file) for file in directory.glob("*.tensor")}
    except Exception as error:
        raise ModelError(f"{directory}: {error}") from error
    if not tensors:
        raise ModelError(f"{directory}: no weights: neither model.safetensors nor *.tensor files")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(f"{directory}: {name} holds {tensor.dtype}, not floating point numbers")
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}


def _check_tensors(tensors: dict[str, torch.Tensor], config: ModelConfig, directory: Path) -> None:
    width = config.features
    shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(config.convolutions):
        shapes |= {
            f"{index}.conv.weight": (layer.outs, layer.ins, layer.winlen),
            f"{index}.conv.bias": (layer.outs,),
        }
    first = len(config.convolutions) + 1  # after the permutation
    for index in range(first, first + len(config.reverse)):
        shapes |= {f"{index}.rnn.bias_{part}_l0": (4 * width,) for part in ("ih", "hh")}
        shapes |= {f"{index}.rnn.weight_{part}_l0": (4 * width, width) for part in ("ih", "hh")}
    last = first + len(config.reverse)
    shapes[f"{last}.linear.weight"] = (config.score_count, width)
    if config.linear_bias:
        shapes[f"{last}.linear.bias"] = (config.score_count,)
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ModelError(f"{directory}: tensors missing: {', '.join(missing)}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ModelError(f"{directory}: unknown tensors: {', '.join(unknown)}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{directory}: {name} has shape {tuple(tensors[name].shape)}, config.toml says {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{directory}: {name} has values that are not finite")
