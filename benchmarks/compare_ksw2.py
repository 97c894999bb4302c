"""Compare extend and fill on the emulator with minimap2's own ksw_extd2: scores, ends, z-drop, CIGARs, speed on a CPU.

    python benchmarks/compare_ksw2.py --ksw2 libksw2.so

The library is minimap2's ksw2_extd2_sse.c and kalloc.c as a shared library, built outside this project. Prints
Markdown. ksw2 also reports a task as dropped if its band ends before both sequences do; that has its own column.
"""

import argparse
import ctypes
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from kernel_check import mutated

from porestream.kernels.align.cigar import describe
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import MINIMAP2, Alignments
from porestream.kernels.device import EmulatedDevice

U8 = npt.NDArray[np.uint8]
ZDROP, BAND = 400, 751
EXTENSION_ONLY, RIGHT, REVERSED_CIGAR = 0x40, 0x02, 0x80  # ksw2.h
BYTES = 2 << 30


class Extension(ctypes.Structure):
    """ksw_extz_t from ksw2.h."""

    _fields_ = (
        ("max_and_dropped", ctypes.c_uint32),
        *((name, ctypes.c_int) for name in ("max_q", "max_t", "mqe", "mqe_t", "mte", "mte_q", "score")),
        *((name, ctypes.c_int) for name in ("m_cigar", "n_cigar", "reach_end")),
        ("cigar", ctypes.POINTER(ctypes.c_uint32)),
    )


class Ksw2:
    """minimap2's extension code with minimap2's scores."""

    def __init__(self, library: Path) -> None:
        self._align = ctypes.CDLL(str(library)).ksw_extd2_sse
        self._scores = np.full((5, 5), -MINIMAP2.mismatch, np.int8)
        np.fill_diagonal(self._scores, MINIMAP2.match)
        self._scores[4], self._scores[:, 4] = -MINIMAP2.ambiguous, -MINIMAP2.ambiguous

    def __call__(self, query: U8, target: U8, band: int, zdrop: int, flags: int) -> tuple[Extension, list[int]]:
        found = Extension()
        gaps = (MINIMAP2.open1, MINIMAP2.extend1, MINIMAP2.open2, MINIMAP2.extend2)
        self._align(
            None,
            len(query),
            query.ctypes.data_as(ctypes.c_void_p),
            len(target),
            target.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int8(5),
            self._scores.ctypes.data_as(ctypes.c_void_p),
            *(ctypes.c_int8(gap) for gap in gaps),
            band,
            zdrop,
            0,
            flags,
            ctypes.byref(found),
        )
        return found, [found.cigar[place] for place in range(found.n_cigar)]


def tasks(count: int, seed: int) -> list[tuple[U8, U8]]:
    """Make reads of 200 to 2,000 bases with 1-15% errors; some end in junk, or have gaps of 60 to 900 bases, or N."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        target = rng.integers(0, 4, int(rng.integers(200, 2001))).astype(np.uint8)
        query = mutated(target, rng.uniform(0.01, 0.15), rng)
        middle = len(query) // 2
        if number % 5 == 1:
            query = np.concatenate([query[:middle], rng.integers(0, 4, middle).astype(np.uint8)])
        if number % 5 == 2:
            query = np.concatenate([query[:middle], query[middle + int(rng.integers(60, max(61, middle))) :]])
        if number % 5 == 3:
            inserted = rng.integers(0, 4, int(rng.integers(60, 900))).astype(np.uint8)
            query = np.concatenate([query[:middle], inserted, query[middle:]])
        if number % 5 == 4:
            query[rng.random(len(query)) < 0.01] = 4
        made.append((query, target))
    return made


def structural_variants(count: int, seed: int) -> list[tuple[U8, U8]]:
    """Make pairs with an insertion or deletion of 0.1 to 15 kb between flanks of 100 to 400 bases."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        flanks = rng.integers(0, 4, int(rng.integers(200, 800))).astype(np.uint8)
        longer = rng.integers(0, 4, int(np.exp(rng.uniform(np.log(100), np.log(15_000))))).astype(np.uint8)
        other, middle = mutated(flanks, 0.08, rng), len(flanks) // 2
        with_variant = np.concatenate([flanks[:middle], longer, flanks[middle:]])
        made.append((other, with_variant) if number % 2 else (with_variant, other))
    return made


