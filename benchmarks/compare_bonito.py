"""Compare the network's scores and speed with bonito's own modules: `python benchmarks/compare_bonito.py [--data DIR]`.

bonito has its own environment, `.bonito-venv`, which this script creates if needed; bonito_side.py runs in it. Both
sides get the same model directory and the same normalised chunks. The script makes directories of every format that
bonito runs, with random weights in bonito's own container and unfused batch norms. bonito's transformer needs a GPU, so
it is compared with float64 formulas instead (tests/models/test_shapes.py). With `--data`, the real v3 model and real
reads are compared too; there bonito's side reads the weights with `torch.jit.load`, which checks how we read them.

Prints Markdown. The exit code is 1 if any of our float32 scores differs by more than 1e-4 from bonito's in float32 at
the same batch size, or from bonito's in float64, or if `porestream call` of a simulated run with a hac model, signal to
BAM, is not 1.2 times as fast as bonito's forward pass alone.

At the same batch size, both sides run the same torch kernels and may agree to the last bit. This shows that the
networks are the same, not how accurate they are; the comparison with float64 shows that. torch uses different kernels
for different batch sizes, so bonito differs from itself; that is printed too.

Dimensions: N chunks, S samples, T time steps, C transition scores.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pod5
import torch
from shapes import write_shape

from porestream.models.call.basecaller import Basecaller
from porestream.models.call.cpu_runner import ROWS
from porestream.models.call.host import processor_has_bf16
from porestream.models.call.network import Network
from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.models.simulate.sequence import decode, random_bases

ROOT = Path(__file__).resolve().parent.parent
BONITO, KOI = "ont-bonito==1.1.0", "ont-koi==0.6.5"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MODEL = "dna_r9.4.1_e8.1_fast@v3.4"
HAC = "dna_r10.4.1_e8.2_400bps_hac@v4.3.0"
LIMIT = 1e-4
SPEED_LIMIT = 1.2
RUNS = 5
TURNS = 3
SHAPE_SAMPLES = {f"{kind} {release}": 3000 for release in ("v3", "v4", "v4.2", "v4.3") for kind in ("fast", "hac")} | {
    "sup v4": 600
}
"""The shapes to compare, and the samples in a chunk of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BonitoResult:
    """What bonito's side measured.

    Scores are in float32 (as one batch), in float32 with each chunk alone, and in float64. By batch size, there is the
    median speed in samples per second (NaN: no undisturbed pass) and the number of passes in the median.
    """

    scores_TNC: npt.NDArray[np.float32]
    alone_TNC: npt.NDArray[np.float32]
    exact_TNC: npt.NDArray[np.float64]
    samples_per_s: dict[int, float]
    passes: dict[int, int]
    versions: str


def ensure_environment(folder: Path = ROOT / ".bonito-venv") -> Path:
    """Return the Python of bonito's environment, creating it if needed: torch, and bonito without its dependencies.

    Only bonito's network modules are imported. They need only numpy and koi (which needs cffi).
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file():
        return python
    subprocess.run([os.environ.get("PYTHON") or sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    version = os.environ.get("TORCH_VERSION") or torch.__version__.split("+")[0]
    attempts = (
        [f"torch=={version}+cpu"],
        ["--extra-index-url", os.environ.get("TORCH_INDEX") or TORCH_INDEX, f"torch=={version}+cpu"],
        [f"torch=={version}"],
    )
    if not any(subprocess.run([*pip, *attempt], check=False).returncode == 0 for attempt in attempts):
        raise SystemExit(f"torch {version} cannot be installed in {folder}")
    subprocess.run([*pip, "numpy", "cffi"], check=True)
    subprocess.run([*pip, "--no-deps", BONITO, KOI], check=True)
    ready.touch()
    return python


def made_up_chunks(count: int, samples: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """Make normalised chunks of noisy levels of about nine samples each, as in reads, (N, S)."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(size=count * samples), rng.integers(3, 16, count * samples))[: count * samples]
    return (levels + rng.normal(0, 0.2, levels.shape)).astype(np.float32).reshape(count, samples)


def real_chunks(bundle: ModelBundle, pod5_file: Path, count: int) -> npt.NDArray[np.float32]:
    """Return the first full-length chunks of a file's reads, normalised and trimmed as in production, (N, S)."""
    caller = Basecaller(bundle, "fp32")
    samples = caller.chunker.lengths[0]
    chunks: list[npt.NDArray[np.float32]] = []
    with pod5.Reader(pod5_file) as reader:
        for read in reader.reads():
            prepared = caller.prepare(read.signal)
            for piece in prepared.plan.pieces:
                if piece.samples == samples and len(prepared.signal_S) >= samples and len(chunks) < count:
                    chunks.append(prepared.chunk(piece.start, samples))
            if len(chunks) == count:
                break
    if len(chunks) < count:
        raise SystemExit(f"{pod5_file}: it has only {len(chunks)} chunks of {samples} samples")
    return np.stack(chunks)


