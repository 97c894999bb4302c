"""MappyAligner against plain Python that walks along each alignment, base by base."""

import logging
import re
import resource
import threading
from pathlib import Path
from typing import Any

import mappy
import numpy as np
import pytest

from porestream.kernels.align.aligner import (
    PRESETS,
    Aligner,
    Alignment,
    MappyAligner,
    UnknownPresetError,
    load_reference,
    preset_for_model,
)

RNG = np.random.default_rng(20)


def random_bases(n: int) -> str:
    return "".join(RNG.choice(list("ACGT"), n))


def mutate(bases: str, rate: float) -> str:
    """A third each of substitutions, insertions and deletions of 1 to 5 bases."""
    out, i = [], 0
    while i < len(bases):
        kind = RNG.random() / rate
        if kind < 1 / 3:
            out.append(str(RNG.choice([b for b in "ACGT" if b != bases[i]])))
        elif kind < 2 / 3:
            out.append(bases[i] + random_bases(int(RNG.integers(1, 6))))
        elif kind < 1:
            i += int(RNG.integers(0, 5))
        else:
            out.append(bases[i])
        i += 1
    return "".join(out)


def make_genome() -> dict[str, str]:
    repeat = random_bases(6_000)
    one = random_bases(40_000) + repeat + random_bases(30_000) + mutate(repeat, 0.01) + random_bases(10_000)
    two = random_bases(20_000) + "N" * 40 + random_bases(10_000) + "RYKMSWBDHVN" + random_bases(30_000)
    return {"one": one, "two": two, "lower": random_bases(30_000).lower()}


GENOME = make_genome()


def make_reads() -> dict[str, str]:
    one, two, lower = GENOME["one"], GENOME["two"], GENOME["lower"].upper()
    reads = {}
    for i in range(20):
        name = ["one", "two", "lower"][i % 3]
        start, length = int(RNG.integers(0, 20_000)), int(RNG.integers(500, 10_000))
        read = mutate(GENOME[name].upper()[start : start + length].replace("N", "A"), (0.001, 0.02, 0.08)[i // 3 % 3])
        reads[f"random-{i}"] = mappy.revcomp(read) if i % 2 else read
    reads["deletion"] = mutate(one[1_000:6_000] + one[8_000:14_000], 0.05)
    reads["insertion"] = mutate(lower[1_000:6_000] + random_bases(2_000) + lower[6_000:12_000], 0.05)
    reads["chimera"] = mutate(one[2_000:9_000] + mappy.revcomp(two[40_000:46_000]) + lower[:4_000], 0.05)
    reads["repeat"] = mutate(one[40_500:45_500], 0.05)
    reads["over N"] = mutate(two[18_000:20_000] + random_bases(40) + two[20_040:23_000], 0.03)
    reads["N deleted"] = mappy.revcomp(two[18_000:20_010] + two[20_030:23_000])
    reads["N inserted"] = one[2_000:4_000] + "NRNNY" + one[4_000:6_000] + "N" + one[6_001:8_000]
    reads["over IUPAC"] = mappy.revcomp(two[29_000:31_500])
    reads["U and lower"] = one[3_000:5_000].replace("T", "U") + one[5_000:6_000].lower()
    return reads


READS = make_reads()
UNMAPPED = {"random": random_bases(3_000), "empty": "", "one base": "A", "all N": "N" * 500}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in GENOME.items()))
    return path


@pytest.fixture(scope="module", params=list(PRESETS))
def aligner(request: pytest.FixtureRequest, fasta: Path) -> MappyAligner:
    return load_reference(fasta, preset=request.param, cache_dir=None, threads=1)


def fields(alignments: list[Alignment]) -> list[tuple[Any, ...]]:
    names = Alignment.__slots__
    return [tuple(a.cigar.tolist() if n == "cigar" else getattr(a, n) for n in names) for a in alignments]


