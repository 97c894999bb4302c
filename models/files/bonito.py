"""Reads the weights that bonito's training writes: `weights_N.tar`, a pickled state dictionary.

pickled.py reads it: it accepts plain tensors and refuses everything else. Shapes are checked against the config before
any tensor is created. As in bonito, tensors are matched by shape, and in order where shapes are equal, so names do not
matter. dorado's export fuses batch norms into the preceding convolutions; here that happens on loading.
"""

import re
import zipfile
from pathlib import Path

import torch

from porestream.models.files.pickled import (
    FLOATING,
    Tensor,
    check_record,
    described,
    materialised,
    open_archive,
    pickle_of,
)
from porestream.models.networks.layers import Layers

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_EPSILON = 1e-5  # of torch's batch norms
_DTYPES = FLOATING | {"LongStorage": torch.int64}  # the latter for the number of batches that a norm has seen
_PICKLE_BYTES, _RECORD_BYTES = 4096, 65_536
_SHOWN = 10


def newest_weights(directory: Path) -> Path | None:
    """Return the checkpoint of the last epoch, the one bonito uses; None if there are no checkpoints."""
    found = {int(match[1]): file for file in directory.glob("weights_*.tar") if (match := _NUMBER.search(file.name))}
    return found[max(found)] if found else None


_NUMBER = re.compile(r"^weights_(\d+)\.tar$")


def read_weights(file: Path, layers: Layers, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read a checkpoint and return its tensors under the names in `shapes`.

    Raises
    ------
    ValueError
        The file is too large for this network, holds something other than tensors, or holds other tensors.
    """
    expected = _expected(layers, shapes)
    try:
        with open_archive(file) as archive:
            return _fused(_tensors(archive, file, expected), layers, shapes)
    except _OtherNetwork as error:
        raise ValueError(f"{file.name}: does not fit config.toml: {error}") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, zipfile.BadZipFile) and not zipfile.is_zipfile(file):
            reason = "not a ZIP archive; if PyTorch older than 1.6 wrote it, load and save it again with a newer one"
        raise ValueError(f"{file.name}: refused: not a state dictionary of plain tensors: {reason}") from error


class _OtherNetwork(ValueError):
    """The tensors are not those of the network."""


def _tensors(archive: zipfile.ZipFile, file: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors under the expected names."""
    pickled = pickle_of(archive)
    if not pickled:
        raise ValueError("the archive has no data.pkl")
    folder = pickled.removesuffix("data.pkl")
    for record in archive.infolist():
        is_values = record.filename.startswith(f"{folder}data/")
        most = _PICKLE_BYTES * (len(expected) + 16) if record.filename == pickled else _RECORD_BYTES
        check_record(record, None if is_values else most)
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("the tensors are not little-endian; save them on a little-endian machine")
    state = described(archive.read(pickled), _DTYPES)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError("the file does not hold a dictionary of tensors")
    theirs = sorted((tensor.size, place) for place, tensor in enumerate(state.values()))
    ours = sorted((shape, place, name) for place, (name, shape) in enumerate(expected.items()))
    if [shape for shape, _ in theirs] != [shape for shape, *_ in ours]:
        odd = sorted(set(expected.values()) ^ {shape for shape, _ in theirs})
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        count = f"the file has {len(theirs)} tensors, the network has {len(ours)}"
        raise _OtherNetwork(f"{count}; shapes that only one of them has: {odd[:_SHOWN]}{more}")
    in_order = list(state.values())
    records = {tensor.storage.record for tensor in in_order}  # a record may hold several: cuDNN's weights share one
    values = {record: archive.read(f"{folder}data/{record}") for record in records}
    return {
        name: materialised(in_order[place], values[in_order[place].storage.record])
        for (*_, name), (_, place) in zip(ours, theirs, strict=True)
    }


def _fused(
    found: dict[str, torch.Tensor], layers: Layers, shapes: dict[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    for index, layer in enumerate(layers.convolutions):
        if layer.batch_norm:
            _fuse(found, layers.encoder.convolution_name(index))
    return {name: found[name] for name in shapes}


def _expected(layers: Layers, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of bonito's module in its order, including batch norms and a transformer's constants."""
    expected: dict[str, tuple[int, ...]] = {}
    constants = {after: name for name, after in layers.encoder.constants().items()}
    normed = [layers.encoder.convolution_name(i) for i, layer in enumerate(layers.convolutions) if layer.batch_norm]
    for name, shape in shapes.items():
        if name in constants:
            expected[constants[name]] = ()
        expected[name] = shape
        if name.endswith(".conv.bias") and (convolution := name.removesuffix(".conv.bias")) in normed:
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
