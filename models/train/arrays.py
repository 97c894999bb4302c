"""Training arrays: an .npz file of reads, with the sample at which each base arrives.

Dimensions: S samples, B bases.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRead:
    """One read.

    Attributes
    ----------
    read_id
        The read's id.
    signal_pa_S
        Current in picoampere, float32, as measured.
    bases_B
        Bases 0-3, uint8.
    starts_B
        Sample at which each base arrives, float64; rising.
    sample_rate_hz
        Samples per second.
    """

    read_id: str
    signal_pa_S: npt.NDArray[np.float32]
    bases_B: npt.NDArray[np.uint8]
    starts_B: npt.NDArray[np.float64]
    sample_rate_hz: float


@dataclass(frozen=True, slots=True)
class ReadSet:
    """Reads to learn from, and reads that are only for validation."""

    training: list[TrainingRead]
    validation: list[TrainingRead]


def split(reads: Sequence[TrainingRead], validation: int) -> ReadSet:
    """Split off the last `validation` reads by sorted id, so the split does not depend on the order of files.

    Raises
    ------
    ValueError
        No read would be left to learn from.
    """
    if validation >= len(reads):
        raise ValueError(f"{validation} reads for validation leave none of {len(reads)} to learn from")
    ordered = sorted(reads, key=lambda read: read.read_id)
    return ReadSet(ordered[: len(ordered) - validation], ordered[len(ordered) - validation :])


def save_reads(path: Path, reads: ReadSet) -> None:
    """Write training arrays.

    Keys: `ids` and `rate` (Hz) of all reads; `train` and `valid`, the indices of the reads in each set; and for read i,
    `{i}_pa`, `{i}_bases` and `{i}_start`.
    """
    every = [*reads.training, *reads.validation]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "ids": np.array([read.read_id for read in every]),
        "rate": np.array([read.sample_rate_hz for read in every], np.float64),
        "train": np.arange(len(reads.training)),
        "valid": np.arange(len(reads.training), len(every)),
    }
    for i, read in enumerate(every):
        arrays |= {f"{i}_pa": read.signal_pa_S, f"{i}_bases": read.bases_B, f"{i}_start": read.starts_B}
    with path.open("wb") as file:  # given a path, numpy would append .npz
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_reads(path: Path) -> ReadSet:
    """Read training arrays. `rate` may also hold a single rate for all.

    Raises
    ------
    ValueError
        The file is not an .npz, or lacks a key.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            ids = file["ids"]  # each lookup decompresses the whole array
            rates = np.broadcast_to(file["rate"], len(ids))

            def read(i: int) -> TrainingRead:
                return TrainingRead(
                    read_id=str(ids[i]),
                    signal_pa_S=file[f"{i}_pa"].astype(np.float32),
                    bases_B=file[f"{i}_bases"],
                    starts_B=file[f"{i}_start"].astype(np.float64),
                    sample_rate_hz=float(rates[i]),
                )

            return ReadSet([read(i) for i in file["train"]], [read(i) for i in file["valid"]])
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not training arrays (`prepare` makes them): {error}") from error
