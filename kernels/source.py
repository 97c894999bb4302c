"""The kernels' sources, and what they are compiled to: once a device and configuration."""

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
"""Of NVRTC. The emulator and the CPU's decoder fuse nothing, so a card does not. (CuPy adds -ftz=true: no kernel here
depends on numbers so small.)"""

_INCLUDE = re.compile(r'^#include "([\w.]+)"[^\n]*$', re.MULTILINE)


def path_of(file: str) -> Path:
    """Where a source lies, whose name is enough."""
    (path,) = FOLDER.glob(f"*/{file}")
    return path


@functools.cache
def read_source(file: str) -> str:
    """A source with the headers that it includes written into it.

    CuPy's cache knows a kernel by its text: it would not see that a header has changed.
    """

    def included(match: re.Match[str]) -> str:
        next_line = text.count("\n", 0, match.end()) + 2
        return f'#line 1 "{match[1]}"\n{read_source(match[1])}\n#line {next_line} "{file}"'

    text = path_of(file).read_text()
    return _INCLUDE.sub(included, text)


def defines(values: Mapping[str, int | str]) -> tuple[str, ...]:
    """As the compiler's options: -DNAME=value, of types -DNAME=type."""
    return tuple(f"-D{name}={value}" for name, value in sorted(values.items()))


def struct(file: str, name: str) -> np.dtype[np.void]:
    """A struct of a source, as numpy's dtype."""
    return declared.struct(read_source(file), name)


@dataclass(frozen=True)
class Kernel:
    """A kernel that is launched with its parameters' names, as its source has them."""

    name: str
    parameters: tuple[declared.Parameter, ...]
    function: Launch

    def __call__(self, blocks: int, threads: int, /, **arguments: Any) -> None:
        """Launch it; numbers become what the source declares.

        Raises
        ------
        TypeError
            A parameter is missing, or unknown, or an array of another type.
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
        if parameter.dtype is not None and value.dtype != parameter.dtype:
            raise TypeError(f"{self.name}: {parameter.name} is {parameter.dtype}, not {value.dtype}")
        return value


def load(device: Device, file: str, kernel: str, **values: int | str) -> Kernel:
    """A kernel of a source, compiled with these macros."""
    return _kernel(device, file, kernel, defines(values))


@functools.cache
def _module(device: Device, file: str, macros: tuple[str, ...]) -> Module:
    return device.compile(read_source(file), (*OPTIONS, *macros), file)


@functools.cache
def _kernel(device: Device, file: str, kernel: str, macros: tuple[str, ...]) -> Kernel:
    with device.in_order():  # a card's code is loaded for the card that is current
        function = _module(device, file, macros).get_function(kernel)
    return Kernel(kernel, declared.parameters(read_source(file), kernel), function)
