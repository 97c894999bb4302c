"""The kernels' sources, and what they are compiled to: once a device and configuration."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from porestream.kernels.device import Device, Launch, Module

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "--fmad=false")
"""Of NVRTC. The emulator and the CPU's decoder fuse nothing, so a card does not. (CuPy adds -ftz=true: no kernel here
depends on numbers so small.)"""

_INCLUDE = re.compile(r'^#include "([\w.]+)"[^\n]*$', re.MULTILINE)


def read_source(file: str) -> str:
    """A source with the headers that it includes written into it.

    CuPy's cache knows a kernel by its text: it would not see that a header has changed.
    """

    def included(match: re.Match[str]) -> str:
        next_line = text.count("\n", 0, match.end()) + 2
        return f'#line 1 "{match[1]}"\n{read_source(match[1])}\n#line {next_line} "{file}"'

    text = (FOLDER / file).read_text()
    return _INCLUDE.sub(included, text)


def defines(values: Mapping[str, int | str]) -> tuple[str, ...]:
    """As the compiler's options: -DNAME=value, of types -DNAME=type."""
    return tuple(f"-D{name}={value}" for name, value in sorted(values.items()))


def load(device: Device, file: str, kernel: str, **values: int | str) -> Launch:
    """A kernel of a source, compiled with these macros."""
    return _function(device, file, kernel, defines(values))


@functools.cache
def _module(device: Device, file: str, macros: tuple[str, ...]) -> Module:
    return device.compile(read_source(file), (*OPTIONS, *macros), file)


@functools.cache
def _function(device: Device, file: str, kernel: str, macros: tuple[str, ...]) -> Launch:
    with device.in_order():  # a card's code is loaded for the card that is current
        return _module(device, file, macros).get_function(kernel)
