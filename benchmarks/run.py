"""Measure the whole system's speed and memory, as ratios within one run (benchmarks/RESULTS.md): `make bench`.

The first table compares `call` with its network and decoder alone, and with bonito's forward pass alone: on the real
Klebsiella set (48 reads, 9.0 M samples), aligned and not, and on a simulated run with a hac model of random weights.
The rest is measured on the Klebsiella set. Figures are medians of `--repeats` runs, ratios those of a turn.

`--quick` only checks that the benchmark works: it uses a few made-up reads and a tiny model, once each, without bonito.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pod5
import torch
from compare_bonito import real_chunks, run_bonito
from sets import ReadSet, klebsiella, made_up, random_hac

from porestream.client.sources.pod5_source import Pod5Source
from porestream.client.wire import encode_read
from porestream.models.call.basecaller import Basecaller
from porestream.models.call.cpu_runner import ROWS
from porestream.models.call.decode import Decoder
from porestream.models.files.bundle import load_bundle
from porestream.server.calling.scheduler import Job
from porestream.server.reads import (
    Calibration,
    CallSettings,
    Encoding,
    OpenRead,
    Priority,
    ReadResult,
    SignalPiece,
)
from porestream.server.settings import Settings
from porestream.server.start.app import build_engine, tune_allocator
from porestream.server.watch.logs import configure_logging

PORESTREAM = [sys.executable, "-m", "porestream.cli.main"]


class Stages:
    """Measures the network and the decoder alone, and bonito's forward pass on two cores, on the same chunks."""

    def __init__(self, used: ReadSet, batches: int) -> None:
        tune_allocator()
        torch.set_num_threads(1)
        bundle = load_bundle(used.model)
        self._chunks_NS = real_chunks(bundle, used.reads, batches * ROWS)
        self._model = used.model
        basecaller = Basecaller(bundle)
        self._network = basecaller.network
        self._batches = torch.split(torch.from_numpy(self._chunks_NS), ROWS)
        self._scores = [self._network(batch).numpy() for batch in self._batches]
        self._decoder = Decoder(bundle.config.state_len, basecaller.decode_settings)

    def bonito(self) -> float:
        """Return bonito's samples per second in fp32, with the best of the batch sizes tried."""
        return max(run_bonito(self._model, self._chunks_NS, [16, 32], threads=2).samples_per_s.values())

    def network(self) -> float:
        """Return the network's samples per second."""
        began = time.perf_counter()
        for batch in self._batches:
            self._network(batch)
        return self._chunks_NS.size / (time.perf_counter() - began)

    def decoder(self) -> float:
        """Return the decoder's samples per second."""
        began = time.perf_counter()
        for scores_TNC in self._scores:
            self._decode(scores_TNC)
        return self._chunks_NS.size / (time.perf_counter() - began)

    def on_all_cores(self) -> float:
        """Return the samples per second of both, one after the other, on all cores at the same time.

        Cores share memory, power and, in a virtual machine, more: together they are slower than each of them alone.
        """
        cores = len(os.sched_getaffinity(0))
        start = threading.Barrier(cores + 1)

        def work() -> None:
            torch.set_num_threads(1)
            start.wait()
            for batch in self._batches:
                self._decode(self._network(batch).numpy())

        threads = [threading.Thread(target=work) for _ in range(cores)]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return cores * self._chunks_NS.size / (time.perf_counter() - began)

    def _decode(self, scores_TNC: npt.NDArray[np.float32]) -> None:
        for row in range(ROWS):
            self._decoder(scores_TNC, row)


