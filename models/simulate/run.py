"""Simulates a whole run: plans windows one by one, simulates reads on all cores, and yields them in order."""

import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from pod5 import EndReasonEnum

from porestream.models.simulate.flowcell import FlowCell, Place, draw_end_reason
from porestream.models.simulate.pore import PoreModel
from porestream.models.simulate.reference import Reference, Window
from porestream.models.simulate.simulated_reads import ReadSettings, SimulatedRead, simulate_read

MIN_LENGTH = 200
"""Shortest read, in bases."""

STRANDS = {"both": "+-", "forward": "+", "reverse": "-"}

_PLAN, _FLOW_CELL, _READ = range(3)  # separate random streams from one seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which reads to simulate.

    Attributes
    ----------
    reads, coverage
        How many reads to simulate; exactly one is set. Coverage is read bases per reference base.
    length_mean, length_sd
        Gamma distribution of lengths, in bases; lengths are clipped to between `MIN_LENGTH` and the contig's length.
    strand
        One of `STRANDS`.
    """

    reads: int | None
    coverage: float | None
    length_mean: float
    length_sd: float
    strand: str

    def target_bases(self, reference: Reference) -> float:
        """Return how many bases of reads to simulate; infinite if the number of reads is given instead."""
        return math.inf if self.coverage is None else self.coverage * reference.bases


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that defines a run except the reference; a run is reproducible from these two.

    Attributes
    ----------
    plan
        Which reads to simulate.
    settings
        Settings that all reads share.
    channels
        How many channels take reads at the same time.
    seed
        0 or more.
    """

    plan: Plan
    settings: ReadSettings
    channels: int
    seed: int


def simulate_run(run: Run, reference: Reference, threads: int) -> Generator[tuple[SimulatedRead, Place], None, None]:
    """Yield reads with their places on the flow cell, in order of start time.

    At most two reads per thread are in memory. Each read has its own random numbers, so the number of threads makes no
    difference.
    """
    pore = PoreModel.load()
    cell = FlowCell(run.channels, run.settings.sample_rate_hz, np.random.default_rng([run.seed, _FLOW_CELL]))

    def simulate(number: int, window: Window, end_reason: EndReasonEnum) -> SimulatedRead:
        return simulate_read(window, end_reason, pore, run.settings, np.random.default_rng([run.seed, _READ, number]))

    def placed(future: Future[SimulatedRead]) -> tuple[SimulatedRead, Place]:
        read = future.result()
        return read, cell.place(read.current_pa_S.size, read.end_reason)

    under_way: deque[Future[SimulatedRead]] = deque()
    with ThreadPoolExecutor(threads, "simulate") as executor:
        try:
            for number, (window, end_reason) in enumerate(plan_reads(reference, run.plan, run.seed)):
                under_way.append(executor.submit(simulate, number, window, end_reason))
                if len(under_way) == 2 * threads:
                    yield placed(under_way.popleft())
            while under_way:
                yield placed(under_way.popleft())
        finally:
            executor.shutdown(cancel_futures=True)


def plan_reads(reference: Reference, plan: Plan, seed: int) -> Iterator[tuple[Window, EndReasonEnum]]:
    """Draw windows of the reference, and why reads end, until there are enough reads."""
    rng = np.random.default_rng([seed, _PLAN])
    strands = STRANDS[plan.strand]
    reads, bases = 0, 0
    while bases < plan.target_bases(reference) and reads != plan.reads:
        length = plan.length_mean
        if plan.length_sd:
            length = rng.gamma((plan.length_mean / plan.length_sd) ** 2, plan.length_sd**2 / plan.length_mean)
        window = reference.draw(max(MIN_LENGTH, round(length)), strands[rng.integers(len(strands))], rng)
        reads += 1
        bases += window.bases_B.size
        yield window, draw_end_reason(rng)
