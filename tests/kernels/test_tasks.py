"""What the kernels of alignment share: how much memory tasks take, and how they are put into batches."""

import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.kernels.align import tasks as module
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fill import Filler
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.tasks import batches
from porestream.kernels.device import Device, EmulatedDevice


def some(seed: int, count: int, most: int) -> tuple[Pieces, Pieces]:
    rng = np.random.default_rng(seed)
    sides = [
        [rng.integers(0, 4, int(size)).astype(np.uint8) for size in rng.integers(1, most, count)] for _ in range(2)
    ]
    return Pieces.of(sides[0]), Pieces.of(sides[1])


@pytest.mark.parametrize("most", [40, 250])  # all of one kind, so that one batch holds them
@pytest.mark.parametrize("what", ["extend", "fill"])
def test_tasks_take_what_is_planned(monkeypatch: pytest.MonkeyPatch, what: str, most: int) -> None:
    """At most, with the CIGARs' way to the host; and the plan is not far above."""
    planned: list[int] = []
    task_bytes = module.Layout.task_bytes

    def noted(layout: module.Layout) -> npt.NDArray[np.int64]:
        planned.append(int(task_bytes(layout).sum()))
        return task_bytes(layout)

    monkeypatch.setattr(module.Layout, "task_bytes", noted)
    query, target = some(1, 60, most)
    device = EmulatedDevice()
    align = partial(Extender(device, 1 << 30), band=200, to_ends=True) if what == "extend" else Filler(device, 1 << 30)
    align(query, target)  # compiled, cached
    tracemalloc.start()
    try:
        align(query, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= planned[0] + 100_000  # Python's own objects
    assert planned[0] <= 1.05 * peak


@given(sizes=st.lists(st.integers(1, 100), max_size=60), memory=st.integers(100, 400))
def test_batches_hold_every_task_once_and_fit(sizes: list[int], memory: int) -> None:
    bytes_N = np.array(sizes, np.int64)
    made = list(batches(bytes_N, memory))
    assert sorted(np.concatenate([*made, np.zeros(0, np.int64)]).tolist()) == list(range(len(sizes)))
    assert all(0 < bytes_N[batch].sum() <= memory for batch in made)
    if made:
        assert bytes_N[made[0][0]] == max(sizes)


def test_a_task_that_does_not_fit_is_named() -> None:
    with pytest.raises(MemoryError, match=r"an alignment task needs 5,000 bytes, but a batch may take 4,999"):
        list(batches(np.array([1, 5_000]), 4_999))


@pytest.mark.parametrize("what", ["extend", "fill"])
def test_places_beyond_32_bits(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Directions behind 2**31 words, bases behind 2**31 others: memory that nobody touches is none."""
    query, target = some(2, 6, 100)
    aligner = Extender(EmulatedDevice(), 1 << 40) if what == "extend" else Filler(EmulatedDevice(), 1 << 40)
    align = partial(aligner, band=200, to_ends=True) if isinstance(aligner, Extender) else aligner
    expected = align(query, target)

    def far(pieces: Pieces) -> Pieces:
        codes = np.zeros((1 << 31) + len(pieces.codes), np.uint8)
        codes[1 << 31 :] = pieces.codes
        return replace(pieces, codes=codes, start_N=pieces.start_N + (1 << 31))

    run_batch = module.run_batch

    def with_a_gap(device: Device, layout: module.Layout, launch: module.Launch) -> object:
        words_N = layout.direction_words_N.copy()
        words_N[0] += (1 << 31) + 5
        return run_batch(device, replace(layout, direction_words_N=words_N), launch)

    monkeypatch.setattr(module, "run_batch", with_a_gap)
    found = align(far(query), far(target))
    assert found.score_N.tolist() == expected.score_N.tolist()
    assert found.cigar.tolist() == expected.cigar.tolist()
