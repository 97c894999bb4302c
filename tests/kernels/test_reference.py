"""References: digests, errors, and .mmi files that mappy would crash on or use in part."""

import gzip
import hashlib
from pathlib import Path

import mappy
import numpy as np
import pytest

from porestream.kernels.align.aligner import load_reference
from porestream.kernels.align.fasta import ReferenceFileError, ReferenceSequence, make_reference, md5_of, read_fasta
from porestream.kernels.align.mmi import Contents, read_contents

BASES = "".join(np.random.default_rng(1).choice(list("ACGT"), 30_000))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_digests_are_those_of_sam(tmp_path: Path) -> None:
    reference = read_fasta(write(tmp_path / "a.fa", ">one first\r\nacgt\r\nRYn\r\n\r\n>two\nTTTT\nA\n"))
    expected = [("one", 7, b"ACGTRYN"), ("two", 5, b"TTTTA")]
    found = [(s.name, s.length, s.md5) for s in reference.sequences]
    assert found == [(name, length, hashlib.md5(bases).hexdigest()) for name, length, bases in expected]
    lines = "".join(f"{name}\t{length}\t{md5}\n" for name, length, md5 in found)
    assert reference.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert reference.name == "a.fa"
    # the example of the SAM specification, section 1.3.2
    assert md5_of("ACGTACGTACGTACGTACGTACGT...12345!!!") == "dfabdbb36e239a6da88957841f32b8e4"


def test_layout_and_compression_do_not_change_the_digest(tmp_path: Path) -> None:
    folded = "\n".join(BASES[i : i + 60].lower() for i in range(0, len(BASES), 60))
    plain = read_fasta(write(tmp_path / "a.fa", f">a\n{BASES}\n"))
    (tmp_path / "b.fa.gz").write_bytes(gzip.compress(f"\n>a comment\n{folded}".encode()))
    assert read_fasta(tmp_path / "b.fa.gz").sha256 == plain.sha256
    assert read_fasta(write(tmp_path / "c.fa", f">b\n{BASES}\n")).sha256 != plain.sha256


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no sequences"),
        ("\n\n", "no sequences"),
        (">a\n>b\nAC\n", "'a' is empty"),
        (">a\nAC\n>b\nAC\n>a x\nAC\n", "two sequences are named 'a'"),
        ("@a\nAC\n+\nII\n", "not FASTA"),
        ("name\tbases\n", "not FASTA"),
        (">a\nAC GT\n", "' ' at base 3"),
        (">a\nAC-GT\n", "'-' at base 3"),
        (">\nACGT\n", "sequence 1 has no name"),
        (f">{'a' * 256}\nACGT\n", "is longer than 255 bytes"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "bad.fa", text)
    with pytest.raises(ReferenceFileError, match=problem) as error:
        load_reference(path, preset="map-ont", cache_dir=None, threads=1)
    assert str(path) in str(error.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.fa", tmp_path):
        with pytest.raises(ReferenceFileError, match="cannot be read"):
            load_reference(path, preset="map-ont", cache_dir=None, threads=1)
    whole = gzip.compress(f">a\n{BASES}\n>b\n{BASES[::-1]}\n".encode())
    for size in (11, 5_000, len(whole) - 4):
        (tmp_path / "cut.fa.gz").write_bytes(whole[:size])
        with pytest.raises(ReferenceFileError, match=r"cut\.fa\.gz"):
            read_fasta(tmp_path / "cut.fa.gz")
    (tmp_path / "bad.fa.gz").write_bytes(whole[:10] + bytes(range(200, 250)))
    with pytest.raises(ReferenceFileError, match="cannot be read"):
        read_fasta(tmp_path / "bad.fa.gz")
    (tmp_path / "latin.fa").write_bytes(b">caf\xe9\nACGT\n")
    with pytest.raises(ReferenceFileError, match="damaged or not FASTA"):
        read_fasta(tmp_path / "latin.fa")


def test_too_many_bases(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="2,147,483,648 bases"):
        make_reference(tmp_path, [ReferenceSequence("a", 2**31, "-")])
    thirds = [ReferenceSequence(name, 2**31 - 1, "-") for name in "abc"]
    with pytest.raises(ReferenceFileError, match="more than 4,294,967,295 bases"):
        make_reference(tmp_path, thirds)


def test_mmi(tmp_path: Path) -> None:
    fasta = write(tmp_path / "a.fa", f">a\n{BASES.lower()}\n>b\n{BASES[:5000]}R{BASES[:5000]}\n")
    mmi = tmp_path / "a.mmi"
    mappy.Aligner(str(fasta), k=17, w=11, fn_idx_out=str(mmi))
    assert read_contents(mmi) == Contents(17, 11, {"a": 30_000, "b": 10_001})
    of_fasta = read_fasta(fasta)
    of_mmi = load_reference(mmi, preset="lr:hq", cache_dir=tmp_path / "cache", threads=1).reference
    assert [(s.name, s.length) for s in of_mmi.sequences] == [(s.name, s.length) for s in of_fasta.sequences]
    assert of_mmi.sequences[0].md5 == of_fasta.sequences[0].md5
    assert of_mmi.sequences[1].md5 is None
    assert of_mmi.sha256 == hashlib.sha256(mmi.read_bytes()).hexdigest()
    assert not (tmp_path / "cache").exists()

    clean = write(tmp_path / "clean.fa", f">a\n{BASES}\n")
    mappy.Aligner(str(clean), fn_idx_out=str(mmi))
    loaded = load_reference(mmi, preset="map-ont", cache_dir=None, threads=1)
    assert loaded.reference.sha256 == read_fasta(clean).sha256


def test_mmi_that_cannot_be_used(tmp_path: Path) -> None:
    fasta, mmi = write(tmp_path / "a.fa", f">a\n{BASES}\n"), tmp_path / "a.mmi"
    mappy.Aligner(str(fasta), fn_idx_out=str(mmi))
    whole = mmi.read_bytes()
    for size in (4, 20, 30, 40_000, len(whole) - 1):
        mmi.write_bytes(whole[:size])
        with pytest.raises(ReferenceFileError, match="truncated"):
            load_reference(mmi, preset="map-ont", cache_dir=None, threads=1)
    mmi.write_bytes(whole + whole)
    with pytest.raises(ReferenceFileError, match="several parts"):
        load_reference(mmi, preset="map-ont", cache_dir=None, threads=1)
    without_bases = bytearray(whole)
    without_bases[20] |= 2
    mmi.write_bytes(without_bases)
    with pytest.raises(ReferenceFileError, match="no bases"):
        load_reference(mmi, preset="map-ont", cache_dir=None, threads=1)
