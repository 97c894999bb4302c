"""Many streams into full batches of fixed shape: priority, fairness, bounded delay.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), with samples as the unit of service: a stream's reads get tags
that advance by their length, and the lowest tag goes first, so streams share the workers equally whatever they send.
Those of one client advance faster, as many times as it has streams with work: clients share equally too, however many
streams one opens. STANDARD has a head start over BULK in the same unit, after which BULK goes on as an equal for as
long as it has reads, so none starves.

LIVE work has a lane of its own, that goes first until it has had its share of what was served while others waited;
then it goes last until the others have had theirs. A stream that sends more LIVE samples a second than an instrument
does is no instrument: what is beyond goes with STANDARD.

Dimensions: N rows of a batch.
"""

import heapq
import itertools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from porestream.models.call.chunk import Piece
from porestream.server.streams.reads import CallSettings, OpenRead, Priority, ReadResult
from porestream.server.work.read_work import Work

_MAX_OVERTAKEN_S = 2.0
_LIVE_LEAD_SAMPLES = 200_000  # by which LIVE may be before its share at any time
_READ_SAMPLES = 2000  # of signal that could be called in the time that a read takes however short it is
_LIVE_BURST_S = 10.0  # reads end in crowds: LIVE samples of so many seconds may come at once
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


_Rank = tuple[bool, float, int]


class _Lanes(Generic[_T]):
    """Two queues: of LIVE work, and of the rest."""

    def __init__(self) -> None:
        self.live: _Queue[_T] = _Queue()
        self.rest: _Queue[_T] = _Queue()

    def __len__(self) -> int:
        return len(self.live) + len(self.rest)

    def of(self, is_live: bool) -> _Queue[_T]:
        """One of them."""
        return self.live if is_live else self.rest

    def next(self, live_first: bool) -> _Queue[_T]:
        """The one that goes first; there must be something in one."""
        return self.of(live_first) or self.of(not live_first)

    def rank(self, live_first: bool) -> _Rank:
        """Of what goes first: the lowest goes before that of other lanes."""
        queue = self.next(live_first)
        return (queue is not self.of(live_first), *queue.first())


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One complete read that is to be called, as the scheduler knows it; `work` is the pipeline's."""

    stream: Hashable
    settings: CallSettings
    read: OpenRead
    deliver: Callable[["Job", ReadResult], None]
    submitted_s: float = field(default_factory=time.monotonic)
    work: Work = field(default_factory=Work)
    client: Hashable = None  # whose stream it is; None: one that has no other
    is_live: bool = False  # whether it goes with LIVE work
    tag: float = 0.0
    pace: int = 1  # tag per sample
    missing: int = 0  # chunks that are not called yet, then parts that are not aligned
    number: int = 0
    ready: dict[int, tuple[str, int]] = field(default_factory=dict)  # chunks that wait, and among which

    @property
    def decoded_bytes(self) -> int:
        """What its signal takes while it is called: int16, and about as much again for what was called of it."""
        return 4 * self.read.samples


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
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


