"""Reads move tables: where each base of a BAM record lies in the signal.

There are two kinds: the `mv` tag of dorado and of this project (one entry per time step of the caller's network), and
the `ss` and `si` tags of squigualiser's realignment (https://github.com/hiruna72/squigualiser: samples of every base
along the alignment).

Dimensions: B bases.
"""

import re
from array import array
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pysam

_MATCH, _INSERTION, _DELETION, _SOFT_CLIP = 0, 1, 2, 4
_REALIGNED = re.compile(r"(\d+)([,DI])")


class NoMoves(ValueError):
    """A record does not say where its bases lie."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Where consecutive bases of a read lie.

    Attributes
    ----------
    first_base
        Index in the read of the first of these bases, in sequencing order.
    starts_B
        First sample of each base, int64.
    end_sample
        Where the last base ends.
    """

    first_base: int
    starts_B: npt.NDArray[np.int64]
    end_sample: int


def moves_of(record: pysam.AlignedSegment, samples: int) -> Moves:
    """Return the moves of a record, from whichever tags it has.

    Parameters
    ----------
    record
        The record: unaligned, or aligned to either strand.
    samples
        Length of the read's signal.

    Raises
    ------
    NoMoves
        The record has neither kind of tags, the tags do not fit the read, or it is part of a split read.
    """
    if record.has_tag("ss"):
        moves = _realigned(record, samples)
    elif record.has_tag("mv"):
        moves = _move_table(record, samples)
    else:
        raise NoMoves("it has neither an mv tag (call with --emit-moves) nor squigualiser's ss and si tags")
    if moves.starts_B.size == 0 or moves.starts_B[-1] >= samples or moves.end_sample > samples:
        raise NoMoves(f"its moves do not fit a signal of {samples} samples")
    return moves


def _move_table(record: pysam.AlignedSegment, samples: int) -> Moves:
    """Read mv (the stride, then 1 for every time step that starts a base) and ts (samples before the first step).

    Steps are in signal order, whatever the strand, so base k of the sequenced strand is the k-th 1.
    """
    if record.has_tag("pi"):  # its samples are counted from the split point
        raise NoMoves(f"it is a part of the split read {record.get_tag('pi')}")
    stride, *steps = cast("array[int]", record.get_tag("mv"))
    trimmed = int(record.get_tag("ts")) if record.has_tag("ts") else 0
    starts_B = trimmed + stride * np.flatnonzero(steps)
    if starts_B.size != record.query_length:
        raise NoMoves(f"its mv tag has {starts_B.size} moves for {record.query_length} bases")
    end_sample = trimmed + stride * len(steps)
    # The last step may reach beyond the signal, because read lengths are not multiples of the stride.
    return Moves(0, starts_B, samples if samples < end_sample < samples + stride else end_sample)


def _realigned(record: pysam.AlignedSegment, samples: int) -> Moves:
    """Read ss (samples of each base along the alignment) and si (first and last sample of the alignment).

    The entries are in signal order. On the reverse strand, the alignment runs against the signal, and `si` counts from
    the signal's end.
    """
    if record.cigartuples is None:
        raise NoMoves("it has an ss tag but no alignment")
    entries = (int(count) for count, _ in _REALIGNED.findall(str(record.get_tag("ss"))))
    first, last = (int(value) for value in str(record.get_tag("si")).split(",")[:2])
    cigar, at, base = record.cigartuples, first, 0
    if record.is_reverse:
        cigar, at = cigar[::-1], samples - last
    first_base = None
    starts = []
    try:
        for operation, length in cigar:
            if operation == _SOFT_CLIP:
                base += length
            elif operation == _DELETION:  # one entry for the whole gap; its bases have no samples
                next(entries)
            elif operation in (_MATCH, _INSERTION):
                first_base = base if first_base is None else first_base
                base += length
                if operation == _MATCH:
                    for _ in range(length):
                        starts.append(at)
                        at += next(entries)
                else:  # one entry for all inserted bases
                    shared = next(entries)
                    starts += [at + shared * k // length for k in range(length)]
                    at += shared
    except StopIteration:
        raise NoMoves("its ss tag ends before its alignment") from None
    return Moves(first_base or 0, np.array(starts, np.int64), at)
