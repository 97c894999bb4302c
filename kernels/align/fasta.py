"""A reference genome's identity: names, lengths and digests of its sequences."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam

# minimap2 packs a position and a strand into 32 bits (index.c, sketch.c), and its offsets and ours are 32 bits in all;
# BAM's positions end at 2**31 - 1 too. A name's length is one byte in a .mmi (index.c, mm_idx_dump).
MAX_BASES = 2**32 - 1
MAX_SEQUENCE_BASES = 2**31 - 1
MAX_NAME_BYTES = 255

INDEX_MAGIC = b"PSINDEX1"
"""How a file of `kernels.index` begins."""

_NOT_A_BASE = re.compile(r"[^A-Za-z]")
_NAME = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")  # SAM specification, section 1.2.1


class ReferenceFileError(ValueError):
    """A reference that cannot be used; the message names the file, the problem and the way out."""

    def __init__(self, path: Path, problem: str, way_out: str) -> None:
        super().__init__(f"reference {path}: {problem}; {way_out}")


@dataclass(frozen=True, slots=True)
class ReferenceSequence:
    """One sequence of a reference.

    Attributes
    ----------
    name
        The first word of the FASTA header.
    length
        In bases.
    md5
        SAM's ``@SQ M5``: of the upper-case letters. None where a .mmi no longer has the original letters.
    """

    name: str
    length: int
    md5: str | None


@dataclass(frozen=True, slots=True)
class Reference:
    """What alignments are made against.

    Attributes
    ----------
    name
        The file's name, without folders.
    sequences
        In the file's order.
    sha256
        Of the sequences' ``name <tab> length <tab> md5`` lines; of the file's bytes where an md5 is unknown.
    """

    name: str
    sequences: tuple[ReferenceSequence, ...]
    sha256: str


def md5_of(bases: str) -> str:
    """MD5 as in SAM's ``@SQ M5`` (SAM specification, section 1.3.2): upper case, IUPAC letters as they are."""
    return hashlib.md5(bases.upper().encode("ascii"), usedforsecurity=False).hexdigest()


def make_reference(path: Path, sequences: Iterable[ReferenceSequence]) -> Reference:
    """Check the sequences of a file and work out the digest of the whole.

    Raises
    ------
    ReferenceFileError
        If there are none, one is nameless or empty, a name comes twice, is too long or not one that SAM allows, or
        there are too many bases.
    """
    known: dict[str, ReferenceSequence] = {}
    bases = 0
    for sequence in sequences:
        name, bases = sequence.name, bases + sequence.length
        if not name:
            raise ReferenceFileError(path, f"sequence {len(known) + 1} has no name", "name it after the '>'")
        if not _NAME.fullmatch(name):
            problem = (
                f"the name {name!r} is none that SAM allows (no , \\ ( ) [ ] {{ }} < > or quotes, nor * or = first)"
            )
            raise ReferenceFileError(path, problem, "rename it: samtools and others would misread the records")
        if name in known:
            raise ReferenceFileError(path, f"two sequences are named {name!r}", "rename or remove one")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ReferenceFileError(path, f"the name {name!r} exceeds {MAX_NAME_BYTES} bytes", "shorten it")
        if sequence.length == 0:
            raise ReferenceFileError(path, f"sequence {name!r} is empty", "remove it, or fetch the file again")
        if sequence.length > MAX_SEQUENCE_BASES:
            problem = f"sequence {name!r} has {sequence.length:,} bases, more than {MAX_SEQUENCE_BASES:,}"
            raise ReferenceFileError(path, problem, "split it")
        if bases > MAX_BASES:
            raise ReferenceFileError(path, f"it has more than {MAX_BASES:,} bases", "split it into several references")
        known[name] = sequence
    if not known:
        raise ReferenceFileError(path, "it holds no sequences", "give a FASTA (plain or gzipped) or a minimap2 .mmi")
    if all(sequence.md5 for sequence in known.values()):
        lines = "".join(f"{s.name}\t{s.length}\t{s.md5}\n" for s in known.values())
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
    else:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Reference(path.name, tuple(known.values()), sha256)


def first_bytes(path: Path, count: int) -> bytes:
    """Read the start of a file, unzipped if it is gzipped.

    Raises
    ------
    ReferenceFileError
        If the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(count)
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(count)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReferenceFileError(path, f"it cannot be read ({reason})", "check the path and the file") from error
    return head


def read_fasta(path: Path) -> Reference:
    """Read a FASTA file, plain, gzipped or bgzipped, one sequence in memory at a time.

    Raises
    ------
    ReferenceFileError
        If it is missing, damaged, not FASTA, or unusable (`make_reference`).
    """
    head = first_bytes(path, 4096).lstrip()
    if head.startswith(INDEX_MAGIC):
        problem = "it is the index that `porestream index` makes of a reference"
        raise ReferenceFileError(path, problem, "give the FASTA: the index is found beside it")
    if head and not head.startswith(b">"):
        problem = f"not FASTA: it starts with {head[:20]!r}, not '>'"
        raise ReferenceFileError(path, problem, "give a FASTA (plain or gzipped) or a minimap2 .mmi")
    return make_reference(path, _fasta_sequences(path))


def _fasta_sequences(path: Path) -> Iterator[ReferenceSequence]:
    # pysam, because mappy's reader takes a truncated gzip file for a short one.
    try:
        with pysam.FastxFile(str(path), persist=False) as file:
            for entry in file:
                name, bases = entry.name or "", entry.sequence or ""
                if stray := _NOT_A_BASE.search(bases):
                    problem = f"sequence {name!r} has {stray.group()!r} at base {stray.start() + 1:,}"
                    raise ReferenceFileError(path, problem, "leave only letters in its lines")
                yield ReferenceSequence(name, len(bases), md5_of(bases))
    except ReferenceFileError:
        raise
    except (OSError, ValueError) as error:
        raise ReferenceFileError(path, f"damaged or not FASTA ({error})", "fetch or zip the file again") from error