def pieces(made: list[tuple[U8, U8]], *, backwards: bool = False) -> tuple[Pieces, Pieces]:
    """Return the queries and the targets."""
    queries, targets = (Pieces.of([task[side] for task in made], backwards=backwards) for side in (0, 1))
    return queries, targets


def compare(
    found: Alignments, theirs: list[tuple[Extension, list[int]]], made: list[tuple[U8, U8]], kind: str
) -> Counter[str]:
    """Count the tasks for which each part of the result is equal."""
    counts: Counter[str] = Counter(tasks=len(made))
    for task, ((query, target), (extension, cigar)) in enumerate(zip(made, theirs, strict=True)):
        score = extension.score if kind == "fill" else extension.max_and_dropped & 0x7FFFFFFF
        ours = found.cigar_of(task).tolist()
        rows, columns = int(found.query_N[task]), int(found.target_N[task])
        part = (query[-rows:], target[-columns:]) if kind == "left" else (query[:rows], target[:columns])
        counts["score"] += int(found.score_N[task]) == score
        counts["rescored"] += not ours or describe(found.cigar_of(task), *part, md=False).score == score
        counts["CIGAR"] += ours == cigar
        if kind != "fill":
            counts["end"] += (rows, columns) == (extension.max_q + 1, extension.max_t + 1)
            dropped = bool(extension.max_and_dropped >> 31)
            band_ended = dropped and not found.dropped_N[task] and abs(len(query) - len(target)) > BAND - 10
            counts["dropped"] += bool(found.dropped_N[task]) == dropped
            counts["band ended"] += band_ended
    return counts


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ksw2", type=Path, required=True, help="shared library with ksw_extd2_sse")
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()
    ksw2 = Ksw2(options.ksw2)
    extender, filler = Extender(EmulatedDevice(), BYTES), Filler(EmulatedDevice(), BYTES)
    made, variants = tasks(options.tasks, 1), structural_variants(options.tasks // 5, 2)
    head = ("what", "tasks", "score", "end", "z-drop", "its band ended", "rescored", "the same CIGAR")
    print(f"| {' | '.join((*head, 'ksw2, M cells/s', 'emulator'))} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    kinds = [
        ("right extension, band 751", made, "right", EXTENSION_ONLY),
        ("left extension, band 751", made, "left", EXTENSION_ONLY | RIGHT | REVERSED_CIGAR),
        ("fill", made, "fill", 0),
        ("fill, variants of 0.1-15 kb", variants, "fill", 0),
    ]
    for name, chosen, kind, flags in kinds:
        of_ksw2 = [(query[::-1].copy(), target[::-1].copy()) for query, target in chosen] if kind == "left" else chosen
        started_s = time.process_time()
        theirs = [
            ksw2(
                query,
                target,
                max(len(query), len(target)) if kind == "fill" else BAND,
                -1 if kind == "fill" else ZDROP,
                flags,
            )
            for query, target in of_ksw2
        ]
        between_s = time.process_time()
        queries, targets = pieces(chosen, backwards=kind == "left")
        found = filler(queries, targets) if kind == "fill" else extender(queries, targets, band=BAND, zdrop=ZDROP)
        ended_s = time.process_time()
        cells = sum(len(query) * len(target) for query, target in chosen) / 1e6
        counts = compare(found, theirs, chosen, kind)
        shown = [
            str(counts[key]) if key in counts else ""
            for key in ("tasks", "score", "end", "dropped", "band ended", "rescored", "CIGAR")
        ]
        speeds = [cells / (between_s - started_s), cells / (ended_s - between_s)]
        print(f"| {name} | {' | '.join(shown)} | {speeds[0]:,.0f} | {speeds[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
