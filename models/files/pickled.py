"""Reads torch's tensor archives without torch's or Python's unpickler, so that no code in them can run.

An archive is a ZIP of records: one is a pickle that describes tensors, the others hold their values. This module
interprets the few pickle instructions that torch writes. They build inert descriptions, which become tensors only once
they have been checked. Nothing is read until its size has been compared with that of the file.
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
"""Floating-point dtypes by their names in a pickle."""

_REBUILD, _DICTIONARY, _MODULE = "a tensor", "a dictionary", "a module"
_NAMES = {("torch._utils", "_rebuild_tensor_v2"): _REBUILD, ("collections", "OrderedDict"): _DICTIONARY}
_SPARE_BYTES = 1 << 20  # allowance for compressed code and names: unpacked, they may exceed the file's size


class UnsafeWeights(ValueError):
    """A weights file holds something other than plain tensors."""


class _Name(NamedTuple):
    """A name in a pickle: one of the three known callables, or a dtype."""

    of: str | torch.dtype


class Module:
    """Stand-in for a scripted module: it keeps the attributes and has no behaviour."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[Any, Any] = {}


class Storage(NamedTuple):
    """A record of values, as a pickle describes it; `length` is unchecked."""

    dtype: torch.dtype
    record: str
    length: Any


class Tensor(NamedTuple):
    """A tensor as a pickle describes it; sizes, strides and offset are non-negative integers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open an archive and check that its records, unpacked, are together no larger than the file.

    Raises
    ------
    UnsafeWeights
        The records are larger, or two have the same name.
    """
    archive = zipfile.ZipFile(path)
    try:
        records, size = archive.infolist(), os.stat(path).st_size
        if len({record.filename for record in records}) < len(records):
            raise UnsafeWeights("two records have the same name")
        unpacked = sum(record.file_size for record in records)
        if unpacked > size + _SPARE_BYTES:
            raise UnsafeWeights(f"the records would unpack to {unpacked:,} bytes, but the file has only {size:,}")
    except BaseException:
        archive.close()
        raise
    return archive


def pickle_of(archive: zipfile.ZipFile) -> str:
    """Return the name of an archive's pickle, FOLDER/data.pkl; empty if there is none, or more than one."""
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    return pickles[0] if len(pickles) == 1 else ""


def check_record(record: zipfile.ZipInfo, most_bytes: int | None = None) -> None:
    """Refuse a record that is larger than `most_bytes` or compressed; torch compresses only code."""
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise UnsafeWeights(f"{record.filename} is compressed, but torch never compresses data")
    if most_bytes is not None and record.file_size > most_bytes:
        raise UnsafeWeights(f"{record.filename} is larger than {most_bytes:,} bytes")


def described(data: bytes, dtypes: Mapping[str, torch.dtype]) -> Any:
    """Interpret a pickle: return `Tensor`, `Module`, numbers, strings, and tuples, lists and dictionaries of them.

    Python's own unpickler would not be safe: a few bytes can make it reserve gigabytes for its memo, or build nested
    tuples whose hash takes years to compute.

    Parameters
    ----------
    data
        The pickle.
    dtypes
        The dtypes that tensors may have, by the names of their storages.

    Raises
    ------
    UnsafeWeights
        The pickle has an instruction or a name that tensors do not need.
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
            raise UnsafeWeights("the pickle has a dictionary with keys that are neither strings nor integers")
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
                    raise UnsafeWeights("the pickle takes more items off the stack than it holds")
                stack[first:] = [tuple(stack[first:])]
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                items = since_mark() if instruction.name == "APPENDS" else [stack.pop()]
                if not isinstance(stack[-1], list):
                    raise UnsafeWeights("the pickle appends to something that is not a list")
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
                raise UnsafeWeights(f"the pickle uses the instruction {unknown}, which tensors do not need")
    raise UnsafeWeights("the pickle has no STOP instruction")


def _named(argument: str, dtypes: Mapping[str, torch.dtype]) -> _Name:
    module, _, name = argument.partition(" ")
    if (module, name) in _NAMES:
        return _Name(_NAMES[module, name])
    if module.startswith("__torch__.") and name == "Module":
        return _Name(_MODULE)
    if module == "torch" and name in dtypes:
        return _Name(dtypes[name])
    raise UnsafeWeights(f"the pickle refers to {module}.{name}, which is not allowed in a weights file")


def _made(callee: Any, arguments: Any) -> Any:
    if isinstance(callee, _Name) and isinstance(arguments, tuple):
        if callee.of == _REBUILD and len(arguments) >= 4:
            return _tensor(*arguments[:4])
        if callee.of == _DICTIONARY and not arguments:
            return {}
        if callee.of == _MODULE and not arguments:
            return Module()
    raise UnsafeWeights("the pickle makes something other than a tensor, dictionary or module")


def _set_state(stack: list[Any], state: Any) -> None:
    if not isinstance(state, dict):
        raise UnsafeWeights("the module's state is not a dictionary")
    if isinstance(stack[-1], Module):
        stack[-1].attributes = state
    elif not isinstance(stack[-1], dict):  # a state dictionary has state too: the versions of its layers
        raise UnsafeWeights("the pickle sets state on something that is not a module")


def _storage(pid: Any) -> Storage:
    kind, dtype, key, _location, length = pid
    if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(dtype.of, torch.dtype):
        raise UnsafeWeights(
            f"the pickle refers to a {kind!r}" if isinstance(kind, str) else "the pickle refers to an unknown object"
        )
    if not isinstance(length, int):
        raise UnsafeWeights("the storage's length is not a number")
    return Storage(dtype.of, key if isinstance(key, str) else "", length)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnsafeWeights("the tensor has no storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UnsafeWeights("the tensor has no size and stride")
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(size) != len(stride):
        raise UnsafeWeights("the tensor has an impossible size, stride or offset")
    return Tensor(storage, offset, size, stride)


def materialised(tensor: Tensor, values: bytes) -> torch.Tensor:
    """Make the tensor, contiguous, from the bytes of its record.

    Raises
    ------
    UnsafeWeights
        The record's length is not what the pickle says, or the tensor reaches beyond it.
    """
    storage, offset, size, stride = tensor
    flat = torch.frombuffer(bytearray(values), dtype=storage.dtype)
    if flat.numel() != storage.length:
        raise UnsafeWeights(f"the storage has {flat.numel()} values, but the pickle says {storage.length}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > flat.numel() or last >= flat.numel():
        raise UnsafeWeights(
            f"a tensor of size {size}, stride {stride}, offset {offset} does not fit in {flat.numel()} values"
        )
    return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
