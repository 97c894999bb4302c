"""Many streams into full batches of fixed shape: priority, fairness, bounded delay.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), with samples as the unit of service: a stream's reads get tags
that advance by their length, and the lowest tag goes first, so streams share the workers equally whatever they send. A
priority class is a head start in the same unit: LIVE goes before STANDARD, but a STANDARD stream that has waited for
8 million samples of service goes on as an equal of LIVE ones, for as long as it has reads, so none starves.

Dimensions: N rows of a batch.
"""

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from porestream.models.decode import Decoded
from porestream.models.prepare import PreparedRead
from porestream.server.reads import CallSettings, OpenRead, Priority, ReadResult

_MAX_OVERTAKEN_S = 2.0
_T = TypeVar("_T")


class _Queue(Generic[_T]):
    """Items by key, and by age; any of them can be removed. Each of it in constant or logarithmic time.

    The heap has only keys and numbers: what was removed is gone at once, its place in the heap when it is met, or when
    most of the heap is such places.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._items: OrderedDict[int, _T] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._items)

    def push(self, key: float, number: int, item: _T) -> None:
        """Add an item under a number that no other has; the lower number goes first where keys are equal."""
        heapq.heappush(self._heap, (key, number))
        self._items[number] = item

    def first(self) -> tuple[float, int]:
        """The lowest key and its number; there must be one."""
        while self._heap[0][1] not in self._items:
            heapq.heappop(self._heap)
        return self._heap[0]

    def pop(self) -> _T:
        """Take the item of the lowest key."""
        number = self.first()[1]
        heapq.heappop(self._heap)
        return self._items.pop(number)

    def remove(self, number: int) -> _T:
        """Take the item of this number."""
        item = self._items.pop(number)
        if len(self._heap) > 2 * len(self._items) + 64:
            self._heap = [place for place in self._heap if place[1] in self._items]
            heapq.heapify(self._heap)
        return item

    def peek(self) -> _T:
        """The item of the lowest key."""
        return self._items[self.first()[1]]

    def oldest(self) -> _T:
        """The item that was pushed before all others."""
        return next(iter(self._items.values()))


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
    number: int = 0
    ready: dict[int, tuple[str, int]] = field(default_factory=dict)  # chunks that wait, and among which

    @property
    def is_live(self) -> bool:
        """Whether somebody waits for it."""
        return self.settings.priority is Priority.LIVE

    @property
    def decoded_bytes(self) -> int:
        """What its signal takes while it is called: int16, and about as much again for what was called of it."""
        return 4 * self.read.samples


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One chunk of a prepared read."""

    key: float
    number: int
    index: int
    job: Job
    ready_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Up to N chunks of one model and one chunk length, of any reads of any streams."""

    model: str
    samples: int
    tasks: list[Task]


@dataclass(slots=True)
class _ReadyClass:
    """The chunks of one model and length that wait for their batch."""

    model: str
    samples: int
    rows: int
    tasks: _Queue[Task] = field(default_factory=_Queue)
    live: int = 0  # of the tasks those of LIVE reads

    @property
    def is_full(self) -> bool:
        return len(self.tasks) >= self.rows

    @property
    def oldest_s(self) -> float:
        return self.tasks.oldest().ready_s


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do at one moment."""

    reads_waiting: int
    chunks_waiting: int
    queued_samples: dict[Priority, int]  # of all reads without a result
    oldest_s: dict[Priority, float]  # age of the oldest of them; 0: there is none


@dataclass(slots=True)
class _Stream:
    last_tag: float = 0.0
    jobs: set[Job] = field(default_factory=set)


