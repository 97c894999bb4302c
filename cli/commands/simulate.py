"""`porestream simulate`."""

import contextlib
import math
import os
import secrets
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from porestream.cli.stopping import whole_or_not_at_all
from porestream.models.simulate.noise import PA_PER_UNIT, SignalNoise

if TYPE_CHECKING:
    from porestream.models.simulate.run import Run

_NATURAL = SignalNoise()
_MAX_LENGTH = 1_000_000_000


class _FiniteRange(click.FloatRange):
    """A range that excludes inf, and nan, which passes every comparison with a bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


@click.command(short_help="Simulate R10.4.1 reads from a reference into a POD5 file.")
@click.argument("reference", type=click.Path(path_type=Path), metavar="REF")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OUT.pod5",
    help="POD5 file to write; an existing one is replaced when the new one is complete.",
)
@click.option("-n", "--reads", type=click.IntRange(1), metavar="N", help="Number of reads. Default: 1000.")
@click.option(
    "--coverage",
    type=_FiniteRange(0, min_open=True),
    metavar="X",
    help="Simulate enough reads to cover the reference X times, instead of --reads.",
)
@click.option(
    "--length-mean",
    type=click.IntRange(200, _MAX_LENGTH),
    default=5000,
    show_default=True,
    metavar="BASES",
    help="Mean length of the reads.",
)
@click.option(
    "--length-sd",
    type=click.IntRange(0, _MAX_LENGTH),
    default=4000,
    show_default=True,
    metavar="BASES",
    help="Standard deviation of the lengths (gamma distribution; at least 200 bases). 0: all reads are equally long.",
)
@click.option(
    "--strand",
    type=click.Choice(["both", "forward", "reverse"]),
    default="both",
    show_default=True,
    help="Which strands of the reference go through the pores.",
)
@click.option(
    "--sample-rate",
    type=click.Choice(["5000", "4000"]),
    default="5000",
    show_default=True,
    help="Samples per second.",
)
@click.option(
    "--noise",
    type=_FiniteRange(0, 100),
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="Multiple of real reads' noise. 0 leaves flat bases (of random duration), the leader, and each read's drift, "
    "gain and offset.",
)
@click.option(
    "--speed",
    type=_FiniteRange(50, 2000),
    default=_NATURAL.speed_bases_per_s,
    show_default=True,
    metavar="BASES/S",
    help="Mean speed; the default is that of real 400 bases/s reads.",
)
@click.option(
    "--speed-sd",
    type=_FiniteRange(0, 0.5),
    default=_NATURAL.speed_sd,
    show_default=True,
    metavar="SHARE",
    help="Standard deviation of speed between reads, as a share of the mean; speeds stay within 25% of it.",
)
@click.option(
    "--drift",
    type=_FiniteRange(0, 1000),
    default=_NATURAL.drift_sd_units * PA_PER_UNIT,
    show_default=True,
    metavar="PA",
    help="Standard deviation of the baseline's change from a read's start to its end, in pA.",
)
@click.option(
    "--stalls",
    type=_FiniteRange(0, 1000),
    default=1000 * _NATURAL.stall_share,
    show_default=True,
    metavar="N",
    help="Stalls (0.1 s on average) per thousand bases.",
)
@click.option("--no-adapters", is_flag=True, help="Simulate only the bases, without open pore, leader and adapters.")
@click.option(
    "--channels",
    type=click.IntRange(1, 512),
    default=128,
    show_default=True,
    metavar="N",
    help="How many of the flow cell's 512 channels sequence at the same time.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Truth table. Default: OUT.truth.tsv.",
)
@click.option("--boundaries", is_flag=True, help="Add the first sample of every base to the truth.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    help="The same seed and options give the same run. Default: a random seed, printed at the end.",
)
def simulate(
    reference: Path,
    output: Path,
    reads: int | None,
    coverage: float | None,
    length_mean: int,
    length_sd: int,
    strand: str,
    sample_rate: str,
    noise: float,
    speed: float,
    speed_sd: float,
    drift: float,
    stalls: float,
    no_adapters: bool,
    channels: int,
    truth: Path | None,
    boundaries: bool,
    seed: int | None,
) -> None:
    """Simulate R10.4.1 signal (LSK114, 400 bases/s) of reads from the FASTA file REF into a POD5 file.

    \b
    A thousand reads, with their origins in run.truth.tsv:
        porestream simulate ref.fasta -o run.pod5
    Thirty-fold coverage with short reads, the same every time:
        porestream simulate ref.fasta.gz -o run.pod5 --coverage 30 --length-mean 1500 --length-sd 800 --seed 7
    An easy set at 4 kHz, with the sample at which each base arrives:
        porestream simulate ref.fasta -o easy.pod5 -n 100 --sample-rate 4000 --noise 0.5 --no-adapters --boundaries

    Reads come from all sequences in proportion to their lengths, avoiding stretches of N where possible. The truth has
    a line for each read: read_id, contig, start and end (0-based, half open), strand, bases, samples, samples before
    the first base and after the last one, channel, well, read number, start sample, end reason.
    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 stopped by Ctrl-C or SIGTERM, leaving nothing behind.
    """
    if reads is not None and coverage is not None:
        raise click.UsageError("give either --reads or --coverage, not both")
    if output.suffix != ".pod5":
        raise click.UsageError(f"-o {output}: the name must end in .pod5")
    truth = truth or output.with_suffix(".truth.tsv")
    for path in (output, truth):
        if not path.parent.is_dir():
            raise click.UsageError(f"{path}: folder {path.parent} does not exist; create it first")
    if truth.resolve() in (reference.resolve(), output.resolve()):
        raise click.UsageError(f"--truth {truth}: this is the reference or the output; choose another name")

    from porestream.models.simulate.run import Plan, Run
    from porestream.models.simulate.simulated_reads import (
        ReadSettings,
    )  # here: torch and numba take a second

    natural = SignalNoise(
        speed_bases_per_s=speed, speed_sd=speed_sd, drift_sd_units=drift / PA_PER_UNIT, stall_share=stalls / 1000
    )
    run = Run(
        plan=Plan(
            reads=1000 if reads is None and coverage is None else reads,
            coverage=coverage,
            length_mean=length_mean,
            length_sd=length_sd,
            strand=strand,
        ),
        settings=ReadSettings(natural.scaled(noise), int(sample_rate), not no_adapters),
        channels=channels,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    try:
        with whole_or_not_at_all(output):
            _simulate(run, reference, output, truth, boundaries)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _simulate(run: "Run", reference_path: Path, output: Path, truth: Path, boundaries: bool) -> None:
    """Simulate, with a progress bar on a terminal and a summary at the end."""
    import torch
    from tqdm import tqdm

    from porestream.client.text import counted
    from porestream.models.simulate.reference import Reference
    from porestream.models.simulate.run import MIN_LENGTH, simulate_run
    from porestream.models.simulate.writer import RunWriter, run_info

    torch.set_num_threads(1)  # reads run in parallel, one per core
    began_s = time.perf_counter()
    reference = Reference.load(reference_path, MIN_LENGTH)
    reads = bases = samples = end_sample = 0
    bar = tqdm(
        total=run.plan.reads or run.plan.target_bases(reference),
        unit="read" if run.plan.reads else "base",
        unit_scale=not run.plan.reads,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )
    info = run_info(run.seed, run.settings.sample_rate_hz, f"simulated_{reference_path.name.split('.')[0]}")
    made = simulate_run(run, reference, threads=len(os.sched_getaffinity(0)))
    with RunWriter(output, truth, info, boundaries) as writer, bar, contextlib.closing(made):
        for read, place in made:
            writer.add(read, place)
            reads += 1
            bases += read.window.bases_B.size
            samples += read.current_pa_S.size
            end_sample = max(end_sample, place.start_sample + read.current_pa_S.size)
            bar.update(1 if run.plan.reads else read.window.bases_B.size)
    seconds = time.perf_counter() - began_s
    run_time = timedelta(seconds=round(end_sample / run.settings.sample_rate_hz))
    click.echo(
        f"{counted(reads, 'read')}, {bases:,} bases, {samples:,} samples: {run_time} (h:mm:ss) of a run, made in "
        f"{seconds:.1f} s ({samples / seconds:,.0f} samples/s); seed {run.seed}, truth in {truth}",
        err=True,
    )
