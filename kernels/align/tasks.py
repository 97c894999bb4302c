"""What the base-level alignment kernels share: scores, tasks, batches that fit in memory, and results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.pack import Pieces, pack_bases, packed_words
from porestream.kernels.device import Array, Device
from porestream.kernels.source import struct

NOT_REACHED = np.iinfo(np.int32).min
WORD_BYTES = 4
STEP_WORDS = 64
"""Words of directions that a warp writes for eight cells per lane: one byte per cell."""

RIGHT, GLOBAL, COLUMNS_ARE_QUERY, FORWARD = 1, 2, 4, 8  # dual_affine.cuh

_TASK, _RESULT = struct("dual_affine.cuh", "Task"), struct("dual_affine.cuh", "Result")
_FIXED_BYTES = _TASK.itemsize + _RESULT.itemsize + 2 * 40 + 6 * 8  # per task: itself, its pieces, compact_cigars
_FLOOR, _TARGET, _INTERVAL, _LARGEST = 64, 20_000, 256, 0x7BFF
"""As in dual_affine.cuh: the floor without gap costs; the value that scores are brought back to; how often, in steps;
and the largest score that sorts correctly as a half float.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Dual affine scores, all positive: a gap of k bases costs min(open1 + k * extend1, open2 + k * extend2).

    The defaults are those of minimap2's presets map-ont and lr:hq (options.c, mm_mapopt_init).

    Raises
    ------
    ValueError
        The kernels need match = mismatch - 2 * ambiguous, an even mismatch, and a second gap cost that opens at a
        higher cost and extends at a lower one.
    """

    match: int = 2
    mismatch: int = 4
    ambiguous: int = 1
    open1: int = 4
    extend1: int = 2
    open2: int = 24
    extend2: int = 1

    def __post_init__(self) -> None:
        if (
            self.match != self.mismatch - 2 * self.ambiguous
            or self.mismatch % 2
            or self.match < 1
            or self.ambiguous < 0
        ):
            raise ValueError(
                f"the kernels need match = mismatch - 2 * ambiguous and an even mismatch, not {self.match}, "
                f"{self.mismatch}, {self.ambiguous}: minimap2's are 2, 4, 1"
            )
        if not (self.open1 <= self.open2 and self.extend1 >= self.extend2 >= 1):
            raise ValueError(f"open2 must be at least open1, and extend2 1 to extend1: {self}")

    def gap_costs(self, gaps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the costs of gaps of these lengths."""
        costs: npt.NDArray[np.int64] = np.minimum(self.open1 + self.extend1 * gaps, self.open2 + self.extend2 * gaps)
        return costs

    def macros(self) -> dict[str, int]:
        """Return the scores as macros for the compiler."""
        return {field.name.upper(): getattr(self, field.name) for field in fields(self)}

    def fits_packed(self, cells: int) -> bool:
        """Return whether 15 bits can hold all scores of an anti-diagonal of this many cells.

        A cell's score is at least that of any other cell k rows away, minus two gaps of k (the one that leads to it and
        the one that the other path saves), minus k matches. Add the floor, and what can be gained before scores are
        brought back: by scores, and by gaps that nothing leads to.
        """
        spread = self.open2 + (2 * self.extend2 + self.match) * cells
        floor = _FLOOR + self.open1 + self.extend1 + self.open2 + self.extend2
        drift = self.mismatch // 2
        rise, gap_rise = _INTERVAL * (self.match + drift), _INTERVAL * max(0, drift - self.extend2)
        return floor + gap_rise + spread < _TARGET and _TARGET + rise <= _LARGEST

    def check_fits(self, cells: int) -> None:
        """Raise ValueError unless `fits_packed`."""
        if not self.fits_packed(cells):
            raise ValueError(f"{self} needs more than the kernels' 15 bits for an anti-diagonal of {cells:,} cells")


