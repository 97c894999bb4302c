"""`python -m porestream.models.train`: the commands that make a model, in the order in which they are used."""

import json
import signal
import sys
from datetime import date as calendar
from pathlib import Path

import click

EXISTING = click.Path(path_type=Path, exists=True)
OUTPUT = click.Path(path_type=Path, dir_okay=False)
COUNT, SHARE, POSITIVE = click.IntRange(1), click.FloatRange(0, 1), click.FloatRange(0, min_open=True)
PORE = click.option("--pore", type=EXISTING, metavar="FILE.npz", help="Pore model. Default: the one that ships.")


class _Group(click.Group):
    """What files and values are to blame for is said in a line, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
                raise
            raise click.ClickException(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are used


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


@main.command(short_help="POD5 and BAM with moves to training arrays.")
@click.argument("pod5_files", nargs=-1, required=True, type=EXISTING, metavar="POD5...")
@click.option(
    "--bam", required=True, type=EXISTING, help="Bases and where they lie: mv tags, or squigualiser's ss and si."
)
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="READS.npz", help="Where the arrays go.")
@click.option(
    "--valid",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="The last N reads by sorted id are for validation only.",
)
@PORE
def prepare(pod5_files: tuple[Path, ...], bam: Path, output: Path, valid: int, pore: Path | None) -> None:
    """Force-align reads to their bases: each base gets the sample at which it arrives.

    \b
    Moves from any caller that writes them:
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
@click.option("-o", "--output", required=True, type=OUTPUT, metavar="PORE.npz", help="Where the pore model goes.")
@click.option("--realigned", type=OUTPUT, metavar="READS.npz", help="Where the reads go, aligned to the new model.")
@click.option("--rounds", type=COUNT, default=5, show_default=True, help="Alignments and fits, in turn.")
@click.option(
    "--epochs",
    type=COUNT,
    default=12,
    show_default=True,
    help="Passes over the events in each fit; the last has twice as many.",
)
@PORE
def fit_pore_command(
    reads: Path, output: Path, realigned: Path | None, rounds: int, epochs: int, pore: Path | None
) -> None:
    """Learn what the 9-mer table misses from the context of each base, and align the reads anew.

    Each round prints how far held-out reads are from the levels that the table alone and the context predict.
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
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the simulation.")
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


@main.command(short_help="Train, or go on training.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for state and log."
)
@click.option(
    "--reads", type=EXISTING, metavar="READS.npz", help="Real reads (see prepare). Default: simulated ones only."
)
@click.option(
    "--genome", "genomes", multiple=True, type=EXISTING, metavar="FASTA", help="Simulate from it, too; repeatable."
)
@PORE
@click.option("--resume", type=EXISTING, metavar="STATE.pt", help="Go on from this state.")
@click.option("--samples", type=POSITIVE, metavar="N", help="Length of the run in samples seen, e.g. 1.0e9.")
@click.option("--minutes", type=POSITIVE, metavar="N", help="Length of the run in time.")
@click.option(
    "--lr", type=POSITIVE, default=5e-3, show_default=True, help="Learning rate between warm-up and annealing."
)
@click.option("--warm-up", type=COUNT, default=200, show_default=True, help="Steps in which the rate rises.")
@click.option(
    "--anneal",
    type=SHARE,
    default=0.3,
    show_default=True,
    help="Share of the run, at its end, in which the rate falls to 0.",
)
@click.option("--batch", type=COUNT, default=32, show_default=True, help="Chunks a worker and step.")
@click.option(
    "--chunk-samples",
    multiple=True,
    type=int,
    default=(1800, 1800, 2400, 3000),
    show_default=True,
    help="Chunk length; repeatable, for equal parts of the run.",
)
@click.option(
    "--real-share", type=SHARE, default=0.15, show_default=True, help="Share of chunks that are from real reads."
)
@click.option(
    "--genome-share",
    type=SHARE,
    default=0.25,
    show_default=True,
    help="Share of simulated reads that are from genomes.",
)
@click.option("--workers", type=COUNT, default=2, show_default=True, help="Processes: one a core.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--width", type=COUNT, default=96, show_default=True, help="Of a new network's LSTMs.")
@click.option(
    "--state-len",
    type=click.IntRange(1, 5),
    default=3,
    show_default=True,
    help="Bases in a state of a new network's CRF.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of weights and data.")
@click.option(
    "--validate-every", type=COUNT, default=500, show_default=True, metavar="STEPS", help="Steps between validations."
)
@click.option(
    "--snapshot-every",
    type=POSITIVE,
    metavar="N",
    help="Keep a state every N samples, for the learning curve and export; not to resume from.",
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
    """Train a network on simulated reads made on the fly, and on real ones.

    The state is saved to OUT/state.pt every four minutes, at the end, and on SIGTERM or Ctrl-C; OUT/log.jsonl grows by
    a line every 50 steps. A run that was stopped goes on with --resume and the same options, exactly as if it had not
    been (with --samples; --minutes has a clock in it); a run that has ended is followed by one with a schedule of its
    own.
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
@click.option("--date", default=lambda: calendar.today().isoformat(), show_default="today", help="For the model card.")
@click.option("--qscore-scale", default=1.0, show_default=True, help="What `evaluate` fitted.")
@click.option("--qscore-bias", default=0.0, show_default=True, help="What `evaluate` fitted.")
@click.option("--chunk-samples", default=6000, show_default=True, help="In which reads are called.")
@click.option("--overlap-samples", default=600, show_default=True)
@click.option("--fp16", is_flag=True, help="Weights at half precision.")
@click.option(
    "--data", multiple=True, help="What it learned from, and the licence; repeatable. Default: what the state says."
)
@click.option(
    "--evaluation", "evaluations", multiple=True, type=EXISTING, help="JSON of `evaluate` for the card; repeatable."
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

    Run it again with the evaluations of what it wrote, and with the [qscore] that they fitted.
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


@main.command(short_help="Call reads and say how good the calls are.")
@click.argument("pod5_files", nargs=-1, required=True, type=EXISTING, metavar="POD5...")
@click.option(
    "--model", required=True, type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Model directory."
)
@click.option("--truth", type=EXISTING, metavar="TSV", help="Truth of simulated reads; needs --reference.")
@click.option("--bam", type=EXISTING, help="Basecalls of the same reads are the truth.")
@click.option("--reference", type=EXISTING, metavar="FASTA", help="Alone: reads are mapped to it.")
@click.option(
    "--arrays", type=EXISTING, metavar="READS.npz", help="Only the validation reads of these training arrays."
)
@click.option("-n", "--max-reads", type=click.IntRange(1), metavar="N", help="Only the first N reads.")
@click.option("--name", metavar="TEXT", help="Of the reads, for the report. Default: the first file's name.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write the report here, too.")
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
        evaluate reads.pod5 --model DIR --bam calls.bam                            # another caller's word
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


@main.command(short_help="Table and picture of the learning curve.")
@click.option("--log", "logs", multiple=True, type=EXISTING, help="The trainer's log; repeatable.")
@click.option("--evaluation", "evaluations", multiple=True, type=EXISTING, help="JSON of `evaluate`; repeatable.")
@click.option("--table", required=True, type=OUTPUT, metavar="FILE.csv|FILE.tsv")
@click.option("--png", type=OUTPUT, metavar="FILE", help="Needs matplotlib: pip install 'porestream[train]'.")
def curve(logs: tuple[Path, ...], evaluations: tuple[Path, ...], table: Path, png: Path | None) -> None:
    """Losses of the logs' validations, and identities of evaluated snapshots, by samples seen."""
    from porestream.models.train.curve import curve_rows, draw, write_table

    rows = curve_rows(logs, evaluations)
    if not rows:
        raise click.UsageError("nothing to show: no validation in the logs (--log) and no --evaluation")
    write_table(table, rows)
    if png:
        draw(png, rows)


class _LeftOut:
    """Says of each read once that it is left out, and why."""

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
