"""Take over the complete reads that an interrupted call wrote, so that only the rest is called."""

import contextlib
import gzip
import itertools
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam

from porestream.client.outputs.output_file import partial_of, whole_name
from porestream.client.outputs.records import QC_FAIL, UNMAPPED, read_group
from porestream.client.outputs.remade import is_primary, read_id_of, result_of
from porestream.client.outputs.writers import Format, Outputs, OutputSettings, format_of
from porestream.client.reads import ReadResult, RunInfo
from porestream.client.sources.pod5_source import ReadFacts, ReadIds, files_within
from porestream.client.text import shown

# The last bytes of a complete file: SAM specification, section 4.1.2; CRAM specification, section 9.
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CRAM_END = bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b")
_BATCH_READS = 4096


class CannotResume(ValueError):
    """The file cannot be resumed from; the message says why, and the way out."""


def resumable(path: Path) -> Path:
    """Return the file or folder to resume from: either of calls.bam and calls.bam.partial means the one that exists.

    Raises
    ------
    CannotResume
        Neither exists, or both do and `path` is the complete one.
    """
    unfinished, whole = partial_of(path), path.with_name(whole_name(path.name))
    if path.is_file() and unfinished.is_file():
        raise CannotResume(
            f"{path} is complete, but a later call left {unfinished}: to continue that call, use --resume-from "
            f"{unfinished}; to take the reads of {path}, remove or rename {unfinished}"
        )
    for candidate in (path, unfinished, whole):
        if candidate.exists():
            return candidate
    raise CannotResume(f"nothing to resume from: neither {path} nor {unfinished} exists")


