"""The signal of a sequence: its timing, its levels and its noise.

Dimensions: B bases, S samples.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.sequence import random_bases
from porestream.models.simulate.signal import SignalNoise, simulate_signal, to_picoampere

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BARE = replace(SignalNoise().scaled(0), drift_sd_units=0.0, stall_share=0.0)
STEADY = replace(SignalNoise(), speed_sd=0.0, stall_share=0.0)


def made(
    pore: PoreModel, noise: SignalNoise, seed: int = 1, bases: int = 3000, rate: int = 5000
) -> tuple[F32, F64, F64]:
    """Signal, starts and, for every sample, what it would be without noise."""
    rng = np.random.default_rng(seed)
    bases_B = random_bases(bases, rng)
    current_S, starts_B = simulate_signal(bases_B, pore, rng, noise, rate)
    assert current_S.dtype == np.float32
    assert starts_B.shape == (bases - 22,)
    edges_B = np.append(starts_B, current_S.size + 1.0)
    area_B = np.append(0, np.cumsum(np.diff(edges_B) * pore.levels(bases_B).mean_B))
    return current_S, starts_B, np.diff(np.interp(np.arange(current_S.size + 1), edges_B, area_B))


def test_the_same_seed_gives_the_same_bytes(pore: PoreModel) -> None:
    first, again, other = (made(pore, SignalNoise(), seed) for seed in (7, 7, 8))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()


def test_starts_ascend_within_the_signal(pore: PoreModel) -> None:
    current_S, starts_B, _ = made(pore, SignalNoise())
    assert starts_B[0] == 0
    assert (np.diff(starts_B) >= 0.3 - 1e-9).all()
    assert starts_B[-1] < current_S.size + 1


def test_without_noise_each_sample_is_the_mean_of_its_levels(pore: PoreModel) -> None:
    current_S, _, expected_S = made(pore, BARE)
    np.testing.assert_allclose(current_S, expected_S, atol=1e-4)


@pytest.mark.parametrize(("speed", "rate"), [(300.0, 5000), (385.0, 4000), (500.0, 5000)])
def test_speed_is_as_asked_for(pore: PoreModel, speed: float, rate: int) -> None:
    noise = replace(STEADY, speed_bases_per_s=speed)
    current_S, starts_B, _ = made(pore, noise, bases=20_000, rate=rate)
    assert starts_B.size / (current_S.size / rate) == pytest.approx(speed, rel=0.03)


def test_reads_differ_in_speed(pore: PoreModel) -> None:
    def spread(speed_sd: float) -> float:
        noise = replace(STEADY, speed_sd=speed_sd, dwell_log_sd=0.01)
        return float(np.std([np.log(made(pore, noise, seed, 300)[0].size) for seed in range(60)]))

    sequence_alone = spread(0.0)
    assert sequence_alone < 0.02
    assert spread(0.1) == pytest.approx(0.1, rel=0.35)


def test_a_stall_takes_its_time(pore: PoreModel) -> None:
    calm, stalling = (made(pore, replace(STEADY, stall_share=share), bases=5000)[0].size for share in (0.0, 0.05))
    assert stalling - calm == pytest.approx(5000 * 0.05 * 0.1 * 5000, rel=0.25)


def test_noise_grows_with_its_factor(pore: PoreModel) -> None:
    still = replace(STEADY, drift_sd_units=0.0)

    def residual_sd(factor: float) -> float:
        current_S, _, expected_S = made(pore, still.scaled(factor))
        return float(np.std(current_S - expected_S))

    once = residual_sd(1.0)
    assert 0.1 < once < 0.35
    assert residual_sd(2.0) == pytest.approx(2 * once, rel=0.01)  # the same draws, twice as large
    assert residual_sd(0.5) == pytest.approx(0.5 * once, rel=0.01)


def test_noise_is_correlated_as_the_parameters_say(pore: PoreModel) -> None:
    noise = replace(
        BARE, sample_sd_factor=1.0, correlated_share=0.6, correlation=0.8, sample_log_sd=0.0, read_log_sd=0.0
    )
    rng = np.random.default_rng(4)
    same_B = np.zeros(4000, np.uint8)  # one level, one spread
    current_S, _ = simulate_signal(same_B, pore, rng, noise, 5000)
    noise_S = np.clip(current_S - np.median(current_S), -0.3, 0.3)
    at_lag = [np.corrcoef(noise_S[:-lag], noise_S[lag:])[0, 1] for lag in (1, 2, 3)]
    assert at_lag[1] / at_lag[0] == pytest.approx(0.8, abs=0.04)
    assert at_lag[2] / at_lag[1] == pytest.approx(0.8, abs=0.04)
    assert 0.3 < at_lag[0] < 0.6 * 0.8  # outliers, of which there are two in a hundred, are not correlated


def test_drift_is_a_line_over_the_read(pore: PoreModel) -> None:
    changes = []
    for seed in range(200):
        current_S, _, expected_S = made(pore, replace(BARE, drift_sd_units=0.5), seed, 80)
        drift_S = current_S - expected_S
        line = np.polyfit(np.arange(drift_S.size), drift_S, 1)
        np.testing.assert_allclose(drift_S, np.polyval(line, np.arange(drift_S.size)), atol=1e-3)
        changes.append(line[0] * drift_S.size)
    assert np.std(changes) == pytest.approx(0.5, rel=0.15)
    assert abs(np.mean(changes)) < 0.15


def test_the_baseline_wanders_slowly(pore: PoreModel) -> None:
    current_S, _, expected_S = made(pore, replace(BARE, wander_sd_units=0.2), bases=20_000)
    wander_S = current_S - expected_S
    assert wander_S.std() == pytest.approx(0.2, rel=0.15)
    lag = round(0.0625 * 5000)  # the time constant
    assert np.corrcoef(wander_S[:-lag], wander_S[lag:])[0, 1] == pytest.approx(np.exp(-1), abs=0.1)


def test_spikes_are_rare_and_large(pore: PoreModel) -> None:
    current_S, _, expected_S = made(pore, replace(BARE, spike_share=0.01, spike_units=10.0), bases=5000)
    spikes_S = np.abs(current_S - expected_S) > 1e-2
    assert spikes_S.mean() == pytest.approx(0.01, rel=0.2)
    assert 4 < np.abs(current_S - expected_S).max() < 10


def test_a_sequence_of_one_base_has_a_signal(pore: PoreModel) -> None:
    current_S, starts_B = simulate_signal(np.zeros(23, np.uint8), pore, np.random.default_rng(0), SignalNoise(), 5000)
    assert current_S.size >= 1
    assert starts_B.tolist() == [0.0]


def test_picoampere_have_a_gain_and_an_offset_for_each_read() -> None:
    units_S = np.array([-1, 0, 1], np.float32)
    reads = np.array([to_picoampere(units_S, np.random.default_rng(seed)) for seed in range(300)])
    assert reads.dtype == np.float32
    gains, offsets = (reads[:, 2] - reads[:, 0]) / 2, reads[:, 1]
    assert gains.mean() == pytest.approx(22.5, abs=0.2)
    assert gains.std() == pytest.approx(0.7, rel=0.2)
    assert offsets.mean() == pytest.approx(97.5, abs=1)
    assert offsets.std() == pytest.approx(3.5, rel=0.2)
