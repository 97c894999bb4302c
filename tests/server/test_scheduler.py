"""Batches: every chunk once, full where possible, fair between streams, bounded in delay and memory."""

import itertools
import threading
from collections import Counter
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.models.call.chunk import Chunker
from porestream.models.call.prepare import PreparedRead
from porestream.models.scale import Scaling
from porestream.server.calling.scheduler import Batch, Job, Scheduler
from porestream.server.reads import CallSettings, OpenRead, Priority

CHUNKER = Chunker(1200, 120, 6)


def rows_each(rows: int) -> dict[str, int]:
    return {"m": rows, "n": rows}


def job(stream: str, samples: int, priority: Priority = Priority.STANDARD, model: str = "m", name: int = 0) -> Job:
    read = OpenRead(read_id=UUID(int=name).bytes, channel=1, calibration=None, samples=samples)
    return Job(
        stream=stream,
        settings=CallSettings(model=model, priority=priority, sample_rate_hz=4000),
        read=read,
        deliver=lambda _job, _result: None,
    )


def prepare(scheduler: Scheduler, work: Job) -> None:
    plan = CHUNKER.plan(work.read.samples)
    work.work.prepared = PreparedRead(
        signal_S=np.zeros(work.read.samples, np.int16), scaling=Scaling(0.0, 1.0), trimmed_samples=0, plan=plan
    )
    scheduler.prepared(work, plan.pieces)


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
        scheduler.computed()
        for task in work.tasks:
            if scheduler.did_one(task.job):
                assert scheduler.done(task.job)
                count -= 1
    return batches


def serve(scheduler: Scheduler) -> tuple[dict[object, int], list[Job]]:
    """Do the next piece of work; the samples that each stream was served, and the reads that are finished."""
    work = scheduler.take()
    assert work is not None
    if isinstance(work, Job):
        prepare(scheduler, work)
        return {}, []
    served: Counter[object] = Counter()
    finished = []
    for task in work.tasks:
        served[task.job.stream] += work.samples
        if scheduler.did_one(task.job):
            scheduler.done(task.job)
            finished.append(task.job)
    return dict(served), finished


jobs = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 9000), st.sampled_from(Priority), st.sampled_from("mn")),
    min_size=1,
    max_size=25,
)


@given(
    jobs,
    st.sampled_from([1, 7, 16]),
    st.sampled_from([2_000, 100_000_000]),
    st.sampled_from([(1, None), (3, None), (1, 2)]),
)
@settings(max_examples=50)
def test_every_chunk_is_called_once_in_batches_of_one_shape(plans, rows, limit, device) -> None:  # type: ignore[no-untyped-def]
    workers, card_batches = device
    groups = rows_each(2 if card_batches is None else rows)
    scheduler = Scheduler(rows_each(rows), 0.001, limit, row_groups=groups, workers=workers, card_batches=card_batches)
    submitted = [job(stream, samples, priority, model) for stream, samples, priority, model in plans]
    for work in submitted:
        scheduler.submit(work)
    batches = drain(scheduler, len(submitted))
    seen = [(id(task.job), task.index) for batch in batches for task in batch.tasks]
    assert len(seen) == len(set(seen))
    assert len(seen) == sum(len(work.work.prepared.plan.pieces) for work in submitted if work.work.prepared)
    for batch in batches:
        assert 1 <= len(batch.tasks) <= rows
        for task in batch.tasks:
            assert task.job.work.prepared
            assert (task.job.settings.model, task.job.work.prepared.plan.pieces[task.index].samples) == (
                batch.model,
                batch.samples,
            )
    assert scheduler.queued_samples() == 0


def sizes_of(scheduler: Scheduler, reads: int, chunks: int) -> list[int]:
    """Submit reads of so many chunks each; how many chunks each batch has."""
    for number in range(reads):
        scheduler.submit(job("a", 1080 * chunks + 120, name=number))
    return [len(batch.tasks) for batch in drain(scheduler, reads)]


