"""Reads the one tensor in a TorchScript file without running anything from it.

dorado stores each tensor as a TorchScript module whose only parameter is named "0". `torch.jit.load` would compile and
may run the code in such a file; here the archive is opened as what it is, a ZIP of uncompressed records with a pickle,
and the pickle may name a tensor and nothing else.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_MAX_PICKLE_BYTES = 1 << 16


class UnsafeWeights(ValueError):
    """A weights file holds something other than one plain tensor."""


class _Module:
    """Stands for the scripted module: keeps its attributes, has no behaviour."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise UnsafeWeights("its module's state is not a dictionary")
        self.attributes = state


class _Storage:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _rebuild_tensor(
    flat: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> torch.Tensor:
    return flat.as_strided(size, stride, offset).clone()  # as_strided refuses what lies outside the storage


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive, self._prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__.") and name == "Module":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _Storage(_DTYPES[name])
        raise UnsafeWeights(f"its pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, storage, key, _location, count = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise UnsafeWeights(f"its pickle refers to a {kind!r}")
        data = self._archive.read(f"{self._prefix}/data/{key}")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        if flat.numel() != count:
            raise UnsafeWeights(f"its storage {key!r} has {flat.numel()} values, its pickle says {count}")
        return flat


def read_tensor(path: Path) -> torch.Tensor:
    """The tensor of a dorado `NAME.tensor` file.

    Returns
    -------
    torch.Tensor
        As stored: float32, float16, bfloat16 or float64, contiguous, on the CPU.

    Raises
    ------
    UnsafeWeights
        The file is no such archive, or holds anything but one plain tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnsafeWeights("it is not a TorchScript archive")
            if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
                raise UnsafeWeights("it has compressed records, which TorchScript never writes")
            if records[pickles[0]].file_size > _MAX_PICKLE_BYTES:
                raise UnsafeWeights("its pickle is larger than one tensor's can be")
            module = _TensorUnpickler(archive.read(pickles[0]), archive, pickles[0].split("/")[0]).load()
    except UnsafeWeights as error:
        raise UnsafeWeights(f"{path}: refused: {error}") from None
    except Exception as error:
        raise UnsafeWeights(f"{path}: cannot be read as a TorchScript tensor: {error}") from error
    tensor = module.attributes.get("0") if isinstance(module, _Module) else None
    if not isinstance(tensor, torch.Tensor):
        raise UnsafeWeights(f"{path}: refused: it holds no tensor named '0'")
    return tensor.contiguous()
