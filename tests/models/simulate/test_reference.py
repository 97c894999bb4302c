"""Sequences and windows of a reference.

Dimensions: B bases.
"""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from porestream.models.simulate.reference import Reference
from porestream.models.simulate.sequence import UNKNOWN, decode, encode, random_bases, reverse_complement


def test_letters_and_codes() -> None:
    assert encode("ACGTacgtUuNRx-").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 3, 3, *[UNKNOWN] * 4]
    assert encode(b"GATT").tolist() == [2, 0, 3, 3]
    assert decode(encode("GATTACAN")) == "GATTACAN"
    assert decode(reverse_complement(encode("GATTACANC"))) == "GNTGTAATC"


def test_made_up_bases_hold_homopolymers_and_repeats() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 23, 5000):
        bases_B = random_bases(count, rng)
        assert bases_B.size == count
        assert bases_B.dtype == np.uint8
        assert bases_B.max() <= 3
    bases_B = random_bases(200_000, rng)
    changes = np.flatnonzero(np.diff(bases_B)) + 1
    runs = np.diff(changes)
    assert (runs >= 8).sum() > 100  # chance makes a dozen
    assert runs.max() < 40
    shares = np.bincount(bases_B) / bases_B.size
    assert shares[1] == pytest.approx(shares[2], abs=0.02)
    assert 0.28 < shares[1] + shares[2] < 0.67
    assert (
        random_bases(100, np.random.default_rng(5)).tobytes() == random_bases(100, np.random.default_rng(5)).tobytes()
    )


def write_fasta(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_windows_are_where_they_say_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    sequences = {"one": decode(random_bases(3000, rng)), "two": decode(random_bases(1000, rng))}
    lines = [f">{name} of two\r\n{text[:1500]}\n\n{text[1500:].lower()}" for name, text in sequences.items()]
    plain = write_fasta(tmp_path / "ref.fa", "\n".join(lines) + "\n")
    packed = tmp_path / "ref.fa.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    drawn = []
    for path in (plain, packed):
        reference = Reference.load(path, 200)
        assert reference.bases == 4000
        rng = np.random.default_rng(3)
        drawn.append([reference.draw(250, strand, rng) for strand in "+-" * 200])
    for window, same in zip(*drawn, strict=True):
        assert (window.contig, window.start) == (same.contig, same.start)
        assert window.end - window.start == window.bases_B.size == 250
        forward_B = window.bases_B if window.strand == "+" else reverse_complement(window.bases_B)
        assert decode(forward_B) == sequences[window.contig][window.start : window.end]
    shares = Counter(window.contig for window in drawn[0])
    assert shares["one"] / 400 == pytest.approx(0.75, abs=0.08)
    assert {window.start + window.bases_B.size for window in drawn[0]} <= set(range(250, 3001))


def test_a_read_is_not_longer_than_its_contig() -> None:
    reference = Reference({"short": encode("ACGT" * 60)}, 200)
    window = reference.draw(5000, "+", np.random.default_rng(0))
    assert (window.start, window.end, window.bases_B.size) == (0, 240, 240)


def test_contigs_that_are_too_short_give_no_reads() -> None:
    reference = Reference({"tiny": encode("A" * 199), "long": encode("C" * 200)}, 200)
    rng = np.random.default_rng(0)
    assert {reference.draw(200, "+", rng).contig for _ in range(50)} == {"long"}


def test_stretches_of_n_are_avoided_or_filled() -> None:
    rng = np.random.default_rng(6)
    half = Reference({"half": encode("N" * 5000 + "ACGT" * 1250)}, 200)
    for _ in range(50):
        window = half.draw(300, "+", rng)
        assert window.start >= 5000
    nothing = Reference({"nothing": encode("N" * 5000)}, 200)
    bases_B = nothing.draw(1000, "-", rng).bases_B
    assert np.bincount(bases_B, minlength=5)[UNKNOWN] == 0
    assert (np.bincount(bases_B, minlength=4) > 150).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not FASTA: it is empty"),
        (b"@read\nACGT\n+\nIIII\n", "is not FASTA: it starts with b'@'"),
        (b"\x89PNG", "is not FASTA: it starts with"),
        (gzip.compress(b">a\n" + b"ACGTTGCA" * 2000, mtime=0)[:40], "damaged gzip file"),
        (b">a\nACGT\n", "the longest sequence has 4 bases, but the shortest read has 200"),
        (b">a\n>b\n", "the longest sequence has 0"),
        (b">\n" + b"ACGT" * 100, "sequence 1 has no name"),
        (b">a\n" + b"ACGT" * 100 + b"\n>a 2\nACGT", "sequence 2 has a duplicate name: 'a'"),
        (b">p\n" + b"MKLV" * 100, "p has b'L', which is not a nucleotide code; is this a protein"),
    ],
)
def test_what_is_no_reference_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ref.fasta"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Reference.load(path, 200)
    assert str(path) in str(caught.value)
