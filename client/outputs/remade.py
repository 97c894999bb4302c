"""Rebuild results from records, as far as the sequencing summary of an interrupted call needs them.

With the read's POD5 at hand, its row is exact. Without it, the start is known to the millisecond and the experiment is
unknown. SAM and FASTQ hold a mean quality with six digits.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pysam

from porestream.client.outputs.records import QC_FAIL, REVERSE, SECONDARY, SUPPLEMENTARY, UNMAPPED
from porestream.client.reads import Alignment, CalledPart, ReadInfo, ReadResult, ReadStatus, RunInfo

_OF_ALIGNMENTS = REVERSE | SECONDARY | SUPPLEMENTARY


def read_id_of(record: pysam.AlignedSegment) -> UUID:
    """Return the read's id; part of a split read names it in a tag."""
    return UUID(str(record.get_tag("pi") if record.has_tag("pi") else record.query_name))


def is_primary(record: pysam.AlignedSegment) -> bool:
    """Whether this is the one primary record of its sequence."""
    return not record.flag & (SECONDARY | SUPPLEMENTARY)


def result_of(primary: pysam.AlignedSegment, others: Sequence[int], run: RunInfo, said: ReadInfo | None) -> ReadResult:
    """Rebuild one sequence's result, as far as records tell, with N for each base.

    Parameters
    ----------
    primary
        The primary record.
    others
        The flags of the secondary and supplementary records.
    run
        The run of its read group.
    said
        What the POD5 says of the read (see `sources.ReadFacts`); None if it is not at hand.
    """
    samples, trimmed = _number(primary, "ns"), _number(primary, "ts")
    seconds = float(_tag(primary, "du", 0.0))
    if not run.sample_rate_hz and seconds:  # headers do not have it
        run = replace(run, sample_rate_hz=round(samples / seconds))
    if said is None:
        said = ReadInfo(
            read_id=read_id_of(primary),
            run=run,
            offset_adc=0.0,
            scale_pa_per_adc=1.0,
            start_sample=_start_sample(primary, run),
            end_reason=str(_tag(primary, "er", "")),
            file_name=str(_tag(primary, "fn", "")),
            pore_type=str(_tag(primary, "po", "")),
        )
    said = replace(said, channel=_number(primary, "ch"), well=_number(primary, "mx"))
    alignments: tuple[Alignment, ...] = ()
    if not primary.flag & UNMAPPED:
        alignments = (
            _alignment(primary),
            *(
                Alignment(
                    flag=flag,
                    reference_name="",
                    reference_start=0,
                    reference_end=0,
                    mapping_quality=0,
                    cigar=(),
                    score=0,
                    edit_distance=0,
                    md="",
                    divergence=0.0,
                )
                for flag in others
            ),
        )
    part = CalledPart(
        read_id=UUID(str(primary.query_name)),
        sequence="N" * primary.query_length,
        qualities=b"",
        mean_qscore=float(_tag(primary, "qs", 0.0)),
        samples=samples,
        trimmed_samples=trimmed,
        stride_samples=0,
        moves=b"",
        alignments=alignments,
    )
    status = ReadStatus.FILTERED if primary.flag & QC_FAIL else ReadStatus.CALLED
    return ReadResult(
        info=said,
        status=status,
        detail="",
        signal_samples=samples,
        parts=(part,),
    )


def _alignment(record: pysam.AlignedSegment) -> Alignment:
    return Alignment(
        flag=record.flag & _OF_ALIGNMENTS,
        reference_name=str(record.reference_name),
        reference_start=record.reference_start,
        reference_end=record.reference_end or 0,
        mapping_quality=record.mapping_quality,
        cigar=tuple(length << 4 | operation for operation, length in record.cigartuples or ()),
        score=_number(record, "AS"),
        edit_distance=_number(record, "NM"),
        md="",
        divergence=0.0,
    )


def _start_sample(record: pysam.AlignedSegment, run: RunInfo) -> int:
    begin, start = run.acquisition_start_time, str(_tag(record, "st", ""))
    if begin is None or not start:
        return 0
    return round((datetime.fromisoformat(start) - begin).total_seconds() * run.sample_rate_hz)


def _number(record: pysam.AlignedSegment, tag: str) -> int:
    return int(_tag(record, tag, 0))


def _tag(record: pysam.AlignedSegment, tag: str, unknown: Any) -> Any:
    return record.get_tag(tag) if record.has_tag(tag) else unknown
