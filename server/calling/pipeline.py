"""Turn complete reads into results: the stages, from top to bottom, and the workers that run them.

One single-threaded worker per core. The network, the decoder and the mapper release the GIL, so workers don't wait for
each other, and small batches stay in the core's own cache. On a GPU their batches run one after another.
"""

import math
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext

import structlog
import torch

from porestream.kernels.align.aligner import Aligner, Alignment
from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.models.call.basecaller import Basecaller, finish
from porestream.models.call.decode import Decoded
from porestream.models.call.prepare import PreparedRead
from porestream.models.files.config import ModelError
from porestream.models.scale import Measurement
from porestream.server.calling.after_calling import after_calling, rate
from porestream.server.calling.align_queue import AlignQueue, ToAlign
from porestream.server.calling.device_use import DeviceUse
from porestream.server.calling.scheduler import Batch, Job, Scheduler, Task
from porestream.server.metrics import (
    ALIGNMENT_IDENTITY,
    BATCH_FILL,
    BATCH_STREAMS,
    BATCHES_RETRIED,
    READ_LENGTH_BASES,
    READ_MEAN_QSCORE,
    ROW_SAMPLES,
    STAGE_SECONDS,
    STAGE_WAIT_SECONDS,
    Row,
)
from porestream.server.reads import CalledPart, InputFault, ReadResult, Reason, Stage, Status, Timings

log = structlog.get_logger()

# Looked up once: finding a metric's child takes as long as using it.
_SECONDS = {stage: STAGE_SECONDS.labels(stage) for stage in ("prepare", "basecall", "stitch", "align")}
_WAIT_SECONDS = {stage: STAGE_WAIT_SECONDS.labels(stage) for stage in ("prepare", "basecall")}


