"""Runs a network on the CPU, in the calling thread.

Dimensions: N rows of a batch, M samples, T time steps, C transition scores.
"""

import math
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from porestream.models.call.decode import Decoded
from porestream.models.call.host import bf16_is_faster, host_memory_bytes, processor_class
from porestream.models.call.memory import result_bytes
from porestream.models.call.network import Network
from porestream.models.call.runner import F32, BatchDecoder, Chunk, decoded_rows, fill_batch
from porestream.models.files.bundle import ModelBundle
from porestream.models.files.config import ModelConfig, ModelError

ROWS = 16
"""Rows of a batch on the CPU, the same for every batch, except for the encoders that want another number."""

_MOST_SCORE_BYTES = 256 << 20


def cpu_precision(precision: str) -> str:
    """Resolve "auto" to bf16 if the processor is faster at it, or else to fp32.

    Raises
    ------
    ModelError
        fp16 was requested; libraries for x86 processors compute it very slowly.
    """
    if precision == "fp16":
        raise ModelError("precision fp16 is ten times slower than fp32 on a CPU: use bf16 or fp32, or --device cuda")
    return precision if precision != "auto" else "bf16" if bf16_is_faster() else "fp32"


def cpu_rows(config: ModelConfig) -> int:
    """Return the rows of a batch on the CPU: the encoder's, or 16; half as many where the scores exceed 256 MiB."""
    rows = config.layers.encoder.cpu_rows or ROWS
    scores_bytes = config.chunk_size // config.stride * config.score_count * torch.float32.itemsize
    return rows // 2 if rows > 1 and rows * scores_bytes > _MOST_SCORE_BYTES else rows


class CpuRunner:
    """A network on the CPU: each thread computes its own batches, in buffers of its own."""

    def __init__(self, bundle: ModelBundle, precision: str = "auto", decoder: BatchDecoder | None = None) -> None:
        self.precision = cpu_precision(precision)
        self.rows = cpu_rows(bundle.config)
        scores_bytes = result_bytes(bundle.config, bundle.config.chunk_size, self.rows, decoded=False)
        if scores_bytes > host_memory_bytes() // 2:
            raise ModelError(
                f"{bundle.name}: chunksize = {bundle.config.chunk_size} is too long: a batch's scores take "
                f"{scores_bytes:,} bytes, more than half of this machine's {host_memory_bytes():,}; use a shorter one"
            )
        self.network = Network(bundle, self.precision)
        compiled = "-llvm" if self.network.compile_for_cpu() else ""  # its sums round differently from torch's
        self.row_group = self.network.row_group if compiled else self.rows
        self.device_class = f"{processor_class(self.precision)}{compiled}{'-gpu-decoder' if decoder else ''}"
        self._decoder = decoder
        self._score_count, self._longest_samples = bundle.config.score_count, bundle.config.chunk_size
        self._buffers = threading.local()

    @property
    def device_name(self) -> str:
        """See `Runner`."""
        return "cpu"

    def __call__(self, chunks: Iterable[Chunk], samples: int) -> F32:
        chunks = list(chunks)
        rows = -(-max(len(chunks), 1) // self.row_group) * self.row_group
        batch_NM, scores_TNC = self._buffers_of_thread(samples, rows)
        fill_batch(batch_NM, chunks)
        return self.network(batch_NM, scores_TNC).numpy()  # type: ignore[no-any-return]

    def call(self, chunks: Sequence[Chunk], samples: int) -> list[Decoded | ValueError]:
        assert self._decoder is not None
        scores_TNC = np.ascontiguousarray(self(chunks, samples)[:, : len(chunks)])  # empty rows cost as much to decode
        calls = self._decoder(scores_TNC)
        return decoded_rows([np.from_dlpack(array) for array in calls], len(chunks))

    def _buffers_of_thread(self, samples: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return batch_NM and scores_TNC, parts of what the thread's longest batch takes.

        They are reused for every batch, because reallocating scores would fragment the heap.
        """
        buffers = self._buffers
        if not hasattr(buffers, "batch") or buffers.batch.numel() < self.rows * samples:
            longest = max(samples, self._longest_samples)
            scores = longest // self.network.stride * self.rows * self._score_count
            # full() writes, so the memory is really there before the first read comes
            buffers.batch, buffers.scores = (
                torch.full((self.rows * longest,), 0.0),
                torch.full((scores,), 0.0),
            )
        shape = samples // self.network.stride, rows, self._score_count
        return buffers.batch[: rows * samples].view(rows, samples), buffers.scores[: math.prod(shape)].view(shape)
