"""Keep the last hour of the metrics in memory, from Prometheus' registry only, so that page and Grafana agree."""

import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import structlog
from prometheus_client.registry import Collector

log = structlog.get_logger()

Key = tuple[str, frozenset[tuple[str, str]]]
"""A sample's name and labels."""
Snapshot = dict[Key, float]
"""All values at one moment, or their growth since another."""


def snapshot(registry: Collector) -> Snapshot:
    """Return the registry's current values, without infinities and NaN, which JSON lacks."""
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in registry.collect()
        for sample in family.samples
        if math.isfinite(sample.value)
    }


def increase(now: Snapshot, before: Snapshot) -> Snapshot:
    """Return how much counters grew. A counter that was absent started at 0; one that shrank has restarted."""
    return {key: _growth(value, before.get(key, 0.0)) for key, value in now.items()}


def _at(row: Sequence[float], column: int) -> float:
    return row[column] if column < len(row) else 0.0  # nothing was counted yet


def _growth(now: float, before: float) -> float:
    return now if now < before else now - before


class History:
    """A ring of `porestream_` values, one row each `interval_s`, for `kept_s`. Thread-safe.

    A value takes 8 bytes per row, because labels come from closed sets: an hour with one model is 1.2 MB.

    Parameters
    ----------
    registry
        Collected once per row.
    interval_s, kept_s
        Time between rows, and age of the oldest row, in seconds.
    clock
        Monotonic clock, in seconds.
    """

    def __init__(
        self,
        registry: Collector,
        interval_s: float = 10.0,
        kept_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s, self.kept_s, self.clock = interval_s, kept_s, clock
        self._registry = registry
        self._lock = threading.Lock()
        self._columns: dict[Key, int] = {}
        self._rows: deque[tuple[float, array[float]]] = deque(maxlen=math.ceil(kept_s / interval_s) + 1)
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics history", daemon=True)

    def __len__(self) -> int:
        return len(self._rows)

    def start(self) -> None:
        """Record a row now and every `interval_s`, until `close`."""
        self.tick()
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def tick(self) -> None:
        """Record a row. If the collector fails, only this row is lost; the failure is logged once until it recovers."""
        try:
            values = snapshot(self._registry)
        except Exception:
            if not self._failing:
                log.exception("cannot collect the metrics for the status page")
            self._failing = True
            return
        self._failing = False
        self._keep(values)

    def before(self, window_s: float) -> tuple[float, Snapshot] | None:
        """Return age (seconds) and values of the row from `window_s` ago, or of the oldest; None if there is no row."""
        now_s = self.clock()
        with self._lock:
            if not self._rows:
                return None
            old = [row for row in self._rows if row[0] <= now_s - window_s]
            time_s, values = old[-1] if old else self._rows[0]
            return now_s - time_s, dict(zip(self._columns, values, strict=False))  # later columns: not counted yet

    def series(self, counters: Sequence[str], gauges: Sequence[str]) -> dict[str, list[float]]:
        """Return a value for each row but the first, oldest first, over all labels.

        `age_s` is the row's age in seconds. A counter's value is its growth per second since the row before. A gauge's
        value is the highest one; 0 if it was absent.
        """
        now_s = self.clock()
        with self._lock:
            rows = list(self._rows)  # rows never change
            columns = {name: [n for key, n in self._columns.items() if key[0] == name] for name in (*counters, *gauges)}
        pairs = list(pairwise(rows))
        series = {"age_s": [now_s - time_s for _, (time_s, _) in pairs]}
        for name in counters:
            series[name] = [
                sum(_growth(_at(values, n), _at(values_before, n)) for n in columns[name]) / (time_s - time_before_s)
                for (time_before_s, values_before), (time_s, values) in pairs
            ]
        for name in gauges:
            series[name] = [max((_at(row, n) for n in columns[name]), default=0.0) for _, (_, row) in pairs]
        return series

    def _keep(self, values: Snapshot) -> None:
        with self._lock:
            now_s = self.clock()
            if self._rows and now_s <= self._rows[-1][0]:
                return
            # Absent values stay as they were: a meter that fails once has not restarted.
            row = array("d", self._rows[-1][1] if self._rows else ())
            for key, value in values.items():
                if not key[0].startswith("porestream_"):
                    continue
                column = self._columns.setdefault(key, len(row))
                if column == len(row):
                    row.append(value)
                else:
                    row[column] = value
            self._rows.append((now_s, row))
            while self._rows[0][0] < now_s - self.kept_s:  # the machine slept
                self._rows.popleft()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.tick()
