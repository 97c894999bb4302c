"""A network on a CUDA card, in the card's one stream.

Dimensions: N rows of a batch, M samples, T time steps, C transition scores.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from porestream.models.call.card import Card, first_line
from porestream.models.call.decode import Decoded
from porestream.models.call.host import host_memory_bytes
from porestream.models.call.memory import device_bytes, plan_rows, result_bytes
from porestream.models.call.network import Network
from porestream.models.call.runner import F32, BatchDecoder, decoded_rows, fill_batch
from porestream.models.files.bundle import ModelBundle
from porestream.models.files.config import ModelError


class CudaRunner:
    """A network on a card: a CUDA graph a chunk length, between pinned copies.

    Parameters
    ----------
    bundle
        The model.
    lengths
        Its chunk lengths, in samples.
    precision
        "auto" is fp16 on a card.
    card
        Where.
    rows
        Rows of a batch; None: as many as its share of the memory holds, by `models.memory`.
    share
        Of the card's free memory, what this model may take.
    decoder
        Of its scores, on the card; None: they go to the host.

    Raises
    ------
    ModelError
        It does not fit, or the card's libraries refuse it.
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
        self.planned_bytes = device_bytes(config, max(lengths), self.precision, self.rows, decode_bytes)
        self.device_class = f"{card.device_class}-{self.rows}rows" + ("-gpu-decoder" if decoder else "")
        sizes = [(self.rows * length, length // config.stride * self.rows * config.score_count) for length in lengths]
        try:
            with card.in_order():
                self.network = Network(bundle, self.precision, encoder_rows=self.rows).to(card.device)
                # Shorter lengths are computed in the memory of the longest: the stream's order keeps them apart.
                batch, scores = (torch.zeros(max(size), device=card.device) for size in zip(*sizes, strict=True))
                size = result_bytes(config, max(lengths), self.rows, decoder is not None)
                self._calls = torch.zeros(size, dtype=torch.uint8, device=card.device) if decoder else None
            self._shapes = self._recorded(batch, scores, lengths, config.score_count)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{bundle.name} on {card.device}: {self.rows} rows do not fit after all, though of "
                f"{free_bytes:,} bytes no more than {self.planned_bytes:,} were expected: choose a smaller "
                f"--batch-size, or --device cpu ({first_line(error)})"
            ) from error
        except RuntimeError as error:  # of CUDA's libraries: a card or a driver that is too old, say
            raise ModelError(
                f"{bundle.name} does not run on {card.device}: {first_line(error)}; --device cpu does without"
            ) from error
        card.reserve(self.rows * max(lengths) * torch.float32.itemsize, size)

    def _recorded(
        self, batch: torch.Tensor, scores: torch.Tensor, lengths: Sequence[int], score_count: int
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor, Callable[[], object]]]:
        """By chunk length batch_NM and scores_TNC, the first parts of the two, and what computes one of the other."""
        parts = {}
        for length in sorted(lengths, reverse=True):
            shape = length // self.network.stride, self.rows, score_count
            batch_NM = batch[: self.rows * length].view(self.rows, length)
            scores_TNC = scores[: math.prod(shape)].view(shape)
            parts[length] = batch_NM, scores_TNC, partial(self.network, batch_NM, scores_TNC)
        for _, _, compute in parts.values():
            self._card.warm_up(compute)
        return {
            length: (batch_NM, scores_TNC, self._card.recorded(compute))
            for length, (batch_NM, scores_TNC, compute) in parts.items()
        }

    @property
    def device_name(self) -> str:
        """See `Runner`."""
        return self._card.device_name

    def __call__(self, chunks: Iterable[F32], samples: int) -> F32:
        if self._decoder is not None:
            raise ValueError("this runner has a decoder: its scores stay on the card, and `call` says what they mean")
        scores_TNC = self._shapes[samples][1]
        host = self._computed(chunks, samples, scores_TNC.flatten().view(torch.uint8))
        return host.view(torch.float32).view_as(scores_TNC).numpy()

    def call(self, chunks: Sequence[F32], samples: int) -> list[Decoded | ValueError]:
        assert self._calls is not None
        steps = self._shapes[samples][1].shape[0]
        size = sum(part.nbytes for part in _parts(self._calls, self.rows, steps))
        host = self._computed(chunks, samples, self._calls[:size])
        return decoded_rows([part.numpy() for part in _parts(host, self.rows, steps)], len(chunks))

    def _computed(self, chunks: Iterable[F32], samples: int, results: torch.Tensor) -> torch.Tensor:
        """Compute a batch and copy `results`, bytes on the card, into the calling thread's buffer."""
        batch_NM, scores_TNC, compute = self._shapes[samples]
        host_batch, host_results = self._card.host_buffers()
        host_NM = host_batch[: batch_NM.nbytes].view(torch.float32).view_as(batch_NM)
        host_results = host_results[: results.numel()]
        fill_batch(host_NM, chunks)
        with self._card.lock, self._card.in_order():
            batch_NM.copy_(host_NM, non_blocking=True)
            compute()
            if self._decoder is not None and self._calls is not None:
                self._decoder(scores_TNC, _parts(self._calls, self.rows, len(scores_TNC)))
            host_results.copy_(results, non_blocking=True)
            wait = self._card.mark()
        wait()
        return host_results

    def compute_only(self, samples: int) -> None:
        """Compute what was last on the card once more, without copies: for measurements."""
        with self._card.lock, self._card.in_order():
            self._shapes[samples][2]()
            wait = self._card.mark()
        wait()


def _parts(buffer: torch.Tensor, rows: int, steps: int) -> list[torch.Tensor]:
    """Letters, qualities, moves and counts of a batch, as views of the first of so many bytes."""
    counts_N, rest = buffer[: 4 * rows].view(torch.int32), buffer[4 * rows : (4 + 3 * steps) * rows]
    return [*rest.view(3, rows, steps), counts_N]
