"""Reads the reference FASTA and draws windows for reads from it.

Dimensions: B bases.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from porestream.models.simulate.sequence import UNKNOWN, Bases, encode, reverse_complement

_TRIES = 100
_GZIP_MAGIC = b"\x1f\x8b"
_WHITESPACE = b" \t\r\n\v\f"
_IUPAC = b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv-*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a contig whose strand goes through the pore.

    Attributes
    ----------
    contig, start, end
        Position: 0-based, half-open, on the forward strand.
    strand
        "+" or "-".
    bases_B
        5' to 3' of that strand, 0-3, (end - start,) uint8.
    """

    contig: str
    start: int
    end: int
    strand: str
    bases_B: Bases


class Reference:
    """Contigs to draw windows from.

    Parameters
    ----------
    contigs
        Encoded sequences by name.
    min_length
        Shorter contigs are ignored.

    Raises
    ------
    ValueError
        No contig is long enough.
    """

    def __init__(self, contigs: dict[str, Bases], min_length: int) -> None:
        self._contigs = [(name, bases_B) for name, bases_B in contigs.items() if bases_B.size >= min_length]
        if not self._contigs:
            longest = max((bases_B.size for bases_B in contigs.values()), default=0)
            raise ValueError(f"the longest sequence has {longest} bases, but the shortest read has {min_length}")
        self._ends = np.cumsum([bases_B.size for _, bases_B in self._contigs])

    @classmethod
    def load(cls, path: Path, min_length: int) -> "Reference":
        """Read FASTA, plain or gzipped.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            The file is not FASTA, or no sequence is long enough.
        """
        contigs = _read_fasta(path)
        try:
            return cls(contigs, min_length)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def bases(self) -> int:
        """Bases of all contigs that windows are drawn from."""
        return int(self._ends[-1])

    def draw(self, length: int, strand: str, rng: np.random.Generator) -> Window:
        """Draw a window of this length (or the whole contig, if that is shorter) on strand "+" or "-".

        Contigs are drawn in proportion to their lengths. A window with unknown bases is drawn again; after a hundred
        tries, the unknown bases are replaced by random ones.
        """
        for _ in range(_TRIES):
            name, contig_B = self._contigs[int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))]
            start = int(rng.integers(max(1, contig_B.size - length + 1)))
            bases_B = contig_B[start : start + length]
            unknown_B = bases_B == UNKNOWN
            if not unknown_B.any():
                break
        else:
            bases_B = np.where(unknown_B, rng.integers(0, 4, bases_B.size, np.uint8), bases_B)
        end = start + bases_B.size
        return Window(
            contig=name,
            start=start,
            end=end,
            strand=strand,
            bases_B=reverse_complement(bases_B) if strand == "-" else bases_B,
        )


def _read_fasta(path: Path) -> dict[str, Bases]:
    """Read encoded sequences, keyed by the first word of their headers."""
    text = path.read_bytes()
    if text.startswith(_GZIP_MAGIC):
        try:
            text = gzip.decompress(text)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); download it again") from error
    if not text.startswith(b">"):
        found = f"it starts with {text[:1]!r}" if text else "it is empty"
        raise ValueError(f"{path} is not FASTA: {found}; give a file with '>name' lines, plain or gzipped")
    contigs: dict[str, Bases] = {}
    for number, record in enumerate(text[1:].split(b"\n>"), 1):
        header, _, body = record.partition(b"\n")
        name = next(iter(header.decode("utf-8", "replace").split()), "")
        if not name or name in contigs:
            raise ValueError(f"{path}: sequence {number} has {'a duplicate name' if name else 'no name'}: {name!r}")
        letters = body.translate(None, _WHITESPACE)
        if strange := letters.translate(None, _IUPAC):
            raise ValueError(f"{path}: {name} has {strange[:1]!r}, which is not a nucleotide code; is this a protein?")
        contigs[name] = encode(letters)
    return contigs
