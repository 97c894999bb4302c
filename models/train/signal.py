"""Prepares signal for the network: normalises it per read, then brings it to the model's sample rate.

Dimensions: S samples.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

MODEL_RATE_HZ = 5000.0
QUANTILE_A, QUANTILE_B = 0.2, 0.9
SHIFT_MULTIPLIER, SCALE_MULTIPLIER = 0.5, 0.53
"""shift = SHIFT_MULTIPLIER (qa + qb), scale = SCALE_MULTIPLIER (qb - qa). With 0.5 the shift lies between the
quantiles, so pA and ADC counts give the same normalised signal."""


def normalise(signal_S: F32) -> F32:
    """Return (signal - shift) / scale for a whole read as measured, before any resampling; float32.

    Quantile q of S samples is the value at index int(q (S - 1)) of the sorted read, as in `models.scale`.

    Raises
    ------
    ValueError
        The signal is empty, or its quantiles are equal.
    """
    if signal_S.size == 0:
        raise ValueError("an empty signal cannot be normalised")
    at = [int(q * (signal_S.size - 1)) for q in (QUANTILE_A, QUANTILE_B)]
    low, high = np.partition(signal_S, at)[at].astype(np.float64)
    if not high > low:
        raise ValueError(f"a flat signal cannot be normalised: both its quantiles are {low:g}")
    shift, scale = SHIFT_MULTIPLIER * (low + high), SCALE_MULTIPLIER * (high - low)
    return ((signal_S - np.float32(shift)) * np.float32(1 / scale)).astype(np.float32)


def resample(signal_S: F32, factor: float) -> F32:
    """Interpolate linearly to `factor` times as many samples (1.25 from 4 kHz to 5 kHz); float32.

    Sample i of the result is the signal at i / factor.
    """
    if factor == 1.0:
        return signal_S
    count = int((signal_S.size - 1) * factor)
    return np.interp(np.arange(count) / factor, np.arange(signal_S.size), signal_S).astype(np.float32)
