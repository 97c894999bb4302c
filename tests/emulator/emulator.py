"""A stand-in for ``cupy.RawModule`` that runs the same ``.cu`` text on the CPU: g++ behind ``emu.h``."""

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("emu.h")
# After options that a kernel's author chooses: exact arithmetic, and wrap-around where the GPU wraps.
FLAGS = (
    "-std=c++17 -O2 -g1 -fPIC -shared -ffp-contract=off -fno-fast-math -fno-strict-aliasing -fwrapv -fvisibility=hidden "
    "-fno-gnu-unique -Wall -Werror=return-type -Wno-unknown-pragmas -Wno-unused-function"
).split()
ERROR_BYTES = 1024
DEFAULT_DYNAMIC_SHARED_BYTES = 48 << 10

_BOUNDS = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+{_BOUNDS}__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\s*\d+\s*\)\s+)?([\w\s]+?)\s+(\w+)\s*\[\s*\]")


class EmulatorError(RuntimeError):
    """A kernel cannot be compiled, launched or finished; says which one, and where."""


class Schedule(IntEnum):
    """The order in which blocks, and threads that may run, do run."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2


_schedule: tuple[Schedule, int] = (Schedule.FORWARD, 1)


@contextlib.contextmanager
def scheduled(schedule: Schedule, seed: int = 1) -> Iterator[None]:
    """Launch all kernels of this process in another order; `seed` matters to ``Schedule.RANDOM``."""
    global _schedule
    before, _schedule = _schedule, (Schedule(schedule), seed)
    try:
        yield
    finally:
        _schedule = before


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


class RawModule:
    """Kernels compiled for the CPU, with the interface of ``cupy.RawModule``.

    Parameters
    ----------
    code : str
        CUDA C++; its kernels are ``extern "C" __global__``.
    options : sequence of str
        NVRTC's options. ``-D`` and ``-I`` hold here too, the others mean nothing to the CPU.
    name : str
        The file's name in error messages.
    sanitize : str, optional
        ``address`` or ``thread``: for a process that runs under that sanitizer, see `porestream.emulator.sanitize`.

    Raises
    ------
    EmulatorError
        g++ is missing, or does not accept the code.
    """

    def __init__(self, code: str, options: Sequence[str] = (), name: str = "kernel.cu", sanitize: str | None = None):
        self.name = name
        self.kernels = tuple(_KERNEL.findall(_COMMENT.sub(" ", code)))
        self._library = ctypes.CDLL(str(_compiled(code, options, name, self.kernels, sanitize)))

    def get_function(self, kernel_name: str) -> "Kernel":
        """Return a kernel by its name; raises `EmulatorError` when there is none."""
        if kernel_name not in self.kernels:
            raise EmulatorError(f"{self.name} has no kernel {kernel_name!r}; it has {', '.join(self.kernels) or 'none'}")
        return Kernel(self._library, kernel_name)

    def switches(self) -> int:
        """Return how often fibers have been switched."""
        count = self._library.emu_switches
        count.restype = ctypes.c_ulonglong
        return int(count())


class Kernel:
    """A kernel, launched as CuPy launches one.

    Attributes
    ----------
    max_dynamic_shared_size_bytes : int
        What a launch may ask for; over 48 KiB must be asked for first, here as on the GPU.
    """

    def __init__(self, library: ctypes.CDLL, name: str):
        self.name = name
        self.max_dynamic_shared_size_bytes = DEFAULT_DYNAMIC_SHARED_BYTES
        self._launch = library[f"emu_launch_{name}"]
        signature = library[f"emu_signature_{name}"]
        self._parameters = (_Parameter * signature(None))()
        signature(self._parameters)

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run the kernel to its end.

        Parameters
        ----------
        grid, block : sequence of int
            Blocks, and threads a block, in up to three dimensions.
        args : sequence
            C-contiguous arrays for pointers, NumPy scalars for values; ``np.uintp(0)`` for a null pointer.
        shared_mem : int
            Bytes of dynamic shared memory.

        Raises
        ------
        TypeError
            Arguments that are not what the kernel takes.
        EmulatorError
            A launch that no GPU would accept, or a defect of the kernel: its line, block and thread.
        """
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments, not {len(args)}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise EmulatorError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory, over the {self.max_dynamic_shared_size_bytes} "
                "allowed: set max_dynamic_shared_size_bytes first"
            )
        cells = [self._cell(i, arg) for i, arg in enumerate(args)]
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        error = ctypes.create_string_buffer(ERROR_BYTES)
        schedule, seed = _schedule
        launch = _Launch(
            _three("grid", grid),
            _three("block", block),
            shared_mem,
            schedule,
            seed,
            ctypes.addressof(pointers),
            ctypes.addressof(error),
            ERROR_BYTES,
        )
        if not self._launch(ctypes.byref(launch)):
            raise EmulatorError(f"{self.name}: {error.value.decode(errors='replace')}")

    def _cell(self, index: int, arg: Any) -> Any:
        """Return the memory that the kernel's parameter `index` is read from."""
        kind, size = self._parameters[index].kind, self._parameters[index].bytes
        where = f"{self.name}, argument {index}"
        if isinstance(arg, np.ndarray):
            if kind not in b"PC":
                raise TypeError(f"{where}: an array where the kernel takes a value")
            if not arg.flags.c_contiguous:
                raise TypeError(f"{where}: not C-contiguous, strides {arg.strides}: numpy.ascontiguousarray")
            if kind == b"P" and not arg.flags.writeable:
                raise TypeError(f"{where}: a read-only array for a pointer that is not to const")
            return ctypes.c_void_p(arg.ctypes.data)
        if not isinstance(arg, np.generic):
            raise TypeError(f"{where}: {type(arg).__name__} has no size on the GPU: pass a NumPy scalar or array")
        fits = {b"F": "f", b"S": "V"}.get(kind, "iub")
        if arg.nbytes != size or arg.dtype.kind not in fits:
            raise TypeError(f"{where}: {arg.dtype} for a parameter of {size} bytes, kind {kind.decode()}")
        return ctypes.create_string_buffer(arg.tobytes(), size)


