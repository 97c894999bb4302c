"""A stand-in for ``cupy.RawModule`` that runs the same ``.cu`` text on the CPU: g++ behind ``emu.h``."""

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

from porestream.models.files.private_folder import default_cache_dir, private_subfolder

HEADER = Path(__file__).with_name("emu.h")
FLAGS = (
    *("-std=c++17", "-O3", "-g1", "-fPIC", "-shared"),
    *("-ffp-contract=off", "-fno-fast-math", "-fwrapv", "-fno-strict-aliasing"),  # numbers and memory as on a card
    *("-fvisibility=hidden", "-fno-gnu-unique"),  # modules of one process have nothing in common
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Werror=return-type"),
)
PLAIN_FLAGS = ("-Werror=frame-larger-than=49152",)  # a fiber's stack has 64 KiB
SANITIZERS = {  # to g++'s flags. Misaligned wide loads, an error on the GPU, go with bad addresses.
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
    """A kernel that cannot be compiled, launched or finished: which one, and where in it."""


class Schedule(IntEnum):
    """In which order blocks run, and the threads of a block that can."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2


@dataclass(frozen=True, eq=False, slots=True)
class _Order:
    schedule: Schedule
    seed: int


_orders = [_Order(Schedule.FORWARD, 1)]  # the last holds; threads may leave `scheduled` in any order


@contextlib.contextmanager
def scheduled(schedule: Schedule, seed: int = 1) -> Iterator[None]:
    """Launches of this process, of all modules, in this schedule; `seed` is the random one's.

    A kernel without races gives the same result in each: run it in all three to see.
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


_KINDS = {  # a parameter's kind to its name, and to those of NumPy's dtypes that fit it
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
        NVRTC's. ``-D`` and ``-I`` go to g++; the others say nothing to a CPU.
    name
        The source's name in errors.
    sanitize
        "address" or "thread": only in a process that `porestream.kernels.emulator.sanitize.run_sanitized` has started.

    Attributes
    ----------
    kernels
        The names of its kernels.

    Raises
    ------
    EmulatorError
        g++ is not there, or refuses the code; the processor is not an x86-64.
    ValueError
        There is no such sanitizer.
    """

    def __init__(
        self, code: str, options: Sequence[str] = (), name: str = "kernel.cu", sanitize: str | None = None
    ) -> None:
        self.name = name
        self.kernels = tuple(_KERNEL.findall(_COMMENT.sub(" ", code)))
        self._library = ctypes.CDLL(str(_compile(code, options, name, self.kernels, sanitize)))
        self._functions: dict[str, Kernel] = {}

    def get_function(self, name: str) -> Kernel:
        """A kernel by its name; EmulatorError if there is none."""
        if name not in self.kernels:
            raise EmulatorError(f"{self.name} has no kernel {name!r}; it has {', '.join(self.kernels) or 'none'}")
        return self._functions.setdefault(name, Kernel(self._library, name))

    def switches(self) -> int:
        """How often threads have taken turns so far: a measure of a kernel's barriers and shuffles."""
        count = self._library.emu_switches
        count.restype = ctypes.c_ulonglong
        return int(count())


class Kernel:
    """A kernel, called as CuPy's are.

    Attributes
    ----------
    max_dynamic_shared_size_bytes
        What a launch may ask for. Here as on a card, a kernel that needs more than 48 KiB has to set it.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        self.max_dynamic_shared_size_bytes = DEFAULT_DYNAMIC_SHARED_BYTES
        self._launch: Callable[[Any], int] = library[f"emu_launch_{name}"]
        signature = library[f"emu_signature_{name}"]
        self._parameters = (_Parameter * signature(None))()
        signature(self._parameters)

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run it to its end, without the GIL; one module's launches wait for each other.

        Parameters
        ----------
        grid, block
            Blocks, and threads of a block, in one to three dimensions.
        args
            C-contiguous numpy arrays for pointers, numpy scalars for values; ``np.uintp(0)`` is a null pointer.
        shared_mem
            Dynamic shared memory, bytes.

        Raises
        ------
        TypeError
            Arguments that are not what the kernel takes.
        EmulatorError
            A launch that no card would accept, or a defect in the kernel, with its line, block and thread.
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
        """What the kernel reads this parameter from. CuPy checks nothing here, and a card then reads what is there."""
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
            raise EmulatorError(f"{self.name}: {what} {tuple(sizes)} is not of one to three sizes from 1 up")
        return (ctypes.c_uint * 3)(*sizes, *[1] * (3 - len(sizes)))

    def _shared_bytes(self, shared_mem: int) -> int:
        if not 0 <= shared_mem <= self.max_dynamic_shared_size_bytes:
            raise EmulatorError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory; its max_dynamic_shared_size_bytes, "
                f"{self.max_dynamic_shared_size_bytes}, has to be set to what it needs"
            )
        return shared_mem


def _compile(code: str, options: Sequence[str], name: str, kernels: Sequence[str], sanitize: str | None) -> Path:
    """The shared library of a source: from the cache, else from g++.

    It is known by all that it is made of: a change of any makes another file.
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
        except OSError:  # read-only, full, or of someone else: the next one
            continue
        with work:
            made = Path(work.name) / file
            where = os.path.realpath(work.name)
            relative = f"-fdebug-prefix-map={where}=."  # sanitizers then report the source by its name alone
            command = (compiler, *flags, relative, "-x", "c++", "-", "-o", file)
            run = subprocess.run(command, input=text, cwd=work.name, capture_output=True, text=True)
            if run.returncode:
                raise EmulatorError(f"{name} does not compile:\n{run.stderr}")
            made.replace(library)  # at once: processes that compile the same do not see each other's half
        return library
    raise EmulatorError(
        f"there is no room for compiled kernels, neither in {default_cache_dir()} nor in {_temporary()}"
    )


def _compiler() -> str:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise EmulatorError(f"the emulator is for x86-64 Linux, and this is {platform.machine()} {platform.system()}")
    compiler = shutil.which("g++")
    if compiler is None:
        raise EmulatorError("the emulator compiles kernels with g++, which is not on PATH: apt-get install g++")
    return compiler


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run((compiler, "--version"), capture_output=True, text=True, check=True).stdout


def _gxx_options(options: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Those of NVRTC's options that g++ shares, and the folders of headers among them."""
    chosen, folders = [], []
    rest = iter(options)
    for option in rest:
        option = option.replace("--define-macro=", "-D").replace("--include-path=", "-I")
        switch, value = option[:2], option[2:].strip()
        if switch not in ("-D", "-I"):
            continue
        value = value or next(rest, "")  # `-I folder` in two
        if not value:
            raise EmulatorError(f"option {option} without a value")
        if switch == "-I":
            folders.append(Path(value).absolute())
            value = str(folders[-1])
        chosen.append(switch + value)
    return chosen, folders


def _sanitizer_flags(sanitize: str | None) -> tuple[str, ...]:
    if sanitize is None:
        return PLAIN_FLAGS
    if sanitize not in SANITIZERS:
        raise ValueError(f"there is no sanitizer {sanitize!r}: {', '.join(SANITIZERS)}")
    if not re.search(rf"lib{sanitize[0]}san", os.environ.get("LD_PRELOAD", "")):  # else loading would end the process
        raise EmulatorError(f"the {sanitize} sanitizer has to be in the process from its start: use run_sanitized")
    return SANITIZERS[sanitize]


def _pointer(declaration: re.Match[str]) -> str:
    """Dynamic shared memory as a pointer to it, on as many lines as the declaration of the array."""
    element, name = declaration.groups()
    return f"EMU_DYNAMIC_SHARED({' '.join(element.split())}, {name})" + "\n" * declaration[0].count("\n")


def _cache() -> Path | None:
    """None where it cannot be had; UnsafeCacheError where what is in it may be somebody else's, who would be run."""
    return _cache_in(default_cache_dir())


@functools.cache  # for it may hold the folder open
def _cache_in(cache_dir: Path) -> Path | None:
    return private_subfolder(cache_dir, "emulator", "have XDG_CACHE_HOME name a folder of your own")


_temporary_lock = threading.Lock()


def _temporary() -> Path:
    """Where the cache cannot be written: a folder of this process."""
    with _temporary_lock:
        return Path(_temporary_folder().name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="porestream-emulator-")
