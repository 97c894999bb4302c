"""Fill batches of fixed shape from many streams, with priorities, fairness and bounded delay.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with samples as the unit of service. Each read gets a tag;
a stream's tags advance by the length of its reads, and the lowest tag goes first. So streams share the workers equally,
whatever they send. Tags of a client with several busy streams advance faster by that factor, so clients share equally
too, however many streams they open. STANDARD has a head start over BULK in the same unit. Once that is used up, BULK is
served as an equal for as long as it has reads, so neither starves.

LIVE work has its own lane. It goes first until it has had its share of the service given while others waited; then it
goes last until the others have had theirs. A stream that sends more LIVE samples per second than an instrument can
isn't an instrument: the excess is scheduled as STANDARD.

Dimensions: N rows of a batch.
"""

import heapq
import itertools
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from porestream.models.call.chunk import Piece
from porestream.server.calling.read_work import Work
from porestream.server.reads import CallSettings, OpenRead, Priority, ReadResult

_MAX_OVERTAKEN_S = 2.0
_CARD_PATIENCE_S = 0.5  # for which an idle GPU waits for a batch to fill, unless reads in it are LIVE
_LIVE_LEAD_SAMPLES = 200_000  # how far LIVE may be ahead of its share at any time
_READ_SAMPLES = 2000  # fixed cost of a read, however short, as samples that could be called in that time
_LIVE_BURST_S = 10.0  # many reads may end at once, so this many seconds' worth of LIVE samples may come in a burst
_T = TypeVar("_T")


class _Queue(Generic[_T]):
    """Items ordered by key and by age, and removable; every operation takes constant or logarithmic time.

    The heap holds only keys and numbers. A removed item is freed at once; its heap entry goes when it reaches the top,
    or when most entries are stale.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._items: OrderedDict[int, _T] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._items)

    def push(self, key: float, number: int, item: _T) -> None:
        """Add an item with a unique number; among equal keys the lowest number goes first."""
        heapq.heappush(self._heap, (key, number))
        self._items[number] = item

    def first(self) -> tuple[float, int]:
        """Return the lowest key and its number; the queue must not be empty."""
        while self._heap[0][1] not in self._items:
            heapq.heappop(self._heap)
        return self._heap[0]

    def pop(self) -> _T:
        """Remove and return the item with the lowest key."""
        number = self.first()[1]
        heapq.heappop(self._heap)
        return self._items.pop(number)

    def remove(self, number: int) -> _T:
        """Remove and return the item with this number."""
        item = self._items.pop(number)
        if len(self._heap) > 2 * len(self._items) + 64:
            self._heap = [place for place in self._heap if place[1] in self._items]
            heapq.heapify(self._heap)
        return item

    def peek(self) -> _T:
        """Return the item with the lowest key."""
        return self._items[self.first()[1]]

    def oldest(self) -> _T:
        """Return the item that was pushed first."""
        return next(iter(self._items.values()))


_Rank = tuple[bool, float, int]


class _Lanes(Generic[_T]):
    """Two queues: LIVE work and the rest."""

    def __init__(self) -> None:
        self.live: _Queue[_T] = _Queue()
        self.rest: _Queue[_T] = _Queue()

    def __len__(self) -> int:
        return len(self.live) + len(self.rest)

    def of(self, is_live: bool) -> _Queue[_T]:
        """Return one of the queues."""
        return self.live if is_live else self.rest

    def next(self, live_first: bool) -> _Queue[_T]:
        """Return the queue that goes first; they must not both be empty."""
        return self.of(live_first) or self.of(not live_first)

    def rank(self, live_first: bool) -> _Rank:
        """Return the rank of the first item, for comparison with other lanes: the lowest goes first."""
        queue = self.next(live_first)
        return (queue is not self.of(live_first), *queue.first())


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One complete read to call, as the scheduler sees it; `work` belongs to the pipeline."""

    stream: Hashable
    settings: CallSettings
    read: OpenRead
    deliver: Callable[["Job", ReadResult], None]
    submitted_s: float = field(default_factory=time.monotonic)
    work: Work = field(default_factory=Work)
    client: Hashable = None  # the stream's client; None: the stream counts as a client of its own
    is_live: bool = False  # whether it is in the LIVE lane
    tag: float = 0.0
    pace: int = 1  # tag per sample
    missing: int = 0  # chunks not yet called, then parts not yet aligned
    number: int = 0
    ready: dict[int, tuple[str, int]] = field(default_factory=dict)  # waiting chunks, and their model and length

    @property
    def decoded_bytes(self) -> int:
        """Memory needed while it is called: int16 signal, and about as much again for the results."""
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
    """Up to N chunks of one model and one chunk length, from any reads of any streams."""

    model: str
    samples: int
    tasks: list[Task]


@dataclass(slots=True, kw_only=True)
class _ReadyClass:
    """The waiting chunks of one model and length."""

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
    """The amount of work at one moment."""

    reads_waiting: int
    chunks_waiting: int
    queued_samples: dict[Priority, int]  # of all reads without a result
    oldest_s: dict[Priority, float]  # age of the oldest such read; 0 if there are none