@dataclass
class Partial:
    """The files of an interrupted call, complete or cut off anywhere.

    Parameters
    ----------
    path
        A BAM, SAM, CRAM or FASTQ file, or a folder that `--output-dir` made; see `resumable`.

    Attributes
    ----------
    files
        The files of `path`.
    read_ids
        Reads whose records are complete; filled by `take_over`.
    sequences
        Ids of those reads' sequences (a split read has several); filled by `take_over`.
    runs
        The runs of the files' read groups, by key, as far as a header tells.

    Raises
    ------
    CannotResume
        There is nothing to read, or nothing that porestream can read.
    OSError
        A file cannot be read at all.
    """

    path: Path
    read_ids: ReadIds = field(default_factory=ReadIds, init=False)
    sequences: ReadIds = field(default_factory=ReadIds, init=False)
    runs: dict[str, RunInfo] = field(default_factory=dict, init=False)
    files: list[Path] = field(default_factory=list, init=False)
    _run_of_group: dict[str, RunInfo] = field(default_factory=dict, init=False)
    _parents: dict[bytes, bytes] = field(default_factory=dict, init=False)  # of parts: the read's id

    def __post_init__(self) -> None:
        self.path = resumable(self.path)
        if self.path.is_dir():
            found = (file for file in files_within(self.path, recursive=True) if file.is_file())
            self.files = [file for file in found if not file.name.endswith((".old", ".new")) and _form(file)]
            if not self.files:
                raise CannotResume(f"{self.path}: this folder has no BAM, SAM, CRAM or FASTQ to resume from")
        else:
            if _form(self.path) is None:
                raise CannotResume(f"{self.path}: can only resume from .bam, .sam, .cram, .fastq or .fastq.gz")
            self.files = [self.path]
        for file in self.files:
            for group in self._groups(file):
                self._run_of_group[group["ID"]] = run = _run_of(group)
                self.runs[run.key] = run

    def check(self, settings: OutputSettings) -> None:
        """Check that outputs with these settings can hold the records.

        Raises
        ------
        CannotResume
            The records come from another caller or reference, or from a FASTQ although the outputs are not FASTQ.
        """
        here = settings.header(self.runs.values())
        for file in self.files:
            if _form(file) is Format.FASTQ:
                if settings.form is not Format.FASTQ:
                    raise CannotResume(f"{file}: a FASTQ lacks fields that other formats need; write FASTQ again")
                continue
            try:
                with _open(file, settings.reference) as opened:
                    there = opened.header
                    next(opened.fetch(until_eof=True))
            except (OSError, ValueError, StopIteration):  # cut off before its first record: nothing to take
                continue
            _check(file, there, here, self._run_of_group)

    def take_over(self, outputs: Outputs, runs: Mapping[str, RunInfo]) -> int:
        """Copy the records of all complete reads; return how many reads there are.

        The files stay until `outputs.settle()`, because `results` needs them.

        Parameters
        ----------
        outputs
            Where to copy the records. Must be FASTQ if the files are.
        runs
            The runs of the input; they take precedence over a header's.

        Raises
        ------
        CannotResume
            A sorted file is cut off, or a record's run is unknown.
        """
        run_of_group = self._runs_by_group(outputs, runs)
        for file in self.files:
            of_file, ids, sequences = ReadIds(), list[bytes](), list[bytes]()
            for name, group, written in self._reads(file, outputs):
                if len(self.read_ids) and name.bytes in self.read_ids:
                    continue  # an earlier file has it
                run = run_of_group.get(group)
                if run is None:
                    raise CannotResume(
                        f"{file}: read {name} has read group {shown(str(group))!r}, which is not in any input"
                    )
                outputs.copy(run, written)
                ids.append(name.bytes)
                for record in filter(is_primary, written):
                    sequence = UUID(str(record.query_name)).bytes
                    sequences.append(sequence)
                    if sequence != name.bytes:
                        self._parents[sequence] = name.bytes
                if len(ids) >= _BATCH_READS:
                    of_file.add(np.array(ids, "S16"))
                    self.sequences.add(np.array(sequences, "S16"))
                    ids.clear()
                    sequences.clear()
            self.sequences.add(np.array(sequences, "S16"))
            for ids_N in (np.array(ids, "S16"), *of_file.arrays):
                self.read_ids.add(ids_N)
        return len(self.read_ids)

    def reads_of(self, sequences: ReadIds) -> ReadIds:
        """Return the reads that these sequences belong to."""
        reads = ReadIds()
        for ids_N in sequences.arrays:
            reads.add(ids_N)
        parents = [parent for sequence, parent in self._parents.items() if sequence in sequences]
        reads.add(np.array(parents, "S16"))
        return reads

    def results(
        self, outputs: Outputs, runs: Mapping[str, RunInfo], wanted: ReadIds, facts: ReadFacts
    ) -> Iterator[ReadResult]:
        """Rebuild the results of these sequences: see `remade`.

        Parameters
        ----------
        outputs, runs
            As for `take_over`.
        wanted
            Some of `sequences`.
        facts
            What the POD5 files say of their reads.
        """
        run_of_group = self._runs_by_group(outputs, runs)
        made = ReadIds()
        for file in self.files:
            # A read's records are adjacent unless sorted.
            others = self._others_of(file, outputs, wanted) if self._is_sorted(file) else {}
            of_file = list[bytes]()
            for name, group, written in self._reads(file, outputs):
                for record in filter(is_primary, written):
                    sequence = UUID(str(record.query_name)).bytes
                    if sequence not in wanted or (len(made) and sequence in made):
                        continue
                    of_file.append(sequence)
                    flags = [r.flag for r in written if not is_primary(r) and r.query_name == record.query_name]
                    flags += others.get(sequence, ())
                    yield result_of(record, flags, run_of_group[group], facts.of(name))
            made.add(np.array(of_file, "S16"))

    def _others_of(self, file: Path, outputs: Outputs, wanted: ReadIds) -> dict[bytes, list[int]]:
        """The flags of a sorted file's secondary and supplementary records, by sequence."""
        flags: dict[bytes, list[int]] = {}
        for _, _, (record,) in self._reads(file, outputs):
            if not is_primary(record) and (sequence := UUID(str(record.query_name)).bytes) in wanted:
                flags.setdefault(sequence, []).append(record.flag)
        return flags

    def _is_sorted(self, file: Path) -> bool:
        if _form(file) is Format.FASTQ:
            return False
        try:
            with _open(file) as records:
                return _has_sorted_header(records)
        except (OSError, ValueError):
            return False

    def _runs_by_group(self, outputs: Outputs, runs: Mapping[str, RunInfo]) -> dict[str, RunInfo]:
        identity_of = outputs.settings.identity_of
        all_runs = (self.runs | dict(runs)).values()
        return self._run_of_group | {read_group(run, identity_of(run).model): run for run in all_runs}

    def _groups(self, file: Path) -> list[dict[str, str]]:
        if _form(file) is Format.FASTQ:
            return []
        try:
            with _open(file) as records:
                return list(records.header.to_dict().get("RG", []))
        except (OSError, ValueError):
            if file.stat().st_size and not _begins_well(file):
                raise CannotResume(f"{file}: not a file that porestream wrote, or its beginning is damaged") from None
            return []

    def _reads(self, file: Path, outputs: Outputs) -> Iterator[tuple[UUID, str, list[pysam.AlignedSegment]]]:
        """Yield id, read group and records of each complete read."""
        if _form(file) is Format.FASTQ:
            if outputs.form is not Format.FASTQ:
                raise CannotResume(
                    f"{file}: a FASTQ lacks fields that a {outputs.form.value.upper()} needs; write FASTQ again"
                )
            yield from _fastq_reads(file, outputs)
            return
        try:
            with _open(file, outputs.settings.reference) as records:
                yield from _grouped(file, records)
        except CannotResume:
            raise
        except (OSError, ValueError):
            return  # cut off within its header


