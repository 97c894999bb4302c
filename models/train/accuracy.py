"""Measures how good a called read is from its alignment to the truth, column by column.

Dimensions: Q qualities (0-50), L lengths of homopolymers, X columns of an alignment, T bases of the truth, B called
bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mappy
import numpy as np
import numpy.typing as npt

from porestream.models.simulate.sequence import UNKNOWN, encode, reverse_complement

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

QUALITIES = 51
MAX_RUN = 12
_MATCH_OPERATIONS, _INSERTION, _DELETION = (0, 7, 8), 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAccuracy:
    """Counts for the aligned part of one read.

    Attributes
    ----------
    truth_bases
        Bases of the whole truth, aligned or not; or of the called read, if the truth's length is unknown.
    matches, mismatches, insertions, deletions
        Alignment columns, by kind.
    expected_error
        Mean error probability according to the qualities of the aligned bases.
    columns_Q, errors_Q
        Columns and erroneous columns, by the base's quality. A deleted base is counted with the called base before it,
        so that errors divided by columns is 1 - identity.
    runs_L, right_runs_L
        Homopolymers of the truth, by length, and how many of them were called with the right length. A homopolymer is
        counted only if some base of the run before it and some base of the run after it was called right.
    """

    truth_bases: int
    matches: int
    mismatches: int
    insertions: int
    deletions: int
    expected_error: float
    columns_Q: I64 = field(repr=False)
    errors_Q: I64 = field(repr=False)
    runs_L: I64 = field(repr=False)
    right_runs_L: I64 = field(repr=False)

    @property
    def columns(self) -> int:
        """The number of columns of the alignment."""
        return self.matches + self.mismatches + self.insertions + self.deletions

    @property
    def identity(self) -> float:
        """Matches divided by columns."""
        return self.matches / self.columns


def best_hit(aligner: mappy.Aligner, sequence: str) -> mappy.Alignment | None:
    """Return the primary hit with the most matches, or None."""
    return max((hit for hit in aligner.map(sequence) if hit.is_primary), key=lambda hit: int(hit.mlen), default=None)


def accuracy(called: str, qualities_B: U8, hit: mappy.Alignment, truth_T: U8, truth_bases: int) -> ReadAccuracy:
    """Count matches and errors along a hit.

    Parameters
    ----------
    called, qualities_B
        The called read, and the Phred qualities of its bases.
    hit
        The read's alignment to the truth.
    truth_T
        Bases 0-3 of the truth from the hit's `r_st` to `r_en`, uint8.
    truth_bases
        See ReadAccuracy.
    """
    called_B, qualities_B = encode(called), np.minimum(qualities_B, QUALITIES - 1)
    called_B, qualities_B = called_B[hit.q_st : hit.q_en], qualities_B[hit.q_st : hit.q_en]
    if hit.strand < 0:
        called_B, qualities_B = reverse_complement(called_B), qualities_B[::-1]
    called_X, truth_X = _columns(hit.cigar)
    insertion_X, deletion_X = truth_X < 0, called_X < 0
    both_X = ~(insertion_X | deletion_X)
    match_X = both_X.copy()
    match_X[both_X] = (called_B[called_X[both_X]] == truth_T[truth_X[both_X]]) & (truth_T[truth_X[both_X]] < UNKNOWN)
    beside_X = np.maximum.accumulate(np.maximum(called_X, 0))  # for a deletion, the base before it
    qualities_X = qualities_B[beside_X]
    runs_L, right_runs_L = _homopolymers(truth_T, called_X[match_X], truth_X[match_X])
    return ReadAccuracy(
        truth_bases=truth_bases,
        matches=int(np.count_nonzero(match_X)),
        mismatches=int(np.count_nonzero(both_X & ~match_X)),
        insertions=int(np.count_nonzero(insertion_X)),
        deletions=int(np.count_nonzero(deletion_X)),
        expected_error=float(np.mean(10.0 ** (qualities_B.astype(np.float64) / -10))),
        columns_Q=np.bincount(qualities_X, minlength=QUALITIES),
        errors_Q=np.bincount(qualities_X[~match_X], minlength=QUALITIES),
        runs_L=runs_L,
        right_runs_L=right_runs_L,
    )


def _columns(cigar: Sequence[tuple[int, int] | list[int]]) -> tuple[I64, I64]:
    """Return the indices of the called and the true base in every column, from the hit's start; -1 for a gap."""
    called, truth = [], []
    b = t = 0
    for length, operation in cigar:
        steps = np.arange(length)
        gap = np.full(length, -1)
        called.append(gap if operation == _DELETION else b + steps)
        truth.append(gap if operation == _INSERTION else t + steps)
        if operation not in (*_MATCH_OPERATIONS, _INSERTION, _DELETION):
            raise ValueError(f"operation {operation} in a CIGAR of DNA")
        b += length if operation != _DELETION else 0
        t += length if operation != _INSERTION else 0
    return np.concatenate(called), np.concatenate(truth)


def _homopolymers(truth_T: U8, matched_called_M: I64, matched_truth_M: I64) -> tuple[I64, I64]:
    """Count the truth's runs by length (the last count: MAX_RUN and longer), and those called with the right length.

    The length is right if there are as many called bases between the two neighbouring runs as the run has bases, and
    all of them match.
    """
    matches_T = np.zeros(truth_T.size + 1, np.int64)
    matches_T[matched_truth_M + 1] = 1
    matches_T = np.cumsum(matches_T)  # matched bases before each
    borders = np.flatnonzero(np.diff(truth_T)) + 1
    starts, ends = borders[:-1], borders[1:]  # the outermost runs may continue beyond the hit
    before, after = np.concatenate(([0], borders))[: starts.size], np.append(borders, truth_T.size)[2:]
    counted = (matches_T[starts] > matches_T[before]) & (matches_T[after] > matches_T[ends])
    counted &= truth_T[starts] < UNKNOWN
    starts, ends = starts[counted], ends[counted]
    lengths = ends - starts
    between = matched_called_M[matches_T[ends]] - matched_called_M[matches_T[starts] - 1] - 1
    right = (between == lengths) & (matches_T[ends] - matches_T[starts] == lengths)
    clipped = np.minimum(lengths, MAX_RUN)
    return np.bincount(clipped, minlength=MAX_RUN + 1), np.bincount(clipped[right], minlength=MAX_RUN + 1)
