"""Devices and sources: what is refused, what is compiled once, and what a card's device asks of CuPy (a stand-in)."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from porestream.kernels import device as module
from porestream.kernels import source
from porestream.kernels.device import CudaDevice, DeviceError, EmulatedDevice, cuda_count, find_kernel_device
from porestream.models.private_folder import UnsafeCacheError
from porestream.server.settings import Settings, SettingsError
from porestream.server.start.devices import batch_decoder, keep_device_code, kernel_devices


class CompileError(Exception):
    """CuPy's CompileException."""


class StandIn(ModuleType):
    """CuPy, as far as `kernels.device` uses it; notes what is current when something is done."""

    def __init__(self, cards: int) -> None:
        super().__init__("cupy")
        self.current: list[str] = []
        self.done: list[tuple[str, tuple[str, ...]]] = []
        runtime = SimpleNamespace(getDeviceCount=lambda: cards)
        self.cuda = SimpleNamespace(
            is_available=lambda: cards > 0,
            runtime=runtime,
            Device=self._device,
            ExternalStream=lambda pointer, device: self._entered(f"stream {pointer} of {device}"),
            PythonFunctionAllocator=self._allocator,
            compiler=SimpleNamespace(CompileException=CompileError),
            using_allocator=lambda malloc: self._entered(f"allocator {malloc(100, 0)}"),
        )

    def _device(self, index: int) -> Any:
        entered = self._entered(f"card {index}")
        entered.compute_capability = "90"  # type: ignore[attr-defined]
        return entered

    def _entered(self, name: str) -> contextlib.AbstractContextManager[None]:
        class Entered(contextlib.AbstractContextManager[None]):
            def __enter__(_) -> None:  # noqa: N805
                self.current.append(name)

            def __exit__(_, *_error: object) -> None:  # noqa: N805
                assert self.current.pop() == name

        return Entered()

    def _allocator(self, malloc: Callable[[int, int], int], free: Callable[[int, int], None]) -> SimpleNamespace:
        return SimpleNamespace(malloc=malloc, free=free)

    def RawModule(self, code: str, options: tuple[str, ...]) -> SimpleNamespace:  # noqa: N802
        self.done.append(("compile", options))

        def get_function(name: str) -> Callable[..., None]:
            self.done.append((f"load {name}", tuple(self.current)))
            return lambda *_arguments: None

        def compile_it() -> None:
            if "-DBROKEN=1" in options:
                raise CompileError('pack.cu(3): error: expected a ";"')

        return SimpleNamespace(get_function=get_function, compile=compile_it)

    def from_dlpack(self, tensor: object) -> object:
        return tensor

    def asnumpy(self, array: object) -> object:
        self.done.append(("copy", tuple(self.current)))
        return array


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn(cards=2)
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    caches = (module._cupy, source._module, source._kernel)
    for cache in caches:
        cache.cache_clear()
    yield stand_in
    for cache in caches:
        cache.cache_clear()


def test_without_cupy_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    module._cupy.cache_clear()
    with pytest.raises(DeviceError, match=r"need CuPy .*pip install 'porestream\[gpu13\]'"):
        find_kernel_device("cuda")


@pytest.mark.parametrize("name", ["cpu", "cuda:x", "cuda:-1", "tpu", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"kernels cannot run on '{name}'; use cuda, cuda:N or emulated"):
        find_kernel_device(name)


def test_a_card_that_is_not_there_is_refused(cupy: StandIn) -> None:
    assert cuda_count() == 2
    assert find_kernel_device("cuda:1") == CudaDevice(index=1)
    with pytest.raises(DeviceError, match=r"device cuda:2: CuPy finds 2 GPU\(s\): see docs/operate/gpu.md"):
        find_kernel_device("cuda:2")


def test_a_card_works_in_the_stream_and_the_memory_that_it_is_given(cupy: StandIn) -> None:
    asked: list[int] = []
    device = CudaDevice(index=1, stream=4711, allocate=lambda size: asked.append(size) or 99, free=asked.append)  # type: ignore[func-returns-value]
    within = ("card 1", "stream 4711 of 1", "allocator 99")
    assert (device.name, device.arch) == ("cuda:1", 90)
    device.to_host(np.zeros(1))
    assert cupy.done == [("copy", within)]
    assert asked == [100]
    assert cupy.current == []
    source.load(device, "pack.cu", "pack_bases")
    assert cupy.done[1:] == [("compile", source.OPTIONS), ("load pack_bases", within)]


def test_each_source_is_compiled_once_a_device_and_configuration(cupy: StandIn) -> None:
    for device in (CudaDevice(index=0), CudaDevice(index=0), CudaDevice(index=1)):
        for many in (0, 1):
            for kernel in ("fill", "fill_traceback"):
                source.load(device, "fill.cu", kernel, MANY=many)
    compiled = [options for what, options in cupy.done if what == "compile"]
    assert compiled == [(*source.OPTIONS, f"-DMANY={many}") for many in (0, 1)] * 2


def test_a_source_that_does_not_compile_is_named_with_the_way_out(cupy: StandIn) -> None:
    with pytest.raises(DeviceError, match=r"cuda:1: pack.cu does not compile for sm_90 \(pack.cu\(3\).*--decoder cpu"):
        source.load(CudaDevice(index=1), "pack.cu", "pack_bases", BROKEN=1)


def test_an_emulator_without_a_compiler_is_an_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"device emulated: .*g\+\+ .* not on PATH: apt-get install g\+\+"):
        EmulatedDevice().compile("int x;", (), "x.cu")


