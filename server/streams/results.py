"""A RESULTS stream: submits complete reads to the scheduler, sends numbered results, and tracks acknowledgements.

Runs on the event loop; only `_deliver` is called from the workers' threads.
"""

import time
from collections import deque
from collections.abc import Hashable
from typing import Protocol

import structlog

from porestream.server.calling.scheduler import Job
from porestream.server.metrics import (
    READ_LATENCY_SECONDS,
    READS_DEFERRED,
    READS_FAILED,
    READS_REJECTED,
    STAGE_WAIT_SECONDS,
    Deferred,
)
from porestream.server.reads import (
    CallSettings,
    Chunk,
    InputFault,
    OpenRead,
    ReadResult,
    Reason,
    Status,
    StreamFault,
    max_encoded_bytes,
)
from porestream.server.streams import budget
from porestream.server.streams.books import StreamBooks
from porestream.server.streams.budget import CHUNK_OVERHEAD_BYTES, MAX_CHUNK_SAMPLES, READ_OVERHEAD_BYTES, MemoryBudget
from porestream.server.streams.session import Output, Results, Session

log = structlog.get_logger()

MAX_OPEN_READS = 16_384
_AHEAD_SHARE = 4  # credit in advance of what was received: a quarter of the window
_RESULTS_A_MESSAGE = 64
_RESULT_MESSAGE_BYTES = 1 << 20
_CALLED = (Status.CALLED, Status.FILTERED)
GATHER_S = 0.01  # least time between two messages of results, while more results are coming


class Orders(Protocol):
    """Takes complete reads to be called: the scheduler."""

    def submit(self, job: Job) -> None:
        """Queue a read to be called; its result may be delivered from any thread."""

    def cancel(self, stream: Hashable) -> None:
        """Drop a stream's reads."""


def rejected_samples(output: Output) -> int:
    """Return the samples of the rejected reads in the output."""
    results = output.results if isinstance(output, Results) else ()
    return sum(result.signal_samples for result in results if result.status is Status.REJECTED)


