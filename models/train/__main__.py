"""`python -m porestream.models.train`: the commands that make a model, in the order in which you use them."""

import json
import signal
import sys
from datetime import date as calendar
from pathlib import Path

import click

EXISTING = click.Path(path_type=Path, exists=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False)
COUNT, SHARE, POSITIVE = click.IntRange(1), click.FloatRange(0, 1), click.FloatRange(0, min_open=True)
PORE = click.option("--pore", type=EXISTING, metavar="FILE.npz", help="Pore model. Default: the bundled one.")


class _Group(click.Group):
    """Reports errors caused by files and values in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
                raise
            raise click.ClickException(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # keep the order in which they are used


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make a basecalling model from simulated and real reads.

    \b
        prepare reads.pod5 --bam calls.bam -o reads.npz --valid 5
        train --out run --reads reads.npz --genome genome.fa --samples 3e9
        train --out run --reads reads.npz --genome genome.fa --samples 3e9 --resume run/state.pt
        export run/state.pt porestream_dna_r10.4.1_400bps_fast@v1
        evaluate reads.pod5 --bam calls.bam --model porestream_dna_r10.4.1_400bps_fast@v1 --json real.json
        curve --log run/log.jsonl --evaluation real.json --table curve.csv --png curve.png
    docs/inside/training.md has the whole recipe.
    """


@main.command(short_help="Make training arrays from POD5 and a BAM with moves.")
@click.argument("pod5_files", nargs=-1, required=True, type=EXISTING, metavar="POD5...")
@click.option(
    "--bam",
    required=True,
    type=EXISTING,
    help="Bases and their places in the signal: mv tags, or squigualiser's ss and si.",
)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="READS.npz", help="Write the arrays here.")
@click.option(
    "--valid",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Use the last N reads by sorted id only for validation.",
)
@PORE
def prepare(pod5_files: tuple[Path, ...], bam: Path, output: Path, valid: int, pore: Path | None) -> None:
    """Force-align reads to their bases, to find the sample at which each base arrives.

    \b
    Moves can come from any caller that writes them:
        porestream call reads.pod5 --model MODEL --emit-moves -o calls.bam
        python -m porestream.models.train prepare reads.pod5 --bam calls.bam -o reads.npz
    """
    from porestream.models.simulate.pore import PoreModel
    from porestream.models.train.arrays import TrainingRead, save_reads, split
    from porestream.models.train.prepare import prepare_reads

    reads, left_out = [], _LeftOut()
    for found in prepare_reads(list(pod5_files), bam, PoreModel.load(pore)):
        if isinstance(found, TrainingRead):
            reads.append(found)
        else:
            left_out(*found)
    prepared = split(reads, valid)
    save_reads(output, prepared)
    bases = sum(read.bases_B.size for read in reads)
    counts = f"{len(prepared.training)} reads to learn from, {len(prepared.validation)} for validation"
    _say(f"{output}: {counts}; {bases:,} bases")


