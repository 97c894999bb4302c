"""The truth that reads are compared with: their own true sequences, or a reference that they are mapped to.

Dimensions: T bases of the truth.
"""

import csv
from pathlib import Path
from typing import Protocol

import mappy
import numpy as np
import numpy.typing as npt

from porestream.models.simulate.sequence import decode, encode, reverse_complement
from porestream.models.train.accuracy import best_hit
from porestream.models.train.records import primary_records

_PRESET = "map-ont"

Aligned = tuple[mappy.Alignment, npt.NDArray[np.uint8], int]
"""The best hit, the truth (0-3) from the hit's `r_st` to its `r_en`, and the number of bases of the whole truth."""


class Truths(Protocol):
    """Knows the truth of reads, and aligns called reads to it."""

    def knows(self, read_id: str) -> bool:
        """Return whether a read can be compared."""

    def align(self, read_id: str, called: str) -> Aligned | None:
        """Align a called read; return None if it has no hit."""


class ReadTruths:
    """A true sequence for every read; each read is aligned only to its own.

    Parameters
    ----------
    sequences
        True sequences by read id.
    """

    def __init__(self, sequences: dict[str, str]) -> None:
        self._sequences = sequences

    def knows(self, read_id: str) -> bool:
        """Return whether the read has a truth."""
        return read_id in self._sequences

    def align(self, read_id: str, called: str) -> Aligned | None:
        """Align to the read's truth."""
        truth = self._sequences[read_id]
        hit = best_hit(mappy.Aligner(seq=truth, preset=_PRESET), called)
        return None if hit is None else (hit, encode(truth[hit.r_st : hit.r_en]), len(truth))


class ReferenceTruth:
    """One reference for all reads.

    Parameters
    ----------
    path
        FASTA, plain or gzip.

    Raises
    ------
    ValueError
        The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._aligner = mappy.Aligner(str(path), preset=_PRESET)
        if not self._aligner:
            raise ValueError(f"{path}: not a reference that minimap2 can read")

    def knows(self, read_id: str) -> bool:
        """Return True: all reads are compared."""
        return True

    def align(self, read_id: str, called: str) -> Aligned | None:
        """Align to the reference. The truth's length is unknown, so the called read's length is used instead."""
        hit = best_hit(self._aligner, called)
        if hit is None:
            return None
        return hit, encode(self._aligner.seq(hit.ctg, hit.r_st, hit.r_en)), len(called)


def simulated_truths(table: Path, reference: Path) -> ReadTruths:
    """Read a simulated run's truth table: columns read_id, contig, start, end (0-based, half-open) and strand.

    Raises
    ------
    ValueError
        A column is missing, or a contig is not in the reference.
    """
    contigs = {name: text for name, text, _ in mappy.fastx_read(str(reference))}
    sequences = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            try:
                text = contigs[row["contig"]][int(row["start"]) : int(row["end"])]
                forward = row["strand"] == "+"
                sequences[row["read_id"]] = text if forward else decode(reverse_complement(encode(text)))
            except KeyError as error:
                raise ValueError(f"{table}, {reference}: no column or contig {error}") from error
    return ReadTruths(sequences)


def basecalls(bam: Path) -> ReadTruths:
    """Return the bases of a BAM's primary records, as sequenced: another caller's calls, including their errors."""
    sequences: dict[str, str] = {}
    for name, record in primary_records(bam):
        if sequence := record.get_forward_sequence():
            sequences.setdefault(name, sequence)
    return ReadTruths(sequences)
