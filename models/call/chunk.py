"""Cuts a read into overlapping chunks of three fixed lengths, and stitches what was called of them.

Dimensions: S samples, T time steps (S / stride), B bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BRIEF_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a read: its first sample, a multiple of the stride, and its length in samples."""

    start: int
    samples: int


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How one read is cut; depends on its length alone, so a read's bases do not depend on its company."""

    pieces: list[Piece]
    read_samples: int
    stride: int

    @property
    def steps(self) -> int:
        """Whole time steps of the read; samples at its end that make none have no bases, as in dorado."""
        return self.read_samples // self.stride

    def kept_steps(self) -> list[tuple[int, int]]:
        """Of each chunk the half-open range of its time steps that is kept: cut in the middle of every overlap."""
        starts = [piece.start // self.stride for piece in self.pieces]
        ends = [(piece.start + piece.samples) // self.stride for piece in self.pieces]
        cuts = [(end + following) // 2 for end, following in zip(ends, starts[1:], strict=False)]
        bounds = [0, *cuts, self.steps]
        return [(low - start, high - start) for start, low, high in zip(starts, bounds, bounds[1:], strict=False)]


class Chunker:
    """The chunk lengths of a model, and the cut of a read into them.

    Three lengths: the model's own; a quarter of it for the ends of long reads, which would waste most of a long chunk;
    and about 1,000 samples for reads that are no longer than that, whatever the model. A quarter that is less than two
    overlaps is left out, and the third where it would hardly be shorter than the second.

    Parameters
    ----------
    chunk_size
        The model's own length, in samples.
    overlap
        Samples that neighbours share at least.
    stride
        Samples of a time step.
    granularity
        What every length is a multiple of, in samples; None: the stride. A transformer wants more.
    overlap_unit
        What the overlap and every start are multiples of, in samples; None: the stride. More where a network's inner
        time steps are coarser than those it gives out.

    Attributes
    ----------
    lengths
        In samples, the longest first.

    Raises
    ------
    ValueError
        The chunk size is less than the granularity, or no more than the overlap.
    """

    def __init__(
        self,
        chunk_size: int,
        overlap: int,
        stride: int,
        granularity: int | None = None,
        overlap_unit: int | None = None,
    ) -> None:
        granularity = granularity or stride
        self._stride = stride
        self._unit = overlap_unit or stride
        self._overlap = overlap // self._unit * self._unit
        self._long, short = (chunk_size // parts // granularity * granularity for parts in (1, 4))
        if self._long <= self._overlap:
            raise ValueError(
                f"chunk_size {chunk_size} is too small for an overlap of {overlap} and lengths that are multiples of "
                f"{granularity}: choose a longer chunk"
            )
        self._ends = (self._long, short) if short >= max(2 * self._overlap, 1) else (self._long,)
        brief = -(-_BRIEF_SAMPLES // granularity) * granularity
        self._brief = brief if 4 * brief <= 3 * self._ends[-1] else 0
        self.lengths: tuple[int, ...] = (*self._ends, self._brief) if self._brief else self._ends

    def plan(self, read_samples: int) -> ChunkPlan:
        """The cut of a read of `read_samples` (at least 1), after trimming.

        A read that fits into the shortest chunk has one of it. Of others, long chunks as far as they go; the rest is
        one more, or short ones, whichever computes fewer samples. The last chunk is aligned to the read's end, rounded
        up to the overlap's unit (padding: at most a sample less than that). A read that is shorter than a chunk has
        one, padded.
        """
        if read_samples <= self._brief:
            return ChunkPlan([Piece(0, self._brief)], read_samples, self._stride)
        step = self._long - self._overlap
        count = max(0, (read_samples - self._overlap) // step)
        pieces = [Piece(index * step, self._long) for index in range(count)]
        rest = read_samples - count * step  # begins where the last long chunk's overlap does
        if not count or rest > self._overlap:
            ends = [self._end(rest, length) for length in self._ends]
            end = min(ends, key=lambda candidate: sum(piece.samples for piece in candidate))
            pieces += [Piece(max(0, count * step + piece.start), piece.samples) for piece in end]
        return ChunkPlan(pieces, read_samples, self._stride)

    def _end(self, rest: int, length: int) -> list[Piece]:
        """Chunks of one length over the last `rest` samples; starts may be negative, where a long chunk lies before."""
        last = -(-(rest - length) // self._unit) * self._unit
        return [Piece(start, length) for start in (*range(0, max(last, 0), length - self._overlap), last)]


def stitch(
    plan: ChunkPlan,
    chunks: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Join the called chunks of a read.

    Parameters
    ----------
    plan
        The read's cut.
    chunks
        For each chunk its bases_B (ASCII), qualities_B (Phred) and moves_T (0 or 1, one a time step).

    Returns
    -------
    tuple
        bases_B, qualities_B and moves_T of the whole read; moves_T has `plan.steps` entries, its sum is B.
    """
    bases, qualities, moves = [], [], []
    for (bases_B, qualities_B, moves_T), (low, high) in zip(chunks, plan.kept_steps(), strict=True):
        first = int(moves_T[:low].sum())
        last = first + int(moves_T[low:high].sum())
        bases.append(bases_B[first:last])
        qualities.append(qualities_B[first:last])
        moves.append(moves_T[low:high])
    return np.concatenate(bases), np.concatenate(qualities), np.concatenate(moves)
