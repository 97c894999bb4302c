"""Write records to a BAM, SAM, CRAM or FASTQ file, standard output, or a folder laid out as MinKNOW does."""

import errno
import glob
import hashlib
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pysam

from porestream.client.outputs.errors import cannot_write
from porestream.client.outputs.output_file import OutputFile, partial_of, whole_name
from porestream.client.outputs.records import QC_FAIL, REVERSE, SECONDARY, SUPPLEMENTARY, header, records
from porestream.client.reads import CallerIdentity, ReadResult, ReadStatus, ReferenceSequence, RunInfo

_STDOUT = 1
_SORT_MEMORY_BYTES = 1 << 30
_MAX_PART = 60  # of a field in a file name: four of them must fit into 255 bytes
_SORT_THREADS = 4
_BAI_MAX_BASES = (1 << 29) - 1
_INDEXES = ("bai", "csi", "crai")
_INDEXES_OF = {".bam": (".bai", ".csi"), ".cram": (".crai",)}
_ALIGNMENT_TAGS = {"NM", "AS", "de", "tp", "MD", "SA", "s1", "s2", "cm", "nn", "rl", "ms", "dv"}


_sorting: set[subprocess.Popen[bytes]] = set()


class Format(Enum):
    """An output's format; the value is the word in --emit-sam and the like."""

    BAM = "bam"
    SAM = "sam"
    CRAM = "cram"
    FASTQ = "fastq"


_SUFFIXES = {
    ".bam": Format.BAM,
    ".sam": Format.SAM,
    ".cram": Format.CRAM,
    ".fastq": Format.FASTQ,
    ".fq": Format.FASTQ,
    ".fastq.gz": Format.FASTQ,
    ".fq.gz": Format.FASTQ,
}


_SUFFIX_OF = {form: "fastq.gz" if form is Format.FASTQ else form.value for form in Format}


def format_of(output: str, asked: Format | None = None) -> Format:
    """Return an output's format by its name; for standard output ("-") `asked`, else SAM on a terminal, else BAM.

    Raises
    ------
    ValueError
        The name says no format, or another one than `asked`.
    """
    if output == "-":
        return asked or (Format.SAM if sys.stdout.isatty() else Format.BAM)
    name = Path(output).name.lower()
    named = next((form for suffix, form in _SUFFIXES.items() if name.endswith(suffix) and name != suffix), None)
    if named is None:
        raise ValueError(
            f"{output}: the output's name must end in {', '.join(_SUFFIXES)}, or be - for standard output; "
            "for a folder use --output-dir"
        )
    if asked and named is not asked:
        raise ValueError(
            f"{output} is named as {named.value.upper()}, but --emit-{asked.value} asks for another format"
        )
    return named


