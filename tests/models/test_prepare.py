"""Reads before the network: cut, padded and resampled chunks against the whole read, and the moves' way back.

Dimensions: S samples as measured, M samples at the model's rate, T time steps.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.models.call.basecaller import Basecaller
from porestream.models.call.chunk import Chunker
from porestream.models.call.prepare import PreparedRead, prepare
from porestream.models.files.bundle import load_bundle
from porestream.models.scale import Measurement

MakeBundle = Callable[..., Path]
I16 = npt.NDArray[np.int16]

CHUNKER = Chunker(1200, 120, 6)


@pytest.fixture(scope="module")
def caller(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Basecaller:
    """A 5 kHz model that takes 4 kHz reads."""
    folder = tmp_path_factory.mktemp("models")
    directory = make_bundle(
        folder / "tiny",
        layers="listed",
        scaling__strategy="quantile",
        normalisation__shift_multiplier=0.5,
        run_info__sample_rate=5000,
        input__resample_from=[4000, 3000],
    )
    return Basecaller(load_bundle(directory), "fp32")


def squiggle(samples: int, seed: int) -> I16:
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(480, 80, samples // 3 + 1), rng.integers(3, 16, samples // 3 + 1))
    return (levels[:samples] + rng.normal(0, 12, samples)).astype(np.int16)


def whole(read: PreparedRead) -> npt.NDArray[np.float64]:
    """The read at the model's rate, in one piece."""
    normalised_S = (read.signal_S.astype(np.float64) - read.scaling.shift) / read.scaling.scale
    positions_M = np.arange(read.plan.read_samples) * float(read.step)
    return np.interp(positions_M, np.arange(normalised_S.size), normalised_S)


@given(samples=st.integers(20, 9000), rate=st.sampled_from([5000, 4000, 3000, 0]), seed=st.integers(0, 2**32 - 1))
def test_chunks_are_parts_of_the_whole_read(caller: Basecaller, samples: int, rate: int, seed: int) -> None:
    read = caller.prepare(squiggle(samples, seed), Measurement(sample_rate_hz=rate))
    assert read.plan.read_samples == (samples - read.trimmed_samples - 1) * (5000 if rate else 1) // (rate or 1) + 1
    whole_M = whole(read)
    for piece in read.plan.pieces:
        expected_M = whole_M[piece.start : piece.start + piece.samples]
        np.testing.assert_allclose(
            read.chunk(piece.start, piece.samples), np.resize(expected_M, piece.samples), atol=2e-5
        )


@given(st.integers(20, 9000), st.sampled_from([5000, 4000, 3000]), st.floats(0.02, 1.0), st.integers(0, 2**32 - 1))
def test_moves_come_back_to_the_measured_samples(
    caller: Basecaller, samples: int, rate: int, density: float, seed: int
) -> None:
    """Every base keeps a step of its own, and its sample lies in it or just before."""
    read = caller.prepare(squiggle(samples, seed), Measurement(sample_rate_hz=rate))
    moves_T = (np.random.default_rng(seed).random(read.plan.steps) < density).astype(np.uint8)
    moves_T[0] = 1
    measured_T, stride = read.measured_moves(moves_T)
    assert stride == {5000: 6, 4000: 4, 3000: 3}[rate]
    assert measured_T.size == read.signal_S.size // stride
    assert measured_T[0] == 1
    expected_samples = np.flatnonzero(moves_T) * 6 * rate / 5000
    offsets = expected_samples - np.flatnonzero(measured_T) * stride
    assert offsets.size == moves_T.sum()
    assert (offsets > -1e-6).all()
    assert (offsets < stride).all()


def test_other_rates_are_taken_as_they_are(caller: Basecaller) -> None:
    signal_S = squiggle(3000, 1)
    for rate in (0, 5000, 2000):
        read = caller.prepare(signal_S, Measurement(sample_rate_hz=rate))
        assert read.step == 1
        assert read.plan.read_samples == 3000 - read.trimmed_samples
    assert caller.prepare(signal_S, Measurement(sample_rate_hz=4000)).step < 1


def test_a_slower_runs_read_is_called_like_a_faster_ones(caller: Basecaller) -> None:
    """Where the current changes linearly, interpolation gives just what a faster digitiser would have measured."""
    corners_S = np.random.default_rng(3).integers(300, 700, 800)
    slow_S = np.interp(np.arange(4 * 799 + 1) / 4, np.arange(800), corners_S)
    fast_S = np.interp(np.arange(5 * 799 + 1) / 5, np.arange(800), corners_S)
    slow = caller.prepare(np.round(slow_S).astype(np.int16), Measurement(sample_rate_hz=4000))
    first_s = slow.trimmed_samples / 4000
    at = np.round((first_s + np.arange(1200) / 5000) * 20_000) / 20_000 * 5000
    expected_M = (np.interp(at, np.arange(fast_S.size), fast_S) - slow.scaling.shift) / slow.scaling.scale
    np.testing.assert_allclose(slow.chunk(0, 1200), expected_M, atol=1.0 / slow.scaling.scale)  # whole counts
    called = caller.call_read(np.round(slow_S).astype(np.int16), Measurement(sample_rate_hz=4000))
    assert called.stride == 4
    assert called.moves_T.sum() == len(called.sequence) == called.qualities_B.size > 20


def test_offset_and_gain_of_the_instrument_do_not_matter(caller: Basecaller) -> None:
    signal_S = squiggle(3000, 4)
    plain, moved = (
        prepare(x.astype(np.int16), Measurement(sample_rate_hz=5000), caller.bundle.config, CHUNKER)
        for x in (signal_S, signal_S + 700)
    )
    np.testing.assert_allclose(plain.chunk(0, 1200), moved.chunk(0, 1200), atol=1e-4)
