"""The aligner protocol, and its implementation with minimap2 through mappy.

mappy returns coordinates, CIGAR, NM and MAPQ; this module works out AS, de and the supplementary flag as minimap2 does.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mappy
import numpy as np
import numpy.typing as npt

from porestream.kernels.align.fasta import Reference, first_bytes, read_fasta
from porestream.kernels.align.mmi import MAGIC, Preset, index_fasta, load_index
from porestream.kernels.align.tasks import MINIMAP2

# minimap2 2.31, options.c (mm_set_opt); both score alike (mm_mapopt_init).
PRESETS = {preset.name: preset for preset in (Preset("map-ont", k=15, w=10), Preset("lr:hq", k=19, w=19))}
REVERSE, SECONDARY, SUPPLEMENTARY = 0x10, 0x100, 0x800
_M, _I, _D, _S = 0, 1, 2, 4  # BAM's CIGAR operations
_LONG_READ_BASES = 10_000
_IS_AMBIGUOUS = np.ones(256, np.bool_)
_IS_AMBIGUOUS[list(b"ACGTUacgtu")] = False  # sketch.c, seq_nt4_table


class UnknownPresetError(ValueError):
    """The preset is not in `PRESETS`."""

    def __init__(self, preset: str) -> None:
        super().__init__(f"unknown preset {preset!r}; choose one of: {', '.join(PRESETS)}")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Alignment:
    """The fields of one SAM record.

    Attributes
    ----------
    flag
        SAM's FLAG: 16 reverse strand, 256 secondary, 2048 supplementary.
    reference_name, reference_start, reference_end
        0-based, half-open, in bases.
    mapping_quality
        0-60.
    cigar
        uint32[operations], BAM's encoding (length << 4 | operation), in the reference's orientation; soft clips at both
        ends make it span the whole read.
    score
        AS: the dual affine score of the CIGAR. minimap2 reports the score from before it tidies up the CIGAR (align.c,
        mm_fix_cigar); for 0.1 % of alignments to tandem repeats that differs by a few points.
    edit_distance
        NM: mismatches, gap bases, and all ambiguous bases, even N against N.
    md
        MD; empty unless requested. N against N counts as a match, as in minimap2.
    divergence
        de: 1 - matches / columns, each gap counted as one column.
    """

    flag: int
    reference_name: str
    reference_start: int
    reference_end: int
    mapping_quality: int
    cigar: npt.NDArray[np.uint32]
    score: int
    edit_distance: int
    md: str
    divergence: float


class Aligner(Protocol):
    """Aligns reads to one reference; safe to call from several threads."""

    @property
    def reference(self) -> Reference: ...

    @property
    def preset(self) -> str: ...

    @property
    def device_class(self) -> str:
        """Whatever, besides reference and preset, affects the choice of equally good alignments; empty for mappy."""
        ...

    def align(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        """Align one read.

        Parameters
        ----------
        name
            The read's name: minimap2 breaks ties by its hash (map.c, mm_map_frag_core).
        sequence
            Bases, in the order they were read.
        md
            Whether to fill in `Alignment.md`.

        Returns
        -------
        list[Alignment]
            The primary alignment first, then the others in minimap2's order; empty if the read is unmapped.
        """
        ...


class MappyAligner:
    """minimap2 on the CPU: all threads share one index and have their own buffers. Mapping runs without the GIL."""

    def __init__(self, index: mappy.Aligner, reference: Reference, preset: str) -> None:
        self.reference = reference
        self.preset = preset
        self.device_class = ""
        self._index = index
        self._of_thread = threading.local()

    def align(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        """See `Aligner.align`."""
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(sequence) > _LONG_READ_BASES:
            buffer = mappy.ThreadBuffer()  # long reads get a throwaway buffer, because buffers never shrink
        if len(sequence) <= _LONG_READ_BASES:
            self._of_thread.buffer = buffer
        alignments: list[Alignment] = []
        for hit in self._index.map(sequence, name=name, buf=buffer, MD=md):
            # hit.c, mm_set_sam_pri: the first of several primaries becomes the record, the others are supplementary
            flag = (0 if not alignments else SUPPLEMENTARY) if hit.is_primary else SECONDARY
            alignments.append(self._alignment(hit, sequence, flag))
        return alignments

    def bases(self, name: str, start: int, end: int) -> str:
        """Return bases of a reference sequence in upper case; fewer if it ends before `end`."""
        return str(self._index.seq(name, start, end))

    def _alignment(self, hit: mappy.Alignment, sequence: str, flag: int) -> Alignment:
        clips = [hit.q_st, len(sequence) - hit.q_en]
        if hit.strand < 0:
            flag |= REVERSE
            clips.reverse()
        before, after = ([clip << 4 | _S] if clip else [] for clip in clips)
        cigar = np.array([*before, *[length << 4 | op for length, op in hit.cigar], *after], np.uint32)
        aligned = cigar[len(before) : len(before) + len(hit.cigar)]
        lengths, operations = aligned >> 4, aligned & 15
        gaps = lengths[operations != _M].astype(np.int64)  # these presets only produce M, I and D
        gap_bases, columns = int(gaps.sum()), int(lengths.sum())
        ambiguous = columns - hit.blen  # align.c, mm_update_extra: blen does not count ambiguous bases
        if ambiguous:
            ambiguous -= self._ambiguous_in_gaps(hit, sequence, lengths, operations)
        mismatches = columns - gap_bases - hit.mlen - ambiguous
        score = MINIMAP2.match * hit.mlen - MINIMAP2.mismatch * mismatches - MINIMAP2.ambiguous * ambiguous
        return Alignment(
            flag=flag,
            reference_name=hit.ctg,
            reference_start=hit.r_st,
            reference_end=hit.r_en,
            mapping_quality=hit.mapq,
            cigar=cigar,
            score=score - int(MINIMAP2.gap_costs(gaps).sum()),
            edit_distance=hit.NM,
            md=hit.MD if hit.MD[-1:].isdigit() or not hit.MD else hit.MD + "0",  # SAM wants a number last
            divergence=1 - hit.mlen / (columns - gap_bases + len(gaps)),  # align.c, mm_event_identity
        )

    def _ambiguous_in_gaps(
        self, hit: mappy.Alignment, sequence: str, lengths: npt.NDArray[np.integer], operations: npt.NDArray[np.integer]
    ) -> int:
        """Count the letters other than ACGTU in an alignment's inserted and deleted bases."""
        read = sequence[hit.q_st : hit.q_en]
        if hit.strand < 0:
            read = mappy.revcomp(read)
        count = 0
        reference = self._index.seq(hit.ctg, hit.r_st, hit.r_en)
        for bases, gap, absent in ((read, _I, _D), (reference, _D, _I)):
            is_ambiguous = _IS_AMBIGUOUS[np.frombuffer(bases.encode(), np.uint8)]
            in_gap = np.repeat(operations == gap, np.where(operations == absent, 0, lengths))
            count += int(np.count_nonzero(is_ambiguous & in_gap))
        return count