def beside(output: Path, word: str) -> Path:
    """Return a name beside an output: run.1.x.txt for run.1.fastq.gz, and for run.1.fastq.gz.partial."""
    name = whole_name(output.name)
    suffix = max((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return output.with_name(f"{name.removesuffix(name[len(name) - len(suffix) :])}.{word}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSettings:
    """What all files of one call share.

    Attributes
    ----------
    identity, sequences, command_line, choices
        For the header: see `records.header`.
    run_identity
        Returns a run's caller, or raises KeyError if it is unknown; None: `identity` calls all.
    form
        The format; None: by the output's name.
    reference
        Indexed FASTA to compress CRAM against; None: CRAM stores the bases itself.
    sort
        Whether to sort by coordinate and index at the end.
    continued
        The file of an interrupted call that this one continues.
    """

    identity: CallerIdentity
    sequences: Sequence[ReferenceSequence] = ()
    command_line: str = ""
    choices: str = ""
    form: Format | None = None
    reference: Path | None = None
    sort: bool = False
    continued: Path | None = None
    run_identity: Callable[[RunInfo], CallerIdentity] | None = None

    def identity_of(self, run: RunInfo) -> CallerIdentity:
        """Return the caller of this run."""
        try:
            return self.run_identity(run) if self.run_identity else self.identity
        except KeyError:
            return self.identity

    def header(self, runs: Iterable[RunInfo]) -> pysam.AlignmentHeader:
        """Make the header for a file of these runs."""
        return header(runs, self.identity, self.sequences, self.command_line, self.choices, self.identity_of)


class _Sink(Protocol):
    def write(self, record: pysam.AlignedSegment) -> Any: ...

    def close(self) -> None: ...


class RecordWriter:
    """Write the records of some runs to one file, which appears when it is complete; a context manager.

    Parameters
    ----------
    output
        A file's name, or "-" for standard output, which gets BAM uncompressed.
    runs
        The runs for the header; every result must belong to one of them.
    settings
        Format and other choices.
    keeps_failed
        Whether to write reads below the minimum Q to a FASTQ, which cannot flag them. (Other formats keep them.)

    Attributes
    ----------
    path
        The file; None: standard output.
    left_out
        Number of reads below the minimum Q that were not written.

    Raises
    ------
    OSError
        The file cannot be written, or not to its end.
    """

    def __init__(
        self, output: str, runs: Mapping[str, RunInfo], settings: OutputSettings, *, keeps_failed: bool = False
    ) -> None:
        self.settings, self._keeps_failed = settings, keeps_failed
        self.form = format_of(output, settings.form)
        self.header = settings.header(runs.values())
        self.path = None if output == "-" else Path(output)
        self.left_out = 0
        self._is_closed = False
        self._file: OutputFile | None = None
        try:
            if self.path is not None:
                self._file = OutputFile(self.path, settings.continued)
            self._sink = self._open()
        except OSError as error:
            raise cannot_write(self.partial_path or self.path, error) from error

    @property
    def partial_path(self) -> Path | None:
        """The file being written, not sorted yet and with `.partial` after its name; None: standard output."""
        return self._file.written if self._file else None

    def _open(self) -> _Sink:
        target = "-" if self.partial_path is None else str(self.partial_path)
        if self.form is Format.FASTQ:
            return _FastqSink(target, self.header, compressed=str(self.path).lower().endswith(".gz"))
        if self.settings.sort:
            return pysam.AlignmentFile(target, "wb", header=self.header)
        if self.form is Format.CRAM:
            if self.settings.reference is not None:
                return pysam.AlignmentFile(
                    target, "wc", header=self.header, reference_filename=str(self.settings.reference)
                )
            return pysam.AlignmentFile(target, "wc", header=self.header, format_options=["no_ref=1"])
        mode = "w" if self.form is Format.SAM else "wbu" if self.path is None else "wb"
        return pysam.AlignmentFile(target, mode, header=self.header)

    def write(self, result: ReadResult) -> None:
        """Write all records of a result."""
        if self.form is Format.FASTQ and result.status is ReadStatus.FILTERED and not self._keeps_failed:
            self.left_out += 1
            return
        self.copy(
            list(records(result, self.header, self.settings.identity_of(result.info.run).model))
        )  # all of them or none

    def write_all(self, results: Iterable[ReadResult]) -> None:
        """Write the records of several results."""
        for result in results:
            self.write(result)

    def copy(self, written: Iterable[pysam.AlignedSegment]) -> None:
        """Write existing records."""
        for record in written:
            try:
                self._sink.write(record)
            except OSError as error:
                raise cannot_write(self.partial_path, error) from error

    def settle(self) -> None:
        """Say that everything is taken over: see `OutputFile`."""
        if self._file is not None:
            self._file.settle()

    def close(self, *, finish: bool = True) -> None:
        """Close the file and flush it to disk; with `finish`, sort it if asked to and give it its final name."""
        if self._is_closed:
            return
        self._is_closed = True
        pipe = os.dup(_STDOUT) if self.path is None else None
        try:
            self._sink.close()
            if pipe is not None and _reader_is_gone(pipe):  # pysam ignores EPIPE
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        except OSError as error:
            raise cannot_write(self.partial_path, error) from error
        finally:
            if pipe is not None:
                os.close(pipe)
        if self._file is None:
            return
        try:
            if self._file.written.is_file():
                with self._file.written.open("rb") as file:
                    os.fsync(file.fileno())
            if finish:
                self._finish(self._file)
        finally:
            self._file.release()

    def _finish(self, file: OutputFile) -> None:
        assert self.path is not None
        file.settle()
        if self.settings.sort:
            sort_and_index(file.written, file.path, self.path, self.form, self.settings)
            file.written.unlink()
            file.done()
        else:
            _remove_indexes(self.path, file.path)
            file.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finish=kind is None)


class _FastqSink:
    """FASTQ (.gz: BGZF, which any gzip reads) with tab-separated SAM tags after the name, as htslib writes them.

    One entry per sequence, in sequencing orientation, with the read group's DT, PU, LB and SM.
    """

    def __init__(self, target: str, head: pysam.AlignmentHeader, *, compressed: bool) -> None:
        self._file: Any
        if target == "-":
            self._file = os.fdopen(os.dup(_STDOUT), "wb")
        else:
            self._file = pysam.BGZFile(target, "wb", None) if compressed else open(target, "wb")  # noqa: SIM115
        self._groups = {
            group["ID"]: "".join(f"\t{key}:Z:{group[key]}" for key in ("DT", "PU", "LB", "SM") if key in group)
            for group in head.to_dict().get("RG", [])
        }

    def write(self, record: pysam.AlignedSegment) -> None:
        if record.flag & (SECONDARY | SUPPLEMENTARY) or not record.query_length:
            return
        fields = record.to_string().split("\t")
        tags = "".join(f"\t{tag}" for tag in fields[11:] if tag[:2] not in _ALIGNMENT_TAGS)
        group = self._groups.get(str(record.get_tag("RG")), "") if record.has_tag("RG") else ""
        qualities = fields[10][::-1] if record.flag & REVERSE else fields[10]
        entry = f"@{record.query_name}{tags}{group}\n{record.get_forward_sequence()}\n+\n{qualities}\n"
        self._file.write(entry.encode())

    def close(self) -> None:
        self._file.close()


def sort_and_index(unsorted: Path, target: Path, named: Path, form: Format, settings: OutputSettings) -> None:
    """Sort by coordinate with samtools' code, in at most 1 GiB of memory plus temporary files.

    The target appears when it is complete. The index goes beside `named`, which may be a link to the target. Sorting
    runs in a separate process, which can be stopped, and in a separate folder, where nobody else can plant links. The
    target is locked, so an existing folder was left by a killed process.

    Raises
    ------
    OSError
        Sorting failed, most likely because the disk is full; the unsorted file stays.
    """
    prefix = f".{target.name}.sorting-"
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as folder:
        made = Path(folder) / target.name
        index = _sort(unsorted, made, form, settings)
        _remove_indexes(named, target)
        os.replace(made, target)
        if index is not None:
            shutil.move(index, named.with_name(f"{named.name}{index.suffix}"))  # it may be on another disk


def _sort(unsorted: Path, made: Path, form: Format, settings: OutputSettings) -> Path | None:
    """Sort into a new file; return its index, if its format has one."""
    threads = min(_SORT_THREADS, len(os.sched_getaffinity(0)))
    longest = max((sequence.length for sequence in settings.sequences), default=0)
    kind = "crai" if form is Format.CRAM else "bai" if longest <= _BAI_MAX_BASES else "csi"
    index = None if form is Format.SAM else made.with_name(f"{made.name}.{kind}")
    arguments = ["--no-PG", "-@", str(threads - 1), "-m", str(_SORT_MEMORY_BYTES // threads), "-T", f"{made}.part"]
    if form is Format.CRAM:
        option = ["--reference", str(settings.reference)] if settings.reference else ["--output-fmt-option", "no_ref=1"]
        arguments += ["-O", "cram", *option]
    elif form is Format.SAM:
        arguments += ["-O", "sam"]
    arguments += ["-o", str(made)] if index is None else ["--write-index", "-o", f"{made}##idx##{index}"]
    program = [sys.executable, "-P", "-c", "import sys, pysam; pysam.sort(*sys.argv[1:], catch_stdout=False)"]
    process = subprocess.Popen([*program, *arguments, str(unsorted)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _sorting.add(process)
    messages = process.communicate()[1].decode(errors="replace")
    _sorting.discard(process)
    if process.returncode:
        why = "stopped" if process.returncode < 0 else (messages.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"cannot sort {unsorted} into {made.name}: {why}; the unsorted records are kept")
    return index


def _remove_indexes(*names: Path) -> None:
    """Remove the indexes of a file about to be replaced: programs would take them for the new file's.

    htslib accepts x.bai beside x.bam, too.
    """
    for name in names:
        for kind in _INDEXES:
            name.with_name(f"{name.name}.{kind}").unlink(missing_ok=True)
        for kind in _INDEXES_OF.get(name.suffix.lower(), ()):
            name.with_suffix(kind).unlink(missing_ok=True)


def _reader_is_gone(pipe: int) -> bool:
    """Whether a pipe's reader has closed it, which cannot be because of the end of data while we hold our end."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Outputs(ABC):
    """All files of one call. A subclass's `writer(run, failed)` chooses the file for a result.

    `form` and `header` are the same for all files.
    """

    def __init__(self, runs: Mapping[str, RunInfo], settings: OutputSettings) -> None:
        self.settings = settings
        self.form = settings.form or Format.BAM
        self.header = settings.header(runs.values())
        self._writers: dict[tuple[str, bool], RecordWriter] = {}

    @abstractmethod
    def writer(self, run: RunInfo, failed: bool) -> RecordWriter:
        """Return the writer for reads of this run."""

    @property
    def writers(self) -> list[RecordWriter]:
        """All open writers, each once."""
        return list(dict.fromkeys(self._writers.values()))

    def write_all(self, results: Iterable[ReadResult]) -> list[ReadResult]:
        """Write the records of several results.

        Returns
        -------
        list
            The results; a read that cannot be written as records is FAILED, with the reason.
        """
        return [self._write(result) for result in results]

    def _write(self, result: ReadResult) -> ReadResult:
        writer = self.writer(result.info.run, result.status is ReadStatus.FILTERED)
        try:
            writer.write(result)
        except (ValueError, TypeError, ArithmeticError, struct.error) as error:  # what pysam raises for a strange value
            detail = f"no record: {type(error).__name__}: {error}"
            return replace(result, status=ReadStatus.FAILED, detail=detail, parts=())
        return result

    def copy(self, run: RunInfo, written: Sequence[pysam.AlignedSegment]) -> None:
        """Write the existing records of one read."""
        self.writer(run, bool(written[0].flag & QC_FAIL)).copy(written)

    def settle(self) -> None:
        """Say that everything is taken over: see `OutputFile`."""
        for writer in self.writers:
            writer.settle()

    def stop_sorting(self) -> None:
        """Stop a `close` that is sorting in another thread: it raises, and leaves the unsorted file."""
        for process in list(_sorting):
            process.kill()

    def close(self, *, finish: bool = True) -> None:
        """Close all files, even if one fails."""
        errors = []
        for writer in self.writers:
            try:
                writer.close(finish=finish)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]


class SingleOutput(Outputs):
    """One file, or standard output, for all. A run that appears later gets its own file beside it."""

    def __init__(self, output: str, runs: Mapping[str, RunInfo], settings: OutputSettings) -> None:
        super().__init__(runs, settings)
        self._output = output
        first = RecordWriter(output, runs, settings)
        self.form = first.form
        self._writers = {(run_id, failed): first for run_id in runs for failed in (False, True)}
        self._writers.setdefault(("", False), first)  # there may be no runs

    def writer(self, run: RunInfo, failed: bool) -> RecordWriter:
        if (run.key, failed) not in self._writers:
            paths = [
                beside(Path(self._output), f"{name}.{_SUFFIX_OF[self.form]}")
                for name in (_short(run.run_id), _part(run.key))
            ]
            path = paths[any(writer.path == paths[0] for writer in self.writers)]
            late = RecordWriter(str(path), {run.key: run}, self.settings)
            self._writers |= {(run.key, False): late, (run.key, True): late}
        return self._writers[run.key, failed]


class OutputFolder(Outputs):
    """A folder laid out as MinKNOW does: one folder per run, with folders for pass and fail reads in it.

    `EXPERIMENT/SAMPLE/START_POSITION_FLOWCELL_PROTOCOLRUN/bam_pass/FLOWCELL_pass_PROTOCOLRUN_RUN_0.bam`: ONT's output
    specification, "Output structure". What a run does not say is "unknown".
    """

    def __init__(self, folder: Path, runs: Mapping[str, RunInfo], settings: OutputSettings) -> None:
        super().__init__(runs, settings)
        self.folder = folder
        for run in runs.values():
            for status in ("pass", "fail"):
                if any((run_folder(folder, run) / f"{self.form.value}_{status}").glob("*")):
                    raise FileExistsError(
                        errno.EEXIST,
                        "already has records of this run; choose another folder",
                        str(run_folder(folder, run)),
                    )

    def writer(self, run: RunInfo, failed: bool) -> RecordWriter:
        if (run.key, failed) not in self._writers:
            form = self.form
            status = "fail" if failed else "pass"
            flow_cell, protocol = _part(run.flow_cell_id), _short(run.protocol_run_id)
            folder = run_folder(self.folder, run) / f"{form.value}_{status}"
            folder.mkdir(parents=True, exist_ok=True)
            number = 0
            name = f"{flow_cell}_{status}_{protocol}_{_short(run.run_id)}"
            while (path := folder / f"{name}_{number}.{_SUFFIX_OF[form]}").exists() or partial_of(path).exists():
                number += 1  # another run of this flow cell has the same short id
            writer = RecordWriter(str(path), {run.key: run}, self.settings, keeps_failed=True)
            self._writers[run.key, failed] = writer
        return self._writers[run.key, failed]


def run_folder(folder: Path, run: RunInfo) -> Path:
    """Return the folder of a run's files within an output folder."""
    start = run.acquisition_start_time.strftime("%Y%m%d_%H%M") if run.acquisition_start_time else "unknown"
    name = "_".join([start, _part(run.position), _part(run.flow_cell_id), _short(run.protocol_run_id)])
    return folder / _part(run.experiment_id) / _part(run.sample_id) / name


def _part(text: str) -> str:
    """Make a run's field fit a file name: a POD5's text must not lead out of the folder, nor be too long."""
    part = re.sub(r"[^A-Za-z0-9_.-]", "_", text).strip(".") or "unknown"
    if len(part) <= _MAX_PART:
        return part
    return f"{part[:_MAX_PART]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _short(identifier: str) -> str:
    return _part(identifier[:8])
