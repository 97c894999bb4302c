"""Called reads on their way to a device that aligns many at a time: a batch forms while the one before it runs."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from porestream.kernels.aligner import Alignment
from porestream.kernels.device_aligner import DeviceAligner
from porestream.models.basecaller import CalledRead
from porestream.server.device_use import DeviceUse
from porestream.server.metrics import STAGE_SECONDS, STAGE_WAIT_SECONDS
from porestream.server.scheduler import Job

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class ToAlign:
    """A called read."""

    job: Job
    called: CalledRead
    stitched_s: float


Done = Callable[[ToAlign, list[Alignment] | Exception], None]


class AlignQueue:
    """One aligner's reads, and its thread.

    Parameters
    ----------
    aligner
        Takes them in batches.
    done
        Called from the thread, with a read and its alignments or why there are none.
    use
        The aligner's device, which is busy meanwhile; None: the CPU emulates one.
    """

    def __init__(self, aligner: DeviceAligner, done: Done, use: DeviceUse | None) -> None:
        self._aligner, self._done, self._use = aligner, done, use
        self._changed = threading.Condition()
        self._waiting: deque[ToAlign] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"aligner {aligner.reference.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, read: ToAlign) -> None:
        """Queue a read."""
        with self._changed:
            self._waiting.append(read)
            self._changed.notify()

    def close(self) -> None:
        """End, after the reads that are queued."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def __len__(self) -> int:
        """Reads that wait."""
        return len(self._waiting)

    def _take(self) -> list[ToAlign]:
        """As many as a batch may have; none: it is over."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            batch: list[ToAlign] = []
            bases = 0
            most = self._aligner.batch_bases
            while self._waiting and (not batch or bases + len(self._waiting[0].called.sequence) <= most):
                batch.append(self._waiting.popleft())
                bases += len(batch[-1].called.sequence)
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
            for read, result in zip(batch, results, strict=True):
                STAGE_SECONDS.labels("align").observe(each_s)
                self._done(read, result)
            del batch, read, results, result  # or an idle thread would hold its last reads

    def _align(self, batch: list[ToAlign]) -> list[list[Alignment] | Exception]:
        wants_md = [read.job.settings.emit_md for read in batch]
        reads = [(read.job.read.name, read.called.sequence) for read in batch]
        try:
            found = self._aligner.align_batch(reads, md=any(wants_md))
        except Exception as error:  # again one by one: a read must not take the others with it
            log.exception("batch failed", stage="align", reads=len(batch))
            if len(batch) == 1:
                return [error]
            return [result for read in batch for result in self._align([read])]
        return [
            alignments if wants else [replace(alignment, md="") for alignment in alignments]
            for alignments, wants in zip(found, wants_md, strict=True)
        ]
