"""Measure how speed depends on read length and on the number of open streams; write a Markdown table, a CSV, a plot.

Each case has the same amount of work, about `--samples`, cut from one simulated run without adapters. The cases take
turns. The table has medians, as ratios to reads of 100,000 samples, or to one stream, in the same turn. Samples per
second are measured from the first read to the last result. Processor time covers all processes, minus that of starting
and stopping (a call of one read of 1,000 samples); other work on the machine hardly affects it.

    python benchmarks/reads.py --csv docs/inside/performance/reads.csv --plot docs/inside/performance/reads.png
    python benchmarks/reads.py --quick         only check that it works: few samples, once, with start and stop
"""

import argparse
import asyncio
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5

from porestream.client.opening import StreamOptions, resolve_caller
from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.client.stream import Delivery, RunStream
from porestream.client.wire import EncodedRead, encode_read
from porestream.models.simulate.sequence import decode, random_bases

LENGTHS = (1_000, 1_600, 2_500, 5_000, 20_000, 100_000, 10_000_000)
STREAMS = (1, 10, 100, 1000)
LONG = 100_000
START = 0  # means a call of one short read
MIN_CHUNK_SAMPLES = 1024
SHORT_LIMIT = 1.5  # reads of LONG samples may be this much faster than reads of 1,000
STREAM_READ_SAMPLES = 10_000
PORESTREAM = [sys.executable, "-m", "porestream.cli.main"]


