"""Queues called reads for a device that aligns them in batches: the next batch fills while one runs."""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from porestream.kernels.align.aligner import Alignment
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.server.calling.device_use import DeviceUse
from porestream.server.calling.scheduler import Job
from porestream.server.metrics import STAGE_SECONDS, STAGE_WAIT_SECONDS

log = structlog.get_logger()

_LOOK_AGAIN_S = 1.0  # how often to look whether reads that wait for minimap2 are still wanted


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ToAlign:
    """Part `index` of a called read."""

    job: Job
    index: int
    sequence: str
    stitched_s: float


Result = list[Alignment] | Exception
Done = Callable[[ToAlign, Result], None]


class AlignQueue:
    """An aligner's queue and its threads: one aligns batches, `cores` the reads that the device cannot align.

    If those come faster than minimap2 aligns them, the batches wait for it, so that memory stays bounded.

    Parameters
    ----------
    aligner
        Aligns the batches.
    is_wanted
        Returns whether a read's stream still waits for it.
    done
        Called from the threads with a read and its alignments, or the error.
    use
        Tracks when the aligner's device is busy; None: the CPU emulates a device.
    cores
        Most reads that minimap2 aligns at once.
    """

    def __init__(
        self,
        aligner: DeviceAligner,
        is_wanted: Callable[[Job], bool],
        done: Done,
        use: DeviceUse | None,
        cores: int = 1,
    ) -> None:
        self._aligner, self._is_wanted, self._done, self._use = aligner, is_wanted, done, use
        lock = threading.Lock()  # of both queues; a condition for each that waits, so that nobody is woken for nothing
        self._changed, self._left, self._room = (threading.Condition(lock) for _ in range(3))
        self._waiting: list[tuple[float, int, ToAlign]] = []  # a heap: live reads first, then in order
        self._numbers = itertools.count()
        self._elsewhere: deque[ToAlign] = deque()
        self._elsewhere_bases = 0
        self._closed = False
        name = aligner.reference.name
        self._threads = [
            threading.Thread(target=work, name=f"{what} {name}", daemon=True)
            for work, what in ((self._run, "aligner"), *[(self._run_elsewhere, "aligner elsewhere")] * cores)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def put(self, read: ToAlign) -> None:
        """Queue a part to align."""
        with self._changed:
            heapq.heappush(self._waiting, (read.job.settings.priority.value, next(self._numbers), read))
            self._changed.notify()

    def close(self) -> None:
        """Stop after the current batch; queued reads are dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._elsewhere.clear()
            for condition in (self._changed, self._left, self._room):
                condition.notify_all()
        if self._threads[0].is_alive():
            self._threads[0].join()  # the others may work for hours; they end with the process

    def __len__(self) -> int:
        """Number of queued reads."""
        return len(self._waiting) + len(self._elsewhere)

    def _take(self) -> list[ToAlign]:
        """Wait for reads and return a batch of them; empty if the queue is closed."""
        with self._changed:
            batch: list[ToAlign] = []
            bases = 0
            while not batch and not self._closed:
                while self._waiting:
                    read = self._waiting[0][2]
                    if batch and bases + len(read.sequence) > self._aligner.batch_bases:
                        break
                    heapq.heappop(self._waiting)
                    if self._is_wanted(read.job):
                        batch.append(read)
                        bases += len(read.sequence)
                if not batch and not self._closed:
                    self._changed.wait()
            return batch

    def _run(self) -> None:
        while batch := self._take():
            started_s = time.monotonic()
            for read in batch:
                STAGE_WAIT_SECONDS.labels("align").observe(started_s - read.stitched_s)
            if self._use:
                self._use.clock.enter()
            results = self._align(batch)
            if self._use:
                self._use.clock.leave()
            each_s = (time.monotonic() - started_s) / len(batch)
            left = []
            for read, result in zip(batch, results, strict=True):
                STAGE_SECONDS.labels("align").observe(each_s)
                if result is None:
                    left.append(read)
                else:
                    self._deliver(read, result)
            for read in left:  # last, because this may have to wait
                self._put_elsewhere(read)
            del batch, left, read, results, result  # otherwise an idle thread would keep its last reads in memory

    def _put_elsewhere(self, read: ToAlign) -> None:
        """Leave a read to minimap2; wait while it has a batch's worth of bases to align that are still wanted."""
        with self._room:
            while self._elsewhere_bases > self._aligner.batch_bases and not self._closed:
                self._room.wait(_LOOK_AGAIN_S)
                self._drop_unwanted()
            self._elsewhere.append(read)
            self._elsewhere_bases += len(read.sequence)
            self._left.notify()

    def _drop_unwanted(self) -> None:
        """Forget reads whose streams have gone: nobody says so."""
        wanted = [read for read in self._elsewhere if self._is_wanted(read.job)]
        if len(wanted) < len(self._elsewhere):
            self._elsewhere = deque(wanted)
            self._elsewhere_bases = sum(len(read.sequence) for read in wanted)

    def _run_elsewhere(self) -> None:
        while True:
            with self._left:
                while not self._elsewhere and not self._closed:
                    self._left.wait()
                if self._closed:
                    return
                read = self._elsewhere.popleft()
                self._elsewhere_bases -= len(read.sequence)
                self._room.notify()
            if self._is_wanted(read.job):
                result: Result
                try:
                    md = read.job.settings.emit_md
                    result = self._aligner.align_elsewhere(read.job.read.name, read.sequence, md=md)
                except Exception as error:  # one read's failure must not end the thread
                    log.exception("read failed", stage="align", read_id=read.job.read.name)
                    result = error
                self._deliver(read, result)
                del result
            del read

    def _deliver(self, read: ToAlign, result: Result) -> None:
        try:
            self._done(read, result)
        except Exception as error:  # a bug of ours: fail the read, keep the thread
            log.exception("read failed", stage="align", read_id=read.job.read.name)
            self._done(read, error)

    def _align(self, batch: list[ToAlign]) -> list[Result | None]:
        """Align a batch; a result of None means that the device cannot align that read."""
        wants_md = [read.job.settings.emit_md for read in batch]
        reads = [(read.job.read.name, read.sequence) for read in batch]
        found: list[list[Alignment] | None] = []
        failure: Exception | None = None
        try:
            found = self._aligner.align_batch(reads, md=any(wants_md))
        except Exception as error:
            log.exception("batch failed", stage="align", reads=len(batch))
            failure = error.with_traceback(None)  # the traceback would keep the batch's device memory alive
        if failure is not None:
            # Retry one by one, so that a bad read doesn't fail the others.
            return [failure] if len(batch) == 1 else [result for read in batch for result in self._align([read])]
        return [
            alignments if wants or alignments is None else [replace(alignment, md="") for alignment in alignments]
            for alignments, wants in zip(found, wants_md, strict=True)
        ]
