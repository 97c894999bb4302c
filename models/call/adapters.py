"""Finds and trims sequencing adapters at the ends of called DNA reads.

A read begins with the top strand of one adapter. If the whole strand was sequenced, it ends with the bottom strand of
the other adapter, of which usually only the first dozen bases are called.

Sources of the sequences: Oxford Nanopore's Chemistry Technical Document (CHTD_500_v1_revAR_25Nov2024, appendices 14 and
15, and for LSK109 earlier revisions)::

    ligation and native adapter of kits 110-114, rapid adapter (LA, NA, RA; top)  TTTTTTTTCCTGTACTTCGTTCAGTTACGTATTGCT
    the same of kits 108 and 109 (AMX, RAP; top)                          TTTTTTTTTTTAATGTACTTCGTTCAGTTACGTATTGCT
    ligation adapter of kits 110-114 (LA; bottom)                                        GCAATACGTAACTGAACGAAGTACAGG
    ligation adapter of kits 108 and 109 (AMX; bottom)                                        GCAATACGTAACTGAACGAAGT
    transposase adapter of rapid kits, also 3' of their barcodes
                                                            GTTTTCGCATTTATCGTGAAACGCTTTCGCGTTTTTCGTGCGCCGCTTCA

All generations share the 24 bases before the insert and the 22 after it (23 with the insert's dA tail), so the kit's
generation does not matter.
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
"""Trimming always leaves at least this many bases. Fewer than a minimap2 seed say nothing about their origin, and a
read that is all adapter should still look like one."""


class _Probe(NamedTuple):
    """Part of an adapter, with the most edits allowed and how many bases at the end of the read to search."""

    sequence: str
    max_edits: int
    window: int


# Edits and windows were tuned on real R9.4.1 and R10.4.1 reads, with a false positive rate below 1 in 1,000 on genomic
# and random sequence. The short probes find adapters that were cut short by leader trimming or the end of the signal.
# The rear probes are reversed because the search runs from the end of the read.
_FRONT = (_Probe(TOP, 6, 42), _Probe(TOP[-15:], 2, 50))
_REAR = (_Probe(BOTTOM[:14][::-1], 2, 30), _Probe(BOTTOM[:10][::-1], 1, 13))
_TRANSPOSASE_MAX_EDITS = 15
_TRANSPOSASE_MAX_GAP = 28  # 0 or 16 bases (GCTTGGGTGTTTAACC) separate it from the adapter; with a barcode, 40


def trim_adapters(read: CalledRead, sequencing_kit: str = "") -> CalledRead:
    """Trim the adapters at the ends of a DNA read, along with their qualities and moves.

    As in dorado's output, moves start at the first base kept, `trimmed_samples` grows by the samples before it, and if
    bases are trimmed at the end, moves stop at the last base kept.

    Parameters
    ----------
    read
        A DNA read, as called. Do not pass RNA: it is called against the signal's direction, and its adapter is trimmed
        before calling.
    sequencing_kit
        The run's kit, e.g. "SQK-LSK114", in upper or lower case; empty if unknown. See `find_insert`.

    Returns
    -------
    CalledRead
        The same object if there is nothing to trim.
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
    """Find the bases between the adapters.

    Parameters
    ----------
    sequence
        A read's bases ACGT, in the order in which they were called.
    sequencing_kit
        Reads from rapid kits have no adapter at the end. Their transposase adapter is trimmed too, even if the kit is
        unknown, unless a barcode separates it from the sequencing adapter. Barcodes and primers are kept.

    Returns
    -------
    tuple of int
        First base and end, as for a slice. If fewer than `MIN_KEPT_BASES` would be left, the whole sequence.
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
    """Return the kit's family: RBK for SQK-RBK114.24; empty if this is not a kit name."""
    match = re.match(r"\s*[A-Z]{3}-([A-Z]+)", sequencing_kit.upper())
    return match[1] if match else ""


def _adapter_bases(sequence: str, probes: tuple[_Probe, ...]) -> int:
    """Return how many bases to trim at the start; of equally good matches, the one that ends first counts."""
    for probe in probes:
        match = edlib.align(probe.sequence, sequence[: probe.window], mode="HW", k=probe.max_edits)
        if 0 <= match["editDistance"] <= probe.max_edits:
            return int(match["locations"][0][1]) + 1
    return 0


def _end_of_transposase(sequence: str, first: int) -> int:
    """Return the end of the transposase adapter after `first`, the end of the sequencing adapter; or `first`."""
    gap = _TRANSPOSASE_MAX_GAP if first else _FRONT[0].window + _TRANSPOSASE_MAX_GAP  # the adapter may have been missed
    stop = first + gap + len(TRANSPOSASE) + _TRANSPOSASE_MAX_EDITS
    match = edlib.align(TRANSPOSASE, sequence[first:stop], mode="HW", task="locations", k=_TRANSPOSASE_MAX_EDITS)
    if not 0 <= match["editDistance"] <= _TRANSPOSASE_MAX_EDITS or match["locations"][0][0] > gap:
        return first
    return first + int(match["locations"][0][1]) + 1
