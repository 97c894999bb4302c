"""Compare alignment on a device with minimap2 on all cores: agreement, speed, and the time of each kernel.

    python benchmarks/alignment.py                                        reads from a made-up genome, on the emulator
    python benchmarks/alignment.py --device cuda --reference REF --reads READS.fastq

The emulator's speed says nothing about a GPU's. minimap2 considers every anchor in reach (max_chain_skip is infinite),
as the kernels do.
"""

import argparse
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import simulated_reads
import torch

from porestream.kernels import source
from porestream.kernels.align.aligner import PRESETS, REVERSE, SECONDARY, Alignment, load_reference
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.fasta import read_fasta
from porestream.kernels.align.hits import Failure
from porestream.kernels.align.index import build_index, load_index
from porestream.kernels.device import Device, find_kernel_device

Read = tuple[str, str]
_REPEATS = 3


@dataclass(kw_only=True)
class Comparison:
    """How the alignments of the same reads compare."""

    kinds: Counter[str]
    sure: int = 0
    sure_same_place: int = 0
    mapq_near: int = 0
    score_at_least: int = 0
    mapped: int = 0


KINDS = {"same", "cigar", "score", "mapq", "secondary", "supplementary", "ends", "place"}
"""How two alignments of a read may differ: not at all, in CIGARs with the same score, in scores, only in MAPQ, in their
secondary or supplementary alignments, in where the primary ends, or in its place. This covers every case."""


def kind_of(ours: list[Alignment], theirs: list[Alignment]) -> str:
    def places(found: list[Alignment]) -> list[tuple[object, ...]]:
        return [(a.flag, a.reference_name, a.reference_start, a.reference_end) for a in found]

    def whole(found: list[Alignment]) -> list[tuple[object, ...]]:
        return [
            (*place, a.mapping_quality, a.cigar.tobytes(), a.score, a.edit_distance, a.md, a.divergence)
            for place, a in zip(places(found), found, strict=True)
        ]

    if whole(ours) == whole(theirs):
        return "same"
    if places(ours) == places(theirs):
        if [a.score for a in ours] != [a.score for a in theirs]:
            return "score"
        return "cigar" if [a.cigar.tobytes() for a in ours] != [a.cigar.tobytes() for a in theirs] else "mapq"
    if places(ours)[:1] != places(theirs)[:1]:
        return "ends" if ours and theirs and is_same_place(ours[0], theirs[0]) else "place"
    primary = [[place for place, a in zip(places(x), x, strict=True) if not a.flag & SECONDARY] for x in (ours, theirs)]
    return "secondary" if primary[0] == primary[1] else "supplementary"


def is_same_place(one: Alignment, other: Alignment) -> bool:
    """Whether they are on the same strand and overlap."""
    return (
        one.reference_name == other.reference_name
        and (one.flag ^ other.flag) & REVERSE == 0
        and one.reference_start < other.reference_end
        and other.reference_start < one.reference_end
    )


