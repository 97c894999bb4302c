"""Packs the tasks' sequences for the alignment kernels, one nibble per base (pack.cu)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from porestream.kernels.device import Array, Device
from porestream.kernels.source import load, struct

_ROWS_OUTSIDE, _COLUMNS_OUTSIDE = 8, 9  # dual_affine.cuh
AMBIGUOUS_CODE = 4
_THREADS = 128
_PIECE = struct("pack.cu", "Piece")
_CODES = np.full(256, AMBIGUOUS_CODE, np.uint8)
for _code, _letters in enumerate(("Aa", "Cc", "Gg", "TtUu")):
    _CODES[list(_letters.encode())] = _code


def encode_bases(bases: str) -> npt.NDArray[np.uint8]:
    """Encode letters: A 0, C 1, G 2, T and U 3, anything else 4."""
    return _CODES[np.frombuffer(bases.encode("ascii", "replace"), np.uint8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """One of each task's two sequences, in a pool of codes.

    Attributes
    ----------
    codes
        uint8: codes of all sequences, on the device or in host memory.
    start_N
        int64: where each task's first base is.
    length_N
        int32: number of bases.
    backwards_N
        bool: whether the piece runs towards lower positions.
    complement_N
        bool: whether to take the complement of each base.
    """

    codes: Array
    start_N: npt.NDArray[np.int64]
    length_N: npt.NDArray[np.int32]
    backwards_N: npt.NDArray[np.bool_]
    complement_N: npt.NDArray[np.bool_]

    def take(self, tasks: npt.NDArray[np.integer]) -> "Pieces":
        """Return the pieces of a selection of the tasks."""
        return Pieces(
            codes=self.codes,
            start_N=self.start_N[tasks],
            length_N=self.length_N[tasks],
            backwards_N=self.backwards_N[tasks],
            complement_N=self.complement_N[tasks],
        )

    @staticmethod
    def of(sequences: "list[npt.NDArray[np.uint8]]", *, backwards: bool = False) -> "Pieces":
        """Make pieces of sequences of codes, one per task: forwards from the first base, or backwards from the last."""
        length_N = np.array([len(codes) for codes in sequences], np.int32)
        start_N = np.concatenate([[0], np.cumsum(length_N, dtype=np.int64)[:-1]]).astype(np.int64)
        codes = np.concatenate([*sequences, np.zeros(1, np.uint8)])  # never empty: a kernel needs a valid pointer
        if backwards:
            start_N = start_N + length_N - 1
        count = len(sequences)
        return Pieces(
            codes=codes,
            start_N=start_N,
            length_N=length_N,
            backwards_N=np.full(count, backwards),
            complement_N=np.zeros(count, np.bool_),
        )


def packed_words(length_N: npt.NDArray[np.int64], reversed_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return how many words each sequence takes."""
    return (length_N + np.where(reversed_N, 7, 0)) // 8 + 1


def pack_bases(
    device: Device,
    pieces: Pieces,
    words: Array,
    first_N: npt.NDArray[np.int64],
    reversed_N: npt.NDArray[np.bool_],
    is_columns_N: npt.NDArray[np.bool_],
) -> None:
    """Pack each task's sequence into `words`, starting at `first_N`, in the device's stream.

    `reversed_N` says whether the nibbles of its words are reversed, `is_columns_N` whether it lies along the columns.
    """
    xp, count = device.xp, len(first_N)
    table = np.zeros(count, _PIECE)
    table["start"], table["words"], table["length"] = pieces.start_N, first_N, pieces.length_N
    table["step"] = np.where(pieces.backwards_N, -1, 1)
    table["complement"] = np.where(pieces.complement_N, 3, 0)
    table["reversed"] = reversed_N
    table["outside"] = np.where(is_columns_N, _COLUMNS_OUTSIDE, _ROWS_OUTSIDE)
    kernel = load(device, "pack.cu", "pack_bases")
    kernel(count, _THREADS, pieces=xp.asarray(table.view(np.uint8)), codes=xp.asarray(pieces.codes), words=words)
