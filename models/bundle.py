"""Model directories: `config.toml` and weights, checked when loaded.

Three containers of the same tensors are read: dorado's (one TorchScript file a tensor, `4.rnn.weight_ih_l0.tensor`),
our own (`model.safetensors`, with the same keys) and bonito's (`weights_N.tar`, models/bonito.py). Nothing in any of
them is executed.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from porestream.models.bonito import newest_weights, read_weights
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
    directory = Path(os.path.abspath(directory))  # a link is called as it is, not as what it leads to
    config = load_config(directory)
    tensors = _tensors(directory, config)
    _check_tensors(tensors, tensor_shapes(config), directory)
    digest = hashlib.sha256((directory / "config.toml").read_bytes())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].numpy().tobytes())
    return ModelBundle(
        directory.name, config, chemistry_of_model(directory.name, config.sample_rates_hz), tensors, digest.digest()
    )


def weights_bytes(directory: Path) -> int:
    """Size of a model directory's weights on disk; 0: it has none."""
    single = directory / "model.safetensors"
    bonito = newest_weights(directory)
    files = [single] if single.is_file() else list(directory.glob("*.tensor")) or ([bonito] if bonito else [])
    return sum(file.stat().st_size for file in files)


def _tensors(directory: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    bundle = directory / "model.safetensors"
    try:
        if bundle.is_file():
            tensors = safetensors.torch.load_file(bundle)
        else:
            tensors = {file.name.removesuffix(".tensor"): read_tensor(file) for file in directory.glob("*.tensor")}
            if not tensors and (checkpoint := newest_weights(directory)):
                tensors = read_weights(checkpoint, config.layers, tensor_shapes(config))
    except Exception as error:
        raise ModelError(f"{directory}: {error}") from error
    if not tensors:
        raise ModelError(f"{directory}: no weights: neither model.safetensors nor *.tensor files nor weights_N.tar")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(f"{directory}: {name} holds {tensor.dtype}, not floating point numbers")
    # dorado's transformers carry what their config says, too.
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(".deepnorm_alpha")}
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, in the network's order."""
    layers, shapes = config.layers, dict[str, tuple[int, ...]]()
    convolutions, width = layers.convolutions, layers.width
    prefix = "conv." if layers.transformer else ""
    for index, layer in enumerate(convolutions):
        shapes[f"{prefix}{index}.conv.weight"] = (layer.outs, layer.ins, layer.winlen)
        shapes[f"{prefix}{index}.conv.bias"] = (layer.outs,)
    if layers.transformer:
        hidden, upsampling = layers.transformer.hidden, layers.transformer.upsampling
        for index in range(layers.transformer.depth):
            shapes |= {
                f"transformer_encoder.{index}.{name}": shape
                for name, shape in (
                    ("self_attn.Wqkv.weight", (3 * width, width)),
                    ("self_attn.out_proj.weight", (width, width)),
                    ("self_attn.out_proj.bias", (width,)),
                    ("ff.fc1.weight", (2 * hidden, width)),
                    ("ff.fc2.weight", (width, hidden)),
                    ("norm1.weight", (width,)),
                    ("norm2.weight", (width,)),
                )
            }
        shapes["upsample.linear.weight"] = (upsampling * width, width)
        shapes["upsample.linear.bias"] = (upsampling * width,)
        return shapes | _linear("crf", config.score_count, width, layers.linear_bias)
    first = len(convolutions) + 1  # after the permutation
    last = first + len(layers.reverse)
    for index in range(first, last):
        shapes |= {f"{index}.rnn.weight_{part}_l0": (4 * width, width) for part in ("ih", "hh")}
        shapes |= {f"{index}.rnn.bias_{part}_l0": (4 * width,) for part in ("ih", "hh")}
    if layers.bottleneck:
        shapes |= _linear(str(last), layers.bottleneck, width, layers.bottleneck_bias)
        last, width = last + 1, layers.bottleneck
    return shapes | _linear(str(last), config.score_count, width, layers.linear_bias)


def _linear(name: str, outs: int, ins: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.linear.weight": (outs, ins)}
    return shapes | ({f"{name}.linear.bias": (outs,)} if bias else {})


def _check_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ModelError(f"{directory}: tensors missing: {', '.join(missing)}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ModelError(f"{directory}: unknown tensors: {', '.join(unknown)}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{directory}: {name} has shape {tuple(tensors[name].shape)}, config.toml says {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{directory}: {name} has values that are not finite")