def test_workers_share_the_last_chunks() -> None:
    def sizes(workers: int, group: int, reads: int, chunks: int) -> list[int]:
        scheduler = Scheduler(rows_each(16), 0.001, 1 << 40, row_groups=rows_each(group), workers=workers)
        return sizes_of(scheduler, reads, chunks)

    assert sizes(1, 4, 1, 36) == [16, 16, 4]  # one at a time, as on a GPU
    assert sizes(2, 16, 1, 36) == [16, 16, 4]  # a batch always costs 16 rows
    assert sizes(2, 4, 1, 36) == [16, 12, 8]
    assert sizes(3, 4, 1, 36) == [12, 8, 8, 8]
    assert sizes(2, 4, 1, 5) == [5]
    assert sizes(2, 4, 3, 16)[:1] == [16]  # other reads are still waiting to be prepared


def prepared(scheduler: Scheduler, work: Job) -> None:
    """Submit and prepare a read."""
    scheduler.submit(work)
    taken = scheduler.poll()
    assert taken is work
    prepare(scheduler, work)


def test_a_gpu_has_two_batches_and_a_partial_one_only_if_it_has_no_other() -> None:
    clock = Clock()
    scheduler = Scheduler(rows_each(4), 0.02, 1 << 40, clock=clock, card_batches=2)
    prepared(scheduler, job("a", 1080 * 14 + 120))  # 14 chunks
    sizes = [len(batch.tasks) for batch in (scheduler.poll(), scheduler.poll()) if isinstance(batch, Batch)]
    assert sizes == [4, 4]
    assert scheduler.poll() is None  # a full one waits, too
    other = job("b", 1200)
    scheduler.submit(other)
    assert scheduler.poll() is other  # meanwhile reads are prepared
    scheduler.done(other)
    scheduler.computed()
    batch = scheduler.poll()
    assert isinstance(batch, Batch)
    assert len(batch.tasks) == 4
    scheduler.computed()
    clock.now_s += 1.5
    assert scheduler.poll() == pytest.approx(0.5)  # the GPU has one: the rest waits for more
    scheduler.computed()
    batch = scheduler.poll()
    assert isinstance(batch, Batch)
    assert len(batch.tasks) == 2


def test_a_gpus_partial_batches_do_not_starve() -> None:
    clock = Clock()
    scheduler = Scheduler(rows_each(4), 0.02, 1 << 40, clock=clock, card_batches=2)
    prepared(scheduler, job("a", 1080 * 4 + 120))
    assert isinstance(scheduler.poll(), Batch)  # is computed for a long time
    prepared(scheduler, job("a", 1200, name=1))
    prepared(scheduler, job("live", 1200, Priority.LIVE, model="n", name=2))
    assert scheduler.poll() == pytest.approx(0.02)
    clock.now_s += 0.02
    batch = scheduler.poll()
    assert isinstance(batch, Batch)
    assert batch.model == "n"  # LIVE waits no longer than without a GPU
    scheduler.computed()
    assert scheduler.poll() == pytest.approx(1.98)
    clock.now_s += 1.98
    assert isinstance(scheduler.poll(), Batch)


def test_streams_share_a_batch_and_get_equal_service() -> None:
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40)
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
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40)
    scheduler.submit(job("bulk", 6_000, Priority.BULK))
    for number in range(100):
        scheduler.submit(job("standard", 1_000_000, name=number))
    scheduler.submit(job("live", 6_000, Priority.LIVE))
    first = scheduler.take()
    assert isinstance(first, Job)
    assert first.stream == "live"
    prepare(scheduler, first)
    served: Counter[object] = Counter()
    while not served["bulk"]:
        served.update(serve(scheduler)[0])
        assert served["live"] or served["standard"] < 100_000
    assert 1_500_000 < served["standard"] < 3_000_000, "bulk goes after its head start, and long before the end"


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_partial_batch_waits_for_the_delay_and_no_longer() -> None:
    clock = Clock()
    scheduler = Scheduler(rows_each(16), 0.05, 1 << 40, clock=clock)
    for number in range(2):
        scheduler.submit(job("a", 1200, name=number))
        prepare(scheduler, scheduler.take())  # type: ignore[arg-type]
        assert scheduler.poll() == pytest.approx(0.05 - 0.03 * number), "the oldest chunk decides"
        clock.now_s += 0.03
    clock.now_s = 100.05
    batch = scheduler.poll()
    assert isinstance(batch, Batch)
    assert len(batch.tasks) == 2
    assert scheduler.poll() is None