def compare(ours: list[list[Alignment]], theirs: list[list[Alignment]]) -> Comparison:
    result = Comparison(kinds=Counter(kind_of(*pair) for pair in zip(ours, theirs, strict=True)))
    for mine, other in zip(ours, theirs, strict=True):
        if not other:
            continue
        result.mapped += 1
        result.score_at_least += bool(mine) and mine[0].score >= other[0].score
        result.mapq_near += bool(mine) and abs(mine[0].mapping_quality - other[0].mapping_quality) <= 1
        if other[0].mapping_quality >= 10:
            result.sure += 1
            result.sure_same_place += bool(mine) and is_same_place(mine[0], other[0])
    return result


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The results of `measure`; speeds are in million bases per second."""

    preset: str
    reads: int
    bases: int
    comparison: Comparison
    fallbacks: Counter[Failure]
    device_speed: float
    minimap2_speed: float
    cores: int
    shares: dict[str, float]
    index_bytes_a_base: float


@contextmanager
def timed_kernels(device: Device) -> Iterator[dict[str, float]]:
    """Measure the seconds spent in each kernel, by name. Waiting for each kernel adds some time of its own."""
    seconds: defaultdict[str, float] = defaultdict(float)
    launch = source.Kernel.__call__

    def timed(kernel: source.Kernel, *sizes: int, **arguments: Any) -> None:
        began_s = time.perf_counter()
        launch(kernel, *sizes, **arguments)
        if device.name.startswith("cuda"):
            torch.cuda.synchronize()
        seconds[kernel.name] += time.perf_counter() - began_s

    source.Kernel.__call__ = timed  # type: ignore[method-assign,assignment]
    try:
        yield seconds
    finally:
        source.Kernel.__call__ = launch  # type: ignore[method-assign]


def measure(device: Device, reference: Path, reads: list[Read], preset: str, folder: Path) -> Figures:
    """Align the reads on both, and return the medians of three runs."""
    cores = os.cpu_count() or 1
    minimap2 = load_reference(reference, preset=preset, cache_dir=None, threads=cores, all_anchors=True)
    build_index(reference, read_fasta(reference), PRESETS[preset], folder / f"{preset.replace(':', '-')}.psindex")
    index = load_index(folder / f"{preset.replace(':', '-')}.psindex")
    aligner = DeviceAligner(device, index, minimap2)
    bases = sum(len(sequence) for _, sequence in reads)
    aligner.align_batch(reads[:2], md=False)  # compiles
    with ThreadPoolExecutor(cores) as pool:
        theirs = list(pool.map(lambda read: minimap2.align(*read, md=True), reads))
        minimap2_s = _median_s(lambda: list(pool.map(lambda read: minimap2.align(*read, md=True), reads)))
    aligner.fallbacks.clear()
    with timed_kernels(device) as seconds:
        began_s = time.perf_counter()
        batch = aligner.align_batch(reads, md=True)
        whole_s = time.perf_counter() - began_s
    fallbacks = Counter(aligner.fallbacks)
    ours = [
        aligner.align_elsewhere(*read, md=True) if found is None else found
        for read, found in zip(reads, batch, strict=True)
    ]
    device_s = _median_s(lambda: aligner.align_batch(reads, md=True)) if device.name != "emulated" else whole_s
    shares = {name: taken / whole_s for name, taken in seconds.items()}
    return Figures(
        preset=preset,
        reads=len(reads),
        bases=bases,
        comparison=compare(ours, theirs),
        fallbacks=fallbacks,
        device_speed=bases / device_s / 1e6,
        minimap2_speed=bases / minimap2_s / 1e6,
        cores=cores,
        shares=shares | {"all else": 1 - sum(shares.values())},
        index_bytes_a_base=index.device_bytes / int(index.offset[-1]),
    )


def _median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return float(np.median(times))


def made_up(folder: Path, count: int) -> tuple[Path, list[Read]]:
    """Make up a genome and reads from it."""
    rng = np.random.default_rng(1)
    sequences = simulated_reads.genome(rng)
    path = folder / "genome.fa"
    path.write_text("".join(f">c{number}\n{bases}\n" for number, bases in enumerate(sequences)))
    return path, simulated_reads.reads(rng, sequences, count)


def table(found: list[Figures]) -> str:
    """Return the figures as a Markdown table."""

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.1%}" if whole else "-"

    def counted(kinds: Counter[str], but: str = "") -> str:
        return ", ".join(f"{kind} {count}" for kind, count in kinds.items() if kind != but) or "none"

    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("reads, bases", lambda f: f"{f.reads:,}, {f.bases:,}"),
        ("the same in everything", lambda f: share(f.comparison.kinds["same"], f.reads)),
        (
            "how the others differ",
            lambda f: counted(f.comparison.kinds, "same"),
        ),
        ("same place, of MAPQ >= 10", lambda f: share(f.comparison.sure_same_place, f.comparison.sure)),
        ("MAPQ within 1", lambda f: share(f.comparison.mapq_near, f.comparison.mapped)),
        ("score at least minimap2's", lambda f: share(f.comparison.score_at_least, f.comparison.mapped)),
        ("left to minimap2", lambda f: counted(Counter({one.name.lower(): f.fallbacks[one] for one in f.fallbacks}))),
        ("index, bytes a base", lambda f: f"{f.index_bytes_a_base:.2f}"),
        ("Mbase/s", lambda f: f"{f.device_speed:,.3f}"),
        ("minimap2, Mbase/s", lambda f: f"{f.minimap2_speed:,.2f} ({f.cores} cores)"),
        *(
            (f"time in {name}", lambda f, name=name: f"{f.shares.get(name, 0):.1%}")
            for name in dict.fromkeys(name for f in found for name in f.shares)
        ),
    ]
    lines = [["", *(f.preset for f in found)], ["---"] * (len(found) + 1)]
    lines += [[name, *(value(f) for f in found)] for name, value in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="emulated", help="emulated, cuda or cuda:N (default: emulated)")
    parser.add_argument("--reference", type=Path, help="FASTA (default: a made-up genome)")
    parser.add_argument("--reads", type=Path, help="FASTQ or FASTA (default: made up)")
    parser.add_argument("--count", type=int, default=500, help="number of made-up reads (default: 500)")
    arguments = parser.parse_args()
    device = find_kernel_device(arguments.device)
    with tempfile.TemporaryDirectory() as name:
        if arguments.reference and arguments.reads:
            with pysam.FastxFile(str(arguments.reads)) as file:
                reads = [(entry.name or "", entry.sequence or "") for entry in file]
            reference = arguments.reference
        else:
            reference, reads = made_up(Path(name), arguments.count)
        print(table([measure(device, reference, reads, preset, Path(name)) for preset in PRESETS]))


if __name__ == "__main__":
    main()
