"""Turn results into SAM records, with dorado's tags as far as POD5 and the caller know them."""

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import pysam

from porestream.client.reads import (
    Alignment,
    CalledPart,
    CallerIdentity,
    ReadInfo,
    ReadResult,
    ReadStatus,
    ReferenceSequence,
    RunInfo,
)
from porestream.client.sources.runs import instrument_fields
from porestream.client.text import one_line, printable

UNMAPPED, REVERSE, SECONDARY, QC_FAIL, SUPPLEMENTARY = 0x4, 0x10, 0x100, 0x200, 0x800
_CIGAR = "MIDNSHP=X"
_MAX_FLOAT32 = 3.4028234e38


def header(
    runs: Iterable[RunInfo],
    identity: CallerIdentity,
    sequences: Sequence[ReferenceSequence] = (),
    command_line: str = "",
    choices: str = "",
    identity_of: Callable[[RunInfo], CallerIdentity] | None = None,
) -> pysam.AlignmentHeader:
    """Make the header: @HD, an @SQ per reference sequence, an @RG per run, an @PG per caller and aligner.

    The fields follow ONT's output specification for BAM. DS of a caller's @PG has all that determines a read's bytes:
    the caller's identity, and `choices` for filtering and trimming ("min_qscore=10 trim=adapters"). Each @RG names its
    caller's @PG. If `identity_of` is None, `identity` is the caller of every run.
    """
    callers = {run: identity_of(run) if identity_of else identity for run in runs}
    suffixes = {caller: f".{number}" if number else "" for number, caller in enumerate(dict.fromkeys(callers.values()))}
    programs = [
        program
        for caller, suffix in (suffixes or {identity: ""}).items()
        for program in _program_lines(caller, suffix, command_line, choices)
    ]
    return pysam.AlignmentHeader.from_dict(
        {
            "HD": {"VN": "1.6", "SO": "unknown"},
            "SQ": [_sequence_line(sequence) for sequence in sequences],
            "RG": [_group_line(run, caller, f"basecaller{suffixes[caller]}") for run, caller in callers.items()],
            "PG": programs,
        }
    )


def _program_lines(identity: CallerIdentity, suffix: str, command_line: str, choices: str) -> Iterator[dict[str, str]]:
    """Yield the caller's @PG, then the aligner's."""
    caller = {
        "ID": f"basecaller{suffix}",
        "PN": "porestream",
        "VN": identity.version,
        "DS": one_line(
            f"basecall_model={identity.model} model_sha256={identity.model_sha256} "
            f"precision={identity.precision} device={identity.device_class} "
            f"calling_revision={identity.calling_revision} {choices}"
        ),
    }
    if command_line:
        caller["CL"] = one_line(command_line)
    yield caller
    if identity.reference:
        yield {
            "ID": f"aligner{suffix}",
            "PP": f"basecaller{suffix}",
            "PN": "minimap2",
            "VN": version("mappy"),
            "DS": one_line(
                f"preset={identity.preset} reference={identity.reference} sha256={identity.reference_sha256}"
            ),
        }


def _sequence_line(sequence: ReferenceSequence) -> dict[str, str | int]:
    line: dict[str, str | int] = {"SN": sequence.name, "LN": sequence.length}
    if sequence.md5:
        line["M5"] = sequence.md5
    return line


def _group_line(run: RunInfo, identity: CallerIdentity, program: str) -> dict[str, str]:
    return {
        "ID": read_group(run, identity.model),
        "PL": "ONT",
        "PG": program,
        "DS": printable(f"runid={run.run_id} basecall_model={identity.model}"),
    } | instrument_fields(run)


def read_group(run: RunInfo, model: str) -> str:
    """Return the id of a run's read group, as dorado does, but unique for runs that share an id."""
    return printable(f"{run.key}_{model}")


