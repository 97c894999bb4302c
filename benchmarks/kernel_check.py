"""Check that the kernels give the same results on a device as on the emulator, and time them (for `make gpu-check`).

    python benchmarks/kernel_check.py --device cuda               compare results, then measure speeds
    python benchmarks/kernel_check.py --device cuda --small       a few small cases, for compute-sanitizer
    python benchmarks/kernel_check.py --device emulated --small   the same steps without a GPU

The emulator runs each source on the CPU; tests/kernels check it against NumPy, minimap2 and the CPU's decoder. Results
must be the same, except that base and mapping qualities may differ by 1, and half floats in their last place. Exit
codes: 0 the same, 1 different.

Dimensions: T time steps, N rows of a batch.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simulated_reads
import torch
from decode import made_up_scores

from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.index import build_index, load_index
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import Alignments
from porestream.kernels.decode.crf import CrfDecoder
from porestream.kernels.device import Device, EmulatedDevice, find_kernel_device
from porestream.kernels.network.passes import NetworkPasses

STAY_SCORE = 2.0
STRIDE = 6  # samples per time step, for the decoding speeds
BATCH_BYTES = 4 << 30
RUNS = 5
U8 = npt.NDArray[np.uint8]
Arrays = list[npt.NDArray[Any]]
Inputs = Mapping[str, npt.NDArray[Any]]
Pass = Callable[[Device, Inputs], Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to compute on a device.

    Attributes
    ----------
    inputs
        Makes the inputs, always the same.
    compute
        Computes the results from them.
    tolerance
        How far the last of the results may be off: integers, or half floats in their last place.
    """

    name: str
    inputs: Callable[[], Inputs]
    compute: Callable[[Device, Inputs], Arrays]
    tolerance: int = 0


def mutated(bases: U8, errors: float, rng: np.random.Generator) -> U8:
    """Make a read of these bases with substitutions, insertions and deletions in equal parts."""
    kind = rng.random(len(bases))
    substituted = np.where(kind < errors / 3, (bases + rng.integers(1, 4, len(bases))) % 4, bases)
    copies = np.where(kind < errors / 3, 1, np.where(kind < 2 * errors / 3, 0, np.where(kind < errors, 2, 1)))
    return np.repeat(substituted, copies).astype(np.uint8)


