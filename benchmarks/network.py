"""Measure the network's and the decoder's speed per core, by model shape and stage: `python benchmarks/network.py`.

Weights and signal are made up. Speeds do not depend on them, except the decoder's a little. Next to each speed is its
share of the machine's own peak, the best speed of matrix products of the same precision in the same run. Prints
Markdown with medians of RUNS passes, and with the effect of bf16 on the scores. It measures the thread's processor
time, so that other jobs on the machine matter little.

    python benchmarks/network.py "hac v4.3" "sup v5"

Dimensions: N rows of a batch, S samples, T time steps, C features or transition scores.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from compare_bonito import made_up_chunks
from shapes import SHAPES, write_shape

from porestream.models.call.decode import Decoder, DecodeSettings
from porestream.models.call.host import processor_has_bf16
from porestream.models.call.network import PRECISIONS, Network
from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.models.networks.layers import Layers
from porestream.server.start.app import tune_allocator

RUNS = 5
LARGE_SAMPLES = 24_000  # in a batch for a sup model, as more would only take longer
FULL_V6 = "hac v6, full LSTMs"
MADE = SHAPES | {FULL_V6: replace(SHAPES["hac v6"], inner=0)}
NAMES = ("fast v4.3", "hac v4.3", "hac v6", FULL_V6, "sup v4", "sup v5")
STAGES = ("convolutions", "LSTMs or transformer", "linear layers", "network", "decoder")


@dataclass(frozen=True, slots=True)
class Speeds:
    """Seconds per sample of each stage, and the resulting scores."""

    seconds: dict[str, float]
    scores_TNC: torch.Tensor


def gemm_peak(precision: str, sizes: Sequence[int] = (512, 1024, 2048)) -> float:
    """Return the best floating point operations per second of square matrix products; a multiply and an add are 2.

    Takes the median of RUNS products for each size, and the best size.
    """
    rates = []
    for size in sizes:
        left, right = (torch.randn(size, size).to(PRECISIONS[precision]) for _ in range(2))
        rates.append(2 * size**3 / median_seconds(lambda a=left, b=right: torch.mm(a, b)))  # type: ignore[misc]
    return max(rates)


def flops_a_sample(layers: Layers, score_count: int) -> dict[str, float]:
    """Return the floating point operations per sample of each stage's matrix products; all else is below 1%."""
    strides = itertools.accumulate((layer.stride for layer in layers.convolutions), lambda a, b: a * b)
    pairs = zip(layers.convolutions, strides, strict=True)
    convolutions = sum(2 * layer.ins * layer.outs * layer.winlen / stride for layer, stride in pairs)
    width = layers.encoder.width
    ins = layers.bottleneck or width
    linear = 2 * ins * score_count + (2 * width * ins if layers.bottleneck else 0)
    return {
        "convolutions": convolutions,
        "LSTMs or transformer": layers.encoder.operations() / layers.coarse_stride,
        "linear layers": linear / layers.stride,
    }


def measure(bundle: ModelBundle, precision: str, batch_NS: torch.Tensor) -> Speeds:
    """Measure each stage: the median of RUNS passes, after one warm-up pass."""
    network = Network(bundle, precision)
    network.compile_for_cpu()
    config = bundle.config
    settings = DecodeSettings(
        stay_score=config.stay_score, quality_scale=config.quality_scale, quality_bias=config.quality_bias
    )
    decoder = Decoder(config.state_len, settings)
    with torch.inference_mode():
        x_NCT = network.convolved(batch_NS)
        x_TNC = network.encoded(x_NCT)
        scores_TNC = network.scores(x_TNC)
        stages: dict[str, Callable[[], object]] = {
            "convolutions": lambda: network.convolved(batch_NS),
            "LSTMs or transformer": lambda: network.encoded(x_NCT),
            "linear layers": lambda: network.scores(x_TNC, scores_TNC),
            "network": lambda: network(batch_NS, scores_TNC),
            "decoder": lambda: [decoder(scores_TNC.numpy(), row) for row in range(min(len(batch_NS), 4))],
        }
        seconds = {name: median_seconds(run) / batch_NS.numel() for name, run in stages.items()}
    seconds["decoder"] *= len(batch_NS) / min(len(batch_NS), 4)
    return Speeds(seconds, scores_TNC)


