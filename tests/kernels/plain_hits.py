"""Chains to alignments as minimap2 makes them, plainly: what hits.cu is held against.

After hit.c, align.c, esterr.c and map.c (MIT License, Copyright (c) 2018- Dana-Farber Cancer Institute, 2017-2018 Broad
Institute, Inc.), for presets map-ont and lr:hq.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from plain_mapping import log2_of

from porestream.kernels.align.hits import REVERSE

SPAN, HALF_SPAN = 15, 7
MATCH, MISMATCH, AMBIGUOUS, OPEN, EXTEND = 2, 4, 1, 4, 2
PRIMARY_RECORD, STRAND_RETAINED = 2, 4
LONG_JOIN, IGNORED, TANDEM = 1, 2, 4
APART, MIN_COUNT = 200, 3
ALIGNED, INSERTED, DELETED = 0, 1, 2
F32 = np.float32
Hit = dict[str, int]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Anchors:
    """Of a chain: the last base of each k-mer in the sequence and in the read, of the read's strand; and its flags."""

    target: Ints
    query: Ints
    flags: Ints

    def __getitem__(self, part: slice) -> "Anchors":
        return Anchors(self.target[part], self.query[part], self.flags[part])

    def __len__(self) -> int:
        return len(self.target)

    def gaps(self) -> Ints:
        """Read's bases more than the sequence's, from the anchor before to each; the first has none."""
        return np.diff(self.query - self.target, prepend=self.query[0] - self.target[0])


def place(anchors: Anchors, length: int, *, reverse: bool) -> Hit:
    """mm_reg_set_coor, mm_cal_fuzzy_len."""
    begin, end = int(anchors.query[0]) + 1 - SPAN, int(anchors.query[-1]) + 1
    steps = np.stack([np.diff(anchors.target), np.diff(anchors.query)])
    return {
        "qs": length - end if reverse else begin,
        "qe": length - begin if reverse else end,
        "rs": max(int(anchors.target[0]) + 1 - SPAN, 0),
        "re": int(anchors.target[-1]) + 1,
        "columns": SPAN + int(steps.max(axis=0).sum()),
        "matches": SPAN + int(np.minimum(steps.min(axis=0), SPAN).sum()),
    }


def divergence(hit: Hit, anchors: Anchors, seeds: Ints, length: int, sequence_length: int) -> np.float32:
    """mm_est_err, of one hit. `seeds`: where the read's own are, of its forward strand."""
    query = length - 1 - (anchors.query[::-1] + 1 - SPAN) if hit["flags"] & REVERSE else anchors.query
    at = np.searchsorted(seeds, query)
    is_seed = (at < len(seeds)) & (seeds[np.minimum(at, len(seeds) - 1)] == query)
    found = len(query) if is_seed.all() else int(np.argmin(is_seed))  # those behind one that is no seed do not count
    if found == 0:
        return F32(-1)
    total = int(at[found - 1] - at[0]) + 1
    total += hit["qs"] > SPAN and hit["rs"] > SPAN
    total += length - hit["qs"] > SPAN and sequence_length - hit["re"] > SPAN
    return F32(0) if found >= total else F32(1 - (found / total) ** (1 / SPAN))


def chosen_chains(
    hits: list[Hit],
    chains: list[Anchors],
    seeds: Ints,
    length: int,
    sequence_lengths: Sequence[int],
    max_gap: int,
) -> list[Hit]:
    """chain_post, mm_est_err and mm_filter_strand_retained; chains are best first."""
    hits = [
        hit | place(chain, length, reverse=bool(hit["flags"] & REVERSE)) | {"chain": number}
        for number, (hit, chain) in enumerate(zip(hits, chains, strict=True))
    ]
    with_parents(hits, length, aligned=False)
    hits = selected(hits, other_strand_above=int(max_gap * 0.8))
    far = [divergence(hit, chains[hit["chain"]], seeds, length, sequence_lengths[hit["sequence"]]) for hit in hits]
    return [
        hit | {"divergence": far[i].item()}
        for i, hit in enumerate(hits)
        if not hit["flags"] & STRAND_RETAINED or far[i] < far[hit["parent"]] * F32(5) or far[i] < F32(0.01)
    ]


