"""The memory budget: how much signal each stream may have on the server.

Half of the budget is for the signal and unsent results of all streams, a quarter for the decoded signal of reads being
called, and the rest for messages in transit and the allocator. Half of the signal memory is divided equally: every
stream is guaranteed its share. The other half is a pool. A stream may borrow from it as long as it holds no more of it
than is still free (dynamic thresholds, Choudhury and Hahne, 1998), so one greedy stream can never use up the pool.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Protocol

BYTES_PER_CREDIT_SAMPLE = 4
"""Bytes charged for a sample that was granted but not yet received: int16, padded for small chunks' overhead."""

LEAST_WINDOW_SAMPLES = 8_000_000
"""Signal of reads without a result that every stream may have on the way, memory permitting."""

MAX_CHUNK_SAMPLES = 131_072
MIN_CHUNK_CREDIT_SAMPLES = 1024
CHUNK_OVERHEAD_BYTES = 256
IDLE_READ_S = 30.0  # after this time without new signal, an open read may be sent back if memory is needed
BUSY_PATIENCE_S = 60.0  # how long a stream waits for complete reads to free memory
_CHUNK_BYTES = MAX_CHUNK_SAMPLES * BYTES_PER_CREDIT_SAMPLE
READ_OVERHEAD_BYTES = 1024


class BudgetError(ValueError):
    """Raised if the memory budget is too small for the number of streams."""


class Account(Protocol):
    """A stream, as the budget sees it."""

    client: Hashable
    """The stream's client; what a client's streams borrow is added up."""

    def longest_open_read(self) -> int:
        """Return the bytes held by its largest open read; 0 if none is open."""

    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        """End that read and free its memory. With `for_others` the client may send it again."""

    def give_up_idle_read(self) -> bool:
        """End an open read that got no signal for a while although it could have. False if there is none.

        The client may send it again.
        """

    def is_busy(self) -> bool:
        """Whether it holds complete reads, which will free memory by themselves."""

    def memory_was_freed(self) -> None:
        """Try again to extend the credit, but later: the caller is in the middle of freeing memory."""


class MemoryBudget:
    """Shares `total_bytes` among at most `max_streams` streams.

    Raises
    ------
    BudgetError
        A stream's guaranteed share is too small for two of the largest chunks.
    """

    def __init__(self, total_bytes: int, max_streams: int) -> None:
        self.total_bytes = total_bytes
        self.signal_bytes = total_bytes // 2
        self.decoded_bytes = total_bytes // 4
        self.share_bytes = self.signal_bytes // 2 // max_streams
        self.pool_bytes = self.signal_bytes - self.share_bytes * max_streams
        self._charges: dict[Account, int] = {}
        self._charged_bytes = 0  # by all streams
        self._borrowers: dict[Account, int] = {}  # bytes that each stream has borrowed from the pool
        self._lent_bytes = 0  # by the pool
        self._waiting: dict[Account, int] = {}  # bytes that each waiting stream needs
        needed = 2 * MAX_CHUNK_SAMPLES * BYTES_PER_CREDIT_SAMPLE
        if self.share_bytes < needed:
            fitting = total_bytes // (4 * needed)
            raise BudgetError(
                f"--memory-budget {total_bytes} is too small for --max-streams {max_streams}; raise it to at least "
                f"{4 * needed * max_streams}" + (f", or allow at most {fitting} streams" if fitting else "")
            )

    def open(self, account: Account) -> None:
        """Admit a stream."""
        self._charges[account] = 0

    def close(self, account: Account) -> None:
        """Remove a stream and free its memory for the others."""
        self._waiting.pop(account, None)
        self.charge(account, -self._charges[account])
        del self._charges[account]

    def window_samples(self, batch_samples: int) -> int:
        """Return how much signal a stream may have in reads without a result, so that it can keep a GPU busy alone.

        That is three of the largest batches: one is computed, one waits for that, one is filled.
        """
        return max(LEAST_WINDOW_SAMPLES, min(3 * batch_samples, self.signal_bytes // (2 * BYTES_PER_CREDIT_SAMPLE)))

    def charge(self, account: Account, change_bytes: int) -> None:
        """Record that the stream holds more or less memory. Streams waiting for memory are woken when some is freed."""
        before = self._borrowers.pop(account, 0)
        self._charged_bytes += change_bytes
        charged = self._charges[account] = self._charges[account] + change_bytes
        borrowed = max(0, charged - self.share_bytes)
        if borrowed:
            self._borrowers[account] = borrowed
        self._lent_bytes += borrowed - before
        if change_bytes < 0 and self._waiting:
            self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Wake waiting streams that now have enough room, starting with those whose clients borrow least.

        Don't wake the others: when many streams wait for a full pool, every message frees a little memory for a moment,
        and the server would spend most of its time on retries that fail.
        """
        fitting = [other for other, needed in self._waiting.items() if self.room_bytes(other, starving=True) >= needed]
        if not fitting:
            return
        borrowed, promised = self._borrowed_by_client(), 0
        for other in sorted(fitting, key=lambda one: borrowed[one.client]):
            if self.room_bytes(other, starving=True) - promised >= self._waiting[other]:
                own = max(0, self.share_bytes - self._charges[other])
                promised += max(0, self._waiting.pop(other) - own)
                other.memory_was_freed()

    def _borrowed_by_client(self) -> Counter[Hashable]:
        borrowed: Counter[Hashable] = Counter()
        for account, size in self._borrowers.items():
            borrowed[account.client] += size
        return borrowed

    def charged_bytes(self, account: Account | None = None) -> int:
        """Return the bytes charged to one stream, or to all: signal, unsent results and unused credit."""
        return self._charges[account] if account else self._charged_bytes

    def room_bytes(self, account: Account, *, starving: bool) -> int:
        """Return how many more bytes the stream may take. If it is `starving`, it may use all of the free pool."""
        free = self.pool_bytes - self._lent_bytes
        own = max(0, self.share_bytes - self._charges[account])
        return own + max(0, free if starving else (free - self._borrowers.get(account, 0)) // 2)

    def wait(self, account: Account, needed_bytes: int) -> None:
        """Wake the stream when it has room for `needed_bytes`."""
        self._waiting[account] = needed_bytes

    def evict_for(self, account: Account, starved_s: float) -> bool:
        """Make room for a stream that cannot get signal and has waited for `starved_s`. True if room was made.

        An idle read goes first, whoever holds it. Otherwise, if a borrower has complete reads, memory will come back by
        itself, so the stream waits for a while. Otherwise open reads hold all of the memory, and maybe none of them
        will ever fit: the client that borrows most beyond its shares gives up its longest read. The client may send it
        again, unless it is the starving stream's own read: that one is too long, but only after other streams' reads
        have had time to become idle.
        """
        holders = [*(other for other in self._borrowers if other is not account), account]
        if any(other.give_up_idle_read() for other in holders):
            return True
        if starved_s < BUSY_PATIENCE_S and any(other.is_busy() for other in holders):
            return False
        borrowed = self._borrowed_by_client()
        owing = [other for other in holders if other.longest_open_read()]
        if not owing:
            return False
        victim = max(owing, key=lambda other: (borrowed[other.client], other.longest_open_read()))
        others_bytes = self._lent_bytes - self._borrowers.get(account, 0)
        if victim is account and others_bytes >= _CHUNK_BYTES and starved_s < IDLE_READ_S + 10:
            return False
        victim.give_up_longest_open_read(
            f"too long: the server's memory budget of {self.total_bytes} bytes has no room for it and the other open "
            "reads",
            for_others=victim is not account,
        )
        return True
