"""One model, ready to call: scaling, cutting, network, decoder, in that order.

Dimensions: N rows of a batch, S samples as measured, M samples at the model's rate, T time steps, C scores, B bases.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.bundle import ModelBundle
from porestream.models.chunk import Chunker, stitch
from porestream.models.decode import Decoded, Decoder, DecodeSettings
from porestream.models.network import Network
from porestream.models.prepare import PreparedRead, prepare
from porestream.models.scale import UNKNOWN, Measurement

ROWS = 16
"""Rows of the one shape in which batches are computed. Libraries choose their kernels by shape, and with them the last
bits: with one shape, a chunk's scores do not depend on how full its batch was."""


def processor_has_bf16() -> bool:
    """Whether bf16 is computed by this processor, not emulated."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def device_class(precision: str) -> str:
    """The kind of processor that decides the last bits of scores, e.g. "cpu-avx512", "cpu-avx512-amx"."""
    capabilities = torch.cpu.get_capabilities()
    name = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    if precision == "bf16":
        name += "-amx" if capabilities.get("amx_bf16") else "-bf16" if processor_has_bf16() else "-emulated"
    return name


@dataclass(frozen=True, slots=True)
class CalledRead:
    """What a whole read says.

    Attributes
    ----------
    sequence
        Bases ACGT.
    qualities_B
        Their Phred qualities, uint8.
    moves_T
        1 for each step of `stride` measured samples, from `trimmed_samples` on, that begins a base; uint8. Of RNA in
        the signal's order: the first move is the sequence's last base.
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
    if read.is_rna:  # which goes through the pore from its 3' end; moves stay in the signal's order
        bases_B, qualities_B = bases_B[::-1], qualities_B[::-1]
    measured_T, stride = read.measured_moves(moves_T)
    return CalledRead(bases_B.tobytes().decode("ascii"), qualities_B, measured_T, stride, read.trimmed_samples)


class Basecaller:
    """Calls chunks with one model on the CPU. Thread-safe: every thread has its own buffers.

    Parameters
    ----------
    bundle
        The model.
    precision
        "fp32", "bf16", or "auto": bf16 where the processor computes it. (It costs the bundled formats' models less than
        0.1 points of identity: benchmarks/RESULTS.md.)
    cache_dir
        Where the compiled decoder is kept; None: the user's cache directory.
    """

    def __init__(self, bundle: ModelBundle, precision: str = "auto", cache_dir: Path | None = None) -> None:
        self.precision = precision if precision != "auto" else "bf16" if processor_has_bf16() else "fp32"
        self.bundle = bundle
        config = bundle.config
        self.network = Network(bundle, self.precision)
        self.chunker = Chunker(
            config.chunk_size, config.overlap, config.stride, config.chunk_unit, config.coarse_stride
        )
        self.decode_settings = DecodeSettings(config.stay_score, config.quality_scale, config.quality_bias)
        self._decoder = Decoder(config.state_len, self.decode_settings, cache_dir)
        self._buffers = threading.local()

    def prepare(self, signal_S: npt.NDArray[np.int16], measured: Measurement = UNKNOWN) -> PreparedRead:
        """Normalise, trim and plan a read: `models.prepare.prepare` with this model."""
        return prepare(signal_S, measured, self.bundle.config, self.chunker)

    def call(self, chunks: Sequence[tuple[PreparedRead, int]], samples: int) -> list[Decoded | ValueError]:
        """Call chunks of one length.

        Parameters
        ----------
        chunks
            Of each its read, and its first sample in it. At most ROWS.
        samples
            The chunk length, one of the chunker's.

        Returns
        -------
        list
            Of each chunk what was called, or why not (scores that are not finite).
        """
        batch_NM, scores_TNC = self._buffers_of_thread(samples)
        for row, (read, start) in enumerate(chunks):
            batch_NM[row] = torch.from_numpy(read.chunk(start, samples))
        batch_NM[len(chunks) :] = 0.0
        scores = self.network(batch_NM, scores_TNC).numpy()
        called: list[Decoded | ValueError] = []
        for row in range(len(chunks)):
            try:
                called.append(self._decoder(scores, row))
            except ValueError as error:
                called.append(error)
        return called

    def call_read(self, signal_S: npt.NDArray[np.int16], measured: Measurement = UNKNOWN) -> CalledRead:
        """Call one whole read in this thread, as a server would: for evaluation and for reading how it goes.

        Raises
        ------
        ValueError
            The read is too short, or its scores are not finite.
        """
        read = self.prepare(signal_S, measured)
        decoded: list[Decoded | None] = [None] * len(read.plan.pieces)
        for samples in self.chunker.lengths:
            indexes = [index for index, piece in enumerate(read.plan.pieces) if piece.samples == samples]
            for first in range(0, len(indexes), ROWS):
                group = indexes[first : first + ROWS]
                for index, result in zip(
                    group, self.call([(read, read.plan.pieces[index].start) for index in group], samples), strict=True
                ):
                    if isinstance(result, ValueError):
                        raise result
                    decoded[index] = result
        return finish(read, [chunk for chunk in decoded if chunk is not None])

    def warm_up(self) -> None:
        """Call one batch of each shape, so that plans are built and memory is taken before the first read."""
        for samples in self.chunker.lengths:
            self.call([(self.prepare(np.zeros(samples, np.int16)), 0)], samples)

    def _buffers_of_thread(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """batch_NM and scores_TNC, kept from batch to batch: allocated anew, the latter would fragment the heap."""
        config = self.bundle.config
        buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = self._buffers.__dict__.setdefault("by_length", {})
        if samples not in buffers:
            steps = samples // config.stride
            buffers[samples] = torch.zeros(ROWS, samples), torch.zeros(steps, ROWS, config.score_count)
        return buffers[samples]
