"""Signal as the network sees it: normalised a read, then brought to the model's sample rate.

Dimensions: S samples.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

MODEL_RATE_HZ = 5000.0
QUANTILE_A, QUANTILE_B = 0.2, 0.9
SHIFT_MULTIPLIER, SCALE_MULTIPLIER = 0.5, 0.53
"""shift = SHIFT_MULTIPLIER (qa + qb), scale = SCALE_MULTIPLIER (qb - qa). With 0.5 the shift is a point between the
quantiles, so that picoampere and ADC counts give the same normalised signal."""


def normalise(signal_S: F32) -> F32:
    """(signal - shift) / scale of a whole read as measured, before any resampling; float32.

    The quantile q of S samples is the value at index int(q (S - 1)) of the sorted read, as `models.scale` takes it.

    Raises
    ------
    ValueError
        An empty signal, or one whose quantiles coincide.
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
    """Linear interpolation to `factor` times as many samples: 4 kHz to 5 kHz is 1.25; float32.

    Sample i of the result is the signal at i / factor.
    """
    if factor == 1.0:
        return signal_S
    count = int((signal_S.size - 1) * factor)
    return np.interp(np.arange(count) / factor, np.arange(signal_S.size), signal_S).astype(np.float32)
