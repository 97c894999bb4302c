"""The golden results in a kit: where they are, how they are made on a CPU, and how they are read.

Dimensions: N rows of a batch, M samples, T time steps, C scores.
"""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from kernel_check import Arrays, Case, Inputs
from shapes import write_shape

from porestream.kernels.align.aligner import Alignment
from porestream.models.call.basecaller import Basecaller, decode_settings
from porestream.models.call.chunk import Chunker
from porestream.models.call.decode import Decoder
from porestream.models.call.runner import F32
from porestream.models.files.bundle import load_bundle
from porestream.models.files.config import ModelConfig

ROWS = 16
EVERY_STEP = 100
"""Scores are kept of one in so many time steps, the ends of chunks among them."""
SAMPLES_A_LEVEL = 9


class NetworkResult(NamedTuple):
    """What a network makes of `chunks(samples)`, computed on a CPU in fp32.

    Attributes
    ----------
    scores_TNC
        float16, of every EVERY_STEP-th step.
    bases
        Of each chunk.
    """

    scores_TNC: npt.NDArray[np.float16]
    bases: list[str]


def _case_path(kit: Path, name: str) -> Path:
    return kit / "kernels" / f"{re.sub(r'[^a-zA-Z0-9]+', '-', name)}.npz"


def save_case(kit: Path, case: Case, results: Arrays, inputs: Inputs) -> None:
    """Keep a kernel case's inputs and results."""
    path = _case_path(kit, case.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"in {name}": array for name, array in inputs.items()}
    np.savez_compressed(path, **named, **{f"out {place}": array for place, array in enumerate(results)})  # type: ignore[arg-type]


def load_case(kit: Path, name: str) -> tuple[Inputs, Arrays]:
    """Read them."""
    with np.load(_case_path(kit, name)) as file:
        inputs = {key[3:]: file[key] for key in file if key.startswith("in ")}
        return inputs, [file[f"out {place}"] for place in range(len(file.files) - len(inputs))]


def chunks(samples: int, rows: int = ROWS) -> list[F32]:
    """Make chunks of normalised signal: levels with noise, from integers, which NumPy promises to keep."""
    raw = np.random.PCG64(1).random_raw(rows * samples).astype(np.uint64).reshape(rows, samples)
    noise_NM = ((raw & 0xFFFF).astype(np.float32) + (raw >> 16 & 0xFFFF).astype(np.float32)) / 65536 - 1
    levels_NM = (raw >> 32 & 0xFFFF)[:, ::SAMPLES_A_LEVEL].repeat(SAMPLES_A_LEVEL, axis=1)[:, :samples]
    return [*np.ascontiguousarray(levels_NM.astype(np.float32) / 16384 - 2 + noise_NM / 2, np.float32)]


def longest_chunk(config: ModelConfig) -> int:
    """Return the samples of a model's longest chunks."""
    chunker = Chunker(config.chunk_size, config.overlap, config.stride, config.chunk_unit, config.coarse_stride)
    return chunker.lengths[0]


def kept_steps(scores_TNC: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the steps of which the scores are kept."""
    return np.concatenate([scores_TNC[::EVERY_STEP], scores_TNC[-1:]])


def network_result(shape: str, folder: Path) -> NetworkResult:
    """Compute it on this CPU."""
    bundle = load_bundle(write_shape(shape, folder))
    caller = Basecaller(bundle, "fp32")
    decoder = Decoder(bundle.config.state_len, decode_settings(bundle.config))
    samples = longest_chunk(bundle.config)
    kept, bases = [], []
    for batch in (chunks(samples)[first : first + caller.rows] for first in range(0, ROWS, caller.rows)):
        scores_TNC = caller.runner(batch, samples)[:, : len(batch)]
        kept.append(kept_steps(scores_TNC).astype(np.float16))
        whole_TNC = np.ascontiguousarray(scores_TNC)
        bases += [decoder(whole_TNC, row).bases_B.tobytes().decode() for row in range(len(batch))]
    return NetworkResult(np.concatenate(kept, axis=1), bases)


def save_network(kit: Path, shape: str, result: NetworkResult) -> None:
    """Keep a network's result."""
    path = _network_path(kit, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, scores_TNC=result.scores_TNC, bases=np.array(result.bases))


def load_network(kit: Path, shape: str) -> NetworkResult:
    """Read it."""
    with np.load(_network_path(kit, shape)) as file:
        return NetworkResult(file["scores_TNC"], file["bases"].tolist())


def _network_path(kit: Path, shape: str) -> Path:
    return kit / "networks" / f"{shape.replace(' ', '-')}.npz"


def save_alignments(kit: Path, preset: str, found: Sequence[Sequence[Alignment]]) -> None:
    """Keep reads' alignments."""
    each = [[asdict(alignment) | {"cigar": alignment.cigar.tolist()} for alignment in of_read] for of_read in found]
    with gzip.open(_alignments_path(kit, preset), "wt") as file:
        json.dump(each, file)


def load_alignments(kit: Path, preset: str) -> list[list[Alignment]]:
    """Read them."""
    with gzip.open(_alignments_path(kit, preset), "rt") as file:
        each = json.load(file)
    return [
        [Alignment(**fields | {"cigar": np.array(fields["cigar"], np.uint32)}) for fields in of_read]
        for of_read in each
    ]


def _alignments_path(kit: Path, preset: str) -> Path:
    return kit / "alignment" / f"{preset.replace(':', '-')}.json.gz"


def save_reads(kit: Path, reads: Sequence[tuple[str, str]]) -> None:
    """Keep the reads that are aligned: their names and bases."""
    with gzip.open(kit / "alignment" / "reads.json.gz", "wt") as file:
        json.dump(reads, file)


def load_reads(kit: Path) -> list[tuple[str, str]]:
    """Read them."""
    with gzip.open(kit / "alignment" / "reads.json.gz", "rt") as file:
        return [(name, bases) for name, bases in json.load(file)]