@dataclass(slots=True)
class _Flow:
    """A stream's reads in one lane."""

    last_tag: float = 0.0
    jobs: set[Job] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class _Stream:
    filled_s: float
    live_samples: float  # samples it may still send as LIVE
    live: _Flow = field(default_factory=_Flow)
    rest: _Flow = field(default_factory=_Flow)

    def of(self, is_live: bool) -> _Flow:
        return self.live if is_live else self.rest


class Scheduler:
    """Decides what the workers do next. Thread-safe.

    Every step takes at most logarithmic time in the number of streams and reads; a cancelled stream's leftovers are
    found through its reads.

    Parameters
    ----------
    batch_rows
        For each model, the number of chunks in a full batch.
    row_groups
        For each model, the number of chunks in whose multiples a batch costs time; default: a full batch.
    workers
        Workers that compute batches at the same time; they share the last chunks.
    card_batches
        Most batches on a GPU at a time, which computes a partial batch in the time of a full one. So a partial one goes
        only when the GPU has none, or when its chunks have waited for too long. None: there is no GPU.
    max_delay_s
        How long a chunk may wait for its batch to fill while the workers have nothing else to do; on a GPU half a
        second. If full batches of
        another length or model keep them busy, it may wait two seconds; LIVE reads within their share never wait longer
        than `max_delay_s`.
    decoded_bytes
        Limit for the decoded signal of all reads being called; one read is always allowed.
    live_share
        Share, from 0 to 1, of the samples served while other work waits that LIVE reads may have.
    live_rate_samples_per_s
        How many samples per second one stream may send as LIVE.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self,
        batch_rows: Mapping[str, int],
        max_delay_s: float,
        decoded_bytes: int,
        live_share: float = 0.3,
        live_rate_samples_per_s: float = 16e6,
        clock: Callable[[], float] = time.monotonic,
        row_groups: Mapping[str, int] | None = None,
        workers: int = 1,
        card_batches: int | None = None,
    ) -> None:
        self._batch_rows, self._max_delay_s, self._decoded_limit = batch_rows, max_delay_s, decoded_bytes
        self._live_share, self._live_rate = live_share, live_rate_samples_per_s
        self._row_groups, self._workers = row_groups or batch_rows, workers
        self._card_batches = card_batches
        self._computing = 0  # batches that were taken and not yet computed
        self._clock = clock
        self._waiting: _Lanes[Job] = _Lanes()
        self._ready: dict[tuple[str, int], _ReadyClass] = {}
        self._active: set[Job] = set()  # reads being called
        self._streams: dict[Hashable, _Stream] = {}
        self._unfinished: dict[Priority, dict[int, Job]] = {priority: {} for priority in Priority}  # oldest first
        self._queued_samples = dict.fromkeys(Priority, 0)
        self._decoded_bytes = 0  # of the active reads
        self._now = {True: 0.0, False: 0.0}  # virtual time of each lane (LIVE: True), in samples of service
        self._live_lead = 0.0  # samples by which LIVE has exceeded its share
        self._busy: Counter[tuple[Hashable, bool]] = Counter()  # per client and lane, its streams that have work
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
            # A stream that still has reads keeps its place: it pays for others' head start once, not again with every
            # read.
            job.tag = flow.last_tag if flow.jobs else max(self._now[job.is_live], flow.last_tag)
            flow.last_tag = job.tag + (job.read.samples + _READ_SAMPLES) * job.pace
            flow.jobs.add(job)
            job.number = next(self._numbers)
            self._queued_samples[job.settings.priority] += job.read.samples
            self._unfinished[job.settings.priority][job.number] = job
            self._waiting.of(job.is_live).push(job.tag + _handicap(job), job.number, job)
            self._changed.notify()

    def take(self) -> Job | Batch | None:
        """Wait for the next piece of work: a read to prepare or a batch to call; None if closed.

        Whoever takes a read to prepare must call `prepared` or `done` for it, and for a batch `computed`.
        """
        with self._changed:
            while not self._closed:
                work = self._next()
                if isinstance(work, Job | Batch):
                    self._changed.notify()  # another worker, in case there is more; all would come for nothing
                    return work
                self._changed.wait(work)
            return None

    def poll(self) -> Job | Batch | float | None:
        """Like `take`, but don't block. If there is nothing to do, return for how many seconds; None: indefinitely."""
        with self._changed:
            return None if self._closed else self._next()

    def computed(self) -> None:
        """Note that a batch is computed, so that a GPU can have another."""
        with self._changed:
            self._computing -= 1
            if self._card_batches is not None:
                self._changed.notify()

    def prepared(self, job: Job, pieces: Sequence[Piece]) -> None:
        """Queue the chunks of a prepared read."""
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
            self._changed.notify()

    def expect(self, job: Job, parts: int) -> None:
        """Set how many parts of the read will be aligned; `did_one` then counts them."""
        with self._changed:
            job.missing = parts

    def did_one(self, job: Job) -> bool:
        """Count one more chunk called or part aligned; True if it was the read's last."""
        with self._changed:
            job.missing -= 1
            return job.missing == 0

    def is_wanted(self, job: Job) -> bool:
        """Whether the read is still being called: it isn't finished, and its stream wasn't cancelled."""
        return job in self._active

    def done(self, job: Job) -> bool:
        """Free the memory of a read that is finished or given up. False if its stream was cancelled meanwhile."""
        with self._changed:
            if job not in self._active:
                return False
            self._forget(job)
            flow = self._streams[job.stream].of(job.is_live)
            flow.jobs.discard(job)
            if not flow.jobs:
                self._leave(job)
            if self._waiting:
                self._changed.notify()
            return True

    def cancel(self, stream: Hashable) -> None:
        """Drop all work of a stream."""
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
        """Make the workers stop: `take` returns None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def queued_samples(self) -> int:
        """Return the samples of all reads waiting or being called."""
        return sum(self._queued_samples.values())

    def load(self) -> Load:
        """Return how much work there is now."""
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
        """Return the next work, or for how long there is none.

        A batch that has waited too long goes first; then the full batch or read to prepare with the lowest key; then a
        partial batch whose delay is over. While a GPU has as many batches as it may have, reads are prepared.
        """
        now_s, live_first = self._clock(), self._live_lead < _LIVE_LEAD_SAMPLES
        has_room = self._card_batches is None or self._computing < self._card_batches
        filled = [ready for ready in self._ready.values() if ready.tasks] if has_room else []
        partial = [ready for ready in filled if not ready.is_full]
        due_s = math.inf  # when the first of them has waited too long
        for ready in partial:
            is_urgent = live_first and ready.tasks.live
            limit_s = ready.oldest_s + (self._max_delay_s if is_urgent else _MAX_OVERTAKEN_S)
            if now_s >= limit_s:
                return self._pop(ready, live_first)
            due_s = min(due_s, limit_s)
        full = min(
            (ready for ready in filled if ready.is_full), default=None, key=lambda ready: ready.tasks.rank(live_first)
        )
        if self._fits(live_first) and (full is None or self._waiting.rank(live_first) < full.tasks.rank(live_first)):
            return self._start(live_first)
        if full:
            return self._pop(full, live_first)
        if not partial:
            return None
        late = min(partial, key=lambda ready: ready.oldest_s)
        if self._card_batches is None:
            due_s = late.oldest_s + self._max_delay_s
        elif not self._computing:
            due_s = min(due_s, late.oldest_s + _CARD_PATIENCE_S)
        return due_s - now_s if due_s > now_s else self._pop(late, live_first)

    def _keeps_the_rate(self, stream: _Stream, samples: int) -> bool:
        """Return whether a stream may have `samples` more called as LIVE now, and deduct them if so."""
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
        """Note that this read's stream has no more work in its lane."""
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
        taken = [ready.tasks.next(live_first).pop() for _ in range(self._share(ready))]
        self._computing += 1
        live_samples = 0
        for task in taken:
            del task.job.ready[task.number]
            is_live = task.job.is_live
            self._now[is_live] = max(self._now[is_live], task.key - _handicap(task.job))
            live_samples += is_live * ready.samples
        rest_samples = len(taken) * ready.samples - live_samples
        if live_samples:  # what fills up a group of rows costs as much as chunks do
            live_samples += -len(taken) % self._row_groups[ready.model] * ready.samples
        self._serve(live_samples, rest_samples)
        return Batch(ready.model, ready.samples, taken)

    def _share(self, ready: _ReadyClass) -> int:
        """Return how many of the chunks to call at once: a batch, or less if so few are left that workers would idle.

        Not less than two groups of rows: weights are fetched for each batch.
        """
        most = min(ready.rows, len(ready.tasks))
        if self._workers == 1 or self._waiting:
            return most
        left_samples = sum(len(other.tasks) * other.samples for other in self._ready.values())
        share, group = -(-left_samples // (self._workers * ready.samples)), self._row_groups[ready.model]
        return min(most, max(-(-share // group), 2) * group)

    def _serve(self, live_samples: int, rest_samples: int) -> None:
        """Count served samples against LIVE's share; what LIVE gets while nobody else waits doesn't count."""
        if self._waiting.rest or any(ready.tasks.rest for ready in self._ready.values()):
            self._live_lead += live_samples * (1 - self._live_share)
        self._live_lead = min(max(0.0, self._live_lead - rest_samples * self._live_share), 2 * _LIVE_LEAD_SAMPLES)

    def _forget(self, job: Job) -> None:
        """Remove a read and its waiting chunks everywhere except from its stream."""
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
    """Return the head start that others in its lane have over this read."""
    if job.is_live:
        return 0
    return max(job.settings.priority.value, Priority.STANDARD.value)  # LIVE ones beyond their rate are STANDARD
