"""Cuts a read into overlapping chunks of a few fixed lengths, and stitches the called chunks together.

Dimensions: S samples, T time steps (S / stride), B bases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEW_LENGTHS, MANY_LENGTHS = 2.5, 1.3
"""Ratios of a chunker: on a GPU, whose batches are large, and on a CPU."""

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

    Long reads take chunks of the model's own length. The ends of reads, and short reads, take the shorter ones, down to
    about 1,000 samples (or a quarter, if the model's own are short), so that little is computed in vain.

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
    ratio
        Each length is about this many times the next shorter one, or less. With many lengths less is computed in vain,
        but more reads are needed to fill a batch of each.
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
        ratio: float = FEW_LENGTHS,
    ) -> None:
        granularity = granularity or stride
        self._stride = stride
        self._unit = overlap_unit or stride
        self._overlap = overlap // self._unit * self._unit
        self._long = chunk_size // granularity * granularity
        if self._long <= self._overlap:
            raise ValueError(
                f"chunk_size {chunk_size} is too small for overlap {overlap} and lengths in multiples of "
                f"{granularity}: choose a longer chunk"
            )
        brief = -(-_BRIEF_SAMPLES // granularity) * granularity
        if 4 * brief > self._long:  # then a quarter, unless that would be little more than overlap
            quarter = self._long // 4 // granularity * granularity
            brief = quarter if quarter >= max(2 * self._overlap, 1) else self._long
        count = math.ceil(round(math.log(self._long / brief, ratio), 6))
        lengths = [self._long * (brief / self._long) ** (index / count) for index in range(1, count)]
        rounded = {self._long, *(-(-int(length) // granularity) * granularity for length in lengths)}
        self.lengths = tuple(sorted(rounded | ({brief} if count else set()), reverse=True))

    def plan(self, read_samples: int) -> ChunkPlan:
        """Plan the chunks of a read of `read_samples` (at least 1), after trimming.

        A read gets as many long chunks as fit; the rest is covered by one more, or by several short ones, whichever
        computes fewer samples. The last chunk is aligned to the end of the read, rounded up to the overlap's unit (so
        padding is always less than one unit). A read shorter than a chunk gets a single, padded chunk.
        """
        step = self._long - self._overlap
        count = max(0, (read_samples - self._overlap) // step)
        pieces = [Piece(index * step, self._long) for index in range(count)]
        rest = read_samples - count * step  # starts at the last long chunk's overlap
        if not count or rest > self._overlap:
            ends = [self._end(rest, length) for length in self.lengths if length >= min(rest, 2 * self._overlap)]
            end = min(ends, key=lambda candidate: (sum(piece.samples for piece in candidate), len(candidate)))
            pieces += [Piece(max(0, count * step + piece.start), piece.samples) for piece in end]
        return ChunkPlan(pieces, read_samples, self._stride)

    def _end(self, rest: int, length: int) -> list[Piece]:
        """Cover the last `rest` samples with chunks of one length; a start may be negative, reaching into the chunk
        before."""
        last = -(-(rest - length) // self._unit) * self._unit
        if last <= 0:
            return [Piece(last, length)]
        return [Piece(start, length) for start in (*range(0, last, length - self._overlap), last)]


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
        first = np.count_nonzero(moves_T[:low])
        last = first + np.count_nonzero(moves_T[low:high])
        bases.append(bases_B[first:last])
        qualities.append(qualities_B[first:last])
        moves.append(moves_T[low:high])
    return np.concatenate(bases), np.concatenate(qualities), np.concatenate(moves)
