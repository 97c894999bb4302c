"""Target regions of a genome, and whether an alignment ends in one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
WHOLE = (1 << 62) - 1
"""The end of an interval that reaches to the end of its contig, wherever that is. (Padding may be added to it.)"""


class Interval(NamedTuple):
    """A target. Both `start` and `end` belong to it, as readfish has it; a whole contig is 0 to WHOLE.

    Attributes
    ----------
    strand
        +1 or -1.
    """

    contig: str
    start: int
    end: int
    strand: int


class Targets:
    """Intervals by contig and strand, merged where they touch.

    Parameters
    ----------
    intervals
        In any order; they may overlap.
    padding
        Bases by which targets begin earlier in the direction of reading: + targets' starts are lower, - targets' ends
        higher, so that reads are kept that have yet to reach the target.
    """

    def __init__(self, intervals: Iterable[Interval] = (), padding: int = 0) -> None:
        places: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for contig, start, end, strand in intervals:
            places.setdefault((contig, strand), []).append((start, end))
        self._merged: Mapping[tuple[str, int], tuple[I64, I64]] = {
            place: _merged(np.array(found, np.int64), padding * (place[1] > 0), padding * (place[1] < 0))
            for place, found in places.items()
        }

    def __len__(self) -> int:
        return sum(len(starts) for starts, _ in self._merged.values())

    @property
    def contigs(self) -> set[str]:
        """The contigs that have targets."""
        return {contig for contig, _ in self._merged}

    def has(self, contig: str, strand: int, coordinate: int) -> bool:
        """Whether a coordinate is in a target of this strand."""
        starts, ends = self._merged.get((contig, strand), (_NONE, _NONE))
        place = int(np.searchsorted(starts, coordinate, side="right"))
        return place > 0 and coordinate <= int(ends[place - 1])


_NONE = np.zeros(0, np.int64)


def _merged(intervals_N2: I64, earlier: int, later: int) -> tuple[I64, I64]:
    """Return the starts and ends of the merged intervals, in ascending order, then moved.

    Intervals that overlap only because they are padded stay apart: the last one that begins before a coordinate is
    then also the one that ends last.
    """
    order = np.lexsort((intervals_N2[:, 1], intervals_N2[:, 0]))
    starts, ends = intervals_N2[order, 0], np.maximum.accumulate(intervals_N2[order, 1])
    begins = np.concatenate([[True], starts[1:] > ends[:-1]])
    last = np.concatenate([np.flatnonzero(begins)[1:] - 1, [len(starts) - 1]])
    return starts[begins] - earlier, ends[last] + later


def unknown_contigs(targets: Targets, names: Sequence[str]) -> list[str]:
    """Return contigs that have targets but are not in the reference, in alphabetical order."""
    return sorted(targets.contigs - set(names))
