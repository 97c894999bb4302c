"""Kernels of hits.cu, one by one on the emulator, against plain NumPy, in each schedule.

Here are `unpack` and `choose_hits`; the others are held against minimap2 alone (`test_device_aligner.py`).
"""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_mapping import log2_of

from porestream import emulator
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.hits import HIT, REVERSE
from porestream.kernels.source import load

DEVICE = EmulatedDevice()
SPAN, MAX_GAP, READ_LENGTH = 15, 5000, 3000
PRIMARY_RECORD = 2
SCHEDULES = list(emulator.Schedule)
F32 = np.float32


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_bases_are_unpacked(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, int(rng.integers(1, 400)), np.uint8)
    edges = np.sort(rng.choice(len(codes) + 1, 2 * int(rng.integers(0, min(4, len(codes) // 2 + 1))), replace=False))
    unknown = edges.reshape(-1, 2).astype(np.int64)
    expected = codes.copy()
    for begin, end in unknown:
        expected[begin:end] = 4
    four = np.concatenate([codes, np.zeros(-len(codes) % 4, np.uint8)]).reshape(-1, 4)
    packed = (four << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
    first = rng.integers(0, len(codes), 6)
    sizes = np.array([rng.integers(0, len(codes) - place + 1) for place in first])
    window = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    found, total = np.full(max(window[-1], 1), 9, np.uint8), int(window[-1])
    runs = unknown.reshape(-1) if len(unknown) else np.zeros(2, np.int64)
    with emulator.scheduled(schedule, seed=seed % 1000 + 1):
        load(DEVICE, "hits.cu", "unpack")(
            (-(-total // 64) or 1,),
            (64,),
            (packed, runs, window, first.astype(np.int64), found, np.int32(6), np.int32(len(unknown)), np.int64(total)),
        )
    wanted = [expected[place : place + size] for place, size in zip(first, sizes, strict=True)]
    assert np.array_equal(found[:total], np.concatenate(wanted))


def alignments(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.void], list[npt.NDArray[np.uint32]]]:
    """Hits of a read, alike enough that choices are close; and their CIGARs."""
    table, cigars = np.zeros(count, HIT), []
    places = rng.integers(0, READ_LENGTH // 2, 3)
    for hit in table:
        hit["qs"] = places[rng.integers(3)] + rng.integers(0, 60) if rng.random() < 0.7 else rng.integers(0, 400)
        hit["qe"] = min(READ_LENGTH, hit["qs"] + rng.choice([60, 700, 1400, 2950]) + rng.integers(0, 40))
        hit["rs"] = rng.choice([1000, 1000, 50_000])
        hit["sequence"], hit["flags"] = rng.integers(2), rng.choice([0, REVERSE])
        inserted, deleted = (int(n) for n in rng.choice([0, 1, 7], 2))
        matched = int(hit["qe"] - hit["qs"]) - inserted
        cigar = [matched // 2 << 4, deleted << 4 | 2, inserted << 4 | 1, (matched - matched // 2) << 4]
        cigars.append(np.array([op for op in cigar if op >> 4], np.uint32))
        hit["re"] = hit["rs"] + matched + deleted
        hit["ambiguous"] = rng.choice([0, 0, 5])
        hit["columns"] = matched + inserted + deleted - hit["ambiguous"]
        hit["matches"] = max(int((matched - hit["ambiguous"]) * rng.choice([0.85, 0.98, 1.0])), 1)
        hit["dp"] = max(int(2 * hit["matches"] - 4 * (matched - hit["matches"]) * 0.5), 0)
        hit["score0"] = max(int(hit["matches"] * rng.choice([0.8, 0.82])), 1)
        hit["score"], hit["count"] = hit["score0"], rng.choice([2, 5, 12, 90])
        hit["hash"], hit["parent"] = rng.integers(0, 2**32), -1
    table["operations"] = [len(cigar) for cigar in cigars]
    return table, cigars


def worth_it(hits: list[dict[str, int]]) -> list[dict[str, int]]:
    return [hit for hit in hits if hit["count"] >= 3 and hit["matches"] >= 40 and hit["dp"] >= 80]


def weighed_again(hits: list[dict[str, int]]) -> None:
    """mm_update_dp_max."""
    by_dp = sorted((hit["dp"] for hit in hits), reverse=True)
    best = max(hits, key=lambda hit: hit["dp"], default=None)
    if len(hits) < 2 or best is None or by_dp[1] < by_dp[0] * F32(0.9):
        return
    if best["qe"] - best["qs"] < READ_LENGTH * float(F32(0.9)):
        return
    gaps = [op >> 4 for op in best["ops"] if op & 15]
    divergence = max(1 - best["matches"] / (best["columns"] + best["ambiguous"] - sum(gaps) + len(gaps)), 0.02)
    weight = 0.5 / divergence if 2 * 0.5 / divergence >= 4 else 0.5
    for hit in hits:
        gaps = [op >> 4 for op in hit["ops"] if op & 15]
        cost = sum(weight + float(log2_of(1.0 + gap)) for gap in gaps)
        mismatches = hit["columns"] + hit["ambiguous"] - hit["matches"] - sum(gaps)
        hit["dp"] = max(int(2 * (hit["matches"] - weight * mismatches - cost) + 0.499), 0)


def with_parents(hits: list[dict[str, int]]) -> None:
    """mm_set_parent; what is covered is painted onto the read."""
    primaries: list[int] = []
    for i, hit in enumerate(hits):
        hit["parent"] = i
        start, end = hit["qs"], hit["qe"]
        painted = np.zeros(READ_LENGTH, bool)
        for j in primaries:
            painted[hits[j]["qs"] : hits[j]["qe"]] = True
        uncovered = int((~painted[start:end]).sum()) if painted[start:end].any() else 0
        for j in primaries:
            best = hits[j]
            overlap = min(end, best["qe"]) - max(start, best["qs"])
            if overlap <= 0:
                continue
            least, most = sorted((end - start, best["qe"] - best["qs"]))
            if not F32(overlap) / F32(least) - F32(uncovered) / F32(most) > F32(0.5):
                continue
            hit["parent"] = j
            best["second"] = max(best["second"], hit["score"])
            counts = hit["count"] >= best["count"]
            same = all(best[name] == hit[name] for name in ("sequence", "rs", "re")) and overlap == least
            if not same:
                best["dp2"] = max(best["dp2"], hit["dp"])
                counts |= best["dp"] - hit["dp"] <= 8
            best["seconds"] += counts
            break
        else:
            primaries.append(i)


def selected(hits: list[dict[str, int]]) -> list[dict[str, int]]:
    """mm_select_sub, and parents by their new places."""
    kept: list[int] = []
    for i, hit in enumerate(hits):
        best = hits[hit["parent"]]
        near = F32(hit["score"]) >= F32(best["score"]) * F32(0.8) or hit["score"] + 2 * SPAN >= best["score"]
        same = all(hit[name] == best[name] for name in ("qs", "qe", "sequence", "rs", "re"))
        seconds = sum(hits[j]["parent"] != j for j in kept)
        if hit["parent"] == i or (near and seconds < 5 and not same):
            kept.append(i)
    for i in kept:
        hits[i]["parent"] = kept.index(hits[i]["parent"])
    return [hits[i] for i in kept]


def mapq(hit: dict[str, int], unique: np.float32) -> int:
    """mm_set_mapq2, of a primary one."""
    by_score = (F32(1) if hit["score"] > 100 else F32(0.01) * F32(hit["score"])) * unique
    penalty = min(by_score, F32(1) if hit["count"] > 10 else F32(0.1) * F32(hit["count"]))
    second, identity = max(hit["second"], 40), F32(hit["matches"]) / F32(hit["columns"])
    logarithm = F32(math.log(F32(hit["dp"]) / F32(2)))
    factor = identity * penalty * F32(40)
    if hit["dp2"] > 0:
        x = F32(hit["dp2"]) * F32(second) / F32(hit["dp"]) / F32(hit["score0"])
        found = int(factor * (F32(1) - x * x) * logarithm)
        found = min(found, int(F32(6.02) * identity * identity * F32(hit["dp"] - hit["dp2"]) / F32(2) + F32(0.499)))
    else:
        found = int(factor * (F32(1) - F32(second) / F32(hit["score0"])) * logarithm)
    found -= int(F32(4.343) * F32(math.log(hit["seconds"] + 1)) + F32(0.499))
    found = min(max(found, 0), 60)
    return 1 if hit["dp"] > hit["dp2"] and found == 0 else found


def chosen(table: npt.NDArray[np.void], cigars: list[npt.NDArray[np.uint32]], repetitive: int) -> list[dict[str, int]]:
    names = table.dtype.names or ()
    hits = [
        {name: hit[name].item() for name in names} | {"ops": cigar.tolist()}
        for hit, cigar in zip(table, cigars, strict=True)
    ]
    hits = worth_it(hits)
    weighed_again(hits)
    hits = sorted(worth_it(hits), key=lambda hit: -(hit["dp"] << 32 | hit["hash"]))
    with_parents(hits)
    hits = selected(hits)
    total = sum(hit["score"] for i, hit in enumerate(hits) if hit["parent"] == i)
    for i, hit in enumerate(hits):
        hit["mapq"] = mapq(hit, F32(total) / F32(total + repetitive)) if hit["parent"] == i else 0
        hit["flags"] = (hit["flags"] & REVERSE) | (PRIMARY_RECORD if i == 0 else 0)
    return hits


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_hits_are_chosen_as_minimap2_does(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    reads = [alignments(rng, int(rng.integers(0, 12))) for _ in range(3)]
    table = np.concatenate([read for read, _ in reads])
    pieces = [cigar for _, own in reads for cigar in own]
    table["cigar"] = np.concatenate([[0], np.cumsum([len(cigar) for cigar in pieces])])[: len(table)]
    first = np.concatenate([[0], np.cumsum([len(read) for read, _ in reads])]).astype(np.int64)
    repetitive = rng.choice([0, 500], 3).astype(np.int32)
    hit, left = np.append(table, np.zeros(1, HIT)).view(np.uint8), np.zeros(3, np.int32)
    with emulator.scheduled(schedule, seed=seed % 1000 + 1):
        load(DEVICE, "hits.cu", "choose_hits")(
            (1,),
            (64,),
            (
                *(first, hit, np.full(3, READ_LENGTH, np.int32), np.concatenate([*pieces, np.zeros(1, np.uint32)])),
                *(np.zeros(len(table) + 1, np.uint64), np.zeros(len(table) + 1, np.int32), repetitive, left),
                *(np.int32(SPAN), np.int32(MAX_GAP), np.int32(3)),
            ),
        )
    found = hit.view(HIT)
    compared = ("qs", "qe", "rs", "re", "sequence", "flags", "dp", "dp2", "second", "seconds", "parent", "mapq", "hash")
    for number, (read, cigars) in enumerate(reads):
        expected = chosen(read, cigars, int(repetitive[number]))
        mine = found[first[number] : first[number] + left[number]]
        assert [[hit[name].item() for name in compared] for hit in mine] == [
            [hit[name] for name in compared] for hit in expected
        ]


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_hits_show_what_is_to_be_chosen(seed: int) -> None:
    """Primary, supplementary and secondary ones, MAPQ between its bounds, and some that are dropped."""
    rng = np.random.default_rng(seed)
    made = [alignments(rng, 11) for _ in range(60)]
    hits = [chosen(read, cigars, 0) for read, cigars in made]
    assert any(sum(hit["parent"] == i for i, hit in enumerate(one)) > 1 for one in hits)
    assert any(hit["parent"] != i for one in hits for i, hit in enumerate(one))
    assert any(0 < hit["mapq"] < 60 for one in hits for hit in one)
    assert sum(map(len, hits)) < 60 * 11