def records(result: ReadResult, head: pysam.AlignmentHeader, model: str) -> Iterator[pysam.AlignedSegment]:
    """Yield a result's records: each part's primary, supplementary and secondary alignments, or one unmapped record.

    Supplementary records carry the whole sequence, soft-clipped; secondary ones carry none.
    """
    for part in result.parts:
        common = _tags(result, part, model)
        clip_free = [alignment for alignment in part.alignments if not alignment.flag & SECONDARY]
        qc_fail = QC_FAIL if ReadStatus.FILTERED in (result.status, part.status) else 0
        for alignment in part.alignments or (None,):
            record = pysam.AlignedSegment(head)
            record.query_name = str(part.read_id)
            record.flag = qc_fail | (alignment.flag if alignment else UNMAPPED)
            if not (alignment and alignment.flag & SECONDARY):
                is_reverse = bool(alignment and alignment.flag & REVERSE)
                record.query_sequence = _reverse_complement(part.sequence) if is_reverse else part.sequence
                record.query_qualities = array.array("B", part.qualities[::-1] if is_reverse else part.qualities)
            tags = list(common)
            if alignment:
                record.reference_name = alignment.reference_name
                record.reference_start = alignment.reference_start
                record.mapping_quality = alignment.mapping_quality
                record.cigartuples = [(value & 15, value >> 4) for value in alignment.cigar]
                tags += _alignment_tags(alignment, clip_free)
            record.set_tags(tags)
            yield record


def _tags(result: ReadResult, part: CalledPart, model: str) -> list[tuple[str, Any, str]]:
    info = result.info
    rate = info.run.sample_rate_hz
    tags: list[tuple[str, Any, str]] = [
        ("qs", part.mean_qscore, "f"),
        ("du", part.samples / rate if rate else 0.0, "f"),
        ("ns", part.samples, "i"),
        ("ts", part.trimmed_samples, "i"),
        ("mx", info.well, "i"),
        ("ch", info.channel, "i"),
        ("rn", info.read_number, "i"),
        ("fn", printable(info.file_name), "Z"),
        ("sm", result.scaling_midpoint_pa, "f"),
        ("sd", result.scaling_dispersion_pa, "f"),
        ("sv", printable(result.scaling_strategy), "Z"),
        ("dx", 0, "i"),
        ("RG", read_group(info.run, model), "Z"),
    ]
    if start := _start_time(info):
        tags.append(("st", start, "Z"))
    tags += [(tag, printable(said), "Z") for tag, said in (("er", info.end_reason), ("po", info.pore_type)) if said]
    if part.read_id != info.read_id:
        tags.append(("pi", str(info.read_id), "Z"))
    if part.moves:
        tags.append(("mv", array.array("b", bytes([part.stride_samples]) + part.moves), "c"))  # B:c
    return [tag for tag in tags if _fits(*tag[1:])]


def _fits(value: Any, kind: str) -> bool:
    """Whether a tag can hold this value: instruments have been seen to write NaN."""
    if kind == "i":
        return bool(-(1 << 31) <= value < 1 << 31)
    return kind != "f" or bool(abs(value) <= _MAX_FLOAT32)  # false for NaN


def _start_time(info: ReadInfo) -> str:
    begin, rate = info.run.acquisition_start_time, info.run.sample_rate_hz
    if begin is None or not rate:
        return ""
    try:
        return (begin + timedelta(seconds=info.start_sample / rate)).isoformat(timespec="milliseconds")
    except OverflowError:
        return ""


def _alignment_tags(alignment: Alignment, chimeric: Sequence[Alignment]) -> list[tuple[str, Any, str]]:
    tags: list[tuple[str, Any, str]] = [
        ("NM", alignment.edit_distance, "i"),
        ("AS", alignment.score, "i"),
        ("de", alignment.divergence, "f"),
        ("tp", "S" if alignment.flag & SECONDARY else "P", "A"),
    ]
    if alignment.md:
        tags.append(("MD", alignment.md, "Z"))
    if not alignment.flag & SECONDARY and len(chimeric) > 1:
        others = "".join(_sa(other) for other in chimeric if other is not alignment)
        tags.append(("SA", others, "Z"))
    return tags


def _sa(alignment: Alignment) -> str:
    strand = "-" if alignment.flag & REVERSE else "+"
    cigar = "".join(f"{value >> 4}{_CIGAR[value & 15]}" for value in alignment.cigar)
    return (
        f"{alignment.reference_name},{alignment.reference_start + 1},{strand},{cigar},"
        f"{alignment.mapping_quality},{alignment.edit_distance};"
    )


_COMPLEMENT = str.maketrans("ACGT", "TGCA")


def _reverse_complement(sequence: str) -> str:
    return sequence.translate(_COMPLEMENT)[::-1]