def _grouped(file: Path, records: pysam.AlignmentFile) -> Iterator[tuple[UUID, str, list[pysam.AlignedSegment]]]:
    """Yield each read's records, adjacent unless sorted. Of a file that is cut off, drop the last read."""
    is_sorted = _has_sorted_header(records)
    has_end = _has_end(file)
    if is_sorted and not has_end:
        raise CannotResume(
            f"{file}: sorted and cut off, which hides the incomplete reads; call again without --resume-from"
        )
    if is_sorted:  # and complete: one by one, as a read's records may be anywhere
        for record in records.fetch(until_eof=True):
            yield read_id_of(record), str(record.get_tag("RG")), [record]
        return
    group: list[pysam.AlignedSegment] = []
    name = None
    try:
        for record in records.fetch(until_eof=True):
            if name is not None and read_id_of(record) != name:
                yield name, str(group[0].get_tag("RG")), group
                group = []
            name = read_id_of(record)
            group.append(record)
    except (OSError, ValueError, KeyError):  # cut off here
        return
    if name is not None and has_end:
        yield name, str(group[0].get_tag("RG")), group


def _has_sorted_header(records: pysam.AlignmentFile) -> bool:
    return bool(records.header.to_dict().get("HD", {}).get("SO") == "coordinate")


def _fastq_reads(file: Path, outputs: Outputs) -> Iterator[tuple[UUID, str, list[pysam.AlignedSegment]]]:
    """Yield a FASTQ's entries as unmapped records, without the last one if the file is cut off.

    A FASTQ has no flags: its folder says whether reads are below the minimum Q.
    """
    flag = UNMAPPED | (QC_FAIL if file.parent.name == f"{Format.FASTQ.value}_fail" else 0)
    before: tuple[UUID, str, list[pysam.AlignedSegment]] | None = None
    opener = gzip.open if _is_gzip(file) else open
    with opener(file, "rt", errors="replace") as lines:
        try:
            while entry := [line.rstrip("\n") for line in itertools.islice(lines, 4)]:
                if len(entry) < 4 or not entry[0].startswith("@") or len(entry[1]) != len(entry[3]):
                    return
                if before:
                    yield before
                name, *tags = entry[0][1:].split("\t")
                tags = [tag for tag in tags if tag[:2] not in ("DT", "PU", "LB", "SM")]
                line = "\t".join([name, str(flag), "*", "0", "0", "*", "*", "0", "0", entry[1], entry[3], *tags])
                record = pysam.AlignedSegment.fromstring(line, outputs.header)
                before = read_id_of(record), str(record.get_tag("RG")), [record]
        except (OSError, EOFError, zlib.error, ValueError, KeyError):  # cut off here
            return
    if before and _has_end(file):
        yield before


def _check(file: Path, there: pysam.AlignmentHeader, here: pysam.AlignmentHeader, runs: Mapping[str, RunInfo]) -> None:
    """Raise CannotResume unless each run has the same caller, and the reference is the same."""
    callers = {run.key: group.get("PG", "") for group, run in _groups_of(here)}
    for group in there.to_dict().get("RG", [{}]):
        run = runs.get(group.get("ID", ""))
        now_by = callers.get(run.key, "") if run else ""
        for program in ("basecaller", "aligner"):
            before, now = _program(there, program, group.get("PG", "")), _program(here, program, now_by)
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key):
                    was = shown(before.get(key, "none"), 80)
                    raise CannotResume(
                        f"{file} was made with {key}={was}, but this call has {now.get(key, 'none')}; "
                        "one file cannot hold both: call as before, or start over without --resume-from"
                    )
    if (there.references, there.lengths) != (here.references, here.lengths):
        raise CannotResume(f"{file} has different reference sequences than this call; use its --reference")


