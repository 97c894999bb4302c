"""Dual affine alignment as one would write it to be read: the oracle of the kernels.

Sequences are codes, 0 to 3 and 4 for ambiguous bases. Rows are the query's, columns the target's; H[i, j] is of the
first i and j bases.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from porestream.kernels.tasks import MINIMAP2, Scoring

NOTHING = -(10**9)

U8 = npt.NDArray[np.uint8]


@numba.njit
def _matrix(query, target, first, width, match, mismatch, ambiguous, open1, extend1, open2, extend2):  # type: ignore[no-untyped-def]
    rows, columns = len(query), len(target)
    H = np.full((rows + 1, columns + 1), NOTHING, np.int64)
    E1, E2 = H.copy(), H.copy()  # ends in a deletion: a column without a row
    F1, F2 = H.copy(), H.copy()  # ends in an insertion
    for i in range(rows + 1):
        for j in range(max(0, i + first), min(columns, i + first + width - 1) + 1):
            if i == 0 and j == 0:
                H[0, 0] = 0
                continue
            best = NOTHING
            if i > 0 and j > 0:
                left, right = query[i - 1], target[j - 1]
                score = -ambiguous if left > 3 or right > 3 else match if left == right else -mismatch
                best = H[i - 1, j - 1] + score
            if j > 0 and j - 1 - i >= first:
                E1[i, j] = max(H[i, j - 1] - open1, E1[i, j - 1]) - extend1
                E2[i, j] = max(H[i, j - 1] - open2, E2[i, j - 1]) - extend2
            if i > 0 and j - i + 1 < first + width:
                F1[i, j] = max(H[i - 1, j] - open1, F1[i - 1, j]) - extend1
                F2[i, j] = max(H[i - 1, j] - open2, F2[i - 1, j]) - extend2
            H[i, j] = max(best, E1[i, j], E2[i, j], F1[i, j], F2[i, j])
    return H


def matrix(query: U8, target: U8, first: int, width: int, scoring: Scoring = MINIMAP2) -> npt.NDArray[np.int64]:
    """H of all cells on the diagonals first to first + width - 1 (column - row); below NOTHING / 2 elsewhere."""
    costs = (scoring.open1, scoring.extend1, scoring.open2, scoring.extend2)
    return _matrix(query, target, first, width, scoring.match, scoring.mismatch, scoring.ambiguous, *costs)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Extended:
    """Where an extension ends."""

    score: int
    query: int
    target: int
    dropped: bool


def extended(H: npt.NDArray[np.int64], zdrop: int = -1, end_bonus: int = -1, long_extend: int = 1) -> Extended:
    """The best cell, anti-diagonal by anti-diagonal, until the score drops (ksw2.h, ksw_apply_zdrop).

    Of equally good cells the first anti-diagonal's, and there the one of the smallest diagonal, counts.
    """
    rows, columns = H.shape[0] - 1, H.shape[1] - 1
    best, row, column = 0, 0, 0
    for a in range(1, rows + columns + 1):
        i = np.arange(min(a, rows), max(0, a - columns) - 1, -1)  # from the smallest diagonal on
        scores = H[i, a - i]
        place = int(scores.argmax())
        score, i_now, j_now = int(scores[place]), int(i[place]), a - int(i[place])
        if score < NOTHING // 2:
            continue
        if score > best:
            best, row, column = score, i_now, j_now
        elif zdrop >= 0 and i_now >= row and j_now >= column:
            shift = abs((i_now - row) - (j_now - column))
            if best - score > zdrop + shift * long_extend:
                return Extended(best, row, column, True)
    if end_bonus >= 0:
        last = int(H[rows].argmax())
        if H[rows, last] > NOTHING // 2 and H[rows, last] + end_bonus > best:
            # of equally good columns the first
            return Extended(int(H[rows, last]), rows, last, False)
    return Extended(best, row, column, False)


def score_cigar(
    query: U8, target: U8, cigar: npt.NDArray[np.uint32], scoring: Scoring = MINIMAP2
) -> tuple[int, int, int]:
    """Score of a CIGAR, and the bases of query and target that it takes.

    Raises
    ------
    AssertionError
        Operations that are empty, alike side by side, or not M, I and D.
    """
    score = i = j = 0
    before = -1
    for entry in cigar.tolist():
        length, operation = entry >> 4, entry & 15
        assert length > 0
        assert operation in (0, 1, 2)
        assert operation != before
        before = operation
        if operation == 0:
            left, right = query[i : i + length], target[j : j + length]
            ambiguous = (left > 3) | (right > 3)
            equal = (left == right) & ~ambiguous
            score += scoring.match * int(equal.sum()) - scoring.ambiguous * int(ambiguous.sum())
            score -= scoring.mismatch * int((~equal & ~ambiguous).sum())
            i, j = i + length, j + length
        else:
            score -= min(scoring.open1 + scoring.extend1 * length, scoring.open2 + scoring.extend2 * length)
            i, j = i + length * (operation == 1), j + length * (operation == 2)
    return score, i, j