def run_bonito(
    model: Path,
    chunks_NS: npt.NDArray[np.float32],
    batches: Sequence[int] = (),
    threads: int = 2,
    scored: int = ROWS,
    runs: int = RUNS,
) -> BonitoResult:
    """Run bonito's modules on the chunks; return the first `scored` chunks' scores, and speeds by batch size."""
    with tempfile.TemporaryDirectory(prefix="porestream-bonito-") as folder:
        chunks, results = Path(folder) / "chunks.npy", Path(folder) / "results.npz"
        np.save(chunks, chunks_NS)
        options = {"--threads": threads, "--scored": scored, "--runs": runs, "--batches": ",".join(map(str, batches))}
        command = [ensure_environment(), ROOT / "benchmarks" / "bonito_side.py", model, chunks, results]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([*command, *(f"{name}={value}" for name, value in options.items())], check=True, env=environment)
        with np.load(results) as found:
            speeds, passes = (
                dict(zip(found["batches"].tolist(), found[name].tolist(), strict=True))
                for name in ("samples_per_s", "passes")
            )
            scores_TNC, alone_TNC, exact_TNC = (found[name] for name in ("scores_TNC", "alone_TNC", "exact_TNC"))
            return BonitoResult(
                scores_TNC=scores_TNC,
                alone_TNC=alone_TNC,
                exact_TNC=exact_TNC,
                samples_per_s=speeds,
                passes=passes,
                versions=str(found["versions"]),
            )


def our_speed(network: Network, chunks_NS: npt.NDArray[np.float32]) -> float:
    """Return samples per second on one core, in batches of ROWS: the median of RUNS passes over all chunks."""
    torch.set_num_threads(1)
    batches = torch.split(torch.from_numpy(chunks_NS), ROWS)
    network(batches[0])
    speeds = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        for batch_NS in batches:
            network(batch_NS)
        speeds.append(chunks_NS.size / (time.perf_counter() - start_s))
    return statistics.median(speeds)


def compare(name: str, network: Network, chunks_NS: npt.NDArray[np.float32], bonito: BonitoResult) -> bool:
    """Print a row with how far apart the scores are; return whether ours are close enough to bonito's."""
    torch.set_num_threads(1)
    scored_NS = chunks_NS[: bonito.scores_TNC.shape[1]]
    ours_TNC = torch.cat([network(batch) for batch in torch.split(torch.from_numpy(scored_NS), ROWS)], dim=1).numpy()
    if ours_TNC.shape != bonito.scores_TNC.shape:
        raise SystemExit(f"{name}: our scores are {ours_TNC.shape}, bonito's {bonito.scores_TNC.shape}")
    pairs = (
        (ours_TNC, bonito.scores_TNC),
        (ours_TNC, bonito.exact_TNC),
        (bonito.scores_TNC, bonito.exact_TNC),
        (bonito.alone_TNC, bonito.exact_TNC),
    )
    largest = [float(np.abs(left - right).max()) for left, right in pairs]
    cells = (name, f"{ours_TNC.size:,}", f"{ours_TNC.std():.2f}", *(f"{value:.1e}" for value in largest))
    print(f"| {' | '.join(cells)} |", flush=True)
    return max(largest[:2]) <= LIMIT


