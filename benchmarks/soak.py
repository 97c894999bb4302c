"""Call for an hour while connections break every few seconds; check that memory, descriptors and threads do not grow.

First this measures the server's full speed. Then four clients (`porestream.client`) stream at a share of it through a
proxy that cuts their connections; each call has its own run and takes a minute. Every 10 s the server's memory,
descriptors and threads are recorded. The exit code is 1 if the last quarter after the warm-up has more than the first:
more than 2% for memory (medians), and any growth for descriptors and threads at the same number of connections. It is
also 1 if a read is lost or doubled, or the books do not balance.

    python benchmarks/soak.py --minutes 60 --load 0.7
"""

import argparse
import itertools
import logging
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import numpy as np
import structlog
from breaking import DOWN, UP, Proxy, free_port, scrape
from chaos import simulated_run
from servers import serving

from porestream.client import Pod5Source, SignalRead, StreamOptions, SyncBasecallClient

CLIENTS = 4
WINDOW_SAMPLES = 1_000_000  # so that a call ends soon after its last read
FULL_SPEED_S, WARM_UP_S, SAMPLE_S, CALL_S = 30.0, 300.0, 10.0, 60.0
SHORTEST_S, LONGEST_S = 2.0, 8.0  # between cuts
LIMIT = 0.02  # for the growth of memory


@dataclass(kw_only=True)
class Sample:
    """The server at one moment."""

    at_s: float
    connections: int
    anonymous_mb: float
    resident_mb: float
    descriptors: int
    threads: int


