"""The `porestream` command. It imports subcommands on use, so that `--help` does not wait for torch."""

import importlib
import os
import sys
from importlib.metadata import version as installed_version

import click

from porestream.cli.stopping import open_standard_streams

_COMMANDS = {
    "demo": ("porestream.cli.commands.demo", "Simulate a small run, call and align it, and compare with the truth."),
    "call": ("porestream.cli.commands.call", "Call and align POD5 files into a BAM, SAM, CRAM or FASTQ."),
    "serve": ("porestream.cli.commands.serve", "Serve basecalling and alignment over gRPC."),
    "health": ("porestream.cli.commands.health", "Ask a server whether it is ready; for scripts and containers."),
    "info": (
        "porestream.cli.commands.info",
        "Show what is in POD5 files: runs, chemistry, reads, end reasons.",
    ),
    "index": ("porestream.cli.commands.index", "Build the index for aligning to a reference on a GPU."),
    "models": ("porestream.cli.commands.models", "List the models you have, and which of them run."),
    "simulate": ("porestream.cli.commands.simulate", "Simulate R10.4.1 reads from a reference into a POD5 file."),
    "completion": ("porestream.cli.commands.completion", "Print a shell's completion script."),
}


ELSEWHERE = {
    # Other tools' commands, and the messages for them.
    "basecaller": "is a dorado command; use porestream call READS --model MODEL",
    "aligner": "is a dorado command; porestream aligns reads as it calls them: use porestream call --reference",
    "summary": "is a dorado command; use porestream call --emit-summary",
    "trim": "is a dorado command; porestream call trims adapters unless --no-trim is given",
    "download": "is a dorado command; porestream downloads nothing: docs/use/models/directories.md says where to get "
    "models",
    **dict.fromkeys(
        ("demux", "duplex", "correct", "polish", "variant"), "is a dorado command; porestream has nothing like it yet"
    ),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if reason := ELSEWHERE.get(cmd_name):
            raise click.UsageError(f"{cmd_name} {reason}", ctx)
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from porestream.server.calling.revision import CALLING_REVISION

        click.echo(f"porestream {installed_version('porestream')} (calling revision {CALLING_REVISION})")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Nanopore signal in, basecalled and aligned reads out.

    \b
    See everything work on a simulated run:
        porestream demo
    Call a run on this machine:
        porestream call run.pod5 --reference ref.fasta -o calls.bam
    Serve instruments and pipelines, and call through the server:
        porestream serve --reference ref.fasta --listen 0.0.0.0:50051
        porestream call run.pod5 --server HOST:50051 --reference ref.fasta -o calls.bam
    See what is in a run, and which models you have:
        porestream info run.pod5
        porestream models
    Simulate a run to try it with:
        porestream simulate ref.fasta -o run.pod5
    """


def run() -> None:
    """Run the program; a server first restarts itself with glibc's heap on huge pages.

    glibc reads that setting from the environment when a process starts. It is worth an eighth of the speed.
    """
    open_standard_streams()
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.argv[1:2] == ["serve"] and sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
        # -P keeps Python from importing modules from the working folder.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "porestream.cli.main", *sys.argv[1:]])
    main(prog_name="porestream")


if __name__ == "__main__":
    run()
