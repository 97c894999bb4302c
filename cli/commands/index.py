"""`porestream index`."""

import sys
import time
from pathlib import Path

import click

from porestream.cli.stopping import whole_or_not_at_all


@click.command(short_help="Build the index for aligning to a reference on a GPU.")
@click.argument("reference", type=click.Path(path_type=Path), metavar="REF.fasta")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The index. Default: REF.fasta.PRESET.psindex, where `porestream serve --reference REF.fasta` looks for it.",
)
@click.option(
    "--preset",
    type=click.Choice(["map-ont", "lr:hq"]),
    help="minimap2 preset of the index. Default: lr:hq, which suits hac and sup models; map-ont suits fast ones.",
)
def index(reference: Path, output: Path | None, preset: str | None) -> None:
    """Build the index for aligning to a reference on a GPU; a CPU does not need one.

    \b
    porestream index GRCh38.fasta
    porestream index GRCh38.fasta --preset map-ont

    On the GPU the index takes about 1.2 bytes per base of a large genome. Building it needs a few times as much memory
    as the longest sequence. Exit codes: 0 built, 1 failed, 2 wrong usage, 130 and 143 stopped by Ctrl-C or SIGTERM,
    leaving nothing behind.
    """
    from porestream.kernels.align.aligner import PRESETS
    from porestream.kernels.align.fasta import ReferenceFileError, first_bytes, read_fasta
    from porestream.kernels.align.index import build_index, index_beside, load_index
    from porestream.kernels.align.mmi import MAGIC as MMI_MAGIC

    chosen = preset or "lr:hq"
    default = index_beside(reference, chosen)
    target = output or default
    began_s = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"[{time.monotonic() - began_s:6.0f} s] {text}", err=True)

    try:
        if first_bytes(reference, len(MMI_MAGIC)) == MMI_MAGIC:
            raise ReferenceFileError(reference, "a .mmi cannot be used on a GPU", "pass the FASTA")
        with whole_or_not_at_all(target):
            say(f"reading {reference.name}")
            found = read_fasta(reference)
            build_index(reference, found, PRESETS[chosen], target, say)
        built = load_index(target)
    except (ReferenceFileError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    bases = sum(sequence.length for sequence in found.sequences)
    say(
        f"{target}: {len(built.reference.sequences):,} sequences, {bases:,} bases, {len(built.position):,} minimizers; "
        f"{built.device_bytes:,} bytes, {built.device_bytes / bases:.2f} per base"
    )
    if target.absolute() != default.absolute():
        say(f"`porestream serve --reference {reference}` looks for it at {default}")
