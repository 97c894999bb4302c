"""Check that the kernels give the same results on a device as on the emulator, and time them (for `make gpu-check`).

    python benchmarks/kernel_check.py --device cuda               compare results, then measure speeds
    python benchmarks/kernel_check.py --device cuda --small       a few small cases, for compute-sanitizer
    python benchmarks/kernel_check.py --device emulated --small   the same steps without a GPU

The emulator runs each source on the CPU; tests/kernels check it against NumPy, minimap2 and the CPU's decoder. Results
must be the same, except that base qualities may differ by 1. Exit codes: 0 the same, 1 different.

Dimensions: T time steps, N rows of a batch.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simulated_reads
from decode import made_up_scores

from porestream.kernels.align.aligner import PRESETS, load_reference
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.index import build_index, load_index
from porestream.kernels.align.mmi import Preset
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import Alignments
from porestream.kernels.decode.crf import CrfDecoder
from porestream.kernels.device import Device, EmulatedDevice, find_kernel_device

STAY_SCORE = 2.0
STRIDE = 6  # samples per time step, for the decoding speeds
BATCH_BYTES = 4 << 30
RUNS = 5
U8 = npt.NDArray[np.uint8]
Arrays = list[npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Case:
    """Something to compute on a device."""

    name: str
    compute: Callable[[Device], Arrays]
    tolerance: int = 0  # for the last array


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
    """Yield cases for every kernel, in all its forms."""
    for state_len in (3, 4, 5):
        scores_TNC = made_up_scores(40 if small else 600, 5 if small else 33, state_len)

        def decode(device: Device, state_len: int = state_len, scores: npt.NDArray[np.float32] = scores_TNC) -> Arrays:
            with device.in_order():
                on_device = device.xp.asarray(scores)
            calls = CrfDecoder(device, state_len, STAY_SCORE)(on_device)
            letters, qualities, moves, counts = (device.to_host(array) for array in calls)
            beyond = np.arange(letters.shape[1]) >= counts[:, None]
            letters[beyond], qualities[beyond] = 0, 0
            return [letters, moves, counts, qualities]

        yield Case(f"decode, {4**state_len} states", decode, tolerance=1)
    for packed in (True, False):
        form = "15-bit" if packed else "32-bit"
        for band in (250, 500, 751) if packed else (250, 500):
            for to_ends in (False, True):
                query, target = pairs(6 if small else 64, 200 if small else 3000, 0.1, band)

                def extend(
                    device: Device,
                    query: Pieces = query,
                    target: Pieces = target,
                    band: int = band,
                    to_ends: bool = to_ends,
                    packed: bool = packed,
                ) -> Arrays:
                    extender = Extender(device, BATCH_BYTES, packed=packed)
                    return arrays(extender(query, target, band=band, zdrop=400, end_bonus=10, to_ends=to_ends))

                yield Case(f"extend {'to both ends' if to_ends else 'with z-drop'}, band {band}, {form}", extend)
        for bases in (100, 300) if small else (200, 1000, 4000):
            query, target = pairs(3 if bases > 500 or small else 64, bases, 0.1, bases)

            def fill(device: Device, query: Pieces = query, target: Pieces = target, packed: bool = packed) -> Arrays:
                return arrays(Filler(device, BATCH_BYTES, packed=packed)(query, target))

            yield Case(f"fill, up to {bases} bases, {form}", fill)
    for preset in PRESETS.values():

        def align(device: Device, preset: Preset = preset) -> Arrays:
            return aligned(device, preset, 8 if small else 100)

        yield Case(f"align, {preset.name}", align, tolerance=1)


def aligned(device: Device, preset: Preset, count: int) -> Arrays:
    """Align reads from a made-up genome through all steps; the last array is the mapping qualities."""
    rng = np.random.default_rng(1)
    sequences = simulated_reads.genome(rng, 60_000)
    reads = simulated_reads.reads(rng, sequences, count, longest=3000)
    with tempfile.TemporaryDirectory() as name:
        fasta = Path(name) / "genome.fa"
        fasta.write_text("".join(f">c{number}\n{bases}\n" for number, bases in enumerate(sequences)))
        build_index(fasta, read_fasta(fasta), preset, Path(name) / "index")
        minimap2 = load_reference(fasta, preset=preset.name, cache_dir=None, threads=1, all_anchors=True)
        aligner = DeviceAligner(device, load_index(Path(name) / "index"), minimap2)
        found = aligner.align_batch(reads, md=False)
    each = [alignment for alignments in found for alignment in alignments or []]
    places = [(a.flag, a.reference_start, a.reference_end, a.score, a.edit_distance) for a in each]
    return [
        np.array([-1 if alignments is None else len(alignments) for alignments in found]),
        np.array(places),
        np.concatenate([alignment.cigar for alignment in each]),
        np.array([alignment.mapping_quality for alignment in each]),
    ]


def differences(device: Device, small: bool = False) -> list[str]:
    """Return what differs from the emulator in each case; empty if nothing does."""
    emulator = EmulatedDevice(arch=80 if device.arch >= 90 else 90)  # takes the other path, if there are two
    found = []
    for case in cases(small):
        ours, theirs = case.compute(device), case.compute(emulator)
        for place, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            tolerance = case.tolerance if place == len(ours) - 1 else 0
            if (
                our.shape != their.shape
                or np.abs(our.astype(np.int64) - their.astype(np.int64)).max(initial=0) > tolerance
            ):
                found.append(f"{case.name}: array {place} differs")
                break
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
