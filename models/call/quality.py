"""Computes read quality from base qualities."""

import numpy as np
import numpy.typing as npt

_ERRORS = 10.0 ** (np.arange(256) / -10.0)


def mean_qscore(qualities_B: npt.NDArray[np.uint8], start: int = 60) -> float:
    """Return the mean error probability of the bases as a Phred score, clipped to 1-50.

    Bases before `start`, where calls are still settling down, count only if there are no others. This is dorado's rule
    (`qs` tag); like here, dorado applies it to the sequence left after trimming.
    """
    if qualities_B.size == 0:
        return 0.0
    counted = qualities_B[start:] if qualities_B.size > start else qualities_B
    error = np.mean(_ERRORS[counted])
    return float(np.clip(-10.0 * np.log10(error), 1.0, 50.0))
