"""Batches of called reads on their way to a device."""

import threading
import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from porestream.kernels.align.aligner import Alignment
from porestream.server.calling import align_queue
from porestream.server.calling.align_queue import AlignQueue, ToAlign
from porestream.server.calling.device_use import DeviceUse
from porestream.server.reads import Priority

ALIGNMENT = Alignment(
    flag=0,
    reference_name="c",
    reference_start=1,
    reference_end=2,
    mapping_quality=60,
    cigar=np.zeros(0, np.uint32),
    score=10,
    edit_distance=0,
    md="1",
    divergence=0.0,
)


@dataclass
class FakeAligner:
    """Remembers its batches; `hold` keeps the first one waiting, `bad` fails any batch with that read."""

    batch_bases: int = 100
    hold: threading.Event | None = None
    bad: str = ""
    batches: list[list[str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    elsewhere: threading.Event = field(default_factory=threading.Event)
    reference: Any = field(default_factory=lambda: SimpleNamespace(name="r"))

    def align_elsewhere(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        assert self.elsewhere.wait(20)
        return [replace(ALIGNMENT, score=99)]

    def align_batch(self, reads: list[tuple[str, str]], *, md: bool) -> list[list[Alignment] | None]:
        self.batches.append([name for name, _ in reads])
        self.begun.set()
        if self.hold is not None and len(self.batches) == 1:
            assert self.hold.wait(20)
        if self.bad in self.batches[-1]:
            raise RuntimeError("no")
        return [None if name == "hard" else [ALIGNMENT if md else replace(ALIGNMENT, md="")] for name, _ in reads]


def read(name: str, bases: int = 10, *, md: bool = True, priority: Priority = Priority.STANDARD) -> ToAlign:
    settings = SimpleNamespace(emit_md=md, priority=priority)
    job: Any = SimpleNamespace(read=SimpleNamespace(name=name), settings=settings)
    called: Any = SimpleNamespace(sequence="A" * bases)
    return ToAlign(job=job, index=0, sequence=called.sequence, stitched_s=0.0)


Results = dict[str, list[Alignment] | Exception]


def run(aligner: FakeAligner, first: ToAlign, *others: ToAlign, gone: str = "", fails: str = "") -> Results:
    """What comes of them: the others come while the first is aligned. `gone`: its stream is; `fails`: delivering."""
    found: Results = {}
    complete = threading.Event()
    aligner.hold = threading.Event()
    awaited = {one.job.read.name for one in (first, *others)} - {gone}

    def done(one: ToAlign, result: list[Alignment] | Exception) -> None:
        name = one.job.read.name
        if name == fails and not isinstance(result, Exception):
            raise RuntimeError("cannot deliver")
        found[name] = result
        if set(found) == awaited:
            complete.set()

    use = DeviceUse("cuda:0", 1)
    queue = AlignQueue(aligner, lambda job: job.read.name != gone, done, use)  # type: ignore[arg-type]
    queue.start()
    queue.put(first)
    assert aligner.begun.wait(20)
    for one in others:
        queue.put(one)
    assert len(queue) == len(others)
    aligner.hold.set()
    if "hard" in awaited:
        while set(found) != awaited - {"hard"}:  # the others do not wait for it
            time.sleep(0.001)
        aligner.elsewhere.set()
    assert complete.wait(20)
    queue.close()
    assert use.clock.active == 0
    return found


def test_a_batch_forms_while_the_one_before_runs() -> None:
    aligner = FakeAligner()
    found = run(aligner, read("a"), *(read(name) for name in "bcd"))
    assert aligner.batches == [["a"], ["b", "c", "d"]]
    assert set(found) == set("abcd")


def test_a_batch_has_no_more_bases_than_fit_but_for_one_read() -> None:
    aligner = FakeAligner(batch_bases=100)
    run(aligner, read("a"), read("b", 60), read("c", 40), read("d", 1), read("e", 500), read("f", 100))
    assert aligner.batches == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]


def test_live_reads_go_first() -> None:
    aligner = FakeAligner(batch_bases=20)
    reads = [read("bulk", priority=Priority.BULK), read("b"), read("c"), read("live", priority=Priority.LIVE)]
    run(aligner, read("a"), *reads)
    assert aligner.batches == [["a"], ["live", "b"], ["c", "bulk"]]


def test_a_read_whose_stream_is_gone_is_not_aligned() -> None:
    aligner = FakeAligner()
    assert set(run(aligner, read("a"), read("b"), read("c"), gone="b")) == {"a", "c"}
    assert aligner.batches == [["a"], ["c"]]


def test_a_read_that_fails_takes_no_other_with_it() -> None:
    aligner = FakeAligner(bad="c")
    found = run(aligner, read("a"), *(read(name) for name in "bcd"))
    assert aligner.batches == [["a"], ["b", "c", "d"], ["b"], ["c"], ["d"]]
    assert [name for name, result in found.items() if isinstance(result, RuntimeError)] == ["c"]
    assert all(found[name] for name in "abd")


def test_a_result_that_cannot_be_delivered_fails_and_takes_no_other_with_it() -> None:
    found = run(FakeAligner(), read("a"), *(read(name) for name in "bcd"), fails="b")
    assert [name for name, result in found.items() if isinstance(result, RuntimeError)] == ["b"]


def test_what_the_device_cannot_take_holds_up_nobody() -> None:
    found = run(FakeAligner(), read("a"), read("hard"), read("b"))
    (alignment,) = found["hard"]  # type: ignore[misc]
    assert alignment.score == 99


def test_md_is_only_for_streams_that_asked() -> None:
    found = run(FakeAligner(), read("a", md=False), read("b"), read("c", md=False))
    md = {name: result[0].md for name, result in found.items() if not isinstance(result, Exception)}
    assert md == {"a": "", "b": "1", "c": ""}


def test_what_waits_when_it_ends_is_dropped() -> None:
    aligner = FakeAligner(hold=threading.Event())
    queue = AlignQueue(aligner, lambda _: True, lambda *_: None, None)  # type: ignore[arg-type]
    queue.start()
    for name in "ab":
        queue.put(read(name))
        assert aligner.begun.wait(20)
    closing = threading.Thread(target=queue.close)
    closing.start()
    while len(queue):
        time.sleep(0.001)
    aligner.hold.set()  # type: ignore[union-attr]
    closing.join(20)
    assert aligner.batches == [["a"]]


@pytest.mark.parametrize("started", [True, False])
def test_an_idle_queue_ends(started: bool) -> None:
    queue = AlignQueue(FakeAligner(), lambda _: True, lambda *_: None, None)  # type: ignore[arg-type]
    if started:
        queue.start()
    queue.close()


@dataclass
class AllHard(FakeAligner):
    """The device aligns nothing; counts how many reads minimap2 has at once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0
    most: int = 0

    def align_batch(self, reads: list[tuple[str, str]], *, md: bool) -> list[list[Alignment] | None]:
        self.batches.append([name for name, _ in reads])
        return [None] * len(reads)

    def align_elsewhere(self, name: str, sequence: str, *, md: bool) -> list[Alignment]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.elsewhere.wait(20)
        with self.lock:
            self.now -= 1
        return []


def fill_up(queue: AlignQueue, count: int, room_bases: int) -> None:
    """Start, and put in so many reads that the batches wait for minimap2."""
    queue.start()
    for number in range(count):
        queue.put(read(str(number)))
    while queue._elsewhere_bases <= room_bases:
        time.sleep(0.001)


def test_what_the_device_leaves_is_aligned_on_all_cores_and_is_bounded() -> None:
    aligner = AllHard(batch_bases=100)
    found: list[str] = []
    queue = AlignQueue(aligner, lambda _: True, lambda one, _: found.append(one.job.read.name), None, cores=3)  # type: ignore[arg-type]
    fill_up(queue, 60, 100)
    while aligner.now < 3 or queue._elsewhere_bases <= 100:
        time.sleep(0.001)
    held = len(queue._elsewhere)  # three are being aligned, eleven wait; the batches wait for these
    assert held == 11
    aligner.elsewhere.set()
    while len(found) < 60:
        time.sleep(0.001)
    queue.close()
    assert aligner.most == 3
    assert sorted(found, key=int) == [str(number) for number in range(60)]


def test_a_queue_that_waits_for_minimap2_closes() -> None:
    aligner = AllHard(batch_bases=20)
    queue = AlignQueue(aligner, lambda _: True, lambda *_: None, None)  # type: ignore[arg-type]
    fill_up(queue, 10, 20)
    queue.close()
    aligner.elsewhere.set()


def test_reads_whose_stream_has_gone_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align_queue, "_LOOK_AGAIN_S", 0.01)
    aligner, gone, found = AllHard(batch_bases=20), threading.Event(), list[str]()
    queue = AlignQueue(
        aligner,  # type: ignore[arg-type]
        lambda job: not (gone.is_set() and int(job.read.name) < 9),
        lambda one, _: found.append(one.job.read.name),
        None,
    )
    fill_up(queue, 10, 20)
    gone.set()
    while "9" not in [one.job.read.name for one in [*queue._elsewhere]]:  # although minimap2 still has the first
        time.sleep(0.001)
    aligner.elsewhere.set()
    while "9" not in found:
        time.sleep(0.001)
    queue.close()


def test_what_the_device_aligned_does_not_wait_for_minimap2() -> None:
    class Mixed(AllHard):
        def align_batch(self, reads: list[tuple[str, str]], *, md: bool) -> list[list[Alignment] | None]:
            return [[] if name.endswith("9") else None for name, _ in reads]

    aligner, found = Mixed(batch_bases=100), list[str]()
    queue = AlignQueue(aligner, lambda _: True, lambda one, _: found.append(one.job.read.name), None)  # type: ignore[arg-type]
    for number in range(20):  # two batches; minimap2 has room for the first and a part of the second
        queue.put(read(str(number)))
    queue.start()
    while found != ["9", "19"]:
        time.sleep(0.001)
    aligner.elsewhere.set()
    while len(found) < 20:
        time.sleep(0.001)
    queue.close()
