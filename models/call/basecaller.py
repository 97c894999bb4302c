"""Calls reads with one model: scaling, cutting, network, decoder, in that order.

Dimensions: N rows of a batch, S samples as measured, M samples at the model's rate, T time steps, C scores, B bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from porestream.models.call.card import Card
from porestream.models.call.chunk import FEW_LENGTHS, MANY_LENGTHS, Chunker, stitch
from porestream.models.call.cpu_runner import CpuRunner
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.call.decode import Decoded, Decoder, DecodeSettings
from porestream.models.call.prepare import PreparedRead, prepare
from porestream.models.call.runner import BatchDecoder, NetworkPasses, Runner
from porestream.models.files.bundle import ModelBundle
from porestream.models.files.config import ModelConfig
from porestream.models.scale import UNKNOWN, Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledRead:
    """A whole read, called.

    Attributes
    ----------
    sequence
        Bases ACGT.
    qualities_B
        Phred qualities of the bases, uint8.
    moves_T
        uint8; 1 for each step of `stride` measured samples, starting at `trimmed_samples`, that begins a base. For RNA
        they are in the signal's order: the first move is the sequence's last base.
    """

    sequence: str
    qualities_B: npt.NDArray[np.uint8]
    moves_T: npt.NDArray[np.uint8]
    stride: int
    trimmed_samples: int


def finish(read: PreparedRead, decoded: Sequence[Decoded]) -> CalledRead:
    """Stitch the called chunks of a read, in the order of its plan."""
    bases_B, qualities_B, moves_T = stitch(
        read.plan, [(chunk.bases_B, chunk.qualities_B, chunk.moves_T) for chunk in decoded]
    )
    if read.is_rna:  # RNA enters the pore 3' end first; moves stay in the signal's order
        bases_B, qualities_B = bases_B[::-1], qualities_B[::-1]
    measured_T, stride = read.measured_moves(moves_T)
    return CalledRead(
        sequence=bases_B.tobytes().decode("ascii"),
        qualities_B=qualities_B,
        moves_T=measured_T,
        stride=stride,
        trimmed_samples=read.trimmed_samples,
    )


def decode_settings(config: ModelConfig) -> DecodeSettings:
    """Return the settings for decoding a model's scores."""
    return DecodeSettings(
        stay_score=config.stay_score, quality_scale=config.quality_scale, quality_bias=config.quality_bias
    )


class Basecaller:
    """Calls chunks with one model: network and decoder on the CPU or a GPU, the rest on the CPU. Thread-safe.

    Parameters
    ----------
    bundle
        The model.
    precision
        "fp32", "bf16", "fp16" (GPU only) or "auto": fp16 on a GPU; on a CPU bf16 if that is faster, or else
        fp32. (Half precision costs models of the supported formats less than 0.1 points of identity:
        benchmarks/RESULTS.md.)
    cache_dir
        Where the compiled decoder is kept; None means the user's cache directory.
    card
        The GPU; None means the CPU.
    rows, share
        On a GPU, the rows of a batch (None: planned) and the share of its free memory that this model may use.
    decoder
        Decodes batches on the device that has their scores, with this model's `decode_settings`. None means that the
        CPU decodes them, row by row.
    passes
        Computes a network's passes between matrix products on a GPU; None means that torch does.

    Attributes
    ----------
    runner
        The network on its device.

    Raises
    ------
    ModelError
        The device does not support the precision, or the model does not fit on the GPU.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        precision: str = "auto",
        cache_dir: Path | None = None,
        card: Card | None = None,
        rows: int | None = None,
        share: float = 1.0,
        decoder: BatchDecoder | None = None,
        passes: NetworkPasses | None = None,
    ) -> None:
        self.bundle, self._card = bundle, card
        config = bundle.config
        self.chunker = Chunker(
            config.chunk_size,
            config.overlap,
            config.stride,
            config.chunk_unit,
            config.coarse_stride,
            MANY_LENGTHS if card is None else FEW_LENGTHS,
        )
        self.runner: Runner = (
            CudaRunner(bundle, self.chunker.lengths, precision, card, rows, share, decoder, passes)
            if card is not None
            else CpuRunner(bundle, precision, decoder)
        )
        self.network, self.rows, self.precision = self.runner.network, self.runner.rows, self.runner.precision
        self.decode_settings = decode_settings(config)
        self._decoder = None if decoder else Decoder(config.state_len, self.decode_settings, cache_dir)

    def prepare(self, signal_S: npt.NDArray[np.int16], measured: Measurement = UNKNOWN) -> PreparedRead:
        """Normalise, trim and plan a read: `models.call.prepare.prepare` with this model."""
        return prepare(signal_S, measured, self.bundle.config, self.chunker)

    def call(self, chunks: Sequence[tuple[PreparedRead, int]], samples: int) -> list[Decoded | ValueError]:
        """Call chunks of one length.

        Parameters
        ----------
        chunks
            The read of each chunk, and the chunk's first sample in it. At most `rows`.
        samples
            The chunk length, one of the chunker's.

        Returns
        -------
        list
            For each chunk the result, or the error if it could not be called (scores that are not finite).
        """
        rows = [partial(read.write_chunk, start) for read, start in chunks]
        if self._decoder is None:
            return self.runner.call(rows, samples)
        scores_TNC = self.runner(rows, samples)
        called: list[Decoded | ValueError] = []
        for row in range(len(chunks)):
            try:
                called.append(self._decoder(scores_TNC, row))
            except ValueError as error:
                called.append(error)
        return called

    def call_read(self, signal_S: npt.NDArray[np.int16], measured: Measurement = UNKNOWN) -> CalledRead:
        """Call one whole read in this thread, with the same results as a server's; for evaluation and as an example.

        Raises
        ------
        ValueError
            The read is too short, or its scores are not finite.
        """
        read = self.prepare(signal_S, measured)
        decoded: list[Decoded | None] = [None] * len(read.plan.pieces)
        for samples in self.chunker.lengths:
            indexes = [index for index, piece in enumerate(read.plan.pieces) if piece.samples == samples]
            for first in range(0, len(indexes), self.rows):
                group = indexes[first : first + self.rows]
                for index, result in zip(
                    group, self.call([(read, read.plan.pieces[index].start) for index in group], samples), strict=True
                ):
                    if isinstance(result, ValueError):
                        raise result
                    decoded[index] = result
        return finish(read, [chunk for chunk in decoded if chunk is not None])

    @property
    def warm_up_lengths(self) -> tuple[int, ...]:
        """Chunk lengths whose batches are called before the first read comes, longest first.

        A GPU's libraries make plans and take memory for each length. On a CPU the shortest takes all that lasts: the
        compiled code, and buffers for the longest.
        """
        return self.chunker.lengths if self._card else self.chunker.lengths[-1:]

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Call a batch of each length, so that libraries build plans and allocate memory before the first read."""
        for samples in lengths:
            self.call([(self.prepare(np.zeros(samples, np.int16)), 0)], samples)
