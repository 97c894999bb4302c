"""minimap2's alignments, base by base on a device: where reads lie is mappy's to say, how they lie is the kernels'.

mappy tells of no chains, so long exact matches of its own alignment stand for their anchors. Between two of them the
sequences are filled, beyond the first and the last one they are extended, as minimap2 does it (align.c, mm_align1).
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from porestream.kernels.aligner import REVERSE, Alignment, MappyAligner
from porestream.kernels.cigar import Cigar, D, I, M, S, columns_of, describe, joined
from porestream.kernels.device import Device
from porestream.kernels.extend import Extender
from porestream.kernels.fill import MAX_ROWS, Filler
from porestream.kernels.pack import Pieces, encode_bases
from porestream.kernels.reference import Reference
from porestream.kernels.tasks import Alignments

MEMORY_BYTES = 256 << 20
"""Of the device, for the tasks of a read."""

_ANCHOR_BASES = 15  # minimap2's k for map-ont
_APART_BASES = 200  # options.c: min_ksw_len
_MAX_END_BASES = 5000  # options.c: max_gap
_END_BAND = 751  # align.c: bw * 1.5 + 1
_ZDROP = 400  # options.c, of map-ont and lr:hq

U8 = npt.NDArray[np.uint8]


class BaseLevelAligner:
    """Aligns as minimap2 does, with base-level alignment on a device, a read at a time; see `Aligner`."""

    def __init__(self, seeds: MappyAligner, device: Device) -> None:
        self._seeds = seeds
        self._filler, self._extender = Filler(device, MEMORY_BYTES), Extender(device, MEMORY_BYTES)
        self._lock = threading.Lock()  # one read's tasks at a time: their memory is planned

    @property
    def reference(self) -> Reference:
        return self._seeds.reference

    @property
    def preset(self) -> str:
        return self._seeds.preset

    @property
    def device_class(self) -> str:
        return "-gpu-aligner"

    def align(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        """See `Aligner.align`. Where the kernels cannot take a task, for it is too large, minimap2's CIGAR stays."""
        found = self._seeds.align(name, sequence, md=md)
        codes = encode_bases(sequence)
        return [self._aligned(alignment, codes, md) for alignment in found]

    def _aligned(self, before: Alignment, codes: U8, md: bool) -> Alignment:
        query = np.where(codes < 4, 3 - codes, codes)[::-1] if before.flag & REVERSE else codes
        target_start = max(0, before.reference_start - _MAX_END_BASES - _END_BAND)
        target_end = before.reference_end + _MAX_END_BASES + _END_BAND
        target = encode_bases(self._seeds.bases(before.reference_name, target_start, target_end))
        points = list(_points(before, query, target[before.reference_start - target_start :]))
        points = [(row, column + before.reference_start - target_start) for row, column in points]
        if len(points) < 2 or any(min(b[0] - a[0], b[1] - a[1]) > MAX_ROWS for a, b in pairwise(points)):
            return before
        (first_row, first_column), (last_row, last_column) = points[0], points[-1]
        between = [(query[a[0] : b[0]], target[a[1] : b[1]]) for a, b in pairwise(points)]
        try:
            with self._lock:
                filled = self._filler(*(Pieces.of([task[side] for task in between]) for side in (0, 1)))
                left = self._end(query[:first_row], target[:first_column], backwards=True)
                right = self._end(query[last_row:], target[last_column:], backwards=False)
        except MemoryError:
            return before
        middle = [filled.cigar_of(task) for task in range(len(filled.score_N))]
        cigar = joined([left.cigar_of(0), *middle, right.cigar_of(0)])
        row, column = first_row - int(left.query_N[0]), first_column - int(left.target_N[0])
        row_end, column_end = last_row + int(right.query_N[0]), last_column + int(right.target_N[0])
        figures = describe(cigar, query[row:row_end], target[column:column_end], md=md)
        clips = [np.array([clip << 4 | S] if clip else [], np.uint32) for clip in (row, len(query) - row_end)]
        return replace(
            before,
            reference_start=target_start + column,
            reference_end=target_start + column_end,
            cigar=np.concatenate([clips[0], cigar, clips[1]]),
            score=figures.score,
            edit_distance=figures.edit_distance,
            md=figures.md,
            divergence=figures.divergence,
        )

    def _end(self, query: U8, target: U8, *, backwards: bool) -> Alignments:
        """From the nearest anchor to where it scores best: from the first bases on, or backwards from the last ones."""
        query = _first(query, _MAX_END_BASES, backwards)
        target = _first(target, len(query) + _END_BAND, backwards)
        pieces = (Pieces.of([codes], backwards=backwards) for codes in (query, target))
        return self._extender(*pieces, band=_END_BAND, zdrop=_ZDROP)


def _first(codes: U8, count: int, backwards: bool) -> U8:
    """The first, or backwards the last, of them."""
    return codes[max(0, len(codes) - count) :] if backwards else codes[:count]


def _points(alignment: Alignment, query: U8, target: U8) -> Iterator[tuple[int, int]]:
    """Where the alignment is cut, as (query, target) positions.

    At the outer ends of its first and last long exact match, and in between at the ends of others that lie far enough
    apart.
    """
    inner: Cigar = alignment.cigar[np.isin(alignment.cigar & 15, (M, I, D))]
    row = int(alignment.cigar[0] >> 4) if (alignment.cigar[0] & 15) == S else 0
    lengths = [int((inner >> 4)[np.isin(inner & 15, kinds)].sum()) for kinds in ((M, I), (M, D))]
    query_C, target_C, operations_C = columns_of(inner, query[row : row + lengths[0]], target[: lengths[1]])
    exact_C = (operations_C == M) & (query_C == target_C) & (query_C < 4)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], exact_C.astype(np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    chosen = stops - starts >= _ANCHOR_BASES
    starts, stops = starts[chosen], stops[chosen]
    if len(starts) == 0:
        return
    rows_C = row + np.concatenate([[0], np.cumsum(operations_C != D)])
    columns_C = np.concatenate([[0], np.cumsum(operations_C != I)])
    last = int(rows_C[starts[0]]), int(columns_C[starts[0]])
    yield last
    final = int(rows_C[stops[-1]]), int(columns_C[stops[-1]])
    for place in stops[:-1].tolist():
        point = int(rows_C[place]), int(columns_C[place])
        if all(now - before >= _APART_BASES for now, before in zip(point, last, strict=True)):
            last = point
            yield point
    yield final
