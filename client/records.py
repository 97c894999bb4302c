"""Results as SAM or BAM records, with dorado's tags as far as POD5 and the caller know them."""

import array
import errno
import os
import re
import select
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

UNMAPPED, REVERSE, SECONDARY, QC_FAIL, SUPPLEMENTARY = 0x4, 0x10, 0x100, 0x200, 0x800
_CIGAR = "MIDNSHP=X"
_STDOUT = 1


def header(
    runs: Iterable[RunInfo],
    identity: CallerIdentity,
    sequences: Sequence[ReferenceSequence] = (),
    command_line: str = "",
) -> pysam.AlignmentHeader:
    """The header: @HD, an @SQ for each reference sequence, an @RG for each run, an @PG for caller and aligner."""
    caller = {
        "ID": "basecaller",
        "PN": "porestream",
        "VN": identity.version,
        "DS": _clean(
            f"basecall_model={identity.model} model_sha256={identity.model_sha256} "
            f"precision={identity.precision} device={identity.device_class}"
        ),
    }
    if command_line:
        caller["CL"] = _clean(command_line)
    programs = [caller]
    if identity.reference:
        programs.append(
            {
                "ID": "aligner",
                "PP": "basecaller",
                "PN": "minimap2",
                "VN": version("mappy"),
                "DS": _clean(
                    f"preset={identity.preset} reference={identity.reference} sha256={identity.reference_sha256}"
                ),
            }
        )
    return pysam.AlignmentHeader.from_dict(
        {
            "HD": {"VN": "1.6", "SO": "unknown"},
            "SQ": [_sequence_line(sequence) for sequence in sequences],
            "RG": [_group_line(run, identity) for run in runs],
            "PG": programs,
        }
    )


def _sequence_line(sequence: ReferenceSequence) -> dict[str, str | int]:
    line: dict[str, str | int] = {"SN": sequence.name, "LN": sequence.length}
    if sequence.md5:
        line["M5"] = sequence.md5
    return line


def _group_line(run: RunInfo, identity: CallerIdentity) -> dict[str, str]:
    line = {
        "ID": read_group(run, identity.model),
        "PL": "ONT",
        "DS": _clean(f"basecall_model={identity.model} runid={run.run_id}"),
        "PU": _clean(run.flow_cell_id),
        "PM": _clean(run.position),
        "SM": _clean(run.sample_id),
        "LB": _clean(run.experiment_id),
        "DT": run.acquisition_start_time.isoformat(timespec="milliseconds") if run.acquisition_start_time else "",
    }
    return {key: value for key, value in line.items() if value}


def read_group(run: RunInfo, model: str) -> str:
    """The id of a run's read group, as dorado makes it."""
    return _printable(f"{run.run_id}_{model}")


def records(result: ReadResult, head: pysam.AlignmentHeader, model: str) -> Iterator[pysam.AlignedSegment]:
    """A result's records: for each part its primary, supplementary and secondary alignments, or one unmapped record.

    Supplementary records carry the whole sequence, soft-clipped; secondary ones carry none.
    """
    for part in result.parts:
        common = _tags(result, part, model)
        clip_free = [alignment for alignment in part.alignments if not alignment.flag & SECONDARY]
        qc_fail = QC_FAIL if result.status is ReadStatus.FILTERED else 0
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
        ("fn", _printable(info.file_name), "Z"),
        ("sm", result.scaling_midpoint_pa, "f"),
        ("sd", result.scaling_dispersion_pa, "f"),
        ("sv", _printable(result.scaling_strategy), "Z"),
        ("dx", 0, "i"),
        ("RG", read_group(info.run, model), "Z"),
    ]
    if start := _start_time(info):
        tags.append(("st", start, "Z"))
    if part.read_id != info.read_id:
        tags.append(("pi", str(info.read_id), "Z"))
    if part.moves:
        tags.append(("mv", array.array("b", bytes([part.stride_samples]) + part.moves), "c"))  # B:c
    return tags


def _start_time(info: ReadInfo) -> str:
    begin, rate = info.run.acquisition_start_time, info.run.sample_rate_hz
    if begin is None or not rate:
        return ""
    return (begin + timedelta(seconds=info.start_sample / rate)).isoformat(timespec="milliseconds")


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


def _clean(text: str) -> str:
    """A header field: tabs and line ends would break it."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


@lru_cache(maxsize=256)  # few texts, each in very many records
def _printable(text: str) -> str:
    """What a Z tag may hold: printable ASCII and space (SAM specification, section 1.5)."""
    return re.sub("[^ -~]", "_", text)


class RecordWriter:
    """Writes results to a BAM or SAM; a context manager.

    Parameters
    ----------
    output
        OUT.bam, OUT.sam, or "-": standard output, as SAM on a terminal, else as uncompressed BAM.
    runs, identity, sequences, command_line
        For the header.

    Raises
    ------
    OSError
        The file cannot be written, or not to its end.
    """

    def __init__(
        self,
        output: str,
        runs: Mapping[str, RunInfo],
        identity: CallerIdentity,
        sequences: Sequence[ReferenceSequence] = (),
        command_line: str = "",
    ) -> None:
        self._model = identity.model
        self._header = header(runs.values(), identity, sequences, command_line)
        self._path = None if output == "-" else Path(output)
        self._file = pysam.AlignmentFile(output, output_mode(output), header=self._header)

    def write(self, result: ReadResult) -> None:
        """Write all of a result's records."""
        for record in records(result, self._header, self._model):
            try:
                self._file.write(record)
            except OSError as error:
                raise self._named(error) from error

    def write_all(self, results: Iterable[ReadResult]) -> None:
        """Write the records of several results."""
        for result in results:
            self.write(result)

    def close(self) -> None:
        """Finish the file, down to the disk."""
        if self._file.closed:
            return
        pipe = os.dup(_STDOUT) if self._path is None else None
        try:
            self._file.close()
            if pipe is not None and _reader_is_gone(pipe):  # pysam passes over EPIPE
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        except OSError as error:
            raise self._named(error) from error
        finally:
            if pipe is not None:
                os.close(pipe)
        if self._path is not None and self._path.is_file():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def _named(self, error: OSError) -> OSError:
        where = f"cannot write to {self._path or 'standard output'}"
        if not error.errno:
            return OSError(f"{where}: {error}")
        return OSError(error.errno, f"{where}: {os.strerror(error.errno)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reader_is_gone(pipe: int) -> bool:
    """Whether a pipe's other end was closed; it cannot have seen the end of the data while we hold this one."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def output_mode(output: str) -> str:
    """pysam's mode for an output's name; ValueError where the name does not tell the format."""
    if output == "-":
        return "w" if sys.stdout.isatty() else "wbu"
    suffix = Path(output).suffix
    if suffix not in (".bam", ".sam"):
        raise ValueError(f"{output}: the output's name must end in .bam or .sam, or be - for standard output")
    return "wb" if suffix == ".bam" else "w"
