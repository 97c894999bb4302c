"""Memory as a budget: how much signal each stream may have on the server.

Half of the budget holds signal and unsent results of all streams; a quarter holds reads that are being called, decoded;
the rest is room for messages in transit and the allocator. Every stream is guaranteed an equal share of half of the
signal memory. The other half is a pool: a stream may take from it as long as it holds no more of it than is still free
(Choudhury and Hahne, dynamic thresholds, 1998), so one greedy stream can never take all of it from the others.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Protocol

BYTES_PER_CREDIT_SAMPLE = 4
"""What a sample that was granted but not yet received is counted as: int16, padded for small chunks' overhead."""

MAX_CHUNK_SAMPLES = 131_072
MIN_CHUNK_CREDIT_SAMPLES = 1024
CHUNK_OVERHEAD_BYTES = 256
IDLE_READ_S = 30.0  # an open read that has not grown for so long is given up where memory is needed
BUSY_PATIENCE_S = 60.0  # how long a stream waits for complete reads to give memory back
_CHUNK_BYTES = MAX_CHUNK_SAMPLES * BYTES_PER_CREDIT_SAMPLE
READ_OVERHEAD_BYTES = 1024


class BudgetError(ValueError):
    """The memory budget cannot serve so many streams."""


class Account(Protocol):
    """A stream, as the budget sees it."""

    client: Hashable
    """Whose stream it is: what one client's streams borrow counts together."""

    def longest_open_read(self) -> int:
        """Bytes held by its largest open read; 0: none."""

    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        """End that read and give its memory back; `for_others`: it may come again."""

    def give_up_idle_read(self) -> bool:
        """End an open read of which nothing came for long, though it might have; it may come again. False: none."""

    def is_busy(self) -> bool:
        """Whether it holds complete reads, which will give memory back by themselves."""

    def memory_was_freed(self) -> None:
        """Try again to extend the credit, but not at once: whoever frees memory is in the middle of something."""


class MemoryBudget:
    """Shares `total_bytes` among at most `max_streams` streams.

    Raises
    ------
    BudgetError
        Where a stream's guaranteed share would not hold two of the largest chunks.
    """

    def __init__(self, total_bytes: int, max_streams: int) -> None:
        self.total_bytes = total_bytes
        self.signal_bytes = total_bytes // 2
        self.decoded_bytes = total_bytes // 4
        self.share_bytes = self.signal_bytes // 2 // max_streams
        self.pool_bytes = self.signal_bytes - self.share_bytes * max_streams
        self._charges: dict[Account, int] = {}
        self._charged_bytes = 0  # of all
        self._borrowers: dict[Account, int] = {}  # what each has of the pool, where it has any
        self._lent_bytes = 0  # of the pool
        self._waiting: dict[Account, int] = {}  # how many bytes each needs
        needed = 2 * MAX_CHUNK_SAMPLES * BYTES_PER_CREDIT_SAMPLE
        if self.share_bytes < needed:
            fitting = total_bytes // (4 * needed)
            raise BudgetError(
                f"a memory budget of {total_bytes} bytes is too small for {max_streams} streams: it takes at least "
                f"{4 * needed * max_streams} bytes" + (f", or at most {fitting} streams" if fitting else "")
            )

    def open(self, account: Account) -> None:
        """Admit a stream."""
        self._charges[account] = 0

    def close(self, account: Account) -> None:
        """Forget a stream; its memory is free for the others."""
        self._waiting.pop(account, None)
        self.charge(account, -self._charges[account])
        del self._charges[account]

    def charge(self, account: Account, change_bytes: int) -> None:
        """Book that the stream holds more, or less. Who waits for memory is told of less."""
        before = self._borrowers.pop(account, 0)
        self._charged_bytes += change_bytes
        charged = self._charges[account] = self._charges[account] + change_bytes
        borrowed = max(0, charged - self.share_bytes)
        if borrowed:
            self._borrowers[account] = borrowed
        self._lent_bytes += borrowed - before
        if change_bytes < 0:
            self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Have those try again for whom there is enough now, first those whose clients borrow least.

        Not all: where many wait in a full pool, whatever anyone sends frees some memory for a moment, and what all of
        them then did in vain would be most of what the server does.
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
        """What one stream, or all of them, are charged for: signal, unsent results, credit not yet used."""
        return self._charges[account] if account else self._charged_bytes

    def room_bytes(self, account: Account, *, starving: bool) -> int:
        """How much more the stream may take; of the pool, all that is free where it is `starving`."""
        free = self.pool_bytes - self._lent_bytes
        own = max(0, self.share_bytes - self._charges[account])
        return own + max(0, free if starving else (free - self._borrowers.get(account, 0)) // 2)

    def wait(self, account: Account, needed_bytes: int) -> None:
        """Have the stream told when there is so much room for it."""
        self._waiting[account] = needed_bytes

    def evict_for(self, account: Account, starved_s: float) -> bool:
        """Make room for a stream that can only wait for signal, and has waited so long. Whether room was made.

        A read that is idle goes first, whoever has it. Else, where a holder of the pool has complete reads, memory
        comes back by itself, and the stream waits, for a while. Else all is held by open reads, none of which may ever
        fit: the client that borrows most beyond its shares gives up its longest. That may come again, unless it is the
        very one that more is wanted for: it is too long, after others' reads have had the time to become idle.
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
            f"too long: the server's memory budget of {self.total_bytes} bytes cannot hold it beside other open reads",
            for_others=victim is not account,
        )
        return True