def _groups_of(head: pysam.AlignmentHeader) -> Iterator[tuple[dict[str, str], RunInfo]]:
    for group in head.to_dict().get("RG", []):
        yield group, _run_of(group)


def _program(head: pysam.AlignmentHeader, name: str, caller: str) -> dict[str, str]:
    """Return what determines a read's bytes from the @PG of this program that goes with this caller's."""
    wanted = name + caller.removeprefix("basecaller")
    line: dict[str, str] = next((program for program in head.to_dict().get("PG", []) if program["ID"] == wanted), {})
    words = dict(word.split("=", 1) for word in line.get("DS", "").split() if "=" in word)
    return words | {key.lower(): line[key] for key in ("PN",) if key in line}


def _form(file: Path) -> Format | None:
    """Return the format by name, but BAM for a file waiting to be sorted into another format."""
    try:
        named = format_of(whole_name(file.name))
    except ValueError:
        return None
    if named in (Format.SAM, Format.CRAM) and _is_gzip(file):
        return Format.BAM
    return named


def is_text(file: Path) -> bool:
    """Whether a file (SAM or FASTQ) holds numbers as text, with six digits."""
    return _form(file) in (Format.SAM, Format.FASTQ)


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"\x1f\x8b"


@contextlib.contextmanager
def _open(file: Path, reference: Path | None = None) -> Iterator[pysam.AlignmentFile]:
    if _form(file) is Format.BAM and not _has_bam_header(file):
        raise ValueError("cut off within its header")  # pysam says so too, but complains again when freed
    name = str(reference) if reference else None
    with warnings.catch_warnings(action="ignore"):  # about a missing end
        opened = pysam.AlignmentFile(str(file), check_sq=False, reference_filename=name, ignore_truncation=True)
    try:
        yield opened
    finally:
        with contextlib.suppress(OSError):  # which says again that it is cut off
            opened.close()


def _has_bam_header(file: Path) -> bool:
    """Whether a BAM's header is complete: SAM specification, section 4.2."""
    with gzip.open(file) as opened:

        def number() -> int:
            return int.from_bytes(_exactly(opened, 4), "little")

        try:
            if opened.read(4) != b"BAM\1":
                return False
            _exactly(opened, number())
            for _ in range(number()):
                _exactly(opened, number() + 4)
        except (OSError, EOFError, zlib.error):
            return False
    return True


def _exactly(opened: gzip.GzipFile, size: int) -> bytes:
    data = opened.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _has_end(file: Path) -> bool:
    """Whether a file ends with an end marker. Text files never do."""
    form = _form(file)
    end = _CRAM_END if form is Format.CRAM else _BGZF_END
    if form is Format.SAM or (form is Format.FASTQ and not _is_gzip(file)):
        return False
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - len(end)))
        return opened.read() == end


def _begins_well(file: Path) -> bool:
    """Whether the file's first bytes, which may be cut off, are those of a known format."""
    with file.open("rb") as opened:
        first = opened.read(4)
    return any(first.startswith(magic) or magic.startswith(first) for magic in (b"\x1f\x8b\x08", b"CRAM", b"@"))


def _run_of(group: dict[str, str]) -> RunInfo:
    """Return a run, as far as a read group describes it."""
    said = re.match(r"runid=(.*) basecall_model=", group.get("DS", ""))
    run_id = said[1] if said else group["ID"].split("_")[0]
    distinct = re.fullmatch(rf"{re.escape(run_id)}-([0-9a-f]{{8}})_.*", group["ID"])
    return RunInfo(
        run_id=run_id,
        distinction=distinct[1] if distinct else "",
        sample_rate_hz=0,
        flow_cell_id=group.get("PU", ""),
        position=group.get("PM", ""),
        sample_id=group.get("SM", ""),
        acquisition_start_time=datetime.fromisoformat(group["DT"]) if "DT" in group else None,
    )
