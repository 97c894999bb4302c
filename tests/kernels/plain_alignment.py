"""Dual affine alignment as one would write it to be read: the oracle of the kernels.

Sequences are codes, 0 to 3 and 4 for ambiguous bases. Rows are the query's, columns the target's; H[i, j] is of the
first i and j bases.
"""

from dataclasses import dataclass
from itertools import groupby

import numba
import numpy as np
import numpy.typing as npt

from porestream.kernels.align.tasks import MINIMAP2, Scoring

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


@numba.njit
def _in_band(  # type: ignore[no-untyped-def]
    query, target, first, width, match, mismatch, ambiguous, open1, extend1, open2, extend2, zdrop, end_bonus
):
    rows, columns = len(query), len(target)
    H = np.full(width, NOTHING, np.int64)  # by diagonal, of the last anti-diagonal that it is on
    E1, E2, F1, F2 = H.copy(), H.copy(), H.copy(), H.copy()
    H[-first] = 0
    best, row, column = 0, 0, 0
    row_end, row_end_column = (0, 0) if rows == 0 else (NOTHING, 0)
    corner = 0 if rows == columns == 0 else NOTHING
    for a in range(1, rows + columns + 1):
        now, row_now, column_now = NOTHING, 0, 0
        for diagonal in range(max(first, a - 2 * rows, -a), min(first + width - 1, 2 * columns - a, a) + 1):
            if (a + diagonal) % 2:
                continue
            i, k = (a - diagonal) // 2, diagonal - first
            j = i + diagonal
            h = e1 = e2 = f1 = f2 = NOTHING
            if i > 0 and j > 0:
                left, right = query[i - 1], target[j - 1]
                h = H[k] + (-ambiguous if left > 3 or right > 3 else match if left == right else -mismatch)
            if j > 0 and k > 0:
                e1 = max(H[k - 1] - open1, E1[k - 1]) - extend1
                e2 = max(H[k - 1] - open2, E2[k - 1]) - extend2
            if i > 0 and k + 1 < width:
                f1 = max(H[k + 1] - open1, F1[k + 1]) - extend1
                f2 = max(H[k + 1] - open2, F2[k + 1]) - extend2
            H[k], E1[k], E2[k], F1[k], F2[k] = max(h, e1, e2, f1, f2), e1, e2, f1, f2
            if H[k] > now:
                now, row_now, column_now = H[k], i, j
            if i == rows and H[k] > row_end:
                row_end, row_end_column = H[k], j
            if i == rows and j == columns:
                corner = H[k]
        if now > best:
            best, row, column = now, row_now, column_now
        shift = abs((row_now - row) - (column_now - column))
        behind = row_now >= row and column_now >= column
        if zdrop >= 0 and now > NOTHING // 2 and behind and best - now > zdrop + shift * extend2:
            return best, row, column, True, corner
    if end_bonus >= 0 and row_end > NOTHING // 2 and row_end + end_bonus > best:
        return row_end, rows, row_end_column, False, corner
    return best, row, column, False, corner


def extended_in_band(
    query: U8,
    target: U8,
    first: int,
    width: int,
    zdrop: int = -1,
    end_bonus: int = -1,
    scoring: Scoring = MINIMAP2,
) -> tuple[Extended, int]:
    """`extended` of `matrix` and the last corner's H, in memory of the band's width: for long sequences.

    The corner's is below NOTHING / 2 where the band does not hold it, or the score dropped before.
    """
    assert first <= 0 < first + width
    scores = (scoring.match, scoring.mismatch, scoring.ambiguous)
    costs = (scoring.open1, scoring.extend1, scoring.open2, scoring.extend2)
    *best, corner = _in_band(query, target, first, width, *scores, *costs, zdrop, end_bonus)
    return Extended(*best), corner


KINDS = "MDIdi"
"""What an alignment may end in: a match or mismatch, a deletion or an insertion; small if at the long gaps' cost."""