def bad_end(steps_T2: Ints, joined: npt.NDArray[np.bool_], matches: int) -> int:
    """mm_fix_bad_ends, from one end: how many anchors are left out, by the steps from it on."""
    least, most = steps_T2.min(axis=1), steps_T2.max(axis=1)
    passed, matched = SPAN + np.cumsum(least), SPAN + np.cumsum(np.minimum(least, SPAN))
    enough = np.flatnonzero((passed >= 1000) | (matched >= 500) | (matched >= matches >> 1))
    looked_at = min([len(least), *(enough[:1] + 1), *np.flatnonzero(joined)[:1]])
    bad = np.flatnonzero((most - least > (passed - least) >> 1)[:looked_at])
    return int(bad[-1]) + 1 if len(bad) else 0


def without_bad_ends(anchors: Anchors, matches: int) -> slice:
    """mm_fix_bad_ends."""
    n = len(anchors)
    if n < 3:
        return slice(0, n)
    steps = np.stack([np.diff(anchors.target), np.diff(anchors.query)], axis=1)
    joined = (anchors.flags & LONG_JOIN) > 0
    first = bad_end(steps[: n - 2], joined[1 : n - 1], matches)
    return slice(first, n - bad_end(steps[first + 1 :][::-1], joined[first + 2 :][::-1], matches))


def long_gaps(anchors: Anchors, least: int) -> Ints:
    """collect_long_gaps."""
    found = np.flatnonzero(np.abs(anchors.gaps()) > least)
    return found if len(found) > 1 else found[:0]


def flag_bad_seeds(anchors: Anchors, most: int) -> None:
    """mm_filter_bad_seeds: anchors between gaps that take each other back."""
    at, gaps = long_gaps(anchors, 10), anchors.gaps()

    def taken_back(k: int) -> tuple[int, int]:
        """By which of the ten gaps behind this one most of it is, and how much."""
        before, there = at[k] - 1, at[k : k + 11]
        far = (anchors.query[there] - anchors.query[before] > most) | (
            anchors.target[there] - anchors.target[before] > most
        )
        far[0] = False
        there = there[: int(np.argmax(far)) if far.any() else None]
        inserted, deleted = np.cumsum(np.maximum(gaps[there], 0)), np.cumsum(np.maximum(-gaps[there], 0))
        both = 2 * np.minimum(inserted, deleted)
        return int(both.max()), k + int(np.argmax(both))

    begin = end = k = 0
    best = 40
    while k < len(at) or end:
        if end and k >= end:
            anchors.flags[at[begin] : at[end]] |= IGNORED
            begin = end = 0
            best = 40
            continue
        much, by = taken_back(k)
        if much > best:
            best, begin, end = much, k, by
        k += 1


def flag_long_joins(anchors: Anchors, most: int) -> None:
    """mm_filter_bad_seeds_alt: one long join over few anchors between long gaps."""
    at, gaps = long_gaps(anchors, 30), np.abs(anchors.gaps())

    def belongs(i: int, j: int) -> bool:
        q, t = anchors.query, anchors.target
        within = q[j] - q[i] <= most and t[j] - t[i] <= most
        return bool(within and min(t[j - 1] - t[i], q[j - 1] - q[i]) + SPAN <= gaps[i] + gaps[j])

    k = 0
    while k < len(at):
        last = k
        while last + 1 < len(at) and belongs(at[last], at[last + 1]):
            last += 1
        if last > k:
            anchors.flags[at[k] : at[last]] |= IGNORED
            anchors.flags[at[last]] |= LONG_JOIN
        k = last + 1