class Pipeline:
    """Calls and aligns submitted reads, and delivers each result from a worker's thread.

    Parameters
    ----------
    basecallers, aligners
        Basecallers by model; aligners by reference and preset.
    scheduler
        Provides the work.
    workers
        How many cores to use, with a thread each.
    card
        Tracks the use of the networks' GPU; None: they run on the CPU.
    waiting
        More threads, for as many will be waiting for the GPU. Without them two workers would do nothing else, and live
        reads would wait for both.

    Attributes
    ----------
    devices
        Use of each device.
    network_device
        Use of the device that the networks run on.
    """

    def __init__(
        self,
        basecallers: Mapping[str, Basecaller],
        aligners: Mapping[tuple[str, str], Aligner],
        scheduler: Scheduler,
        workers: int,
        card: DeviceUse | None = None,
        waiting: int = 0,
    ) -> None:
        self._basecallers, self._aligners, self._scheduler = basecallers, aligners, scheduler
        of_reads = READ_MEAN_QSCORE, READ_LENGTH_BASES, ALIGNMENT_IDENTITY
        self._of_reads = {model: [metric.labels(model) for metric in of_reads] for model in basecallers}
        self._warm = threading.Barrier(workers + waiting + 1)
        self._failure: Exception | None = None  # of the first worker that failed to warm up
        self._cpu, self._card = DeviceUse("cpu", workers), card
        self.devices = [self._cpu, *([card] if card else [])]
        self.network_device = card or self._cpu
        self.align_queues = {
            key: AlignQueue(aligner, scheduler.is_wanted, self._aligned, card, workers)
            for key, aligner in aligners.items()
            if isinstance(aligner, DeviceAligner)
        }
        self._threads = [
            threading.Thread(target=self._work, args=[number == 0], name=f"worker-{number}", daemon=True)
            for number in range(workers + waiting)
        ]

    def start(self) -> None:
        """Start the workers. Returns when each has made its plans and taken its buffers.

        On a GPU that is all the memory they will need; on a CPU a batch takes more while it is computed.

        Raises
        ------
        ModelError
            A model fails to compute a batch here; the cause is the worker's error. All workers have stopped.
        """
        for thread in self._threads:
            thread.start()
        try:
            for _ in range(2):
                self._warm.wait()
        except threading.BrokenBarrierError:
            for thread in self._threads:
                thread.join()
            error = self._failure
            raise ModelError(f"a worker failed to call a test batch: {type(error).__name__}: {error}") from error
        for queue in self.align_queues.values():
            queue.start()

    def close(self) -> None:
        """Stop the workers after their current work."""
        self._scheduler.close()
        for thread in self._threads:
            thread.join()
        for queue in self.align_queues.values():
            queue.close()

    def _work(self, is_first: bool) -> None:
        torch.set_num_threads(1)
        try:
            for longest in (False, True):  # longest last: one-time setup is done before memory use peaks
                for basecaller in self._basecallers.values():
                    lengths = basecaller.warm_up_lengths
                    if not is_first:  # the device is ready for all lengths; a worker's buffers are, after any
                        lengths = lengths[-1:]
                    basecaller.warm_up(lengths[:1] if longest else lengths[1:])
                self._warm.wait()
        except threading.BrokenBarrierError:  # another worker failed
            return
        except Exception as error:  # `start` raises it
            log.exception("worker failed to start")
            self._failure = self._failure or error
            self._warm.abort()
            return
        while (work := self._scheduler.take()) is not None:
            self._cpu.clock.enter()
            try:
                if isinstance(work, Job):
                    self._prepare(work)
                else:
                    self._call(work)
            except Exception as error:  # a bug of ours: fail its reads, keep the worker and all other reads
                log.exception("worker failed")
                stage = Stage.PREPARE if isinstance(work, Job) else Stage.BASECALL
                for job in {work} if isinstance(work, Job) else {task.job for task in work.tasks}:
                    self._fail(job, stage, error)
                    del job
            finally:
                self._cpu.clock.leave()
            del work  # otherwise an idle worker would keep its last reads' signal in memory

    def _prepare(self, job: Job) -> None:
        """Decode and scale the signal, and plan its chunks."""
        job.work.started_s = time.monotonic()
        _WAIT_SECONDS["prepare"].observe(job.work.started_s - job.submitted_s)
        try:
            signal_S = job.read.take_signal()
            basecaller = self._basecallers[job.settings.model]
            try:
                prepared = job.work.prepared = basecaller.prepare(signal_S, _measurement(job))
            except ValueError as error:
                raise InputFault(Reason.SIGNAL, str(error)) from error
            job.work.decoded = [None] * len(prepared.plan.pieces)
        except InputFault as fault:
            self._end(job, Status.REJECTED, str(fault), fault.reason)
        except Exception as error:  # one read's failure must not end the worker
            log.exception("read failed", stage="prepare", read_id=job.read.name)
            self._fail(job, Stage.PREPARE, error)
        else:
            _SECONDS["prepare"].observe(time.monotonic() - job.work.started_s)
            self._scheduler.prepared(job, prepared.plan.pieces)

    def _call(self, batch: Batch) -> None:
        """Basecall one batch, and finish the reads whose last chunk was in it."""
        try:
            results = self._computed(batch)
        finally:
            self._scheduler.computed()
        for task, result in zip(batch.tasks, results, strict=True):
            job = task.job
            if isinstance(result, Exception):
                self._fail(job, Stage.BASECALL, result)
                continue
            job.work.decoded[task.index] = result
            if self._scheduler.did_one(job):
                self._finish(job)

    def _computed(self, batch: Batch) -> list[Decoded | Exception]:
        """Return the result of each chunk, in groups of as many rows as the runner has."""
        runner = self._basecallers[batch.model].runner
        _WAIT_SECONDS["basecall"].observe(time.monotonic() - min(task.ready_s for task in batch.tasks))
        BATCH_STREAMS.labels(batch.model).observe(len({task.job.stream for task in batch.tasks}))
        results: list[Decoded | Exception] = []
        for first in range(0, len(batch.tasks), runner.rows):
            group = batch.tasks[first : first + runner.rows]
            BATCH_FILL.labels(batch.model).observe(len(group) / runner.rows)
            padding = -len(group) % runner.row_group
            for row, count in ((Row.CHUNK, len(group)), (Row.PADDING, padding)):
                ROW_SAMPLES.labels(batch.model, row.value).inc(count * batch.samples)
            started_s = time.monotonic()
            called = self._call_group(batch, group)
            self.network_device.computed(called)
            _SECONDS["basecall"].observe(time.monotonic() - started_s)
            results += called
        return results

    def _call_group(self, batch: Batch, tasks: list[Task]) -> list[Decoded | Exception]:
        basecaller = self._basecallers[batch.model]
        chunks = [_chunk_of(task) for task in tasks]
        try:
            with self._card.working(self._cpu) if self._card else nullcontext():
                return [*basecaller.call(chunks, batch.samples)]
        except Exception as error:  # retry one by one, so that a bad chunk doesn't fail the others
            log.exception("batch failed", stage="basecall", chunks=len(tasks))
            if len(tasks) == 1:
                return [error]
            BATCHES_RETRIED.labels(batch.model).inc()
            return [result for task in tasks for result in self._call_group(batch, [task])]

    def _finish(self, job: Job) -> None:
        """Stitch the chunks, make the parts, and align each one, here or in batches on a device."""
        work, called_s = job.work, time.monotonic()
        assert work.prepared is not None
        try:
            config = self._basecallers[job.settings.model].bundle.config
            called = finish(work.prepared, [chunk for chunk in work.decoded if chunk is not None])
            work.parts = after_calling(called, job.settings, config)
        except Exception as error:  # one read's failure must not end the worker
            log.exception("read failed", stage="stitch", read_id=job.read.name)
            self._fail(job, Stage.STITCH, error)
            return
        work.stitched_s = time.monotonic()
        _SECONDS["stitch"].observe(work.stitched_s - called_s)
        work.alignments = [[] for _ in work.parts]
        aligner = self._aligners.get((job.settings.reference, job.settings.preset))
        if aligner is None or not work.parts:
            self._deliver(job)
            return
        self._scheduler.expect(job, len(work.parts))
        for index, part in enumerate(work.parts):
            self._align(
                ToAlign(job=job, index=index, sequence=part.called.sequence, stitched_s=work.stitched_s), aligner
            )

    def _align(self, part: ToAlign, aligner: Aligner) -> None:
        job = part.job
        if queue := self.align_queues.get((job.settings.reference, job.settings.preset)):
            queue.put(part)
            return
        began_s = time.monotonic()
        alignments: list[Alignment] | Exception
        try:
            alignments = aligner.align(job.read.name, part.sequence, md=job.settings.emit_md)
        except Exception as error:  # one part's failure must not end the worker either
            log.exception("read failed", stage="align", read_id=job.read.name)
            alignments = error
        _SECONDS["align"].observe(time.monotonic() - began_s)
        self._aligned(part, alignments)

    def _aligned(self, part: ToAlign, alignments: list[Alignment] | Exception) -> None:
        """Note a part's alignments; deliver the read after its last part."""
        if isinstance(alignments, Exception):
            self._fail(part.job, Stage.ALIGN, alignments)
            return
        part.job.work.alignments[part.index] = alignments
        if self._scheduler.did_one(part.job):
            self._deliver(part.job)

    def _deliver(self, job: Job) -> None:
        """Deliver a read's result."""
        work, read, settings, done_s = job.work, job.read, job.settings, time.monotonic()
        assert work.prepared is not None
        assert read.calibration is not None
        config = self._basecallers[settings.model].bundle.config
        scaling = work.prepared.scaling
        offset_adc, scale_pa, _ = read.calibration
        rated = [rate(part, settings, config) for part in work.parts]
        # A read is CALLED if any of its parts is; otherwise its first part's status and reason apply.
        called = [one for one in rated if one[1] is Status.CALLED]
        _, status, detail = next(iter(called or rated), (0.0, Status.FILTERED, "no sequence left after trimming"))
        parts = tuple(
            CalledPart(
                sequence=part.called.sequence,
                qualities_B=part.called.qualities_B,
                moves_T=part.called.moves_T,
                mean_qscore=quality,
                trimmed_samples=part.called.trimmed_samples,
                stride=part.called.stride,
                alignments=alignments,
                status=status_of_part,
                read_id=part.read_id or read.read_id,
                first_sample=part.first_sample,
            )
            for part, alignments, (quality, status_of_part, _) in zip(work.parts, work.alignments, rated, strict=True)
        )
        result = ReadResult(
            read_id=read.read_id,
            channel=read.channel,
            status=status,
            detail=detail,
            signal_samples=read.samples,
            scaling_midpoint_pa=(scaling.shift + offset_adc) * scale_pa,
            scaling_dispersion_pa=scaling.scale * scale_pa,
            scaling_strategy=config.scaling,
            parts=parts,
            timings=Timings(
                queue_s=work.started_s - job.submitted_s,
                basecall_s=work.stitched_s - work.started_s,
                align_s=done_s - work.stitched_s,
                total_s=done_s - job.submitted_s,
            ),
        )
        if self._scheduler.done(job):
            for part in parts:
                qscore, length, identity = self._of_reads[settings.model]
                qscore.observe(part.mean_qscore)
                length.observe(len(part.sequence))
                if part.alignments:
                    identity.observe(_identity(part.alignments[0]))
            job.deliver(job, result)

    def _fail(self, job: Job, stage: Stage, error: Exception) -> None:
        self._end(job, Status.FAILED, f"{type(error).__name__}: {error}", stage)

    def _end(self, job: Job, status: Status, detail: str, cause: Reason | Stage) -> None:
        if self._scheduler.done(job):
            timings = Timings(total_s=time.monotonic() - job.submitted_s)
            read = job.read
            result = ReadResult(
                read_id=read.read_id,
                channel=read.channel,
                status=status,
                detail=detail,
                signal_samples=read.samples,
                timings=timings,
                cause=cause,
            )
            job.deliver(job, result)


def _identity(alignment: Alignment) -> float:
    """Return 1 - NM / columns; the CIGAR operations M, I and D count as columns."""
    lengths, operations = alignment.cigar >> 4, alignment.cigar & 15
    return 1 - alignment.edit_distance / max(1, int(lengths[operations <= 2].sum()))


def _measurement(job: Job) -> Measurement:
    assert job.read.calibration is not None
    offset_adc, scale_pa, open_pore_pa = job.read.calibration
    settings = job.settings
    return Measurement(
        sample_rate_hz=settings.sample_rate_hz,
        offset_adc=offset_adc,
        scale_pa=scale_pa,
        open_pore_pa=open_pore_pa or math.nan,
        flow_cell_product_code=settings.flow_cell_product_code,
    )


def _chunk_of(task: Task) -> tuple[PreparedRead, int]:
    prepared = task.job.work.prepared
    assert prepared is not None
    return prepared, prepared.plan.pieces[task.index].start
