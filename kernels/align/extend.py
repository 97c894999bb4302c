"""Aligns two sequences in a band of diagonals, from their beginnings to the best score or to both ends (extend.cu)."""

from functools import partial

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import (
    FORWARD,
    GLOBAL,
    MINIMAP2,
    RIGHT,
    STEP_WORDS,
    Alignments,
    Layout,
    Scoring,
    align_all,
    check_counts,
)
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

GROUPS = (1, 2, 3)
"""How many groups of eight cells per lane the kernels support."""

_GROUP_DIAGONALS = 512
_FIRST_STEP = 16  # a band's first diagonal is a multiple of this, so that all lanes load bases at the same time
_WARPS = 4
_WARP = 32
_WALKERS = 64
_ANY_DROP = 1 << 30
WIDEST_BAND = (GROUPS[-1] * _GROUP_DIAGONALS - _FIRST_STEP) // 2
"""The largest half-width: diagonals -w to w."""


class Extender:
    """Extends alignments, one warp per task.

    Parameters
    ----------
    device
        The device to run on.
    memory_bytes
        Device memory for one batch.
    scoring
        Scores of bases and gaps.

    Notes
    -----
    A task that runs backwards extends to the left. It breaks ties the other way, so that gaps end up as far left as
    possible in both directions, as in minimap2 (align.c, KSW_EZ_RIGHT).
    """

    def __init__(self, device: Device, memory_bytes: int, scoring: Scoring = MINIMAP2) -> None:
        self.device, self.memory_bytes, self.scoring = device, memory_bytes, scoring

    def __call__(
        self,
        query: Pieces,
        target: Pieces,
        *,
        band: int | npt.NDArray[np.int32],
        zdrop: int = -1,
        end_bonus: int = -1,
        to_ends: bool = False,
    ) -> Alignments:
        """Align the beginnings of queries and targets.

        Parameters
        ----------
        query, target
            The tasks' sequences. A task runs backwards if its target piece does.
        band
            Half-width w, for all tasks or one for each: at least the diagonals -w to w are computed. At most
            `WIDEST_BAND`.
        zdrop
            Ends a task when the score falls below the best by more than this plus, for each base of difference in
            diagonals, a long gap's extension cost (Li 2018, section 2.2.2); -1 turns the test off.
        end_bonus
            Score for reaching the query's end: the alignment ends there if that makes it the best (ksw2.h); -1 turns
            this off.
        to_ends
            Align both sequences to their ends, without z-drop.

        Raises
        ------
        ValueError
            The band is negative or too wide, the scores need more than 15 bits in it, or there are not as many queries
            as targets.
        MemoryError
            A task does not fit into `memory_bytes`.
        """
        layout, groups_N = self._layout(query, target, np.asarray(band, np.int32), to_ends)
        self.scoring.check_fits(int(groups_N.max(initial=0)) * _GROUP_DIAGONALS // 2)
        limit = _ANY_DROP if zdrop < 0 else zdrop
        return align_all(
            self.device,
            layout,
            groups_N,
            lambda groups: partial(self._launch, groups, limit, end_bonus),
            self.memory_bytes,
        )

    def _layout(
        self, query: Pieces, target: Pieces, band: npt.NDArray[np.int32], to_ends: bool
    ) -> tuple[Layout, npt.NDArray[np.int32]]:
        rows_N, columns_N = query.length_N, target.length_N
        check_counts(query, target)
        if band.shape not in ((), rows_N.shape):
            raise ValueError(f"band must be one number or {len(rows_N)}, one for each task, not of shape {band.shape}")
        if band.size and int(band.min()) < 0:
            raise ValueError(f"band must be 0 or more, not {int(band.min())}")
        if band.size and int(band.max()) > WIDEST_BAND:
            raise ValueError(f"a band of +-{int(band.max())} diagonals is too wide; the limit is +-{WIDEST_BAND}")
        first_N = (-np.minimum(band, rows_N)) // _FIRST_STEP * _FIRST_STEP
        wide_N = np.minimum(band, columns_N) - first_N + 1
        groups_N = (-(-wide_N // _GROUP_DIAGONALS)).astype(np.int32)
        last_N = first_N + _GROUP_DIAGONALS * groups_N - 1
        rows, columns = rows_N.astype(np.int64), columns_N.astype(np.int64)
        steps_N = 1 + np.minimum(rows + columns, np.minimum(2 * rows + last_N, 2 * columns - first_N))
        flags_N = np.where(target.backwards_N, RIGHT, FORWARD) | (GLOBAL if to_ends else 0)
        return (
            Layout(
                query=query,
                target=target,
                swapped_N=np.zeros(len(rows), np.bool_),
                direction_words_N=steps_N * groups_N * STEP_WORDS,
                first_diagonal_N=first_N.astype(np.int32),
                flags_N=flags_N.astype(np.int32),
                rows_reversed=True,
            ),
            groups_N,
        )

    def _launch(
        self,
        groups: int,
        zdrop: int,
        end_bonus: int,
        tasks: Array,
        results: Array,
        bases: Array,
        directions: Array,
        cigars: Array,
        count: int,
    ) -> None:
        macros = self.scoring.macros() | {"GROUPS": groups}
        align, walk = (load(self.device, "extend.cu", name, **macros) for name in ("extend", "extend_traceback"))
        both = {"tasks": tasks, "results": results, "directions": directions, "count": count}
        align(-(-count // _WARPS), _WARP * _WARPS, **both, bases=bases, zdrop=zdrop)
        walk(-(-count // _WALKERS), _WALKERS, **both, cigars=cigars, end_bonus=end_bonus)
