"""One network in few fixed shapes on one device: on the CPU (cpu_runner.py), or a card (cuda_runner.py).

Where there is a decoder for the device, scores do not leave it: `call` brings back bases, qualities and moves.

Libraries choose their kernels by shape, and with them the last bits: with one shape a chunk length, a chunk's scores do
not depend on how full its batch was.

Dimensions: N rows of a batch, M samples at the model's rate, T time steps, C transition scores.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.call.decode import Decoded, NonFiniteScores
from porestream.models.call.network import Network

F32 = npt.NDArray[np.float32]


class Runner(Protocol):
    """A network that computes batches. Thread-safe.

    Attributes
    ----------
    network
        The network itself.
    rows
        Most chunks of a batch. It is always computed with so many rows.
    precision
        "fp32", "bf16" or "fp16".
    device_class
        What decides the last bits of scores beside model and precision: the kind of processor, and the rows where they
        are not always the same.
    """

    network: Network
    rows: int
    precision: str
    device_class: str

    @property
    def device_name(self) -> str:
        """The device for people: "cpu", "cuda:NVIDIA H100 80GB HBM3"."""

    def __call__(self, chunks: Iterable[F32], samples: int) -> F32:
        """Scores of at most `rows` chunks of `samples` samples each; on a card only without a decoder.

        Returns
        -------
        numpy.ndarray
            scores_TNC, float32, contiguous, of all rows; it is overwritten by the calling thread's next call.
        """

    def call(self, chunks: Sequence[F32], samples: int) -> list[Decoded | ValueError]:
        """What at most `rows` chunks say, decoded where their scores are; of each what was called, or why not.

        Only with a decoder.
        """


class BatchDecoder(Protocol):
    """Decodes batches on the device where their scores are; `porestream.kernels.decode.crf.CrfDecoder` is one."""

    def __call__(self, scores_TNC: Any, into: Sequence[Any] | None = None) -> Sequence[Any]:
        """Letters, qualities and moves, uint8 (N, T), and counts, int32 (N), -1 where scores are not finite.

        Arrays speak DLPack. With `into`, they are these.
        """

    def device_bytes(self, steps: int, rows: int) -> int:
        """What a batch takes on the device beside its scores."""


def decoded_rows(calls: Sequence[npt.NDArray[Any]], rows: int) -> list[Decoded | ValueError]:
    """The first rows of what a `BatchDecoder` gave, as copies."""
    letters_NT, qualities_NT, moves_NT, counts_N = calls
    called: list[Decoded | ValueError] = []
    for row, count in enumerate(counts_N[:rows].tolist()):
        if count < 0:
            called.append(NonFiniteScores(f"row {row} of the scores holds values that are not finite"))
        else:
            parts = letters_NT[row, :count], qualities_NT[row, :count], moves_NT[row]
            called.append(Decoded(*(part.copy() for part in parts)))
    return called


def fill_batch(batch_NM: torch.Tensor, chunks: Iterable[F32]) -> None:
    """Chunks into the first rows, zeros into the rest."""
    count = 0
    for count, chunk_M in enumerate(chunks, 1):
        batch_NM[count - 1] = torch.from_numpy(chunk_M)
    batch_NM[count:] = 0.0
