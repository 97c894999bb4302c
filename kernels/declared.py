"""Reads kernel parameters and structs from CUDA sources, so that Python need not repeat them."""

import functools
import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"\bstruct (\w+) \{([^(){}]*)\};")
_KERNEL = re.compile(r'extern "C" __global__ void\s')
_PARAMETER = re.compile(r"(?:const )?([\w ]+?)\s*(\*)?\s*(?:__restrict__\s+)?(\w+)$")

_TYPES: dict[str, npt.DTypeLike] = {
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "unsigned": np.uint32,
    "u64": np.uint64,
    "int": np.int32,
    "long long": np.int64,
    "float": np.float32,
}


class Parameter(NamedTuple):
    """A kernel's parameter.

    Attributes
    ----------
    dtype
        Dtype of the value, or of the array's items if `is_array`; None for structs, which are passed as bytes, and for
        types that a macro defines.
    """

    name: str
    dtype: np.dtype[Any] | None
    is_array: bool


@functools.cache
def parameters(source: str, kernel: str) -> tuple[Parameter, ...]:
    """Return a kernel's parameters in order; raise LookupError if the source has no such kernel."""
    text = _COMMENT.sub("", source)
    for match in _KERNEL.finditer(text):
        name, listed = _name_and_parameters(text[match.end() :])
        if name == kernel:
            return tuple(_parameter(one) for one in listed.split(","))
    raise LookupError(f"no kernel {kernel!r}")


def _name_and_parameters(text: str) -> tuple[str, str]:
    """Split a declaration after its `void`, which may start with __launch_bounds__(...)."""
    if text.lstrip().startswith("__launch_bounds__"):
        text = text[_closing(text, text.index("(")) + 1 :]
    begin = text.index("(")
    return text[:begin].strip(), text[begin + 1 : _closing(text, begin)]


def _closing(text: str, begin: int) -> int:
    """Return where the bracket that opens at `begin` closes."""
    depth = 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"this bracket is never closed: {text[begin : begin + 40]}")


def _parameter(declaration: str) -> Parameter:
    match = _PARAMETER.match(" ".join(declaration.split()))
    if match is None:
        raise ValueError(f"not a parameter: {declaration!r}")
    kind, star, name = match.groups()
    known = _TYPES.get(kind)
    if known is None and not star:
        raise ValueError(f"unknown parameter type {kind!r}: {declaration.strip()!r}")
    return Parameter(name, np.dtype(known) if known else None, star is not None)


@functools.cache
def struct(source: str, name: str) -> np.dtype[np.void]:
    """Return a struct of numbers as a numpy dtype with C's layout; raise LookupError if there is no such struct."""
    for found, body in _STRUCT.findall(_COMMENT.sub("", source)):
        if found == name:
            fields = [
                (field.strip(), np.dtype(_TYPES[kind]))
                for declaration in body.split(";")
                if declaration.strip()
                for kind, names in [_typed(" ".join(declaration.split()))]
                for field in names.split(",")
            ]
            return np.dtype(fields, align=True)
    raise LookupError(f"no struct {name!r}")


def _typed(declaration: str) -> tuple[str, str]:
    kind = max((kind for kind in _TYPES if declaration.startswith(f"{kind} ")), key=len)
    return kind, declaration.removeprefix(kind)
