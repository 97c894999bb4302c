"""Read quality from base qualities."""

import numpy as np
import numpy.typing as npt


def mean_qscore(qualities_B: npt.NDArray[np.uint8], start: int = 60) -> float:
    """Mean error probability of the bases, as Phred within 1-50.

    Bases before `start` do not count unless there are no others: calls settle down there. The rule is dorado's (`qs`
    tag), which applies it to the sequence that is left after trimming, too.
    """
    if qualities_B.size == 0:
        return 0.0
    counted = qualities_B[start:] if qualities_B.size > start else qualities_B
    error = np.mean(10.0 ** (counted.astype(np.float64) / -10.0))
    return float(np.clip(-10.0 * np.log10(error), 1.0, 50.0))
