"""A stand-in for ``cupy.RawModule`` that runs the same ``.cu`` text on the CPU, compiled by g++ with ``emu.h``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import operator
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from porestream.models.private_folder import default_cache_dir, private_subfolder

HEADER = Path(__file__).with_name("emu.h")
FLAGS = (
    *("-std=c++17", "-O3", "-g1", "-fPIC", "-shared"),
    *("-ffp-contract=off", "-fno-fast-math", "-fwrapv", "-fno-strict-aliasing"),  # numbers and memory as on a GPU
    *("-fvisibility=hidden", "-fno-gnu-unique"),  # modules in one process share nothing
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Werror=return-type"),
)
PLAIN_FLAGS = ("-Werror=frame-larger-than=49152",)  # a fiber's stack is 64 KiB
SANITIZERS = {  # g++'s flags. "address" also reports misaligned wide loads, which are errors on a GPU.
    "address": ("-fsanitize=address,alignment", "-fno-sanitize-recover=alignment", "-fsanitize-sections=emu_shared"),
    "thread": ("-fsanitize=thread",),
}
DEFAULT_DYNAMIC_SHARED_BYTES = 48 << 10
_ERROR_BYTES = 1024

_BOUNDS = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+{_BOUNDS}__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\s*\d+\s*\)\s+)?([\w\s]+?)\s+(?:__align__\(\s*\d+\s*\)\s+)?(\w+)\s*\[\s*\]"
)


class EmulatorError(RuntimeError):
    """A kernel failed to compile, launch or finish; the message says which, and where."""


class Schedule(IntEnum):
    """The order in which blocks, and the runnable threads of a block, run."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2


@dataclass(frozen=True, eq=False, slots=True)
class _Order:
    schedule: Schedule
    seed: int


_orders = [_Order(Schedule.FORWARD, 1)]  # the last one applies; threads may leave `scheduled` in any order


@contextlib.contextmanager
def scheduled(schedule: Schedule, seed: int = 1) -> Iterator[None]:
    """Run all launches of this process in this schedule; `seed` is for the random one.

    A kernel without races gives the same result in every schedule, so test it in all three.
    """
    order = _Order(Schedule(schedule), seed)
    _orders.append(order)
    try:
        yield
    finally:
        _orders.remove(order)


class _Launch(ctypes.Structure):  # emu.h's Launch
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("schedule", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("args", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
        ("error_bytes", ctypes.c_size_t),
    )


class _Parameter(ctypes.Structure):  # emu.h's Parameter
    _fields_ = (("kind", ctypes.c_char), ("bytes", ctypes.c_uint))


_KINDS = {  # a parameter's kind: its name, and the kinds of numpy dtypes that fit it
    b"P": ("a pointer", "u"),
    b"C": ("a pointer to const", "u"),
    b"I": ("an integer", "iub"),
    b"F": ("a float", "f"),
    b"S": ("a struct", "V"),
}


class RawModule:
    """Kernels compiled for the CPU.

    Parameters
    ----------
    code
        CUDA C++ with kernels declared ``extern "C" __global__``.
    options
        NVRTC's options. ``-D`` and ``-I`` are passed to g++; the others mean nothing on a CPU.
    name
        The source's name in error messages.
    sanitize
        "address" or "thread"; works only in a process started by `porestream.kernels.emulator.sanitize.run_sanitized`.

    Attributes
    ----------
    kernels
        The names of its kernels.

    Raises
    ------
    EmulatorError
        g++ is missing or rejects the code, or the processor is not x86-64.
    ValueError
        The sanitizer is unknown.
    """

    def __init__(
        self, code: str, options: Sequence[str] = (), name: str = "kernel.cu", sanitize: str | None = None
    ) -> None:
        self.name = name
        self.kernels = tuple(_KERNEL.findall(_COMMENT.sub(" ", code)))
        self._library = ctypes.CDLL(str(_compile(code, options, name, self.kernels, sanitize)))
        self._functions: dict[str, Kernel] = {}

    def get_function(self, name: str) -> Kernel:
        """Return a kernel by name; raise EmulatorError if it does not exist."""
        if name not in self.kernels:
            raise EmulatorError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels) or 'none'}")
        return self._functions.setdefault(name, Kernel(self._library, name))

    def switches(self) -> int:
        """Return how often threads have switched so far, a measure of a kernel's barriers and shuffles."""
        count = self._library.emu_switches
        count.restype = ctypes.c_ulonglong
        return int(count())