class Simulated:
    """A simulated run whose reads can be cut to other lengths."""

    def __init__(self, folder: Path, samples: int) -> None:
        self.reference = folder / "reference.fasta"
        self._folder = folder
        self.reference.write_text(f">made_up\n{decode(random_bases(2_000_000, np.random.default_rng(1)))}\n")
        source = folder / "source.pod5"
        reads = samples // 100_000  # each has 10,000 bases and at least 120,000 samples
        lengths = ["--reads", str(reads), "--length-mean", "10000", "--length-sd", "0", "--no-adapters", "--seed", "7"]
        subprocess.run([*PORESTREAM, "simulate", str(self.reference), "-o", str(source), *lengths], check=True)
        with pod5.Reader(source) as reader:
            self._models = [record.to_read() for record in reader.reads()]
        self.signal_S: npt.NDArray[np.int16] = np.concatenate([read.signal for read in self._models])[:samples]

    def cut(self, length: int) -> Path:
        """Write a file of reads of `length` samples each."""
        path = self._folder / f"{length}.pod5"
        read = self._models[0]
        with pod5.Writer(path) as writer:
            for number, signal_S in enumerate(self.pieces(length)):
                read.read_id, read.read_number, read.signal = UUID(int=number + 1), number + 1, signal_S
                writer.add_read(read)
        return path

    def pieces(self, length: int) -> list[npt.NDArray[np.int16]]:
        """Cut the signal into reads of `length` samples; drop the rest."""
        length = min(length, self.signal_S.size)
        return list(self.signal_S[: self.signal_S.size // length * length].reshape(-1, length))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one case in one turn."""

    samples_per_s: float
    processor_s: float


def call_cost(reads: Path, folder: Path, *extra: str) -> Cost:
    """Measure one `porestream call` with its own server."""
    summary = folder / "summary.json"
    outputs = ["-o", str(folder / "calls.bam"), "--summary-json", str(summary)]
    before_s = _processor_s(resource.RUSAGE_CHILDREN)
    subprocess.run([*PORESTREAM, "call", str(reads), *outputs, *extra], check=True, stderr=subprocess.DEVNULL)
    used_s = _processor_s(resource.RUSAGE_CHILDREN) - before_s
    return Cost(json.loads(summary.read_text())["samples_per_second"], used_s)


def _processor_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


class Server:
    """`porestream serve` on a Unix socket, for a thousand streams."""

    def __init__(self, folder: Path) -> None:
        socket = folder / "socket"
        self.address = f"unix:{socket}"
        limits = [
            "--max-streams",
            str(max(STREAMS)),
            "--max-streams-per-peer",
            str(max(STREAMS)),
            "--memory-budget",
            "4G",
        ]
        command = [*PORESTREAM, "serve", "--listen", self.address, *limits]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not socket.exists():
            if self._process.poll() is not None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.05)

    def processor_s(self) -> float:
        """Return the processor time that the server has used so far (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stop the server."""
        self._process.terminate()
        self._process.wait()


async def stream_cost(server: Server, signals: Sequence[npt.NDArray[np.int16]], streams: int) -> Cost:
    """Share the signals among this many open streams, each with its own connection and run, and measure the cost."""
    options = StreamOptions()
    expected = await resolve_caller(server.address, options, RunInfo(run_id="run-0", sample_rate_hz=5000))
    left = streams
    done = asyncio.Event()

    def deliver(delivery: Delivery) -> None:
        nonlocal left
        delivery[1]()
        left -= 1
        if not left:
            done.set()

    runs = [RunInfo(run_id=f"run-{number}", sample_rate_hz=5000) for number in range(streams)]
    opened = [RunStream(server.address, run, options, deliver, MIN_CHUNK_SAMPLES, 0, expected) for run in runs]
    tasks = [asyncio.create_task(stream.run()) for stream in opened]
    for number, stream in enumerate(opened):  # one read for each, so that all are open
        await stream.put(_encoded(number, runs[number], signals[0][:1000]))
    await done.wait()

    reads = [_encoded(number + streams, runs[number % streams], signal_S) for number, signal_S in enumerate(signals)]
    left = len(reads)
    done.clear()
    began_s, used_s = time.perf_counter(), server.processor_s() + time.process_time()

    async def feed(number: int) -> None:
        for read in reads[number::streams]:
            await opened[number].put(read)
        opened[number].end()

    await asyncio.gather(*map(feed, range(streams)))
    await done.wait()
    seconds = time.perf_counter() - began_s
    used_s = server.processor_s() + time.process_time() - used_s
    await asyncio.gather(*tasks)
    return Cost(sum(signal_S.size for signal_S in signals) / seconds, used_s)


def run_streams(server: Server, signals: Sequence[npt.NDArray[np.int16]], streams: int) -> Cost:
    """Run `stream_cost` in its own event loop."""
    return asyncio.run(stream_cost(server, signals, streams))


def _encoded(number: int, run: RunInfo, signal_S: npt.NDArray[np.int16]) -> EncodedRead:
    return encode_read(
        SignalRead(
            ReadInfo(read_id=UUID(int=number + 1), run=run, offset_adc=0.0, scale_pa_per_adc=0.17, channel=1), signal_S
        )
    )


def plot(path: Path, columns: dict[str, dict[int, float]]) -> None:
    """Plot samples per second of processor time over read length and over the number of streams."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for name, medians in columns.items():
        axes = right if name == "streams" else left
        axes.plot(list(medians), [value / 1e6 for value in medians.values()], "o-", label=name)
    left.set(xlabel="samples of each read", ylabel="million samples per processor second", xscale="log", ylim=(0, None))
    left.legend()
    right.set(xlabel=f"open streams, with reads of {STREAM_READ_SAMPLES:,} samples", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="only two lengths, and 1 and 3 streams, with 200,000 samples, once"
    )
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    lengths: tuple[int, ...] = LENGTHS
    streamed: tuple[int, ...] = STREAMS
    if arguments.quick:
        lengths, streamed, arguments.samples, arguments.repeats = (1_000, LONG), (1, 3), 200_000, 1
    if arguments.plot:
        import matplotlib  # noqa: F401 - fail now if it is missing, not after measuring everything
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Simulated(folder, arguments.samples)
        files = {length: run.cut(length) for length in lengths}
        signals = run.pieces(STREAM_READ_SAMPLES)
        server = Server(folder)
        cases: dict[tuple[str, int], Callable[[], Cost]] = {}
        calls: dict[str, tuple[str, ...]] = {"call": (), "call, aligned": ("--reference", str(run.reference))}
        for name, extra in list(calls.items())[: 1 if arguments.quick else None]:
            for length in lengths if arguments.quick else (START, *lengths):
                limit = ("-n", "1") if length == START else ()
                path = files[length or lengths[0]]
                cases[name, length] = partial(call_cost, path, folder, *extra, *limit)
        for streams in streamed:
            cases["streams", streams] = partial(run_streams, server, signals, streams)
        turns = []
        for turn in range(arguments.repeats):
            turns.append({case: measure() for case, measure in cases.items()})
            print(f"turn {turn + 1} of {arguments.repeats} done", file=sys.stderr)
        server.stop()
    for costs in turns:
        for name, length in costs:
            if length != START and (start := costs.get((name, START))):
                costs[name, length] = replace(
                    costs[name, length], processor_s=costs[name, length].processor_s - start.processor_s
                )
    columns: dict[str, dict[int, float]] = {}
    rows = []
    for name, size in cases:
        if size == START:
            continue
        base = (name, 1 if name == "streams" else LONG)
        speed = statistics.median(costs[name, size].samples_per_s for costs in turns)
        slower = statistics.median(costs[base].samples_per_s / costs[name, size].samples_per_s for costs in turns)
        used_s = statistics.median(costs[name, size].processor_s for costs in turns)
        dearer = statistics.median(costs[name, size].processor_s / costs[base].processor_s for costs in turns)
        columns.setdefault(name, {})[size] = arguments.samples / used_s
        rows.append((name, size, speed, slower, used_s, dearer))
    print("| | samples a read, or open streams | k samples/s | times as slow | processor s | times as dear |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size, speed, slower, used_s, dearer in rows:
        limit_text = f" (limit {SHORT_LIMIT})" if (name, size) == ("call", lengths[0]) else ""
        print(f"| {name} | {size:,} | {speed / 1e3:,.0f} | {slower:.2f}{limit_text} | {used_s:.1f} | {dearer:.2f} |")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["case", "read_samples_or_streams", "samples_per_s", "slower", "processor_s", "dearer"])
            writer.writerows(
                (name, size, round(speed), *(f"{value:.3f}" for value in rest)) for name, size, speed, *rest in rows
            )
    if arguments.plot:
        plot(arguments.plot, columns)


if __name__ == "__main__":
    main()