@main.command("fit-pore", short_help="Fit the pore model to prepared reads.")
@click.argument("reads", type=EXISTING, metavar="READS.npz")
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="PORE.npz", help="Write the pore model here.")
@click.option("--realigned", type=OUTPUT, metavar="READS.npz", help="Write the reads, aligned to the new model, here.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, help="Rounds of alignment and fit.")
@click.option(
    "--epochs",
    type=COUNT,
    default=12,
    show_default=True,
    help="Passes over the events in each fit; the last fit makes twice as many.",
)
@PORE
def fit_pore_command(
    reads: Path, output: Path, realigned: Path | None, rounds: int, epochs: int, pore: Path | None
) -> None:
    """Learn from each base's context what the 9-mer table misses, and realign the reads.

    Each round prints how far held-out reads are from the levels predicted by the table alone and by the context.
    """
    from porestream.models.simulate.pore import PoreModel
    from porestream.models.train.arrays import load_reads, save_reads
    from porestream.models.train.fit_pore import Residuals, fit_pore

    def report(found: Residuals) -> None:
        click.echo(
            f"round {found.round}: held-out residual {found.table:.4f} with the table, {found.context:.4f} with the "
            f"context; {found.dwell_explained:.1%} of log dwell explained"
        )

    prepared = load_reads(reads)
    if not prepared.validation:
        raise click.UsageError(f"{reads} holds no reads for validation: prepare it with --valid 1 or more")
    fitted, aligned = fit_pore(prepared, PoreModel.load(pore), rounds, epochs, report=report, left_out=_LeftOut())
    fitted.save(output)
    if realigned:
        save_reads(realigned, aligned)


@main.command("compare-signal", short_help="Statistics of real and simulated signal, side by side.")
@click.argument("reads", type=EXISTING, metavar="READS.npz")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the simulation.")
@PORE
def compare_signal(reads: Path, seed: int, pore: Path | None) -> None:
    """Simulate the bases of prepared reads and print how real and simulated signal compare."""
    from porestream.models.simulate.pore import PoreModel
    from porestream.models.simulate.signal import SignalNoise
    from porestream.models.train.arrays import load_reads
    from porestream.models.train.statistics import comparison, real_statistics, simulated_statistics

    loaded, model = load_reads(reads), PoreModel.load(pore)
    every, left_out = [*loaded.training, *loaded.validation], _LeftOut()
    real = real_statistics(every, model, left_out)
    kept = [read for read in every if read.read_id not in left_out.ids]
    click.echo(comparison(real, simulated_statistics(kept, model, SignalNoise(), seed, left_out=left_out)))


@main.command(short_help="Train a network, or continue training it.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the state and the log."
)
@click.option(
    "--reads",
    type=EXISTING,
    metavar="READS.npz",
    help="Real reads (see prepare). Default: train on simulated reads only.",
)
@click.option(
    "--genome",
    "genomes",
    multiple=True,
    type=EXISTING,
    metavar="FASTA",
    help="Also simulate reads from this genome; repeatable.",
)
@PORE
@click.option("--resume", type=EXISTING, metavar="STATE.pt", help="Continue from this state.")
@click.option("--samples", type=POSITIVE, metavar="N", help="Length of the run in samples seen, e.g. 1.0e9.")
@click.option("--minutes", type=POSITIVE, metavar="N", help="Length of the run in minutes.")
@click.option(
    "--lr", type=POSITIVE, default=5e-3, show_default=True, help="Learning rate between warm-up and annealing."
)
@click.option(
    "--warm-up", type=COUNT, default=200, show_default=True, help="Number of steps over which the rate rises."
)
@click.option(
    "--anneal",
    type=SHARE,
    default=0.3,
    show_default=True,
    help="Last part of the run, as a share, in which the rate falls to 0.",
)
@click.option("--batch", type=COUNT, default=32, show_default=True, help="Chunks per worker and step.")
@click.option(
    "--chunk-samples",
    multiple=True,
    type=int,
    default=(1800, 1800, 2400, 3000),
    show_default=True,
    help="Chunk length; repeat it to split the run into equal parts with these lengths.",
)
@click.option(
    "--real-share", type=SHARE, default=0.15, show_default=True, help="Share of chunks that come from real reads."
)
@click.option(
    "--genome-share",
    type=SHARE,
    default=0.25,
    show_default=True,
    help="Share of simulated reads that come from genomes.",
)
@click.option("--workers", type=COUNT, default=2, show_default=True, help="Number of processes; use one per core.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--width", type=COUNT, default=96, show_default=True, help="Width of a new network's LSTMs.")
@click.option(
    "--state-len",
    type=click.IntRange(1, 5),
    default=3,
    show_default=True,
    help="Number of bases in a state of a new network's CRF.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of weights and data.")
@click.option(
    "--validate-every", type=COUNT, default=500, show_default=True, metavar="STEPS", help="Steps between validations."
)
@click.option(
    "--snapshot-every",
    type=POSITIVE,
    metavar="N",
    help="Keep a state every N samples, for the learning curve and export; it doesn't record the place in the data.",
)
def train(
    out: Path,
    reads: Path | None,
    genomes: tuple[Path, ...],
    pore: Path | None,
    resume: Path | None,
    samples: float | None,
    minutes: float | None,
    lr: float,
    warm_up: int,
    anneal: float,
    batch: int,
    chunk_samples: tuple[int, ...],
    real_share: float,
    genome_share: float,
    workers: int,
    device: str,
    width: int,
    state_len: int,
    seed: int,
    validate_every: int,
    snapshot_every: float | None,
) -> None:
    """Train a network on reads simulated on the fly, and on real reads.

    The state is saved to OUT/state.pt every four minutes, at the end, and on SIGTERM or Ctrl-C; OUT/log.jsonl gets a
    line every 50 steps. To continue a stopped run, use --resume and the same options. With --samples it then continues
    exactly as if it had never stopped; with --minutes it doesn't, because that depends on the clock. If the run had
    finished, --resume starts a new run with its own schedule.
    """
    from porestream.models.train.network import STRIDE
    from porestream.models.train.trainer import train as run
    from porestream.models.train.worker import STATE_NAME, TrainSettings

    if (samples is None) == (minutes is None):
        raise click.UsageError("say how long: --samples or --minutes, one of the two")
    for length in chunk_samples:
        if length % STRIDE or length < 100 * STRIDE:
            raise click.UsageError(
                f"--chunk-samples must be multiples of {STRIDE}, at least {100 * STRIDE}, not {length}"
            )
    state = run(
        TrainSettings(
            out=out,
            reads=reads,
            pore=pore,
            genomes=genomes,
            resume=resume,
            samples=samples,
            minutes=minutes,
            rate=lr,
            warm_up_steps=warm_up,
            anneal=anneal,
            batch=batch,
            chunk_samples=chunk_samples,
            real_share=real_share,
            genome_share=genome_share,
            workers=workers,
            seed=seed,
            device=device,
            width=width,
            state_len=state_len,
            validate_every_steps=validate_every,
            snapshot_every_samples=snapshot_every,
        )
    )
    done = f"{state.progress.seen / 1e6:,.1f} M samples seen in {state.progress.seconds / 60:,.1f} minutes"
    if state.begun is not None:
        _say(f"stopped: {done}. To go on, add to the same options: --resume {out / STATE_NAME}")
        sys.exit(128 + signal.SIGTERM)
    _say(f"done: {done}; {out / STATE_NAME}")


@main.command(short_help="Write a model directory from a state.")
@click.argument("state", type=EXISTING, metavar="STATE.pt")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), metavar="MODEL_DIR")
@click.option(
    "--date", default=lambda: calendar.today().isoformat(), show_default="today", help="Date for the model card."
)
@click.option("--qscore-scale", default=1.0, show_default=True, help="What `evaluate` fitted.")
@click.option("--qscore-bias", default=0.0, show_default=True, help="What `evaluate` fitted.")
@click.option(
    "--chunk-samples", default=6000, show_default=True, help="Length of the chunks in which reads are called."
)
@click.option("--overlap-samples", default=600, show_default=True)
@click.option("--fp16", is_flag=True, help="Write weights at half precision.")
@click.option(
    "--data",
    multiple=True,
    help="A source it learned from, with its licence; repeatable. Default: the sources in the state.",
)
@click.option(
    "--evaluation", "evaluations", multiple=True, type=EXISTING, help="JSON from `evaluate`, for the card; repeatable."
)
def export(
    state: Path,
    directory: Path,
    date: str,
    qscore_scale: float,
    qscore_bias: float,
    chunk_samples: int,
    overlap_samples: int,
    fp16: bool,
    data: tuple[str, ...],
    evaluations: tuple[Path, ...],
) -> None:
    """Write model.safetensors, config.toml and a model card.

    Run it again with the evaluations of the model it wrote, and with the [qscore] values that they fitted.
    """
    from porestream.models.train.export import ExportSettings, export_model
    from porestream.models.train.state import TrainingState

    settings = ExportSettings(
        date=date,
        quality_scale=qscore_scale,
        quality_bias=qscore_bias,
        chunk_samples=chunk_samples,
        overlap_samples=overlap_samples,
        half=fp16,
        data=data,
    )
    reports = [json.loads(path.read_text()) for path in evaluations]
    export_model(TrainingState.load(state), directory, settings, reports)