def simulated_run(folder: Path, samples: int) -> Path:
    """Make a POD5 file with about this many samples of made-up reads, 10,000 bases each."""
    reference, run = folder / "reference.fasta", folder / "run.pod5"
    reference.write_text(f">made_up\n{decode(random_bases(500_000, np.random.default_rng(1)))}\n")
    lengths = ["--reads", str(max(1, samples // 127_000)), "--length-mean", "10000", "--length-sd", "0"]
    command = [
        sys.executable,
        "-m",
        "porestream.cli.main",
        "simulate",
        str(reference),
        "-o",
        str(run),
        "--seed",
        "1",
        *lengths,
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return run


def call_speed(model: Path, run: Path, folder: Path, threads: int) -> tuple[float, float]:
    """Return the samples per second of `porestream call`, signal to BAM, in two ways.

    The first is measured from the first read to the last result. The second is computed from processor time, including
    start and warm-up, as if `threads` cores were busy all the time.
    """
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "porestream.cli.main", "call", str(run), "--model", str(model), "-t", str(threads)]
    command += ["-o", str(folder / "calls.bam"), "--summary-json", str(summary)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = json.loads(summary.read_text())
    return figures["samples_per_second"], figures["samples"] / processor_s * threads


def compare_hac_speed(folder: Path, threads: int, samples: int) -> bool:
    """Compare `porestream call` with a hac model with bonito's forward pass; return whether it is fast enough."""
    model = write_shape("hac v4.3", folder / HAC)
    theirs = write_shape("hac v4.3", folder / "bonito" / HAC, container="bonito")
    chunks_NS = made_up_chunks(2 * ROWS, load_bundle(model).config.chunk_size)
    run = simulated_run(folder, samples)
    turns = []
    for _ in range(TURNS):
        bonito = run_bonito(theirs, chunks_NS, (16, 32), threads, scored=1, runs=1).samples_per_s
        best = max((speed for speed in bonito.values() if not math.isnan(speed)), default=math.nan)
        turns.append((best, *call_speed(model, run, folder, threads)))
    ratio, processor_ratio = (statistics.median(turn[k] / turn[0] for turn in turns) for k in (1, 2))
    bonito_speed, our_speed, processor_speed = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"\n| hac v4.3, {threads} cores, medians of {TURNS} turns | samples/s | against bonito |")
    print("| --- | --- | --- |")
    print(f"| bonito's forward pass alone, fp32, the best of batches of 16 and 32 | {bonito_speed:,.0f} | |")
    print(f"| `porestream call`, signal to BAM | {our_speed:,.0f} | {ratio:.2f}, at least {SPEED_LIMIT} |")
    print(f"| by processor time, for a busy machine | {processor_speed:,.0f} | {processor_ratio:.2f} |")
    return ratio >= SPEED_LIMIT


def compare_speeds(bundle: ModelBundle, chunks_NS: npt.NDArray[np.float32], bonito: BonitoResult, threads: int) -> None:
    """Print the speed of both sides' forward passes over the same chunks."""
    print(f"\n{bundle.name}, {len(chunks_NS)} chunks of {chunks_NS.shape[1]:,} samples; medians of {RUNS} passes.\n")
    print("| network, forward only | threads | batch | samples/s | undisturbed passes |\n" + "| --- " * 5 + "|")
    for size, speed in bonito.samples_per_s.items():
        measured = f"{speed:,.0f}" if bonito.passes[size] == RUNS else f"{speed:,.0f} (machine not quiet)"
        print(f"| bonito fp32 | {threads} | {size} | {measured} | {bonito.passes[size]} of {RUNS} |")
    for precision in ("fp32", "bf16") if processor_has_bf16() else ("fp32",):
        print(f"| porestream {precision} | 1 | {ROWS} | {our_speed(Network(bundle, precision), chunks_NS):,.0f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the real data")
    parser.add_argument("--model", type=Path, help=f"a real v3 model (default: models/{MODEL} in the data folder)")
    parser.add_argument("--reads", type=Path, help="POD5 file (default: klebsiella_r94/reads.pod5 in the data folder)")
    parser.add_argument(
        "--chunks", type=int, default=64, help="number of chunks to measure with; a multiple of the batch sizes"
    )
    parser.add_argument("--batches", default="8,16,32,64", help="bonito's batch sizes")
    parser.add_argument("--threads", type=int, default=2, help="threads for bonito, and cores for `porestream call`")
    parser.add_argument(
        "--samples", type=int, default=3_000_000, help="samples in the simulated run; 0: skip the hac speed"
    )
    options = parser.parse_args()
    model = options.model or options.data / "models" / MODEL
    reads = options.reads or options.data / "klebsiella_r94" / "reads.pod5"
    near, real = True, model.exists() and reads.exists()
    if not real:
        print(f"There are no real model and reads ({model}, {reads}), so only random weights are compared.\n")

    print(f"Largest differences between scores, in float32 and in batches of {ROWS} unless stated otherwise.")
    print(f"The first two columns must stay below {LIMIT:.0e}.\n")
    titles = ("ours, bonito's", "ours, bonito's float64", "bonito's, its float64", "bonito's alone, float64")
    print(f"| model | scores | deviation | {' | '.join(titles)} |\n" + "| --- " * 7 + "|")
    with tempfile.TemporaryDirectory(prefix="porestream-bonito-") as name:
        folder = Path(name)
        for shape, samples in SHAPE_SAMPLES.items():
            directory = write_shape(shape, folder / shape.replace(" ", "-"), container="bonito")
            chunks_NS = made_up_chunks(ROWS, samples)
            bonito = run_bonito(directory, chunks_NS, threads=options.threads)
            near &= compare(f"{shape}, random weights", Network(load_bundle(directory)), chunks_NS, bonito)
        if real:
            bundle = load_bundle(model)
            chunks_NS = real_chunks(bundle, reads, options.chunks)
            batches = [int(size) for size in options.batches.split(",")]
            bonito = run_bonito(model, chunks_NS, batches, options.threads)
            near &= compare(f"{bundle.name}, {reads.parent.name}", Network(bundle), chunks_NS, bonito)
            compare_speeds(bundle, chunks_NS, bonito, options.threads)
        fast = not options.samples or compare_hac_speed(folder, options.threads, options.samples)
    print(f"\n{bonito.versions}. Load of the machine: {os.getloadavg()[0]:.1f}.")
    if not (near and fast):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
