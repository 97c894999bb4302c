"""Reads a reference FASTA, and computes the names, lengths and digests that identify it."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam

# minimap2 packs a position and a strand into 32 bits (index.c, sketch.c); its offsets into the whole reference, like
# ours, are 32 bits. BAM's positions also end at 2**31 - 1. A .mmi stores a name's length in a byte (mm_idx_dump).
MAX_BASES = 2**32 - 1
MAX_SEQUENCE_BASES = 2**31 - 1
MAX_NAME_BYTES = 255

INDEX_MAGIC = b"PSINDEX1"
"""First bytes of a file from `kernels.align.index`."""

_NOT_A_BASE = re.compile(r"[^A-Za-z]")
_NAME = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")  # SAM specification, section 1.2.1


class ReferenceFileError(ValueError):
    """A reference cannot be used; the message names the file and the problem, and says what to do."""

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
        SAM's ``@SQ M5``, computed from upper-case letters. None if the sequence is from a .mmi that lost some letters.
    """

    name: str
    length: int
    md5: str | None


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference that reads are aligned to.

    Attributes
    ----------
    name
        The file's name, without folders.
    sequences
        Sequences in the file's order.
    sha256
        Digest of the sequences' ``name <tab> length <tab> md5`` lines, or of the whole file if an md5 is unknown.
    """

    name: str
    sequences: tuple[ReferenceSequence, ...]
    sha256: str


def md5_of(bases: str) -> str:
    """Return the MD5 for SAM's ``@SQ M5`` (SAM specification, section 1.3.2): upper case, IUPAC letters unchanged."""
    return hashlib.md5(bases.upper().encode("ascii"), usedforsecurity=False).hexdigest()


def make_reference(path: Path, sequences: Iterable[ReferenceSequence]) -> Reference:
    """Check a file's sequences and compute the digest of the whole reference.

    Raises
    ------
    ReferenceFileError
        There are no sequences, one is nameless or empty, a name is a duplicate, too long or not allowed in SAM, or
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
                f"SAM does not allow the name {name!r} (no , \\ ( ) [ ] {{ }} < > or quotes, and not * or = first)"
            )
            raise ReferenceFileError(path, problem, "rename it, or samtools and other tools would misread the records")
        if name in known:
            raise ReferenceFileError(path, f"two sequences are named {name!r}", "rename or remove one")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ReferenceFileError(path, f"the name {name!r} is longer than {MAX_NAME_BYTES} bytes", "shorten it")
        if sequence.length == 0:
            raise ReferenceFileError(path, f"sequence {name!r} is empty", "remove it, or download the file again")
        if sequence.length > MAX_SEQUENCE_BASES:
            problem = f"sequence {name!r} has {sequence.length:,} bases; the limit is {MAX_SEQUENCE_BASES:,}"
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
        The file is missing or cannot be read.
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
        The file is missing, damaged, not FASTA, or unusable (`make_reference`).
    """
    head = first_bytes(path, 4096).lstrip()
    if head.startswith(INDEX_MAGIC):
        problem = "this is an index that `porestream index` built"
        raise ReferenceFileError(path, problem, "give the FASTA; porestream finds an index that is next to it")
    if head and not head.startswith(b">"):
        problem = f"not FASTA: it starts with {head[:20]!r}, not '>'"
        raise ReferenceFileError(path, problem, "give a FASTA (plain or gzipped) or a minimap2 .mmi")
    return make_reference(path, _fasta_sequences(path))


def _fasta_sequences(path: Path) -> Iterator[ReferenceSequence]:
    # pysam, because mappy's reader does not notice that a gzip file is truncated
    try:
        with pysam.FastxFile(str(path), persist=False) as file:
            for entry in file:
                name, bases = entry.name or "", entry.sequence or ""
                if stray := _NOT_A_BASE.search(bases):
                    problem = f"sequence {name!r} has {stray.group()!r} at base {stray.start() + 1:,}"
                    raise ReferenceFileError(path, problem, "sequence lines may only contain letters")
                yield ReferenceSequence(name, len(bases), md5_of(bases))
    except ReferenceFileError:
        raise
    except (OSError, ValueError) as error:
        raise ReferenceFileError(path, f"damaged or not FASTA ({error})", "download or zip the file again") from error