def reach_left(
    first: tuple[int, int], begin: tuple[int, int], before: list[tuple[int, int]], max_gap: int
) -> tuple[int, int]:
    """mm_align1: how far left an extension may go, as (target, query).

    Parameters
    ----------
    first
        Where the chain's own first k-mer begins.
    begin
        Where filling begins.
    before
        Where k-mers of the read's other hits on this strand and sequence begin, the nearest first.
    """
    (t0, q0), (t, q) = first, begin
    if min(t, q) <= 0:
        return begin
    lower = [(x, y) for x, y in before if x < t0 and y < q0]
    stop_t = stop_q = 0
    if len(lower) > MIN_COUNT:
        far = max(t0 - lower[MIN_COUNT][0], q0 - lower[MIN_COUNT][1])
        stop_t, stop_q = max(t0 - far, 0), q0 - far
    room = min(q, max_gap)
    room_t = min(room + max((room * MATCH - OPEN) // EXTEND, 0), max_gap, t)
    return min(t0, t, max(stop_t, t - room_t)), min(q0, max(stop_q, q - room))


def plan(
    chain: Anchors, matches: int, before: Anchors, behind: Anchors, length: int, sequence_length: int, max_gap: int
) -> Hit:
    """mm_align1, the first half; the chain's flags are changed. `before`, `behind`: of the same strand and sequence."""
    filled = without_bad_ends(chain, matches)
    middle = chain[filled]  # shares its flags
    flag_bad_seeds(middle, max_gap >> 1)
    flag_long_joins(middle, max_gap >> 1)
    t, q = (np.array([side[0], side[-1]]) - HALF_SPAN for side in (middle.target, middle.query))
    rs0, qs0 = reach_left(
        (int(chain.target[0]) + 1 - SPAN, int(chain.query[0]) + 1 - SPAN),
        (int(t[0]), int(q[0])),
        [(x + 1 - SPAN, y + 1 - SPAN) for x, y in zip(before.target[::-1], before.query[::-1], strict=True)],
        max_gap,
    )
    # the right end is the left end of both strands turned round
    re0, qe0 = reach_left(
        (sequence_length - int(chain.target[-1]) - 1, length - int(chain.query[-1]) - 1),
        (sequence_length - int(t[1]), length - int(q[1])),
        [(sequence_length - x - 1, length - y - 1) for x, y in zip(behind.target, behind.query, strict=True)],
        max_gap,
    )
    return {
        "first": filled.start, "count": len(middle), "fills": len(points(middle)) - 1,
        "rs": int(t[0]), "qs": int(q[0]), "re": int(t[1]), "qe": int(q[1]),
        "rs0": rs0, "qs0": qs0, "re0": sequence_length - re0, "qe0": length - qe0,
    }  # fmt: skip


def points(anchors: Anchors) -> list[tuple[int, int]]:
    """mm_align1: between which places, as (query, target), it is filled."""
    found = [(int(anchors.query[0]) - HALF_SPAN, int(anchors.target[0]) - HALF_SPAN)]
    for i in range(1, len(anchors)):
        q, t = int(anchors.query[i]) - HALF_SPAN, int(anchors.target[i]) - HALF_SPAN
        is_last = i == len(anchors) - 1
        is_taken = not anchors.flags[i] & (IGNORED | TANDEM)
        is_far = min(q - found[-1][0], t - found[-1][1]) >= APART
        if is_last or (is_taken and (anchors.flags[i] & LONG_JOIN or is_far)):
            found.append((q, t))
    return found


def pair_scores(query: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> Ints:
    is_ambiguous = (query > 3) | (target > 3)
    return np.where(is_ambiguous, -AMBIGUOUS, np.where(query == target, MATCH, -MISMATCH)).astype(np.int64)


def deepest_drop(cigar: Sequence[tuple[int, int]], query: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> int:
    """mm_test_zdrop, update_max_zdrop: below the best score so far, less what the diagonal's change costs."""
    steps, t, q = [], 0, 0
    for op, n in cigar:
        if op == ALIGNED:
            scores = pair_scores(query[q : q + n], target[t : t + n])
            steps += [(int(score), t + i, q + i) for i, score in enumerate(scores)]
        t, q = t + n * (op != INSERTED), q + n * (op != DELETED)
        if op != ALIGNED:
            steps.append((-OPEN - EXTEND * n, t, q))
    if not steps:
        return 0
    change, t_S, q_S = np.array(steps).T
    score = np.cumsum(change)
    number = np.arange(len(score))
    best = np.maximum.accumulate(np.where(score == np.maximum.accumulate(score), number, 0))
    apart = np.abs((t_S - t_S[best]) - (q_S - q_S[best]))
    return max(int((score[best] - score - apart * EXTEND).max()), 0)


def merged(cigar: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(op, sum(n for _, n in run)) for op, run in groupby(cigar, key=lambda one: one[0])]


def fixed(
    cigar: list[tuple[int, int]], query: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]
) -> list[tuple[int, int]]:
    """mm_fix_cigar, but for what stands in front; of one operation, nothing changes."""
    ops, sizes = [op for op, _ in cigar], [n for _, n in cigar]
    t = q = 0
    for k, op in enumerate(ops):
        if op != ALIGNED and 0 < k < len(ops) - 1 and ops[k - 1] == ops[k + 1] == ALIGNED:
            bases, at = (query, q) if op == INSERTED else (target, t)
            room, n = sizes[k - 1], sizes[k]
            moved = next((i for i in range(room) if bases[at - 1 - i] != bases[at + n - 1 - i]), room)
            sizes[k - 1], sizes[k + 1] = room - moved, sizes[k + 1] + moved
            t, q = t - moved, q - moved
        t, q = t + sizes[k] * (op != INSERTED), q + sizes[k] * (op != DELETED)
    k = 0
    while k < len(ops) - 2:
        if {ops[k], ops[k + 1]} == {INSERTED, DELETED}:
            end = next((i for i in range(k, len(ops)) if ops[i] == ALIGNED and sizes[i]), len(ops))
            sums = [
                sum(n for o, n in zip(ops[k:end], sizes[k:end], strict=True) if o == op) for op in (INSERTED, DELETED)
            ]
            if all(sums) and end - k > 2:
                ops[k : k + 2] = INSERTED, DELETED
                sizes[k:end] = *sums, *[0] * (end - k - 2)
            k = end
        k += 1
    return merged([(op, n) for op, n in zip(ops, sizes, strict=True) if n])


def joined(
    pieces: list[tuple[int, int]],
    query: npt.NDArray[np.uint8],
    target: npt.NDArray[np.uint8],
    begin: tuple[int, int],
    read_length: int,
    *,
    reverse: bool,
) -> tuple[Hit, list[tuple[int, int]]]:
    """mm_update_extra, and where mm_align1 says the alignment lies.

    Parameters
    ----------
    pieces
        Operations and lengths of all pieces, one after another.
    query, target
        uint8: the codes that they align.
    begin
        Where these begin, in the read's strand and in the sequence.
    """
    end = begin[0] + len(query), begin[1] + len(target)
    cigar = merged(pieces)
    is_fixed = len(cigar) > 1
    cigar = fixed(cigar, query, target)
    shift = [0, 0]
    if is_fixed and cigar[0][0] != ALIGNED:
        op, n = cigar.pop(0)
        shift[op == DELETED] = n
    begin = begin[0] + shift[0], begin[1] + shift[1]
    query, target = query[shift[0] :], target[shift[1] :]
    score, most, t, q = 0.0, 0.0, 0, 0
    hit = {"columns": 0, "matches": 0, "ambiguous": 0}
    for op, n in cigar:
        own_q, own_t = query[q : q + n * (op != DELETED)], target[t : t + n * (op != INSERTED)]
        if op == ALIGNED:
            for one in pair_scores(own_q, own_t).tolist():
                score = max(score + one, 0.0)
                most = max(most, score)
            ambiguous = int(((own_q > 3) | (own_t > 3)).sum())
            hit["matches"] += int(((own_q == own_t) & (own_q < 4)).sum())
        else:
            ambiguous = int((np.concatenate([own_q, own_t]) > 3).sum())
            score = max(score - (OPEN + EXTEND * float(log2_of(1.0 + n))), 0.0)
        hit["columns"] += n - ambiguous
        hit["ambiguous"] += ambiguous
        q, t = q + len(own_q), t + len(own_t)
    return hit | {
        "qs": read_length - end[0] if reverse else begin[0],
        "qe": read_length - begin[0] if reverse else end[0],
        "rs": begin[1],
        "re": end[1],
        "dp": int(most + 0.499),
    }, cigar


def worth_it(hits: list[Hit]) -> list[Hit]:
    return [hit for hit in hits if hit["count"] >= 3 and hit["matches"] >= 40 and hit["dp"] >= 80]


def weighed_again(hits: list[Hit], length: int) -> None:
    """mm_update_dp_max."""
    by_dp = sorted((hit["dp"] for hit in hits), reverse=True)
    best = max(hits, key=lambda hit: hit["dp"], default=None)
    if len(hits) < 2 or best is None or by_dp[1] < by_dp[0] * F32(0.9):
        return
    if best["qe"] - best["qs"] < length * float(F32(0.9)):
        return
    gaps = [op >> 4 for op in best["ops"] if op & 15]
    divergence = max(1 - best["matches"] / (best["columns"] + best["ambiguous"] - sum(gaps) + len(gaps)), 0.02)
    weight = 0.5 / divergence if 2 * 0.5 / divergence >= 4 else 0.5
    for hit in hits:
        gaps = [op >> 4 for op in hit["ops"] if op & 15]
        cost = sum(weight + float(log2_of(1.0 + gap)) for gap in gaps)
        mismatches = hit["columns"] + hit["ambiguous"] - hit["matches"] - sum(gaps)
        hit["dp"] = max(int(2 * (hit["matches"] - weight * mismatches - cost) + 0.499), 0)


def with_parents(hits: list[Hit], length: int, *, aligned: bool) -> None:
    """mm_set_parent; what is covered is painted onto the read."""
    primaries: list[int] = []
    for i, hit in enumerate(hits):
        hit["parent"] = i
        start, end = hit["qs"], hit["qe"]
        painted = np.zeros(length, bool)
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
            if aligned and not same:
                best["dp2"] = max(best["dp2"], hit["dp"])
                counts |= best["dp"] - hit["dp"] <= 8
            best["seconds"] += counts
            break
        else:
            primaries.append(i)
            hit["seconds"] = 0 if i else hit["seconds"]


def selected(hits: list[Hit], other_strand_above: int | None = None) -> list[Hit]:
    """mm_select_sub, and parents by their new places."""
    kept: list[int] = []
    for i, hit in enumerate(hits):
        best = hits[hit["parent"]]
        is_turned = (hit["flags"] ^ best["flags"]) & REVERSE
        near = F32(hit["score"]) >= F32(best["score"]) * F32(0.8) or hit["score"] + 2 * SPAN >= best["score"]
        same = all(hit[name] == best[name] for name in ("qs", "qe", "sequence", "rs", "re"))
        seconds = sum(hits[j]["parent"] != j for j in kept)
        if hit["parent"] == i or (near and seconds < 5 and not same):
            kept.append(i)
        elif not near and seconds < 5 and is_turned and hit["score"] > (other_strand_above or math.inf):
            hit["flags"] |= STRAND_RETAINED
            kept.append(i)
    for i in kept:
        hits[i]["parent"] = kept.index(hits[i]["parent"])
    return [hits[i] for i in kept]


def mapq(hit: Hit, unique: np.float32) -> int:
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


def chosen(hits: list[Hit], length: int, repetitive: int) -> list[Hit]:
    """mm_align_skeleton's end, align_regs and mm_set_mapq2; each hit has its CIGAR as `ops`."""
    hits = worth_it(hits)
    if length >= 500:
        weighed_again(hits, length)
        hits = worth_it(hits)
    hits = sorted(hits, key=lambda hit: -(hit["dp"] << 32 | hit["hash"]))
    with_parents(hits, length, aligned=True)
    hits = selected(hits)
    total = sum(hit["score"] for i, hit in enumerate(hits) if hit["parent"] == i)
    for i, hit in enumerate(hits):
        hit["mapq"] = mapq(hit, F32(total) / F32(total + repetitive)) if hit["parent"] == i else 0
        hit["flags"] = (hit["flags"] & ~PRIMARY_RECORD) | (PRIMARY_RECORD if i == 0 else 0)
    return hits