def load_reference(
    path: Path, *, preset: str, cache_dir: Path | None, threads: int, all_anchors: bool = False
) -> MappyAligner:
    """Load a reference to align to. mappy holds the GIL meanwhile (minutes for a human genome), so load at startup.

    Parameters
    ----------
    path
        FASTA, plain or gzipped, or a minimap2 .mmi.
    preset
        One of `PRESETS`.
    cache_dir
        Where a FASTA's index is kept for the next start; None means that it is not kept.
    threads
        Threads for building an index.
    all_anchors
        Whether chaining considers every anchor within reach (infinite max_chain_skip), as the kernels do. Alignments
        rarely differ.

    Raises
    ------
    UnknownPresetError
        The preset is not in `PRESETS`.
    ReferenceFileError
        The reference cannot be used.
    """
    if preset not in PRESETS:
        raise UnknownPresetError(preset)
    if first_bytes(path, len(MAGIC)) == MAGIC:
        index, reference = load_index(path, PRESETS[preset], all_anchors)
    else:
        reference = read_fasta(path)
        index = index_fasta(path, reference, PRESETS[preset], cache_dir, threads, all_anchors)
    return MappyAligner(index, reference, preset)


def preset_for_model(model_name: str) -> str:
    """Choose a preset by a basecalling model's accuracy: ``lr:hq`` for hac and sup, ``map-ont`` for everything else.

    ``lr:hq`` is dorado's default, but its 19-mers miss short reads of 90 % identity.
    """
    return "lr:hq" if re.search(r"(^|_)(hac|sup)([@_,]|$)", model_name) else "map-ont"
