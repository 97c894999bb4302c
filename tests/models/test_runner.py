"""One network in few fixed shapes: the card's way with the CPU in its place, and what is asked of CUDA in which order.

Dimensions: N rows of a batch, M samples, T time steps, C scores.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from host_card import HostCard
from shapes import SHAPES, write_shape

from porestream.kernels.decode.crf import CrfDecoder
from porestream.kernels.device import EmulatedDevice
from porestream.models.call.basecaller import Basecaller, decode_settings
from porestream.models.call.card import Card, find_device, fix_arithmetic
from porestream.models.call.cpu_runner import CpuRunner, cpu_rows
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.call.decode import Decoded, Decoder, NonFiniteScores
from porestream.models.call.memory import result_bytes
from porestream.models.call.network import Network
from porestream.models.call.runner import Runner
from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.models.files.config import ModelError, load_config
from porestream.models.networks.recurrent import AlongTime

F32 = npt.NDArray[np.float32]
CPU = torch.device("cpu")
LENGTHS = (1200, 300)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def torch_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's code runs on the CPU here: bits can be the same only if both compute recurrences with torch."""
    monkeypatch.setattr(AlongTime, "compile_for_cpu", lambda self: False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_bundle(write_shape(name, folder / name)) for name in ("tiny v3", "tiny v4.3", "tiny sup v5")}


def chunks(count: int, samples: int, seed: int = 1) -> list[F32]:
    return [*np.random.default_rng(seed).standard_normal((count, samples), np.float32)]


def same_bits(left: F32, right: F32) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_card_computes_what_the_cpu_does(bundles: dict[str, ModelBundle], precision: str) -> None:
    bundle = bundles["tiny v4.3"]
    ours = CpuRunner(bundle, precision)
    theirs = CudaRunner(bundle, LENGTHS, precision, HostCard(), rows=ours.rows)
    assert theirs.precision == ours.precision == precision
    for samples in (*LENGTHS, LENGTHS[0]):  # the long length again, in memory that a short one has used
        for count in (16, 3, 0):
            batch = chunks(count, samples, count)
            assert same_bits(theirs(iter(batch), samples), ours(iter(batch), samples)), (samples, count)


def test_a_card_computes_a_transformers_rows_together(bundles: dict[str, ModelBundle]) -> None:
    bundle = bundles["tiny sup v5"]
    batch = chunks(5, 1920)
    ours, theirs = CpuRunner(bundle, "fp32"), CudaRunner(bundle, [1920], "fp32", HostCard(), rows=16)
    one_by_one_TNC = np.concatenate([ours([chunk], 1920).copy() for chunk in batch], axis=1)
    assert ours.rows == 1  # the CPU's, where more would gain nothing
    np.testing.assert_allclose(theirs(batch, 1920)[:, : len(batch)], one_by_one_TNC, atol=1e-4)


def test_threads_and_models_share_a_card(bundles: dict[str, ModelBundle]) -> None:
    card = HostCard(threads=4)
    runners: list[Runner] = [CudaRunner(bundles[name], LENGTHS, "fp32", card, 16) for name in ("tiny v3", "tiny v4.3")]
    work = [(runner, samples, seed) for runner in runners for samples in LENGTHS for seed in range(3)]
    expected = [runner(chunks(16, samples, seed), samples).copy() for runner, samples, seed in work]

    def call(index: int) -> bool:
        torch.set_num_threads(1)
        runner, samples, seed = work[index % len(work)]
        return same_bits(runner(chunks(16, samples, seed), samples), expected[index % len(work)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4 * len(work))))


def test_a_batch_has_no_more_than_its_rows(bundles: dict[str, ModelBundle]) -> None:
    runner = CudaRunner(bundles["tiny v3"], LENGTHS, "fp32", HostCard(), rows=5)
    assert runner(chunks(5, 300), 300).shape == (60, 5, 64)
    with pytest.raises(IndexError):
        runner(chunks(6, 300), 300)


def test_rows_are_part_of_what_decides_the_bits(bundles: dict[str, ModelBundle]) -> None:
    classes = {
        CudaRunner(bundles["tiny v3"], LENGTHS, "fp32", HostCard(), rows).device_class for rows in (16, 32, None)
    }
    assert len(classes) == 3


def kernels_for(bundle: ModelBundle) -> CrfDecoder:
    """The card's decoder, emulated."""
    settings = decode_settings(bundle.config)
    calibration = settings.quality_scale, settings.quality_bias
    return CrfDecoder(EmulatedDevice(), bundle.config.state_len, settings.stay_score, *calibration)