def median_seconds(run: Callable[[], object]) -> float:
    """Return the median of this thread's processor time over RUNS runs, after one warm-up run."""
    run()
    seconds = []
    for _ in range(RUNS):
        began_s = time.thread_time()
        run()
        seconds.append(time.thread_time() - began_s)
    return statistics.median(seconds)


def batch_of(bundle: ModelBundle, rows: int) -> torch.Tensor:
    """Make chunks of the model's own length, or fewer or shorter ones for a sup model."""
    unit, samples = bundle.config.chunk_unit, bundle.config.chunk_size
    if bundle.config.state_len == 5 and bundle.config.layers.encoder.kind == "transformer":
        rows = LARGE_SAMPLES // samples  # the network takes these one by one
    elif bundle.config.state_len == 5:
        samples = LARGE_SAMPLES // rows
    return torch.from_numpy(made_up_chunks(rows, samples // unit * unit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=NAMES, metavar="SHAPE", help=f"any of: {', '.join(MADE)}")
    parser.add_argument("--rows", type=int, default=16, help="rows in a batch, a multiple of 4 (default 16)")
    parser.add_argument("--gemm", type=int, nargs="+", default=(512, 1024, 2048), help="sizes of the matrix products")
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    precisions = ("fp32", "bf16") if processor_has_bf16() else ("fp32",)
    peaks = {precision: gemm_peak(precision, options.gemm) for precision in precisions}
    speeds: dict[tuple[str, str], Speeds] = {}
    bundles: dict[str, ModelBundle] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(options.shapes):
            bundle = load_bundle(write_shape(MADE[name], Path(folder) / str(number)))
            batch_NS = batch_of(bundle, options.rows)
            for precision in precisions:
                speeds[name, precision] = measure(bundle, precision, batch_NS)
                peaks[precision] = max(peaks[precision], gemm_peak(precision, options.gemm))
            bundles[name] = bundle

    said = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {precision}" for precision, peak in peaks.items())
    print(f"One core; its peak in matrix products: {said}. Medians of {RUNS}; load {os.getloadavg()[0]:.1f}.\n")
    print("| shape | stage | kFLOP a sample |" + "".join(f" {p}, k samples/core-s | of peak |" for p in precisions))
    print("| --- " * (3 + 2 * len(precisions)) + "|")
    for name, bundle in bundles.items():
        flops = flops_a_sample(bundle.config.layers, bundle.config.score_count)
        flops["network"] = sum(flops.values())
        for stage in STAGES:
            cells = [name, stage, f"{flops[stage] / 1e3:,.0f}" if stage in flops else ""]
            for precision in precisions:
                seconds = speeds[name, precision].seconds[stage]
                share = f"{flops[stage] / seconds / peaks[precision]:.0%}" if stage in flops else ""
                cells += [f"{1 / seconds / 1e3:,.1f}", share]
            print(f"| {' | '.join(cells)} |")
    if "bf16" in precisions:
        print("\n| scores, bf16 against fp32 | deviation | mean difference | 99.9% below | largest |")
        print("| --- " * 5 + "|")
        for name in bundles:
            exact, half = (speeds[name, precision].scores_TNC for precision in ("fp32", "bf16"))
            gap = (exact - half).abs().flatten()
            most = gap.kthvalue(int(0.999 * gap.numel())).values
            print(f"| {name} | {exact.std():.2f} | {gap.mean():.3f} | {most:.2f} | {gap.max():.2f} |")


if __name__ == "__main__":
    main()
