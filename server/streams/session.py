"""What every stream has: its credit and memory, heartbeat, drain and end. What it is for is a subclass's: results.py.

Lives on the event loop. Knows neither protobuf nor gRPC: it takes values, and its outputs are values.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass

from porestream.server.streams.books import StreamBooks
from porestream.server.streams.budget import (
    BYTES_PER_CREDIT_SAMPLE,
    MAX_CHUNK_SAMPLES,
    MIN_CHUNK_CREDIT_SAMPLES,
    MemoryBudget,
)
from porestream.server.streams.reads import Chunk, ReadResult, StreamFault

_WINDOW_SAMPLES = 2_000_000  # credit that a stream is given ahead, memory permitting
RETRY_S = 0.2  # of a stream that waits for memory which others may have to give up


@dataclass(frozen=True, slots=True)
class CreditGrant:
    """The most samples that the client may send over the connection's life."""

    max_total_samples: int


@dataclass(frozen=True, slots=True)
class Results:
    """Results, numbered from `first_seq` without gaps."""

    first_seq: int
    results: list[ReadResult]


@dataclass(frozen=True, slots=True)
class Drain:
    """The server is going away: go on elsewhere."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """Nothing happened for the heartbeat interval."""


Output = CreditGrant | Results | Drain | Beat


class Session(ABC):
    """One stream; `budget.Account` of its memory.

    Parameters
    ----------
    budget, books
        Shared with the other streams, but for the books.
    client
        Whose stream it is; None: one of its own.
    heartbeat_s
        Longest silence of either side; four of them without a word from the client end the stream.
    """

    def __init__(
        self, budget: MemoryBudget, books: StreamBooks, *, heartbeat_s: float, client: Hashable = None
    ) -> None:
        self._budget, self._books, self._heartbeat_s = budget, books, heartbeat_s
        self.client = client or self
        self._loop = asyncio.get_running_loop()
        self._credited_s = time.monotonic()  # since when the client may send
        self._starving_s: float | None = None  # since when there is no memory for the next chunk
        self._changed = asyncio.Event()
        self._granted = self._used = self._announced = 0
        self.taken_samples = 0  # credit that was used for what is of use
        self._half_closed = self._requests_ended = self._closed = self._is_retrying = False
        self._drain: Drain | None = None
        self._fault: StreamFault | None = None
        self._heard_s = time.monotonic()
        budget.open(self)
        self.extend_credit()

    # what the client says

    def receive(self, chunk: Chunk) -> None:
        """Take one chunk.

        Raises
        ------
        StreamFault
            The client broke the contract in a way that no single read can answer for.
        """
        if self._half_closed:
            raise StreamFault("INVALID_ARGUMENT", "signal after half_close")
        piece = chunk.piece
        cost = max(piece.sample_count, MIN_CHUNK_CREDIT_SAMPLES)
        if piece.sample_count > MAX_CHUNK_SAMPLES:  # for this its read is rejected, so it takes no more than there is
            cost = max(min(cost, self._granted - self._used), MIN_CHUNK_CREDIT_SAMPLES)
        if self._used + cost > self._granted:
            raise StreamFault(
                "RESOURCE_EXHAUSTED", f"credit exceeded: {self._used + cost} samples sent, {self._granted} granted"
            )
        self._used += cost
        self._budget.charge(self, -cost * BYTES_PER_CREDIT_SAMPLE)
        try:
            if self._take(chunk):
                self.taken_samples += cost
        finally:
            self.extend_credit()

    def half_close(self) -> None:
        """No more signal will come."""
        self._half_closed = True
        self._signal_ended(was_said=True)
        self._changed.set()

    def requests_ended(self) -> None:
        """The client closed its side: nothing more will come of it."""
        self._requests_ended = True
        if not self._half_closed:
            self._half_closed = True
            self._signal_ended(was_said=False)
        self._changed.set()

    def heard(self) -> None:
        """The client sent something."""
        self._heard_s = time.monotonic()

    # what the server says

    def first_credit(self) -> int:
        """The credit that the stream begins with, in samples."""
        self._announced = self._granted
        return self._granted

    async def outputs(self) -> AsyncIterator[Output]:
        """What is to be sent, until the stream's end.

        Raises
        ------
        StreamFault
            The stream is to end with a status other than OK.
        """
        draining = False
        sent_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            wait_s = sent_s + self._heartbeat_s - now_s
            ready_in_s = self._ready_in_s(now_s)
            if self._fault:
                raise self._fault
            if self._drain and not draining:
                draining = True
                yield self._drain
                sent_s = time.monotonic()
            elif ready_in_s == 0:
                yield self._take_output()
                sent_s = time.monotonic()
                self.extend_credit()
            elif self._granted > self._announced and not self._half_closed:
                self._announced = self._granted
                yield CreditGrant(self._granted)
                sent_s = time.monotonic()
            elif self._half_closed and self._holds_nothing():
                if draining:
                    raise StreamFault("UNAVAILABLE", "drained: go on with another server")
                return
            elif ready_in_s is not None:
                await asyncio.sleep(ready_in_s)
            elif wait_s <= 0:
                yield Beat()
                sent_s = time.monotonic()
            else:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            silent_s = time.monotonic() - self._heard_s
            if silent_s > 4 * self._heartbeat_s and not self._requests_ended:
                raise StreamFault("DEADLINE_EXCEEDED", f"the client was silent for {silent_s:.0f} s")

    def drain(self, grace_s: float) -> None:
        """Tell the client to go on elsewhere; complete reads are finished."""
        self._drain = Drain(grace_s)
        self._changed.set()

    def fail(self, fault: StreamFault) -> None:
        """End the stream with a status."""
        self._fault = self._fault or fault
        self._changed.set()

    def close(self) -> None:
        """The stream is over, however it ended."""
        self._closed = True
        self._books.stalled(False)
        self._budget.close(self)

    # what it is for

    @abstractmethod
    def _take(self, chunk: Chunk) -> bool:
        """A chunk came, within the credit. Whether it is of any use: those of reads that have ended are not."""

    @abstractmethod
    def _signal_ended(self, *, was_said: bool) -> None:
        """No more will come: the client said so, or was gone."""

    @abstractmethod
    def _ready_in_s(self, now_s: float) -> float | None:
        """In how many seconds there is something to be sent; None: nothing."""

    @abstractmethod
    def _take_output(self) -> Output:
        """What is ready."""

    @abstractmethod
    def _holds_nothing(self) -> bool:
        """Whether all is done that the client has asked for."""

    @abstractmethod
    def _has_enough(self) -> bool:
        """Whether there is so much to do already that credit can wait."""

    @property
    @abstractmethod
    def held_reads(self) -> int:
        """Reads that the books have as open."""

    @property
    @abstractmethod
    def unsent_results(self) -> int:
        """Results that wait to be sent."""

    @property
    @abstractmethod
    def unacknowledged_results(self) -> int:
        """Results that were sent and wait to be stored by the client."""

    @abstractmethod
    def longest_open_read(self) -> int:
        """Bytes held by the largest open read; 0: none."""

    @abstractmethod
    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        """Make room: that read ends, and what still comes of it is dropped."""

    @abstractmethod
    def give_up_idle_read(self) -> bool:
        """Make room: send back the largest open read that has not grown for long; False: none."""

    @abstractmethod
    def is_busy(self) -> bool:
        """Whether something is held that gives its memory back by itself."""

    # memory: the Account of server/streams/budget.py

    def memory_was_freed(self) -> None:
        """Try again to extend the credit, soon."""
        self._loop.call_soon(self.extend_credit)

    def extend_credit(self) -> None:
        """Let the client send more, if there is memory, and less than enough to do already.

        While nothing is runnable the next chunk may always come, for the read that would make room may need it: if all
        else fails, the longest open read is rejected.
        """
        if self._closed or self._half_closed or self._drain:
            self._books.stalled(False)
            return
        if not self._has_enough():
            self._extend()
        self._books.stalled(self._granted - self._used < MAX_CHUNK_SAMPLES)

    def _extend(self) -> None:
        outstanding = self._granted - self._used
        share = self._budget.share_bytes // BYTES_PER_CREDIT_SAMPLE
        # Grows with use: idle streams tie up little, and nothing of the pool.
        window = min(max(self._used, min(4 * MAX_CHUNK_SAMPLES, share)), _WINDOW_SAMPLES)
        if outstanding >= window // 2:
            return
        self._grant(min(window - outstanding, self._room(starving=False)))
        needed = MAX_CHUNK_SAMPLES - (self._granted - self._used)
        if needed <= 0 or self.is_busy():
            self._starving_s = None
            return
        while self._room(starving=True) < needed:
            now_s = time.monotonic()
            self._starving_s = self._starving_s or now_s
            if not self._budget.evict_for(self, now_s - self._starving_s):
                self._budget.wait(self, needed * BYTES_PER_CREDIT_SAMPLE)
                if not self._is_retrying:  # reads become idle without anybody's doing
                    self._is_retrying = True
                    self._loop.call_later(RETRY_S, self._retry)
                return
        self._starving_s = None
        self._grant(needed)

    def _retry(self) -> None:
        self._is_retrying = False
        self.extend_credit()

    def _room(self, *, starving: bool) -> int:
        return self._budget.room_bytes(self, starving=starving) // BYTES_PER_CREDIT_SAMPLE

    def _grant(self, samples: int) -> None:
        if samples < MAX_CHUNK_SAMPLES and self._granted - self._used + samples < MAX_CHUNK_SAMPLES:
            return
        if self._granted - self._used < MAX_CHUNK_SAMPLES:
            self._credited_s = time.monotonic()
        self._granted += samples
        self._budget.charge(self, samples * BYTES_PER_CREDIT_SAMPLE)
        self._changed.set()
