"""Scores and speed of the network against bonito's own modules: `python benchmarks/compare_bonito.py --data DIR`.

bonito lives in an environment of its own, `.bonito-venv`, made here if it is not there; bonito_side.py runs in it. Both
sides get the same model directory and the same normalised chunks of real reads; bonito's side reads the weights with
`torch.jit.load`, which checks our reading of them too. Prints Markdown; exits with 1 if any of our float32 scores is
further than 1e-4 from bonito's in float32 at the same batch size, or from bonito's in float64.

At one batch size both sides run the same kernels of torch and may agree to the last bit: that shows that the networks
are the same, not how exact they are. The comparison with float64 shows that. Between batch sizes torch changes kernels,
and bonito differs from itself; that is printed too.

Dimensions: N chunks, S samples, T time steps, C transition scores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pod5
import torch

from porestream.models.basecaller import ROWS, Basecaller, processor_has_bf16
from porestream.models.bundle import ModelBundle, load_bundle
from porestream.models.network import Network

ROOT = Path(__file__).resolve().parent.parent
BONITO, KOI = "ont-bonito==1.1.0", "ont-koi==0.6.5"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MODEL = "dna_r9.4.1_e8.1_fast@v3.4"
LIMIT = 1e-4
RUNS = 5


@dataclass(frozen=True, slots=True)
class BonitoResult:
    """What bonito's side measured.

    Scores in float32 (as one batch), in float32 with each chunk alone, and in float64; by batch size the median speed
    in samples a second (NaN: no undisturbed pass) and the number of passes that it is the median of.
    """

    scores_TNC: npt.NDArray[np.float32]
    alone_TNC: npt.NDArray[np.float32]
    exact_TNC: npt.NDArray[np.float64]
    samples_per_s: dict[int, float]
    passes: dict[int, int]
    versions: str


def ensure_environment(folder: Path = ROOT / ".bonito-venv") -> Path:
    """The Python of bonito's environment, which is made first if need be: torch, and bonito without its dependencies.

    Only bonito's network modules are imported, and of its dependencies they need only numpy and koi (which needs cffi).
    """
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file():
        return python
    subprocess.run([os.environ.get("PYTHON") or sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
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


def real_chunks(bundle: ModelBundle, pod5_file: Path, count: int) -> npt.NDArray[np.float32]:
    """The first full-length chunks of a file's reads, normalised and trimmed as in production, (N, S)."""
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
        raise SystemExit(f"{pod5_file}: only {len(chunks)} chunks of {samples} samples")
    return np.stack(chunks)


def run_bonito(
    model: Path, chunks_NS: npt.NDArray[np.float32], batches: list[int], threads: int = 2, scored: int = ROWS
) -> BonitoResult:
    """Run bonito's own modules on the chunks: scores of the first `scored` of them, and speed over all."""
    with tempfile.TemporaryDirectory(prefix="porestream-bonito-") as folder:
        chunks, results = Path(folder) / "chunks.npy", Path(folder) / "results.npz"
        np.save(chunks, chunks_NS)
        options = {"--threads": threads, "--scored": scored, "--runs": RUNS, "--batches": ",".join(map(str, batches))}
        command = [ensure_environment(), ROOT / "benchmarks" / "bonito_side.py", model, chunks, results]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            [*command, *(str(word) for option in options.items() for word in option)], check=True, env=environment
        )
        with np.load(results) as found:
            speeds, passes = (
                dict(zip(found["batches"].tolist(), found[name].tolist(), strict=True))
                for name in ("samples_per_s", "passes")
            )
            scores = (found[name] for name in ("scores_TNC", "alone_TNC", "exact_TNC"))
            return BonitoResult(*scores, speeds, passes, str(found["versions"]))


