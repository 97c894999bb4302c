"""Chains on the emulator against minimap2's steps, in each schedule."""

import numpy as np
import numpy.typing as npt
import plain_mapping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.kernels import emulator
from porestream.kernels.align import chain as chain_module
from porestream.kernels.align.aligner import PRESETS
from porestream.kernels.align.chain import BAND, BAND_LONG, MAX_GAP, MIN_COUNT, MIN_SCORE, Chains, gap_cost
from porestream.kernels.align.seeds import Anchors
from porestream.kernels.device import EmulatedDevice

SPAN = 15
DEVICE = EmulatedDevice()
PRESET = PRESETS["map-ont"]
Key = tuple[int, int, int]  # read, strand, sequence


@st.composite
def anchors(draw: st.DrawFn) -> dict[Key, list[tuple[int, int]]]:
    """Of some reads: along diagonals, with jumps, and strays."""
    found: dict[Key, list[tuple[int, int]]] = {}
    for read in range(draw(st.integers(1, 4))):
        for _ in range(draw(st.integers(0, 3))):
            key = (read, draw(st.integers(0, 1)), draw(st.integers(0, 1)))
            target, query = draw(st.integers(20, 60_000)), draw(st.integers(20, 3000))
            there = found.setdefault(key, [])
            for _ in range(draw(st.integers(1, 25))):
                there.append((target, query))
                target += draw(st.integers(0, 60)) + draw(st.sampled_from([0, 0, 0, 0, 3, 700, 6000]))
                query += draw(st.integers(0, 60)) + draw(st.sampled_from([0, 0, 0, 0, 3, 600]))
    return found


def arrays(found: dict[Key, list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = sorted(
        (read, strand << 63 | sequence << 32 | target, SPAN << 32 | query)
        for (read, strand, sequence), places in found.items()
        for target, query in places
    )
    read, x, y = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    return np.array(x, np.uint64), np.array(y, np.uint64), np.array(read, np.int32)


def plain_chains(x: np.ndarray, y: np.ndarray, read: np.ndarray, *, far: bool) -> list[tuple[int, int, list[int]]]:
    """(read, score, anchors) in the order of `Chains`."""
    band = BAND_LONG if far else BAND
    reach, cost = max(MAX_GAP["map-ont"], band), gap_cost(PRESET)
    score, before = np.zeros(len(x), int), np.full(len(x), -1)
    for group in sorted({(int(r), int(place) >> 32) for r, place in zip(read, x, strict=True)}):
        there = np.array([i for i in range(len(x)) if (int(read[i]), int(x[i]) >> 32) == group])
        places = [(int(x[i]) & 0xFFFFFFFF, int(y[i]) & 0xFFFFFFFF) for i in there]
        if far:
            own, previous = plain_mapping.chain_far(places, SPAN, reach, 1000, band, cost)
        else:
            own, previous = plain_mapping.chain(places, SPAN, reach, band, 5000, cost)
        score[there] = own
        before[there] = [there[j] if j >= 0 else -1 for j in previous]
    chains = []
    for number in sorted(set(read.tolist())):
        mine = np.flatnonzero(read == number)
        first = mine[0]
        previous = [int(b - first) if b >= 0 else -1 for b in before[mine]]
        for total, members in plain_mapping.backtrack(score[mine].tolist(), previous, MIN_COUNT, MIN_SCORE, band):
            chains.append((number, total, [int(first + member) for member in members]))
    return sorted(chains, key=lambda one: (one[0], int(x[one[2][0]])))


def listed(chains: Chains) -> list[tuple[int, int, list[tuple[int, int]]]]:
    found = []
    for number, score, first, count in zip(chains.read_C, chains.score_C, chains.first_C, chains.count_C, strict=True):
        members = range(first, first + count)
        found.append((int(number), int(score), [(int(chains.x_A[i]), int(chains.y_A[i])) for i in members]))
    return found


@settings(max_examples=80)
@given(anchors(), st.booleans(), st.sampled_from(list(emulator.Schedule)))
def test_chains_are_minimap2s(found: dict[Key, list[tuple[int, int]]], far: bool, schedule: emulator.Schedule) -> None:
    x, y, read = arrays(found)
    with emulator.scheduled(schedule):
        chains = chain_module._chain(DEVICE, x, y, read, 4, PRESET, far=far)
    expected = [
        (number, score, [(int(x[i]), int(y[i])) for i in members])
        for number, score, members in plain_chains(x, y, read, far=far)
    ]
    assert listed(chains) == expected
    assert np.array_equal(chains.read_A, np.repeat(chains.read_C, chains.count_C))
    assert np.array_equal(chains.anchors, np.searchsorted(chains.read_A, np.arange(5)))


def anchors_of(
    x: npt.NDArray[np.uint64], y: npt.NDArray[np.uint64], read: npt.NDArray[np.int32], *, reads: int
) -> Anchors:
    none = np.zeros(0)
    first = np.searchsorted(read, np.arange(reads + 1))
    return Anchors(x_A=x, y_A=y, read_A=read, first=first, repetitive=none, seed_position=none, seed_first=none)


def line(target: int, query: int, count: int) -> list[tuple[int, int]]:
    return [(target + 20 * i, query + 20 * i) for i in range(count)]


def test_pieces_on_both_sides_of_a_long_deletion_are_joined() -> None:
    """2.5 kb: beyond the first band, within the second. The other read has one chain, and is left as it was."""
    found = {(0, 0, 0): line(1000, 100, 40) + line(4300, 900, 40), (1, 1, 1): line(500, 100, 30)}
    x, y, read = arrays(found)
    once = chain_module._chain(DEVICE, x, y, read, 2, PRESET, far=False)
    assert [len(members) for _, _, members in listed(once)] == [40, 40, 30]
    whole = anchors_of(x, y, read, reads=2)
    found_chains, too_much = chain_module.find_chains(DEVICE, whole, PRESET, np.array([1700, 700], np.int32))
    chains = listed(found_chains)
    assert not too_much.any()
    assert [(number, len(members)) for number, _, members in chains] == [(0, 80), (1, 30)]
    assert chains[1] == listed(once)[2]


def test_long_joins_have_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(0, 0, 0): line(1000, 100, 40) + line(4300, 900, 40), (1, 0, 0): line(1000, 100, 9) + line(9000, 900, 9)}
    x, y, read = arrays(found)
    whole = anchors_of(x, y, read, reads=2)
    monkeypatch.setattr(chain_module, "MAX_LINKS", 2000)  # of the first one 6,400
    chains, too_much = chain_module.find_chains(DEVICE, whole, PRESET, np.array([1700, 1200], np.int32))
    assert too_much.tolist() == [True, False]
    assert set(chains.read_C.tolist()) == {0, 1}


def test_a_read_with_too_much_work_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {(0, 0, 0): line(1000, 100, 40), (1, 0, 0): line(1000, 100, 10), (3, 0, 0): line(10, 10, 5)}
    x, y, read = arrays(found)
    whole = anchors_of(x, y, read, reads=4)
    same, too_much = chain_module.without_too_much_work(DEVICE, whole, PRESET)
    assert same is whole
    assert not too_much.any()
    monkeypatch.setattr(chain_module, "MAX_LINKS", 1000)
    left, too_much = chain_module.without_too_much_work(DEVICE, whole, PRESET)
    assert too_much.tolist() == [True, False, False, False]
    assert left.read_A.tolist() == [1] * 10 + [3] * 5
    assert left.first.tolist() == [0, 0, 10, 10, 15]
    assert np.array_equal(left.x_A, x[40:])
