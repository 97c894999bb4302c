"""`porestream demo`."""

import csv
import json
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from porestream.cli.commands.simulate import simulate
from porestream.cli.stopping import EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated, whole_or_not_at_all

_CONTIGS = {"demo_1": 60_000, "demo_2": 40_000}
_LENGTH_MEAN, _LENGTH_SD = 5000, 2500  # 150 reads: 10 million samples, 15 s on two cores
_LEAST_PLACED = 0.9


@dataclass(frozen=True, slots=True)
class _Files:
    """The files that the demo makes."""

    folder: Path

    @property
    def reference(self) -> Path:
        return self.folder / "reference.fasta"

    @property
    def reads(self) -> Path:
        return self.folder / "reads.pod5"

    @property
    def truth(self) -> Path:
        return self.folder / "reads.truth.tsv"

    @property
    def calls(self) -> Path:
        return self.folder / "calls.bam"

    @property
    def index(self) -> Path:
        return self.folder / "calls.bam.bai"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """How the records compare with the truth.

    `placed` reads overlap their origin, on its strand. `identity` is their median of matches over alignment columns, 0
    if there are none. `mean_qscore` is the mean over all called reads.
    """

    reads: int
    called: int
    bases: int
    placed: int
    identity: float
    mean_qscore: float


@click.command(short_help="Simulate a small run, call and align it, and compare with the truth.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo",
    show_default=True,
    metavar="DIR",
    help="Folder for all files, created if missing. Files of an earlier demo are replaced.",
)
@click.option(
    "-n", "--reads", type=click.IntRange(1), default=150, show_default=True, metavar="N", help="Number of reads."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    metavar="N",
    help="Another seed makes another reference and another run.",
)
@click.pass_context
def demo(ctx: click.Context, output: Path, reads: int, seed: int) -> None:
    """Show the whole pipeline on this machine in a minute: signal in, aligned reads out, and how accurate they are.

    \b
    1. Makes a random reference of 100,000 bases.
    2. Simulates R10.4.1 reads from it (porestream simulate).
    3. Starts a server on a Unix socket (porestream serve) and streams the reads to it (porestream call --sort), which
       calls them with the bundled model, then aligns, sorts and indexes them.
    4. Compares the result with the truth.

    It needs no network, no data and no other model. The end of the output says how to look at the files, and how to do
    the same with your own. Exit codes: 0 everything worked, 1 something did not, 2 wrong usage, 3-6 as for porestream
    call, 130 and 143 stopped by Ctrl-C or SIGTERM: calls.bam is not written.
    """
    files = _Files(output)
    try:
        with whole_or_not_at_all(files.calls):
            found, samples_per_s = _make(ctx, files, reads, seed)
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{about}{error.strerror or error}; use another -o DIR") from error
    click.echo(_report(files, found, samples_per_s))
    if found.called < found.reads or found.placed < _LEAST_PLACED * found.reads:
        raise click.ClickException(
            f"of {found.reads} reads, {found.called} were called and {found.placed} aligned to their origin: "
            "something is wrong with this installation (is the processor supported? `make test` tells more)"
        )


def _make(ctx: click.Context, files: _Files, reads: int, seed: int) -> tuple[_Comparison, float]:
    """Do all four steps; return how accurate the records are, and the calling speed in samples/s."""
    _clear(files)
    _step(1, f"making a random reference of {sum(_CONTIGS.values()):,} bases: {files.reference}")
    _write_reference(files.reference, seed)
    _step(2, f"simulating {reads} reads from it, R10.4.1 at 5 kHz: {files.reads}")
    ctx.invoke(
        simulate,
        reference=files.reference,
        output=files.reads,
        reads=reads,
        length_mean=_LENGTH_MEAN,
        length_sd=_LENGTH_SD,
        truth=files.truth,
        seed=seed,
    )
    with tempfile.TemporaryDirectory(prefix=".calls.", dir=files.folder) as folder:  # calls.bam appears when complete
        calls, samples_per_s = _call_and_sort(ctx, files, Path(folder))
        found = _compare(calls, files.truth)
        calls.replace(files.calls)
        calls.with_name(files.index.name).replace(files.index)
    return found, samples_per_s


def _step(number: int, text: str) -> None:
    click.secho(f"[{number}/4] {text}", bold=True, err=True)


