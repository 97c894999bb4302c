"""Track how busy a device is, and whether it still works."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_FAILURES = 3


class ActivityClock:
    """Adds up the time of active tasks, at most `capacity` of them at once (None: all). Thread-safe."""

    def __init__(self, capacity: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._lock = threading.Lock()
        self.active = 0
        self._seconds = 0.0
        self._since_s = clock()

    def enter(self) -> None:
        """Count one more active task."""
        with self._lock:
            self._advance()
            self.active += 1

    def leave(self) -> None:
        """Count one active task fewer."""
        with self._lock:
            self._advance()
            self.active -= 1

    def seconds(self) -> float:
        """Return the time so far in seconds, including tasks that are still active."""
        with self._lock:
            self._advance()
            return self._seconds

    def _advance(self) -> None:
        now_s = self._clock()
        counted = self.active if self._capacity is None else min(self.active, self._capacity)
        self._seconds += counted * (now_s - self._since_s)
        self._since_s = now_s


class DeviceUse:
    """A device's busy time, and whether its last batches failed.

    Parameters
    ----------
    name
        "cpu", "cuda:0".
    slots
        How much can be busy at once. CPU: its workers; GPU: 1, because its stream runs one thing at a time.
    """

    def __init__(self, name: str, slots: int) -> None:
        self.name, self.slots = name, slots
        self.clock = ActivityClock(slots)
        self._failures = 0

    @contextmanager
    def working(self, cpu: "DeviceUse") -> Iterator[None]:
        """Count the device as busy, and a CPU worker as waiting, within the block."""
        cpu.clock.leave()
        self.clock.enter()
        try:
            yield
        finally:
            self.clock.leave()
            cpu.clock.enter()

    def computed(self, results: Sequence[object]) -> None:
        """Note the results of a batch's chunks, even if they were retried one by one. If all failed, the device failed.

        A ValueError may be the input's fault, so it doesn't count against the device.
        """
        failed = all(isinstance(result, Exception) and not isinstance(result, ValueError) for result in results)
        self._failures = self._failures + 1 if failed else 0

    @property
    def is_up(self) -> bool:
        """Whether the device works: False after three failed batches in a row."""
        return self._failures < _FAILURES