def walk(alignment: Alignment, read: str) -> tuple[int, int, str, float]:
    """Score, NM, MD and de of an alignment, from nothing but its CIGAR and the two sequences."""
    reference = re.sub("[^ACGT]", "N", GENOME[alignment.reference_name].upper())
    read = re.sub("[^ACGT]", "N", read.upper().replace("U", "T"))
    if alignment.flag & 16:
        read = read[::-1].translate(str.maketrans("ACGT", "TGCA"))
    i, j = 0, alignment.reference_start
    score = nm = matches = events = run = 0
    md = ""
    for n, op in [(int(c) >> 4, "MIDNS"[int(c) & 15]) for c in alignment.cigar]:
        if op == "M":
            for a, b in zip(read[i : i + n], reference[j : j + n], strict=True):
                same, ambiguous = a == b, "N" in (a, b)
                score += -1 if ambiguous else 2 if same else -4
                nm += ambiguous or not same
                matches += same and not ambiguous
                md, run = (md, run + 1) if same else (f"{md}{run}{b}", 0)
            i, j, events = i + n, j + n, events + n
        elif op == "I":
            i, nm = i + n, nm + n
        elif op == "D":
            md, run = f"{md}{run}^{reference[j : j + n]}", 0
            j, nm = j + n, nm + n
        else:
            i += n
        if op in "ID":
            score, events = score - min(4 + 2 * n, 24 + n), events + 1
    assert i == len(read)
    assert j == alignment.reference_end
    return score, nm, f"{md}{run}", 1 - matches / events


@pytest.mark.parametrize("name", READS)
def test_fields_against_a_walk_along_the_alignment(aligner: MappyAligner, name: str) -> None:
    alignments = aligner.align(name, READS[name], md=True)
    assert alignments
    assert [a.flag & ~16 == 0 for a in alignments] == [True] + [False] * (len(alignments) - 1)
    for found in alignments:
        score, nm, md, divergence = walk(found, READS[name])
        assert (found.score, found.edit_distance, found.md) == (score, nm, md)
        assert found.divergence == pytest.approx(divergence, abs=1e-12)
        assert found.cigar.dtype == np.uint32
        assert not np.any(found.cigar >> 4 == 0)
    without_md = aligner.align(name, READS[name], md=False)
    assert fields(without_md) == [(*f[:8], "", f[9]) for f in fields(alignments)]


def test_flags_and_places(aligner: MappyAligner) -> None:
    one, two, three = sorted(aligner.align("chimera", READS["chimera"], md=False), key=lambda a: a.reference_name)
    assert (one.reference_name, two.reference_name, three.reference_name) == ("lower", "one", "two")
    assert sorted((one.flag, two.flag)) == [0, 2048]
    assert three.flag == 2048 | 16
    repeats = aligner.align("repeat", READS["repeat"], md=False)
    assert [a.flag for a in repeats] == [0, 256]
    (deletion,) = aligner.align("deletion", READS["deletion"], md=False)
    assert any(op & 15 == 2 and abs((op >> 4) - 2_000) < 50 for op in deletion.cigar.tolist())
    (insertion,) = aligner.align("insertion", READS["insertion"], md=False)
    assert any(op & 15 == 1 and abs((op >> 4) - 2_000) < 50 for op in insertion.cigar.tolist())


@pytest.mark.parametrize("name", UNMAPPED)
def test_unmapped(aligner: MappyAligner, name: str) -> None:
    assert aligner.align(name, UNMAPPED[name], md=True) == []


def test_ambiguous_bases_in_gaps_are_counted_apart(aligner: MappyAligner) -> None:
    for name, operation in (("N deleted", 2), ("N inserted", 1)):
        (found,) = aligner.align(name, READS[name], md=False)
        assert operation in (found.cigar & 15)


def test_ties_break_by_the_reads_name(tmp_path: Path) -> None:
    copy = random_bases(5_000)
    (tmp_path / "twins.fa").write_text(f">a\n{copy}\n>b\n{copy}\n")
    aligner = load_reference(tmp_path / "twins.fa", preset="map-ont", cache_dir=None, threads=1)
    places = {name: aligner.align(name, copy, md=False)[0].reference_name for name in map(str, range(20))}
    assert set(places.values()) == {"a", "b"}
    assert places == {name: aligner.align(name, copy, md=False)[0].reference_name for name in reversed(places)}