def call_speed(used: ReadSet, folder: Path, *extra: str) -> tuple[float, float]:
    """Return samples per second of one `porestream call`, from first read to last result, and for the whole process."""
    summary = folder / "summary.json"
    began = time.perf_counter()
    subprocess.run(
        [
            *PORESTREAM,
            "call",
            str(used.reads),
            *("-o", str(folder / "calls.bam"), "--summary-json", str(summary)),
            *extra,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    figures = json.loads(summary.read_text())
    return figures["samples_per_second"], figures["samples"] / (time.perf_counter() - began)


def in_process_speed(used: ReadSet) -> Callable[[], float]:
    """Return a function that measures the engine's samples per second without transport: complete reads to results."""
    engine = build_engine(Settings(model=[str(used.model)], reference=[used.reference]))
    reads = [encode_read(read) for read in Pod5Source([used.reads])]
    settings = CallSettings(
        model=used.model.name,
        reference=used.reference.name,
        preset="map-ont",
        priority=Priority.STANDARD,
        min_mean_qscore=0.0,
        emit_moves=False,
        emit_md=False,
        sample_rate_hz=reads[0].info.run.sample_rate_hz,
    )

    def measure() -> float:
        left = len(reads)
        finished = threading.Event()
        lock = threading.Lock()

        def deliver(_job: Job, _result: ReadResult) -> None:
            nonlocal left
            with lock:
                left -= 1
                if not left:
                    finished.set()

        began = time.perf_counter()
        for read in reads:
            pieces = [
                SignalPiece(Encoding.VBZ, chunk.signal, chunk.sample_count, chunk.signal_crc32c)
                for chunk in read.chunks
            ]
            open_read = OpenRead(
                read_id=read.info.read_id.bytes,
                channel=1,
                calibration=Calibration(0.0, 0.2),
                pieces=pieces,
                samples=read.samples,
            )
            engine.scheduler.submit(Job(stream="bench", settings=settings, read=open_read, deliver=deliver))
        finished.wait()
        return sum(read.samples for read in reads) / (time.perf_counter() - began)

    return measure


class Server:
    """`porestream serve` on a Unix socket, with its peak memory."""

    def __init__(self, used: ReadSet, folder: Path) -> None:
        self.address = f"unix:{folder / 'socket'}"
        command = [*PORESTREAM, "serve", "--model", str(used.model), "--listen", self.address]
        command += ["--reference", str(used.reference)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not (folder / "socket").exists():
            if self._process.poll() is not None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.05)

    def peak_bytes(self) -> int:
        match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert match
        return int(match[1]) << 10

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def copies(source: Path, folder: Path, count: int) -> Path:
    """Make a folder with this many copies of a POD5, with new read ids in each."""
    folder.mkdir()
    for number in range(count):
        with pod5.Writer(folder / f"{number}.pod5") as writer, pod5.Reader(source) as reader:
            for record in reader.reads():
                read = record.to_read()
                read.read_id = uuid4()
                writer.add_read(read)
    return folder


def memory(used: ReadSet, folder: Path, times: int) -> list[tuple[int, int, int]]:
    """Return the peak bytes of server and client for the set once, and for the set repeated `times` times."""
    rows = []
    for turn, count in enumerate((1, times)):
        server = Server(used, folder)
        reads = copies(used.reads, folder / f"reads-{turn}", count)
        done = subprocess.run(
            [
                *("/usr/bin/env", "python3", "-c", _PEAK_OF_CHILD),
                *(*PORESTREAM, "call", str(reads), "--server", server.address, "--reference", used.reference.name),
                *("-o", str(folder / "calls.bam")),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        rows.append((count, server.peak_bytes(), int(done.stdout.split()[-1]) << 10))
        server.stop()
        (folder / "socket").unlink(missing_ok=True)
    return rows


_PEAK_OF_CHILD = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


_COLUMNS = (
    "| reads | network (f), k samples/core-s | decoder (d) | 2 / (1/f + 1/d), k samples/s | both on all cores "
    "| `call`, first read to last result | of 2 / (1/f + 1/d) | of both on all cores | bonito's forward pass "
    "| `call` against it | `call`, whole process |"
)


def print_calls(
    name: str, used: ReadSet, folder: Path, repeats: int, *flags: str, batches: int = 4, with_bonito: bool
) -> None:
    """Print a row of `call` beside its network and decoder alone, on a few batches, and bonito's forward pass."""
    stages = Stages(used, batches)
    turns = []  # each measures everything again, because the machine's speed drifts
    for _ in range(repeats):
        network, decoder, on_all_cores = stages.network(), stages.decoder(), stages.on_all_cores()
        speed, whole = call_speed(used, folder, "--model", str(used.model), *flags)
        bonito = stages.bonito() if with_bonito else math.nan
        ideal = 2 / (1 / network + 1 / decoder)
        speeds = (network, decoder, ideal, on_all_cores, speed, whole, bonito)
        turns.append((*speeds, speed / ideal, speed / on_all_cores, speed / bonito))
    network, decoder, ideal, on_all_cores, speed, whole, bonito, *ratios = map(
        statistics.median, zip(*turns, strict=True)
    )
    cells = [f"{one / 1e3:,.0f}" for one in (network, decoder, ideal, on_all_cores, speed)]
    cells += [f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", f"{bonito / 1e3:,.0f}", f"{ratios[2]:.2f}", f"{whole / 1e3:,.0f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder with real reads and the R9.4.1 model")
    what.add_argument("--quick", action="store_true", help="run once with a few made-up reads, without bonito")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=20, help="how often the set is streamed in the memory test")
    arguments = parser.parse_args()
    repeats, times = (1, 2) if arguments.quick else (arguments.repeats, arguments.copies)
    configure_logging("text")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used = made_up(folder) if arguments.quick else klebsiella(arguments.data.resolve())
        print(_COLUMNS + "\n" + "| --- " * (_COLUMNS.count("|") - 1) + "|")
        aligned = ("--reference", str(used.reference))
        print_calls("fast, aligned", used, folder, repeats, *aligned, with_bonito=not arguments.quick)
        print_calls("fast", used, folder, repeats, with_bonito=not arguments.quick)
        if not arguments.quick:
            print_calls("hac v4.3, random weights", random_hac(folder), folder, repeats, batches=1, with_bonito=False)
        engine = in_process_speed(used)
        engine()
        server = Server(used, folder)
        pairs = []
        for _ in range(repeats):
            direct = engine()
            served, _ = call_speed(used, folder, "--server", server.address, "--reference", used.reference.name)
            pairs.append((direct, served))
        server.stop()
        (folder / "socket").unlink(missing_ok=True)
        served_ratio = statistics.median(served / direct for direct, served in pairs)
        direct, served = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"\nThe engine in this process: {direct / 1e3:,.0f} k samples/s; `call` through gRPC: {served / 1e3:,.0f}, "
            f"{served_ratio:.2f} of that (at least 0.90).\n"
        )
        rows = memory(used, folder, times)
        print("| set streamed | server peak, MiB | client peak, MiB |")
        print("| --- | --- | --- |")
        for count, server_bytes, client_bytes in rows:
            print(f"| {count} times | {server_bytes >> 20} | {client_bytes >> 20} |")
        ratios = [rows[1][column] / rows[0][column] for column in (1, 2)]
        print(f"| ratio (limit 1.2) | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
