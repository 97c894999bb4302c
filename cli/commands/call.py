"""`porestream call`."""

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from porestream.cli.options import (
    CONNECTION_OPTIONS,
    SERVER_OPTIONS,
    CallCommand,
    connection_options,
    models_directory_option,
    server_options,
)

if TYPE_CHECKING:
    from porestream.cli.request import Request

_FORMATS = ("sam", "cram", "fastq")
_MODEL = re.compile(r"(auto|fast|hac|sup)(@[\w.]+)?(,.*)?$|(dna|rna)[\w.]*@v[\d.]+(,.*)?$")


@click.command(cls=CallCommand, short_help="Call and align POD5 files into a BAM, SAM, CRAM or FASTQ.")
@click.argument("reads", nargs=-1, type=click.Path(path_type=Path), metavar="READS...")
@click.option("-r", "--recursive", is_flag=True, help="Search folders recursively.")
@click.option(
    "-l",
    "--read-ids",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Call only the reads listed in FILE, one read id per line (or a table with the ids in its first column). "
    "Default: all.",
)
@click.option("-n", "--max-reads", type=click.IntRange(1), metavar="N", help="Stop after N reads. Default: all.")
@click.option(
    "--watch",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="Call the POD5 files in FOLDER and its subfolders as the sequencer finishes them, until the run ends (MinKNOW "
    "writes final_summary_*.txt) or --watch-timeout-s has passed. Use instead of READS, with -o or --output-dir. "
    "Default: none.",
)
@click.option(
    "--watch-timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop watching after S seconds without a new file. Default: 7200 (MinKNOW finishes a file every hour).",
)
@click.option(
    "--resume-from",
    type=click.Path(path_type=Path),
    metavar="PARTIAL",
    help="Keep the complete reads that an interrupted call wrote (to FILE.partial or its --output-dir; BAM, SAM, CRAM "
    "or FASTQ, cut off or not), and call only the rest. -o may name the same file as before; --output-dir must name "
    "another folder. Default: call all.",
)
@click.option(
    "--model",
    metavar="auto|fast|hac|sup|NAME|DIR",
    help="Model directory, or the name of a model in the models folder (`porestream models` lists them). fast, hac or "
    "sup: the newest model of that kind that fits the runs; hac@v5.0.0: that release. With --server: one of the "
    "server's models. Default: auto: the newest model of the fastest kind that fits the runs' chemistry, or the "
    "bundled one (R10.4.1 DNA) if none does; with --server: the server's model for that chemistry.",
)
@models_directory_option(type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="PORESTREAM_MODELS")
@click.option(
    "--allow-chemistry-mismatch",
    is_flag=True,
    help="Call runs with a model for another pore, molecule, speed or sample rate. Bases will be poor, or nonsense.",
)
@click.option(
    "--reference",
    metavar="FASTA|MMI|NAME",
    help="Align to this FASTA or minimap2 index; with --server, to a reference of the server. Default: no alignment.",
)
@click.option(
    "--preset",
    type=click.Choice(["map-ont", "lr:hq"]),
    help="minimap2 preset. Default: the one that suits the model (fast: map-ont; hac and sup: lr:hq).",
)
@click.option(
    "--min-qscore",
    "min_mean_qscore",
    type=click.FloatRange(0, 50),
    metavar="Q",
    help="Minimum mean Phred quality (qs tag). Reads below it are flagged (0x200), go to the fail folder of "
    "--output-dir, and are left out of a FASTQ. Default: 0 (no read is below it).",
)
@click.option("--no-trim", is_flag=True, help="Leave sequencing adapters in the sequences. Default: trim them.")
@click.option(
    "-o",
    "--output",
    metavar="FILE|-",
    help="Output file: .bam, .sam, .cram, .fastq or .fastq.gz. It is written as FILE.partial and gets its name when it "
    "is complete. Default: -, standard output: SAM on a terminal, otherwise uncompressed BAM.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Output folder, laid out as MinKNOW does: one folder per run, with bam_pass and bam_fail in it. "
    "Use instead of -o. Default: none.",
)
@click.option("--emit-sam", is_flag=True, help="Write SAM (to standard output, or into --output-dir).")
@click.option("--emit-cram", is_flag=True, help="Write CRAM, compressed against --reference if that is a FASTA.")
@click.option("--emit-fastq", is_flag=True, help="Write FASTQ, with the SAM tags in its header lines.")
@click.option(
    "--sort",
    is_flag=True,
    help="Sort by coordinate and index, in at most 1 GiB of memory. Needs --reference, and -o or --output-dir.",
)
@click.option("--emit-moves", is_flag=True, help="Write the mv tag, which says where in the signal each base is.")
@click.option(
    "--emit-summary",
    is_flag=True,
    help="Write ONT's sequencing summary, one row per read, to OUTPUT.sequencing_summary.txt or "
    "DIR/sequencing_summary.txt.",
)
@click.option(
    "--summary-json",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the final counts and rates to FILE, as JSON. Default: only to standard error.",
)
@click.option(
    "--rejected-reads",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Table of the reads that were rejected or failed, and why; written only if there are any. Default: "
    "OUTPUT.rejected_reads.tsv, or DIR/rejected_reads.tsv.",
)
@click.option(
    "--server", metavar="HOST:PORT|unix:PATH", help="Call on this server. Default: start one for this command."
)
@connection_options
@click.option(
    "--priority",
    type=click.Choice(["live", "standard", "bulk"]),
    help="With --server: how urgent this call is when the server has more than it can call at once. Default: bulk; "
    "with --watch: standard.",
)
@click.option(
    "--give-up-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="With --server: give up after S seconds without a server; --resume-from continues later. If the server is up "
    "but busy, the call keeps waiting and prints a warning. Default: 120; with --watch: 3600, as servers come "
    "back.",
)
@server_options
@click.pass_context
def call(ctx: click.Context, /, **given: Any) -> None:
    """Call and align reads from POD5 files, or folders of them, into a BAM, SAM, CRAM or FASTQ.

    \b
    porestream call run.pod5 --reference ref.fa --sort -o calls.bam
    porestream call pod5_folder/ -r --model hac | samtools sort -o sorted.bam
    porestream call pod5_folder/ --emit-fastq --min-qscore 10 --output-dir calls/
    porestream call --watch /data/run1 --server node7:50051 --output-dir calls/
    porestream call pod5_folder/ --resume-from calls.bam.partial -o calls.bam

    READS are POD5 files, folders of them, or patterns in quotes. Records go to the output, everything else to standard
    error. Files get their names when they are complete. Press Ctrl-C or send SIGTERM once to finish the reads under way
    and stop, twice to stop now. Either way FILE.partial keeps the reads called so far; to continue, run the same
    command with --resume-from FILE.partial.

    Exit codes: 0 every input was read and every read is accounted for (rejected ones are listed and counted), 2 wrong
    usage, 3 an input could not be read, or not to its end, 4 the server was lost, 5 reads are missing, 6 reads failed
    on the server, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP, 1 other errors.
    """
    server_flags = {_flag(name): str(given[name]) for name in SERVER_OPTIONS if given[name] is not None}
    _check(ctx, given, server_flags)
    try:
        from porestream.cli.caller import run_call
    except KeyboardInterrupt:  # the import takes a second
        ctx.exit(130)
    ctx.exit(run_call(_request(given, server_flags)))


