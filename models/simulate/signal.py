"""Simulates a sequence's signal: each base's dwell and level, with noise on top.

The amounts are in `noise`.

Dimensions: B bases, S samples.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from porestream.models.call.compiled import compile_cached
from porestream.models.simulate.noise import PA_AT_ZERO, PA_AT_ZERO_SD, PA_PER_UNIT, PA_PER_UNIT_SD
from porestream.models.simulate.noise import SignalNoise as SignalNoise
from porestream.models.simulate.pore import PoreModel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_MIN_SPEED, _MAX_SPEED = 0.75, 1.25  # a read's speed relative to the mean: 300-500 bases/s at 400
_MIN_DWELL_SAMPLES = 0.3
_MAX_DWELL_S = 1.0
_OUTLIER_SHARE, _OUTLIER_FACTOR = 0.02, 3.0  # samples with larger noise


def simulate_signal(
    bases_B: npt.NDArray[np.uint8], pore: PoreModel, rng: np.random.Generator, noise: SignalNoise, sample_rate_hz: float
) -> tuple[F32, F64]:
    """Simulate the signal of ``bases_B[pore.left : len(bases_B) - pore.right]``, first base first.

    Parameters
    ----------
    bases_B
        0-3 for A, C, G, T, (B,) uint8.
    pore
        Predicts the levels.
    rng
        Source of all randomness: the same state gives the same signal.
    noise
        Amounts of noise.
    sample_rate_hz
        Samples per second.

    Returns
    -------
    current_S : ndarray of float32
        Current in table units.
    starts_B : ndarray of float64
        When each base arrives, in samples from the start; not rounded, because some bases are shorter than a sample.
        The first is 0.

    Raises
    ------
    ValueError
        There are fewer than left + right + 1 bases.
    """
    levels = pore.levels(bases_B)
    count = levels.mean_B.size
    event_factor, sample_factor = np.exp(noise.read_log_sd * rng.standard_normal(2))

    relative_speed = np.clip(1 + noise.speed_sd * rng.standard_normal(), _MIN_SPEED, _MAX_SPEED)
    relative_B = np.exp(levels.log_dwell_B.astype(np.float64))
    relative_B *= np.exp(noise.dwell_log_sd * rng.standard_normal(count) - 0.5 * noise.dwell_log_sd**2)
    mean_dwell_samples = sample_rate_hz / (noise.speed_bases_per_s * relative_speed)
    dwell_B = relative_B * (mean_dwell_samples / np.exp(levels.log_dwell_B).mean())
    stalled = rng.random(count) < noise.stall_share
    dwell_B[stalled] += sample_rate_hz * noise.stall_mean_s * rng.standard_exponential(np.count_nonzero(stalled))
    ends_B = np.cumsum(np.clip(dwell_B, _MIN_DWELL_SAMPLES, _MAX_DWELL_S * sample_rate_hz))
    samples = max(1, int(ends_B[-1]))

    offset_B = rng.standard_normal(count, np.float32)
    offset_B[rng.random(count) < noise.event_outlier_share] *= noise.event_outlier_factor
    level_B = levels.mean_B + np.float32(noise.event_sd_units * event_factor) * offset_B
    log_sd_B = levels.log_sd_B + np.float32(noise.sample_log_sd) * rng.standard_normal(count, np.float32)
    sd_B = np.float32(noise.sample_sd_factor * sample_factor) * np.exp(log_sd_B)

    white_S = rng.standard_normal(samples, np.float32)
    coloured_S = rng.standard_normal(samples, np.float32)
    outliers = rng.integers(samples, size=rng.binomial(samples, _OUTLIER_SHARE))
    current_S = np.empty(samples, np.float32)
    _kernel()(
        ends_B,
        level_B,
        sd_B,
        white_S,
        coloured_S,
        outliers,
        rng.standard_normal(samples, np.float32),
        noise.correlated_share,
        noise.correlation,
        noise.wander_sd_units,
        np.exp(-1 / (noise.wander_time_s * sample_rate_hz)),
        noise.drift_sd_units * rng.standard_normal() / samples,
        current_S,
    )
    spikes = rng.integers(samples, size=rng.binomial(samples, noise.spike_share))
    current_S[spikes] += (noise.spike_units * (rng.random(spikes.size) - 0.5)).astype(np.float32)
    return current_S, np.concatenate(([0.0], ends_B[:-1]))


def to_picoampere(current_S: F32, rng: np.random.Generator) -> F32:
    """Convert table units to pA, with a random gain and offset for this read; float32."""
    gain = PA_PER_UNIT + PA_PER_UNIT_SD * rng.standard_normal()
    offset = PA_AT_ZERO + PA_AT_ZERO_SD * rng.standard_normal()
    return current_S * np.float32(gain) + np.float32(offset)


def _emit(
    ends_B: F64,
    level_B: F32,
    sd_B: F32,
    white_S: F32,
    coloured_S: F32,
    outliers: npt.NDArray[np.int64],
    wander_S: F32,
    share: float,
    correlation: float,
    wander_sd: float,
    wander_keep: float,
    slope: float,
    current_S: F32,
) -> None:
    """Write each sample as the time-weighted mean of the levels within it, plus the noise of the last base in it.

    `white_S`, `coloured_S` and `wander_S` are standard normal draws; `white_S` is overwritten with the samples' noise.
    """
    white, coloured, kick = np.sqrt(1 - share), np.sqrt(share), np.sqrt(1 - correlation * correlation)
    last = coloured_S[0]
    for s in range(current_S.size):
        if s:
            last = correlation * last + kick * coloured_S[s]
        white_S[s] = white * white_S[s] + coloured * last
    for s in outliers:
        white_S[s] *= _OUTLIER_FACTOR
    wander_kick = wander_sd * np.sqrt(1 - wander_keep * wander_keep)
    wander, base, final = wander_sd * wander_S[0], 0, ends_B.size - 1
    middle = 0.5 * (current_S.size - 1)
    for s in range(current_S.size):
        if s:
            wander = wander_keep * wander + wander_kick * wander_S[s]
        begin, level = float(s), 0.0
        while ends_B[base] < s + 1 and base < final:
            level += level_B[base] * (ends_B[base] - begin)
            begin = ends_B[base]
            base += 1
        level += level_B[base] * (s + 1 - begin)
        current_S[s] = level + sd_B[base] * white_S[s] + wander + slope * (s - middle)


@functools.cache
def _kernel() -> Callable[..., None]:
    return compile_cached(
        _emit, "void(f8[::1], f4[::1], f4[::1], f4[::1], f4[::1], i8[::1], f4[::1], f8, f8, f8, f8, f8, f4[::1])"
    )
