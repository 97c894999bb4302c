"""minimap2's alignments made again by the kernels, on the emulator: the same, or as good."""

from collections import Counter
from pathlib import Path

import mappy
import numpy as np
import pytest

from porestream.kernels import base_level
from porestream.kernels.aligner import Alignment, MappyAligner, load_reference
from porestream.kernels.base_level import BaseLevelAligner
from porestream.kernels.cigar import describe
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.pack import encode_bases


@pytest.fixture(scope="module")
def genome() -> str:
    return "".join(np.random.default_rng(3).choice([*"ACGT"], 60_000))


@pytest.fixture(scope="module")
def minimap2(genome: str, tmp_path_factory: pytest.TempPathFactory) -> MappyAligner:
    fasta = tmp_path_factory.mktemp("reference") / "g.fa"
    fasta.write_text(f">g\n{genome}\n")
    return load_reference(fasta, preset="map-ont", cache_dir=None, threads=1)


def mutate(bases: str, errors: float, rng: np.random.Generator) -> str:
    out = []
    for base in bases:
        kind = rng.random()
        if kind < errors / 3:
            continue
        out.append(str(rng.choice([*"ACGT"])) if kind < 2 * errors / 3 else base)
        if 2 * errors / 3 <= kind < errors:
            out.append(str(rng.choice([*"ACGT"])))
    return "".join(out)


def reads(genome: str, count: int) -> list[str]:
    """With deletions, insertions, foreign beginnings, on both strands."""
    rng, made = np.random.default_rng(5), []
    for number in range(count):
        bases = int(rng.integers(300, 3_000))
        start = int(rng.integers(0, len(genome) - bases))
        read = mutate(genome[start : start + bases], rng.uniform(0.02, 0.12), rng)
        middle, foreign = len(read) // 2, "".join(rng.choice([*"ACGT"], 300))
        if number % 4 == 1:
            read = read[:middle] + read[middle + 200 :]
        if number % 4 == 2:
            read = read[:middle] + foreign + read[middle:]
        if number % 4 == 3:
            read = foreign[:100] + read
        made.append(mappy.revcomp(read) if number % 2 else read)
    return made


def check(alignment: Alignment, read: str, genome: str) -> None:
    """An alignment's figures are those of its CIGAR."""
    query = mappy.revcomp(read) if alignment.flag & 16 else read
    clips = [int(op >> 4) if op & 15 == 4 else 0 for op in (alignment.cigar[0], alignment.cigar[-1])]
    inner = alignment.cigar[alignment.cigar & 15 != 4]
    target = genome[alignment.reference_start : alignment.reference_end]
    found = describe(inner, encode_bases(query[clips[0] : len(query) - clips[1]]), encode_bases(target))
    assert (found.score, found.edit_distance, found.md) == (alignment.score, alignment.edit_distance, alignment.md)


def fields(alignment: Alignment) -> tuple[object, ...]:
    return (
        alignment.flag,
        alignment.reference_start,
        alignment.cigar.tolist(),
        alignment.score,
        alignment.edit_distance,
        alignment.md,
        round(alignment.divergence, 9),
    )


def test_alignments_are_minimap2s_or_as_good(genome: str, minimap2: MappyAligner) -> None:
    aligner = BaseLevelAligner(minimap2, EmulatedDevice())
    counts: Counter[str] = Counter()
    for read in reads(genome, 40):
        before, after = minimap2.align("read", read, md=True), aligner.align("read", read, md=True)
        assert len(before) == len(after) > 0
        for theirs, ours in zip(before, after, strict=True):
            check(ours, read, genome)
            assert ours.score >= theirs.score
            counts["the same" if fields(ours) == fields(theirs) else "as good"] += 1
    assert counts["as good"] <= 2, counts
    assert counts["the same"] >= 38


def test_what_does_not_fit_stays_minimap2s(
    genome: str, minimap2: MappyAligner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_level, "MEMORY_BYTES", 1000)
    aligner = BaseLevelAligner(minimap2, EmulatedDevice())
    for read in reads(genome, 4):
        before, after = minimap2.align("read", read, md=True), aligner.align("read", read, md=True)
        assert [fields(ours) for ours in after] == [fields(theirs) for theirs in before]


def test_it_says_what_it_is(minimap2: MappyAligner) -> None:
    aligner = BaseLevelAligner(minimap2, EmulatedDevice())
    assert (aligner.reference, aligner.preset) == (minimap2.reference, "map-ont")
    assert (minimap2.device_class, aligner.device_class) == ("", "-gpu-aligner")
    assert aligner.align("nothing", "A" * 50, md=False) == []


def test_real_reads(shared_data: Path, minimap2: MappyAligner) -> None:
    """Windows of a real genome, with its repeats, in place of random bases."""
    name, genome, _ = next(mappy.fastx_read(str(shared_data / "klebsiella_r94" / "HS11286.fna.gz")))
    index = load_reference(shared_data / "klebsiella_r94" / "HS11286.fna.gz", preset="lr:hq", cache_dir=None, threads=2)
    aligner, rng = BaseLevelAligner(index, EmulatedDevice()), np.random.default_rng(9)
    same = count = 0
    for _ in range(12):
        start = int(rng.integers(0, len(genome) - 4_000))
        read = mutate(genome[start : start + 4_000], 0.05, rng)
        for theirs, ours in zip(index.align("r", read, md=True), aligner.align("r", read, md=True), strict=True):
            if ours.reference_name == name:
                check(ours, read, genome)
            assert ours.score >= theirs.score
            same, count = same + (fields(ours) == fields(theirs)), count + 1
    assert count >= 12
    assert same >= 0.9 * count
