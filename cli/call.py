"""`porestream call`."""

import shlex
import sys
from pathlib import Path

import click
from click.core import ParameterSource


@click.command(short_help="Call and align POD5 files into a BAM or SAM.")
@click.argument("reads", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="READS...")
@click.option(
    "--model",
    metavar="auto|fast|hac|sup|NAME|DIR",
    help="Model directory, or the name of a model in the models folder (`porestream models` lists them); fast, hac or "
    "sup: the newest of that kind that fits the runs; hac@v5.0.0: that release of it. With --server: one of its "
    "models. Default: auto: the fastest kind's newest that fits the runs' chemistry, else the one that ships "
    "(R10.4.1 DNA); with --server: its model for that chemistry.",
)
@click.option(
    "--models-dir",
    "--models-directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="PORESTREAM_MODELS",
    metavar="DIR",
    help="Folder of your models. Default: $PORESTREAM_MODELS or ~/.local/share/porestream/models.",
)
@click.option(
    "--reference",
    metavar="FASTA|MMI|NAME",
    help="Align to this FASTA or minimap2 index; with --server, to one of its references. Default: no alignment.",
)
@click.option(
    "--preset",
    type=click.Choice(["map-ont", "lr:hq"]),
    help="Alignment preset of minimap2. Default: what suits the model (fast: map-ont, hac and sup: lr:hq).",
)
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="OUT.bam|OUT.sam|-",
    help="Where records go. Default: -, standard output: SAM on a terminal, else uncompressed BAM.",
)
@click.option(
    "--server", metavar="HOST:PORT|unix:PATH", help="Call on this server. Default: one is started for this command."
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Chunks that a worker calls at a time. Default: 16 on a CPU, where it does not change any base; on a card as "
    "many as fit into its memory.",
)
@click.option(
    "-t", "--threads", type=click.IntRange(1), metavar="N", help="Workers, one core each. Default: one for every core."
)
@click.option("-n", "--max-reads", type=click.IntRange(1), metavar="N", help="Stop after N reads. Default: all.")
@click.option(
    "-x",
    "--device",
    metavar="auto|cpu|cuda|cuda:N|emulated",
    help="Where the network runs and scores are decoded. Default: auto (the first CUDA card where PyTorch finds one, "
    "else the CPU). emulated: the network on the CPU, the card's kernels on an emulator: for a few short reads, to "
    "learn how they work; needs g++.",
)
@click.option(
    "--decoder",
    type=click.Choice(["auto", "gpu", "cpu"]),
    help="What makes bases of scores: the device, or the CPU. Default: auto (gpu, where the device is not the CPU).",
)
@click.option(
    "--aligner",
    type=click.Choice(["auto", "gpu", "mappy"]),
    help="What aligns base by base: the device, or mappy (minimap2) on the CPU. Where a read lies is mappy's to say "
    "either way, so gpu is not faster yet. Default: auto (mappy).",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Of the network. Default: auto (fp16 on a card; on a CPU bf16 where the processor computes it).",
)
@click.option("--emit-moves", is_flag=True, help="Write the mv tag: where in the signal each base is.")
@click.option(
    "--summary-json",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the final counts and rates to FILE.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where compiled code and indexes are kept. Default: $XDG_CACHE_HOME/porestream or ~/.cache/porestream.",
)
@click.pass_context
def call(
    ctx: click.Context,
    reads: tuple[Path, ...],
    model: str | None,
    models_dir: Path | None,
    reference: str | None,
    preset: str | None,
    output: str,
    server: str | None,
    batch_size: int | None,
    threads: int | None,
    max_reads: int | None,
    device: str | None,
    decoder: str | None,
    aligner: str | None,
    precision: str | None,
    emit_moves: bool,
    summary_json: Path | None,
    cache_dir: Path | None,
) -> None:
    """Call and align the reads of POD5 files, or of folders of them, into a BAM or SAM.

    \b
    porestream call run.pod5 --reference ref.fa -o calls.bam
    porestream call pod5_folder/ --model hac | samtools sort -o sorted.bam
    porestream call pod5_folder/ --models-dir /data/models --model dna_r10.4.1_e8.2_400bps_hac@v5.0.0 -o calls.bam

    Records go to the output, everything else to standard error. Exit codes: 0 every read is accounted for (rejected
    ones are listed), 2 wrong usage, 3 an input could not be read, 4 the server was lost, 5 reads are missing, 1 other
    errors.
    """
    server_only = {
        "-b": batch_size,
        "-t": threads,
        "-x": device,
        "--decoder": decoder,
        "--aligner": aligner,
        "--precision": precision,
        "--cache-dir": cache_dir,
    }
    if server is not None and (given := [flag for flag, value in server_only.items() if value is not None]):
        raise click.UsageError(f"{given[0]} is the server's to choose; give it to `porestream serve`")
    if server is not None and ctx.get_parameter_source("models_dir") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--models-dir is the server's to choose; give it to `porestream serve`")
    if preset is not None and reference is None:
        raise click.UsageError("--preset is about alignment, which needs --reference")

    from porestream.cli.caller import Request, run_call

    request = Request(
        reads=reads,
        model=model or ("" if server else "auto"),
        models_directory=models_dir,
        reference=reference or "",
        preset=preset or "",
        output=output,
        server=server,
        server_flags={flag: str(value) for flag, value in server_only.items() if value is not None},
        max_reads=max_reads,
        emit_moves=emit_moves,
        summary_json=summary_json,
        command_line=shlex.join(["porestream", *sys.argv[1:]]),
    )
    ctx.exit(run_call(request))
