"""Measure LSTMs on one core: compiled (models/networks/recurrence.py), torch's, and matrix products of the same sizes.

Weights and features are random. Prints Markdown: billions of floating point operations per second (of the products; a
multiply and an add are 2), medians of RUNS passes that take turns, by the thread's processor time. "Products" are
torch's, of one step's sizes: the rate that a recurrence could reach if all else cost nothing.

    python benchmarks/recurrence.py

Dimensions: N rows of a batch, T time steps, C features, K inner features.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from porestream.models.call.network import PRECISIONS
from porestream.models.networks.flstm import LowRankLstms
from porestream.models.networks.lstm import Lstms
from porestream.models.networks.recurrent import AlongTime, LowRankRecurrent, Recurrent
from porestream.server.start.app import tune_allocator

RUNS = 7


@dataclass(frozen=True, slots=True)
class Case:
    """One layer; `inner` is K of a low-rank LSTM, or 0."""

    name: str
    width: int
    rows: int
    inner: int = 0

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each product of a step."""
        if self.inner:
            return [(self.width, self.inner)] * 2 + [(2 * self.inner, 4 * self.width)]
        return [(2 * self.width, 4 * self.width)]

    @property
    def operations(self) -> int:
        """Floating point operations per step and row."""
        return sum(2 * ins * outs for ins, outs in self.products)


CASES = (
    Case("fast: LSTM, 96", 96, 16),
    Case("hac: LSTM, 384", 384, 16),
    Case("hac v6: low-rank LSTM, 1024 by 128", 1024, 32, 128),
    Case("hac v6 as a full LSTM, 1024", 1024, 32),
)


def layer_of(case: Case, dtype: torch.dtype) -> AlongTime:
    """Make the layer with random weights."""
    torch.manual_seed(1)
    layer = (
        LowRankRecurrent(LowRankLstms(case.width, case.inner, (True,), is_hard=True))
        if case.inner
        else Recurrent(Lstms(case.width, (True,)))
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return layer.to(dtype).requires_grad_(False)


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median processor time of each, in turns, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(RUNS + 1):
        for name, run in runs.items():
            began_s = time.thread_time()
            run()
            if turn:
                seconds[name].append(time.thread_time() - began_s)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def rates(case: Case, precision: str, steps: int) -> dict[str, float]:
    """Return the operations per second of each way to compute a layer."""
    dtype = PRECISIONS[precision]
    x_NCT = torch.randn(case.rows, case.width, steps).to(dtype)
    by_torch, compiled = layer_of(case, dtype), layer_of(case, dtype)
    factors = [(torch.randn(case.rows, ins).to(dtype), torch.randn(ins, outs).to(dtype)) for ins, outs in case.products]

    def products() -> None:
        for _ in range(steps):
            for left, right in factors:
                torch.mm(left, right)

    runs = {"products": products, "torch": lambda: by_torch(x_NCT)}
    if compiled.compile_for_cpu():
        runs["compiled"] = lambda: compiled(x_NCT)
    with torch.inference_mode():
        return {name: steps * case.rows * case.operations / taken for name, taken in medians(runs).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="time steps of a batch (default 200)")
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    print(f"One core; GFLOP/s, medians of {RUNS}; load {os.getloadavg()[0]:.1f}.\n")
    print("| layer | precision | products | torch | compiled | products / compiled | compiled / torch |")
    print("| --- " * 7 + "|")
    for case in CASES:
        for precision in ("fp32", "bf16"):
            found = rates(case, precision, options.steps)
            cells = [f"{found[name] / 1e9:,.0f}" if name in found else "" for name in ("products", "torch", "compiled")]
            own = found.get("compiled")
            cells += [f"{found['products'] / own:.2f}", f"{own / found['torch']:.2f}"] if own else ["", ""]
            print(f"| {case.name} | {precision} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
