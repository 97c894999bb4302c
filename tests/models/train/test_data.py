"""Chunks: signal and bases that belong together, again and again the same."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from porestream.models.scale import QuantileRule, quantile_scaling
from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.signal import SignalNoise
from porestream.models.train.arrays import TrainingRead
from porestream.models.train.crf_loss import margins
from porestream.models.train.data import HALF_BAND, Chunk, Place, RealChunks, SimulatedChunks, collate, cut_chunk
from porestream.models.train.network import STRIDE
from porestream.models.train.signal import (
    QUANTILE_A,
    QUANTILE_B,
    SCALE_MULTIPLIER,
    SHIFT_MULTIPLIER,
    normalise,
    resample,
)

MakeRead = Callable[..., TrainingRead]


def correlation(chunk: Chunk, pore: PoreModel) -> float:
    """Of the signal's steps with the levels of the bases that should be in the pore."""
    levels_P = pore.levels(np.concatenate([np.zeros(12, np.uint8), chunk.target_P, np.zeros(10, np.uint8)])).mean_B
    steps_T = chunk.signal_S.reshape(-1, STRIDE)[:, STRIDE // 2]
    return float(np.corrcoef(steps_T, levels_P[chunk.positions_T])[0, 1])


def simulated(
    pore: PoreModel, place: Place | None = None, genomes: Sequence[npt.NDArray[np.uint8]] = ()
) -> SimulatedChunks:
    return SimulatedChunks(pore, SignalNoise(), genomes, 1.0, 900, 3, (5, 1), place)


def test_simulated_chunks_show_their_bases(pore: PoreModel) -> None:
    chunks = simulated(pore).take(100)
    for chunk in chunks:
        assert chunk.signal_S.shape == (900,)
        assert chunk.positions_T.shape == (900 // STRIDE,)
        assert (np.diff(chunk.positions_T) >= 0).all()
        before, after = margins(HALF_BAND, 3)
        assert chunk.positions_T[0] >= before
        assert chunk.positions_T[-1] + after < chunk.target_P.size
    assert np.median([correlation(chunk, pore) for chunk in chunks]) > 0.85


def test_a_stream_goes_on_at_its_place(pore: PoreModel) -> None:
    stream = simulated(pore)
    stream.take(700)
    place = stream.place
    assert place.taken > 0
    following = stream.take(40)
    again = simulated(pore, place).take(40)
    assert all(np.array_equal(a.signal_S, b.signal_S) for a, b in zip(following, again, strict=True))
    other = SimulatedChunks(pore, SignalNoise(), [], 0.0, 900, 3, (5, 2)).take(40)
    assert not any(np.array_equal(a.signal_S, b.signal_S) for a, b in zip(following, other, strict=True))
    assert place.samples == 900
    stream.set_samples(1200)
    assert stream.place == Place(place.block + 1, 0, 1200)
    assert stream.take(1)[0].signal_S.size == 1200


def test_the_place_has_the_chunks_length(pore: PoreModel) -> None:
    """Of the place, and not of the schedule: a change that falls on the stop is made after it, and seen as one."""
    stream = simulated(pore, Place(3, 5, 1200))
    assert stream.place == Place(3, 5, 1200)
    stream.set_samples(900)
    assert stream.place == Place(4, 0, 900)
    assert simulated(pore, Place(3, 5)).place == Place(3, 5, 900)  # of an older version


def test_chunks_longer_than_reads_are_refused(pore: PoreModel) -> None:
    stream = simulated(pore)
    stream.set_samples(200_000)
    with pytest.raises(ValueError, match="16 simulated reads gave no chunk of 200000 samples"):
        stream.take(1)


def test_genomes_are_where_reads_come_from(pore: PoreModel) -> None:
    genome_B = np.tile(np.array([0, 0, 1, 2, 2, 1, 3, 0, 2, 1, 3], np.uint8), 1000)
    genome_B[5000] = 4  # an N
    strands = {bytes(strand_B[i : i + 20]) for strand_B in (genome_B[:40], 3 - genome_B[39::-1]) for i in range(20)}
    chunks = simulated(pore, genomes=[genome_B]).take(50)
    known = [bytes(chunk.target_P[:20]) in strands for chunk in chunks]
    assert np.mean(known) > 0.8
    assert max(int(chunk.target_P.max()) for chunk in chunks) == 3
    with pytest.raises(ValueError, match="no genome sequence has 7001 bases or more"):
        simulated(pore, genomes=[genome_B[:100]])


def test_real_chunks_show_their_bases(pore: PoreModel, simulated_read: MakeRead) -> None:
    reads = [simulated_read(seed) for seed in (1, 2)]
    chunks = RealChunks(reads, 900, 3)
    plain = chunks.take(40, np.random.default_rng(1), augment=False)
    augmented = chunks.take(40, np.random.default_rng(1))
    again = chunks.take(40, np.random.default_rng(1))
    assert np.median([correlation(chunk, pore) for chunk in plain]) > 0.85
    assert np.median([correlation(chunk, pore) for chunk in augmented]) > 0.8
    assert all(np.array_equal(a.signal_S, b.signal_S) for a, b in zip(augmented, again, strict=True))
    speeds = [chunk.positions_T[-1] - chunk.positions_T[0] for chunk in augmented]
    assert np.std(speeds) > 0
    with pytest.raises(ValueError, match="no read is long enough"):
        RealChunks(reads, 60_000, 3)


def test_what_cannot_be_learned_is_left_out() -> None:
    bases_B = np.zeros(400, np.uint8)
    starts_B = 10.0 * np.arange(400)
    signal_S = np.zeros(4000, np.float32)
    assert cut_chunk(signal_S, bases_B, starts_B, 600, 600, 3) is not None
    assert cut_chunk(signal_S, bases_B, starts_B, 30, 600, 3) is None  # no bases before it
    assert cut_chunk(signal_S, bases_B, starts_B, 3380, 600, 3) is None  # none after it
    jump_B = starts_B.copy()
    jump_B[70:80] = 700 + 0.1 * np.arange(10)
    assert cut_chunk(signal_S, bases_B, jump_B, 600, 600, 3) is None
    stall_B = np.where(np.arange(400) < 70, starts_B, starts_B + 550)
    assert cut_chunk(signal_S, bases_B, stall_B, 650, 600, 3) is None


def test_a_batch_is_padded_and_varied(pore: PoreModel) -> None:
    chunks = simulated(pore).take(20)
    signal_NS, targets_NP, positions_NT = collate(chunks)
    assert signal_NS.shape == (20, 900)
    assert positions_NT.shape == (20, 150)
    for row, chunk in enumerate(chunks):
        assert np.array_equal(targets_NP[row, : chunk.target_P.size], chunk.target_P)
    varied_NS, _, _ = collate(chunks, np.random.default_rng(1))
    assert varied_NS.dtype == signal_NS.dtype
    lines = [np.polyfit(a, b, 1) for a, b in zip(signal_NS.numpy(), varied_NS.numpy(), strict=True)]
    assert 0.02 < np.std([gain for gain, _ in lines]) < 0.08
    assert 0.02 < np.std([offset for _, offset in lines]) < 0.1


def test_pa_and_adc_are_normalised_alike_and_as_the_service_does() -> None:
    adc_S = np.random.default_rng(1).normal(500, 90, 20_001).astype(np.int16)
    pa_S = ((adc_S - 119) * 0.1374).astype(np.float32)
    rule = QuantileRule(
        quantile_a=QUANTILE_A,
        quantile_b=QUANTILE_B,
        shift_multiplier=SHIFT_MULTIPLIER,
        scale_multiplier=SCALE_MULTIPLIER,
    )
    service_S = quantile_scaling(adc_S, rule).apply(adc_S)
    np.testing.assert_allclose(normalise(adc_S.astype(np.float32)), service_S, atol=1e-5)
    np.testing.assert_allclose(normalise(pa_S), service_S, atol=1e-4)
    for broken_S in (np.zeros(0, np.float32), np.ones(100, np.float32)):
        with pytest.raises(ValueError, match="cannot be normalised"):
            normalise(broken_S)


def test_resampling_is_linear_interpolation() -> None:
    line_S = np.arange(100, dtype=np.float32)
    np.testing.assert_allclose(resample(line_S, 1.25), np.arange(123) / 1.25, atol=1e-4)
    assert resample(line_S, 1.0) is line_S
