"""The pore model: predicts each base's current level, spread and dwell from its neighbours.

A table of 9-mer means gives a rough level. A small network corrects it, looking at 12 bases before and 10 after the
arriving base, and also predicts the spread of the current and the dwell.

Dimensions: B bases, K 9-mers (4**9), I inputs and O outputs of a layer, H width of the first layer, P places of
neighbours, G groups of them, W rows of the lookup table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
Layer = tuple[F32, F32]
"""Weights (O, I) and biases (O)."""

KMER_LEN = 9
KMER_LEFT = 6
"""Bases of the 9-mer before the arriving base."""

_SHIPPED = Path(__file__).with_name("r10.4.1_400bps.npz")
_GROUP = 4  # neighbours whose contribution to the first layer is looked up together: 4**4 rows
_BLOCK_BASES = 2048
_INT16_MAX = 32767


@dataclass(frozen=True, slots=True)
class Levels:
    """The pore's signal while each base is the newest in it.

    Attributes
    ----------
    mean_B
        Current in table units (see `signal.PA_PER_UNIT`), (B,) float32.
    log_sd_B
        Natural log of the current's standard deviation within the base, in table units, (B,) float32.
    log_dwell_B
        Natural log of the base's dwell time, up to a constant for the whole read, (B,) float32.
    """

    mean_B: F32
    log_sd_B: F32
    log_dwell_B: F32


class PoreModel:
    """Predicts the levels of a sequence.

    Parameters
    ----------
    kmer_means_K
        Mean current of each 9-mer in table units, (4**9,) float32. The index has the first base in its highest bits
        (A 0, C 1, G 2, T 3); the base that arrives is the seventh.
    layers
        Three layers as (weights (O, I), biases (O)), float32, with SiLU after the first two. The inputs are the 23
        bases from `left` before to `right` after the one that arrives, one-hot (input 4 p + b is 1 where base b stands
        at place p), and last the 9-mer's mean: I = 93. The outputs are the level's difference from the 9-mer's mean,
        the log standard deviation and the log dwell, as in `Levels`.

    Raises
    ------
    ValueError
        The shapes do not fit together.

    Notes
    -----
    The first layer's weights are summed in advance for every combination of four neighbouring bases, so that it costs
    six lookups per base instead of 93 columns.
    """

    left = 12
    right = 10

    def __init__(self, kmer_means_K: F32, layers: Sequence[Layer]) -> None:
        if kmer_means_K.shape != (4**KMER_LEN,):
            raise ValueError(f"kmer_means_K must have shape ({4**KMER_LEN},), not {kmer_means_K.shape}")
        places = self.left + 1 + self.right
        widths = [4 * places + 1]
        for weight_OI, bias_O in layers:
            if weight_OI.shape != (bias_O.size, widths[-1]):
                raise ValueError(f"weights must have shape {(bias_O.size, widths[-1])}, not {weight_OI.shape}")
            widths.append(bias_O.size)
        if len(widths) != 4 or widths[-1] != 3:
            raise ValueError(f"there must be three layers, the last with 3 outputs, not layers of {widths[1:]} outputs")
        self.kmer_means_K = kmer_means_K.astype(np.float32)
        self.layers = [
            (weight_OI.astype(np.float32, order="C"), bias_O.astype(np.float32)) for weight_OI, bias_O in layers
        ]
        first_OI, first_bias_H = self.layers[0]
        tables = _summed_groups(np.ascontiguousarray(first_OI[:, :-1].T).reshape(places, 4, -1))
        self._first_rows = np.cumsum([0, *(len(table_WH) for table_WH in tables)])
        self._table_WH = torch.from_numpy(np.concatenate(tables))
        self._mean_weight_H = torch.from_numpy(first_OI[:, -1].copy())
        self._first_bias_H = torch.from_numpy(first_bias_H)
        self._later = [(torch.from_numpy(weight_OI), torch.from_numpy(bias_O)) for weight_OI, bias_O in self.layers[1:]]

    @classmethod
    def load(cls, path: Path | None = None) -> "PoreModel":
        """Read a file that `save` wrote; None means the bundled model, for R10.4.1 DNA at 400 bases/s.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file is not a pore model.
        """
        path = _SHIPPED if path is None else path
        try:
            with np.load(path, allow_pickle=False) as file:
                means_K = file["kmer_means_K"].astype(np.float32) * np.float32(file["kmer_mean_step"])
                layers = [(file[f"weight{i}_OI"], file[f"bias{i}_O"]) for i in range(3)]
        except (KeyError, ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is not a pore model: {error}") from error
        return cls(means_K, layers)

    def save(self, path: Path) -> None:
        """Write a compressed .npz: means as int16 in steps of at most 0.0002 units, weights as float16.

        Levels from the saved model are within a few thousandths of the original.
        """
        step = np.float32(np.abs(self.kmer_means_K).max() / _INT16_MAX)
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "kmer_means_K": np.round(self.kmer_means_K / step).astype(np.int16),
            "kmer_mean_step": np.array(step),
        }
        for i, (weight_OI, bias_O) in enumerate(self.layers):
            arrays |= {f"weight{i}_OI": weight_OI.astype(np.float16), f"bias{i}_O": bias_O.astype(np.float16)}
        with path.open("wb") as file:  # given a path, numpy would append .npz
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def levels(self, bases_B: npt.NDArray[np.uint8]) -> Levels:
        """Predict the levels of ``bases_B[left : len(bases_B) - right]``; the bases at the ends are only context.

        Parameters
        ----------
        bases_B
            0-3 for A, C, G, T, (B,) uint8.

        Raises
        ------
        ValueError
            There are fewer than left + right + 1 bases.
        """
        count = bases_B.size - self.left - self.right
        if count < 1:
            raise ValueError(f"{bases_B.size} bases are too few: one level needs {self.left + self.right + 1}")
        out_3B = np.empty((3, count), np.float32)
        for first in range(0, count, _BLOCK_BASES):
            size = min(_BLOCK_BASES, count - first)
            self._block(bases_B[first : first + size + self.left + self.right].astype(np.int64), out_3B[:, first:])
        return Levels(*out_3B)

    def _block(self, bases_B: npt.NDArray[np.int64], out_3B: F32) -> None:
        count = bases_B.size - self.left - self.right
        mean_B = torch.from_numpy(self.kmer_means_K[kmer_index(bases_B)])
        rows_BG = np.empty((count, self._first_rows.size - 1), np.int64)
        for group, at in enumerate(range(0, self.left + 1 + self.right, _GROUP)):
            width = min(_GROUP, self.left + 1 + self.right - at)
            rows_BG[:, group] = self._first_rows[group] + _index(bases_B, at, width, count)
        with torch.inference_mode():
            x_BH = torch.nn.functional.embedding_bag(torch.from_numpy(rows_BG), self._table_WH, mode="sum")
            x_BH = x_BH.add_(self._first_bias_H).addr_(mean_B, self._mean_weight_H)
            for weight_OI, bias_O in self._later:
                x_BH = torch.nn.functional.linear(torch.nn.functional.silu(x_BH, inplace=True), weight_OI, bias_O)
            x_BH[:, 0] += mean_B
            out_3B[:, :count] = x_BH.T.numpy()


def _summed_groups(weight_PBH: F32) -> list[F32]:
    """For each four places (fewer at the end), sum the weights of every combination: (4**places, H), first place
    highest."""
    tables = []
    for at in range(0, len(weight_PBH), _GROUP):
        table_WH = np.zeros((1, weight_PBH.shape[2]), np.float32)
        for weight_BH in weight_PBH[at : at + _GROUP]:
            table_WH = (table_WH[:, None] + weight_BH[None]).reshape(-1, weight_PBH.shape[2])
        tables.append(table_WH)
    return tables


def kmer_index(bases_B: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the index in `kmer_means_K` of the 9-mer of each base in ``bases_B[left : len(bases_B) - right]``.

    Parameters
    ----------
    bases_B
        0-3 for A, C, G, T, (B,).

    Returns
    -------
    npt.NDArray[np.int64]
        (B - left - right,)
    """
    count = bases_B.size - PoreModel.left - PoreModel.right
    return _index(bases_B, PoreModel.left - KMER_LEFT, KMER_LEN, count)


def _index(bases_B: npt.NDArray[np.integer], at: int, width: int, count: int) -> npt.NDArray[np.int64]:
    """For each of `count` bases, return the number that the `width` bases starting at `at` spell in base 4."""
    index_B = np.zeros(count, np.int64)
    for place in range(at, at + width):
        index_B = 4 * index_B + bases_B[place : place + count]
    return index_B
