"""Who is told of freed memory; the rest of the budget is tested with its sessions (test_session.py)."""

from dataclasses import dataclass

from porestream.server.streams.budget import MAX_CHUNK_SAMPLES, MemoryBudget

CHUNK_BYTES = 4 * MAX_CHUNK_SAMPLES


@dataclass(eq=False)
class Stream:
    client: str
    told: int = 0

    def longest_open_read(self) -> int:
        return 0

    def give_up_longest_open_read(self, detail: str, *, for_others: bool) -> None:
        raise AssertionError("nothing is open")

    def give_up_idle_read(self) -> bool:
        return False

    def is_busy(self) -> bool:
        return True

    def memory_was_freed(self) -> None:
        self.told += 1


def test_only_as_many_are_told_as_there_is_room_for() -> None:
    """Else each message that swaps credit for signal wakes all who wait, and the server does nothing else."""
    budget = MemoryBudget(256 << 20, 64)
    hog, honest = Stream("hog"), Stream("honest")
    others = [Stream("hog") for _ in range(20)]
    for stream in (hog, *others, honest):
        budget.open(stream)
    full = budget.share_bytes + budget.pool_bytes
    budget.charge(hog, full)
    for stream in (*others, honest):
        budget.wait(stream, budget.share_bytes + CHUNK_BYTES)
    for _ in range(100):  # a chunk comes: its credit is given back, and it is charged itself
        budget.charge(hog, -1000)
        budget.charge(hog, 1000)
    assert not any(stream.told for stream in (*others, honest))
    budget.charge(hog, -CHUNK_BYTES)
    assert honest.told == 1  # its client borrows nothing
    assert not any(stream.told for stream in others)
    budget.charge(hog, -2 * CHUNK_BYTES)
    assert sum(stream.told for stream in others) == 3  # and all of what is free now
    budget.charge(hog, -full + 3 * CHUNK_BYTES)
    assert all(stream.told == 1 for stream in (*others, honest))
