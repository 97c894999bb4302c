"""Cuts a read into overlapping chunks of few fixed lengths, and stitches what was called of them.

Dimensions: S samples, T time steps (S / stride), B bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ChunkClass:
    """One fixed chunk length and the overlap of neighbours, in samples; both multiples of the stride."""

    samples: int
    overlap: int

    def starts(self, read_samples: int, stride: int) -> list[int]:
        """First sample of each chunk, every one a multiple of the stride.

        The last chunk is aligned to the read's end, rounded up to the stride (at most stride - 1 samples of padding).
        A read that is shorter than a chunk has one, padded.
        """
        if read_samples <= self.samples:
            return [0]
        last = -(-(read_samples - self.samples) // stride) * stride
        return [*range(0, last, self.samples - self.overlap), last]


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How one read is cut; depends on its length alone, so a read's bases do not depend on its company."""

    chunk_class: ChunkClass
    starts: list[int]
    read_samples: int
    stride: int

    @property
    def steps(self) -> int:
        """Time steps of the whole read; the last may be partial."""
        return -(-self.read_samples // self.stride)

    def kept_steps(self) -> list[tuple[int, int]]:
        """Of each chunk the half-open range of its time steps that is kept: cut in the middle of every overlap."""
        starts = [start // self.stride for start in self.starts]
        chunk_steps = self.chunk_class.samples // self.stride
        cuts = [
            following + (start + chunk_steps - following) // 2
            for start, following in zip(starts, starts[1:], strict=False)
        ]
        bounds = [0, *cuts, self.steps]
        return [
            (low - start, high - start) for start, low, high in zip(starts, bounds, bounds[1:], strict=False)
        ]


class Chunker:
    """The chunk lengths of a model, and the choice between them.

    Two classes: the model's own, and a quarter of it for reads that would waste most of a long chunk. A read takes
    the class that computes fewer samples, the long one on a tie.
    """

    def __init__(self, chunk_size: int, overlap: int, stride: int) -> None:
        self.stride = stride
        overlap = overlap // stride * stride
        long = ChunkClass(chunk_size // stride * stride, overlap)
        short = ChunkClass(chunk_size // 4 // stride * stride, overlap)
        self.classes = (long, short) if short.samples >= 2 * overlap and short.samples > 0 else (long,)

    def plan(self, read_samples: int) -> ChunkPlan:
        """The cut of a read of `read_samples` (at least 1), after trimming."""
        plans = [ChunkPlan(c, c.starts(read_samples, self.stride), read_samples, self.stride) for c in self.classes]
        return min(plans, key=lambda plan: len(plan.starts) * plan.chunk_class.samples)


def cut(signal_S: npt.NDArray[np.int16], start: int, samples: int) -> npt.NDArray[np.int16]:
    """One chunk; what the read lacks at the end is filled by repeating the chunk from its start."""
    chunk_S = signal_S[start : start + samples]
    return chunk_S if chunk_S.size == samples else np.resize(chunk_S, samples)


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
