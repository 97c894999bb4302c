"""Sequences of tasks as the kernels of alignment take them: a nibble a base (pack.cu)."""

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
    """Letters as codes: A 0, C 1, G 2, T and U 3, all else 4."""
    return _CODES[np.frombuffer(bases.encode("ascii", "replace"), np.uint8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """One of each task's two sequences, in a pool of codes.

    Attributes
    ----------
    codes
        Of all sequences, uint8, on the device or in the host's memory.
    start_N
        Of each task where its first base is, int64.
    length_N
        Bases, int32.
    backwards_N
        Whether the bases that follow lie before it; bool.
    complement_N
        Whether the other strand is meant; bool.
    """

    codes: Array
    start_N: npt.NDArray[np.int64]
    length_N: npt.NDArray[np.int32]
    backwards_N: npt.NDArray[np.bool_]
    complement_N: npt.NDArray[np.bool_]

    def take(self, tasks: npt.NDArray[np.integer]) -> "Pieces":
        """Those of some tasks."""
        return Pieces(
            codes=self.codes,
            start_N=self.start_N[tasks],
            length_N=self.length_N[tasks],
            backwards_N=self.backwards_N[tasks],
            complement_N=self.complement_N[tasks],
        )

    @staticmethod
    def of(sequences: "list[npt.NDArray[np.uint8]]", *, backwards: bool = False) -> "Pieces":
        """Sequences of codes, one a task: from their first bases on, or `backwards` from their last ones."""
        length_N = np.array([len(codes) for codes in sequences], np.int32)
        start_N = np.concatenate([[0], np.cumsum(length_N, dtype=np.int64)[:-1]]).astype(np.int64)
        codes = np.concatenate([*sequences, np.zeros(1, np.uint8)])  # a pointer to nothing is no argument
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
    """Words that each sequence takes."""
    return (length_N + np.where(reversed_N, 7, 0)) // 8 + 1


def pack_bases(
    device: Device,
    pieces: Pieces,
    words: Array,
    first_N: npt.NDArray[np.int64],
    reversed_N: npt.NDArray[np.bool_],
    is_columns_N: npt.NDArray[np.bool_],
) -> None:
    """Pack each task's sequence from `words[first_N]` on, in the device's order.

    `reversed_N` tells whether the nibbles of its words are, `is_columns_N` whether it lies along the columns.
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
