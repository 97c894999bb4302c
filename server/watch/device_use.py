"""How busy a device is, and whether it still works."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_FAILURES = 3


class ActivityClock:
    """Time that things were active: up to `capacity` at once count, or all. Thread-safe."""

    def __init__(self, capacity: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._lock = threading.Lock()
        self.active = 0
        self._seconds = 0.0
        self._since_s = clock()

    def enter(self) -> None:
        """One more is active."""
        with self._lock:
            self._advance()
            self.active += 1

    def leave(self) -> None:
        """One less is active."""
        with self._lock:
            self._advance()
            self.active -= 1

    def seconds(self) -> float:
        """The time so far, of those that are still active too; in seconds."""
        with self._lock:
            self._advance()
            return self._seconds

    def _advance(self) -> None:
        now_s = self._clock()
        counted = self.active if self._capacity is None else min(self.active, self._capacity)
        self._seconds += counted * (now_s - self._since_s)
        self._since_s = now_s


class DeviceUse:
    """One device's time, and whether its last batches failed.

    Parameters
    ----------
    name
        "cpu", "cuda:0".
    slots
        How much can be busy at once: the workers of the CPU; 1 of a card, whose stream does one thing after another.
    """

    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots = name, slots
        self.clock = ActivityClock(slots)
        self._failures = 0

    @contextmanager
    def working(self, cpu: "DeviceUse") -> Iterator[None]:
        """The device is at work, and a worker of the CPU waits for it."""
        cpu.clock.leave()
        self.clock.enter()
        try:
            yield
        finally:
            self.clock.leave()
            cpu.clock.enter()

    def computed(self, results: Sequence[object]) -> None:
        """What came of a batch's chunks, also when they were tried one by one: the device failed if all of them did.

        What the input may be to blame for, a ValueError, says nothing of the device.
        """
        failed = all(isinstance(result, Exception) and not isinstance(result, ValueError) for result in results)
        self._failures = self._failures + 1 if failed else 0

    @property
    def is_up(self) -> bool:
        """Not so after three batches in a row that failed."""
        return self._failures < _FAILURES