def decoding_runners(bundle: ModelBundle, card: Card | None = None) -> list[CpuRunner | CudaRunner]:
    decoder = kernels_for(bundle)
    return [
        CpuRunner(bundle, "fp32", decoder),
        CudaRunner(bundle, LENGTHS, "fp32", card or HostCard(), 16, decoder=decoder),
    ]


def on_the_cpu(bundle: ModelBundle, batch: list[F32], samples: int) -> list[Decoded]:
    """What the CPU's decoder makes of the same network's scores."""
    scores_TNC = CpuRunner(bundle, "fp32")(batch, samples)
    decoder = Decoder(bundle.config.state_len, decode_settings(bundle.config))
    return [decoder(scores_TNC, row) for row in range(len(batch))]


def same_calls(found: Sequence[Decoded | ValueError], expected: Sequence[Decoded]) -> bool:
    """The same bases and moves, qualities within 1."""
    return len(found) == len(expected) and all(
        isinstance(ours, Decoded)
        and np.array_equal(ours.bases_B, theirs.bases_B)
        and np.array_equal(ours.moves_T, theirs.moves_T)
        and np.abs(ours.qualities_B.astype(int) - theirs.qualities_B).max() <= 1
        for ours, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", ["tiny v3", "tiny v4.3"])
def test_scores_are_decoded_where_they_are(bundles: dict[str, ModelBundle], name: str) -> None:
    bundle = bundles[name]
    runners = decoding_runners(bundle)
    for samples, counts in ((1200, (16, 1)), (300, (16, 3)), (1200, (3,))):
        for count in counts:
            batch = chunks(count, samples, count)
            expected = on_the_cpu(bundle, batch, samples)
            for runner in runners:
                assert same_calls(runner.call(batch, samples), expected), (type(runner), samples, count)


def test_results_are_not_overwritten_by_the_next_call(bundles: dict[str, ModelBundle]) -> None:
    bundle = bundles["tiny v3"]
    for runner in decoding_runners(bundle):
        called = runner.call(chunks(16, 1200, 1), 1200)
        runner.call(chunks(16, 1200, 2), 1200)
        assert same_calls(called, on_the_cpu(bundle, chunks(16, 1200, 1), 1200))


def test_threads_and_models_share_a_decoding_card(bundles: dict[str, ModelBundle]) -> None:
    card = HostCard(threads=4)
    of_name = {name: decoding_runners(bundles[name], card) for name in ("tiny v3", "tiny v4.3")}
    work = [(name, samples, seed) for name in of_name for samples in LENGTHS for seed in range(2)]
    expected = [on_the_cpu(bundles[name], chunks(16, samples, seed), samples) for name, samples, seed in work]

    def call(index: int) -> bool:
        torch.set_num_threads(1)
        name, samples, seed = work[index % len(work)]
        runner = of_name[name][index // len(work) % 2]
        return same_calls(runner.call(chunks(16, samples, seed), samples), expected[index % len(work)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(2 * len(work))))


def test_scores_that_are_not_finite_are_refused_row_by_row(bundles: dict[str, ModelBundle]) -> None:
    bundle = bundles["tiny v4.3"]
    batch = chunks(5, 300)
    expected = on_the_cpu(bundle, batch, 300)
    batch[1] = np.full(300, np.nan, np.float32)
    for runner in decoding_runners(bundle):
        called = runner.call(batch, 300)
        assert isinstance(called[1], NonFiniteScores)
        assert "row 1" in str(called[1])
        assert same_calls([called[0], *called[2:]], [expected[0], *expected[2:]])


def test_what_is_decoded_on_a_card_takes_little_of_the_host(bundles: dict[str, ModelBundle]) -> None:
    bundle, card = bundles["tiny v3"], HostCard()
    cpu, cuda = decoding_runners(bundle, card)
    sizes = [buffer.numel() for buffer in card.host_buffers()]
    assert sizes == [16 * 1200 * 4, 16 * (4 + 3 * 240)] == [16 * 1200 * 4, result_bytes(bundle.config, 1200, 16, True)]
    CudaRunner(bundle, LENGTHS, "fp32", card, 16)  # another, whose scores come to the host
    assert [buffer.numel() for buffer in card.host_buffers()] == [16 * 1200 * 4, 16 * 240 * 64 * 4]
    batch = chunks(3, 300)
    assert same_calls(cuda.call(batch, 300), on_the_cpu(bundle, batch, 300))
    with pytest.raises(ValueError, match="this runner decodes on the GPU"):
        cuda(batch, 300)
    assert cuda.device_class == "cpu-16rows-gpu-decoder"
    assert cpu.device_class == f"{CpuRunner(bundle, 'fp32').device_class}-gpu-decoder"


class HalfCard(HostCard):
    """Computes in half precision as a GPU does, however slowly."""

    def precision(self, asked: str) -> str:
        return "fp16"


@pytest.mark.parametrize("name", ["tiny v3", "tiny v4", "tiny v4.3", "tiny sup v4", "tiny v6"])
def test_what_a_card_decodes_in_fp16_are_halves(tmp_path: Path, name: str) -> None:
    """The scores are the runner's without a decoder, rounded once more, and bases what the CPU calls of just those."""
    bundle = load_bundle(write_shape(name, tmp_path / "model"))
    samples = bundle.config.chunk_size
    decoder = kernels_for(bundle)
    decoded = CudaRunner(bundle, [samples], "auto", HalfCard(), 2, decoder=decoder)
    plain = CudaRunner(bundle, [samples], "auto", HalfCard(), 2)
    assert decoded.device_class == f"{plain.device_class}-gpu-decoder-half-scores"
    assert decoded.planned_bytes != plain.planned_bytes
    batch = chunks(2, samples)
    found = decoded.call(batch, samples)
    halves_TNC = decoded._shapes[2, samples][1]
    assert halves_TNC.dtype == torch.float16
    exact_TNC = torch.from_numpy(plain(batch, samples))
    torch.testing.assert_close(halves_TNC.float(), exact_TNC, rtol=2**-10, atol=1e-3)
    on_cpu = Decoder(bundle.config.state_len, decode_settings(bundle.config))
    whole_TNC = np.ascontiguousarray(halves_TNC.float().numpy())
    assert same_calls(found, [on_cpu(whole_TNC, row) for row in range(2)])


def test_small_shapes_are_called_in_the_same_memory(bundles: dict[str, ModelBundle]) -> None:
    """In turns with the whole batches, and with the bases that these give (fp32, where a row's sums hardly differ)."""
    bundle = bundles["tiny v3"]
    card = HostCard()
    small = [(4, 1200), (2, 300)]
    runner = CudaRunner(bundle, LENGTHS, "fp32", card, 16, decoder=kernels_for(bundle), small=small)
    plain = CudaRunner(bundle, LENGTHS, "fp32", HostCard(), 16, decoder=kernels_for(bundle))
    assert runner.device_class == plain.device_class
    assert runner.planned_bytes == plain.planned_bytes
    for rows, samples in (*small, *small[::-1]):
        batch = chunks(rows, samples)
        whole = runner.call(batch, samples)
        assert same_calls(runner.call(batch, samples, rows=rows), whole)
        assert same_calls(runner.call(batch[:1], samples, rows=rows), whole[:1])
    with pytest.raises(KeyError):
        runner.call(chunks(4, 300), 300, rows=4)
    with pytest.raises(ValueError, match="must be no larger than 16 x 1200 samples"):
        CudaRunner(bundle, LENGTHS, "fp32", card, 16, decoder=kernels_for(bundle), small=[(32, 1200)])


def test_a_basecaller_calls_the_same_with_either_decoder(bundles: dict[str, ModelBundle]) -> None:
    bundle = bundles["tiny v4.3"]
    signal_S = np.random.default_rng(3).normal(500, 60, 4000).astype(np.int16)
    callers = [Basecaller(bundle, "fp32", decoder=decoder) for decoder in (None, kernels_for(bundle))]
    left, right = (caller.call_read(signal_S) for caller in callers)
    assert left.sequence == right.sequence
    assert np.array_equal(left.moves_T, right.moves_T)
    assert np.abs(left.qualities_B.astype(int) - right.qualities_B).max() <= 1


class FakeCuda:
    """What `Card` asks of torch.cuda, written down; the work itself is done on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.inside = False
        self._capturing: list[Callable[[], object]] | None = None
        fake: dict[str, Any] = {
            "Stream": lambda device: SimpleNamespace(cuda_stream=1, synchronize=lambda: self.log.append("synchronize")),
            "stream": self._stream,
            "Event": self._event,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self._graph,
            "graph_pool_handle": lambda: "pool",
            "device": self._device,
            "get_device_capability": lambda device: (9, 0),
            "empty_cache": lambda: None,
            "mem_get_info": lambda device: (8 << 30, 80 << 30),
        }
        for name, value in fake.items():
            monkeypatch.setattr(torch.cuda, name, value)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, pin_memory=False, device=None, **rest: zeros(*size, **rest))
        monkeypatch.setattr(Network, "to", lambda network, device: network)
        forward = Network.forward

        def logged(network: Any, *args: Any) -> torch.Tensor:
            assert self.inside, "a kernel outside the card's stream"
            self.log.append("kernels")
            return forward(network, *args)

        monkeypatch.setattr(Network, "forward", logged)

    @contextmanager
    def _stream(self, stream: object) -> Iterator[None]:
        before, self.inside = self.inside, True
        yield
        self.inside = before

    @contextmanager
    def _device(self, device: torch.device) -> Iterator[None]:
        assert device == torch.device("cuda", 0)
        yield

    @contextmanager
    def _graph(self, graph: object, pool: object, stream: object) -> Iterator[None]:
        assert pool == "pool"
        self.log.append("capture")
        with self._stream(stream):
            yield
        self.log.append("captured")

    def _event(self, blocking: bool) -> SimpleNamespace:
        assert blocking
        return SimpleNamespace(
            record=lambda stream: self.log.append("mark"), synchronize=lambda: self.log.append("wait")
        )


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """The process's settings are as before after the test."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    settings = [
        (matmul, "allow_tf32"),
        (matmul, "allow_fp16_reduced_precision_reduction"),
        (matmul, "allow_bf16_reduced_precision_reduction"),
        (cudnn, "allow_tf32"),
        (cudnn, "benchmark"),
        (cudnn, "deterministic"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ]
    before = [getattr(owner, name) for owner, name in settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        yield
    for (owner, name), value in zip(settings, before, strict=True):
        setattr(owner, name, value)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("arithmetic")
def test_what_is_asked_of_cuda(monkeypatch: pytest.MonkeyPatch, bundles: dict[str, ModelBundle]) -> None:
    cuda = FakeCuda(monkeypatch)
    card = Card(torch.device("cuda", 0))
    runner = CudaRunner(bundles["tiny v3"], LENGTHS, "auto", card, rows=16)
    warmed, captured = ["kernels"] * 3 + ["synchronize"], ["capture", "kernels", "captured"]
    assert cuda.log == warmed * 2 + captured * 2  # both lengths before the first's memory stays taken
    assert list(runner._shapes) == [(16, length) for length in sorted(LENGTHS, reverse=True)]
    assert (runner.precision, runner.device_class) == ("fp16", "sm_90-16rows")
    cuda.log.clear()

    class WatchedLock:
        def __enter__(self) -> None:
            cuda.log.append("lock")

        def __exit__(self, *_: object) -> None:
            cuda.log.append("unlock")

    card.lock = WatchedLock()  # type: ignore[assignment]
    runner(chunks(2, 300), 300)
    assert cuda.log == ["lock", "replay", "mark", "unlock", "wait"]
    cuda.log.clear()

    eager = CudaRunner(bundles["tiny v3"], LENGTHS, "auto", Card(torch.device("cuda", 0), graphs=False), rows=16)
    cuda.log.clear()
    eager(chunks(2, 300), 300)
    assert cuda.log == ["kernels", "mark", "wait"]


@pytest.mark.usefixtures("arithmetic")
def test_decoding_is_in_the_order_of_the_cards_stream(
    monkeypatch: pytest.MonkeyPatch, bundles: dict[str, ModelBundle]
) -> None:
    """After the network and before the copy to the host, while no other batch's work goes into the stream."""
    cuda = FakeCuda(monkeypatch)
    card = Card(torch.device("cuda", 0))

    class WrittenDown:
        """Calls one base of each row: its quality is the row's number."""

        def __call__(self, scores_TNC: torch.Tensor, into: Sequence[torch.Tensor] | None = None) -> Sequence[Any]:
            assert cuda.inside, "a kernel outside the card's stream"
            assert card.lock.locked()
            assert scores_TNC.shape == (60, 16, 64)
            assert into is not None
            letters_NT, qualities_NT, moves_NT, counts_N = into
            assert letters_NT.shape == qualities_NT.shape == moves_NT.shape == (16, 60)
            cuda.log.append("decode")
            letters_NT.fill_(ord("A"))
            qualities_NT.add_(torch.arange(16, dtype=torch.uint8)[:, None])
            counts_N.fill_(1)
            return into

        def finish_scores(self, scores_TNC: torch.Tensor, is_tanh: bool, scale: float, limit: float) -> None:
            assert cuda.inside
            assert (scores_TNC.dtype, is_tanh, scale) == (torch.float16, True, 5.0)

        def device_bytes(self, steps: int, rows: int) -> int:
            return steps * rows

    runner = CudaRunner(bundles["tiny v3"], LENGTHS, "auto", card, rows=16, decoder=WrittenDown())
    assert runner.device_class == "sm_90-16rows-gpu-decoder-half-scores"
    assert "decode" not in cuda.log  # it is no part of the graph: its memory is its own
    cuda.log.clear()
    copy = torch.Tensor.copy_

    def copied(to: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert kwargs == {"non_blocking": True}
        assert card.lock.locked()
        cuda.log.append("copy")
        return copy(to, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    called = runner.call(chunks(3, 300), 300)
    assert cuda.log == ["copy", "replay", "decode", "copy", "mark", "wait"]
    assert [row.qualities_B.tolist() for row in called if isinstance(row, Decoded)] == [[0], [1], [2]]
    assert not card.lock.locked()


@pytest.mark.usefixtures("arithmetic")
def test_arithmetic_is_fixed_and_the_network_keeps_to_it(bundles: dict[str, ModelBundle]) -> None:
    fix_arithmetic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # operators that are not deterministic warn
        for bundle in bundles.values():
            CpuRunner(bundle, "fp32")(chunks(1, 1920), 1920)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == CPU
    with pytest.raises(ModelError, match=r"device cuda:1: PyTorch .* (without CUDA|no GPU or driver): see docs/.*"):
        find_device("cuda:1")
    for name in ("gpu", "cuda:", "cuda:-1", "cpu:0", ""):
        with pytest.raises(ModelError, match="unknown device"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == CPU
    with pytest.raises(ModelError, match=r"cuda:2: PyTorch finds 2 GPU\(s\)"):
        find_device("cuda:2")


def test_a_model_that_does_not_fit_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, bundles: dict[str, ModelBundle]
) -> None:
    bundle, card = bundles["tiny v3"], HostCard()
    monkeypatch.setattr(card, "free_bytes", lambda: 700 << 20)
    planned = CudaRunner(bundle, LENGTHS, "fp32", card)
    assert planned.rows % 64 == 0
    assert [buffer.numel() for buffer in card.host_buffers()] == [4 * planned.rows * 1200, 4 * planned.rows * 240 * 64]
    with pytest.raises(ModelError, match=r"^tiny v3 on cpu: a batch of 4096 chunks needs .* 0\.68 GiB .* --batch-size"):
        CudaRunner(bundle, LENGTHS, "fp32", card, rows=4096)
    with pytest.raises(ModelError, match=r"^tiny v3 on cpu: a batch of 16 chunks needs .* a smaller model"):
        CudaRunner(bundle, LENGTHS, "fp32", card, share=0.5)
    with pytest.raises(ModelError, match="smaller model"):
        Basecaller(bundle, "fp32", card=card, share=0.5)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(card, "free_bytes", lambda: 8 << 30)
    monkeypatch.setattr(card, "recorded", full)
    with pytest.raises(ModelError, match=r"out of GPU memory: 16 rows.*--batch-size.*Tried to allocate 2 GiB\)$"):
        CudaRunner(bundle, [120_000], "fp32", card, rows=16)

    def old(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(card, "recorded", old)
    with pytest.raises(ModelError, match=r"^tiny v3 does not run on cpu: CUDA error: no kernel.*; --device cpu"):
        CudaRunner(bundle, [120_000], "fp32", card, rows=16)
    assert card.host_buffers()[0].numel() == 4 * planned.rows * 1200  # what was refused takes nothing


def test_half_precision_is_for_cards(bundles: dict[str, ModelBundle]) -> None:
    for make in (lambda: CpuRunner(bundles["tiny v3"], "fp16"), lambda: Basecaller(bundles["tiny v3"], "fp16")):
        with pytest.raises(ModelError, match=r"fp16 is ten times slower than fp32 on a CPU: .* --device cuda"):
            make()


def test_fewer_rows_on_the_cpu_where_scores_are_many(tmp_path: Path) -> None:
    many_scores = replace(SHAPES["sup v4"], features=64, bottleneck=0)
    for number, (shape, rows) in enumerate(
        ((SHAPES["hac v4.3"], 16), (SHAPES["hac v6"], 32), (many_scores, 8), (SHAPES["tiny sup v5"], 1))
    ):
        assert cpu_rows(load_config(write_shape(shape, tmp_path / str(number)))) == rows, shape


def test_a_cards_buffers_are_each_threads_own(bundles: dict[str, ModelBundle]) -> None:
    card = HostCard()
    card.reserve(10, 20)
    card.reserve(30, 5)
    mine = card.host_buffers()
    assert [buffer.numel() for buffer in mine] == [30, 20]
    assert card.host_buffers()[0] is mine[0]
    others: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: others.extend(card.host_buffers()))
    thread.start()
    thread.join()
    assert {buffer.data_ptr() for buffer in others}.isdisjoint({buffer.data_ptr() for buffer in mine})
