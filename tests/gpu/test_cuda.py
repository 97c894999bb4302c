"""What only a CUDA card can show. Skipped where there is none; `make gpu-check` runs these and more.

Dimensions: N rows of a batch, M samples, T time steps, C scores.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gpu_steps.bases import compare
from shapes import write_shape

from porestream.client.sources.pod5_source import Pod5Source
from porestream.models.call import cuda_runner as module
from porestream.models.call.card import Card, find_device
from porestream.models.call.chunk import Chunker
from porestream.models.call.cpu_runner import CpuRunner
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.call.memory import device_bytes
from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.models.files.catalog import BUNDLED
from porestream.models.files.config import ModelError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card, or a PyTorch without CUDA")

F32 = npt.NDArray[np.float32]
ROWS = 64
SHAPES = ("tiny v3", "fast v4.3", "hac v4.3", "tiny v6", "tiny sup v5")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of PyTorch on the CPU, as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return find_device("cuda")


@pytest.fixture(scope="module")
def card(device: torch.device) -> Iterator[Card]:
    yield Card(device, threads=4)
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_bundle(write_shape(name, folder / name)) for name in SHAPES}


def lengths(bundle: ModelBundle) -> tuple[int, ...]:
    config = bundle.config
    return Chunker(config.chunk_size, config.overlap, config.stride, config.chunk_unit, config.coarse_stride).lengths


def chunks(count: int, samples: int, seed: int) -> list[F32]:
    """Steps with noise, as normalised signal has."""
    rng = np.random.default_rng(seed)
    levels = rng.standard_normal((count, samples // 9 + 1), np.float32).repeat(9, axis=1)[:, :samples]
    return [*(levels + 0.2 * rng.standard_normal((count, samples), np.float32))]


def same_bits(left: F32, right: F32) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_the_same_in_any_place_company_and_fill(
    card: Card, bundles: dict[str, ModelBundle], name: str, precision: str
) -> None:
    runner = CudaRunner(bundles[name], lengths(bundles[name]), precision, card, ROWS)
    for samples in lengths(bundles[name]):
        chunk_M = chunks(1, samples, 1)[0]
        expected_TC = runner([chunk_M], samples)[:, 0].copy()
        assert np.isfinite(expected_TC).all()
        assert expected_TC.std() > 0.1
        companies = [chunks(ROWS, samples, 2), [np.zeros(samples, np.float32)] * ROWS]
        companies.append([np.full(samples, 1e4, np.float32)] * ROWS)
        for company in companies:
            for row in (0, 1, 29, ROWS - 1):
                for count in (row + 1, ROWS):
                    batch = [*company[:row], chunk_M, *company[row + 1 : count]]
                    assert same_bits(runner(batch, samples)[:, row], expected_TC), (samples, row, count)


@pytest.mark.parametrize("name", SHAPES)
def test_a_graph_computes_what_single_kernels_do(
    card: Card, device: torch.device, bundles: dict[str, ModelBundle], name: str
) -> None:
    sizes = lengths(bundles[name])
    graph = CudaRunner(bundles[name], sizes, "fp16", card, ROWS)
    eager = CudaRunner(bundles[name], sizes, "fp16", Card(device, graphs=False), ROWS)
    for turn, samples in enumerate((*sizes, *sizes)):  # lengths in turn, for they share memory
        batch = chunks(ROWS, samples, turn)
        assert same_bits(graph(batch, samples), eager(batch, samples))


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("fp16", 0.05), ("bf16", 0.4)])
@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_near_the_cpus(
    card: Card, bundles: dict[str, ModelBundle], name: str, precision: str, bound: float
) -> None:
    """`bound` is of the root mean square; scores deviate by about 2."""
    bundle = bundles[name]
    samples = lengths(bundle)[-1]
    batch = chunks(4, samples, 3)
    theirs_TNC = CudaRunner(bundle, lengths(bundle), precision, card, ROWS)(batch, samples)[:, :4]
    ours = CpuRunner(bundle, "fp32")
    ours_TNC = np.stack([ours([chunk_M], samples)[:, 0].copy() for chunk_M in batch], axis=1)
    assert math.sqrt(np.mean((theirs_TNC - ours_TNC) ** 2)) < bound


def test_threads_and_models_share_a_card(card: Card, bundles: dict[str, ModelBundle]) -> None:
    models = [bundles["tiny v3"], bundles["fast v4.3"], bundles["tiny sup v5"]]
    runners = [CudaRunner(bundle, lengths(bundle), "fp16", card, ROWS) for bundle in models]
    work = [(runner, size) for runner, bundle in zip(runners, models, strict=True) for size in lengths(bundle)]
    expected = [runner(chunks(ROWS, samples, 5), samples).copy() for runner, samples in work]

    def call(index: int) -> bool:
        runner, samples = work[index % len(work)]
        return same_bits(runner(chunks(ROWS, samples, 5), samples), expected[index % len(work)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(6 * len(work))))


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_takes_no_more_than_was_planned(
    device: torch.device, bundles: dict[str, ModelBundle], name: str
) -> None:
    bundle, sizes = bundles[name], lengths(bundles[name])
    card = Card(device)
    before = card.free_bytes()
    runner = CudaRunner(bundle, sizes, "fp16", card, 256)
    runner(chunks(256, sizes[0], 1), sizes[0])
    assert before - card.free_bytes() <= device_bytes(bundle.config, sizes[0], "fp16", 256)


def test_what_does_not_fit_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, bundles: dict[str, ModelBundle]
) -> None:
    bundle, card = bundles["hac v4.3"], Card(device)
    monkeypatch.setattr(module, "host_memory_bytes", lambda: 1 << 60)
    with pytest.raises(ModelError, match=r"GiB of GPU memory, but only .* GiB is available: .*--batch-size"):
        CudaRunner(bundle, lengths(bundle), "fp16", card, 1 << 20)
    monkeypatch.setattr(card, "free_bytes", lambda: 1 << 60)  # the plan is wrong: the card says so itself
    with pytest.raises(ModelError, match="out of GPU memory"):
        CudaRunner(bundle, lengths(bundle), "fp16", card, 1 << 17)


def test_cupy_works_in_the_same_stream(card: Card, bundles: dict[str, ModelBundle]) -> None:
    cupy = pytest.importorskip("cupy")
    bundle = bundles["fast v4.3"]
    samples = lengths(bundle)[0]
    runner = CudaRunner(bundle, lengths(bundle), "fp16", card, ROWS)
    expected = float(np.abs(runner(chunks(ROWS, samples, 7), samples)).max())
    assert card.stream is not None
    with torch.cuda.stream(card.stream):
        scores = torch.zeros(1 << 26, device=card.device)
        for _ in range(50):  # long enough that a kernel in another stream would come too early
            scores.add_(0.0)
        scores.fill_(expected)
    with cupy.cuda.Device(card.device.index), cupy.cuda.ExternalStream(card.stream.cuda_stream):
        largest = cupy.abs(cupy.from_dlpack(scores)).max()
        assert float(largest) == np.float32(expected)


def test_bases_are_the_cpus(card: Card, simulated_run: Path) -> None:
    found = compare(BUNDLED, Pod5Source([simulated_run / "run_35.pod5"], 20), card)
    assert found.reads == 20
    assert found.bases > 20_000
    assert found.agreement > 0.995


def test_a_server_calls_the_same_whatever_the_company(
    start_server: Callable[..., Any], signals: list[npt.NDArray[np.int16]]
) -> None:
    from uuid import UUID

    from porestream.client.client import SyncBasecallClient
    from porestream.client.opening import StreamOptions
    from porestream.client.reads import ReadInfo, RunInfo, SignalRead

    address = start_server(device="cuda", batch_size=ROWS, threads=4).address
    reads = [
        SignalRead(
            ReadInfo(
                read_id=UUID(int=number),
                run=RunInfo(run_id="run", sample_rate_hz=4000),
                offset_adc=10.0,
                scale_pa_per_adc=0.2,
            ),
            signal_S,
        )
        for number, signal_S in enumerate(signals)
    ]

    def call(some: list[SignalRead]) -> dict[UUID, tuple[str, bytes]]:
        with SyncBasecallClient(address, StreamOptions()) as client:
            results = list(client.call(some))
        return {result.info.read_id: (part.sequence, part.qualities) for result in results for part in result.parts}

    together = call(reads)
    assert len(together) == len(reads)
    for read in reads:
        assert call([read]).items() <= together.items()
