"""Kernels of hits.cu, one by one on the emulator, against plain NumPy, in each schedule."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import plain_hits as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_hits import SPAN, Anchors, Hit

from porestream.kernels import emulator
from porestream.kernels.align.hits import HIT, PLAN, REVERSE, Failure
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.source import load

DEVICE = EmulatedDevice()
MAX_GAP, READ_LENGTH = 5000, 3000
SEQUENCE_LENGTHS = 60_000, 5000
SCHEDULES = list(emulator.Schedule)


def run(kernel: str, threads: int, schedule: emulator.Schedule, seed: int, *arguments: object) -> None:
    with emulator.scheduled(schedule, seed=seed % 1000 + 1):
        loaded = load(DEVICE, "hits.cu", kernel)
        names = [parameter.name for parameter in loaded.parameters]
        loaded(-(-threads // 64) or 1, 64, **dict(zip(names, arguments, strict=True)))


def starts(sizes: list[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def encoded(
    chains: list[Anchors], sequences: list[int], reverse: list[bool]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """As anchor.cuh has them: flags are the bits from 40 on."""
    every = joined_chains(chains)
    lengths = [len(chain) for chain in chains]
    on = np.array([s + (r << 31) for s, r in zip(sequences, reverse, strict=True)], np.int64).repeat(lengths)
    x = every.target.astype(np.uint64) | on.astype(np.uint64) << np.uint64(32)
    y = every.query + (SPAN << 32) + (every.flags << 40)
    return np.append(x, np.uint64(0)), np.append(y.astype(np.uint64), np.uint64(0))


def joined_chains(chains: list[Anchors]) -> Anchors:
    nothing = np.zeros(0, np.int64)
    parts = [(chain.target, chain.query, chain.flags) for chain in chains] or [(nothing, nothing, nothing)]
    return Anchors(*(np.concatenate(part) for part in zip(*parts, strict=True)))


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
    sizes = [int(rng.integers(0, len(codes) - place + 1)) for place in first]
    window = starts(sizes)
    total = int(window[-1])
    found = np.full(max(total, 1), 9, np.uint8)
    runs = unknown.reshape(-1) if len(unknown) else np.zeros(2, np.int64)
    run(
        *("unpack", total, schedule, seed, packed, runs, window, first.astype(np.int64), found),
        *(np.int32(6), np.int32(len(unknown)), np.int64(total)),
    )
    wanted = [expected[place : place + size] for place, size in zip(first, sizes, strict=True)]
    assert np.array_equal(found[:total], np.concatenate(wanted))


def alignments(
    rng: np.random.Generator, count: int, length: int
) -> tuple[npt.NDArray[np.void], list[npt.NDArray[np.uint32]]]:
    """Hits of a read, alike enough that choices are close; and their CIGARs."""
    table, cigars = np.zeros(count, HIT), []
    places = rng.integers(0, length // 2, 3)
    for hit in table:
        hit["qs"] = places[rng.integers(3)] + rng.integers(0, 60) if rng.random() < 0.7 else rng.integers(0, 400)
        hit["qe"] = min(length, hit["qs"] + rng.choice([60, 700, 1400, 2950]) + rng.integers(0, 40))
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
        hit["hash"], hit["parent"], hit["seconds"] = rng.integers(0, 2**32), -1, rng.integers(3)
    table["operations"] = [len(cigar) for cigar in cigars]
    return table, cigars


def as_hits(table: npt.NDArray[np.void], cigars: list[npt.NDArray[np.uint32]]) -> list[Hit]:
    return [
        {name: hit[name].item() for name in HIT.names or ()} | {"ops": cigar.tolist()}
        for hit, cigar in zip(table, cigars, strict=True)
    ]


def values(table: npt.NDArray[np.void], names: tuple[str, ...]) -> list[tuple[int, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_hits_are_chosen_as_minimap2_does(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(rng.choice([READ_LENGTH, 499])) for _ in range(3)]
    reads = [alignments(rng, int(rng.integers(0, 12)), length) for length in lengths]
    table = np.concatenate([read for read, _ in reads])
    pieces = [cigar for _, own in reads for cigar in own]
    table["cigar"] = starts([len(cigar) for cigar in pieces])[: len(table)]
    first = starts([len(read) for read, _ in reads])
    repetitive = rng.choice([0, 500], 3).astype(np.int32)
    hit, left = np.append(table, np.zeros(1, HIT)).view(np.uint8), np.zeros(3, np.int32)
    run(
        *("choose_hits", 3, schedule, seed),
        *(first, hit, np.array(lengths, np.int32), np.concatenate([*pieces, np.zeros(1, np.uint32)])),
        *(np.zeros(len(table) + 1, np.uint64), np.zeros(len(table) + 1, np.int32), repetitive, left),
        *(np.int32(SPAN), np.int32(MAX_GAP), np.int32(3)),
    )
    found = hit.view(HIT)
    compared = ("qs", "qe", "rs", "re", "sequence", "flags", "dp", "dp2", "second", "seconds", "parent", "mapq", "hash")
    for number, read in enumerate(reads):
        expected = plain.chosen(as_hits(*read), lengths[number], int(repetitive[number]))
        assert values(found[first[number] : first[number] + left[number]], compared) == [
            tuple(hit[name] for name in compared) for hit in expected
        ]


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_hits_show_what_is_to_be_chosen(seed: int) -> None:
    """Primary, supplementary and secondary ones, MAPQ between its bounds, and some that are dropped."""
    rng = np.random.default_rng(seed)
    hits = [plain.chosen(as_hits(*alignments(rng, 11, READ_LENGTH)), READ_LENGTH, 0) for _ in range(60)]
    assert any(sum(hit["parent"] == i for i, hit in enumerate(one)) > 1 for one in hits)
    assert any(hit["parent"] != i for one in hits for i, hit in enumerate(one))
    assert any(0 < hit["mapq"] < 60 for one in hits for hit in one)
    assert sum(map(len, hits)) < 60 * 11


def chain_of_seeds(
    rng: np.random.Generator, seeds: npt.NDArray[np.int64], sequence_length: int, *, reverse: bool
) -> Anchors:
    """Some of a stretch's seeds, on a diagonal that moves a little; rarely with one that is no seed."""
    begin = int(rng.choice([0, 0, 5, 100, len(seeds) // 2]))
    stretch = seeds[begin : begin + int(rng.choice([4, 40, 300]))]
    forward = stretch[np.sort(rng.choice(len(stretch), max(int(len(stretch) * rng.choice([0.1, 0.7, 1])), 3), False))]
    if rng.random() < 0.1:
        moved = int(rng.integers(len(forward)))
        forward[moved] += forward[moved] + 1 not in forward
    query = (READ_LENGTH - 2 - forward + SPAN)[::-1] if reverse else forward
    steps = np.maximum(np.diff(query) + rng.choice([0, 0, 0, -2, 2, 30], len(query) - 1), 1)
    extent = int(steps.sum())
    first = rng.choice([SPAN - 1, 1000, sequence_length - extent - int(rng.choice([1, 5, 50]))])
    return Anchors(first + np.concatenate([[0], np.cumsum(steps)]), query.copy(), np.zeros(len(query), np.int64))


def chains_of(rng: np.random.Generator, seeds: npt.NDArray[np.int64]) -> tuple[list[Hit], list[Anchors]]:
    hits, chains = [], []
    levels = [2500, 2100, 1990, 450, 380, 60] if rng.random() < 0.8 else [60, 70, 80]
    scores = rng.choice(levels, int(rng.integers(1, 14))) + rng.integers(0, 20)
    for score in np.sort(scores)[::-1].tolist():
        sequence, reverse = int(rng.integers(2)), bool(rng.random() < 0.3)
        chains.append(chain_of_seeds(rng, seeds, SEQUENCE_LENGTHS[sequence], reverse=reverse))
        hits.append({"score": score, "count": len(chains[-1]), "flags": REVERSE * reverse, "sequence": sequence})
        hits[-1] |= {"second": 0, "seconds": int(rng.integers(2))}
    return hits, chains


def seeds_of(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return np.sort(rng.choice(np.arange(SPAN - 1, READ_LENGTH - 1), int(rng.integers(200, 700)), replace=False))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_chains_are_chosen_as_minimap2_does(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    seeds = [seeds_of(rng) for _ in range(3)]
    made = [chains_of(rng, own) if rng.random() < 0.9 else ([], []) for own in seeds]
    chains = [chain for _, own in made for chain in own]
    hits = [hit for own, _ in made for hit in own]
    x, y = encoded(chains, [hit["sequence"] for hit in hits], [hit["flags"] == REVERSE for hit in hits])
    table = np.zeros(len(hits) + 1, HIT)
    anchors = starts([len(chain) for chain in chains])
    table["anchors"] = anchors
    for name in ("score", "count", "seconds"):
        table[name][:-1] = [hit[name] for hit in hits]
    table["parent"] = -1
    first = starts([len(own) for own, _ in made])
    failed = (rng.random(3) < 0.1).astype(np.uint8)
    hit, left = table.view(np.uint8), np.full(3, -1, np.int32)
    room = len(table)
    run(
        *("choose_chains", 3, schedule, seed, first, hit, x, y, np.full(3, READ_LENGTH, np.int32)),
        *(np.array(SEQUENCE_LENGTHS, np.int32), starts([len(own) for own in seeds])),
        *(np.concatenate(seeds).astype(np.int32), failed, np.zeros(room, np.uint64), np.zeros(room, np.int32), left),
        *(np.int32(SPAN), np.int32(500), np.int32(3)),
    )
    found = hit.view(HIT)
    compared = (
        "score",
        "parent",
        "flags",
        "sequence",
        "qs",
        "qe",
        "rs",
        "re",
        "matches",
        "columns",
        "second",
        "seconds",
    )
    for number, (own, own_chains) in enumerate(made):
        expected = plain.chosen_chains(own, own_chains, seeds[number], READ_LENGTH, SEQUENCE_LENGTHS, max_gap=500)
        kept = found[first[number] : first[number] + left[number]]
        if failed[number]:
            expected = []
        assert values(kept, (*compared, "divergence")) == [
            tuple(hit[name] for name in (*compared, "divergence")) for hit in expected
        ]
        assert kept["anchors"].tolist() == [anchors[first[number] + hit["chain"]] for hit in expected]


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_chains_show_what_is_to_be_chosen(seed: int) -> None:
    """Secondary ones, some kept for their strand, some not, and divergences from none to some."""
    rng = np.random.default_rng(seed)
    strands = {True: 0, False: 0}
    kept: list[list[Hit]] = []
    for _ in range(60):
        seeds = seeds_of(rng)
        hits, chains = chains_of(rng, seeds)
        kept.append(plain.chosen_chains(hits, chains, seeds, READ_LENGTH, SEQUENCE_LENGTHS, max_gap=500))
        every = [hit | {"qs": 0, "qe": READ_LENGTH, "rs": 0, "re": i, "parent": 0} for i, hit in enumerate(hits)]
        strands[False] += sum(hit["flags"] & plain.STRAND_RETAINED > 0 for hit in plain.selected(every, 400))
        strands[True] += sum(hit["flags"] & plain.STRAND_RETAINED > 0 for hit in kept[-1])
    assert 0 < strands[True] < strands[False]
    assert any(hit["parent"] != i for one in kept for i, hit in enumerate(one))
    assert len({hit["divergence"] for one in kept for hit in one}) > 50
    assert {-1.0, 0.0} < {hit["divergence"] for one in kept for hit in one}


def wandering_chain(rng: np.random.Generator, begin_query: int, begin_target: int, count: int) -> Anchors:
    """Anchors that leave their diagonal and come back to it, now and then by much."""
    steps = rng.choice([1, 4, 12, 20, 90, 260], count, p=[0.2, 0.3, 0.2, 0.2, 0.07, 0.03])
    steps_T2 = np.stack([steps, steps], axis=1)
    gaps = rng.choice([0, 10, 11, 18, 30, 31, 40, 70, 300], count, p=[0.7, *[0.04] * 6, 0.03, 0.03])
    steps_T2[np.arange(count), rng.integers(0, 2, count)] += gaps
    steps_T2[0] = 0
    flags = rng.choice([0, plain.TANDEM, plain.LONG_JOIN], count, p=[0.9, 0.08, 0.02]).astype(np.int64)
    target, query = (np.array([begin_target, begin_query]) + np.cumsum(steps_T2, axis=0)).T
    return Anchors(target, query, flags)


@dataclass
class Read:
    """A read's hits, with their chains."""

    hits: list[Hit]
    chains: list[Anchors]
    length: int


def read_with_chains(rng: np.random.Generator) -> Read:
    """Up to six hits, mostly one behind another on the same sequence."""
    hits, chains = [], []
    q = t = SPAN - 1
    sequence, reverse = 0, False
    for _ in range(int(rng.integers(1, 7))):
        if rng.random() < 0.2:
            sequence, reverse, q, t = int(rng.integers(2)), bool(rng.integers(2)), SPAN - 1, SPAN - 1
        q, t = q + int(rng.choice([0, 30, 700])), t + int(rng.choice([0, 30, 700]))
        chains.append(wandering_chain(rng, q, t, int(rng.choice([1, 2, 3, 4, 9, 60]))))
        if rng.random() < 0.7:
            q, t = int(chains[-1].query[-1]) + 1, int(chains[-1].target[-1]) + 1
        hits.append({"count": len(chains[-1]), "sequence": sequence, "flags": REVERSE * reverse})
        hits[-1]["matches"] = int(rng.choice([30, 200, 3000]))
    return Read(hits, chains, max(int(chain.query[-1]) for chain in chains) + 1 + int(rng.choice([0, 20, 3000])))


def plans_of(read: Read, sequence_lengths: npt.NDArray[np.int32], max_gap: int) -> tuple[list[Hit], list[Anchors]]:
    """What is planned for each hit, and its chain with the flags that this sets."""
    strand = [(hit["sequence"], hit["flags"]) for hit in read.hits]
    plans, flagged = [], [Anchors(chain.target, chain.query, chain.flags.copy()) for chain in read.chains]
    for i, (hit, chain) in enumerate(zip(read.hits, flagged, strict=True)):
        begin = max((j + 1 for j in range(i) if strand[j] != strand[i]), default=0)
        end = min((j for j in range(i, len(strand)) if strand[j] != strand[i]), default=len(strand))
        before, behind = joined_chains(read.chains[begin:i]), joined_chains(read.chains[i + 1 : end])
        sequence_length = int(sequence_lengths[hit["sequence"]])
        plans.append(plain.plan(chain, hit["matches"], before, behind, read.length, sequence_length, max_gap))
    return plans, flagged


def reads_with_chains(rng: np.random.Generator) -> tuple[list[Read], npt.NDArray[np.int32]]:
    """Reads, and the lengths of the two sequences."""
    reads = [read_with_chains(rng) for _ in range(3)]
    last = max(int(chain.target[-1]) for read in reads for chain in read.chains)
    return reads, np.array([last + 1, last + 1], np.int32) + rng.choice([0, 20, 3000], 2).astype(np.int32)


def plan_table(plans: list[Hit], counts: list[int]) -> npt.NDArray[np.void]:
    table = np.zeros(len(plans), PLAN)
    for name in PLAN.names or ():
        table[name] = [plan.get(name, 0) for plan in plans]
    table["anchors"] = starts(counts)[:-1] + [plan["first"] for plan in plans]
    return table


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES), st.sampled_from([200, 1000, 5000]))
def test_it_is_planned_where_hits_are_aligned(seed: int, schedule: emulator.Schedule, max_gap: int) -> None:
    rng = np.random.default_rng(seed)
    reads, sequence_lengths = reads_with_chains(rng)
    hits = [hit for read in reads for hit in read.hits]
    chains = [chain for read in reads for chain in read.chains]
    sequences, reverse = [hit["sequence"] for hit in hits], [hit["flags"] == REVERSE for hit in hits]
    x, y = encoded(chains, sequences, reverse)
    table = np.zeros(len(hits), HIT)
    table["anchors"] = starts([len(chain) for chain in chains])[:-1]
    for name in ("count", "sequence", "flags", "matches"):
        table[name] = [hit[name] for hit in hits]
    read_of = np.repeat(np.arange(3, dtype=np.int32), [len(read.hits) for read in reads])
    found = np.zeros(len(hits), PLAN)
    run(
        *("plan_hits", len(hits), schedule, seed, table.view(np.uint8), read_of),
        *(starts([sum(map(len, read.chains)) for read in reads]), x, y),
        *(np.array([read.length for read in reads], np.int32), sequence_lengths, found.view(np.uint8)),
        *(np.zeros(len(x), np.int32), np.int32(plain.HALF_SPAN), np.int32(max_gap), np.int32(len(hits))),
    )
    both = [plans_of(read, sequence_lengths, max_gap) for read in reads]
    expected = plan_table([plan for plans, _ in both for plan in plans], [len(chain) for chain in chains])
    assert values(found, PLAN.names or ()) == values(expected, PLAN.names or ())
    assert np.array_equal(y, encoded([chain for _, flagged in both for chain in flagged], sequences, reverse)[1])


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_places_between_which_hits_are_filled_are_listed(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    reads, sequence_lengths = reads_with_chains(rng)
    both = [plans_of(read, sequence_lengths, 1000) for read in reads]
    plans = [plan for own, _ in both for plan in own]
    chains = [chain for _, flagged in both for chain in flagged]
    x, y = encoded(chains, [0] * len(chains), [False] * len(chains))
    first = starts([plan["fills"] + 1 for plan in plans])
    query, target = np.full(first[-1], -1, np.int32), np.full(first[-1], -1, np.int32)
    table = plan_table(plans, [len(chain) for chain in chains])
    run(
        *("list_fills", len(plans), schedule, seed, table.view(np.uint8), x, y, first, query, target),
        *(np.int32(plain.HALF_SPAN), np.int32(len(plans))),
    )
    expected = [
        point
        for plan, chain in zip(plans, chains, strict=True)
        for point in plain.points(chain[plan["first"] : plan["first"] + plan["count"]])
    ]
    assert list(zip(query.tolist(), target.tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_chains_show_what_is_to_be_planned(seed: int) -> None:
    """Bad ends, bad seeds, long joins, other hits in the way, several pieces."""
    rng = np.random.default_rng(seed)
    cut = {"first": 0, "last": 0}
    flags, bounded, fills = 0, 0, 0
    for _ in range(40):
        reads, sequence_lengths = reads_with_chains(rng)
        for read in reads:
            plans, flagged = plans_of(read, sequence_lengths, 1000)
            for i, (plan, chain) in enumerate(zip(plans, flagged, strict=True)):
                cut["first"] += plan["first"] > 0
                cut["last"] += plan["first"] + plan["count"] < len(chain)
                fills = max(fills, plan["fills"])
                flags |= int(np.bitwise_or.reduce(chain.flags ^ read.chains[i].flags))
                alone, _ = plans_of(Read([read.hits[i]], [read.chains[i]], read.length), sequence_lengths, 1000)
                bounded += any(alone[0][name] != plan[name] for name in ("rs0", "qs0", "re0", "qe0"))
    assert min(cut.values()) > 0
    assert bounded > 0
    assert flags == plain.IGNORED | plain.LONG_JOIN
    assert fills > 3


def operations(rng: np.random.Generator, kinds: list[int]) -> list[tuple[int, int]]:
    """Of a piece's CIGAR: gaps next to gaps, and single bases between them, are common."""
    count = int(rng.integers(0, 9))
    drawn = rng.choice(kinds, count).tolist()
    return plain.merged(
        [(op, int(rng.choice([1, 2, 3, 150 if op == plain.ALIGNED else 9], p=[0.4, 0.3, 0.25, 0.05]))) for op in drawn]
    )


def bases(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    """Repeats of few bases, in which a gap's place is not settled; now and then an unknown one."""
    unit = rng.integers(0, 4, int(rng.choice([1, 2, 3, 50])), np.uint8)
    found = np.resize(unit, count)
    changed = rng.random(count) < 0.05
    found[changed] = rng.integers(0, 5, int(changed.sum()))
    return found


@dataclass
class Pieces:
    """A hit's pieces, each operations and lengths, and what they align."""

    left: list[tuple[int, int]] | None
    filled: list[list[tuple[int, int]]]
    right: list[tuple[int, int]] | None
    query: npt.NDArray[np.uint8]
    """The read's strand."""
    target: npt.NDArray[np.uint8]
    """The sequence from `window` on."""
    window: int
    begin: npt.NDArray[np.int64]
    """In the read's strand and in the sequence."""
    reverse: bool

    def every(self) -> list[list[tuple[int, int]]]:
        return [piece for piece in (self.left, *self.filled, self.right) if piece is not None]

    def points(self) -> npt.NDArray[np.int64]:
        """Between which places of the read's strand and the sequence it is filled: [points, 2]."""
        return np.cumsum([self.begin + spans(self.left or []), *map(spans, self.filled)], axis=0)

    def between(self, begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
        return [self.query[begin[0] : end[0]], self.target[begin[1] - self.window : end[1] - self.window]]


def spans(piece: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Bases of the read and of the sequence."""
    sizes = [(n * (op != plain.DELETED), n * (op != plain.INSERTED)) for op, n in piece]
    return np.array(sizes, np.int64).reshape(-1, 2).sum(axis=0)


def pieces_of(rng: np.random.Generator) -> Pieces:
    kinds = [plain.ALIGNED] * int(rng.integers(1, 4)) + [plain.INSERTED, plain.DELETED]
    left, right = (operations(rng, kinds) if rng.random() < 0.6 else None for _ in range(2))
    filled = [operations(rng, kinds) for _ in range(int(rng.integers(1, 4)))]
    filled[0] = filled[0] or [(plain.ALIGNED, 4)]
    begin = np.array([rng.choice([0, 40]), rng.choice([20, 1000])])
    of_query, of_target = sum((spans(piece) for piece in (left or [], *filled, right or [])), begin).tolist()
    alike = bases(rng, of_query + of_target)
    target = alike if rng.random() < 0.7 else rng.integers(0, 4, len(alike), np.uint8)
    window = int(begin[1]) - int(rng.choice([0, 17]))
    query = np.concatenate([rng.integers(0, 5, begin[0], np.uint8), alike])[: of_query + int(rng.choice([0, 30]))]
    target = np.concatenate([rng.integers(0, 5, begin[1] - window, np.uint8), target])[: of_target - window]
    return Pieces(left, filled, right, query, target, window, begin, bool(rng.integers(2)))


def falling_pieces(rng: np.random.Generator) -> Pieces:
    """One piece whose score falls by about the limit, on a diagonal that a gap has left, mostly."""
    gap, fall = int(rng.choice([1, 20, 120])), int(rng.integers(46, 56))
    back = int(rng.choice([0, 2 + gap, 3 + gap]))  # matches that make up for the gap
    op = int(rng.choice([plain.INSERTED, plain.DELETED]))
    alike = [rng.integers(0, 4, n, np.uint8) for n in (30, back + fall)]
    other = np.concatenate([alike[1][:back], 3 - alike[1][back:]])
    sides = [np.concatenate([alike[0], rng.integers(0, 4, gap, np.uint8), alike[1]]), np.concatenate([alike[0], other])]
    query, target = sides if op == plain.INSERTED else sides[::-1]
    piece = [(plain.ALIGNED, 30), (op, gap), (plain.ALIGNED, back + fall)]
    return Pieces(None, [piece], None, query, target, 0, np.zeros(2, np.int64), bool(rng.integers(2)))


def cigars_of(pieces: list[list[tuple[int, int]]]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    encoded = [n << 4 | op for piece in pieces for op, n in piece]
    return np.array([*encoded, 0], np.uint32), starts([len(piece) for piece in pieces])


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCHEDULES))
def test_pieces_are_joined_to_hits_as_minimap2_does(seed: int, schedule: emulator.Schedule) -> None:
    rng = np.random.default_rng(seed)
    hits = [(pieces_of, falling_pieces)[int(rng.random() < 0.3)](rng) for _ in range(int(rng.integers(1, 6)))]
    count = len(hits)
    table, plans = np.zeros(count, HIT), np.zeros(count, PLAN)
    table["flags"], table["dp2"] = [REVERSE * made.reverse for made in hits], 7
    points = [made.points() for made in hits]
    for one, made, places in zip(plans, hits, points, strict=True):
        one["rs0"], one["fills"] = made.window, len(made.filled)
        (one["qs"], one["rs"]), (one["qe"], one["re"]) = places[0], places[-1]
    sides = [
        (number, side) for side in (0, 1) for number in range(count) if (hits[number].left, hits[number].right)[side]
    ]
    ends = [(hits[number].left, hits[number].right)[side] or [] for number, side in sides]
    end_task = np.full((count, 2), -1, np.int64)
    for task, (number, side) in enumerate(sides):
        end_task[number, side] = task
    end_spans = np.array([*map(spans, ends), [0, 0]], np.int32)
    length = np.array([len(made.query) for made in hits], np.int32)
    reads = [np.where(m.query > 3, m.query, 3 - m.query)[::-1].astype(np.uint8) if m.reverse else m.query for m in hits]
    places = np.concatenate(points).astype(np.int32)
    cigar_at = starts([sum(map(len, made.every())) for made in hits])
    cigars, failed = np.zeros(cigar_at[-1] + 1, np.uint32), np.zeros(count, np.uint8)
    filled_cigar, filled_offset = cigars_of([piece for made in hits for piece in made.filled])
    run(
        *("join_hits", count, schedule, seed, table.view(np.uint8), np.arange(count, dtype=np.int32)),
        *(plans.view(np.uint8), np.concatenate(reads), starts([len(read) for read in reads]), length),
        *(np.concatenate([made.target for made in hits]), starts([len(made.target) for made in hits])),
        *(end_task.reshape(-1), end_spans[:, 0].copy(), end_spans[:, 1].copy(), *cigars_of(ends)),
        *(starts([len(made.filled) for made in hits]), places[:, 0].copy(), places[:, 1].copy()),
        *(filled_cigar, filled_offset, cigar_at, cigars, failed, np.int32(count)),
    )
    for number, made in enumerate(hits):
        expected, cigar = joined(made)
        hit = table[number]
        assert {name: hit[name].item() for name in expected} == expected
        assert (hit["dp2"], hit["cigar"]) == (0, cigar_at[number])
        found = cigars[hit["cigar"] : hit["cigar"] + hit["operations"]].tolist()
        assert [(value & 15, value >> 4) for value in found] == cigar
        assert failed[number] == (Failure.DROPS if deepest_drop(made) > 200 else Failure.NONE)


def joined(made: Pieces) -> tuple[Hit, list[tuple[int, int]]]:
    pieces = [one for piece in made.every() for one in piece]
    query, target = made.between(made.begin, made.begin + spans(pieces))
    begin = int(made.begin[0]), int(made.begin[1])
    return plain.joined(pieces, query, target, begin, len(made.query), reverse=made.reverse)


def deepest_drop(made: Pieces) -> int:
    points = made.points()
    return max(
        plain.deepest_drop(piece, *made.between(begin, end))
        for piece, begin, end in zip(made.filled, points[:-1], points[1:], strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_made_up_pieces_show_what_is_to_be_joined(seed: int) -> None:
    """CIGARs that are changed within and in front, drops on either side of the limit, unknown bases."""
    rng = np.random.default_rng(seed)
    made = [pieces_of(rng) for _ in range(200)]
    changed = [plain.merged([one for piece in each.every() for one in piece]) != joined(each)[1] for each in made]
    assert 20 < sum(changed) < 180
    assert any(joined(each)[0]["rs"] > each.begin[1] for each in made)
    assert any(joined(each)[0]["qs" if not each.reverse else "qe"] != 0 for each in made)
    assert {196, 200, 204, 208} <= {deepest_drop(falling_pieces(rng)) for _ in range(200)}
    assert any(joined(each)[0]["ambiguous"] for each in made)
