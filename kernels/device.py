"""The devices that kernels run on: a CUDA GPU through CuPy, which only this file imports, or the CPU emulator.

Host code uses `Device.xp` (cupy or numpy) and launches kernels from `kernels.source.load`, so it is the same on both.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

_LEAST_ARCH = 80  # extend.cu and fill.cu use its packed maximum of half floats

Array = Any
"""An array of `Device.xp`."""

Launch = Callable[..., None]
"""A kernel, called as in CuPy: grid, block, arguments (arrays and numpy scalars), and `shared_mem` in bytes."""


class DeviceError(ValueError):
    """A device or the software for it is missing; the message says what to do."""


class CardTooOld(DeviceError):
    """The GPU lacks instructions that the kernels need."""


class Module(Protocol):
    """A compiled source; `cupy.RawModule` is one."""

    def get_function(self, name: str) -> Launch: ...


class Device(Hashable, Protocol):
    """A device that kernels are compiled for and launched on. Equal devices can share compiled kernels.

    Attributes
    ----------
    name
        "cuda:0", "emulated".
    xp
        cupy or numpy.
    arch
        Compute capability: 90 for sm_90. For the emulator, the one whose code path it runs.
    """

    @property
    def name(self) -> str: ...
    @property
    def xp(self) -> ModuleType: ...
    @property
    def arch(self) -> int: ...

    def compile(self, code: str, options: Sequence[str], file: str) -> Module:
        """Compile a source; raise a DeviceError that names `file` if that fails."""

    def in_order(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which allocations and launches go into the device's stream, in order."""

    def array(self, tensor: Any) -> Array:
        """View a torch tensor on this device, or any other array that supports DLPack, as an array of `xp`."""

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """Copy an array to host memory, after all work in the stream."""


@dataclass(frozen=True)
class EmulatedDevice:
    """The CPU, with one fiber per CUDA thread: exact, but a thousand times slower than a GPU. For tests and teaching.

    Attributes
    ----------
    arch
        Which of the kernels' code paths to run; 90 and above use DPX instructions.
    sanitize
        "address" or "thread" to compile with that sanitizer.
    """

    arch: int = 90
    sanitize: str | None = None
    name: str = "emulated"

    @property
    def xp(self) -> ModuleType:
        return np

    def compile(self, code: str, options: Sequence[str], file: str) -> Module:
        from porestream.kernels import emulator

        try:
            return emulator.RawModule(code, [*options, f"-DEMULATED_ARCH={self.arch * 10}"], file, self.sanitize)
        except emulator.EmulatorError as error:
            raise DeviceError(f"device emulated: {error}") from error

    def in_order(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def array(self, tensor: Any) -> Array:
        return np.asarray(tensor) if hasattr(tensor, "__array__") else np.from_dlpack(tensor)

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        return np.asarray(array)


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """A CUDA GPU, with a stream of its own or another library's.

    Attributes
    ----------
    index
        The GPU's number.
    stream
        A CUDA stream's address, for example `torch.cuda.Stream.cuda_stream`; 0 is the default stream. All work goes
        into this stream, after anything that torch has put into it.
    allocate, free
        Functions that allocate and free memory for arrays: (bytes) -> address, and (address). With torch's, both
        libraries share one pool, and either can use memory that the other has freed. Without them CuPy uses its own.
    limit_bytes
        Most memory that arrays may take from CuPy's own pool before a MemoryError; 0 means no limit.
    """

    index: int = 0
    stream: int = 0
    allocate: Callable[[int], int] | None = field(default=None, compare=False)
    free: Callable[[int], None] | None = field(default=None, compare=False)
    limit_bytes: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        return f"cuda:{self.index}"

    @property
    def xp(self) -> ModuleType:
        return _cupy()

    @functools.cached_property
    def arch(self) -> int:
        return int(_cupy().cuda.Device(self.index).compute_capability)

    def compile(self, code: str, options: Sequence[str], file: str) -> Module:
        cupy = _cupy()
        module = cupy.RawModule(code=f'#line 1 "{file}"\n{code}', options=tuple(options))
        try:
            with self.in_order():
                module.compile()
        except OSError as error:
            raise DeviceError(
                f"{self.name}: CuPy cannot write to its cache of compiled kernels ({error}); set --cache-dir or "
                "CUPY_CACHE_DIR to a folder that it can write to"
            ) from error
        except (RuntimeError, cupy.cuda.compiler.CompileException) as error:  # CUDA and NVRTC raise RuntimeErrors
            raise DeviceError(
                f"{self.name}: {file} does not compile for sm_{self.arch} ({str(error)[:200]}); --decoder cpu and "
                "--aligner mappy do not need it"
            ) from error
        return module  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        cupy = _cupy()
        with contextlib.ExitStack() as stack:
            stack.enter_context(cupy.cuda.Device(self.index))
            if self.stream:
                stack.enter_context(cupy.cuda.ExternalStream(self.stream, self.index))
            if self._pool is not None:
                stack.enter_context(cupy.cuda.using_allocator(self._pool.malloc))
            yield

    @functools.cached_property
    def _pool(self) -> Any:
        allocate, free = self.allocate, self.free
        if allocate is None or free is None:
            if not self.limit_bytes:
                return None
            pool = _cupy().cuda.MemoryPool()
            pool.set_limit(size=self.limit_bytes)
            return pool
        return _cupy().cuda.PythonFunctionAllocator(lambda size, _device: allocate(size), lambda at, _device: free(at))

    def array(self, tensor: Any) -> Array:
        return _cupy().from_dlpack(tensor)

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        with self.in_order():
            return _cupy().asnumpy(array)  # type: ignore[no-any-return]


def find_kernel_device(name: str, **cuda: Any) -> Device:
    """Return the kernel device "emulated", "cuda" or "cuda:N"; `cuda` holds `CudaDevice`'s other attributes.

    Raises
    ------
    DeviceError
        There is no such device, or CuPy does not find it.
    CardTooOld
        The GPU is too old for the kernels.
    """
    if name == "emulated":
        return EmulatedDevice()
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise DeviceError(f"kernels cannot run on {name!r}; use cuda, cuda:N or emulated")
    count = cuda_count()
    if int(index or 0) >= count:
        raise DeviceError(f"device {name}: CuPy finds {count} GPU(s): see docs/operate/gpu.md")
    device = CudaDevice(index=int(index or 0), **cuda)
    if device.arch < _LEAST_ARCH:
        raise CardTooOld(f"device {name} is sm_{device.arch}; the kernels need sm_{_LEAST_ARCH} (A100) or newer")
    return device


def cuda_count() -> int:
    """Return how many GPUs CuPy finds; 0 without a driver.

    Raises
    ------
    DeviceError
        CuPy is not installed.
    """
    cupy = _cupy()
    return int(cupy.cuda.runtime.getDeviceCount()) if cupy.cuda.is_available() else 0


@functools.cache
def _cupy() -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"the GPU kernels need CuPy ({error}): pip install 'porestream[gpu13]', or 'porestream[gpu12]' if "
            "torch.version.cuda is 12"
        ) from error
    return cupy  # type: ignore[no-any-return]
