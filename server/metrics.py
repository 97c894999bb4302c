"""The books, and what Prometheus sees of the server. No run, sample or read id ever becomes a label."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from porestream.server.reads import ReadResult, Status
from porestream.server.scheduler import Batch

STAGE_SECONDS = Histogram(
    "porestream_stage_seconds",
    "Time of one piece of work: prepare and align of a read, basecall of a batch, total of a read from its last sample",
    ["stage"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
BATCH_CHUNKS = Histogram(
    "porestream_batch_chunks", "Chunks in a batch", buckets=(1, 2, 4, 8, 12, 16, 32, 64, 128, 256, 512)
)
BATCH_STREAMS = Histogram(
    "porestream_batch_streams", "Streams whose chunks share a batch", buckets=(1, 2, 3, 4, 8, 16, 32, 64)
)

_KEPT_RUNS = 1000


def observe_batch(batch: Batch) -> None:
    """Record a batch's fill, and how many streams share it."""
    BATCH_CHUNKS.observe(len(batch.tasks))
    BATCH_STREAMS.observe(len({task.job.stream for task in batch.tasks}))


@dataclass(slots=True)
class Books:
    """Attempts at reads. At every moment received = called + filtered + rejected + failed + abandoned + open.

    An attempt is open from its first chunk until its result is acknowledged.
    """

    received: int = 0
    called: int = 0
    filtered: int = 0
    rejected: int = 0
    failed: int = 0
    abandoned: int = 0
    open: int = 0
    aligned: int = 0
    samples: int = 0
    bases: int = 0

    def receive(self) -> None:
        """A read's first chunk came."""
        self.received += 1
        self.open += 1

    def close(self, status: Status, *, aligned: bool) -> None:
        """A read's result was acknowledged."""
        self.open -= 1
        self.aligned += aligned
        setattr(self, status.value, getattr(self, status.value) + 1)

    def abandon(self, reads: int) -> None:
        """A stream broke with so many reads open."""
        self.open -= reads
        self.abandoned += reads


class Ledger:
    """The server's books and each run's; only the event loop's thread writes them.

    Of runs without open reads the last thousand are kept.
    """

    def __init__(self) -> None:
        self.server = Books()
        self.lock = threading.Lock()  # Prometheus asks from a thread of its own, and must find the books balanced
        self._runs: OrderedDict[str, Books] = OrderedDict()

    def run(self, run_id: str) -> Books:
        """The books of one run, opened where there are none yet."""
        books = self._runs.setdefault(run_id, Books())
        self._runs.move_to_end(run_id)
        if len(self._runs) > _KEPT_RUNS:
            for old in [name for name, kept in self._runs.items() if not kept.open][: len(self._runs) - _KEPT_RUNS]:
                del self._runs[old]
        return books

    def find_run(self, run_id: str) -> Books | None:
        """The books of a run that is known."""
        return self._runs.get(run_id)


class StreamBooks:
    """Books one stream's reads in the server's and its run's books, each time in both or in none."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self._lock = ledger.lock
        self._books = (ledger.server, ledger.run(run_id))

    def receive(self) -> None:
        """A read's first chunk came."""
        with self._lock:
            for books in self._books:
                books.receive()

    def samples(self, count: int) -> None:
        """Samples came."""
        for books in self._books:
            books.samples += count

    def finish(self, result: ReadResult) -> None:
        """A result was made; its bases count at once, the read when it is acknowledged."""
        STAGE_SECONDS.labels("total").observe(result.timings.total_s)
        for books in self._books:
            books.bases += len(result.part.sequence) if result.part else 0

    def close(self, status: Status, *, aligned: bool) -> None:
        """A result was acknowledged."""
        with self._lock:
            for books in self._books:
                books.close(status, aligned=aligned)

    def abandon(self, reads: int) -> None:
        """The stream ended with so many reads open."""
        with self._lock:
            for books in self._books:
                books.abandon(reads)


class ServerCollector:
    """Gives Prometheus the books and gauges as they are when it asks.

    Parameters
    ----------
    ledger
        The books.
    gauges
        Of each gauge its help text, and what gives its value.
    """

    def __init__(self, ledger: Ledger, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._ledger, self._gauges = ledger, gauges

    def collect(self) -> Iterator[Metric]:
        """All metrics of the books, and the gauges."""
        with self._ledger.lock:
            books = replace(self._ledger.server)
        reads = CounterMetricFamily("porestream_reads", "Attempts at reads that ended, by status", labels=["status"])
        for status in ("called", "filtered", "rejected", "failed", "abandoned"):
            reads.add_metric([status], getattr(books, status))
        yield reads
        yield CounterMetricFamily("porestream_reads_received", "Attempts at reads begun", value=books.received)
        yield CounterMetricFamily("porestream_reads_aligned", "Reads with an alignment", value=books.aligned)
        yield CounterMetricFamily("porestream_samples", "Samples received", value=books.samples)
        yield CounterMetricFamily("porestream_bases", "Bases called", value=books.bases)
        yield GaugeMetricFamily("porestream_reads_open", "Attempts neither ended nor acknowledged", value=books.open)
        for name, (help_text, value) in self._gauges.items():
            yield GaugeMetricFamily(name, help_text, value=value())
