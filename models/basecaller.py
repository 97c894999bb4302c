"""One model, ready to call: scaling, cutting, network, decoder, in that order.

Dimensions: N rows of a batch, S samples, T time steps, C scores, B bases.
"""

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.bundle import ModelBundle
from porestream.models.chunk import Chunker, ChunkPlan, cut
from porestream.models.decode import Decoded, Decoder, DecodeSettings
from porestream.models.network import Network
from porestream.models.scale import STRATEGIES, Scaling, leader_samples

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
        self.chunker = Chunker(config.chunk_size, config.overlap, config.stride)
        self.decode_settings = DecodeSettings(config.stay_score, config.quality_scale, config.quality_bias)
        self._decoder = Decoder(config.state_len, self.decode_settings, cache_dir)
        self._buffers = threading.local()

    def prepare(self, signal_S: npt.NDArray[np.int16]) -> tuple[Scaling, int, ChunkPlan]:
        """Scaling of a read, samples trimmed from its start, and the cut of the rest.

        Raises
        ------
        ValueError
            The read is shorter than a time step.
        """
        stride = self.bundle.config.stride
        if signal_S.size < stride:
            raise ValueError(f"too short: {signal_S.size} samples, the model's stride is {stride}")
        scaling = STRATEGIES[self.bundle.config.scaling](signal_S)
        trimmed = leader_samples(signal_S, scaling)
        return scaling, trimmed, self.chunker.plan(signal_S.size - trimmed)

    def call(
        self, chunks: list[tuple[npt.NDArray[np.int16], Scaling, int]], samples: int
    ) -> list[Decoded | ValueError]:
        """Call chunks of one length.

        Parameters
        ----------
        chunks
            Of each its (trimmed) read's signal_S, scaling, and first sample in it. At most ROWS.
        samples
            The chunk length, one of the chunker's.

        Returns
        -------
        list
            Of each chunk what was called, or why not (scores that are not finite).
        """
        batch_NS, scores_TNC = self._buffers_of_thread(samples)
        for row, (signal_S, scaling, start) in enumerate(chunks):
            batch_NS[row] = torch.from_numpy(scaling.apply(cut(signal_S, start, samples)))
        batch_NS[len(chunks) :] = 0.0
        scores = self.network(batch_NS, scores_TNC).numpy()
        called: list[Decoded | ValueError] = []
        for row in range(len(chunks)):
            try:
                called.append(self._decoder(scores, row))
            except ValueError as error:
                called.append(error)
        return called

    def warm_up(self) -> None:
        """Call one batch of each shape, so that plans are built and memory is taken before the first read."""
        for samples in self.chunker.lengths:
            self.call([(np.zeros(samples, np.int16), Scaling(0.0, 1.0), 0)], samples)

    def _buffers_of_thread(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """batch_NS and scores_TNC, kept from batch to batch: allocated anew, the latter would fragment the heap."""
        config = self.bundle.config
        buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = self._buffers.__dict__.setdefault("by_length", {})
        if samples not in buffers:
            steps = samples // config.stride
            buffers[samples] = torch.zeros(ROWS, samples), torch.zeros(steps, ROWS, config.score_count)
        return buffers[samples]