class Kernel:
    """A kernel, called like CuPy's kernels.

    Attributes
    ----------
    max_dynamic_shared_size_bytes
        Most dynamic shared memory per launch. As on a GPU, raise it for a kernel that needs more than 48 KiB.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self.max_dynamic_shared_size_bytes = DEFAULT_DYNAMIC_SHARED_BYTES
        self._launch: Callable[[Any], int] = library[f"emu_launch_{name}"]
        signature = library[f"emu_signature_{name}"]
        self._parameters = (_Parameter * signature(None))()
        signature(self._parameters)

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run the kernel to its end, without the GIL; launches in one module wait for each other.

        Parameters
        ----------
        grid, block
            Number of blocks, and of threads per block, in one to three dimensions.
        args
            C-contiguous numpy arrays for pointers, numpy scalars for values; ``np.uintp(0)`` is a null pointer.
        shared_mem
            Dynamic shared memory, bytes.

        Raises
        ------
        TypeError
            The arguments do not fit the kernel.
        EmulatorError
            No GPU would accept the launch, or the kernel has a defect; the message gives its line, block and thread.
        """
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, not {len(args)}")
        values = [self._value(index, arg) for index, arg in enumerate(args)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        order = _orders[-1]
        launch = _Launch(
            grid=self._sizes("grid", grid),
            block=self._sizes("block", block),
            shared_bytes=self._shared_bytes(shared_mem),
            schedule=order.schedule,
            seed=order.seed,
            args=ctypes.addressof(pointers),
            error=ctypes.addressof(error),
            error_bytes=_ERROR_BYTES,
        )
        if not self._launch(ctypes.byref(launch)):
            raise EmulatorError(f"{self.name}: {error.value.decode(errors='replace')}")

    def _value(self, index: int, arg: Any) -> Any:
        """Check an argument and convert it to ctypes. CuPy does not check; a wrong one reads garbage on a GPU."""
        parameter = self._parameters[index]
        kind, dtypes = _KINDS[parameter.kind]
        wanted = f"{self.name}, argument {index}: {kind} of {parameter.bytes} bytes"
        if isinstance(arg, np.ndarray) and parameter.kind in (b"P", b"C"):
            if not arg.flags.c_contiguous:
                raise TypeError(f"{wanted}, not an array of strides {arg.strides}: use numpy.ascontiguousarray")
            if parameter.kind == b"P" and not arg.flags.writeable:
                raise TypeError(f"{wanted}, not a read-only array: declare it const, or copy the array")
            return ctypes.c_void_p(arg.ctypes.data)
        if isinstance(arg, np.generic) and arg.nbytes == parameter.bytes and arg.dtype.kind in dtypes:
            return ctypes.create_string_buffer(arg.tobytes(), parameter.bytes)
        given = f"{type(arg).__name__} of {arg.dtype}" if isinstance(arg, np.ndarray) else type(arg).__name__
        raise TypeError(
            f"{wanted}, not {given}: pass a numpy array for a pointer, a numpy scalar of that size otherwise"
        )

    def _sizes(self, what: str, sizes: Sequence[int]) -> Any:
        if not 1 <= len(sizes) <= 3 or not all(1 <= operator.index(size) < 2**31 for size in sizes):
            raise EmulatorError(f"{self.name}: {what} {tuple(sizes)} must have one to three sizes, each at least 1")
        return (ctypes.c_uint * 3)(*sizes, *[1] * (3 - len(sizes)))

    def _shared_bytes(self, shared_mem: int) -> int:
        if not 0 <= shared_mem <= self.max_dynamic_shared_size_bytes:
            raise EmulatorError(
                f"{self.name}: the launch needs {shared_mem} bytes of dynamic shared memory, but its "
                f"max_dynamic_shared_size_bytes is {self.max_dynamic_shared_size_bytes}; raise it"
            )
        return shared_mem


def _compile(code: str, options: Sequence[str], name: str, kernels: Sequence[str], sanitize: str | None) -> Path:
    """Return the shared library for a source, from the cache or else built with g++.

    Its name is a digest of everything that goes into it, so any change makes another file.
    """
    compiler = _compiler()
    chosen, folders = _gxx_options(options)
    flags = ("-include", str(HEADER), *FLAGS, *_sanitizer_flags(sanitize), *chosen)
    exports = "".join(f"EMU_EXPORT({kernel})\n" for kernel in kernels)
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    text = f'#line 1 "{quoted}"\n{_DYNAMIC_SHARED.sub(_pointer, code)}\n#line 1 "exports of {quoted}"\n{exports}'
    digest = hashlib.sha256(repr((_version(compiler), flags, text)).encode())
    for header in (HEADER, *(header for folder in folders for header in sorted(folder.rglob("*.cuh")))):
        digest.update(f"\n{header}\n".encode() + header.read_bytes())
    file = f"{digest.hexdigest()}.so"
    for find_folder in (_cache, _temporary):
        folder = find_folder()
        if folder is None:
            continue
        library = folder / file
        if library.exists():
            return library
        try:
            work = tempfile.TemporaryDirectory(dir=folder)
        except OSError:  # read-only, full, or somebody else's: try the next one
            continue
        with work:
            made = Path(work.name) / file
            where = os.path.realpath(work.name)
            relative = f"-fdebug-prefix-map={where}=."  # makes sanitizers report only the source's name
            command = (compiler, *flags, relative, "-x", "c++", "-", "-o", file)
            run = subprocess.run(command, input=text, cwd=work.name, capture_output=True, text=True)
            if run.returncode:
                raise EmulatorError(f"{name} does not compile:\n{run.stderr}")
            made.replace(library)  # atomic: other processes that compile the same source never see half a file
        return library
    raise EmulatorError(
        f"cannot write compiled kernels, neither to {default_cache_dir()} nor to {_temporary()}: free some disk space"
    )


def _compiler() -> str:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise EmulatorError(f"the emulator needs x86-64 Linux, but this is {platform.machine()} {platform.system()}")
    compiler = shutil.which("g++")
    if compiler is None:
        raise EmulatorError("the emulator needs g++ to compile kernels, but it is not on PATH: apt-get install g++")
    return compiler


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run((compiler, "--version"), capture_output=True, text=True, check=True).stdout


def _gxx_options(options: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the NVRTC options that g++ understands, and the header folders among them."""
    chosen, folders = [], []
    rest = iter(options)
    for option in rest:
        option = option.replace("--define-macro=", "-D").replace("--include-path=", "-I")
        switch, value = option[:2], option[2:].strip()
        if switch not in ("-D", "-I"):
            continue
        value = value or next(rest, "")  # `-I folder`, as two options
        if not value:
            raise EmulatorError(f"option {option} needs a value")
        if switch == "-I":
            folders.append(Path(value).absolute())
            value = str(folders[-1])
        chosen.append(switch + value)
    return chosen, folders


def _sanitizer_flags(sanitize: str | None) -> tuple[str, ...]:
    if sanitize is None:
        return PLAIN_FLAGS
    if sanitize not in SANITIZERS:
        raise ValueError(f"unknown sanitizer {sanitize!r}; use one of {', '.join(SANITIZERS)}")
    if not re.search(rf"lib{sanitize[0]}san", os.environ.get("LD_PRELOAD", "")):  # otherwise loading ends the process
        raise EmulatorError(f"the {sanitize} sanitizer must be loaded when the process starts: use run_sanitized")
    return SANITIZERS[sanitize]


def _pointer(declaration: re.Match[str]) -> str:
    """Replace a declaration of dynamic shared memory by a pointer that takes as many lines."""
    element, name = declaration.groups()
    return f"EMU_DYNAMIC_SHARED({' '.join(element.split())}, {name})" + "\n" * declaration[0].count("\n")


def _cache() -> Path | None:
    """Return the cache folder, or None if it cannot be created; raise UnsafeCacheError if others could write to it."""
    return _cache_in(default_cache_dir())


@functools.cache  # because each call may keep a descriptor open
def _cache_in(cache_dir: Path) -> Path | None:
    return private_subfolder(cache_dir, "emulator", "set XDG_CACHE_HOME to a folder of your own")


_temporary_lock = threading.Lock()


def _temporary() -> Path:
    """Return a temporary folder of this process, for when the cache is not writable."""
    with _temporary_lock:
        return Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="porestream-emulator-")
