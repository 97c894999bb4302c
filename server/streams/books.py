"""The books: count how read attempts end, for the server by model and priority, and for each run."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, fields

from porestream.server.calling.device_use import ActivityClock
from porestream.server.metrics import TOKEN_SAMPLES_RECEIVED
from porestream.server.reads import Priority, ReadResult, Status

_KEPT_RUNS = 1000
ENDS = ("called", "filtered", "rejected", "failed", "abandoned")
"""How a read attempt can end."""


@dataclass(slots=True, kw_only=True)
class Books:
    """Counts of read attempts. At all times received = called + filtered + rejected + failed + abandoned + open.

    An attempt is open from its first chunk until its result is acknowledged.
    """

    received: int = 0
    called: int = 0
    filtered: int = 0
    rejected: int = 0
    failed: int = 0
    abandoned: int = 0
    open: int = 0
    to_align: int = 0  # called or filtered, in streams with a reference
    aligned: int = 0
    samples: int = 0
    samples_finished: int = 0  # in attempts that have a result
    bases: int = 0

    def add(self, other: "Books") -> None:
        """Add the counts of other books."""
        for field in fields(Books):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


Group = tuple[str, Priority]
"""A stream's model and priority."""


class Ledger:
    """The server's books by model and priority, and each run's books. Only the event loop's thread writes them.

    The last thousand runs are kept; runs with open reads are never dropped.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # Prometheus reads from another thread, and must see balanced books
        self._groups: dict[Group, Books] = {}
        self._runs: OrderedDict[str, Books] = OrderedDict()
        self.stalls = {priority: ActivityClock() for priority in Priority}  # streams whose credit is used up

    @property
    def server(self) -> Books:
        """The current sum of all groups."""
        total = Books()
        for books in self.groups().values():
            total.add(books)
        return total

    def groups(self) -> dict[Group, Books]:
        """Return a consistent copy of the server's books."""
        with self.lock:
            copies = {group: Books() for group in self._groups}
            for group, copy in copies.items():
                copy.add(self._groups[group])
        return copies

    def group(self, model: str, priority: Priority) -> Books:
        """Return the books of one model and priority, creating them if needed."""
        with self.lock:
            return self._groups.setdefault((model, priority), Books())

    def run(self, run_id: str) -> Books:
        """Return the books of one run, creating them if needed."""
        books = self._runs.setdefault(run_id, Books())
        self._runs.move_to_end(run_id)
        if len(self._runs) > _KEPT_RUNS:
            for old in [name for name, kept in self._runs.items() if not kept.open][: len(self._runs) - _KEPT_RUNS]:
                del self._runs[old]
        return books

    def find_run(self, run_id: str) -> Books | None:
        """Return the books of a run; None if the run is unknown."""
        return self._runs.get(run_id)


class StreamBooks:
    """Records one stream's reads in the server's books and in its run's books, always in both."""

    def __init__(self, ledger: Ledger, run_id: str, model: str, priority: Priority, token: str = "") -> None:
        self._lock = ledger.lock
        self._books = (ledger.group(model, priority), ledger.run(run_id))
        self._stalls = ledger.stalls[priority]
        self._is_stalled = False
        self._token_samples = TOKEN_SAMPLES_RECEIVED.labels(token)

    def receive(self) -> None:
        """Count a read whose first chunk arrived."""
        with self._lock:
            for books in self._books:
                books.received += 1
                books.open += 1

    def samples(self, count: int) -> None:
        """Count received samples."""
        for books in self._books:
            books.samples += count
        self._token_samples.inc(count)

    def finish(self, result: ReadResult) -> None:
        """Count a result's samples and bases; the read itself counts once it is acknowledged."""
        for books in self._books:
            books.samples_finished += result.signal_samples
            books.bases += sum(len(part.sequence) for part in result.parts)

    def close(self, status: Status, *, to_align: bool, aligned: bool) -> None:
        """Count a read whose result was acknowledged."""
        with self._lock:
            for books in self._books:
                books.open -= 1
                books.to_align += to_align
                books.aligned += aligned
                setattr(books, status.value, getattr(books, status.value) + 1)

    def abandon(self, reads: int) -> None:
        """Count reads that were still open when the stream ended."""
        with self._lock:
            for books in self._books:
                books.open -= reads
                books.abandoned += reads

    def stalled(self, is_stalled: bool) -> None:
        """Note whether the stream is stalled, that is, must wait before it may send."""
        if is_stalled != self._is_stalled:
            self._is_stalled = is_stalled
            if is_stalled:
                self._stalls.enter()
            else:
                self._stalls.leave()
