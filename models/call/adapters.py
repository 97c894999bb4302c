"""Sequencing adapters at the ends of called DNA reads: what they are, where they are found, and reads without them.

The strand that is read begins with the adapter's top strand and, if it was read to its end, ends with the bottom strand
of the other adapter, of which as a rule only the first dozen bases are called.

Sources of the sequences: Oxford Nanopore's Chemistry Technical Document (CHTD_500_v1_revAR_25Nov2024, appendices 14 and
15, and for LSK109 earlier revisions)::

    ligation and native adapter of kits 110-114, rapid adapter (LA, NA, RA; top)  TTTTTTTTCCTGTACTTCGTTCAGTTACGTATTGCT
    the same of kits 108 and 109 (AMX, RAP; top)                          TTTTTTTTTTTAATGTACTTCGTTCAGTTACGTATTGCT
    ligation adapter of kits 110-114 (LA; bottom)                                        GCAATACGTAACTGAACGAAGTACAGG
    ligation adapter of kits 108 and 109 (AMX; bottom)                                        GCAATACGTAACTGAACGAAGT
    transposase adapter of rapid kits, also 3' of their barcodes
                                                            GTTTTCGCATTTATCGTGAAACGCTTTCGCGTTTTTCGTGCGCCGCTTCA

All generations share the 24 bases before the insert and the 22 after it (with the insert's dA tail: 23), so nothing
depends on the kit's generation.
"""

import re
from dataclasses import replace
from typing import NamedTuple

import edlib
import numpy as np

from porestream.models.call.basecaller import CalledRead

TOP = "TACTTCGTTCAGTTACGTATTGCT"
BOTTOM = "AGCAATACGTAACTGAACGAAGT"
TRANSPOSASE = "GTTTTCGCATTTATCGTGAAACGCTTTCGCGTTTTTCGTGCGCCGCTTCA"
MIN_KEPT_BASES = 20
"""What is left of a read has at least so many bases: fewer than a seed of minimap2's hold no information on their
origin, and a read that is all adapter should look like one."""


class _Probe(NamedTuple):
    """A part of an adapter, with how many edits and in how many bases at the read's end it is recognised."""

    sequence: str
    max_edits: int
    window: int


# Edits and windows were chosen on real reads of R9.4.1 and R10.4.1, and on stretches of genomes and random bases, of
# which fewer than 1 in 1,000 was to be taken for an adapter. The short probes are for an adapter of which the trimmed
# leader or the signal's end has cut off a part. Those of the rear are reversed, for the search is from the read's end.
_FRONT = (_Probe(TOP, 6, 42), _Probe(TOP[-15:], 2, 50))
_REAR = (_Probe(BOTTOM[:14][::-1], 2, 30), _Probe(BOTTOM[:10][::-1], 1, 13))
_TRANSPOSASE_MAX_EDITS = 15
_TRANSPOSASE_MAX_GAP = 28  # after the adapter: 0 or 16 bases (GCTTGGGTGTTTAACC) lie between them, with a barcode 40


def trim_adapters(read: CalledRead, sequencing_kit: str = "") -> CalledRead:
    """A DNA read without the adapters at its ends, with qualities and moves of the bases that are left.

    As in dorado's output, moves begin with the first base that is left, `trimmed_samples` grows by what was before it,
    and where bases are cut off at the end, moves end with the last base that is left.

    Parameters
    ----------
    read
        As called. RNA is called against the signal's direction and has lost its adapter before: not for this function.
    sequencing_kit
        Of the run, e.g. "SQK-LSK114", in any case; empty: unknown. See `find_insert`.

    Returns
    -------
    CalledRead
        The same object where there is nothing to trim.
    """
    first, end = find_insert(read.sequence, sequencing_kit)
    if (first, end) == (0, len(read.sequence)):
        return read
    starts_B = np.flatnonzero(read.moves_T)
    first_step = int(starts_B[first]) if first else 0
    end_step = int(starts_B[end]) if end < starts_B.size else read.moves_T.size
    return replace(
        read,
        sequence=read.sequence[first:end],
        qualities_B=read.qualities_B[first:end],
        moves_T=read.moves_T[first_step:end_step],
        trimmed_samples=read.trimmed_samples + first_step * read.stride,
    )


def find_insert(sequence: str, sequencing_kit: str = "") -> tuple[int, int]:
    """Where the bases between the adapters begin and end.

    Parameters
    ----------
    sequence
        A read's bases ACGT, in the order in which they were called.
    sequencing_kit
        Rapid kits have no adapter at the read's end. Their transposase adapter is trimmed, too, also where the kit is
        unknown, unless a barcode lies between it and the sequencing adapter. Barcodes and primers stay.

    Returns
    -------
    tuple of int
        First base and end, as of a slice. Where fewer than `MIN_KEPT_BASES` would be left: the whole sequence.
    """
    family = _family(sequencing_kit)
    first = _adapter_bases(sequence, _FRONT)
    if family in ("RAD", "ULK") or (family == "" and first):
        first = _end_of_transposase(sequence, first)
    end = len(sequence)
    if family not in ("RAD", "ULK", "RBK"):
        end -= _adapter_bases(sequence[first:][: -_REAR[0].window - 1 : -1], _REAR)
    return (first, end) if end - first >= MIN_KEPT_BASES else (0, len(sequence))


def _family(sequencing_kit: str) -> str:
    """RBK of SQK-RBK114.24; empty for what is not a kit's name."""
    match = re.match(r"\s*[A-Z]{3}-([A-Z]+)", sequencing_kit.upper())
    return match[1] if match else ""


def _adapter_bases(sequence: str, probes: tuple[_Probe, ...]) -> int:
    """How many bases to cut off at the sequence's beginning: up to the nearest of equally good matches' ends."""
    for probe in probes:
        match = edlib.align(probe.sequence, sequence[: probe.window], mode="HW", k=probe.max_edits)
        if 0 <= match["editDistance"] <= probe.max_edits:
            return int(match["locations"][0][1]) + 1
    return 0


def _end_of_transposase(sequence: str, first: int) -> int:
    """The end of the transposase adapter after the base `first`, where the sequencing adapter ended; or `first`."""
    gap = _TRANSPOSASE_MAX_GAP if first else _FRONT[0].window + _TRANSPOSASE_MAX_GAP  # it may just not be recognised
    stop = first + gap + len(TRANSPOSASE) + _TRANSPOSASE_MAX_EDITS
    match = edlib.align(TRANSPOSASE, sequence[first:stop], mode="HW", task="locations", k=_TRANSPOSASE_MAX_EDITS)
    if not 0 <= match["editDistance"] <= _TRANSPOSASE_MAX_EDITS or match["locations"][0][0] > gap:
        return first
    return first + int(match["locations"][0][1]) + 1
