"""Normalises ADC counts to the signal that networks were trained on, and finds leaders and RNA adapters to trim.

Dimensions: S samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_MIN_SHIFT, _MIN_SCALE = 10.0, 1.0
_MAD_TO_SD = 1.4826

_TRIM_WINDOW_SAMPLES = 40
_TRIM_THRESHOLD = 2.4
_TRIM_HITS = 3
_TRIM_MIN_SAMPLES = 10
_TRIM_MAX_SAMPLES = 8000


@dataclass(frozen=True, slots=True)
class Scaling:
    """normalised = (adc - shift) / scale; both in ADC counts."""

    shift: float
    scale: float

    def apply(
        self, signal_S: npt.NDArray[np.int16], out_S: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the normalised signal, float32, in `out_S` if that is given."""
        normalised_S = np.subtract(signal_S, np.float32(self.shift), out=out_S, dtype=np.float32)
        return np.multiply(normalised_S, np.float32(1.0 / self.scale), out=normalised_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileRule:
    """How shift and scale follow from a read's quantiles; config.toml's [normalisation]. The defaults are dorado's.

    With a shift multiplier of 0.5 the instrument's offset makes no difference (down to a shift of 10 counts); with any
    other it does.
    """

    quantile_a: float = 0.2
    quantile_b: float = 0.9
    shift_multiplier: float = 0.51
    scale_multiplier: float = 0.53


def quantile_scaling(signal_S: npt.NDArray[np.int16], rule: QuantileRule = QuantileRule()) -> Scaling:
    """Compute shift and scale from two quantiles of a read, as dorado does ("quantile").

    The quantile q of n counts is the value at index int(q (n - 1)) of the sorted read, found by counting, without
    interpolation. shift = max(10, 0.51 (q20 + q90)), scale = max(1, 0.53 (q90 - q20)), with the rule's numbers.

    Raises
    ------
    ValueError
        An empty signal.
    """
    lowest, counts = _counts(signal_S)
    cumulative = np.cumsum(counts)
    qa, qb = (lowest + _at(cumulative, int(q * (signal_S.size - 1))) for q in (rule.quantile_a, rule.quantile_b))
    return Scaling(
        max(_MIN_SHIFT, rule.shift_multiplier * (qa + qb)), max(_MIN_SCALE, rule.scale_multiplier * (qb - qa))
    )


def med_mad_scaling(signal_S: npt.NDArray[np.int16]) -> Scaling:
    """Compute shift and scale from a read's median and median absolute deviation ("med_mad").

    shift = median, scale = max(1, 1.4826 MAD); for normally distributed signal, 1.4826 MAD is the standard deviation.

    Raises
    ------
    ValueError
        An empty signal.
    """
    lowest, counts = _counts(signal_S)
    middle = (signal_S.size - 1) // 2
    median = _at(np.cumsum(counts), middle)
    deviations = np.abs(np.arange(counts.size) - median)
    mad = _at(np.cumsum(np.bincount(deviations, weights=counts)), middle)
    return Scaling(float(lowest + median), max(_MIN_SCALE, _MAD_TO_SD * mad))


@dataclass(frozen=True, slots=True)
class Standardisation:
    """Mean and standard deviation of a model's training current, in pA; config.toml's [standardisation].

    Unless `on`, they are 0 and 1, and the network takes pA.
    """

    mean_pa: float = 0.0
    stdev_pa: float = 1.0
    on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How a read was measured: current_pa = (adc + offset_adc) * scale_pa.

    Attributes
    ----------
    sample_rate_hz
        The run's sample rate; 0 means the model's.
    open_pore_pa
        The open-pore level, if the instrument knows it; NaN otherwise.
    flow_cell_product_code
        The run's flow cell, e.g. "FLO-PRO114M".
    """

    sample_rate_hz: int = 0
    offset_adc: float = 0.0
    scale_pa: float = 1.0
    open_pore_pa: float = math.nan
    flow_cell_product_code: str = ""


UNKNOWN = Measurement()
"""For signal without metadata: counts are pA, at the model's rate."""

# Open-pore level of the training data in pA, by flow cell; dorado's figures.
_EXPECTED_OPEN_PORE_PA = {
    "FLO-FLG114": 200.0,
    "FLO-FLG114HD": 200.0,
    "FLO-MIN004RA": 195.50,
    "FLO-PRO004RA": 194.97,
    "FLO-MIN114": 197.61,
    "FLO-MIN114HD": 197.61,
    "FLO-PRO114": 199.21,
    "FLO-PRO114HD": 199.21,
    "FLO-PRO114M": 199.21,
}


def pa_scaling(measured: Measurement, standardisation: Standardisation = Standardisation()) -> Scaling:
    """Compute shift and scale for (pA - mean) / stdev ("pa"); they are the same for all reads of a calibration.

    If the open-pore level and the flow cell's expected level are both known, their difference is subtracted, as in
    dorado since 1.2.
    """
    shift = standardisation.mean_pa / measured.scale_pa - measured.offset_adc
    expected_pa = _EXPECTED_OPEN_PORE_PA.get(measured.flow_cell_product_code.strip().upper())
    if expected_pa is not None and math.isfinite(measured.open_pore_pa):
        shift += (measured.open_pore_pa - expected_pa) / measured.scale_pa
    return Scaling(shift, standardisation.stdev_pa / measured.scale_pa)


STRATEGIES = ("quantile", "med_mad", "pa")

_BLOCK_SAMPLES = 1 << 17


def _counts(signal_S: npt.NDArray[np.int16]) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the lowest value, and how many samples have each value from there to the highest.

    A read has a thousand values or two; all 65,536 would take longer than its samples. In blocks: bincount takes 8
    bytes per sample.
    """
    if signal_S.size == 0:
        raise ValueError("cannot scale an empty signal")
    lowest, highest = int(signal_S.min()), int(signal_S.max())
    counts = np.zeros(highest - lowest + 1, np.int64)
    for first in range(0, signal_S.size, _BLOCK_SAMPLES):
        block_S = signal_S[first : first + _BLOCK_SAMPLES].astype(np.int32) - lowest
        counts += np.bincount(block_S, minlength=counts.size)
    return lowest, counts


def _at(cumulative: npt.NDArray[np.int64] | npt.NDArray[np.float64], index: int) -> int:
    """Return the value at an index of the sorted samples."""
    return int(np.searchsorted(cumulative, index, side="right"))


def leader_samples(signal_S: npt.NDArray[np.int16], scaling: Scaling) -> int:
    """Return how many samples of open pore and leader to trim at the start of a read.

    This is dorado's rule. Look at windows of 40 samples, starting at sample 10, within the first min(8000, S / 2). The
    first window with more than three samples above 2.4 (normalised) is the leader's peak; the leader ends with the
    first window from there whose last sample is no longer above 2.4. Without a peak, or an end, trim 10 samples.
    """
    limit = min(_TRIM_MAX_SAMPLES, signal_S.size // 2)
    windows = (limit - _TRIM_MIN_SAMPLES) // _TRIM_WINDOW_SAMPLES
    if windows <= 0:
        return min(_TRIM_MIN_SAMPLES, signal_S.size // 2)
    span = signal_S[_TRIM_MIN_SAMPLES : _TRIM_MIN_SAMPLES + windows * _TRIM_WINDOW_SAMPLES]
    high_WS = (scaling.apply(span) > _TRIM_THRESHOLD).reshape(windows, _TRIM_WINDOW_SAMPLES)
    peaks = np.flatnonzero(high_WS.sum(axis=1) > _TRIM_HITS)
    if peaks.size == 0:
        return _TRIM_MIN_SAMPLES
    ends = np.flatnonzero(~high_WS[peaks[0] :, -1])
    if ends.size == 0:
        return _TRIM_MIN_SAMPLES
    end = _TRIM_MIN_SAMPLES + int(peaks[0] + ends[0] + 1) * _TRIM_WINDOW_SAMPLES
    return end if end < limit else _TRIM_MIN_SAMPLES


_ADAPTER_WINDOW_SAMPLES, _ADAPTER_STEP_SAMPLES, _ADAPTER_WINDOWS = 250, 50, 5
_ADAPTER_FIRST_SAMPLE = 1000
_ADAPTER_RISE, _ADAPTER_CLEAR_RISE, _RNA_LEVEL = 125, 150, 700  # in ADC counts


def rna_adapter_samples(signal_S: npt.NDArray[np.int16]) -> int:
    """Return the length in samples of the DNA adapter at the start of a direct RNA read; 0 if its end is not found.

    This is dorado's rule; the current rises from the adapter to the RNA. Take the median of 250 samples every 50, from
    sample 1,000 to three quarters of the read. The adapter ends at the first window where, among the last five, the
    highest median comes after the lowest and exceeds it by more than 150 ADC counts, or by more than 125 if the highest
    is above 700.
    """
    recent: list[int] = []
    for number, first in enumerate(range(_ADAPTER_FIRST_SAMPLE, 3 * signal_S.size // 4, _ADAPTER_STEP_SAMPLES)):
        window_S = signal_S[first : first + _ADAPTER_WINDOW_SAMPLES]
        middle = (window_S.size - 1) // 2
        recent = [*recent[1 - _ADAPTER_WINDOWS :], int(np.partition(window_S, middle)[middle])]
        low, high = min(recent), max(recent)
        if number < _ADAPTER_WINDOWS:
            continue
        # Break ties as dorado's ring buffer of five does: the first lowest median, the last highest.
        ring = sorted(range(number - _ADAPTER_WINDOWS + 1, number + 1), key=lambda n: n % _ADAPTER_WINDOWS)
        medians = [recent[n - number - 1] for n in ring]
        lowest, highest = ring[medians.index(low)], ring[::-1][medians[::-1].index(high)]
        rise = high - low
        if highest > lowest and (rise > _ADAPTER_CLEAR_RISE or (high > _RNA_LEVEL and rise > _ADAPTER_RISE)):
            return first
    return 0