def test_threads_and_order_do_not_matter(aligner: MappyAligner) -> None:
    alone = {name: fields(aligner.align(name, read, md=True)) for name, read in READS.items()}
    found: list[dict[str, list[tuple[Any, ...]]]] = [{}, {}]

    def run(i: int) -> None:
        for name in sorted(READS, reverse=bool(i)) * 2:
            found[i][name] = fields(aligner.align(name, READS[name], md=True))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone, alone]


def test_cache_round_trip(fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "deep" / "cache"

    def run(preset: str) -> list[tuple[Any, ...]]:
        aligner: Aligner = load_reference(fasta, preset=preset, cache_dir=cache, threads=1)
        assert aligner.preset == preset
        return [fields(aligner.align(name, READS[name], md=True)) for name in ("chimera", "repeat", "random-1")]

    built = run("map-ont")
    (cached,) = cache.iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}\.k15w10\.mappy-[\d.]+\.mmi", cached.name)
    inode, whole = cached.stat().st_ino, cached.read_bytes()
    assert run("map-ont") == built
    assert cached.stat().st_ino == inode
    run("lr:hq")
    assert len(list(cache.iterdir())) == 2
    assert not caplog.records

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], whole[:-32], b"", bytes(flipped), whole + b"\0"):
        cached.write_bytes(damaged)
        caplog.clear()
        assert run("map-ont") == built
        assert "damaged" in caplog.text
        assert cached.read_bytes() == whole
    assert len(list(cache.iterdir())) == 2


def test_cache_that_cannot_be_written(fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    caplog.set_level(logging.WARNING)
    aligner = load_reference(fasta, preset="map-ont", cache_dir=tmp_path / "file" / "cache", threads=1)
    assert "cannot cache the index of" in caplog.text
    assert aligner.align("repeat", READS["repeat"], md=False)


def test_disk_full_while_caching(fasta: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # minimap2's fwrite fails there, and it does not notice
    try:
        aligner = load_reference(fasta, preset="map-ont", cache_dir=tmp_path, threads=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot cache the index of" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert aligner.align("repeat", READS["repeat"], md=False)


def test_an_index_of_its_own_keeps_its_k_and_w(fasta: Path, tmp_path: Path) -> None:
    mmi = tmp_path / "own.mmi"
    mappy.Aligner(str(fasta), k=15, w=10, fn_idx_out=str(mmi))
    of_mmi = load_reference(mmi, preset="map-ont", cache_dir=None, threads=1)
    of_fasta = load_reference(fasta, preset="map-ont", cache_dir=None, threads=1)
    short = mutate(GENOME["one"][5_000:5_300], 0.1)
    for preset in PRESETS:
        assert load_reference(mmi, preset=preset, cache_dir=None, threads=1).align("short", short, md=False)
    for name, read in READS.items():
        assert fields(of_mmi.align(name, read, md=True)) == fields(of_fasta.align(name, read, md=True))


def test_presets(fasta: Path) -> None:
    with pytest.raises(UnknownPresetError, match="'splice'; choose one of: map-ont, lr:hq"):
        load_reference(fasta, preset="splice", cache_dir=None, threads=1)
    for preset in PRESETS.values():
        index = mappy.Aligner(str(fasta), preset=preset.name)
        assert (index.k, index.w) == (preset.k, preset.w)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("dna_r9.4.1_e8.1_fast@v3.4", "map-ont"),
        ("dna_r10.4.1_e8.2_400bps_hac@v4.3.0", "lr:hq"),
        ("dna_r10.4.1_e8.2_400bps_sup@v5.0.0_5mC_5hmC@v3", "lr:hq"),
        ("sup", "lr:hq"),
        ("hac,5mCG", "lr:hq"),
        ("superb_model", "map-ont"),
        ("", "map-ont"),
    ],
)
def test_preset_for_model(model: str, preset: str) -> None:
    assert preset_for_model(model) == preset
