"""Measure the cost of monitoring: the time of scrapes under full load, and the metrics' share of calling time.

Scrapes: `/metrics` is requested over HTTP repeatedly while a call keeps all workers busy (limit: 100 ms at p99).
Share: a server in this process counts every metric operation of the same call. That number times the time of one
operation alone in a loop, divided by the time that workers were busy, is the share (limit: 1%, the same per chunk).

    python benchmarks/watching.py --data ../shared/data
    python benchmarks/watching.py --quick      made-up reads and a tiny model; no limits, as its chunks are too short
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
from sets import ReadSet, klebsiella, made_up

from porestream.client import Pod5Source, SyncBasecallClient
from porestream.server import metrics
from porestream.server.calling.device_use import ActivityClock
from porestream.server.metrics import STAGE_SECONDS
from porestream.server.reads import Priority, Status
from porestream.server.settings import Settings
from porestream.server.start.app import build_engine, build_server
from porestream.server.streams.books import Ledger, StreamBooks
from porestream.server.watch.logs import configure_logging

PORESTREAM = [sys.executable, "-m", "porestream.cli.main"]
PORT = 19_471
LIMIT_S, LIMIT_SHARE = 0.1, 0.01


def scrape_times_s(used: ReadSet, folder: Path, scrapes: int) -> list[float]:
    """Return the time of each scrape while calls run one after another."""
    socket = folder / "socket"
    flags = ["--model", str(used.model), "--listen", f"unix:{socket}", "--metrics-port", str(PORT)]
    server = subprocess.Popen([*PORESTREAM, "serve", *flags], stderr=subprocess.DEVNULL)
    while not socket.exists():
        if server.poll() is not None:
            raise SystemExit(f"the server did not start; is port {PORT} free?")
        time.sleep(0.1)
    stop = threading.Event()

    def load() -> None:
        call = [*PORESTREAM, "call", str(used.reads), "--server", f"unix:{socket}"]
        while not stop.is_set():
            subprocess.run([*call, "--emit-sam"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    thread = threading.Thread(target=load)
    thread.start()
    url, times_s = f"http://127.0.0.1:{PORT}/metrics", []
    try:
        while b'porestream_stage_queue{stage="basecall"} 0.0' in urllib.request.urlopen(url).read():
            assert thread.is_alive(), "no call is running"
            time.sleep(0.1)
        for _ in range(scrapes):
            began_s = time.perf_counter()
            urllib.request.urlopen(url).read()
            times_s.append(time.perf_counter() - began_s)
            time.sleep(0.05)
    finally:
        stop.set()
        thread.join()
        server.terminate()
        server.wait()
    return times_s


COUNTED: tuple[tuple[type, str], ...] = (
    (prometheus_client.Histogram, "observe"),
    (prometheus_client.Counter, "inc"),
    (type(STAGE_SECONDS), "labels"),
    (ActivityClock, "enter"),
    (ActivityClock, "leave"),
    (StreamBooks, "receive"),
    (StreamBooks, "samples"),
    (StreamBooks, "finish"),
    (StreamBooks, "close"),
    (StreamBooks, "stalled"),
)


def count_operations(used: ReadSet, folder: Path) -> tuple[Counter[str], float, int]:
    """Return how often each operation happens in one call, how long workers are busy with it, and its chunks."""
    counts: Counter[str] = Counter()
    originals = [(owner, name, getattr(owner, name)) for owner, name in COUNTED]

    def counting(key: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            counts[key] += 1
            return original(*arguments, **named)

        return call

    socket = f"unix:{folder / 'inside'}"
    ready, done = threading.Event(), threading.Event()
    engines = []

    async def serve() -> None:
        engines.append(build_engine(Settings(model=[str(used.model)])))
        serving = build_server(engines[0], socket)
        await serving.start()
        ready.set()
        await asyncio.to_thread(done.wait)
        await serving.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    chunks = 0
    try:
        for owner, name, original in originals:
            setattr(owner, name, counting(f"{owner.__name__}.{name}", original))
        before_s = engines[0].pipeline.devices[0].clock.seconds()
        with SyncBasecallClient(socket) as client:
            for _ in client.call(Pod5Source([used.reads])):
                pass
        busy_s = engines[0].pipeline.devices[0].clock.seconds() - before_s
        fill = metrics.BATCH_FILL.labels(used.model.name)._sum.get()
        chunks = round(fill * next(iter(engines[0].basecallers.values())).rows)
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        done.set()
        thread.join()
    return counts, busy_s, chunks


def operation_s(times: int) -> dict[str, float]:
    """Return the time of each operation alone, repeated this many times; for the books, the most expensive one."""
    histogram = prometheus_client.Histogram("bench_seconds", "x", ["a"], registry=None, buckets=range(1, 13))
    child = histogram.labels("x")
    counter = prometheus_client.Counter("bench_total", "x", registry=None)
    clock = ActivityClock(2)
    books = StreamBooks(Ledger(), "run", "model", Priority.LIVE)

    def each_s(work: Callable[[], object]) -> float:
        runs = []
        for _ in range(5):
            began_s = time.perf_counter()
            for _ in range(times):
                work()
            runs.append((time.perf_counter() - began_s) / times)
        return statistics.median(runs)

    book_s = each_s(lambda: books.close(Status.CALLED, to_align=True, aligned=True))
    return {
        "Histogram.observe": each_s(lambda: child.observe(100.0)),
        "Histogram.labels": each_s(lambda: histogram.labels("x")),
        "Counter.inc": each_s(counter.inc),
        "ActivityClock.enter": each_s(clock.enter),
        "ActivityClock.leave": each_s(clock.leave),
        **{f"StreamBooks.{name}": book_s for name in ("receive", "samples", "finish", "close")},
        "StreamBooks.stalled": each_s(lambda: books.stalled(False)),
    }


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--quick", action="store_true", help="made-up reads, 20 scrapes, no limits")
    parser.add_argument("--scrapes", type=int, default=500)
    arguments = parser.parse_args()
    configure_logging("json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used = made_up(folder) if arguments.quick else klebsiella(arguments.data)
        times_s = sorted(scrape_times_s(used, folder, 20 if arguments.quick else arguments.scrapes))
        counts, busy_s, chunks = count_operations(used, folder)
    costs_s = operation_s(1_000 if arguments.quick else 50_000)
    p99_s = times_s[round(0.99 * len(times_s)) - 1]
    print("| | value | limit |\n| --- | --- | --- |")
    print(f"| scrape under full load, median of {len(times_s)} | {statistics.median(times_s) * 1e3:.1f} ms | |")
    print(f"| scrape under full load, p99 | {p99_s * 1e3:.1f} ms | {LIMIT_S * 1e3:.0f} ms |")
    total_s = sum(count * costs_s[name] for name, count in counts.items())
    operations = sum(counts.values())
    print(f"| operations a chunk | {operations / chunks:.2f} | |")
    print(f"| of an operation | {total_s / operations * 1e9:.0f} ns | |")
    chunk_us = busy_s / chunks * 1e6
    print(f"| of the time of a chunk ({chunk_us:.0f} us of a worker) | {total_s / busy_s:.3%} | {LIMIT_SHARE:.0%} |")
    print("\n| operation | times | ns |\n| --- | --- | --- |")
    for key, count in counts.most_common():
        print(f"| {key} | {count} | {costs_s[key] * 1e9:.0f} |")
    if not arguments.quick and (p99_s > LIMIT_S or total_s / busy_s > LIMIT_SHARE):
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()