def test_nothing_else_imports_cupy() -> None:
    root = source.FOLDER.parent
    files = [file for top in ("server", "kernels", "models", "client", "cli") for file in (root / top).rglob("*.py")]
    importing = [file.name for file in files if re.search(r"^\s*(import|from) cupy", file.read_text(), re.MULTILINE)]
    assert importing == ["device.py"]


def test_arithmetic_is_pinned() -> None:
    assert "--fmad=false" in source.OPTIONS
    assert not any("fast" in option for option in source.OPTIONS)


def test_headers_are_written_into_the_source_with_its_lines_kept() -> None:
    lines = source.read_source("extend.cu").split("\n")
    own = source.path_of("extend.cu").read_text().split("\n")
    assert not any(line.startswith("#include") for line in lines)
    assert '#line 1 "dual_affine.cuh"' in lines
    place = own.index('#include "dual_affine.cuh"')
    back = lines.index(f'#line {place + 2} "extend.cu"')
    assert lines[back + 1 :] == own[place + 1 :]


def test_kernels_go_where_the_networks_are(cupy: StandIn) -> None:
    stream = SimpleNamespace(cuda_stream=5)
    stand_in: Any = SimpleNamespace(
        stream=stream,
        device=SimpleNamespace(index=1),
        allocate=lambda _: 1,
        free=lambda _: None,
        reserved_bytes=0,
        another_stream=lambda: 7,
    )
    fasta = {"reference": [Path("a.fa")]}
    assert kernel_devices(Settings(), None) == (None, None)
    assert kernel_devices(Settings(**fasta), None) == (None, None)
    assert kernel_devices(Settings(device="cuda", decoder="cpu"), stand_in) == (None, None)
    assert kernel_devices(Settings(device="emulated"), None) == (EmulatedDevice(), None)
    emulated = Settings(device="emulated", decoder="cpu", aligner="gpu", **fasta)
    assert kernel_devices(emulated, None) == (None, EmulatedDevice())
    assert kernel_devices(Settings(device="cuda", aligner="mappy", **fasta), stand_in)[1] is None
    found, aligns = kernel_devices(Settings(device="cuda:1", **fasta), stand_in)
    assert isinstance(found, CudaDevice)
    assert (found.index, found.stream, found.allocate) == (1, 5, stand_in.allocate)
    assert aligns == CudaDevice(index=1, stream=7)  # a stream and memory of its own
    assert aligns.allocate is None


def test_memory_of_its_own_has_a_limit(cupy: StandIn) -> None:
    limits: list[int] = []
    pool = SimpleNamespace(malloc=lambda _size, _device: "own", set_limit=lambda size: limits.append(size))
    cupy.cuda.MemoryPool = lambda: pool
    with CudaDevice(limit_bytes=5).in_order():
        assert "allocator own" in cupy.current
    assert limits == [5]
    with CudaDevice().in_order():
        assert not any("allocator" in current for current in cupy.current)


def test_a_card_that_is_too_old_leaves_decoding_to_the_cpu(cupy: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDevice, "arch", 75)
    stream = SimpleNamespace(cuda_stream=5)
    card: Any = SimpleNamespace(
        stream=stream,
        device=SimpleNamespace(index=0),
        allocate=lambda _: 1,
        free=lambda _: None,
        reserved_bytes=0,
        another_stream=lambda: 7,
    )
    assert kernel_devices(Settings(device="cuda"), card) == (None, None)
    for asked in ({"decoder": "gpu"}, {"aligner": "gpu"}):
        with pytest.raises(DeviceError, match="device cuda:0 is sm_75; the kernels need sm_80"):
            kernel_devices(Settings(device="cuda", **asked), card)


def test_a_cache_that_cannot_be_written_to_is_an_error_that_names_the_way_out(
    cupy: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "/.cupy")

    monkeypatch.setattr(cupy, "RawModule", lambda code, options: SimpleNamespace(compile=fail))
    with pytest.raises(DeviceError, match=r"CuPy cannot write to its cache .*--cache-dir or CUPY_CACHE_DIR"):
        CudaDevice().compile("", (), "crf.cu")


def test_a_cards_code_is_kept_where_nobody_else_can_put_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("CUPY_CACHE_DIR", "")
    monkeypatch.setenv("CUDA_CACHE_PATH", str(open_to_all))
    keep_device_code(tmp_path)
    assert os.environ["CUPY_CACHE_DIR"] == str(tmp_path / "cupy")
    assert Path(os.environ["CUDA_CACHE_PATH"]).samefile(open_to_all / f"user-{os.geteuid()}")
    (tmp_path / "cupy").chmod(0o777)
    monkeypatch.delenv("CUPY_CACHE_DIR")
    with pytest.raises(UnsafeCacheError, match=r"cupy is accessible to other users \(mode 0777\)"):
        keep_device_code(tmp_path)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(open_to_all))
    (open_to_all / f"user-{os.geteuid()}").chmod(0o755)
    with pytest.raises(UnsafeCacheError, match="set CUPY_CACHE_DIR to a folder of your own"):
        keep_device_code(tmp_path)


@pytest.mark.parametrize("what", ["decoder", "aligner"])
def test_kernels_without_a_card_are_refused(what: str) -> None:
    settings = Settings(device="cpu", **{what: "gpu"})
    with pytest.raises(SettingsError, match=f"--{what} gpu needs a GPU, but --device cpu is a CPU here; choose"):
        kernel_devices(settings, None)


def test_too_many_states_are_decoded_on_the_cpu() -> None:
    config: Any = SimpleNamespace(state_len=6)
    assert batch_decoder(EmulatedDevice(), config) is None
    assert batch_decoder(None, config) is None
