"""Chunks through scaling, network and decoder: the same bases in any place and company.

Dimensions: S samples, B bases.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from porestream.models.call.basecaller import Basecaller, finish
from porestream.models.call.chunk import ChunkPlan
from porestream.models.call.cpu_runner import ROWS
from porestream.models.call.decode import Decoded, NonFiniteScores
from porestream.models.call.prepare import PreparedRead
from porestream.models.files.bundle import load_bundle
from porestream.models.scale import Scaling, med_mad_scaling, quantile_scaling

MakeBundle = Callable[..., Path]
I16 = npt.NDArray[np.int16]
Chunk = tuple[PreparedRead, int]

PRECISIONS = ("fp32", "bf16")
LENGTHS = (1200, 300)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def callers(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Basecaller]:
    folder = tmp_path_factory.mktemp("models")
    bundle = load_bundle(make_bundle(folder / "tiny", seed=21))
    return {precision: Basecaller(bundle, precision) for precision in PRECISIONS}


def squiggle(samples: int, seed: int) -> I16:
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(480, 80, samples // 3 + 1), rng.integers(3, 16, samples // 3 + 1))
    return (levels[:samples] + rng.normal(0, 12, samples)).astype(np.int16)


def chunk_of(signal_S: I16, scaling: Scaling, start: int = 0) -> Chunk:
    return PreparedRead(
        signal_S=signal_S, scaling=scaling, trimmed_samples=0, plan=ChunkPlan([], signal_S.size, 6)
    ), start


def company(samples: int) -> dict[str, list[Chunk]]:
    """Chunks that others may have sent."""
    reads = [squiggle(samples, 100 + number) for number in range(ROWS)]
    wild = np.where(np.arange(samples) % 7 < 3, 32767, -32768).astype(np.int16)
    return {
        "reads": [chunk_of(read, med_mad_scaling(read)) for read in reads],
        "wild signal": [chunk_of(wild, Scaling(0.0, 1.0))] * ROWS,
        "silence": [chunk_of(np.zeros(samples, np.int16), Scaling(0.0, 1.0))] * ROWS,
        "broken scalings": [
            chunk_of(wild, Scaling(float("nan"), float("inf"))),
            chunk_of(wild, Scaling(0.0, 1e-30)),
        ]
        * 8,
    }


def same(left: Decoded, right: Decoded) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in ("bases_B", "qualities_B", "moves_T")
    )


def called(result: Decoded | ValueError) -> Decoded:
    assert isinstance(result, Decoded)
    return result


@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_chunk_is_called_the_same_in_any_place_and_company(
    callers: dict[str, Basecaller], precision: str, samples: int
) -> None:
    caller = callers[precision]
    read = squiggle(4000, 1)
    chunk = chunk_of(read, med_mad_scaling(read), 606)
    alone = called(caller.call([chunk], samples)[0])
    assert alone.bases_B.size > samples / 60
    assert alone.moves_T.size == samples // 6
    for name, others in company(samples).items():
        for count in (2, 7, ROWS):
            for row in {0, 1, count // 2, count - 1} if count < ROWS else range(ROWS):
                chunks = others[: count - 1]
                chunks.insert(row, chunk)
                assert same(called(caller.call(chunks, samples)[row]), alone), f"row {row} of {count}, {name}"


def test_chunks_are_cut_scaled_and_padded(callers: dict[str, Basecaller]) -> None:
    caller = callers["fp32"]
    read = squiggle(4000, 2)
    scaling = med_mad_scaling(read)
    inner = called(caller.call([chunk_of(read, scaling, 600)], 300)[0])
    assert same(called(caller.call([chunk_of(read[600:900], scaling, 0)], 300)[0]), inner)
    moved = (read.astype(np.int32) + 77).astype(np.int16)
    assert same(called(caller.call([chunk_of(moved, Scaling(scaling.shift + 77, scaling.scale), 600)], 300)[0]), inner)
    tail = called(caller.call([chunk_of(read, scaling, 3900)], 300)[0])
    assert same(called(caller.call([chunk_of(np.tile(read[3900:], 3), scaling)], 300)[0]), tail)


def test_scores_that_are_not_finite_fail_their_own_chunk_only(callers: dict[str, Basecaller]) -> None:
    read = squiggle(300, 3)
    good = chunk_of(read, med_mad_scaling(read))
    bad = chunk_of(read, Scaling(float("nan"), 1.0))
    for caller in callers.values():
        alone = called(caller.call([good], 300)[0])
        results = caller.call([bad, good, bad, good], 300)
        assert isinstance(results[0], NonFiniteScores)
        assert isinstance(results[2], NonFiniteScores)
        assert same(called(results[1]), alone)
        assert same(called(results[3]), alone)


def test_nothing_is_left_over_from_the_batch_before(callers: dict[str, Basecaller]) -> None:
    caller = callers["fp32"]
    read = squiggle(300, 4)
    chunk = chunk_of(read, med_mad_scaling(read))
    alone = called(caller.call([chunk], 300)[0])
    caller.call([chunk_of(read, Scaling(float("nan"), 1.0))] * ROWS, 300)
    assert same(called(caller.call([chunk], 300)[0]), alone)
    assert caller.call([], 300) == []


@pytest.mark.parametrize("strategy", ["med_mad", "quantile"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    signal_S=arrays(
        np.int16,
        st.integers(1, 400),
        elements=st.one_of(st.integers(-32768, 32767), st.sampled_from([-32768, 0, 1, 32767])),
    )
)
def test_every_signal_gives_finite_scores(callers: dict[str, Basecaller], strategy: str, signal_S: I16) -> None:
    scaling = {"med_mad": med_mad_scaling, "quantile": quantile_scaling}[strategy](signal_S)
    for caller in callers.values():
        decoded = called(caller.call([chunk_of(signal_S, scaling)], 300)[0])
        assert decoded.moves_T.sum() == decoded.bases_B.size == decoded.qualities_B.size
        assert set(decoded.bases_B.tolist()) <= set(b"ACGT")
        assert (decoded.qualities_B >= 1).all()
        assert (decoded.qualities_B <= 50).all()


@pytest.mark.parametrize("samples", range(1, 21))
def test_the_shortest_reads(callers: dict[str, Basecaller], samples: int) -> None:
    caller = callers["fp32"]
    signal_S = squiggle(samples, samples)
    if samples < 6:
        with pytest.raises(ValueError, match=f"too short: {samples} samples?, the model's stride is 6"):
            caller.prepare(signal_S)
        return
    trimmed = min(10, samples // 2)
    if samples - trimmed < 6:
        with pytest.raises(ValueError, match=f"too short: {samples} samples, {trimmed} of them leader"):
            caller.prepare(signal_S)
        return
    read = caller.prepare(signal_S)
    assert read.trimmed_samples == trimmed
    assert read.plan.read_samples == samples - read.trimmed_samples
    assert [(piece.start, piece.samples) for piece in read.plan.pieces] == [(0, 300)]
    whole = finish(read, [called(caller.call([(read, 0)], 300)[0])])
    assert whole.moves_T.size == read.plan.steps == (samples - read.trimmed_samples) // 6
    assert whole.moves_T.sum() == len(whole.sequence) == whole.qualities_B.size >= 1


def test_an_empty_read_is_too_short(callers: dict[str, Basecaller]) -> None:
    with pytest.raises(ValueError, match="too short: 0 samples"):
        callers["fp32"].prepare(np.empty(0, np.int16))


def test_the_models_own_scaling_is_taken(make_bundle: MakeBundle, tmp_path: Path) -> None:
    signal_S = squiggle(3000, 5)
    for strategy, scale in (("quantile", quantile_scaling), ("med_mad", med_mad_scaling), (None, med_mad_scaling)):
        bundle = load_bundle(make_bundle(tmp_path / str(strategy), scaling__strategy=strategy))
        assert Basecaller(bundle, "fp32").prepare(signal_S).scaling == scale(signal_S)


def test_threads_call_the_same(callers: dict[str, Basecaller]) -> None:
    for caller in callers.values():
        chunks = company(300)["reads"]
        expected = [called(result) for result in caller.call(chunks, 300)]

        def work(
            _: int, caller: Basecaller = caller, chunks: list[Chunk] = chunks, expected: list[Decoded] = expected
        ) -> bool:
            torch.set_num_threads(1)
            return all(same(called(a), b) for a, b in zip(caller.call(chunks, 300), expected, strict=True))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(16)))


def test_auto_takes_a_precision_of_this_processor(make_bundle: MakeBundle, tmp_path: Path) -> None:
    assert Basecaller(load_bundle(make_bundle(tmp_path / "model"))).precision in PRECISIONS
