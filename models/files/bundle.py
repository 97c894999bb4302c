"""Loads and checks model directories: `config.toml` and weights.

Weights can come in three formats: dorado's (one TorchScript file per tensor, `4.rnn.weight_ih_l0.tensor`), our own
(`model.safetensors`, with the same keys) and bonito's (`weights_N.tar`, bonito.py). No code in them is ever executed.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch

from porestream.models.files.bonito import newest_weights, read_weights
from porestream.models.files.chemistry import Chemistry, chemistry_of_model
from porestream.models.files.config import ModelConfig, ModelError, load_config
from porestream.models.files.tensors import tensor_shapes
from porestream.models.files.torchscript import read_tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LEAST_BYTES, _MOST_BYTES = 2, 8  # per number, in these dtypes
_SPARE_BYTES, _SPARE_BYTES_A_TENSOR = 1 << 20, 16 << 10  # for names, code and alignment
_MAX_HEADER_BYTES = 1 << 20
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
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
    digest in any format.

    Raises
    ------
    ModelError
        Files are missing, unknown or unsafe, a layer is unsupported, a shape is wrong, or weights are not finite.
    """
    directory = Path(os.path.abspath(directory))  # not resolved: a linked model keeps the link's name
    config = load_config(directory)
    shapes = tensor_shapes(config)
    _check_size(weights_bytes(directory), shapes, directory)
    tensors = _tensors(directory, config, shapes)
    _check_tensors(tensors, shapes, directory)
    digest = hashlib.sha256((directory / "config.toml").read_bytes())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].numpy().tobytes())
    return ModelBundle(
        name=directory.name,
        config=config,
        chemistry=chemistry_of_model(directory.name, config.sample_rates_hz),
        tensors=tensors,
        sha256=digest.digest(),
    )


def weights_bytes(directory: Path) -> int:
    """Return the size of a model directory's weights on disk; 0 if there are none."""
    single = directory / "model.safetensors"
    bonito = newest_weights(directory)
    files = [single] if single.is_file() else list(directory.glob("*.tensor")) or ([bonito] if bonito else [])
    return sum(file.stat().st_size for file in files)


def _check_size(size: int, shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    """Compare the files' size with what the network in config.toml needs, before reading or allocating anything.

    This is only a rough check: later checks of names and shapes catch smaller differences and describe them better.
    """
    count = sum(map(math.prod, shapes.values()))
    if size and size + _SPARE_BYTES < count * _LEAST_BYTES:
        raise ModelError(
            f"{directory}: the weights have {size:,} bytes, but config.toml describes {count:,} parameters, which take "
            f"at least {count * _LEAST_BYTES:,}; the download may be incomplete"
        )
    most = _most_bytes(shapes)
    if size > most:
        raise ModelError(
            f"{directory}: the weights have {size:,} bytes, but the network in config.toml needs at most {most:,}"
        )


def _most_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the largest size that files holding tensors of these shapes can have."""
    count = sum(map(math.prod, shapes.values()))
    return count * _MOST_BYTES + _SPARE_BYTES + len(shapes) * _SPARE_BYTES_A_TENSOR


def _tensors(directory: Path, config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    bundle = directory / "model.safetensors"
    files = {file.name.removesuffix(".tensor"): file for file in directory.glob("*.tensor")}
    constants = config.layers.encoder.constants().keys()  # these only repeat what the config says
    try:
        if bundle.is_file():
            _check_names(_names_in(bundle) - constants, shapes, directory)
            tensors = safetensors.torch.load_file(bundle)
        elif files:
            _check_names(files.keys() - constants, shapes, directory)
            tensors = {name: read_tensor(file) for name, file in files.items()}
        else:
            checkpoint = newest_weights(directory)
            tensors = read_weights(checkpoint, config.layers, shapes) if checkpoint else {}
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{directory}: {error}") from error
    if not tensors:
        raise ModelError(f"{directory}: no weights found; looked for model.safetensors, *.tensor and weights_N.tar")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(f"{directory}: {name} holds {tensor.dtype}, not floating-point numbers")
    weights = {name: tensor for name, tensor in tensors.items() if name not in constants}
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in weights.items()}


def _names_in(bundle: Path) -> set[str]:
    """Return the tensor names in a safetensors header. safetensors itself checks where the tensors lie."""
    with bundle.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"model.safetensors: the header has {length:,} bytes; the limit is {_MAX_HEADER_BYTES:,}")
        header = json.loads(file.read(length))
    return set(header) - {"__metadata__"}


def _check_names(found: set[str], shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    if missing := sorted(shapes.keys() - found):
        raise ModelError(f"{directory}: missing tensors: {_listed(missing)}")
    if unknown := sorted(found - shapes.keys()):
        raise ModelError(f"{directory}: unknown tensors: {_listed(unknown)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]], directory: Path) -> None:
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{directory}: {name} has shape {tuple(tensors[name].shape)}, config.toml says {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{directory}: {name} holds NaN or infinite values")
