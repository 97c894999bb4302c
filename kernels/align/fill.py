"""Aligns two whole sequences globally and without a band, for example between two anchors (fill.cu)."""

from functools import partial

import numpy as np

from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import (
    COLUMNS_ARE_QUERY,
    FORWARD,
    MINIMAP2,
    STEP_WORDS,
    Alignments,
    Layout,
    Scoring,
    align_all,
    check_counts,
)
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

MAX_ROWS = 4095
"""Most bases of the shorter sequence; the longer one may have any length."""

_WARP_ROWS = 256
_WARPS = 4  # warps per block if each warp has its own task
_WARP = 32
_WALKERS = 64


class Filler:
    """Aligns pairs of sequences from end to end. Parameters as for `kernels.align.extend.Extender`.

    It computes all cells, as minimap2 does between anchors, where its band is as wide as the gap. The shorter sequence
    lies along the rows, so that a 15 kb deletion in a read only costs 15 kb of columns.
    """

    def __init__(self, device: Device, memory_bytes: int, scoring: Scoring = MINIMAP2) -> None:
        self.device, self.memory_bytes, self.scoring = device, memory_bytes, scoring

    def __call__(self, query: Pieces, target: Pieces) -> Alignments:
        """Align each task's query to its target; gaps are placed as far left as possible, in the pieces' order.

        Raises
        ------
        ValueError
            The shorter sequence of a task has more than `MAX_ROWS` bases, the scores need more than 15 bits for so
            many, or there are not as many queries as targets.
        MemoryError
            A task does not fit into `memory_bytes`.
        """
        check_counts(query, target)
        swapped_N = target.length_N < query.length_N
        rows_N = np.minimum(query.length_N, target.length_N)
        columns_N = np.maximum(query.length_N, target.length_N).astype(np.int64)
        if len(rows_N) and int(rows_N.max()) > MAX_ROWS:
            longest = int(rows_N.max())
            raise ValueError(f"the shorter sequence of a task has {longest:,} bases; the limit is {MAX_ROWS:,}")
        warps_N = rows_N // _WARP_ROWS + 1
        self.scoring.check_fits(int(warps_N.max(initial=0)) * _WARP_ROWS)
        layout = Layout(
            query=query,
            target=target,
            swapped_N=swapped_N,
            direction_words_N=warps_N * (_WARP_ROWS + columns_N) * STEP_WORDS,
            first_diagonal_N=np.zeros(len(rows_N), np.int32),
            flags_N=np.where(swapped_N, FORWARD | COLUMNS_ARE_QUERY, FORWARD).astype(np.int32),
            rows_reversed=False,
        )
        return align_all(self.device, layout, warps_N, lambda warps: partial(self._launch, warps), self.memory_bytes)

    def _launch(
        self, warps: int, tasks: Array, results: Array, bases: Array, directions: Array, cigars: Array, count: int
    ) -> None:
        macros = self.scoring.macros() | {"MANY": int(warps > 1)}
        align, walk = (load(self.device, "fill.cu", name, **macros) for name in ("fill", "fill_traceback"))
        both = {"tasks": tasks, "results": results, "directions": directions, "count": count}
        blocks = count if warps > 1 else -(-count // _WARPS)
        align(blocks, _WARP * (warps if warps > 1 else _WARPS), **both, bases=bases)
        walk(-(-count // _WALKERS), _WALKERS, **both, cigars=cigars)
