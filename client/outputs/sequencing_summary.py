"""ONT's sequencing summary, the table of called reads that QC tools read."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import numpy as np

from porestream.client.outputs.errors import cannot_write
from porestream.client.outputs.output_file import OutputFile
from porestream.client.outputs.records import REVERSE, SECONDARY, SUPPLEMENTARY
from porestream.client.reads import Alignment, CalledPart, ReadResult, ReadStatus
from porestream.client.sources.pod5_source import ReadIds
from porestream.client.text import cell

_READ_COLUMNS = (
    "input_filename",
    "parent_read_id",
    "read_id",
    "run_id",
    "channel",
    "mux",
    "start_time",
    "duration",
    "passes_filtering",
    "template_start",
    "template_duration",
    "sequence_length_template",
    "mean_qscore_template",
    "pore_type",
    "experiment_id",
    "sample_id",
    "end_reason",
)
_UNMAPPED = {  # the alignment columns, and their values without an alignment
    "alignment_genome": "*",
    "alignment_direction": "*",
    "alignment_genome_start": "-1",
    "alignment_genome_end": "-1",
    "alignment_strand_start": "-1",
    "alignment_strand_end": "-1",
    "alignment_num_insertions": "0",
    "alignment_num_deletions": "0",
    "alignment_num_aligned": "0",
    "alignment_num_correct": "0",
    "alignment_identity": "0.0",
    "alignment_accuracy": "0.0",
    "alignment_score": "0",
    "alignment_coverage": "0.0",
    "alignment_mapping_quality": "0",
    "alignment_num_alignments": "0",
    "alignment_num_secondary_alignments": "0",
    "alignment_num_supplementary_alignments": "0",
}
_BATCH_ROWS = 4096
_MATCH, _INSERTION, _DELETION, _SOFT_CLIP, _HARD_CLIP, _EQUAL, _MISMATCH = 0, 1, 2, 4, 5, 7, 8  # as BAM numbers them


class SummaryTable:
    """Write results to a sequencing summary, which appears when it is complete; a context manager.

    Tab-separated, one row per called sequence.

    Names, units and order of the columns follow ONT's output specification (sequencing summary 1.1, the one made from
    files), without columns that do not apply here: batches, events, poly(A) tails, barcodes, BED files and duplex.
    Times are in seconds, and starts count from the run's start. Each part of a split read has its own row, with the
    start of the whole read, whose id is `parent_read_id`. Filtered reads have FALSE in `passes_filtering`; rejected and
    failed reads have no row.

    Parameters
    ----------
    path
        The file, usually sequencing_summary.txt.
    continued
        The table of the call that this one continues, if any: see `OutputFile`.
    aligned
        Whether to write alignment columns. They describe the primary alignment; for an unmapped sequence they are `*`,
        -1 and 0, as dorado writes them.

    Raises
    ------
    OSError
        The file cannot be written, or not to its end.
    """

    def __init__(self, path: Path, continued: Path | None = None, *, aligned: bool) -> None:
        self._aligned = aligned
        self._columns = [*_READ_COLUMNS, *(_UNMAPPED if aligned else ())]
        self._header = "\t".join(self._columns) + "\n"
        try:
            self._place = OutputFile(path, continued)
            self._file = self._place.written.open("w", encoding="utf-8", newline="\n")
            self._file.write(self._header)
        except OSError as error:
            raise cannot_write(path, error) from error

    def copy(self, before: Path, read_ids: ReadIds) -> ReadIds:
        """Take over an earlier call's rows for these reads; return the ids of their sequences.

        Skip damaged rows, rows that were cut short, and a table with other columns.
        """
        found = ReadIds()
        with before.open(encoding="utf-8", errors="replace", newline="\n") as rows:
            if rows.readline() != self._header:
                return found
            while batch := list(itertools.islice(rows, _BATCH_ROWS)):
                sound = [(row, ids) for row in batch if (ids := self._ids_of(row))]
                wanted_N = read_ids.known(np.array([read_id for _, (read_id, _) in sound], "S16"))
                by_sequence = {
                    sequence: row for (row, (_, sequence)), wanted in zip(sound, wanted_N, strict=True) if wanted
                }
                sequences_N = np.array(list(by_sequence), "S16")
                new_N = ~found.known(sequences_N)
                self._write(row for row, is_new in zip(by_sequence.values(), new_N, strict=True) if is_new)
                found.add(sequences_N)
        return found

    def _ids_of(self, row: str) -> tuple[bytes, bytes] | None:
        """Return the ids of the read and of the sequence; None if this is not a row of this table."""
        fields = row.split("\t")
        if not row.endswith("\n") or len(fields) != len(self._columns) or "\ufffd" in row or "\0" in row:
            return None
        try:
            return UUID(fields[1]).bytes, UUID(fields[2]).bytes
        except ValueError:
            return None

    def settle(self) -> None:
        """Say that everything is taken over: see `OutputFile`."""
        self._place.settle()

    def write_all(self, results: Iterable[ReadResult]) -> None:
        """Write the rows of several results."""
        self._write(self._row(result, part) for result in results for part in result.parts)

    def close(self, *, finish: bool = True) -> None:
        """Close the file and flush it to disk; with `finish`, give it its final name."""
        if self._file.closed:
            return
        try:
            with self._file:
                self._file.flush()
                if self._place.written.is_file():
                    os.fsync(self._file.fileno())
            if finish:
                self._place.finish()
        except OSError as error:
            raise cannot_write(self._place.written, error) from error
        finally:
            self._place.release()

    def _write(self, rows: Iterable[str]) -> None:
        try:
            self._file.writelines(rows)
        except OSError as error:
            raise cannot_write(self._place.written, error) from error

    def _row(self, result: ReadResult, part: CalledPart) -> str:
        values = _read_values(result, part)
        if self._aligned:
            values |= _alignment_values(part) if part.alignments else _UNMAPPED
        return "\t".join(values[column] for column in self._columns) + "\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finish=kind is None)


def _read_values(result: ReadResult, part: CalledPart) -> dict[str, str]:
    info, run = result.info, result.info.run
    return {
        "input_filename": _field(info.file_name),
        "parent_read_id": str(info.read_id),
        "read_id": str(part.read_id),
        "run_id": _field(run.run_id),
        "channel": str(info.channel),
        "mux": str(info.well),
        "start_time": _seconds(info.start_sample, run.sample_rate_hz),
        "duration": _seconds(part.samples, run.sample_rate_hz),
        "passes_filtering": "FALSE" if result.status is ReadStatus.FILTERED else "TRUE",
        "template_start": _seconds(info.start_sample + part.trimmed_samples, run.sample_rate_hz),
        "template_duration": _seconds(part.samples - part.trimmed_samples, run.sample_rate_hz),
        "sequence_length_template": str(len(part.sequence)),
        "mean_qscore_template": f"{part.mean_qscore:.6f}",
        "pore_type": _field(info.pore_type),
        "experiment_id": _field(run.experiment_id),
        "sample_id": _field(run.sample_id),
        "end_reason": _field(info.end_reason),
    }


def _alignment_values(part: CalledPart) -> dict[str, str]:
    """Return the columns of the primary alignment.

    As in dorado, identity counts bases aligned to a base, and accuracy all columns of the alignment. `strand_start` and
    `strand_end` count along the sequence as in SAM, which is the reverse complement for `-`.
    """
    primary: Alignment = part.alignments[0]
    bases = _bases_of_operations(primary.cigar)
    aligned, inserted, deleted = bases[_MATCH] + bases[_EQUAL] + bases[_MISMATCH], bases[_INSERTION], bases[_DELETION]
    correct = aligned - (primary.edit_distance - inserted - deleted)  # NM: substitutions and gaps
    begin, end = _clip(primary.cigar), len(part.sequence) - _clip(primary.cigar[::-1])
    return {
        "alignment_genome": _field(primary.reference_name),
        "alignment_direction": "-" if primary.flag & REVERSE else "+",
        "alignment_genome_start": str(primary.reference_start),
        "alignment_genome_end": str(primary.reference_end),
        "alignment_strand_start": str(begin),
        "alignment_strand_end": str(end),
        "alignment_num_insertions": str(inserted),
        "alignment_num_deletions": str(deleted),
        "alignment_num_aligned": str(aligned),
        "alignment_num_correct": str(correct),
        "alignment_identity": _ratio(correct, aligned),
        "alignment_accuracy": _ratio(correct, aligned + inserted + deleted),
        "alignment_score": str(primary.score),
        "alignment_coverage": _ratio(end - begin, len(part.sequence)),
        "alignment_mapping_quality": str(primary.mapping_quality),
        "alignment_num_alignments": str(len(part.alignments)),
        "alignment_num_secondary_alignments": str(_flagged(part, SECONDARY)),
        "alignment_num_supplementary_alignments": str(_flagged(part, SUPPLEMENTARY)),
    }


def _bases_of_operations(cigar: tuple[int, ...]) -> list[int]:
    """Return the number of bases of each operation, indexed as BAM numbers them."""
    bases = [0] * 16
    for value in cigar:
        bases[value & 15] += value >> 4
    return bases


def _clip(cigar: tuple[int, ...]) -> int:
    """Return how many bases are clipped before the first other operation."""
    clipped = 0
    for value in cigar:
        if value & 15 not in (_SOFT_CLIP, _HARD_CLIP):
            break
        clipped += value >> 4
    return clipped


def _flagged(part: CalledPart, bit: int) -> int:
    return sum(bool(alignment.flag & bit) for alignment in part.alignments)


def _seconds(samples: int, sample_rate_hz: int) -> str:
    return f"{_divided(samples, sample_rate_hz):.6f}"


def _ratio(part: int, whole: int) -> str:
    return f"{_divided(part, whole):.6f}"


def _divided(value: int, by: int) -> float:
    return value / by if by else 0.0


def _field(text: str) -> str:
    """Return a cell without quotation marks, which pandas would try to match."""
    return cell(text.replace('"', "_"))
