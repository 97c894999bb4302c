"""Batches: every chunk once, full where possible, fair between streams, bounded in delay and memory."""

import threading
import time
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.models.chunk import Chunker
from porestream.models.prepare import PreparedRead
from porestream.models.scale import Scaling
from porestream.server.reads import CallSettings, OpenRead, Priority
from porestream.server.scheduler import Batch, Job, Scheduler

CHUNKER = Chunker(1200, 120, 6)


def job(stream: str, samples: int, priority: Priority = Priority.STANDARD, model: str = "m", name: int = 0) -> Job:
    read = OpenRead(UUID(int=name).bytes, 1, None, samples=samples)
    return Job(
        stream, CallSettings(model, "", "", priority, 0.0, False, False, 4000), read, deliver=lambda _job, _result: None
    )


def prepare(scheduler: Scheduler, work: Job) -> None:
    plan = CHUNKER.plan(work.read.samples)
    work.prepared = PreparedRead(np.zeros(work.read.samples, np.int16), Scaling(0.0, 1.0), 0, plan)
    work.missing = len(plan.pieces)
    scheduler.prepared(work)


def drain(scheduler: Scheduler, count: int) -> list[Batch]:
    """Do all work until `count` reads are called; the batches in order."""
    batches: list[Batch] = []
    while count:
        work = scheduler.take()
        assert work is not None
        if isinstance(work, Job):
            prepare(scheduler, work)
            continue
        batches.append(work)
        for task in work.tasks:
            if scheduler.called_one(task.job):
                assert scheduler.done(task.job)
                count -= 1
    return batches


jobs = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 9000), st.sampled_from(Priority), st.sampled_from("mn")),
    min_size=1,
    max_size=25,
)


@given(jobs, st.sampled_from([1, 7, 16]), st.sampled_from([2_000, 100_000_000]))
@settings(max_examples=50, deadline=None)
def test_every_chunk_is_called_once_in_batches_of_one_shape(plans, rows, limit) -> None:  # type: ignore[no-untyped-def]
    scheduler = Scheduler(rows, 0.001, limit)
    submitted = [job(stream, samples, priority, model) for stream, samples, priority, model in plans]
    for work in submitted:
        scheduler.submit(work)
    batches = drain(scheduler, len(submitted))
    seen = [(id(task.job), task.index) for batch in batches for task in batch.tasks]
    assert len(seen) == len(set(seen))
    assert len(seen) == sum(len(work.prepared.plan.pieces) for work in submitted if work.prepared)
    for batch in batches:
        assert 1 <= len(batch.tasks) <= rows
        for task in batch.tasks:
            assert task.job.prepared
            assert (task.job.settings.model, task.job.prepared.plan.pieces[task.index].samples) == (
                batch.model,
                batch.samples,
            )
    assert scheduler.queued_samples() == 0


def test_streams_share_a_batch_and_get_equal_service() -> None:
    scheduler = Scheduler(16, 0.01, 1 << 40)
    for number in range(40):
        scheduler.submit(job("greedy", 12_000, name=number))
    for number in range(5):
        scheduler.submit(job("modest", 12_000, name=100 + number))
    batches = drain(scheduler, 45)
    assert any(len({task.job.stream for task in batch.tasks}) == 2 for batch in batches)
    order = [task.job.stream for batch in batches for task in batch.tasks]
    last_modest = max(index for index, stream in enumerate(order) if stream == "modest")
    assert order[: last_modest + 1].count("greedy") <= 1.5 * order.count("modest"), "the greedy stream went first"


def test_live_goes_first_and_bulk_is_not_starved() -> None:
    scheduler = Scheduler(16, 0.01, 1 << 40)
    scheduler.submit(job("bulk", 6_000, Priority.BULK))
    for number in range(100):
        scheduler.submit(job("standard", 1_000_000, name=number))
    scheduler.submit(job("live", 6_000, Priority.LIVE))
    first = scheduler.take()
    assert isinstance(first, Job)
    assert first.stream == "live"
    prepare(scheduler, first)
    served: dict[object, int] = {"standard": 0, "live": 0, "bulk": 0}
    while not served["bulk"]:
        work = scheduler.take()
        if isinstance(work, Job):
            prepare(scheduler, work)
            continue
        assert work is not None
        for task in work.tasks:
            served[task.job.stream] += work.samples
            if scheduler.called_one(task.job):
                scheduler.done(task.job)
        assert served["live"] or served["standard"] < 100_000
    assert 40_000_000 < served["standard"] < 75_000_000, "bulk goes after its head start, and before the end"


def test_a_partial_batch_waits_for_the_delay_and_no_longer() -> None:
    scheduler = Scheduler(16, 0.05, 1 << 40)
    scheduler.submit(job("a", 1200))
    work = scheduler.take()
    assert isinstance(work, Job)
    began = time.monotonic()
    prepare(scheduler, work)
    batch = scheduler.take()
    assert isinstance(batch, Batch)
    assert time.monotonic() - began >= 0.05


def test_short_chunks_are_not_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porestream.server.scheduler._MAX_OVERTAKEN_S", 0.05)
    scheduler = Scheduler(4, 0.01, 1 << 40)
    scheduler.submit(job("short", 200))
    prepare(scheduler, scheduler.take())  # type: ignore[arg-type]
    sizes = []
    for number in range(200):
        scheduler.submit(job(f"long-{number}", 1200 * 4))
        work = scheduler.take()
        if isinstance(work, Job):
            prepare(scheduler, work)
        else:
            assert work is not None
            sizes.append(work.samples)
            if work.samples == 300:
                break
        time.sleep(0.005)
    assert sizes[-1] == 300
    assert 1200 in sizes


def test_decoded_signal_is_bounded() -> None:
    scheduler = Scheduler(1000, 0.01, 40_000)
    for number in range(6):
        scheduler.submit(job("a", 4_000, name=number))  # 16,000 bytes each
    for _ in range(2):
        work = scheduler.take()
        assert isinstance(work, Job)
        prepare(scheduler, work)
    third = scheduler.take()
    assert isinstance(third, Batch), "a third read would exceed the bound: what is prepared is called first"
    assert len({task.job for task in third.tasks}) == 2


def test_cancelled_streams_leave_nothing_behind() -> None:
    scheduler = Scheduler(16, 0.001, 1 << 40)
    running = job("gone", 5000)
    scheduler.submit(running)
    taken = scheduler.take()
    assert taken is running
    for number in range(3):
        scheduler.submit(job("gone", 5000, name=number))
    scheduler.cancel("gone")
    prepare(scheduler, running)
    assert scheduler.queued_samples() == 0
    assert not scheduler.done(running)
    scheduler.submit(job("here", 100))
    assert len(drain(scheduler, 1)) == 1


def test_close_sends_the_workers_home() -> None:
    scheduler = Scheduler(16, 0.05, 1 << 40)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(scheduler.take()))
    thread.start()
    scheduler.close()
    thread.join(5)
    assert got == [None]