def our_speed(network: Network, chunks_NS: npt.NDArray[np.float32]) -> float:
    """Samples a second of one core, in batches of ROWS: the median of RUNS passes over all chunks."""
    torch.set_num_threads(1)
    batches = torch.from_numpy(chunks_NS).split(ROWS)
    network(batches[0])
    speeds = []
    for _ in range(RUNS):
        start_s = time.perf_counter()
        for batch_NS in batches:
            network(batch_NS)
        speeds.append(chunks_NS.size / (time.perf_counter() - start_s))
    return statistics.median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the folder of real data")
    parser.add_argument("--model", type=Path, help=f"default: models/{MODEL} in it")
    parser.add_argument("--reads", type=Path, help="POD5 file, default: klebsiella_r94/reads.pod5 in it")
    parser.add_argument(
        "--chunks", type=int, default=64, help="how many to measure with; a multiple of the batch sizes"
    )
    parser.add_argument("--batches", default="8,16,32,64", help="bonito's batch sizes")
    parser.add_argument("--threads", type=int, default=2, help="bonito's threads")
    options = parser.parse_args()
    model = options.model or options.data / "models" / MODEL
    reads = options.reads or options.data / "klebsiella_r94" / "reads.pod5"
    for path in (model, reads):
        if not path.exists():
            raise SystemExit(f"{path}: not here; compare-bonito needs a v3 model directory and POD5 reads (--data)")

    bundle = load_bundle(model)
    chunks_NS = real_chunks(bundle, reads, options.chunks)
    bonito = run_bonito(model, chunks_NS, [int(size) for size in options.batches.split(",")], options.threads)

    torch.set_num_threads(1)
    network = Network(bundle, "fp32")
    scored = bonito.scores_TNC.shape[1]
    ours_TNC = torch.cat([network(batch) for batch in torch.from_numpy(chunks_NS[:scored]).split(ROWS)], dim=1).numpy()
    if ours_TNC.shape != bonito.scores_TNC.shape:
        raise SystemExit(f"our scores are {ours_TNC.shape}, bonito's {bonito.scores_TNC.shape}")
    pairs = {
        f"porestream and bonito, fp32, both in batches of {ROWS}": (ours_TNC, bonito.scores_TNC),
        "porestream fp32 and bonito float64": (ours_TNC, bonito.exact_TNC),
        f"bonito fp32, batches of {scored}, and bonito float64": (bonito.scores_TNC, bonito.exact_TNC),
        "bonito fp32, chunks alone, and bonito float64": (bonito.alone_TNC, bonito.exact_TNC),
    }
    differences = {name: np.abs(left - right) for name, (left, right) in pairs.items()}

    print(f"Model {bundle.name}, {len(chunks_NS)} chunks of {chunks_NS.shape[1]:,} samples of {reads.parent.name},")
    print(f"{bonito.versions}; medians of {RUNS} passes. Load of the machine: {os.getloadavg()[0]:.1f}.\n")
    print(
        f"{ours_TNC.size:,} scores of {scored} chunks, deviating by {ours_TNC.std():.2f}; the first two rows count.\n"
    )
    print(f"| scores | largest difference | mean | above {LIMIT:.0e} |\n| --- | --- | --- | --- |")
    for name, difference in differences.items():
        print(f"| {name} | {difference.max():.2e} | {difference.mean():.2e} | {(difference > LIMIT).sum()} |")
    print("\n| network, forward only | threads | batch | samples/s | undisturbed passes |\n" + "| --- " * 5 + "|")
    for size, speed in bonito.samples_per_s.items():
        measured = f"{speed:,.0f}" if bonito.passes[size] == RUNS else f"{speed:,.0f} (machine not quiet)"
        print(f"| bonito fp32 | {options.threads} | {size} | {measured} | {bonito.passes[size]} of {RUNS} |")
    for precision in ("fp32", "bf16") if processor_has_bf16() else ("fp32",):
        speed = our_speed(network if precision == "fp32" else Network(bundle, precision), chunks_NS)
        print(f"| porestream {precision} | 1 | {ROWS} | {speed:,.0f} | |")
    if not all(difference.max() <= LIMIT for difference in list(differences.values())[:2]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