@numba.njit
def _fill_ways(  # type: ignore[no-untyped-def]
    ways, query, target, first, width, match, mismatch, ambiguous, open1, extend1, open2, extend2, last
):
    rows, columns = len(query), len(target)
    H = np.full(width + 1, NOTHING, np.int64)  # by diagonal, of the row above; nothing lies beyond the band
    F1, F2 = H.copy(), H.copy()
    for i in range(rows + 1):
        h = e1 = e2 = NOTHING
        for k in range(max(0, -first - i), min(width, columns - first - i + 1)):
            j = i + first + k
            diagonal = NOTHING
            if i > 0 and j > 0:
                left, right = query[i - 1], target[j - 1]
                score = -ambiguous if left > 3 or right > 3 else match if left == right else -mismatch
                diagonal = H[k] + score
            e1, e2 = max(h - open1, e1) - extend1, max(h - open2, e2) - extend2
            f1, f2 = max(H[k + 1] - open1, F1[k + 1]) - extend1, max(H[k + 1] - open2, F2[k + 1]) - extend2
            h = 0 if i == j == 0 else max(diagonal, e1, f1, e2, f2)
            for kind, value in enumerate((diagonal, e1, f1, e2, f2)):
                ways[i, k] |= (value == h) << kind
            for kind, gap, opened in ((1, e1, h - open1), (2, f1, h - open1), (3, e2, h - open2), (4, f2, h - open2)):
                ways[i, k] |= (gap > opened or (last and gap == opened)) << (8 + kind)
            H[k], F1[k], F2[k] = h, f1, f2


def best_cigar(
    query: U8,
    target: U8,
    first: int,
    width: int,
    scoring: Scoring = MINIMAP2,
    *,
    end: tuple[int, int],
    order: str = KINDS,
    last: bool = False,
) -> list[int]:
    """The CIGAR of the best alignment of the first `end` bases, in a band as for `extended_in_band`.

    From the end on, of equally good ways it takes the first in `order`, and a gap that could as well begin as go on
    begins. With `last` it takes the last, and the gap goes on (ksw2.h, KSW_EZ_RIGHT).
    """
    scores = (scoring.match, scoring.mismatch, scoring.ambiguous)
    costs = (scoring.open1, scoring.extend1, scoring.open2, scoring.extend2)
    # by row and diagonal: bit k for where H may come from, bit 8 + k for a gap that goes on (KINDS)
    ways = np.zeros((len(query) + 1, width), np.uint16)
    _fill_ways(ways, query, target, first, width, *scores, *costs, last)
    operations: list[int] = []
    (i, j), kind = end, "M"
    while i > 0 or j > 0:
        way = int(ways[i, j - i - first])
        if kind == "M" or not way >> (8 + KINDS.index(kind)) & 1:
            kind = next(kind for kind in (order[::-1] if last else order) if way >> KINDS.index(kind) & 1)
        i, j = i - (kind in "MIi"), j - (kind in "MDd")
        operations.append("MID".index(kind.upper()))
    return [len(list(run)) << 4 | operation for operation, run in groupby(reversed(operations))]


def gaps_that_could_stand_further_left(
    query: U8, target: U8, cigar: npt.NDArray[np.uint32], scoring: Scoring = MINIMAP2
) -> int:
    """Of the gaps between two matches those that are worth no less a base further left."""

    def score(left: int, right: int) -> int:
        return -scoring.ambiguous if max(left, right) > 3 else scoring.match if left == right else -scoring.mismatch

    count = i = j = 0
    operations = [(entry >> 4, entry & 15) for entry in cigar.tolist()]
    for place, (length, operation) in enumerate(operations):
        if (
            operation
            and 0 < place < len(operations) - 1
            and not operations[place - 1][1]
            and not operations[place + 1][1]
        ):
            moved = (i - 1, j + length - 1) if operation == 2 else (i + length - 1, j - 1)
            count += score(query[moved[0]], target[moved[1]]) >= score(query[i - 1], target[j - 1])
        i, j = i + length * (operation != 2), j + length * (operation != 1)
    return count


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
