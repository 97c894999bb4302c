"""Check that the CUDA path works on this machine, and write a report of tests, results and speeds: `make gpu-check`.

    python benchmarks/gpu_check.py --output gpu-report.md
    python benchmarks/gpu_check.py --device cpu --quick      the same steps without a GPU

Exit codes: 0 all is well, 1 a test fails, results differ, or compute-sanitizer finds something, 2 there is no GPU.

Dimensions: M samples of a chunk.
"""

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import alignment
import kernel_check
import mappy
import numpy as np
import torch
from host_card import HostCard
from shapes import SHAPES, write_shape

from porestream.client.reads import SignalRead
from porestream.client.sources.pod5_source import Pod5Source
from porestream.kernels.align.aligner import PRESETS
from porestream.kernels.device import Device, find_kernel_device
from porestream.models.call.basecaller import Basecaller
from porestream.models.call.card import Card, find_device
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.call.memory import device_bytes
from porestream.models.files.bundle import load_bundle
from porestream.models.files.catalog import BUNDLED
from porestream.models.files.config import ModelError
from porestream.models.scale import Measurement
from porestream.models.simulate.sequence import decode, random_bases
from porestream.server.start.devices import batch_decoder, kernel_device

ROOT = Path(__file__).resolve().parent.parent
LEAST_AGREEMENT = 0.99
COMPARED_ROWS = 64
RUNS = 5
REAL_SETS = {
    "sarscov2_r941": "models/dna_r9.4.1_e8.1_fast@v3.4",
    "klebsiella_r94": "models/dna_r9.4.1_e8.1_fast@v3.4",
    "r1041_5khz": None,
}
"""Folders with a reads.pod5, and the model that fits; None: the bundled one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two devices' calls of the same reads compare.

    Attributes
    ----------
    agreement
        Matching bases as a share of the longer of the two sequences, over all reads.
    equal
        Number of reads with the same sequence on both.
    """

    name: str
    reads: int
    bases: int
    agreement: float
    equal: int


def agreement(left: str, right: str) -> float:
    """Return the matching bases of the best alignment, as a share of the longer sequence."""
    if left == right:
        return 1.0
    hits = mappy.Aligner(seq=left, preset="map-ont").map(right)
    return max((hit.mlen for hit in hits), default=0) / max(len(left), len(right))


def sequence(caller: Basecaller, read: SignalRead) -> str:
    """Return a read's bases; empty if the caller rejects it."""
    info = read.info
    measured = Measurement(
        sample_rate_hz=info.run.sample_rate_hz,
        offset_adc=info.offset_adc,
        scale_pa=info.scale_pa_per_adc,
        open_pore_pa=info.open_pore_level_pa or float("nan"),
        flow_cell_product_code=info.run.flow_cell_product_code,
    )
    try:
        return caller.call_read(read.signal_S, measured).sequence
    except ValueError:
        return ""


def open_card(device: torch.device, threads: int = 1) -> Card:
    """Open the GPU, or the CPU in its place."""
    return HostCard(threads) if device.type == "cpu" else Card(device, threads)


def kernels_of(card: Card) -> Device:
    """Return the device that kernels run on: the GPU, or the emulator if the CPU takes its place."""
    found = kernel_device("emulated" if isinstance(card, HostCard) else str(card.device), card)
    assert found is not None
    return found


def compare(name: str, model: Path, reads: Iterable[SignalRead], card: Card) -> Comparison:
    """Call the reads on the CPU in fp32 and on the GPU, and compare them."""
    bundle = load_bundle(model)
    decoder = batch_decoder(kernels_of(card), bundle.config)
    callers = (
        Basecaller(bundle, "fp32"),
        Basecaller(bundle, "auto", card=card, rows=COMPARED_ROWS, decoder=decoder),
    )
    count = equal = bases = 0
    matching = 0.0
    for read in reads:
        ours, theirs = (sequence(caller, read) for caller in callers)
        longer = max(len(ours), len(theirs))
        count, equal, bases = count + 1, equal + (ours == theirs), bases + longer
        matching += longer * agreement(ours, theirs)
    return Comparison(name=name, reads=count, bases=bases, agreement=matching / bases if bases else 0.0, equal=equal)


