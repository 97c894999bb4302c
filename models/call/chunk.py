"""Cuts a read into overlapping chunks of three fixed lengths, and stitches the called chunks together.

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
    """How one read is cut. This depends only on its length, so other reads in a batch never affect its bases."""

    pieces: list[Piece]
    read_samples: int
    stride: int

    @property
    def steps(self) -> int:
        """Whole time steps of the read. As in dorado, leftover samples at the end get no bases."""
        return self.read_samples // self.stride

    def kept_steps(self) -> list[tuple[int, int]]:
        """Return the half-open range of time steps to keep from each chunk; overlaps are cut in the middle."""
        starts = [piece.start // self.stride for piece in self.pieces]
        ends = [(piece.start + piece.samples) // self.stride for piece in self.pieces]
        cuts = [(end + following) // 2 for end, following in zip(ends, starts[1:], strict=False)]
        bounds = [0, *cuts, self.steps]
        return [(low - start, high - start) for start, low, high in zip(starts, bounds, bounds[1:], strict=False)]


class Chunker:
    """Chooses a model's chunk lengths and cuts reads into them.

    There are three lengths: the model's own; a quarter of it, for the ends of long reads, which would waste most of a
    long chunk; and about 1,000 samples, for reads no longer than that, whatever the model. The quarter is left out if
    it is shorter than two overlaps, and the third if it would be hardly shorter than the second.

    Parameters
    ----------
    chunk_size
        The model's own length, in samples.
    overlap
        The least number of samples that neighbouring chunks share.
    stride
        Samples per time step.
    granularity
        Every length is a multiple of this, in samples; None means the stride. Transformers need more.
    overlap_unit
        The overlap and every start are multiples of this, in samples; None means the stride. It is larger if a
        network's inner time steps are coarser than its output steps.

    Attributes
    ----------
    lengths
        Chunk lengths in samples, longest first.

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
                f"chunk_size {chunk_size} is too small for overlap {overlap} and lengths in multiples of "
                f"{granularity}: choose a longer chunk"
            )
        self._ends = (self._long, short) if short >= max(2 * self._overlap, 1) else (self._long,)
        brief = -(-_BRIEF_SAMPLES // granularity) * granularity
        self._brief = brief if 4 * brief <= 3 * self._ends[-1] else 0
        self.lengths: tuple[int, ...] = (*self._ends, self._brief) if self._brief else self._ends

    def plan(self, read_samples: int) -> ChunkPlan:
        """Plan the chunks of a read of `read_samples` (at least 1), after trimming.

        A read that fits into the shortest chunk gets one of those. Any other read gets as many long chunks as fit; the
        rest is covered by one more or by short ones, whichever computes fewer samples. The last chunk is aligned to the
        end of the read, rounded up to the overlap's unit (so padding is always less than one unit). A read shorter than
        a chunk gets a single, padded chunk.
        """
        if read_samples <= self._brief:
            return ChunkPlan([Piece(0, self._brief)], read_samples, self._stride)
        step = self._long - self._overlap
        count = max(0, (read_samples - self._overlap) // step)
        pieces = [Piece(index * step, self._long) for index in range(count)]
        rest = read_samples - count * step  # starts at the last long chunk's overlap
        if not count or rest > self._overlap:
            ends = [self._end(rest, length) for length in self._ends]
            end = min(ends, key=lambda candidate: sum(piece.samples for piece in candidate))
            pieces += [Piece(max(0, count * step + piece.start), piece.samples) for piece in end]
        return ChunkPlan(pieces, read_samples, self._stride)

    def _end(self, rest: int, length: int) -> list[Piece]:
        """Cover the last `rest` samples with chunks of one length; a start may be negative, reaching into the chunk
        before."""
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
        How the read was cut.
    chunks
        For each chunk its bases_B (ASCII), qualities_B (Phred) and moves_T (0 or 1 per time step).

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