class ResultsSession(Session):
    """One RESULTS stream.

    Parameters
    ----------
    settings
        What the stream asked for.
    orders, budget, books
        The scheduler and the memory budget, shared with the other streams, and the stream's own books.
    max_read_samples
        Longer reads are rejected.
    client, heartbeat_s
        See `Session`.
    """

    def __init__(
        self,
        settings: CallSettings,
        orders: Orders,
        budget: MemoryBudget,
        books: StreamBooks,
        *,
        max_read_samples: int,
        window_samples: int,
        heartbeat_s: float,
        client: Hashable = None,
    ) -> None:
        self.settings, self._orders = settings, orders
        self._max_read_samples = max_read_samples
        self._window_samples = window_samples  # while the complete reads exceed this, there is no more credit
        self._open: dict[bytes, OpenRead] = {}
        self._refused: set[bytes] = set()  # rejected or sent back, but their end was not received yet
        self._sent_back: set[bytes] = set()  # those of them that the client may send again
        self._running: dict[Job, int] = {}  # complete reads and the bytes they are charged for
        self._running_samples = 0
        self._delivered: deque[tuple[Job, ReadResult]] = deque()  # results on their way to the event loop
        self._is_told = False  # whether the event loop will take them
        self._unsent: deque[tuple[ReadResult, int, float]] = deque()  # with bytes charged, and when the read completed
        self._unacknowledged: deque[tuple[Status, bool]] = deque()
        self._sent_seq = self._acknowledged_seq = 0
        self._results_s = 0.0  # when results were last sent
        self._aligns = bool(settings.reference)
        self._priority = settings.priority.name.lower()
        super().__init__(
            budget, books, heartbeat_s=heartbeat_s, ahead_samples=window_samples // _AHEAD_SHARE, client=client
        )

    # what the client says

    def _take(self, chunk: Chunk) -> bool:
        if chunk.first_sample == 0 and chunk.read_id in self._sent_back:  # the client resends it
            self._sent_back.discard(chunk.read_id)
            self._refused.discard(chunk.read_id)
        if chunk.read_id in self._refused:
            if chunk.end_of_read:
                self._refused.discard(chunk.read_id)
                self._sent_back.discard(chunk.read_id)
            return False
        read = self._open.get(chunk.read_id)
        if read is None:
            if len(self._open) + len(self._refused) >= MAX_OPEN_READS:
                raise StreamFault("RESOURCE_EXHAUSTED", f"more than {MAX_OPEN_READS} reads are open in one stream")
            read = self._open[chunk.read_id] = OpenRead(
                read_id=chunk.read_id, channel=chunk.channel, calibration=chunk.calibration
            )
            self._hold(read, READ_OVERHEAD_BYTES)
            self._books.receive()
        try:
            _check_size(chunk)
            read.append(chunk)
            read.grown_s = time.monotonic()
            self._books.samples(chunk.piece.sample_count)
            self._hold(read, len(chunk.piece.signal) + CHUNK_OVERHEAD_BYTES)
            if read.samples > self._max_read_samples:
                raise InputFault(Reason.TOO_LONG, f"too long: more than {self._max_read_samples} samples")
            if chunk.end_of_read:
                read.check_complete()
                self._run(read)
        except InputFault as fault:
            self._reject(read, fault.reason, str(fault))
            if not chunk.end_of_read:
                self._refused.add(chunk.read_id)
        return True

    def acknowledge(self, seq: int) -> None:
        """Note that the client has stored the results up to `seq`."""
        if not self._acknowledged_seq <= seq <= self._sent_seq:
            raise StreamFault(
                "INVALID_ARGUMENT",
                f"result_ack {seq} is out of range: {self._sent_seq} results were sent, "
                f"{self._acknowledged_seq} are already acknowledged",
            )
        while self._acknowledged_seq < seq:
            self._acknowledged_seq += 1
            status, aligned = self._unacknowledged.popleft()
            self._books.close(status, to_align=self._aligns and status in _CALLED, aligned=aligned)
            self._budget.charge(self, -CHUNK_OVERHEAD_BYTES)
        self._changed.set()

    def _signal_ended(self, *, was_said: bool) -> None:
        for read in list(self._open.values()):
            if self._drain or not was_said:
                self._drop(read)
                self._books.abandon(1)
            else:
                self._reject(read, Reason.INCOMPLETE, "incomplete: the stream was half-closed before the read's end")

    # what the server says

    def _ready_in_s(self, now_s: float) -> float | None:
        if not self._unsent:
            return None
        is_full = not self._running or len(self._unsent) >= _RESULTS_A_MESSAGE
        return 0.0 if is_full else max(0.0, self._results_s + GATHER_S - now_s)

    def _take_output(self) -> Output:
        results = self._next_results()
        self._results_s = time.monotonic()
        return results

    def _next_results(self) -> Results:
        results: list[ReadResult] = []
        size = 0
        now_s = time.monotonic()
        while self._unsent and len(results) < _RESULTS_A_MESSAGE and size < _RESULT_MESSAGE_BYTES:
            result, charged, complete_s = self._unsent.popleft()
            if complete_s:
                latency_s = now_s - complete_s
                READ_LATENCY_SECONDS.labels(self._priority).observe(latency_s)
                STAGE_WAIT_SECONDS.labels("deliver").observe(max(0.0, latency_s - result.timings.total_s))
            size += charged
            results.append(result)
            aligned = any(part.alignments for part in result.parts)
            self._unacknowledged.append((result.status, aligned))
            self._budget.charge(self, CHUNK_OVERHEAD_BYTES - charged)
        first = self._sent_seq + 1
        self._sent_seq += len(results)
        return Results(first, results)

    def _holds_nothing(self) -> bool:
        if self._open or self._running or self._unsent:
            return False
        return self._requests_ended or not self._unacknowledged

    @property
    def held_reads(self) -> int:
        """Number of reads without an acknowledged result."""
        return len(self._open) + len(self._running) + self.unsent_results + self.unacknowledged_results

    @property
    def unsent_results(self) -> int:
        """Number of results waiting to be sent."""
        return len(self._unsent)

    @property
    def unacknowledged_results(self) -> int:
        """Number of results sent that the client has not stored yet."""
        return len(self._unacknowledged)

    def close(self) -> None:
        """Release everything the stream holds; reads without an acknowledged result count as abandoned."""
        self._orders.cancel(self)
        self._books.abandon(self.held_reads)
        self._open.clear()
        self._running.clear()
        self._unsent.clear()
        self._unacknowledged.clear()
        super().close()

    # reads

    def _run(self, read: OpenRead) -> None:
        del self._open[read.read_id]
        job = Job(stream=self, settings=self.settings, read=read, deliver=self._deliver, client=self.client)
        self._running[job] = read.held_bytes
        self._running_samples += read.samples
        self._orders.submit(job)

    def _deliver(self, job: Job, result: ReadResult) -> None:
        """Pass a result to the event loop. Called from workers' threads; they wake it once for all that waits."""
        self._delivered.append((job, result))
        if not self._is_told:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._take_delivered)

    def _take_delivered(self) -> None:
        self._is_told = False  # first: what is appended from now on is told again
        while self._delivered:
            self._finished(*self._delivered.popleft())
        self.extend_credit()

    def _finished(self, job: Job, result: ReadResult) -> None:
        held = self._running.pop(job, None)
        if held is None:  # the stream ended meanwhile
            return
        self._running_samples -= job.read.samples
        self._books.finish(result)
        self._emit(result, held, job.submitted_s)

    def _reject(self, read: OpenRead, reason: Reason, detail: str) -> None:
        log.info("read rejected", read_id=read.name, reason=reason.value, detail=detail)
        result = ReadResult(
            read_id=read.read_id,
            channel=read.channel,
            status=Status.REJECTED,
            detail=detail,
            signal_samples=read.samples,
            cause=reason,
        )
        self._end_open(read, result)

    def _end_open(self, read: OpenRead, result: ReadResult) -> None:
        held = read.held_bytes
        read.pieces.clear()
        self._open.pop(read.read_id, None)
        self._books.finish(result)
        self._emit(result, held, 0.0)

    def _emit(self, result: ReadResult, held_bytes: int, complete_s: float) -> None:
        if result.cause:
            counter = READS_REJECTED if result.status is Status.REJECTED else READS_FAILED
            counter.labels(result.cause.value).inc()
        charged = result.size_bytes
        self._budget.charge(self, charged - held_bytes)
        self._unsent.append((result, charged, complete_s))
        self._changed.set()

    def _hold(self, read: OpenRead, size: int) -> None:
        read.held_bytes += size
        self._budget.charge(self, size)

    def _drop(self, read: OpenRead) -> None:
        del self._open[read.read_id]
        self._budget.charge(self, -read.held_bytes)

    # memory: the Account of server/streams/budget.py

    def longest_open_read(self) -> int:
        """Return the bytes held by the largest open read; 0 if none is open."""
        return max((read.held_bytes for read in self._open.values()), default=0)

    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        """Make room by ending the largest open read; later chunks of it are dropped."""
        read = max(self._open.values(), key=lambda open_read: open_read.held_bytes)
        if for_others:
            self._send_back(
                read, Deferred.OTHERS, "its memory was needed for other clients' reads; send it again later"
            )
        else:
            self._reject(read, Reason.MEMORY, detail)
            self._refused.add(read.read_id)

    def give_up_idle_read(self) -> bool:
        """Send back the largest open read that got no signal for a while although the client had credit.

        False if there is none.
        """
        if not self._open or self._granted - self._used < MAX_CHUNK_SAMPLES:
            return False
        before_s = time.monotonic() - budget.IDLE_READ_S
        idle = [read for read in self._open.values() if max(read.grown_s, self._credited_s) < before_s]
        if not idle:
            return False
        largest = max(idle, key=lambda read: read.held_bytes)
        self._send_back(
            largest,
            Deferred.IDLE,
            f"no signal came for {budget.IDLE_READ_S:g} s, and its memory was needed; send it again later",
        )
        return True

    def _send_back(self, read: OpenRead, reason: Deferred, detail: str) -> None:
        READS_DEFERRED.labels(reason).inc()
        log.info("read sent back", read_id=read.name, reason=reason)
        self._refused.add(read.read_id)
        self._sent_back.add(read.read_id)
        self._end_open(
            read,
            ReadResult(
                read_id=read.read_id,
                channel=read.channel,
                status=Status.TRY_AGAIN,
                detail=detail,
                signal_samples=read.samples,
            ),
        )

    def is_busy(self) -> bool:
        """Whether complete reads or unsent results are held, which will free their memory by themselves."""
        return bool(self._running or self._unsent)

    def _has_enough(self) -> bool:
        return self._running_samples > self._window_samples


def _check_size(chunk: Chunk) -> None:
    piece = chunk.piece
    if piece.sample_count > MAX_CHUNK_SAMPLES:
        raise InputFault(
            Reason.CHUNK_SIZE,
            f"a chunk claims {piece.sample_count} samples; a chunk may have at most {MAX_CHUNK_SAMPLES}",
        )
    if len(piece.signal) > max_encoded_bytes(piece.sample_count):
        raise InputFault(
            Reason.CHUNK_SIZE,
            f"a chunk of {piece.sample_count} samples has {len(piece.signal)} bytes of signal, which is too much",
        )
