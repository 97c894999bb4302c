"""Where kernels run: on a CUDA card through CuPy, which only this file imports, or on the CPU emulator.

Host code is written against `Device.xp`, cupy or numpy, and launches what `kernels.source.load` gives it: the same on
either.
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
"""A kernel: called with grid, block, arguments (arrays and numpy scalars) and `shared_mem` in bytes, as CuPy has it."""


class DeviceError(ValueError):
    """A device that is not there, or whose software is not; the message says what to do."""


class CardTooOld(DeviceError):
    """A card that lacks instructions which the kernels are made of."""


class Module(Protocol):
    """What a source was compiled to; `cupy.RawModule` is one."""

    def get_function(self, name: str) -> Launch: ...


class Device(Hashable, Protocol):
    """What kernels are loaded for and launched on. Devices are equal when what was loaded for one serves the other.

    Attributes
    ----------
    name
        "cuda:0", "emulated".
    xp
        cupy or numpy.
    arch
        Compute capability as in sm_90: 90. The emulator has that of the kernels' paths which it runs.
    """

    @property
    def name(self) -> str: ...
    @property
    def xp(self) -> ModuleType: ...
    @property
    def arch(self) -> int: ...

    def compile(self, code: str, options: Sequence[str], file: str) -> Module:
        """Compile a source; DeviceError, which names `file`, where that fails."""

    def in_order(self) -> contextlib.AbstractContextManager[object]:
        """Within it arrays are allocated and kernels launched in the order of the device's stream."""

    def array(self, tensor: Any) -> Array:
        """A torch tensor of this device, or any other array that speaks DLPack, as an array of `xp`: not a copy."""

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """A copy in the host's memory, after everything that is in the stream."""


@dataclass(frozen=True)
class EmulatedDevice:
    """The CPU, one fiber a CUDA thread: exact, and a thousand times slower than a card. For tests and for teaching.

    Attributes
    ----------
    arch
        Which path of the kernels it takes: 90 and above is the one with DPX instructions.
    sanitize
        "address" or "thread": compiled with that sanitizer.
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
    """A card, in one stream of its own or another library's.

    Attributes
    ----------
    index
        Which card.
    stream
        A CUDA stream's address, say `torch.cuda.Stream.cuda_stream`; 0: the default stream. All work goes into it, so
        that what torch puts into it before is done before.
    allocate, free
        Where arrays' memory is from: (bytes) -> address, and (address). Give torch's, and both share one pool: memory
        that one library has freed serves the other. Without them CuPy has its own.
    limit_bytes
        What arrays may take together where CuPy has its own memory, beyond which there is a MemoryError; 0: all of it.
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
                f"{self.name}: CuPy cannot keep what it compiles ({error}): --cache-dir or CUPY_CACHE_DIR names a "
                "folder that it can write to"
            ) from error
        except (RuntimeError, cupy.cuda.compiler.CompileException) as error:  # CUDA's and NVRTC's are RuntimeErrors
            raise DeviceError(
                f"{self.name}: {file} does not compile for sm_{self.arch} ({str(error)[:200]}); --decoder cpu and "
                "--aligner mappy do without"
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
    """The device of kernels called "emulated", "cuda" or "cuda:N"; `cuda` are `CudaDevice`'s other attributes.

    Raises
    ------
    DeviceError
        There is no such device here, or CuPy does not find it.
    CardTooOld
        It is there, and the kernels do not run on it.
    """
    if name == "emulated":
        return EmulatedDevice()
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise DeviceError(f"kernels do not run on {name!r}: cuda, cuda:N and emulated are devices")
    count = cuda_count()
    if int(index or 0) >= count:
        raise DeviceError(f"device {name}: CuPy finds {count} cards; docs/gpu.md says how to install it")
    device = CudaDevice(index=int(index or 0), **cuda)
    if device.arch < _LEAST_ARCH:
        raise CardTooOld(f"device {name}: it is an sm_{device.arch}, kernels need sm_{_LEAST_ARCH} (A100) or newer")
    return device


def cuda_count() -> int:
    """Cards that CuPy finds: none without a driver.

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
            f"kernels on a card need CuPy ({error}): pip install 'porestream[gpu13]', or [gpu12], as "
            "torch.version.cuda is 13 or 12"
        ) from error
    return cupy  # type: ignore[no-any-return]