def pairs(count: int, bases: int, errors: float, seed: int) -> tuple[Pieces, Pieces]:
    """Make reads and their targets; a quarter end in junk, a quarter have a long gap, some bases are ambiguous."""
    rng = np.random.default_rng(seed)
    queries, targets = [], []
    for number in range(count):
        target = rng.integers(0, 4, max(1, int(bases * rng.uniform(0.5, 1)))).astype(np.uint8)
        query = mutated(target, errors, rng)
        middle = len(query) // 2
        if number % 4 == 1:
            query = np.concatenate([query[:middle], rng.integers(0, 4, middle).astype(np.uint8)])
        if number % 4 == 2:
            query = np.concatenate([query[:middle], query[middle + len(query) // 20 :]])
        query = query if len(query) else target.copy()
        query[rng.random(len(query)) < 0.002] = 4
        queries.append(query)
        targets.append(target)
    return Pieces.of(queries), Pieces.of(targets)


def arrays(found: Alignments) -> Arrays:
    """Return all arrays of the alignments."""
    return [getattr(found, field.name) for field in fields(found)]


def cases(small: bool) -> Iterator[Case]:
    """Yield cases for every kernel, in all its forms; the small ones are for compute-sanitizer and rehearsals."""
    for state_len, steps, rows in ((3, 500, 18), (4, 300, 9), (5, 120, 6)):
        yield Case(
            name=f"decode, {4**state_len} states",
            inputs=partial(_scores, 40 if small else steps, 5 if small else rows, state_len),
            compute=partial(_decoded, state_len),
            tolerance=1,
        )
    yield Case(
        name="decode, halves",
        inputs=partial(_scores, 40, 5, 4),
        compute=partial(_decoded, 4, dtype=np.float16),
        tolerance=1,
    )
    yield Case(name="scores finished", inputs=partial(_halves, scores=(40, 5, 256)), compute=_finished, tolerance=1)
    for band in (250, 500, 751):
        for to_ends in (False, True):
            yield Case(
                name=f"extend {'to both ends' if to_ends else 'with z-drop'}, band {band}",
                inputs=partial(_pairs, *((6, 200) if small else (64, 3000)), seed=band),
                compute=partial(_extended, band, to_ends),
            )
    for bases in (100, 300) if small else (200, 1000, 4000):
        yield Case(
            name=f"fill, up to {bases} bases",
            inputs=partial(_pairs, 3 if bases > 500 or small else 64, bases, seed=bases),
            compute=_filled,
        )
    for name in PRESETS:
        yield Case(
            name=f"align, {name}",
            inputs=partial(_genome_and_reads, 8 if small else 100),
            compute=partial(_aligned, name),
            tolerance=1,
        )
    rows = 3 if small else 13
    for is_hard in (False, True):
        yield Case(
            name=f"LSTM states, {'hard' if is_hard else 'exact'}",
            inputs=partial(_halves, gates=(rows, 4 * 1024), cells=(rows, 1024)),
            compute=partial(_next_states, is_hard),
            tolerance=1,
        )
    passes: dict[str, tuple[Pass, dict[str, tuple[int, ...]]]] = {
        "rotary": (_rotated, {"qkv": (rows, 9, 3 * 512)}),
        "norm": (_normed, {"added": (rows, 9, 512), "x": (rows, 9, 512), "weight": (512,)}),
        "SwiGLU": (_gated, {"both": (rows, 9, 2 * 2048)}),
    }
    for name, (compute, sizes) in passes.items():
        yield Case(name=f"transformer, {name}", inputs=partial(_halves, **sizes), compute=compute, tolerance=1)


def _scores(steps: int, rows: int, state_len: int) -> Inputs:
    """In steps of 1/24, so that a byte holds one."""
    return {"scores": np.round(24 * made_up_scores(steps, rows, state_len)).astype(np.int8)}


def _finished(device: Device, inputs: Inputs) -> Arrays:
    scores_TNC = _tensors(device, inputs)["scores"]
    CrfDecoder(device, 3, STAY_SCORE).finish_scores(scores_TNC, True, 5.0, 4.5)
    return [_on_host(device, scores_TNC)]


def _decoded(state_len: int, device: Device, inputs: Inputs, dtype: type[np.floating[Any]] = np.float32) -> Arrays:
    with device.in_order():
        scores_TNC = device.xp.asarray((inputs["scores"].astype(np.float32) / 24).astype(dtype))
    calls = CrfDecoder(device, state_len, STAY_SCORE)(scores_TNC)
    letters, qualities, moves, counts = (device.to_host(array) for array in calls)
    beyond = np.arange(letters.shape[1]) >= counts[:, None]
    letters[beyond], qualities[beyond] = 0, 0
    return [letters, moves, counts, qualities]


def _pairs(count: int, bases: int, seed: int) -> Inputs:
    named = zip(("query", "target"), pairs(count, bases, 0.1, seed), strict=True)
    return {f"{name} {part}": array for name, pieces in named
            for part, array in (("codes", pieces.codes), ("lengths", pieces.length_N))}  # fmt: skip


def _pieces(inputs: Inputs) -> tuple[Pieces, Pieces]:
    query, target = (
        Pieces.of(np.split(inputs[f"{name} codes"][:-1], np.cumsum(inputs[f"{name} lengths"])[:-1]))
        for name in ("query", "target")
    )
    return query, target


def _extended(band: int, to_ends: bool, device: Device, inputs: Inputs) -> Arrays:
    extender = Extender(device, BATCH_BYTES)
    return arrays(extender(*_pieces(inputs), band=band, zdrop=400, end_bonus=10, to_ends=to_ends))


def _filled(device: Device, inputs: Inputs) -> Arrays:
    return arrays(Filler(device, BATCH_BYTES)(*_pieces(inputs)))


def _genome_and_reads(count: int) -> Inputs:
    rng = np.random.default_rng(1)
    sequences = simulated_reads.genome(rng, 60_000)
    reads = [bases for _, bases in simulated_reads.reads(rng, sequences, count, longest=3000)]
    return {"genome": np.array(" ".join(sequences)), "reads": np.array(" ".join(reads))}


def _aligned(preset: str, device: Device, inputs: Inputs) -> Arrays:
    """Align reads through all steps; the last array is the mapping qualities."""
    with tempfile.TemporaryDirectory() as name:
        fasta = Path(name) / "genome.fa"
        sequences = str(inputs["genome"]).split()
        fasta.write_text("".join(f">c{number}\n{bases}\n" for number, bases in enumerate(sequences)))
        build_index(fasta, read_fasta(fasta), PRESETS[preset], Path(name) / "index")
        minimap2 = load_reference(fasta, preset=preset, cache_dir=None, threads=1, all_anchors=True)
        aligner = DeviceAligner(device, load_index(Path(name) / "index"), minimap2)
        reads = [(f"read-{number}", bases) for number, bases in enumerate(str(inputs["reads"]).split())]
        found = aligner.align_batch(reads, md=False)
    each = [alignment for alignments in found for alignment in alignments or []]
    places = [(a.flag, a.reference_start, a.reference_end, a.score, a.edit_distance) for a in each]
    return [
        np.array([-1 if alignments is None else len(alignments) for alignments in found]),
        np.array(places),
        np.concatenate([alignment.cigar for alignment in each]),
        np.array([alignment.mapping_quality for alignment in each]),
    ]


def _halves(**sizes: tuple[int, ...]) -> Inputs:
    """Half floats, from tiny ones to such that every function saturates."""
    rng = np.random.default_rng(1)
    return {name: (3 * rng.standard_normal(size)).astype(np.float16) for name, size in sizes.items()}


def _tensors(device: Device, inputs: Inputs) -> dict[str, torch.Tensor]:
    place = "cpu" if device.name == "emulated" else device.name
    tensors = {name: torch.from_numpy(array.copy()).to(place) for name, array in inputs.items()}
    if place != "cpu":
        torch.cuda.synchronize()  # the kernels run in a stream of their own
    return tensors


def _on_host(device: Device, tensor: torch.Tensor) -> npt.NDArray[np.float16]:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return tensor.cpu().numpy()


def _next_states(is_hard: bool, device: Device, inputs: Inputs) -> Arrays:
    tensors = _tensors(device, inputs)
    hidden_NC, cells_NC = torch.zeros_like(tensors["cells"]), tensors["cells"].float()
    NetworkPasses(device).next_states(tensors["gates"], cells_NC, hidden_NC, is_hard)
    return [_on_host(device, torch.cat([cells_NC.half(), hidden_NC]))]


def _rotated(device: Device, inputs: Inputs) -> Arrays:
    qkv_NTF = _tensors(device, inputs)["qkv"]
    angles_TD = torch.arange(9)[:, None] / 10.0 ** torch.arange(32)
    NetworkPasses(device).rotated(qkv_NTF, angles_TD.cos().to(qkv_NTF.device), angles_TD.sin().to(qkv_NTF.device), 8)
    return [_on_host(device, qkv_NTF)]


def _normed(device: Device, inputs: Inputs) -> Arrays:
    tensors = _tensors(device, inputs)
    return [_on_host(device, NetworkPasses(device).normed(tensors["added"], tensors["x"], tensors["weight"], 2.5))]


def _gated(device: Device, inputs: Inputs) -> Arrays:
    return [_on_host(device, NetworkPasses(device).gated(_tensors(device, inputs)["both"]))]


def difference(case: Case, ours: Arrays, theirs: Arrays) -> str | None:
    """Return what differs; None if nothing does, or only as much as the case tolerates."""
    for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = case.tolerance if place == len(ours) - 1 else 0
        if our.shape != their.shape:
            return f"array {place} has the shape {our.shape}, not {their.shape}"
        off = np.abs(_ordered(our) - _ordered(their))
        if off.max(initial=0) > tolerance:
            return (
                f"array {place}: {np.count_nonzero(off > tolerance):,} of {off.size:,} differ, by up to {off.max():,}"
            )
    return None


def _ordered(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return integers whose differences count the steps between the values."""
    if array.dtype != np.float16:
        return array.astype(np.int64)
    bits = array.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def differences(device: Device, small: bool = False) -> list[str]:
    """Return what differs from the emulator in each case; empty if nothing does."""
    emulator = EmulatedDevice(arch=80 if device.arch >= 90 else 90)  # takes the other path, if there are two
    found = []
    for case in cases(small):
        inputs = case.inputs()
        differs = difference(case, case.compute(device, inputs), case.compute(emulator, inputs))
        found += [f"{case.name}: {differs}"] if differs else []
    return found


@dataclass(frozen=True, slots=True)
class Speed:
    """A kernel's speed with its transfers, the median of RUNS."""

    name: str
    figure: float
    unit: str


def in_band_cells(query: Pieces, target: Pieces, band: int) -> int:
    """Count the cells (row, column) of all tasks with |column - row| <= band."""
    cells = 0
    for rows, columns in zip(query.length_N.tolist(), target.length_N.tolist(), strict=True):
        row = np.arange(1, rows + 1, dtype=np.int64)
        cells += int(np.maximum(0, np.minimum(columns, row + band) - np.maximum(1, row - band) + 1).sum())
    return cells


def median_seconds(device: Device, work: Callable[[], object]) -> float:
    """Return the median of RUNS times, after one warm-up run, each until the device is done."""
    times = []
    for _ in range(RUNS + 1):
        started_s = time.perf_counter()
        work()
        with device.in_order():
            device.to_host(device.xp.zeros(1))
        times.append(time.perf_counter() - started_s)
    return sorted(times[1:])[RUNS // 2]


def speeds(device: Device, small: bool = False) -> list[Speed]:
    """Measure cells and bases per second."""
    found = []
    for state_len in (3, 4, 5):
        T, N = (40, 4) if small else (2000, 256 if state_len == 5 else 512)
        with device.in_order():  # repeat a few rows' scores, as making them up takes longer than decoding
            scores_TNC = device.xp.repeat(device.xp.asarray(made_up_scores(T, 4, state_len)), N // 4, axis=1)
        decoder = CrfDecoder(device, state_len, STAY_SCORE)
        bases = int(device.to_host(decoder(scores_TNC).counts_N).sum())
        seconds = median_seconds(device, partial(decoder, scores_TNC))
        found.append(Speed(f"decode, {4**state_len} states, {N} rows", bases / seconds / 1e6, "M bases/s"))
        found.append(Speed("the same, stride 6", T * N * STRIDE / seconds / 1e6, "M samples/s"))
    for band in (250, 500, 751):
        query, target = pairs(4 if small else 1024, 300 if small else 4000, 0.1, 7)
        extender = Extender(device, BATCH_BYTES)
        seconds = median_seconds(device, partial(extender, query, target, band=band, to_ends=True))
        found.append(Speed(f"extend, band {band}", in_band_cells(query, target, band) / seconds / 1e9, "GCUPS in band"))
    for bases in (250, 2000):
        query, target = pairs(4 if small else 8192 * 250 // bases, bases, 0.1, 8)
        filler = Filler(device, BATCH_BYTES)
        seconds = median_seconds(device, partial(filler, query, target))
        cells = int((query.length_N.astype(np.int64) * target.length_N).sum())
        found.append(Speed(f"fill, up to {bases} bases", cells / seconds / 1e9, "GCUPS"))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the check and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulated (default: cuda)")
    parser.add_argument("--small", action="store_true", help="few small cases, no speeds")
    options = parser.parse_args(arguments)
    device = find_kernel_device(options.device)
    found = differences(device, options.small)
    for line in found or ["the results are the same as on the emulator"]:
        print(line)
    for speed in [] if options.small else speeds(device):
        print(f"{speed.name}: {speed.figure:,.2f} {speed.unit}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