def _three(what: str, sizes: Sequence[int]) -> Any:
    sizes = [int(size) for size in sizes]
    if not 1 <= len(sizes) <= 3 or not all(1 <= size < 2**31 for size in sizes):
        raise EmulatorError(f"{what} {tuple(sizes)}: one to three dimensions of 1 or more")
    return (ctypes.c_uint * 3)(*sizes, *[1] * (3 - len(sizes)))


def _compiled(code: str, options: Sequence[str], name: str, kernels: Sequence[str], sanitize: str | None) -> Path:
    """Return the shared library, from the cache or from g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise EmulatorError("the emulator compiles kernels with g++, which is not there: apt-get install g++")
    chosen, include_directories = _host_options(options)
    body = _DYNAMIC_SHARED.sub(_dynamic_shared, code)
    exports = "".join(f"EMU_EXPORT({kernel})\n" for kernel in kernels)
    text = f'#include "{HEADER}"\n#line 1 "{name}"\n{body}\n#line 1 "exports"\n{exports}'
    flags = [*chosen, *FLAGS]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fsanitize-sections=emu_shared"]
    digest = hashlib.sha256(repr((_version(compiler), flags, text)).encode())
    for path in [HEADER, *(p for directory in include_directories for p in sorted(directory.rglob("*.cuh")))]:
        digest.update(f"\n{path}\n".encode() + path.read_bytes())
    file_name = f"{digest.hexdigest()}.so"
    directory = _cache_directory()
    library = directory / file_name
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=directory) as work:
            made = Path(work) / file_name
            command = [compiler, *flags, "-x", "c++", "-", "-o", str(made)]
            run = subprocess.run(command, input=text, cwd=work, capture_output=True, text=True)
            if run.returncode:
                raise EmulatorError(f"{name} does not compile:\n{run.stderr}")
            made.replace(library)
    return library


def _dynamic_shared(declaration: re.Match[str]) -> str:
    """Return the declaration as one of a pointer, in as many lines."""
    element, name = declaration.groups()
    return f"EMU_DYNAMIC_SHARED({' '.join(element.split())}, {name})" + "\n" * declaration[0].count("\n")


def _host_options(options: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return g++'s options among NVRTC's, and the directories of headers."""
    flags: list[str] = []
    directories: list[Path] = []
    rest = iter(options)
    for option in rest:
        if option[:2] not in ("-D", "-I"):
            continue
        value = option[2:].strip() or next(rest)
        if option.startswith("-I"):
            directories.append(Path(value).absolute())
            value = str(directories[-1])
        flags.append(option[:2] + value)
    return flags, directories


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "porestream" / "emulator"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return _temporary_directory()


_temporary_lock = threading.Lock()


@functools.cache
def _temporary_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="porestream-emulator-"))
