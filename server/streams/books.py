"""The books: what became of each attempt at a read, of the whole server by model and priority, and of each run."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, fields

from porestream.server.streams.reads import Priority, ReadResult, Status
from porestream.server.watch.device_use import ActivityClock
from porestream.server.watch.metrics import TOKEN_SAMPLES_RECEIVED

_KEPT_RUNS = 1000
ENDS = ("called", "filtered", "rejected", "failed", "abandoned")
"""How an attempt at a read ends."""


@dataclass(slots=True, kw_only=True)
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
    to_align: int = 0  # called or filtered where the stream has a reference
    aligned: int = 0
    samples: int = 0
    samples_finished: int = 0  # of attempts that have a result
    bases: int = 0

    def add(self, other: "Books") -> None:
        """Add another's counts to these."""
        for field in fields(Books):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


Group = tuple[str, Priority]
"""Model and priority of a stream."""


class Ledger:
    """The server's books by model and priority, and each run's; only the event loop's thread writes them.

    Of runs without open reads the last thousand are kept.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # Prometheus asks from a thread of its own, and must find the books balanced
        self._groups: dict[Group, Books] = {}
        self._runs: OrderedDict[str, Books] = OrderedDict()
        self.stalls = {priority: ActivityClock() for priority in Priority}  # streams whose credit is used up

    @property
    def server(self) -> Books:
        """The sum of all groups, as it is now."""
        total = Books()
        for books in self.groups().values():
            total.add(books)
        return total

    def groups(self) -> dict[Group, Books]:
        """A copy of the server's books, balanced."""
        with self.lock:
            copies = {group: Books() for group in self._groups}
            for group, copy in copies.items():
                copy.add(self._groups[group])
        return copies

    def group(self, model: str, priority: Priority) -> Books:
        """The books of one model and priority, opened where there are none yet."""
        with self.lock:
            return self._groups.setdefault((model, priority), Books())

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

    def __init__(self, ledger: Ledger, run_id: str, model: str, priority: Priority, token: str = "") -> None:
        self._lock = ledger.lock
        self._books = (ledger.group(model, priority), ledger.run(run_id))
        self._stalls = ledger.stalls[priority]
        self._is_stalled = False
        self._token_samples = TOKEN_SAMPLES_RECEIVED.labels(token)

    def receive(self) -> None:
        """A read's first chunk came."""
        with self._lock:
            for books in self._books:
                books.received += 1
                books.open += 1

    def samples(self, count: int) -> None:
        """Samples came."""
        for books in self._books:
            books.samples += count
        self._token_samples.inc(count)

    def finish(self, result: ReadResult) -> None:
        """A result was made; its samples and bases count at once, the read when it is acknowledged."""
        for books in self._books:
            books.samples_finished += result.signal_samples
            books.bases += sum(len(part.sequence) for part in result.parts)

    def close(self, status: Status, *, to_align: bool, aligned: bool) -> None:
        """A result was acknowledged."""
        with self._lock:
            for books in self._books:
                books.open -= 1
                books.to_align += to_align
                books.aligned += aligned
                setattr(books, status.value, getattr(books, status.value) + 1)

    def abandon(self, reads: int) -> None:
        """The stream ended with so many reads open."""
        with self._lock:
            for books in self._books:
                books.open -= reads
                books.abandoned += reads

    def stalled(self, is_stalled: bool) -> None:
        """Whether the stream must wait before it may send."""
        if is_stalled != self._is_stalled:
            self._is_stalled = is_stalled
            if is_stalled:
                self._stalls.enter()
            else:
                self._stalls.leave()