MINIMAP2 = Scoring()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignments:
    """The tasks' results, in host memory.

    Attributes
    ----------
    score_N
        int32; `NOT_REACHED` if a task must reach both ends but its band does not contain them.
    query_N, target_N
        int32: bases that the alignment consumes.
    dropped_N
        bool: whether the z-drop test ended the task.
    cigar, offset_N
        uint32, BAM's encoding, for all tasks; task i has cigar[offset_N[i] : offset_N[i + 1]], in the order of target
        positions even if the task ran backwards.
    """

    score_N: npt.NDArray[np.int32]
    query_N: npt.NDArray[np.int32]
    target_N: npt.NDArray[np.int32]
    dropped_N: npt.NDArray[np.bool_]
    cigar: npt.NDArray[np.uint32]
    offset_N: npt.NDArray[np.int64]

    def cigar_of(self, task: int) -> npt.NDArray[np.uint32]:
        """Return one task's CIGAR."""
        return self.cigar[self.offset_N[task] : self.offset_N[task + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tasks in the form that a kernel takes.

    Attributes
    ----------
    query, target
        The tasks' sequences.
    swapped_N
        bool: whether the target, rather than the query, lies along the rows.
    direction_words_N
        int64: words that each task's directions take.
    first_diagonal_N, flags_N
        int32: fields of `Task`.
    rows_reversed
        Whether the sequence along the rows has the nibbles of its words reversed; if not, the other one has.
    """

    query: Pieces
    target: Pieces
    swapped_N: npt.NDArray[np.bool_]
    direction_words_N: npt.NDArray[np.int64]
    first_diagonal_N: npt.NDArray[np.int32]
    flags_N: npt.NDArray[np.int32]
    rows_reversed: bool

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Bases along the rows."""
        return np.where(self.swapped_N, self.target.length_N, self.query.length_N).astype(np.int64)

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """Bases along the columns."""
        return np.where(self.swapped_N, self.query.length_N, self.target.length_N).astype(np.int64)

    def packed_words(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the words of packed bases, for queries and for targets."""
        query, target = self.query.length_N.astype(np.int64), self.target.length_N.astype(np.int64)
        return packed_words(query, self.is_reversed(self.swapped_N)), packed_words(
            target, self.is_reversed(~self.swapped_N)
        )

    def is_reversed(self, is_columns_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return whether sequences have the nibbles of their words reversed."""
        return is_columns_N ^ self.rows_reversed

    def task_bytes(self) -> npt.NDArray[np.int64]:
        """Return the device memory that each task takes, without the pools of codes."""
        query_N, target_N = self.packed_words()
        words_N = self.direction_words_N + cigar_words(self.rows, self.columns) + query_N + target_N
        return WORD_BYTES * words_N + _FIXED_BYTES

    def take(self, tasks: npt.NDArray[np.integer]) -> "Layout":
        """Return a selection of the tasks."""
        return Layout(
            query=self.query.take(tasks),
            target=self.target.take(tasks),
            swapped_N=self.swapped_N[tasks],
            direction_words_N=self.direction_words_N[tasks],
            first_diagonal_N=self.first_diagonal_N[tasks],
            flags_N=self.flags_N[tasks],
            rows_reversed=self.rows_reversed,
        )


def check_counts(query: Pieces, target: Pieces) -> None:
    """Raise ValueError unless there are as many queries as targets."""
    if len(query.length_N) != len(target.length_N):
        raise ValueError(f"{len(query.length_N)} queries for {len(target.length_N)} targets: a task needs one of each")


def cigar_words(rows_N: npt.NDArray[np.int64], columns_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the most operations a CIGAR can have: an insertion and a deletion before, between and after matches."""
    most_N: npt.NDArray[np.int64] = np.minimum(3 * np.minimum(rows_N, columns_N) + 2, rows_N + columns_N)
    return most_N


def batches(bytes_N: npt.NDArray[np.int64], memory_bytes: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield batches of tasks that fit in memory, largest tasks first, so that tasks in a batch take similar time.

    Raises
    ------
    MemoryError
        A single task does not fit; the message says how much it needs.
    """
    if len(bytes_N) == 0:
        return
    order = np.argsort(-bytes_N, kind="stable")
    if bytes_N[order[0]] > memory_bytes:
        raise MemoryError(f"an alignment task needs {bytes_N[order[0]]:,} bytes, but a batch may take {memory_bytes:,}")
    first, taken = 0, 0
    for place, size in enumerate(bytes_N[order].tolist()):
        if taken + size > memory_bytes:
            yield order[first:place]
            first, taken = place, 0
        taken += size
    yield order[first:]


Launch = Callable[[Array, Array, Array, Array, Array, int], None]
"""Aligns and walks back: (tasks, results, bases, directions, cigars, count)."""


def align_all(
    device: Device,
    layout: Layout,
    kinds_N: npt.NDArray[np.int32],
    launch_of: Callable[[int], Launch],
    memory_bytes: int,
) -> Alignments:
    """Align tasks in batches that fit in memory, each of a single kind.

    Raises
    ------
    MemoryError
        A task does not fit into `memory_bytes`.
    """
    count = len(kinds_N)
    found_N = np.zeros(count, _RESULT)
    cigars: list[npt.NDArray[np.uint32]] = [np.zeros(0, np.uint32)] * count
    bytes_N = layout.task_bytes()
    for kind in np.unique(kinds_N).tolist():
        chosen = np.flatnonzero(kinds_N == kind)
        for batch in batches(bytes_N[chosen], memory_bytes):
            tasks = chosen[batch]
            found_N[tasks], cigar, offset_N = run_batch(device, layout.take(tasks), launch_of(kind))
            for place, task in enumerate(tasks.tolist()):
                cigars[task] = cigar[offset_N[place] : offset_N[place + 1]]
    offset_N = _starts(np.array([len(cigar) for cigar in cigars], np.int64))
    query_N, target_N = _consumed(layout, found_N["row"], found_N["column"])
    return Alignments(
        score_N=found_N["score"].copy(),
        query_N=query_N,
        target_N=target_N,
        dropped_N=found_N["dropped"] != 0,
        cigar=np.concatenate([*cigars, np.zeros(0, np.uint32)]),
        offset_N=offset_N,
    )


def _consumed(
    layout: Layout, row_N: npt.NDArray[np.int32], column_N: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return np.where(layout.swapped_N, column_N, row_N), np.where(layout.swapped_N, row_N, column_N)


def run_batch(
    device: Device, layout: Layout, launch: Launch
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Run one batch: pack the sequences, align and walk back, copy the CIGARs to the host.

    Returns
    -------
    results
        The kernels' `Result` structs.
    cigar, offset_N
        As in `Alignments`.
    """
    xp, count = device.xp, len(layout.flags_N)
    swapped_N = layout.swapped_N
    table = np.zeros(count, _TASK)
    table["rows"], table["columns"] = layout.rows, layout.columns
    words_2N = _starts(np.concatenate(layout.packed_words()))
    first_query_N, first_target_N = words_2N[:count], words_2N[count:-1]
    table["row_words"] = np.where(swapped_N, first_target_N, first_query_N)
    table["column_words"] = np.where(swapped_N, first_query_N, first_target_N)
    directions_N = _starts(layout.direction_words_N)
    cigars_N = _starts(cigar_words(layout.rows, layout.columns))
    table["directions"], table["cigar"] = directions_N[:-1], cigars_N[:-1]
    table["first_diagonal"], table["flags"] = layout.first_diagonal_N, layout.flags_N
    with device.in_order():
        bases = xp.empty(int(words_2N[-1]), np.uint32)
        for pieces, first_N, is_columns_N in (
            (layout.query, first_query_N, swapped_N),
            (layout.target, first_target_N, ~swapped_N),
        ):
            pack_bases(device, pieces, bases, first_N, layout.is_reversed(is_columns_N), is_columns_N)
        tasks, results = xp.asarray(table.view(np.uint8)), xp.empty(count * _RESULT.itemsize, np.uint8)
        directions = xp.empty(int(directions_N[-1]), np.uint32)
        cigars = xp.empty(int(cigars_N[-1]), np.uint32)
        launch(tasks, results, bases, directions, cigars, count)
        found = device.to_host(results).view(_RESULT)
        del directions, bases  # makes room for compact_cigars, which needs less
        cigar, offset_N = compact_cigars(device, cigars, cigars_N[:-1], found["operations"], layout.flags_N)
    return found, cigar, offset_N


def compact_cigars(
    device: Device,
    cigars: Array,
    start_N: npt.NDArray[np.int64],
    operations_N: npt.NDArray[np.int32],
    flags_N: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Copy the CIGARs to the host without gaps. The kernels wrote them from the end of the alignment to its start."""
    xp = device.xp
    offset_N = _starts(operations_N)
    if offset_N[-1] == 0:
        return np.zeros(0, np.uint32), offset_N
    end_N, first_N, length_N = (xp.asarray(of) for of in (offset_N[1:], start_N, operations_N.astype(np.int64)))
    place = xp.arange(int(offset_N[-1]))
    task = xp.searchsorted(end_N, place, side="right")
    in_task = place - (end_N - length_N)[task]
    forward = xp.asarray((flags_N & FORWARD) != 0)[task]
    source = first_N[task] + xp.where(forward, length_N[task] - 1 - in_task, in_task)
    return device.to_host(cigars[source]), offset_N


def _starts(sizes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return where each item begins when they are concatenated, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