def simulated_reads(folder: Path, count: int) -> Path:
    """Simulate a POD5 file of R10.4.1 reads."""
    reference, run = folder / "reference.fasta", folder / "run.pod5"
    reference.write_text(f">made_up\n{decode(random_bases(50_000, np.random.default_rng(1)))}\n")
    command = [sys.executable, "-m", "porestream.cli.main", "simulate", str(reference), "-o", str(run)]
    subprocess.run([*command, "--reads", str(count), "--length-mean", "2000", "--seed", "1"], check=True)
    return run


def compare_all(data: Path, folder: Path, card: Card, max_reads: int, run: Path | None) -> list[Comparison]:
    """Compare the real sets that are available, and always a simulated run."""
    found = [
        compare(name, data / model if model else BUNDLED, Pod5Source([data / name / "reads.pod5"], max_reads), card)
        for name, model in REAL_SETS.items()
        if (data / name / "reads.pod5").is_file()
    ]
    source = Pod5Source([run or simulated_reads(folder, max_reads)], max_reads)
    return [*found, compare("simulated", BUNDLED, source, card)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed and memory of one model shape.

    Attributes
    ----------
    network
        Samples per second of the network alone.
    scores
        Samples per second from signal to scores in host memory, with as many threads as a server would use.
    planned_bytes, taken_bytes
        GPU memory that was planned, and that loading took.
    """

    name: str
    rows: int
    samples: int
    network: float
    scores: float
    planned_bytes: int
    taken_bytes: int


def speed(name: str, model: Path, device: torch.device, threads: int, rows: int | None) -> Speed:
    """Measure batches of the longest chunks; times are medians of RUNS."""
    bundle = load_bundle(model)
    chunker = Basecaller(bundle, "fp32").chunker
    card = open_card(device, threads)
    before = card.free_bytes()
    runner = CudaRunner(bundle, chunker.lengths, "auto", card, rows)
    taken = max(0, before - card.free_bytes())
    samples = chunker.lengths[0]
    chunks_M = [*np.random.default_rng(1).standard_normal((runner.rows, samples), np.float32)]
    in_batch = runner.rows * samples
    return Speed(
        name=name,
        rows=runner.rows,
        samples=samples,
        network=in_batch / median_seconds(lambda: runner.compute_only(samples)),
        scores=threads * in_batch / median_seconds(lambda: in_threads(threads, lambda: runner(chunks_M, samples))),
        planned_bytes=device_bytes(bundle.config, samples, runner.precision, runner.rows),
        taken_bytes=taken,
    )


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Run `work` in this many threads at once."""
    started = [threading.Thread(target=work) for _ in range(count)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median of RUNS times, after one warm-up run."""
    times = []
    for _ in range(RUNS + 1):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return statistics.median(times[1:])


SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


def run_sanitizers(device: torch.device) -> dict[str, str]:
    """Run each of compute-sanitizer's tools on small cases; return each tool's verdict and last line."""
    program = shutil.which("compute-sanitizer")
    if program is None or device.type != "cuda":
        return {"compute-sanitizer": "not available"}
    found = {}
    for tool in SANITIZERS:
        command = [program, "--tool", tool, "--error-exitcode", "99", sys.executable, "benchmarks/kernel_check.py"]
        command += ["--device", str(device), "--small"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        found[tool] = f"{'clean' if done.returncode == 0 else f'exit code {done.returncode}'}: {last}"
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
    return found


def run_tests() -> tuple[bool, str]:
    """Run tests/gpu; return whether they pass, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode == 0, (done.stdout.strip().splitlines() or ["no output"])[-1]


def environment(device: torch.device) -> dict[str, str]:
    """Return the hardware and versions that the figures depend on."""
    facts = {"device": str(device), "processor": platform.processor() or platform.machine()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", f"--id={device.index}", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            driver = f"unknown ({error})"
        facts |= {"GPU": f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"}
        facts |= {"driver": driver, "CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    for package in ("porestream", "torch", "numpy", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"Python": platform.python_version()}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels' results: differences from the emulator, what the sanitizers say, and speeds."""

    differences: list[str]
    sanitizers: dict[str, str]
    speeds: list[kernel_check.Speed]

    @property
    def passed(self) -> bool:
        """Whether there are no differences and the sanitizers found nothing."""
        return not self.differences and not any(said.startswith("exit code") for said in self.sanitizers.values())


def report(
    tests: str,
    facts: dict[str, str],
    kernels: Kernels,
    comparisons: list[Comparison],
    speeds: list[Speed],
    alignments: list[alignment.Figures],
) -> str:
    """Return the whole report as Markdown."""
    compared = [
        (
            found.name,
            found.reads,
            f"{found.bases:,}",
            f"{100 * found.agreement:.3f}%",
            f"{found.equal} of {found.reads}",
        )
        for found in comparisons
    ]
    measured = [
        (
            found.name,
            found.rows,
            f"{found.samples:,}",
            f"{found.network / 1e6:,.2f}",
            f"{found.scores / 1e6:,.2f}",
            f"{found.planned_bytes / 2**30:.2f}",
            f"{found.taken_bytes / 2**30:.2f}",
        )
        for found in speeds
    ]
    speed_head = [
        "shape",
        "rows",
        "samples a chunk",
        "network, M samples/s",
        "to scores in the host's memory, M samples/s",
    ]
    return "\n\n".join(
        [
            "# GPU check",
            f"tests/gpu: {tests}",
            table(["", ""], facts.items()),
            "## Kernels, against the emulator",
            "\n".join(kernels.differences) or "The results are the same.",
            table(["compute-sanitizer", ""], kernels.sanitizers.items()),
            table(
                ["kernel, with launches and copies", "", ""],
                [(speed.name, f"{speed.figure:,.3f}", speed.unit) for speed in kernels.speeds],
            ),
            "## Bases, against the CPU in fp32",
            table(["reads of", "reads", "bases", "agreement", "the same sequence"], compared),
            "## Alignment, against minimap2 on all cores",
            alignment.table(alignments),
            "## Speed",
            table([*speed_head, "memory planned, GiB", "taken when loaded, GiB"], measured),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, write the report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with real sets")
    parser.add_argument("--run", type=Path, help="POD5 file to use instead of a simulated run")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--threads", type=int, default=4, help="threads that call batches (default: 4)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, few reads, no tests")
    options = parser.parse_args(arguments)
    try:
        device = find_device(options.device)
    except ModelError as error:
        print(
            f"{error}\nOn a GPU this runs tests/gpu, compares the kernels with the emulator and the bases of real and "
            "simulated reads with the CPU's, checks the kernels with compute-sanitizer, measures samples/s of each "
            "model shape, decoded bases/s, GCUPS, and aligned bases/s compared with minimap2, and writes "
            f"{options.output}.",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    passed, tests = (True, "not run (--quick)") if options.quick else run_tests()
    names = [name for name in SHAPES if name.startswith("tiny") == options.quick]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        max_reads = 1 if options.quick else 50
        card = open_card(device)
        on = kernels_of(card)
        kernels = Kernels(
            kernel_check.differences(on, options.quick),
            run_sanitizers(device),
            kernel_check.speeds(on, options.quick),
        )
        aligns_on = find_kernel_device(f"cuda:{device.index or 0}" if device.type == "cuda" else "emulated")
        reference, reads = alignment.made_up(folder, 6 if options.quick else 20_000)
        alignments = [alignment.measure(aligns_on, reference, reads, preset, folder) for preset in PRESETS]
        comparisons = compare_all(options.data, folder, card, max_reads, options.run)
        rows = 16 if options.quick else None
        speeds = [speed(shape, write_shape(shape, folder / shape), device, options.threads, rows) for shape in names]
    options.output.write_text(report(tests, environment(device), kernels, comparisons, speeds, alignments) + "\n")
    print(options.output.read_text())
    agree = all(found.agreement >= LEAST_AGREEMENT for found in comparisons)
    agree &= all(found.comparison.kinds["same"] >= LEAST_AGREEMENT * found.reads for found in alignments)
    return 0 if passed and kernels.passed and agree else 1


if __name__ == "__main__":
    sys.exit(main())