@main.command(short_help="Call reads and report how good the calls are.")
@click.argument("pod5_files", nargs=-1, required=True, type=EXISTING, metavar="POD5...")
@click.option(
    "--model", required=True, type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Model directory."
)
@click.option("--truth", type=EXISTING, metavar="TSV", help="Truth of simulated reads; needs --reference.")
@click.option("--bam", type=EXISTING, help="Basecalls of the same reads, used as the truth.")
@click.option("--reference", type=EXISTING, metavar="FASTA", help="Without --truth: map the reads to it.")
@click.option(
    "--arrays", type=EXISTING, metavar="READS.npz", help="Use only the validation reads of these training arrays."
)
@click.option("-n", "--max-reads", type=click.IntRange(1), metavar="N", help="Use only the first N reads.")
@click.option("--name", metavar="TEXT", help="Name of the reads in the report. Default: the first file's name.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Also write the report here.")
def evaluate(
    pod5_files: tuple[Path, ...],
    model: Path,
    truth: Path | None,
    bam: Path | None,
    reference: Path | None,
    arrays: Path | None,
    max_reads: int | None,
    name: str | None,
    precision: str,
    json_file: Path | None,
) -> None:
    """Call whole reads, as the service does, and compare the calls with the truth.

    \b
        evaluate run.pod5 --model DIR --truth run.truth.tsv --reference ref.fa     # simulated
        evaluate reads.pod5 --model DIR --bam calls.bam                            # another caller's calls
        evaluate reads.pod5 --model DIR --reference ref.fa                         # mapped
    """
    import itertools
    import tomllib

    from porestream.models.call.basecaller import Basecaller
    from porestream.models.files.bundle import load_bundle
    from porestream.models.train.arrays import load_reads
    from porestream.models.train.evaluate import evaluate as run
    from porestream.models.train.evaluate import pod5_reads
    from porestream.models.train.truths import ReferenceTruth, Truths, basecalls, simulated_truths

    truths: Truths
    if truth and reference and not bam:
        truths = simulated_truths(truth, reference)
    elif bam and not truth and not reference:
        truths = basecalls(bam)
    elif reference and not bam:
        truths = ReferenceTruth(reference)
    else:
        raise click.UsageError("say what is true: --truth with --reference, --bam, or --reference")
    bundle = load_bundle(model)
    training = tomllib.loads((model / "config.toml").read_text()).get("training", {})
    reads = pod5_reads(pod5_files)
    if arrays:
        kept = {read.read_id for read in load_reads(arrays).validation}
        reads = (read for read in reads if read[0] in kept)
    report = run(
        itertools.islice(reads, max_reads),
        truths,
        Basecaller(bundle, precision).call_read,
        bundle.config.quality_scale,
        bundle.config.quality_bias,
        name or pod5_files[0].stem,
        bundle.name,
        int(training.get("samples_seen", 0)),
    )
    click.echo(report.table())
    if json_file:
        json_file.write_text(json.dumps(report.json(), indent=1) + "\n")