@pytest.mark.parametrize(("priority", "bound_s"), [(Priority.LIVE, 0.01), (Priority.STANDARD, 2.0)])
def test_busy_workers_overtake_a_partial_batch_no_longer_than_its_patience(priority: Priority, bound_s: float) -> None:
    """Work of lower keys never ends; each piece of it takes a millisecond."""
    clock = Clock()
    scheduler = Scheduler(rows_each(4), 0.01, 1 << 40, clock=clock)
    scheduler.submit(job("short", 1080 * 900 + 120, priority))  # 900 long chunks; its stream's next read has a high tag
    prepare(scheduler, scheduler.take())  # type: ignore[arg-type]
    while isinstance(scheduler.poll(), Batch):
        pass
    scheduler.submit(job("short", 200, priority))
    prepare(scheduler, scheduler.take())  # type: ignore[arg-type]
    ready_s = clock.now_s
    for number in range(4000):
        scheduler.submit(job(f"long-{number}", 1200, Priority.LIVE))
        work = scheduler.poll()
        if isinstance(work, Batch) and work.samples == 300:
            break
        if isinstance(work, Job):
            prepare(scheduler, work)
        clock.now_s += 0.001
    assert clock.now_s - ready_s == pytest.approx(bound_s, abs=0.0025)


def test_decoded_signal_is_bounded() -> None:
    scheduler = Scheduler(rows_each(1000), 0.01, 40_000)
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
    scheduler = Scheduler(rows_each(16), 0.001, 1 << 40)
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


def test_a_read_that_is_given_up_takes_its_waiting_chunks_along() -> None:
    scheduler = Scheduler(rows_each(2), 0.001, 1 << 40, clock=Clock())
    failed = job("a", 1200 * 8)
    scheduler.submit(failed)
    prepare(scheduler, scheduler.take())  # type: ignore[arg-type]
    assert isinstance(scheduler.poll(), Batch)
    assert scheduler.done(failed)
    assert scheduler.poll() is None
    assert not scheduler.done(failed)


steps = st.lists(st.tuples(st.sampled_from("spppbbbxfc"), st.integers(0, 30), st.integers(1, 30_000)), max_size=120)


@given(steps)
@settings(max_examples=60)
def test_running_totals_are_the_sums(plan: list[tuple[str, int, int]]) -> None:
    """Submit, start and prepare, call, fail, cancel, let time pass: what is counted is what is there, to the last."""
    clock = Clock()
    scheduler = Scheduler(rows_each(3), 0.01, 100_000, clock=clock)
    waiting: list[Job] = []
    active: list[Job] = []
    in_batches: list[Batch] = []

    def check() -> None:
        assert scheduler.queued_samples() == sum(work.read.samples for work in waiting + active)
        assert scheduler._decoded_bytes == sum(work.decoded_bytes for work in active)
        chunks = sum(work.missing for work in active)
        taken = sum(task.job in active for batch in in_batches for task in batch.tasks)
        classes = scheduler._ready.values()
        assert sum(len(ready.tasks) for ready in classes) == chunks - taken
        of_live = [task for work in active if work.is_live for task in work.ready]
        assert sum(len(ready.tasks.live) for ready in classes) == len(of_live)

    for action, number, samples in plan:
        if action == "s":
            waiting.append(job("abc"[number % 3], samples, list(Priority)[number % len(Priority)]))
            scheduler.submit(waiting[-1])
        elif action == "p":
            work = scheduler.poll()
            if isinstance(work, Job):
                waiting.remove(work)
                active.append(work)
                prepare(scheduler, work)
            elif isinstance(work, Batch):
                in_batches.append(work)
        elif action == "b" and in_batches:
            for task in in_batches.pop(number % len(in_batches)).tasks:
                if scheduler.did_one(task.job) and scheduler.done(task.job):
                    active.remove(task.job)
        elif action == "x" and active:
            assert scheduler.done(active.pop(number % len(active)))
        elif action == "c":
            scheduler.cancel("abc"[number % 3])
            waiting = [work for work in waiting if work.stream != "abc"[number % 3]]
            active = [work for work in active if work.stream != "abc"[number % 3]]
        clock.now_s += number / 1000
        check()


