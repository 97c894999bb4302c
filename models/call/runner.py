"""The interface of a network that runs in a few fixed shapes, on the CPU (cpu_runner.py) or a GPU (cuda_runner.py).

If the device has a decoder, scores stay on it, and `call` returns bases, qualities and moves.

Libraries choose kernels by shape, and different kernels differ in the last bits. With one shape per chunk length, a
chunk's scores do not depend on how full its batch was.

Dimensions: N rows of a batch, M samples at the model's rate, T time steps, C transition scores.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.call.decode import Decoded, NonFiniteScores
from porestream.models.call.network import Network
from porestream.models.networks.attention import Passes

F32 = npt.NDArray[np.float32]
Chunk = F32 | Callable[[F32], None]
"""A chunk of normalised signal, or what writes it into a row."""


class Runner(Protocol):
    """A network that computes batches. Thread-safe.

    Attributes
    ----------
    network
        The network itself.
    rows
        Most chunks in a batch.
    row_group
        A batch is computed with a multiple of this many rows; `rows` if every batch has all of them.
    precision
        "fp32", "bf16" or "fp16".
    device_class
        Whatever affects the last bits of scores besides model and precision: the kind of processor, and the rows if
        they can vary.
    """

    network: Network
    rows: int
    row_group: int
    precision: str
    device_class: str

    @property
    def device_name(self) -> str:
        """Human-readable device name: "cpu", "cuda:NVIDIA H100 80GB HBM3"."""

    def __call__(self, chunks: Iterable[Chunk], samples: int) -> F32:
        """Compute the scores of at most `rows` chunks of `samples` samples each; on a GPU, only without a decoder.

        Returns
        -------
        numpy.ndarray
            scores_TNC of all rows, float32, contiguous; the calling thread's next call overwrites it.
        """

    def call(self, chunks: Sequence[Chunk], samples: int) -> list[Decoded | ValueError]:
        """Call at most `rows` chunks, decoding on the device; return each chunk's result, or the error.

        This needs a decoder.
        """


class NetworkPasses(Passes, Protocol):
    """The passes of encoders between their matrix products; see `porestream.kernels.network.passes.NetworkPasses`."""

    def next_states(
        self, gates_NG: torch.Tensor, cells_NC: torch.Tensor, hidden_NC: torch.Tensor, is_hard: bool
    ) -> None:
        """See `models.networks.recurrent.next_states`."""


class BatchDecoder(Protocol):
    """Decodes batches on the device that has their scores; `porestream.kernels.decode.crf.CrfDecoder` is one."""

    def __call__(self, scores_TNC: Any, into: Sequence[Any] | None = None) -> Sequence[Any]:
        """Return letters, qualities and moves, uint8 (N, T), and counts, int32 (N); -1 where scores are not finite.

        The arrays support DLPack. If `into` is given, the results are written to those arrays.
        """

    def finish_scores(self, scores_TNC: torch.Tensor, is_tanh: bool, scale: float, limit: float) -> None:
        """Make scores of a network's last matrix product in half precision, in place; see `Layers.score_tanh`."""

    def device_bytes(self, steps: int, rows: int) -> int:
        """Return the device memory that decoding a batch takes, besides its scores."""


def decoded_rows(calls: Sequence[npt.NDArray[Any]], rows: int) -> list[Decoded | ValueError]:
    """Return the first rows of a `BatchDecoder`'s result, as copies."""
    letters_NT, qualities_NT, moves_NT, counts_N = calls
    called: list[Decoded | ValueError] = []
    for row, count in enumerate(counts_N[:rows].tolist()):
        if count < 0:
            called.append(NonFiniteScores(f"row {row} of the scores holds NaN or infinite values"))
        else:
            parts = letters_NT[row, :count], qualities_NT[row, :count], moves_NT[row]
            called.append(Decoded(*(part.copy() for part in parts)))
    return called


def fill_batch(batch_NM: torch.Tensor, chunks: Iterable[Chunk]) -> None:
    """Write chunks into the first rows, and zero the rest."""
    rows_NM, count = batch_NM.numpy(), 0
    for count, chunk in enumerate(chunks, 1):
        if callable(chunk):
            chunk(rows_NM[count - 1])
        else:
            rows_NM[count - 1] = chunk
    rows_NM[count:] = 0.0
