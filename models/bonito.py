"""Weights of bonito's own training runs: `weights_N.tar`, a pickled state dictionary.

It is read by torch's restricted unpickler (`weights_only`), which makes plain tensors and containers and refuses all
else. As in bonito, tensors are matched by shape, those of equal shape in their order, so that the names do not matter.
Batch norms, which dorado's export has fused into the convolutions before them, are fused here.
"""

import re
from pathlib import Path

import torch

from porestream.models.layers import Layers

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_EPSILON = 1e-5  # of torch's batch norms


def newest_weights(directory: Path) -> Path | None:
    """The checkpoint of the last epoch: bonito's choice."""
    found = {int(match[1]): file for file in directory.glob("weights_*.tar") if (match := _NUMBER.search(file.name))}
    return found[max(found)] if found else None


_NUMBER = re.compile(r"^weights_(\d+)\.tar$")


def read_weights(file: Path, layers: Layers, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the names of `shapes`.

    Raises
    ------
    ValueError
        It holds anything but tensors, or others than the network's.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file.name}: refused: not a state dictionary of plain tensors: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"{file.name}: refused: not a state dictionary of plain tensors")
    expected = _expected(layers, shapes)
    theirs = sorted((tuple(tensor.shape), place, name) for place, (name, tensor) in enumerate(state.items()))
    ours = sorted((shape, place, name) for place, (name, shape) in enumerate(expected.items()))
    if [shape for shape, *_ in theirs] != [shape for shape, *_ in ours]:
        odd = sorted(set(expected.values()) ^ {shape for shape, *_ in theirs})
        count = f"{len(theirs)} tensors, the network has {len(ours)}"
        raise ValueError(f"{file.name}: does not fit config.toml: {count}; shapes on one side only: {odd}")
    found = {mine: state[name] for (*_, mine), (*_, name) in zip(ours, theirs, strict=True)}
    for index, layer in enumerate(layers.convolutions):
        if layer.batch_norm:
            _fuse(found, f"{'conv.' if layers.transformer else ''}{index}")
    return {name: found[name] for name in shapes}


def _expected(layers: Layers, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors of bonito's module in its order: batch norms, and a transformer's constants, among the others."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name.endswith(".self_attn.Wqkv.weight"):
            expected[name.replace("self_attn.Wqkv.weight", "deepnorm_alpha")] = ()
        expected[name] = shape
        if name.endswith(".conv.bias"):
            convolution = name.removesuffix(".conv.bias")
            if layers.convolutions[int(convolution.removeprefix("conv."))].batch_norm:
                expected |= {f"{convolution}.norm.{part}": shape for part in _BATCH_NORM[:-1]}
                expected[f"{convolution}.norm.{_BATCH_NORM[-1]}"] = ()
    return expected


def _fuse(tensors: dict[str, torch.Tensor], name: str) -> None:
    """weight' = weight g / sqrt(var + eps); bias' = (bias - mean) g / sqrt(var + eps) + b; in float64."""
    weight, bias = (tensors[f"{name}.conv.{part}"].double() for part in ("weight", "bias"))
    gain, shift, mean, variance = (tensors[f"{name}.norm.{part}"].double() for part in _BATCH_NORM[:-1])
    factor = gain / torch.sqrt(variance + _EPSILON)
    tensors[f"{name}.conv.weight"] = (weight * factor[:, None, None]).float()
    tensors[f"{name}.conv.bias"] = ((bias - mean) * factor + shift).float()
