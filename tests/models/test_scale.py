"""Scaling and trimming against sorted arrays and a slow loop.

Dimensions: S samples.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from porestream.models.scale import (
    Measurement,
    Scaling,
    Standardisation,
    leader_samples,
    med_mad_scaling,
    pa_scaling,
    quantile_scaling,
    rna_adapter_samples,
)

I16 = npt.NDArray[np.int16]

EXTREMES = [
    np.array([-32768], np.int16),
    np.array([32767], np.int16),
    np.array([-32768, 32767], np.int16),
    np.array([-32768] * 3 + [32767] * 2, np.int16),
    np.full(999, -32768, np.int16),
    np.full(1000, 500, np.int16),
]

levels = st.one_of(st.integers(-32768, 32767), st.integers(-2000, 2000), st.sampled_from([-32768, -1, 0, 1, 32767]))
signals = arrays(np.int16, st.integers(1, 300), elements=levels)


def plain_quantile(signal_S: I16) -> tuple[float, float]:
    low, high = (sorted(signal_S.tolist())[int(q * (signal_S.size - 1))] for q in (0.2, 0.9))
    return max(10.0, 0.51 * (low + high)), max(1.0, 0.53 * (high - low))


def plain_med_mad(signal_S: I16, gain: int = 1) -> tuple[float, float]:
    middle = (signal_S.size - 1) // 2
    median = sorted(signal_S.tolist())[middle]
    deviations = sorted(abs(value - median) for value in signal_S.tolist())
    return float(median), max(1.0, 1.4826 * gain * deviations[middle])


def with_extremes(test: Callable[..., None]) -> Callable[..., None]:
    for signal_S in EXTREMES:
        test = example(signal_S)(test)
    return test


STRATEGIES = (quantile_scaling, med_mad_scaling)


@with_extremes
@given(signals)
def test_quantile_scaling_is_that_of_the_sorted_read(signal_S: I16) -> None:
    scaling = quantile_scaling(signal_S)
    assert (scaling.shift, scaling.scale) == pytest.approx(plain_quantile(signal_S), rel=1e-12)


@with_extremes
@given(signals)
def test_med_mad_scaling_is_that_of_the_sorted_read(signal_S: I16) -> None:
    scaling = med_mad_scaling(signal_S)
    assert (scaling.shift, scaling.scale) == pytest.approx(plain_med_mad(signal_S), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 99_999, 100_000])
def test_scaling_of_reads_of_many_lengths(size: int) -> None:
    signal_S = np.random.default_rng(size).normal(480, 80, size).astype(np.int16)
    for strategy, plain in ((quantile_scaling, plain_quantile), (med_mad_scaling, plain_med_mad)):
        scaling = strategy(signal_S)
        assert (scaling.shift, scaling.scale) == pytest.approx(plain(signal_S), rel=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_signal_has_no_scale(strategy: Callable[[I16], Scaling]) -> None:
    with pytest.raises(ValueError, match="cannot scale an empty signal"):
        strategy(np.empty(0, np.int16))


@given(arrays(np.int16, st.integers(1, 200), elements=st.integers(-3000, 3000)), st.integers(1, 4), st.integers(-9, 9))
def test_med_mad_follows_the_instruments_gain_and_offset(signal_S: I16, gain: int, offset: int) -> None:
    before, after = med_mad_scaling(signal_S), med_mad_scaling((gain * signal_S + offset).astype(np.int16))
    assert after.shift == gain * before.shift + offset
    assert after.scale == pytest.approx(plain_med_mad(signal_S, gain)[1])


@given(arrays(np.int16, st.integers(2, 200), elements=st.integers(100, 3000)), st.integers(0, 9000))
def test_quantile_follows_the_instruments_offset(signal_S: I16, offset: int) -> None:
    before, after = quantile_scaling(signal_S), quantile_scaling((signal_S + offset).astype(np.int16))
    assert after.shift == pytest.approx(before.shift + 2 * 0.51 * offset)
    assert after.scale == before.scale


@given(signals, st.floats(-40_000, 40_000), st.floats(1, 40_000))
def test_applying_a_scaling_is_affine(signal_S: I16, shift: float, scale: float) -> None:
    before_S = signal_S.copy()
    normalised_S = Scaling(shift, scale).apply(signal_S)
    assert normalised_S.dtype == np.float32
    assert np.isfinite(normalised_S).all()
    exact_S = (signal_S.astype(np.float64) - shift) / scale
    np.testing.assert_allclose(normalised_S, exact_S, rtol=1e-6, atol=0.005 / scale)  # float32 holds 40,000 to 0.004
    np.testing.assert_array_equal(signal_S, before_S)


@given(signals, st.integers(0, 299), st.integers(1, 300))
def test_applying_to_a_part_is_a_part_of_the_whole(signal_S: I16, start: int, length: int) -> None:
    scaling = Scaling(480.25, 83.125)
    part_S = scaling.apply(signal_S[start : start + length])
    np.testing.assert_array_equal(part_S, scaling.apply(signal_S)[start : start + length])


def slow_leader(signal_S: I16, scaling: Scaling) -> int:
    """The docstring of `leader_samples`, read aloud."""
    limit = min(8000, signal_S.size // 2)
    default = min(10, signal_S.size // 2)
    peak_seen = False
    start = 10
    while start + 40 <= limit:
        window_S = [(float(value) - scaling.shift) / scaling.scale for value in signal_S[start : start + 40]]
        if sum(value > 2.4 for value in window_S) > 3:
            peak_seen = True
        if peak_seen and not window_S[-1] > 2.4:
            end = start + 40
            return end if end < limit else default
        start += 40
    return default


blocks = st.lists(st.tuples(st.integers(1, 130), st.sampled_from([400, 500, 690, 719, 721, 750, 2000])), max_size=60)


@given(blocks, st.integers(0, 2**32 - 1))
@example([(10, 400), (4, 2000), (36, 400), (2000, 400)], 0)
@example([(10, 400), (3, 2000), (37, 400), (2000, 400)], 0)
@example([(9000, 2000), (9000, 400)], 0)
@example([(7989, 2000), (9000, 400)], 0)
@example([(1, 2000)], 0)
@example([], 0)
def test_the_leader_is_that_of_the_slow_loop(blocks: list[tuple[int, int]], seed: int) -> None:
    signal_S = np.repeat([level for _, level in blocks], [length for length, _ in blocks]).astype(np.int16)
    noise_S = np.random.default_rng(seed).integers(-25, 26, signal_S.size)
    scaling = Scaling(480.0, 100.0)  # 2.4 is at 720
    for read_S in (signal_S, (signal_S + noise_S).astype(np.int16)):
        found = leader_samples(read_S, scaling)
        assert found == slow_leader(read_S, scaling)
        assert 0 <= found < max(1, read_S.size)


@given(signals, st.sampled_from(STRATEGIES))
def test_something_of_every_read_is_left(signal_S: I16, strategy: Callable[[I16], Scaling]) -> None:
    assert 0 <= leader_samples(signal_S, strategy(signal_S)) < signal_S.size


def test_a_typical_leader_is_trimmed_to_its_end() -> None:
    rng = np.random.default_rng(3)
    open_pore, leader, strand = rng.normal(1100, 20, 500), rng.normal(550, 20, 400), rng.normal(480, 80, 20_000)
    signal_S = np.concatenate([open_pore, leader, strand]).astype(np.int16)
    for strategy in STRATEGIES:
        assert 500 <= leader_samples(signal_S, strategy(signal_S)) <= 540


@given(
    st.floats(-300, 300),
    st.floats(0.05, 0.5),
    st.floats(50, 150),
    st.floats(5, 50),
    st.sampled_from(["", "FLO-MIN106", "flo-pro114m"]),
    st.one_of(st.just(math.nan), st.floats(150, 250)),
)
def test_pa_scaling_standardises_the_current(
    offset: float, scale_pa: float, mean_pa: float, stdev_pa: float, product: str, open_pore_pa: float
) -> None:
    adc_S = np.array([-500, 0, 333, 2000], np.int16)
    current_pa_S = (adc_S + offset) * scale_pa
    if product == "flo-pro114m" and math.isfinite(open_pore_pa):
        current_pa_S -= open_pore_pa - 199.21
    measured = Measurement(
        sample_rate_hz=5000,
        offset_adc=offset,
        scale_pa=scale_pa,
        open_pore_pa=open_pore_pa,
        flow_cell_product_code=product,
    )
    plain_S = pa_scaling(measured).apply(adc_S)
    np.testing.assert_allclose(plain_S, current_pa_S, rtol=1e-4, atol=1e-2)
    standardised_S = pa_scaling(measured, Standardisation(mean_pa, stdev_pa, True)).apply(adc_S)
    np.testing.assert_allclose(standardised_S, (current_pa_S - mean_pa) / stdev_pa, rtol=1e-4, atol=1e-3)


def slow_adapter(signal_S: I16) -> int:
    """The rule as it is written down: a ring of five medians."""
    ring, numbers = [0] * 5, [0] * 5
    for number, first in enumerate(range(1000, 3 * signal_S.size // 4, 50)):
        ring[number % 5] = int(np.sort(signal_S[first : first + 250])[(min(250, signal_S.size - first) - 1) // 2])
        numbers[number % 5] = number
        low, high = min(ring), max(ring)
        lowest, highest = ring.index(low), 4 - ring[::-1].index(high)
        rises = (high > 700 and high - low > 125) or high - low > 150
        if rises and number >= 5 and numbers[highest] > numbers[lowest]:
            return first
    return 0


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(300, 1000)), min_size=1, max_size=12), st.integers(0, 2**32 - 1)
)
def test_the_adapter_of_rna_against_a_slow_loop(parts: list[tuple[int, int]], seed: int) -> None:
    levels = np.concatenate([np.full(100 * length, level) for length, level in parts])
    signal_S = (levels + np.random.default_rng(seed).normal(0, 15, levels.size)).astype(np.int16)
    assert rna_adapter_samples(signal_S) == slow_adapter(signal_S)


def test_a_typical_rna_adapter_is_found() -> None:
    rng = np.random.default_rng(4)
    adapter, polya, rna = rng.normal(450, 60, 6000), rng.normal(850, 15, 1500), rng.normal(720, 90, 20_000)
    signal_S = np.concatenate([adapter, polya, rna]).astype(np.int16)
    assert 5700 <= rna_adapter_samples(signal_S) <= 6100
    assert rna_adapter_samples(rna.astype(np.int16)) == 0
    assert rna_adapter_samples(signal_S[:100]) == 0