def _check(ctx: click.Context, given: dict[str, Any], server_flags: dict[str, str]) -> None:
    """Refuse options that do not go together, and say the way out."""
    reads, watch, server = given["reads"], given["watch"], given["server"]
    if server is not None and server_flags:
        raise click.UsageError(f"{next(iter(server_flags))} does not go with --server; pass it to `porestream serve`")
    if server is not None and ctx.get_parameter_source("models_dir") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--models-dir does not go with --server; pass it to `porestream serve`")
    about_server = (*CONNECTION_OPTIONS, "priority", "give_up_s")
    if server is None and (alone := [name for name in about_server if given[name]]):
        raise click.UsageError(f"{_flag(alone[0])} needs --server HOST:PORT")
    if bool(reads) is (watch is not None):
        raise click.UsageError("give either READS (POD5 files or folders) or --watch FOLDER")
    if reads and _MODEL.match(str(reads[0])) and not reads[0].exists():
        rest = shlex.join(map(str, reads[1:])) or "READS"
        raise click.UsageError(
            f"{reads[0]} is a model's name, and there is no such file; dorado takes the model first, porestream as an "
            f"option: porestream call {rest} --model {reads[0]}"
        )
    if given["watch_timeout_s"] is not None and watch is None:
        raise click.UsageError("--watch-timeout-s needs --watch FOLDER")
    for flag, is_given in (("--sort", given["sort"]), ("--preset", given["preset"] is not None)):
        if is_given and given["reference"] is None:
            raise click.UsageError(f"{flag} needs --reference")
    if sum(given[f"emit_{form}"] for form in _FORMATS) > 1:
        raise click.UsageError("give only one of --emit-sam, --emit-cram and --emit-fastq")
    if given["output"] is not None and given["output_dir"] is not None:
        raise click.UsageError("give either -o (one file) or --output-dir (a folder), not both")
    is_stdout = given["output"] in (None, "-") and given["output_dir"] is None
    for name in ("watch", "sort", "emit_summary"):
        if given[name] and is_stdout:
            way_out = "; to sort standard output, pipe it: | samtools sort" if name == "sort" else ""
            raise click.UsageError(f"{_flag(name)} needs a file or folder: -o FILE or --output-dir DIR{way_out}")


def _request(given: dict[str, Any], server_flags: dict[str, str]) -> "Request":
    """Turn the parameters into a `Request`, with defaults. Those that `Request` does not name are stream options."""
    from porestream.cli.options import credentials_of
    from porestream.cli.request import Request
    from porestream.client.opening import PRIORITIES, StreamOptions

    server, watch = given["server"], given["watch"]
    connection = {name: given.pop(name) for name in CONNECTION_OPTIONS}
    for name in SERVER_OPTIONS:
        del given[name]
    forms = [form for form in _FORMATS if given.pop(f"emit_{form}")]
    defaults = {
        "watch_timeout_s": 7200.0,
        "model": "" if server else "auto",
        "output": "-",
        "priority": "standard" if watch else "bulk",
        "give_up_s": 3600.0 if watch and server else 120.0,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in fields(Request)}
    own = {name: value for name, value in (defaults | chosen).items() if name in known}
    options = {name: value for name, value in (defaults | chosen).items() if name not in known}
    options["priority"] = PRIORITIES[options["priority"]]
    options |= {"emit_md": "reference" in chosen, "credentials": credentials_of(server or "", **connection)}
    return Request(
        **own,
        emit="".join(forms),
        options=StreamOptions(**options),
        server_flags=server_flags,
        command_line=shlex.join(["porestream", *_without_password(sys.argv[1:], connection["proxy"])]),
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _without_password(arguments: list[str], proxy: str | None) -> list[str]:
    """Return the arguments for the output's header, without the password in --proxy's value `proxy`."""
    from porestream.client.proxy import without_password

    return [word.replace(proxy, without_password(proxy)) for word in arguments] if proxy else arguments