@main.command(short_help="Make a table and a plot of the learning curve.")
@click.option("--log", "logs", multiple=True, type=EXISTING, help="The trainer's log; repeatable.")
@click.option("--evaluation", "evaluations", multiple=True, type=EXISTING, help="JSON of `evaluate`; repeatable.")
@click.option("--table", required=True, type=OUTPUT, metavar="FILE.csv|FILE.tsv")
@click.option("--png", type=OUTPUT, metavar="FILE", help="Needs matplotlib: pip install 'porestream[train]'.")
def curve(logs: tuple[Path, ...], evaluations: tuple[Path, ...], table: Path, png: Path | None) -> None:
    """Write the validation losses from the logs, and the identities of evaluated snapshots, by samples seen."""
    from porestream.models.train.curve import curve_rows, draw, write_table

    rows = curve_rows(logs, evaluations)
    if not rows:
        raise click.UsageError("nothing to show: no validation in the logs (--log) and no --evaluation")
    write_table(table, rows)
    if png:
        draw(png, rows)


class _LeftOut:
    """Reports each read that is left out once, with the reason."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def __call__(self, read_id: str, error: Exception) -> None:
        if read_id not in self.ids:
            _say(f"{read_id} is left out: {error}")
        self.ids.add(read_id)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main(prog_name="python -m porestream.models.train")