def _clear(files: _Files) -> None:
    """Make the folder, and remove an earlier demo's records, which would not match the new reads.

    Raises
    ------
    click.UsageError
        The folder has files with these names that no demo made.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    ours = files.reference.is_file() and files.reference.read_bytes().startswith(f">{next(iter(_CONTIGS))}".encode())
    for path in (files.reference, files.reads, files.truth, files.calls, files.index):
        if (path.exists() or path.is_symlink()) and not ours:
            raise click.UsageError(f"{path} is not from an earlier demo and would be lost; use another -o DIR")
    for path in (files.calls, files.index):
        path.unlink(missing_ok=True)


def _write_reference(path: Path, seed: int) -> None:
    import numpy as np  # imported here and below, so that --help need not wait

    from porestream.models.simulate.sequence import decode, random_bases

    rng = np.random.default_rng(seed)
    path.write_text("".join(f">{name}\n{decode(random_bases(bases, rng))}\n" for name, bases in _CONTIGS.items()))


def _call_and_sort(ctx: click.Context, files: _Files, folder: Path) -> tuple[Path, float]:
    """Make the sorted, indexed BAM in `folder`; return it, and the calling speed in samples/s.

    Raises
    ------
    click.exceptions.Exit
        Calling failed, and has said why.
    Terminated
        SIGTERM came.
    """
    from porestream.cli.caller import run_call
    from porestream.cli.request import Request
    from porestream.client.opening import PRIORITIES, StreamOptions
    from porestream.models.files.catalog import BUNDLED

    _step(3, f"starting a server, streaming the reads to it; model {BUNDLED.name}")
    calls, summary = folder / files.calls.name, folder / "summary.json"
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        code = run_call(
            Request(
                reads=(files.reads,),
                output=str(calls),
                sort=True,
                summary_json=summary,
                command_line=shlex.join(["porestream", *sys.argv[1:]]),
                options=StreamOptions(
                    model=str(BUNDLED),  # not auto: the user's own models might take fifteen times as long
                    reference=str(files.reference),
                    emit_md=True,
                    priority=PRIORITIES["bulk"],
                ),
            )
        )
    finally:
        signal.signal(signal.SIGTERM, terminate)  # asyncio leaves the default handler, which cleans nothing up
    if code == EXIT_TERMINATED:
        raise Terminated
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        click.echo(f"calling failed (exit code {code}): {files.calls} was not written", err=True)
        ctx.exit(code)
    _step(4, f"comparing with the truth: {files.truth}")
    return calls, float(json.loads(summary.read_text())["samples_per_second"])


def _compare(calls: Path, truth: Path) -> _Comparison:
    """Compare primary records with the truth table; columns and mismatches come from CIGAR and NM."""
    import pysam

    with truth.open(newline="") as table:
        places = {row["read_id"]: row for row in csv.DictReader(table, delimiter="\t")}
    called, bases, identities, qscores = set(), 0, [], []
    with pysam.AlignmentFile(str(calls)) as records:
        for record in records:
            if record.is_secondary or record.is_supplementary:
                continue
            called.add(record.query_name)
            bases += record.query_length
            qscores.append(float(record.get_tag("qs")))
            place = places[record.query_name]
            if (
                record.is_mapped
                and record.reference_name == place["contig"]
                and record.is_reverse == (place["strand"] == "-")
                and record.reference_start < int(place["end"])
                and (record.reference_end or 0) > int(place["start"])
            ):
                matched, inserted, deleted = record.get_cigar_stats()[0][:3]
                columns = matched + inserted + deleted
                identities.append((columns - record.get_tag("NM")) / columns)
    return _Comparison(
        reads=len(places),
        called=len(called),
        bases=bases,
        placed=len(identities),
        identity=statistics.median(identities) if identities else 0.0,
        mean_qscore=statistics.fmean(qscores) if qscores else 0.0,
    )


def _report(files: _Files, found: _Comparison, samples_per_s: float) -> str:
    """Return the summary, and the next commands to copy."""
    program = _program()
    reference, reads, calls = (shlex.quote(str(path)) for path in (files.reference, files.reads, files.calls))
    return f"""
    reads              {found.called:,} of {found.reads:,}
    bases              {found.bases:,}
    at their origin    {found.placed:,} ({found.placed / found.reads:.1%})
    median identity    {found.identity:.1%}
    mean Q             {found.mean_qscore:.1f}
    speed              {samples_per_s:,.0f} samples/s

{files.calls} is sorted and indexed; {files.truth} says where each read comes from. Have a look:
    samtools flagstat {calls}
    samtools view {calls} | less -S
    igv -g {reference} {calls}

To do the same with your own reads (R10.4.1 DNA; if you have one of ONT's models, it calls better: --model DIR):
    {program} call READS.pod5 --reference REF.fasta -o calls.bam
    {program} call POD5_FOLDER/ --reference REF.fasta --sort --emit-summary -o calls.bam

To use a server for many instruments and pipelines (run the second command in another terminal):
    {program} serve --reference {reference} --listen 127.0.0.1:50051
    {program} call {reads} --server 127.0.0.1:50051 --reference {files.reference.name} -o calls.bam"""


def _program() -> str:
    """Return how the user can run this program: in a virtual environment it may not be on the PATH."""
    called = sys.argv[0]
    return called if Path(called).name == "porestream" and not shutil.which("porestream") else "porestream"