def test_close_sends_the_workers_home() -> None:
    scheduler = Scheduler(rows_each(16), 0.05, 1 << 40)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(scheduler.take()))
    thread.start()
    scheduler.close()
    thread.join(5)
    assert got == [None]


def served_of(scheduler: Scheduler, streams: dict[str, tuple[Priority, str]], samples: int) -> Counter[object]:
    """Streams that always have a few reads waiting, as credit allows: what each is served of so many samples."""
    names = itertools.count()
    served: Counter[object] = Counter()

    def submit(stream: str) -> None:
        priority, client = streams[stream]
        work = job(stream, 100_000, priority, name=next(names))
        work.client = client
        scheduler.submit(work)

    for stream in 4 * list(streams):
        submit(stream)
    while served.total() < samples:
        done, finished = serve(scheduler)
        served.update(done)
        for ended in finished:
            submit(str(ended.stream))
    return served


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("others", [1, 10])
def test_live_without_end_has_its_share_and_no_more(share: float, others: int) -> None:
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40, live_share=share)
    live = {f"live-{number}": (Priority.LIVE, f"instrument-{number}") for number in range(5)}
    rest = {f"rest-{number}": (Priority.BULK, f"lab-{number}") for number in range(others)}
    served = served_of(scheduler, live | rest, 40_000_000)
    lead = 200_000 / served.total()  # that it may have at any time
    assert sum(served[name] for name in live) / served.total() == pytest.approx(share + lead, abs=0.02)
    assert max(served[name] for name in rest) < 1.2 * min(served[name] for name in rest)
    assert max(served[name] for name in live) < 1.3 * min(served[name] for name in live)


def test_live_within_its_share_does_not_wait_however_much_others_send() -> None:
    """A fifth of all; it may wait for the batch that is being called, as long as a partial one may."""
    clock = Clock()
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40, clock=clock)
    for number in range(100):
        scheduler.submit(job("bulk", 100_000, Priority.BULK, name=number))

    def serve_more(served: Counter[object]) -> list[Job]:
        done, finished = serve(scheduler)
        served.update(done)
        clock.now_s += sum(done.values()) / 1e6
        return finished

    for _round in range(20):
        scheduler.submit(job("live", 100_000, Priority.LIVE))
        served: Counter[object] = Counter()
        while all(ended.stream != "live" for ended in serve_more(served)):
            pass
        assert served["bulk"] < 50_000
        while served["bulk"] < 400_000:
            serve_more(served)


def test_live_alone_has_all() -> None:
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40, live_share=0.1)
    assert served_of(scheduler, {"live": (Priority.LIVE, "a")}, 5_000_000).total() >= 5_000_000


@pytest.mark.parametrize("priority", Priority)
def test_clients_share_equally_however_many_streams_one_opens(priority: Priority) -> None:
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40)
    greedy = {f"greedy-{number}": (priority, "greedy") for number in range(48)}
    served = served_of(scheduler, greedy | {"modest": (priority, "modest")}, 40_000_000)
    assert served["modest"] / served.total() > 0.4
    assert max(served[name] for name in greedy) < 3 * min(served[name] for name in greedy)


def test_a_stream_that_sends_more_than_an_instrument_goes_on_as_standard() -> None:
    clock = Clock()
    scheduler = Scheduler(rows_each(16), 0.01, 1 << 40, live_rate_samples_per_s=1e6, clock=clock)

    def is_live(samples: int) -> bool:
        work = job("live", samples, Priority.LIVE)
        scheduler.submit(work)
        return work.is_live

    assert [is_live(2_000_000) for _ in range(6)] == [True] * 5 + [False], "ten seconds' worth at once"
    clock.now_s += 1.5
    assert [is_live(500_000) for _ in range(4)] == [True] * 3 + [False]
    clock.now_s += 1000
    assert [is_live(2_000_000) for _ in range(6)] == [True] * 5 + [False], "what was not used is not saved up"
    waiting = scheduler.load().queued_samples
    assert waiting[Priority.LIVE] == scheduler.queued_samples(), "it is still counted as what it asked for"
    standard = job("standard", 1000)
    scheduler.submit(standard)
    assert not standard.is_live
    assert standard.tag <= min(work.tag for work in scheduler._streams["live"].rest.jobs)
