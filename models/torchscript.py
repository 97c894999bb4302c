"""Reads the one tensor in a TorchScript file without running anything from it.

dorado stores each tensor as a TorchScript module whose only parameter is named "0". `torch.jit.load` would compile and
may run the code in such a file; here the archive is opened as what it is, a ZIP of records with a pickle.
The pickle may describe a tensor, in the few instructions that TorchScript uses for it, and nothing else: what it names
stays an inert description until it has been checked, for a live tensor has methods that a pickle could call.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_MAX_TEXT_BYTES = 1 << 16
# What TorchScript writes; the other instructions of pickles import, build or remember more.
_INSTRUCTIONS = (
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL "
    "NEWOBJ REDUCE BUILD BINPERSID"
)


class UnsafeWeights(ValueError):
    """A weights file holds something other than one plain tensor."""


class _Module:
    """Stands for the scripted module: keeps its attributes, has no behaviour."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise UnsafeWeights("its module's state is not a dictionary")
        self.attributes = state


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str
    length: int


class _Tensor(NamedTuple):
    storage: Any
    offset: Any
    size: Any
    stride: Any


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__.") and name == "Module":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Tensor(storage, offset, size, stride)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise UnsafeWeights(f"its pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise UnsafeWeights(f"its pickle refers to a {kind!r}")
        return _Storage(dtype, str(key), length)


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
            return _tensor(archive)
    except UnsafeWeights as error:
        raise UnsafeWeights(f"{path}: refused: {error}") from None
    except Exception as error:
        raise UnsafeWeights(f"{path}: cannot be read as a TorchScript tensor: {error}") from error


def _tensor(archive: zipfile.ZipFile) -> torch.Tensor:
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnsafeWeights("it is not a TorchScript archive")
    folder = pickles[0].removesuffix("data.pkl")
    for name, info in records.items():
        is_code, is_values = name.startswith(f"{folder}code/"), name.startswith(f"{folder}data/")
        if info.compress_type != zipfile.ZIP_STORED and not is_code:
            raise UnsafeWeights(f"its {name} is compressed, which TorchScript never does to data")
        if info.file_size > _MAX_TEXT_BYTES and not is_values:
            raise UnsafeWeights(f"its {name} is larger than one tensor's can be")
        if is_code and name.endswith(".py") and re.search(rb"\bdef\b", archive.read(name)):
            raise UnsafeWeights(f"its {name} defines functions")
    if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
        raise UnsafeWeights("its byte order is not little-endian")
    module = _unpickle(archive.read(pickles[0]))
    tensor = module.attributes.get("0") if isinstance(module, _Module) else None
    if not isinstance(tensor, _Tensor):
        raise UnsafeWeights("it holds no tensor named '0'")
    return _materialised(tensor, lambda record: archive.read(f"{folder}data/{record}"))


def _unpickle(data: bytes) -> Any:
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name not in _INSTRUCTIONS.split():
            raise UnsafeWeights(f"its pickle has the instruction {instruction.name}")
        if "PUT" in instruction.name and int(argument or 0) > len(data):  # the memo is an array of that length
            raise UnsafeWeights(f"its pickle numbers an object {argument}")
    return _TensorUnpickler(io.BytesIO(data)).load()


def _materialised(tensor: _Tensor, read_record: Callable[[str], bytes]) -> torch.Tensor:
    storage, offset, size, stride = tensor
    if not isinstance(storage, _Storage):
        raise UnsafeWeights("its tensor has no storage")
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(size) != len(stride):
        raise UnsafeWeights(f"its tensor has size {size}, stride {stride}, offset {offset}")
    flat = torch.frombuffer(bytearray(read_record(storage.record)), dtype=storage.dtype)
    if flat.numel() != storage.length:
        raise UnsafeWeights(f"its storage has {flat.numel()} values, its pickle says {storage.length}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > flat.numel() or last >= flat.numel():
        raise UnsafeWeights(
            f"its tensor of size {size}, stride {stride}, offset {offset} exceeds {flat.numel()} values"
        )
    return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