class Load:
    """Clients that send reads at a given rate, and counts of what came back."""

    def __init__(self, pool: list[SignalRead], address: str, reference: str) -> None:
        self.lost = self.doubled = self.called = self.samples = 0
        self._pool, self._address = pool, address
        self._options = StreamOptions(reference=reference, window_samples=WINDOW_SAMPLES)
        self._numbers, self._lock = itertools.count(1), threading.Lock()

    def stream(self, seconds: float, samples_per_s: float | None) -> None:
        """Stream for this long with all clients, at this total rate; None: as fast as the server can."""
        until_s = time.monotonic() + seconds
        rate = samples_per_s and samples_per_s / CLIENTS
        clients = [threading.Thread(target=self._client, args=(until_s, rate)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def _client(self, until_s: float, rate: float | None) -> None:
        while (now_s := time.monotonic()) < until_s:
            sent, got = set[UUID](), Counter[UUID]()
            try:
                with SyncBasecallClient(self._address, self._options) as client:
                    for result in client.call(self._reads(min(until_s, now_s + CALL_S), rate, sent)):
                        got[result.info.read_id] += 1
                        with self._lock:
                            self.samples += result.signal_samples
            finally:  # a failed call has lost the reads it sent
                with self._lock:
                    self.called += len(got)
                    self.lost += len(sent - got.keys())
                    self.doubled += got.total() - len(got) + len(got.keys() - sent)

    def _reads(self, until_s: float, rate: float | None, sent: set[UUID]) -> Iterator[SignalRead]:
        began_s, samples = time.monotonic(), 0
        run_id = str(next(self._numbers))
        while time.monotonic() < until_s:
            number = next(self._numbers)
            read = self._pool[number % len(self._pool)]
            run = replace(read.info.run, run_id=run_id)
            sent.add(UUID(int=number))
            yield SignalRead(replace(read.info, read_id=UUID(int=number), run=run), read.signal_S)
            samples += read.signal_S.size
            if rate:
                time.sleep(max(0.0, began_s + samples / rate - time.monotonic()))


def sample(pid: int, connections: int, began_s: float) -> Sample:
    """Take a sample of the server."""
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    status = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{pid}/status").read_text()))
    anonymous_mb, resident_mb = (int(status[name]) / 1024 for name in ("RssAnon", "VmRSS"))
    at_s, threads = time.monotonic() - began_s, int(status["Threads"])
    return Sample(
        at_s=at_s,
        connections=connections,
        anonymous_mb=anonymous_mb,
        resident_mb=resident_mb,
        descriptors=descriptors,
        threads=threads,
    )


def cut_often(proxy: Proxy, over: threading.Event) -> None:
    """Cut connections at random bytes until `over`."""
    while not over.wait(random.uniform(SHORTEST_S, LONGEST_S)):
        way, is_reset = random.choice((UP, DOWN)), random.random() < 0.5
        proxy.cut_after(way, int(10 ** random.uniform(0, 5)), is_reset)


def quarters(samples: list[Sample], name: str) -> list[float]:
    """Return the median of each quarter."""
    values = [getattr(one, name) for one in samples]
    return [statistics.median(values[len(values) * i // 4 : len(values) * (i + 1) // 4]) for i in range(4)]


def report(samples: list[Sample], warm_up_s: float) -> list[str]:
    """Print the table; return what grew."""
    warm = [one for one in samples if one.at_s >= warm_up_s]
    usual = Counter(one.connections for one in warm).most_common(1)[0][0]
    alike = [one for one in warm if one.connections == usual]
    print("| | start | end | medians of quarters | slope, a minute | slope, % an hour |")
    print("| --- |" + " --- |" * 5)
    grown = []
    for name, title in (
        ("anonymous_mb", "anonymous memory, MB"),
        ("resident_mb", "resident memory, MB"),
        ("descriptors", f"descriptors at {usual} connections"),
        ("threads", f"threads at {usual} connections"),
    ):
        taken = warm if name.endswith("mb") else alike
        values, medians = [getattr(one, name) for one in taken], quarters(taken, name)
        slope = float(np.polyfit([one.at_s / 60 for one in taken], values, 1)[0])
        shown = ", ".join(f"{median:,.1f}" for median in medians)
        percent = slope * 60 / medians[0]
        print(f"| {title} | {values[0]:,.1f} | {values[-1]:,.1f} | {shown} | {slope:+.3f} | {percent:+.1%} |")
        is_more = medians[3] > medians[0] * (1 + LIMIT)
        if not name.endswith("mb"):  # these rise briefly when a client comes or goes
            least_first, least_last = min(values[: len(values) // 4]), min(values[-(len(values) // 4) :])
            is_more = medians[3] > medians[0] and least_last > least_first
        grown += [title] if is_more else []
    return grown


def main() -> None:
    """Run the soak test and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="the first 5 (at most a quarter) are the warm-up")
    parser.add_argument("--load", type=float, default=0.7, help="share of full speed")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # not a line per cut
    seconds, wrong = arguments.minutes * 60, list[str]()
    samples, over, scrapes, unbalanced = list[Sample](), threading.Event(), 0, 0
    with tempfile.TemporaryDirectory(prefix="porestream-soak-") as name:
        reference, run = simulated_run(Path(name), "--reads", "200", "--length-mean", "1000", "--length-sd", "800")
        pool = list(Pod5Source([run]))
        port, metrics_port = free_port(), free_port()
        metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        flags = f"--reference {reference} --threads 2 --listen 127.0.0.1:{port} --metrics-port {metrics_port}".split()
        server = serving(*flags, stdout=subprocess.DEVNULL)
        assert server.stderr
        threading.Thread(target=server.stderr.read, daemon=True).start()
        proxy = Proxy(port)
        try:
            full = Load(pool, proxy.address, reference.name)
            began_s = time.monotonic()
            full.stream(FULL_SPEED_S, None)
            full_rate = full.samples / (time.monotonic() - began_s)
            print(f"full speed: {full_rate:,.0f} samples/s", file=sys.stderr)
            load, began_s = Load(pool, proxy.address, reference.name), time.monotonic()
            streaming = threading.Thread(target=load.stream, args=(seconds, arguments.load * full_rate))
            cutting = threading.Thread(target=cut_often, args=(proxy, over))
            for thread in (streaming, cutting):
                thread.start()
            while streaming.is_alive() and not over.wait(SAMPLE_S):
                if found := scrape(metrics):
                    scrapes += 1
                    unbalanced += bool(found.unbalanced)
                    if streaming.is_alive():
                        samples.append(sample(server.pid, found.connections, began_s))
            over.set()
            streaming.join()
            cutting.join()
            if server.poll() is not None:
                wrong.append(f"the server ended with {server.returncode}")
        finally:
            over.set()
            proxy.close()
            server.kill()
            server.wait()
    wrong += [f"grew: {title}" for title in report(samples, min(WARM_UP_S, seconds / 4))]
    lost, doubled = full.lost + load.lost, full.doubled + load.doubled
    if lost or doubled:
        wrong.append(f"{lost} reads lost, {doubled} doubled")
    if unbalanced:
        wrong.append("the books do not balance")
    load_said = f"{load.called:,} reads at {load.samples / seconds / full_rate:.0%} of {full_rate:,.0f} samples/s"
    print(f"\n{arguments.minutes:g} minutes, {load_said}; {proxy.cuts:,} connections cut; {lost} reads lost,", end=" ")
    print(f"{doubled} doubled; {scrapes:,} scrapes, {unbalanced} did not balance")
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
