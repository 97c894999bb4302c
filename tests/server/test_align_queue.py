"""Batches of called reads on their way to a device."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from porestream.kernels.aligner import Alignment
from porestream.server.align_queue import AlignQueue, ToAlign
from porestream.server.device_use import DeviceUse

ALIGNMENT = Alignment(0, "c", 1, 2, 60, np.zeros(0, np.uint32), 10, 0, "1", 0.0)


@dataclass
class FakeAligner:
    """Remembers its batches; `hold` keeps the first one waiting, `bad` fails any batch with that read."""

    batch_bases: int = 100
    hold: threading.Event | None = None
    bad: str = ""
    batches: list[list[str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    reference: Any = field(default_factory=lambda: SimpleNamespace(name="r"))

    def align_batch(self, reads: list[tuple[str, str]], *, md: bool) -> list[list[Alignment]]:
        self.batches.append([name for name, _ in reads])
        self.begun.set()
        if self.hold is not None and len(self.batches) == 1:
            assert self.hold.wait(20)
        if self.bad in self.batches[-1]:
            raise RuntimeError("no")
        return [[ALIGNMENT if md else replace(ALIGNMENT, md="")] for _ in reads]


def read(name: str, bases: int = 10, *, md: bool = True) -> ToAlign:
    job: Any = SimpleNamespace(read=SimpleNamespace(name=name), settings=SimpleNamespace(emit_md=md))
    called: Any = SimpleNamespace(sequence="A" * bases)
    return ToAlign(job, called, 0.0)


Results = dict[str, list[Alignment] | Exception]


def run(aligner: FakeAligner, first: ToAlign, *others: ToAlign, between: Callable[[], None] = lambda: None) -> Results:
    """What comes of the reads; the others come while the first is aligned."""
    found: Results = {}
    use = DeviceUse("cuda:0", 1)
    queue = AlignQueue(
        aligner,  # type: ignore[arg-type]
        lambda one, result: found.__setitem__(one.job.read.name, result),
        use,
    )
    queue.start()
    queue.put(first)
    assert aligner.begun.wait(20)
    for one in others:
        queue.put(one)
    assert aligner.hold is None or len(queue) == len(others)
    between()
    queue.close()
    assert use.clock.active == 0
    return found


def test_a_batch_forms_while_the_one_before_runs() -> None:
    aligner = FakeAligner(hold=threading.Event())
    found = run(aligner, read("a"), *(read(name) for name in "bcd"), between=aligner.hold.set)  # type: ignore[union-attr]
    assert aligner.batches == [["a"], ["b", "c", "d"]]
    assert set(found) == set("abcd")


def test_a_batch_has_no_more_bases_than_fit_but_for_one_read() -> None:
    aligner = FakeAligner(batch_bases=100, hold=threading.Event())
    others = [read("b", 60), read("c", 40), read("d", 1), read("e", 500), read("f", 100)]
    run(aligner, read("a"), *others, between=aligner.hold.set)  # type: ignore[union-attr]
    assert aligner.batches == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]


def test_a_read_that_fails_takes_no_other_with_it() -> None:
    aligner = FakeAligner(hold=threading.Event(), bad="c")
    found = run(aligner, read("a"), *(read(name) for name in "bcd"), between=aligner.hold.set)  # type: ignore[union-attr]
    assert aligner.batches == [["a"], ["b", "c", "d"], ["b"], ["c"], ["d"]]
    assert [name for name, result in found.items() if isinstance(result, RuntimeError)] == ["c"]
    assert all(found[name] for name in "abd")


def test_md_is_only_for_streams_that_asked() -> None:
    aligner = FakeAligner(hold=threading.Event())
    found = run(aligner, read("a", md=False), read("b"), read("c", md=False), between=aligner.hold.set)  # type: ignore[union-attr]
    md = {name: result[0].md for name, result in found.items() if not isinstance(result, Exception)}
    assert md == {"a": "", "b": "1", "c": ""}


@pytest.mark.parametrize("started", [True, False])
def test_an_idle_queue_ends(started: bool) -> None:
    queue = AlignQueue(FakeAligner(), lambda *_: None, None)  # type: ignore[arg-type]
    if started:
        queue.start()
    queue.close()
