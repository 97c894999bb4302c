"""Runs a network on a CUDA GPU, in the GPU's one stream.

Dimensions: N rows of a batch, M samples, T time steps, C transition scores.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from porestream.models.call.card import Card, first_line
from porestream.models.call.decode import Decoded
from porestream.models.call.host import host_memory_bytes
from porestream.models.call.memory import device_bytes, half_scores, plan_rows, result_bytes
from porestream.models.call.network import Network
from porestream.models.call.runner import F32, BatchDecoder, Chunk, NetworkPasses, decoded_rows, fill_batch
from porestream.models.files.bundle import ModelBundle
from porestream.models.files.config import ModelError
from porestream.models.networks.attention import TransformerEncoder
from porestream.models.networks.recurrent import LowRankRecurrent


class CudaRunner:
    """A network on a GPU: one CUDA graph per chunk length, with copies through pinned memory before and after.

    In fp16 with a decoder, scores are halves too, rounded once more: they take most of the memory traffic.

    Parameters
    ----------
    bundle
        The model.
    lengths
        Its chunk lengths, in samples.
    precision
        "fp32", "bf16", "fp16" or "auto", which is fp16 on a GPU.
    card
        The GPU.
    rows
        Rows of a batch; None means as many as fit in this model's share of the memory (models/call/memory.py).
    share
        The share of the GPU's free memory that this model may use.
    decoder
        Decodes the scores on the GPU; None means that they are copied to the host.
    passes
        Computes low-rank LSTMs' and transformers' passes between matrix products on the GPU; None means that torch
        does.
    small
        More shapes to capture, (rows, samples), no larger than the others: for calls that promise no bytes, as those
        of open reads, where a whole batch would come too late.

    Raises
    ------
    ModelError
        The model does not fit, or the GPU's libraries refuse it.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        lengths: Sequence[int],
        precision: str,
        card: Card,
        rows: int | None = None,
        share: float = 1.0,
        decoder: BatchDecoder | None = None,
        passes: NetworkPasses | None = None,
        small: Sequence[tuple[int, int]] = (),
    ) -> None:
        config = bundle.config
        decode_bytes = decoder.device_bytes if decoder else None
        self.precision = card.precision(precision)
        self._card, self._decoder = card, decoder
        free_bytes = int(share * card.free_bytes())
        try:
            limits = free_bytes, host_memory_bytes() // 4, card.threads
            self.rows = plan_rows(config, lengths, self.precision, *limits, rows, decode_bytes)
        except ModelError as error:
            raise ModelError(f"{bundle.name} on {card.device}: {error}") from error
        self.row_group = self.rows
        self.planned_bytes = device_bytes(config, max(lengths), self.precision, self.rows, decode_bytes)
        are_half = decoder is not None and half_scores(self.precision)
        self.device_class = f"{card.device_class}-{self.rows}rows" + ("-gpu-decoder" if decoder else "")
        shapes = [*((self.rows, length) for length in lengths), *small]
        if any(rows > self.rows or length > max(lengths) for rows, length in small):
            raise ValueError(f"small shapes {small} must be no larger than {self.rows} x {max(lengths)} samples")
        sizes = [(rows * length, length // config.stride * rows * config.score_count) for rows, length in shapes]
        try:
            with card.in_order():
                self.network = Network(bundle, self.precision, encoder_rows=self.rows).to(card.device)
                if passes is not None:
                    use_passes(passes, self.network.encoder)
                    self.device_class += "-gpu-passes"
                if are_half and decoder is not None:
                    self.network.finish_scores = decoder.finish_scores
                    self.device_class += "-half-scores"
                # All shapes use the largest one's memory; this is safe because the stream runs in order.
                dtypes = torch.float32, torch.float16 if are_half else torch.float32
                batch, scores = (
                    torch.zeros(max(size), dtype=dtype, device=card.device)
                    for size, dtype in zip(zip(*sizes, strict=True), dtypes, strict=True)
                )
                size = result_bytes(config, max(lengths), self.rows, decoder is not None)
                self._calls = torch.zeros(size, dtype=torch.uint8, device=card.device) if decoder else None
            self._shapes = self._recorded(batch, scores, shapes, config.score_count)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{bundle.name} on {card.device}: out of GPU memory: {self.rows} rows were expected to take at most "
                f"{self.planned_bytes:,} of {free_bytes:,} bytes, but need more; choose a smaller --batch-size, or "
                f"--device cpu ({first_line(error)})"
            ) from error
        except RuntimeError as error:  # from CUDA's libraries, for example because the GPU or its driver is too old
            raise ModelError(
                f"{bundle.name} does not run on {card.device}: {first_line(error)}; --device cpu runs it without a GPU"
            ) from error
        card.reserve(self.rows * max(lengths) * torch.float32.itemsize, size)

    def _recorded(
        self, batch: torch.Tensor, scores: torch.Tensor, shapes: Sequence[tuple[int, int]], score_count: int
    ) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, Callable[[], object]]]:
        """Map each shape (rows, samples) to batch_NM and scores_TNC, views of the buffers, and what computes them."""
        parts = {}
        for rows, length in sorted(set(shapes), key=math.prod, reverse=True):
            shape = length // self.network.stride, rows, score_count
            batch_NM = batch[: rows * length].view(rows, length)
            scores_TNC = scores[: math.prod(shape)].view(shape)
            parts[rows, length] = batch_NM, scores_TNC, partial(self.network, batch_NM, scores_TNC)
        for _, _, compute in parts.values():
            self._card.warm_up(compute)
        return {
            shape: (batch_NM, scores_TNC, self._card.recorded(compute))
            for shape, (batch_NM, scores_TNC, compute) in parts.items()
        }

    @property
    def device_name(self) -> str:
        """See `Runner`."""
        return self._card.device_name

    def __call__(self, chunks: Iterable[Chunk], samples: int) -> F32:
        if self._decoder is not None:
            raise ValueError("this runner decodes on the GPU, so it cannot return scores: use `call`")
        scores_TNC = self._shapes[self.rows, samples][1]
        host = self._computed(chunks, self.rows, samples, scores_TNC.flatten().view(torch.uint8))
        return host.view(torch.float32).view_as(scores_TNC).numpy()

    def call(self, chunks: Sequence[Chunk], samples: int, rows: int | None = None) -> list[Decoded | ValueError]:
        """See `Runner`; `rows` chooses one of the `small` shapes."""
        assert self._calls is not None
        rows = self.rows if rows is None else rows
        steps = self._shapes[rows, samples][1].shape[0]
        size = sum(part.nbytes for part in _parts(self._calls, rows, steps))
        host = self._computed(chunks, rows, samples, self._calls[:size])
        return decoded_rows([part.numpy() for part in _parts(host, rows, steps)], len(chunks))

    def _computed(self, chunks: Iterable[Chunk], rows: int, samples: int, results: torch.Tensor) -> torch.Tensor:
        """Compute a batch and copy `results`, bytes on the GPU, into the calling thread's buffer."""
        batch_NM, scores_TNC, compute = self._shapes[rows, samples]
        host_batch, host_results = self._card.host_buffers()
        host_NM = host_batch[: batch_NM.nbytes].view(torch.float32).view_as(batch_NM)
        host_results = host_results[: results.numel()]
        fill_batch(host_NM, chunks)
        with self._card.lock, self._card.in_order():
            batch_NM.copy_(host_NM, non_blocking=True)
            compute()
            if self._decoder is not None and self._calls is not None:
                self._decoder(scores_TNC, _parts(self._calls, rows, len(scores_TNC)))
            host_results.copy_(results, non_blocking=True)
            wait = self._card.mark()
        wait()
        return host_results

    def compute_only(self, samples: int) -> None:
        """Compute the last batch again, without copies; for benchmarks."""
        with self._card.lock, self._card.in_order():
            self._shapes[self.rows, samples][2]()
            wait = self._card.mark()
        wait()


def use_passes(passes: NetworkPasses, encoder: torch.nn.Module) -> None:
    """Make an encoder of low-rank LSTMs or a transformer compute with these passes."""
    if isinstance(encoder, LowRankRecurrent):
        encoder.next_states = passes.next_states
    else:
        assert isinstance(encoder, TransformerEncoder)
        encoder.passes = passes


def _parts(buffer: torch.Tensor, rows: int, steps: int) -> list[torch.Tensor]:
    """Return a batch's letters, qualities, moves and counts as views of the start of a byte buffer."""
    counts_N, rest = buffer[: 4 * rows].view(torch.int32), buffer[4 * rows : (4 + 3 * steps) * rows]
    return [*rest.view(3, rows, steps), counts_N]