@dataclass(slots=True, kw_only=True)
class _ReadyClass:
    """The chunks of one model and length that wait for their batch."""

    model: str
    samples: int
    rows: int
    tasks: _Lanes[Task] = field(default_factory=_Lanes)

    @property
    def is_full(self) -> bool:
        return len(self.tasks) >= self.rows

    @property
    def oldest_s(self) -> float:
        return min(lane.oldest().ready_s for lane in (self.tasks.live, self.tasks.rest) if lane)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What there is to do at one moment."""

    reads_waiting: int
    chunks_waiting: int
    queued_samples: dict[Priority, int]  # of all reads without a result
    oldest_s: dict[Priority, float]  # age of the oldest of them; 0: there is none


@dataclass(slots=True)
class _Flow:
    """A stream's reads of one lane."""

    last_tag: float = 0.0
    jobs: set[Job] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Stream:
    filled_s: float
    live_samples: float  # that it may still send as LIVE
    live: _Flow = field(default_factory=_Flow)
    rest: _Flow = field(default_factory=_Flow)

    def of(self, is_live: bool) -> _Flow:
        return self.live if is_live else self.rest


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
        of another length or model keep them busy, it is two seconds; for LIVE reads within their share never longer.
    decoded_bytes
        Bound of the decoded signal of all reads that are being called; one read is always allowed.
    live_share
        Of the samples that are served while other work waits: what LIVE reads may have, from 0 to 1.
    live_rate_samples_per_s
        What one stream may send as LIVE.
    clock
        Monotonic, in seconds.
    """

    def __init__(
        self,
        batch_rows: Mapping[str, int],
        max_delay_s: float,
        decoded_bytes: int,
        live_share: float = 0.3,
        live_rate_samples_per_s: float = 16e6,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_rows, self._max_delay_s, self._decoded_limit = batch_rows, max_delay_s, decoded_bytes
        self._live_share, self._live_rate = live_share, live_rate_samples_per_s
        self._clock = clock
        self._waiting: _Lanes[Job] = _Lanes()
        self._ready: dict[tuple[str, int], _ReadyClass] = {}
        self._active: set[Job] = set()  # reads that are being called
        self._streams: dict[Hashable, _Stream] = {}
        self._unfinished: dict[Priority, dict[int, Job]] = {priority: {} for priority in Priority}  # oldest first
        self._queued_samples = dict.fromkeys(Priority, 0)
        self._decoded_bytes = 0  # of the active reads
        self._now = {True: 0.0, False: 0.0}  # by whether LIVE: virtual time, in samples of service
        self._live_lead = 0.0  # samples that LIVE has had beyond its share
        self._busy: Counter[tuple[Hashable, bool]] = Counter()  # a client's streams that have work in a lane
        self._closed = False
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    def submit(self, job: Job) -> None:
        """Queue a complete read."""
        with self._changed:
            stream = self._streams.get(job.stream)
            if stream is None:
                stream = self._streams[job.stream] = _Stream(
                    filled_s=self._clock(), live_samples=self._live_rate * _LIVE_BURST_S
                )
            job.is_live = job.settings.priority is Priority.LIVE and self._keeps_the_rate(stream, job.read.samples)
            flow, owner = stream.of(job.is_live), self._owner(job)
            if not flow.jobs:
                self._busy[owner] += 1
            job.pace = self._busy[owner]
            # A stream that has waited since its last read keeps its place: it pays for others' head start once, not
            # with every read anew.
            job.tag = flow.last_tag if flow.jobs else max(self._now[job.is_live], flow.last_tag)
            flow.last_tag = job.tag + (job.read.samples + _READ_SAMPLES) * job.pace
            flow.jobs.add(job)
            job.number = next(self._numbers)
            self._queued_samples[job.settings.priority] += job.read.samples
            self._unfinished[job.settings.priority][job.number] = job
            self._waiting.of(job.is_live).push(job.tag + _handicap(job), job.number, job)
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

    def prepared(self, job: Job, pieces: Sequence[Piece]) -> None:
        """The read's plan is made: these chunks are ready to be called."""
        with self._changed:
            job.missing = len(pieces)
            if job not in self._active:  # cancelled meanwhile
                return
            model, ready_s = job.settings.model, self._clock()
            for index, piece in enumerate(pieces):
                place = (model, piece.samples)
                if place not in self._ready:
                    self._ready[place] = _ReadyClass(model=model, samples=piece.samples, rows=self._batch_rows[model])
                key = job.tag + piece.start * job.pace + _handicap(job)
                task = Task(key=key, number=next(self._numbers), index=index, job=job, ready_s=ready_s)
                self._ready[place].tasks.of(job.is_live).push(key, task.number, task)
                job.ready[task.number] = place
            self._changed.notify_all()

    def expect(self, job: Job, parts: int) -> None:
        """So many parts of the read are to be aligned: `did_one` tells the last."""
        with self._changed:
            job.missing = parts

    def did_one(self, job: Job) -> bool:
        """One more chunk of the read was called, or part aligned. True for the last, to whoever did it."""
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
            flow = self._streams[job.stream].of(job.is_live)
            flow.jobs.discard(job)
            if not flow.jobs:
                self._leave(job)
            if self._waiting:
                self._changed.notify_all()
            return True

    def cancel(self, stream: Hashable) -> None:
        """Forget all work of a stream."""
        with self._changed:
            if (gone := self._streams.pop(stream, None)) is None:
                return
            for jobs in (gone.live.jobs, gone.rest.jobs):
                for job in jobs:
                    self._forget(job)
                if jobs:
                    self._leave(next(iter(jobs)))
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
                reads_waiting=len(self._waiting),
                chunks_waiting=sum(len(ready.tasks) for ready in self._ready.values()),
                queued_samples=dict(self._queued_samples),
                oldest_s={priority: now_s - job.submitted_s if job else 0.0 for priority, job in oldest.items()},
            )

    def _next(self) -> Job | Batch | float | None:
        """Work, or how long there is none.

        A batch whose patience is at an end goes before all; then whatever has the lowest key of full batches and reads
        to prepare; then what is not full, when its delay is over.
        """
        now_s, live_first = self._clock(), self._live_lead < _LIVE_LEAD_SAMPLES
        filled = [ready for ready in self._ready.values() if ready.tasks]
        partial = [ready for ready in filled if not ready.is_full]
        late = min(partial, default=None, key=lambda ready: ready.oldest_s)
        for ready in partial:
            is_urgent = live_first and ready.tasks.live
            if now_s - ready.oldest_s >= (self._max_delay_s if is_urgent else _MAX_OVERTAKEN_S):
                return self._pop(ready, live_first)
        full = min(
            (ready for ready in filled if ready.is_full), default=None, key=lambda ready: ready.tasks.rank(live_first)
        )
        if self._fits(live_first) and (full is None or self._waiting.rank(live_first) < full.tasks.rank(live_first)):
            return self._start(live_first)
        if full:
            return self._pop(full, live_first)
        if late is None:
            return None
        wait_s = late.oldest_s + self._max_delay_s - now_s
        return wait_s if wait_s > 0 else self._pop(late, live_first)

    def _keeps_the_rate(self, stream: _Stream, samples: int) -> bool:
        """Whether a stream may have so many samples more called as LIVE now; they are taken off what it may."""
        now_s = self._clock()
        grown = stream.live_samples + (now_s - stream.filled_s) * self._live_rate
        stream.filled_s, stream.live_samples = now_s, min(grown, self._live_rate * _LIVE_BURST_S)
        if stream.live_samples < samples:
            return False
        stream.live_samples -= samples
        return True

    def _owner(self, job: Job) -> tuple[Hashable, bool]:
        return (job.stream if job.client is None else job.client), job.is_live

    def _leave(self, job: Job) -> None:
        """The stream of this read has no more work in its lane."""
        owner = self._owner(job)
        self._busy[owner] -= 1
        if not self._busy[owner]:
            del self._busy[owner]

    def _fits(self, live_first: bool) -> bool:
        if not self._waiting:
            return False
        used = self._decoded_bytes
        return not used or used + self._waiting.next(live_first).peek().decoded_bytes <= self._decoded_limit

    def _start(self, live_first: bool) -> Job:
        job = self._waiting.next(live_first).pop()
        self._serve(_READ_SAMPLES * job.is_live, _READ_SAMPLES * (not job.is_live))
        self._active.add(job)
        self._decoded_bytes += job.decoded_bytes
        return job

    def _pop(self, ready: _ReadyClass, live_first: bool) -> Batch:
        taken = [ready.tasks.next(live_first).pop() for _ in range(min(ready.rows, len(ready.tasks)))]
        live_samples = 0
        for task in taken:
            del task.job.ready[task.number]
            is_live = task.job.is_live
            self._now[is_live] = max(self._now[is_live], task.key - _handicap(task.job))
            live_samples += is_live * ready.samples
        rest_samples = len(taken) * ready.samples - live_samples
        if live_samples:
            # A batch that did not wait costs what a full one does.
            live_samples += (ready.rows - len(taken)) * ready.samples
        self._serve(live_samples, rest_samples)
        return Batch(ready.model, ready.samples, taken)

    def _serve(self, live_samples: int, rest_samples: int) -> None:
        """Count what is served against LIVE's share; what LIVE has while nobody else waits is its own matter."""
        if self._waiting.rest or any(ready.tasks.rest for ready in self._ready.values()):
            self._live_lead += live_samples * (1 - self._live_share)
        self._live_lead = min(max(0.0, self._live_lead - rest_samples * self._live_share), 2 * _LIVE_LEAD_SAMPLES)

    def _forget(self, job: Job) -> None:
        """Take a read out of all books but its stream's, with what of it still waits to be called."""
        self._queued_samples[job.settings.priority] -= job.read.samples
        del self._unfinished[job.settings.priority][job.number]
        if job not in self._active:
            self._waiting.of(job.is_live).remove(job.number)
            return
        self._active.discard(job)
        self._decoded_bytes -= job.decoded_bytes
        for number, place in job.ready.items():
            self._ready[place].tasks.of(job.is_live).remove(number)
        job.ready.clear()


def _handicap(job: Job) -> int:
    """What others have as a head start over it within its lane."""
    if job.is_live:
        return 0
    return max(job.settings.priority.value, Priority.STANDARD.value)  # LIVE ones beyond their rate are STANDARD
