"""Loads kernels: reads their sources and compiles them, once per device and configuration."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porestream.kernels import declared
from porestream.kernels.device import Device, Launch, Module

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "--fmad=false")
"""Options for NVRTC. The emulator and the CPU decoder fuse no multiply-adds, so the GPU must not either. (CuPy adds
-ftz=true, but no kernel here depends on such small numbers.)"""

_INCLUDE = re.compile(r'^#include "([\w.]+)"[^\n]*$', re.MULTILINE)


def path_of(file: str) -> Path:
    """Find a source by its file name."""
    (path,) = FOLDER.glob(f"*/{file}")
    return path


@functools.cache
def read_source(file: str) -> str:
    """Return a source with its headers inlined.

    CuPy's cache identifies a kernel by its text, so it would miss a change in a header.
    """

    def included(match: re.Match[str]) -> str:
        next_line = text.count("\n", 0, match.end()) + 2
        return f'#line 1 "{match[1]}"\n{read_source(match[1])}\n#line {next_line} "{file}"'

    text = path_of(file).read_text()
    return _INCLUDE.sub(included, text)


def defines(values: Mapping[str, int | str]) -> tuple[str, ...]:
    """Turn macros into compiler options: -DNAME=value."""
    return tuple(f"-D{name}={value}" for name, value in sorted(values.items()))


def struct(file: str, name: str) -> np.dtype[np.void]:
    """Return a struct declared in a source, as a numpy dtype."""
    return declared.struct(read_source(file), name)


@dataclass(frozen=True)
class Kernel:
    """A kernel that takes its arguments by name, as its source declares them."""

    name: str
    parameters: tuple[declared.Parameter, ...]
    function: Launch

    def __call__(self, blocks: int, threads: int, /, **arguments: Any) -> None:
        """Launch the kernel; numbers are converted to the declared types.

        Raises
        ------
        TypeError
            A parameter is missing or unknown, or an array has the wrong dtype.
        """
        if arguments.keys() != {parameter.name for parameter in self.parameters}:
            names = [parameter.name for parameter in self.parameters]
            odd = sorted(arguments.keys() ^ set(names))
            raise TypeError(f"{self.name} takes {', '.join(names)}; missing or unknown: {', '.join(odd)}")
        ordered = tuple(self._checked(parameter, arguments[parameter.name]) for parameter in self.parameters)
        self.function((blocks,), (threads,), ordered)

    def _checked(self, parameter: declared.Parameter, value: Any) -> Any:
        if not parameter.is_array:
            assert parameter.dtype is not None
            return parameter.dtype.type(value)
        if parameter.dtype is not None and value.dtype not in (parameter.dtype, np.uintp):  # uintp: an address
            raise TypeError(f"{self.name}: {parameter.name} must be {parameter.dtype}, not {value.dtype}")
        return value


def load(device: Device, file: str, kernel: str, **values: int | str) -> Kernel:
    """Load a kernel from a source, compiled with these macros."""
    return _kernel(device, file, kernel, defines(values))


@functools.cache
def _module(device: Device, file: str, macros: tuple[str, ...]) -> Module:
    return device.compile(read_source(file), (*OPTIONS, *macros), file)


@functools.cache
def _kernel(device: Device, file: str, kernel: str, macros: tuple[str, ...]) -> Kernel:
    with device.in_order():  # CUDA loads code for the current GPU
        function = _module(device, file, macros).get_function(kernel)
    return Kernel(kernel, declared.parameters(read_source(file), kernel), function)
