"""Computes AS, NM, MD and de from a CIGAR and two sequences, as minimap2 does.

Sequences are codes: A 0, C 1, G 2, T 3, anything else 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.tasks import MINIMAP2, Scoring

M, I, D, S = 0, 1, 2, 4  # noqa: E741  # BAM's operations
_LETTERS = np.frombuffer(b"ACGTN", np.uint8)
_AMBIGUOUS = 4

U8 = npt.NDArray[np.uint8]
Cigar = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The figures of an alignment; see `kernels.aligner.Alignment`."""

    score: int
    edit_distance: int
    md: str
    divergence: float


def joined(cigars: Iterable[Cigar]) -> Cigar:
    """Concatenate CIGARs, merging adjacent equal operations."""
    cigar = np.concatenate([*cigars, np.zeros(0, np.uint32)]).astype(np.uint32)
    if len(cigar) == 0:
        return cigar
    operations, lengths = cigar & 15, cigar >> 4
    starts = np.flatnonzero(np.concatenate([[True], operations[1:] != operations[:-1]]))
    return (np.add.reduceat(lengths, starts) << 4 | operations[starts]).astype(np.uint32)


def columns_of(cigar: Cigar, query: U8, target: U8) -> tuple[U8, U8, npt.NDArray[np.uint32]]:
    """Return each column's query code, target code and operation; the missing base of a gap may have any code.

    Raises
    ------
    ValueError
        The CIGAR has operations other than M, I and D, or does not consume all of both sequences.
    """
    operations_C = np.repeat(cigar & 15, cigar >> 4)
    in_query_C, in_target_C = operations_C != D, operations_C != I
    if not np.isin(cigar & 15, (M, I, D)).all():
        raise ValueError(f"the CIGAR has operations other than M, I and D: {sorted(set((cigar & 15).tolist()))}")
    if int(in_query_C.sum()) != len(query) or int(in_target_C.sum()) != len(target):
        raise ValueError(
            f"the CIGAR consumes {int(in_query_C.sum())} and {int(in_target_C.sum())} bases, but the sequences have "
            f"{len(query)} and {len(target)}"
        )
    query_C, target_C = (np.zeros(len(operations_C), np.uint8) for _ in range(2))
    query_C[in_query_C], target_C[in_target_C] = query, target
    return query_C, target_C, operations_C


def describe(cigar: Cigar, query: U8, target: U8, scoring: Scoring = MINIMAP2, *, md: bool = True) -> Described:
    """Compute the figures of an alignment of two whole sequences.

    AS and de follow minimap2's align.c (mm_update_extra, mm_event_identity); NM and MD follow format.c. An ambiguous
    base never matches for NM, but equals another ambiguous base for MD.
    """
    query_C, target_C, operations_C = columns_of(cigar, query, target)
    gaps = (cigar >> 4)[(cigar & 15) != M].astype(np.int64)
    aligned_C = operations_C == M
    ambiguous = int((aligned_C & ((query_C == _AMBIGUOUS) | (target_C == _AMBIGUOUS))).sum())
    matches = int((aligned_C & (query_C == target_C) & (query_C != _AMBIGUOUS)).sum())
    mismatches = int(aligned_C.sum()) - matches - ambiguous
    events = int(aligned_C.sum()) + len(gaps)
    return Described(
        score=matches * scoring.match
        - mismatches * scoring.mismatch
        - ambiguous * scoring.ambiguous
        - int(scoring.gap_costs(gaps).sum()),
        edit_distance=len(operations_C) - matches,
        md=_md(cigar, query_C, target_C, operations_C) if md else "",
        divergence=1 - matches / events if events else 0.0,
    )


def figures_of_hits(
    cigars: Cigar,
    first_H: npt.NDArray[np.int64],
    operations_H: npt.NDArray[np.int32],
    matches_H: npt.NDArray[np.int32],
    columns_H: npt.NDArray[np.int32],
    scoring: Scoring = MINIMAP2,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Compute AS, NM and de of many alignments (H) without ambiguous bases, as `describe` does, but from counts.

    Parameters
    ----------
    cigars
        A pool of CIGARs of M, I and D.
    first_H, operations_H
        Where each alignment's CIGAR begins in it, and how many operations it has, at least one.
    matches_H, columns_H
        Equal bases, and columns: bases aligned, inserted or deleted.

    Returns
    -------
    tuple
        score_H, edit_distance_H and divergence_H.
    """
    ends_H = np.cumsum(operations_H, dtype=np.int64)
    starts_H = ends_H - operations_H
    own = cigars[np.arange(ends_H[-1] if len(ends_H) else 0) + np.repeat(first_H - starts_H, operations_H)]
    length = (own >> 4).astype(np.int64)
    is_gap = (own & 15) != M

    def of_each(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.add.reduceat(values, starts_H) if len(starts_H) else values

    gap_bases_H = of_each(np.where(is_gap, length, 0))
    gaps_H = of_each(is_gap.astype(np.int64))
    costs_H = of_each(np.where(is_gap, scoring.gap_costs(length), 0))
    aligned_H = columns_H.astype(np.int64) - gap_bases_H
    matches = matches_H.astype(np.int64)
    score_H = matches * scoring.match - (aligned_H - matches) * scoring.mismatch - costs_H
    events_H = np.maximum(aligned_H + gaps_H, 1)
    return score_H, columns_H - matches, 1 - matches / events_H


def _md(cigar: Cigar, query_C: U8, target_C: U8, operations_C: npt.NDArray[np.uint32]) -> str:
    """Return SAM's MD: counts of equal bases, with the target's letters at mismatches and, after ^, in deletions."""
    letters = _LETTERS[target_C].tobytes().decode()
    differ = np.flatnonzero((operations_C == M) & (query_C != target_C))
    ends = np.cumsum(cigar >> 4, dtype=np.int64)
    deleted = np.flatnonzero((cigar & 15) == D)
    events = [(int(place), letters[place]) for place in differ]
    events += [(int(ends[k] - (cigar[k] >> 4)), "^" + letters[ends[k] - (cigar[k] >> 4) : ends[k]]) for k in deleted]
    equal_C = np.concatenate([[0], np.cumsum((operations_C == M) & (query_C == target_C))])
    text, before = [], 0
    for place, letter in sorted(events):
        text += [str(int(equal_C[place]) - before), letter]
        before = int(equal_C[place])
    return "".join([*text, str(int(equal_C[-1]) - before)])
