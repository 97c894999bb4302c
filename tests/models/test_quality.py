"""Mean read quality by its formula."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from porestream.models.call.quality import mean_qscore


def plain_mean(qualities: list[int]) -> float:
    errors = [10 ** (-quality / 10) for quality in qualities]
    return min(50.0, max(1.0, -10 * math.log10(sum(errors) / len(errors))))


@given(arrays(np.uint8, st.integers(1, 200), elements=st.integers(0, 93)))
def test_the_mean_is_of_error_probabilities(qualities_B: npt.NDArray[np.uint8]) -> None:
    counted = qualities_B.tolist()[60:] or qualities_B.tolist()
    assert mean_qscore(qualities_B) == pytest.approx(plain_mean(counted), rel=1e-9)


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [
        ([], 0.0),
        ([12], 12.0),
        ([10] * 60, 10.0),
        ([10] * 60 + [20], 20.0),
        ([1] * 60 + [30] * 100, 30.0),
        ([50] * 60 + [10, 20], 10 * math.log10(2 / 0.11)),
        ([0] * 10, 1.0),
        ([93] * 100, 50.0),
    ],
)
def test_the_first_sixty_bases_count_only_if_alone(qualities: list[int], expected: float) -> None:
    assert mean_qscore(np.array(qualities, np.uint8)) == pytest.approx(expected)
