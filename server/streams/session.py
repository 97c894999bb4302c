"""What all streams have in common: credit, memory, heartbeat, drain and end. Subclasses (results.py) do the rest.

Runs on the event loop. Independent of protobuf and gRPC: input and output are plain values.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass

from porestream.server.reads import Chunk, ReadResult, StreamFault
from porestream.server.streams.books import StreamBooks
from porestream.server.streams.budget import (
    BYTES_PER_CREDIT_SAMPLE,
    MAX_CHUNK_SAMPLES,
    MIN_CHUNK_CREDIT_SAMPLES,
    MemoryBudget,
)

RETRY_S = 0.2  # how often a stream waiting for memory checks whether others must give some up


@dataclass(frozen=True, slots=True)
class CreditGrant:
    """The most samples that the client may send over the lifetime of the connection."""

    max_total_samples: int


@dataclass(frozen=True, slots=True)
class Results:
    """Results, numbered consecutively from `first_seq`."""

    first_seq: int
    results: list[ReadResult]


@dataclass(frozen=True, slots=True)
class Drain:
    """The server is going away; the client should continue elsewhere."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat, sent when nothing else was for the heartbeat interval."""


Output = CreditGrant | Results | Drain | Beat


class Session(ABC):
    """One stream; it is also the `budget.Account` of its memory.

    Parameters
    ----------
    budget, books
        The memory budget, shared with the other streams, and the stream's own books.
    client
        The stream's client; None: the stream counts as a client of its own.
    heartbeat_s
        Longest silence of either side; after four times that without a message from the client the stream ends.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        books: StreamBooks,
        *,
        heartbeat_s: float,
        ahead_samples: int,
        client: Hashable = None,
    ) -> None:
        self._budget, self._books, self._heartbeat_s = budget, books, heartbeat_s
        self._ahead_samples = ahead_samples  # credit that the stream gets in advance, memory permitting
        self.client = client or self
        self._loop = asyncio.get_running_loop()
        self._credited_s = time.monotonic()  # since when the client has had credit
        self._starving_s: float | None = None  # since when there has been no memory for the next chunk
        self._changed = asyncio.Event()
        self._granted = self._used = self._announced = 0
        self.taken_samples = 0  # credit used for useful signal
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
            The client violated the protocol in a way that isn't specific to one read.
        """
        if self._half_closed:
            raise StreamFault("INVALID_ARGUMENT", "the client sent signal after half_close")
        piece = chunk.piece
        cost = max(piece.sample_count, MIN_CHUNK_CREDIT_SAMPLES)
        if piece.sample_count > MAX_CHUNK_SAMPLES:  # its read will be rejected, so don't charge more than is left
            cost = max(min(cost, self._granted - self._used), MIN_CHUNK_CREDIT_SAMPLES)
        if self._used + cost > self._granted:
            raise StreamFault(
                "RESOURCE_EXHAUSTED",
                f"credit exceeded: {self._used + cost} samples sent, but only {self._granted} granted",
            )
        self._used += cost
        self._budget.charge(self, -cost * BYTES_PER_CREDIT_SAMPLE)
        try:
            if self._take(chunk):
                self.taken_samples += cost
        finally:
            self.extend_credit()

    def half_close(self) -> None:
        """Note that the client will send no more signal."""
        self._half_closed = True
        self._signal_ended(was_said=True)
        self._changed.set()

    def requests_ended(self) -> None:
        """Note that the client closed its side and will send nothing more."""
        self._requests_ended = True
        if not self._half_closed:
            self._half_closed = True
            self._signal_ended(was_said=False)
        self._changed.set()

    def heard(self) -> None:
        """Note that the client sent a message."""
        self._heard_s = time.monotonic()

    # what the server says

    def first_credit(self) -> int:
        """Return the stream's initial credit, in samples."""
        self._announced = self._granted
        return self._granted

    async def outputs(self) -> AsyncIterator[Output]:
        """Yield what to send, until the stream ends.

        Raises
        ------
        StreamFault
            The stream must end with a status other than OK.
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
                    raise StreamFault("UNAVAILABLE", "the server has drained; continue with another one")
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
        """Tell the client to continue elsewhere; the server still finishes complete reads."""
        self._drain = Drain(grace_s)
        self._changed.set()

    def fail(self, fault: StreamFault) -> None:
        """End the stream with this status."""
        self._fault = self._fault or fault
        self._changed.set()

    def close(self) -> None:
        """Release the stream's memory; to be called when it is over, however it ended."""
        self._closed = True
        self._books.stalled(False)
        self._budget.close(self)

    # what subclasses do

    @abstractmethod
    def _take(self, chunk: Chunk) -> bool:
        """Handle a chunk within the credit. Return whether it was useful; chunks of reads that have ended are not."""

    @abstractmethod
    def _signal_ended(self, *, was_said: bool) -> None:
        """Handle the end of signal: the client announced it (`was_said`), or just left."""

    @abstractmethod
    def _ready_in_s(self, now_s: float) -> float | None:
        """Return in how many seconds there will be something to send; None if nothing is pending."""

    @abstractmethod
    def _take_output(self) -> Output:
        """Return what is ready to send."""

    @abstractmethod
    def _holds_nothing(self) -> bool:
        """Whether everything the client asked for is done."""

    @abstractmethod
    def _has_enough(self) -> bool:
        """Whether there is so much work already that more credit can wait."""

    @property
    @abstractmethod
    def held_reads(self) -> int:
        """Number of reads that should be open in the books."""

    @property
    @abstractmethod
    def unsent_results(self) -> int:
        """Number of results waiting to be sent."""

    @property
    @abstractmethod
    def unacknowledged_results(self) -> int:
        """Number of results sent that the client has not stored yet."""

    @abstractmethod
    def longest_open_read(self) -> int:
        """Return the bytes held by the largest open read; 0 if none is open."""

    @abstractmethod
    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        """Make room by ending the largest open read; later chunks of it are dropped."""

    @abstractmethod
    def give_up_idle_read(self) -> bool:
        """Make room by sending back the largest open read that got no signal for a while; False if there is none."""

    @abstractmethod
    def is_busy(self) -> bool:
        """Whether it holds something that will free its memory by itself."""

    # memory: the Account of server/streams/budget.py

    def memory_was_freed(self) -> None:
        """Try again soon to extend the credit."""
        self._loop.call_soon(self.extend_credit)

    def extend_credit(self) -> None:
        """Let the client send more if there is memory and not yet enough work.

        While nothing is runnable, the client may always send the next chunk, because the read that would make room may
        need it. If all else fails, the longest open read is rejected or sent back.
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
        # The window grows with use, so that idle streams tie up little memory, and none of the pool.
        window = min(max(self._used, min(4 * MAX_CHUNK_SAMPLES, share)), self._ahead_samples)
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
                if not self._is_retrying:  # no event tells when a read becomes idle, so poll
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
