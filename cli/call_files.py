"""The files that `porestream call` reads and writes, and those of an earlier call that it continues."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pysam

from porestream.cli.choose import last_part
from porestream.cli.output_check import check_outputs, check_resumed_folder
from porestream.cli.progress import say
from porestream.cli.request import Request
from porestream.client.outputs.output_file import partial_of, unfinished_of, whole_name
from porestream.client.outputs.partial import Partial, is_text
from porestream.client.outputs.sequencing_summary import SummaryTable
from porestream.client.outputs.writers import OutputFolder, Outputs, OutputSettings, SingleOutput, beside
from porestream.client.reads import ReadResult, RunInfo, ServerInfo
from porestream.client.sources.pod5_source import Pod5Source, ReadIds
from porestream.client.text import counted
from porestream.kernels.align.fasta import first_bytes, read_fasta
from porestream.kernels.align.mmi import MAGIC

SUMMARY, REJECTED = "sequencing_summary.txt", "rejected_reads.tsv"
"""Names of the files beside an output."""


def check_files(request: Request, inputs: Iterable[Path], partial: Partial | None, rejected_reads: Path | None) -> None:
    """Compare every file that will be written with every file that will be read: see `check_outputs`.

    Parameters
    ----------
    request
        Names most of them.
    inputs
        The POD5 files.
    partial
        The call to resume from, if any.
    rejected_reads
        The table of rejected reads.

    Raises
    ------
    click.UsageError
        A file would be both.
    """
    output = None if request.output_dir or request.output == "-" else Path(request.output)
    summary = request.beside_output(SUMMARY) if request.emit_summary else None
    written = [
        (what, path)
        for what, path in (
            ("the output", output),
            ("the sequencing summary", summary),
            ("--summary-json", request.summary_json),
            ("the table of rejected reads", rejected_reads),
        )
        if path is not None
    ]
    credentials = request.options.credentials
    read = [("a file to be called", path) for path in inputs]
    read += [
        (what, path)
        for what, path in (
            ("the list of --read-ids", request.read_ids),
            ("the reference", Path(request.options.reference) if request.options.reference else None),
            ("the certificate of --tls-ca", credentials.authority_file),
            ("the token", credentials.token_file),
        )
        if path is not None and path.is_file()
    ]
    if request.server is None and (model := Path(request.options.model)).joinpath("config.toml").is_file():
        read += [("a file of the model", path) for path in model.iterdir()]
    resumed: list[Path] = []
    if partial is not None:
        resumed = partial.files
        if partial.path.is_dir():
            folder = [("the output folder", request.output_dir)] if request.output_dir else []
            check_resumed_folder(partial.path, [*folder, *written])
        elif (table := _summary_before(partial)).is_file() and (
            summary is None or table not in (summary, *unfinished_of(summary))
        ):
            read.append(("the sequencing summary of what is resumed from", table))
    check_outputs(written, read, resumed, output)


def open_outputs(request: Request, runs: Mapping[str, RunInfo], settings: OutputSettings) -> Outputs:
    """Open the file, or make the folder, for the records."""
    if request.output_dir is None:
        return SingleOutput(request.output, runs, settings)
    request.output_dir.mkdir(parents=True, exist_ok=True)
    return OutputFolder(request.output_dir, runs, settings)


def open_table(request: Request, partial: Partial | None) -> SummaryTable:
    """Open the sequencing summary; it continues the one of the call to resume from."""
    path = request.beside_output(SUMMARY)
    assert path is not None
    return SummaryTable(path, _summary_before(partial) if partial else None, aligned=bool(request.options.reference))


def fill_table(table: SummaryTable, partial: Partial, outputs: Outputs, source: Pod5Source) -> None:
    """Give every sequence that was taken over a row.

    A call that was killed may have records without rows, because the end of the table had not reached the disk. A call
    without --emit-summary has no table. Missing rows are rebuilt from the records.
    """
    before = _summary_before(partial)
    there = table.copy(before, partial.read_ids) if before.is_file() else ReadIds()
    missing = partial.sequences.without(there)
    if len(missing):
        facts = source.facts(partial.reads_of(missing))
        without_pod5 = 0

        def results() -> Iterator[ReadResult]:
            nonlocal without_pod5
            for result in partial.results(outputs, source.runs, missing, facts):
                without_pod5 += facts.of(result.info.read_id) is None
                yield result

        table.write_all(results())
        what = f"{counted(len(missing), 'row')} of the sequencing summary not found in {before}"
        say(f"{what}, rebuilt from the records{_inexact(partial, without_pod5)}")
    table.settle()


def _inexact(partial: Partial, without_pod5: int) -> str:
    """Say how rebuilt rows may differ from the lost ones."""
    told = []
    if any(is_text(file) for file in partial.files):
        told.append("mean qualities are rounded to six digits, as in SAM and FASTQ")
    if without_pod5:
        whose = f"for {counted(without_pod5, 'read')} in no input"
        told.append(f"{whose} the start is rounded to the millisecond and the experiment is unknown")
    return f": {'; '.join(told)}" if told else ""


def _summary_before(partial: Partial) -> Path:
    """Return where the sequencing summary of the call to resume from is, or would be."""
    if partial.path.is_dir():
        whole = partial.path / SUMMARY
        return whole if whole.exists() else partial_of(whole)
    unfinished = partial.path.name.removeprefix(whole_name(partial.path.name))
    whole = beside(partial.path, SUMMARY)
    return whole.with_name(whole.name + unfinished)


def check_reference(request: Request, info: ServerInfo) -> None:
    """Check that --reference, if it is a FASTA here, equals the server's of that name: CRAM is made with ours.

    Raises
    ------
    ValueError
        They differ.
    """
    path = Path(request.options.reference)
    theirs = info.references.get(last_part(request.options.reference))
    if not request.options.reference or theirs is None or not path.is_file() or first_bytes(path, len(MAGIC)) == MAGIC:
        return
    mine = read_fasta(path).sequences
    names = [[sequence.name for sequence in sequences] for sequences in (mine, theirs)]
    differ = next(
        (a.name for a, b in zip(mine, theirs, strict=False) if a.length != b.length or (b.md5 and a.md5 != b.md5)), ""
    )
    if names[0] != names[1] or differ:
        what = f"sequence {differ} differs" if differ and names[0] == names[1] else "their sequences differ"
        raise ValueError(
            f"reference {path} is not the same as {path.name} on {request.server}: {what}; serve yours under another "
            "name, or run this in a folder without that file and give only the name"
        )


def cram_reference(reference: str) -> Path | None:
    """Return the FASTA to compress a CRAM against; None if there is none, or it cannot be indexed."""
    if not reference or not Path(reference).is_file():
        return None
    try:
        pysam.FastaFile(reference).close()  # makes the index if it is missing
    except (OSError, ValueError):
        say(
            f"note: {reference} cannot be indexed (is it gzip instead of bgzip, or its folder read-only?), so the CRAM "
            "stores all bases itself and is larger"
        )
        return None
    return Path(reference)