class Scheduler:
    """What the workers do next. Thread-safe.

    No step takes longer where there are more streams or reads, but for a logarithm; what a stream leaves behind is
    found through its reads.

    Parameters
    ----------
    batch_rows
        Of each model the chunks of a full batch.
    max_delay_s
        How long a chunk may wait for its batch to fill while the workers have nothing else to do. Where full batches
        of another length or model keep them busy, it is two seconds; for LIVE reads never longer than this.
    decoded_bytes
        Bound of the decoded signal of all reads that are being called; one read is always allowed.
    clock
        Monotonic, in seconds.
    """

    def __init__(
        self,
        batch_rows: Mapping[str, int],
        max_delay_s: float,
        decoded_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_rows, self._max_delay_s, self._decoded_limit = batch_rows, max_delay_s, decoded_bytes
        self._clock = clock
        self._waiting: _Queue[Job] = _Queue()
        self._ready: dict[tuple[str, int], _ReadyClass] = {}
        self._active: set[Job] = set()  # reads that are being called
        self._streams: dict[Hashable, _Stream] = {}
        self._unfinished: dict[Priority, dict[int, Job]] = {priority: {} for priority in Priority}  # oldest first
        self._queued_samples = dict.fromkeys(Priority, 0)
        self._decoded_bytes = 0  # of the active reads
        self._now = 0.0  # virtual time, in samples of service
        self._closed = False
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    def submit(self, job: Job) -> None:
        """Queue a complete read."""
        with self._changed:
            stream = self._streams.setdefault(job.stream, _Stream())
            # A stream that has waited since its last read keeps its place: it pays for others' head start once, not
            # with every read anew.
            job.tag = stream.last_tag if stream.jobs else max(self._now, stream.last_tag)
            stream.last_tag = job.tag + job.read.samples
            stream.jobs.add(job)
            job.number = next(self._numbers)
            self._queued_samples[job.settings.priority] += job.read.samples
            self._unfinished[job.settings.priority][job.number] = job
            self._waiting.push(job.tag + job.settings.priority.value, job.number, job)
            self._changed.notify()

    def take(self) -> Job | Batch | None:
        """The next piece of work: a read to prepare, or a batch to call. Blocks; None: closed.

        Who takes a read to prepare must call `prepared` or `done` for it.
        """
        with self._changed:
            while not self._closed:
                work = self._next()
                if isinstance(work, Job | Batch):
                    return work
                self._changed.wait(work)
            return None

    def poll(self) -> Job | Batch | float | None:
        """As `take`, but does not block. Where there is nothing to do: for how many seconds; None: until told more."""
        with self._changed:
            return None if self._closed else self._next()

    def prepared(self, job: Job) -> None:
        """The read's plan is made: its chunks are ready to be called."""
        assert job.prepared is not None
        with self._changed:
            if job not in self._active:  # cancelled meanwhile
                return
            model, ready_s = job.settings.model, self._clock()
            for index, piece in enumerate(job.prepared.plan.pieces):
                place = (model, piece.samples)
                if place not in self._ready:
                    self._ready[place] = _ReadyClass(*place, self._batch_rows[model])
                key = job.tag + piece.start + job.settings.priority.value
                task = Task(key, next(self._numbers), index, job, ready_s)
                self._ready[place].tasks.push(key, task.number, task)
                self._ready[place].live += job.is_live
                job.ready[task.number] = place
            self._changed.notify_all()

    def called_one(self, job: Job) -> bool:
        """One more chunk of the read was called. True for the last, to whoever called it."""
        with self._changed:
            job.missing -= 1
            return job.missing == 0

    def is_wanted(self, job: Job) -> bool:
        """Whether the read is neither finished nor was its stream cancelled."""
        return job in self._active

    def done(self, job: Job) -> bool:
        """The read is finished, or given up; its memory is free. False where its stream was cancelled meanwhile."""
        with self._changed:
            if job not in self._active:
                return False
            self._forget(job)
            self._streams[job.stream].jobs.discard(job)
            if self._waiting:
                self._changed.notify_all()
            return True

    def cancel(self, stream: Hashable) -> None:
        """Forget all work of a stream."""
        with self._changed:
            if (gone := self._streams.pop(stream, None)) and gone.jobs:
                for job in gone.jobs:
                    self._forget(job)
                self._changed.notify_all()

    def close(self) -> None:
        """Send the workers home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def queued_samples(self) -> int:
        """Samples of all reads that wait or are being called."""
        return sum(self._queued_samples.values())

    def load(self) -> Load:
        """What there is to do now."""
        with self._changed:
            now_s = self._clock()
            oldest = {priority: next(iter(jobs.values()), None) for priority, jobs in self._unfinished.items()}
            return Load(
                len(self._waiting),
                sum(len(ready.tasks) for ready in self._ready.values()),
                dict(self._queued_samples),
                {priority: now_s - job.submitted_s if job else 0.0 for priority, job in oldest.items()},
            )

    def _next(self) -> Job | Batch | float | None:
        """Work, or how long there is none.

        A batch whose patience is at an end goes before all; then whatever has the lowest key of full batches and reads
        to prepare; then what is not full, when its delay is over.
        """
        now_s = self._clock()
        filled = [ready for ready in self._ready.values() if ready.tasks]
        partial = [ready for ready in filled if not ready.is_full]
        late = min(partial, default=None, key=lambda ready: ready.oldest_s)
        for ready in partial:
            if now_s - ready.oldest_s >= (self._max_delay_s if ready.live else _MAX_OVERTAKEN_S):
                return self._pop(ready)
        full = min((ready for ready in filled if ready.is_full), default=None, key=lambda ready: ready.tasks.first())
        if self._fits() and (full is None or self._waiting.first() < full.tasks.first()):
            return self._start()
        if full:
            return self._pop(full)
        if late is None:
            return None
        wait_s = late.oldest_s + self._max_delay_s - now_s
        return wait_s if wait_s > 0 else self._pop(late)

    def _fits(self) -> bool:
        if not self._waiting:
            return False
        used = self._decoded_bytes
        return not used or used + self._waiting.peek().decoded_bytes <= self._decoded_limit

    def _start(self) -> Job:
        job = self._waiting.pop()
        self._active.add(job)
        self._decoded_bytes += job.decoded_bytes
        return job

    def _pop(self, ready: _ReadyClass) -> Batch:
        taken = [ready.tasks.pop() for _ in range(min(ready.rows, len(ready.tasks)))]
        for task in taken:
            del task.job.ready[task.number]
            ready.live -= task.job.is_live
            self._now = max(self._now, task.key - task.job.settings.priority.value)
        return Batch(ready.model, ready.samples, taken)

    def _forget(self, job: Job) -> None:
        """Take a read out of all books but its stream's, with what of it still waits to be called."""
        self._queued_samples[job.settings.priority] -= job.read.samples
        del self._unfinished[job.settings.priority][job.number]
        if job not in self._active:
            self._waiting.remove(job.number)
            return
        self._active.discard(job)
        self._decoded_bytes -= job.decoded_bytes
        for number, place in job.ready.items():
            self._ready[place].tasks.remove(number)
            self._ready[place].live -= job.is_live
        job.ready.clear()
