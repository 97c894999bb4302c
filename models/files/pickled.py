"""Reads the archives in which torch keeps tensors, without torch's unpickler or Python's: neither can run anything.

Such an archive is a ZIP of records; one is a pickle that describes tensors, the others hold their values. The pickle is
followed here, in the few instructions that torch writes: what it builds are inert descriptions, which are made into
tensors when they have been checked. Nothing is read before its size has been compared with the file's.
"""

import math
import os
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

FLOATING = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
"""Types of numbers, by the name that a pickle has for them."""

_REBUILD, _DICTIONARY, _MODULE = "a tensor", "a dictionary", "a module"
_NAMES = {("torch._utils", "_rebuild_tensor_v2"): _REBUILD, ("collections", "OrderedDict"): _DICTIONARY}
_SPARE_BYTES = 1 << 20  # which an archive's code and names may have beyond the file's size


class UnsafeWeights(ValueError):
    """A weights file holds something other than plain tensors."""


class _Name(NamedTuple):
    """What a pickle names: one of the three that are known, or a type of numbers."""

    of: str | torch.dtype


class Module:
    """Stands for a scripted module: keeps its attributes, has no behaviour."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


class Storage(NamedTuple):
    """A record of values, as a pickle describes it; `length` is whatever the pickle says."""

    dtype: torch.dtype
    record: str
    length: Any


class Tensor(NamedTuple):
    """A tensor as a pickle describes it: lengths, strides and offset are whole numbers, none negative."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open an archive whose records, unpacked, are together no larger than the file.

    Raises
    ------
    UnsafeWeights
        They are larger, or two have one name.
    """
    archive = zipfile.ZipFile(path)
    try:
        records, size = archive.infolist(), os.stat(path).st_size
        if len({record.filename for record in records}) < len(records):
            raise UnsafeWeights("two of its records have one name")
        unpacked = sum(record.file_size for record in records)
        if unpacked > size + _SPARE_BYTES:
            raise UnsafeWeights(f"its records would be {unpacked:,} bytes, unpacked from a file of {size:,}")
    except BaseException:
        archive.close()
        raise
    return archive


def pickle_of(archive: zipfile.ZipFile) -> str:
    """The name of an archive's pickle, FOLDER/data.pkl; empty: there is none, or there are several."""
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    return pickles[0] if len(pickles) == 1 else ""


def check_record(record: zipfile.ZipInfo, most_bytes: int | None = None) -> None:
    """Refuse a record that is compressed, as torch's never are but for code, or larger than `most_bytes`."""
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise UnsafeWeights(f"its {record.filename} is compressed, which torch never does to data")
    if most_bytes is not None and record.file_size > most_bytes:
        raise UnsafeWeights(f"its {record.filename} is larger than {most_bytes:,} bytes")


def described(data: bytes, dtypes: Mapping[str, torch.dtype]) -> Any:
    """What a pickle describes: `Tensor`, `Module`, numbers, texts, and tuples, lists and dictionaries of them.

    Not by pickle's own machine: with that, a few bytes can reserve gigabytes for its memo, or be a tuple of tuples
    whose hash takes years.

    Parameters
    ----------
    data
        The pickle.
    dtypes
        The types of numbers that tensors may have, by the names of their storages.

    Raises
    ------
    UnsafeWeights
        It has an instruction, or names something, that describes no tensors.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    def put(items: list[Any]) -> None:
        if (
            not isinstance(stack[-1], dict)
            or len(items) % 2
            or not all(isinstance(key, (str, int)) for key in items[::2])
        ):
            raise UnsafeWeights("its pickle has a dictionary whose keys are no texts")
        stack[-1].update(zip(items[::2], items[1::2], strict=True))

    for instruction, argument, _ in pickletools.genops(data):
        match instruction.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                first = len(stack) - int(instruction.name[-1])
                if first < 0:
                    raise UnsafeWeights("its pickle takes more than there is")
                stack[first:] = [tuple(stack[first:])]
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                items = since_mark() if instruction.name == "APPENDS" else [stack.pop()]
                if not isinstance(stack[-1], list):
                    raise UnsafeWeights("its pickle appends to what is no list")
                stack[-1] += items
            case "SETITEM" | "SETITEMS":
                put(since_mark() if instruction.name == "SETITEMS" else [stack.pop(-2), stack.pop()])
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "GLOBAL":
                stack.append(_named(str(argument), dtypes))
            case "NEWOBJ" | "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":
                _set_state(stack, stack.pop())
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case unknown:
                raise UnsafeWeights(f"its pickle has the instruction {unknown}")
    raise UnsafeWeights("its pickle has no end")


def _named(argument: str, dtypes: Mapping[str, torch.dtype]) -> _Name:
    module, _, name = argument.partition(" ")
    if (module, name) in _NAMES:
        return _Name(_NAMES[module, name])
    if module.startswith("__torch__.") and name == "Module":
        return _Name(_MODULE)
    if module == "torch" and name in dtypes:
        return _Name(dtypes[name])
    raise UnsafeWeights(f"its pickle names {module}.{name}")


def _made(callee: Any, arguments: Any) -> Any:
    if isinstance(callee, _Name) and isinstance(arguments, tuple):
        if callee.of == _REBUILD and len(arguments) >= 4:
            return _tensor(*arguments[:4])
        if callee.of == _DICTIONARY and not arguments:
            return {}
        if callee.of == _MODULE and not arguments:
            return Module()
    raise UnsafeWeights("its pickle calls what is no tensor, dictionary or module")


def _set_state(stack: list[Any], state: Any) -> None:
    if not isinstance(state, dict):
        raise UnsafeWeights("its module's state is not a dictionary")
    if isinstance(stack[-1], Module):
        stack[-1].attributes = state
    elif not isinstance(stack[-1], dict):  # a state dictionary has one of its own: versions of layers
        raise UnsafeWeights("its pickle changes what is no module")


def _storage(pid: Any) -> Storage:
    kind, dtype, key, _location, length = pid
    if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(dtype.of, torch.dtype):
        raise UnsafeWeights(
            f"its pickle refers to a {kind!r}" if isinstance(kind, str) else "its pickle refers to more"
        )
    if not isinstance(length, int):
        raise UnsafeWeights("its storage has a length that is no number")
    return Storage(dtype.of, key if isinstance(key, str) else "", length)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnsafeWeights("its tensor has no storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UnsafeWeights("its tensor has no size and stride")
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(size) != len(stride):
        raise UnsafeWeights("its tensor has a size, stride or offset that cannot be")
    return Tensor(storage, offset, size, stride)


def materialised(tensor: Tensor, values: bytes) -> torch.Tensor:
    """The tensor itself, contiguous, out of its record's bytes.

    Raises
    ------
    UnsafeWeights
        It has more values than its record, or others than that.
    """
    storage, offset, size, stride = tensor
    flat = torch.frombuffer(bytearray(values), dtype=storage.dtype)
    if flat.numel() != storage.length:
        raise UnsafeWeights(f"its storage has {flat.numel()} values, its pickle says {storage.length}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > flat.numel() or last >= flat.numel():
        raise UnsafeWeights(
            f"its tensor of size {size}, stride {stride}, offset {offset} exceeds {flat.numel()} values"
        )
    return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
