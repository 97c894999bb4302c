"""Many streams into full batches of fixed shape: priority, fairness, bounded delay.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), with samples as the unit of service: a stream's reads get tags
that advance by their length, and the lowest tag goes first, so streams share the workers equally whatever they send. A
priority class is a head start in the same unit: LIVE goes before STANDARD, but a STANDARD read that has waited for
8 million samples of service goes before new LIVE ones, so none starves.

Dimensions: N rows of a batch.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from porestream.models.decode import Decoded
from porestream.models.prepare import PreparedRead
from porestream.server.reads import CallSettings, OpenRead, Priority, ReadResult

_MAX_OVERTAKEN_S = 2.0


@dataclass(slots=True, eq=False)
class Job:
    """One complete read on its way through the pipeline."""

    stream: Hashable
    settings: CallSettings
    read: OpenRead
    deliver: Callable[["Job", ReadResult], None]
    submitted_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    tag: float = 0.0
    prepared: PreparedRead | None = None
    decoded: list[Decoded | None] = field(default_factory=list)
    missing: int = 0

    @property
    def decoded_bytes(self) -> int:
        """What its signal takes while it is called: int16, and about as much again for what was called of it."""
        return 4 * self.read.samples


@dataclass(slots=True, order=True)
class Task:
    """One chunk of a prepared read."""

    key: float
    sequence: int
    index: int = field(compare=False)
    job: Job = field(compare=False)
    ready_s: float = field(compare=False, default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Batch:
    """Up to N chunks of one model and one chunk length, of any reads of any streams."""

    model: str
    samples: int
    tasks: list[Task]


class Scheduler:
    """What the workers do next. Thread-safe.

    Parameters
    ----------
    batch_rows
        Chunks of a full batch.
    max_delay_s
        How long a chunk may wait for its batch to fill while the workers have nothing else to do. Where full batches
        of another length or model keep them busy, it is two seconds; for LIVE reads never longer than this.
    decoded_bytes
        Bound of the decoded signal of all reads that are being called; one read is always allowed.
    """

    def __init__(self, batch_rows: int, max_delay_s: float, decoded_bytes: int) -> None:
        self._batch_rows, self._max_delay_s, self._decoded_limit = batch_rows, max_delay_s, decoded_bytes
        self._waiting: list[tuple[float, int, Job]] = []
        self._ready: dict[tuple[str, int], list[Task]] = {}
        self._active: dict[Job, int] = {}  # decoded bytes of each read that is being called
        self._last_tag: dict[Hashable, float] = {}
        self._now = 0.0  # virtual time, in samples of service
        self._closed = False
        self._sequence = itertools.count()
        self._changed = threading.Condition()

    def submit(self, job: Job) -> None:
        """Queue a complete read."""
        with self._changed:
            job.tag = max(self._now, self._last_tag.get(job.stream, 0.0))
            self._last_tag[job.stream] = job.tag + job.read.samples
            key = job.tag + job.settings.priority.value
            heapq.heappush(self._waiting, (key, next(self._sequence), job))
            self._changed.notify()

    def take(self) -> Job | Batch | None:
        """The next piece of work: a read to prepare, or a batch to call. Blocks; None: closed.

        Who takes a read to prepare must call `prepared` or `done` for it.
        """
        with self._changed:
            while not self._closed:
                now_s = time.monotonic()
                classes = sorted((tasks for tasks in self._ready.values() if tasks), key=lambda tasks: tasks[0])
                full = next((tasks for tasks in classes if len(tasks) >= self._batch_rows), None)
                partial = [tasks for tasks in classes if len(tasks) < self._batch_rows]
                late = min(partial, default=None, key=_oldest_s)
                if late and now_s - _oldest_s(late) > self._patience_s(late):
                    full = late
                if self._fits() and (full is None or self._waiting[0][0] < full[0].key):
                    return self._start()
                if full:
                    return self._pop(full)
                wait_s = None
                if late:
                    wait_s = _oldest_s(late) + self._max_delay_s - now_s
                    if wait_s <= 0:
                        return self._pop(late)
                self._changed.wait(wait_s)
            return None

    def prepared(self, job: Job) -> None:
        """The read's plan is made: its chunks are ready to be called."""
        assert job.prepared is not None
        with self._changed:
            if job not in self._active:  # cancelled meanwhile
                return
            for index, piece in enumerate(job.prepared.plan.pieces):
                tasks = self._ready.setdefault((job.settings.model, piece.samples), [])
                key = job.tag + piece.start + job.settings.priority.value
                heapq.heappush(tasks, Task(key, next(self._sequence), index, job))
            self._changed.notify_all()

    def called_one(self, job: Job) -> bool:
        """One more chunk of the read was called. True for the last, to whoever called it."""
        with self._changed:
            job.missing -= 1
            return job.missing == 0

    def done(self, job: Job) -> bool:
        """The read is finished, or given up; its memory is free. False where its stream was cancelled meanwhile."""
        with self._changed:
            self._changed.notify_all()
            return self._active.pop(job, None) is not None

    def cancel(self, stream: Hashable) -> None:
        """Forget all work of a stream."""
        with self._changed:
            self._waiting = [item for item in self._waiting if item[2].stream != stream]
            heapq.heapify(self._waiting)
            for tasks in self._ready.values():
                tasks[:] = [task for task in tasks if task.job.stream != stream]
                heapq.heapify(tasks)
            self._active = {job: size for job, size in self._active.items() if job.stream != stream}
            self._last_tag.pop(stream, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Send the workers home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def queued_samples(self) -> int:
        """Samples of all reads that wait or are being called."""
        with self._changed:
            return sum(job.read.samples for *_, job in self._waiting) + sum(job.read.samples for job in self._active)

    def _fits(self) -> bool:
        if not self._waiting:
            return False
        used = sum(self._active.values())
        return not used or used + self._waiting[0][2].decoded_bytes <= self._decoded_limit

    def _start(self) -> Job:
        job = heapq.heappop(self._waiting)[2]
        self._active[job] = job.decoded_bytes
        return job

    def _pop(self, tasks: list[Task]) -> Batch:
        taken = [heapq.heappop(tasks) for _ in range(min(self._batch_rows, len(tasks)))]
        self._now = max(self._now, max(task.key - task.job.settings.priority.value for task in taken))
        first = taken[0].job
        assert first.prepared is not None
        return Batch(first.settings.model, first.prepared.plan.pieces[taken[0].index].samples, taken)

    def _patience_s(self, tasks: list[Task]) -> float:
        """How long chunks wait for their batch to fill while full batches of others go before them."""
        is_live = any(task.job.settings.priority is Priority.LIVE for task in tasks)
        return self._max_delay_s if is_live else _MAX_OVERTAKEN_S


def _oldest_s(tasks: list[Task]) -> float:
    return min(task.ready_s for task in tasks)
