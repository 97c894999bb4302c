"""minimap2's sketch and chains, step by step as its C code has them: what kernels are held against.

After sketch.c and lchain.c (MIT License, Copyright (c) 2018- Dana-Farber Cancer Institute, 2017-2018 Broad Institute,
Inc.); max_chain_skip at infinity, and range minimum queries by looking at everything.
"""

from collections.abc import Sequence

import numpy as np

NONE = 2**64 - 1
Anchor = tuple[int, int]


def hash64(key: int, mask: int) -> int:
    key = (~key + (key << 21)) & mask
    key = key ^ key >> 24
    key = (key + (key << 3) + (key << 8)) & mask
    key = key ^ key >> 14
    key = (key + (key << 2) + (key << 4)) & mask
    key = key ^ key >> 28
    return (key + (key << 31)) & mask


def sketch(codes: Sequence[int], k: int, w: int) -> list[tuple[int, int, int]]:
    """mm_sketch: (position of the last base, strand, hash)."""
    shift, mask = 2 * (k - 1), (1 << 2 * k) - 1
    kmer = [0, 0]
    buffer: list[tuple[int, int, int]] = [(NONE, -1, -1)] * w
    least = (NONE, -1, -1)
    found: list[tuple[int, int, int]] = []
    length = place = least_place = 0

    def equal(there: range) -> None:
        found.extend(buffer[j] for j in there if buffer[j][0] == least[0] and buffer[j] != least)

    for i, code in enumerate(codes):
        info = (NONE, -1, -1)
        if code < 4:
            kmer = [(kmer[0] << 2 | code) & mask, kmer[1] >> 2 | (3 ^ code) << shift]
            if kmer[0] == kmer[1]:
                continue
            strand = int(kmer[0] >= kmer[1])
            length += 1
            if length >= k:
                info = (hash64(kmer[strand], mask), i, strand)
        else:
            length = 0
        buffer[place] = info
        if length == w + k - 1 and least[0] != NONE:
            equal(range(place + 1, w))
            equal(range(place))
        if info[0] <= least[0]:
            if length >= w + k and least[0] != NONE:
                found.append(least)
            least, least_place = info, place
        elif place == least_place:
            if length >= w + k - 1 and least[0] != NONE:
                found.append(least)
            least = (NONE, -1, -1)
            for j in (*range(place + 1, w), *range(place + 1)):
                if least[0] >= buffer[j][0]:
                    least, least_place = buffer[j], j
            if length >= w + k - 1 and least[0] != NONE:
                equal(range(place + 1, w))
                equal(range(place + 1))
        place = (place + 1) % w
    if least[0] != NONE:
        found.append(least)
    return [(position, strand, value) for value, position, strand in found]


def log2_of(value: float) -> np.float32:
    """mg_log2."""
    bits = int(np.float32(value).view(np.uint32))
    whole = np.float32((bits >> 23 & 255) - 128)
    z = np.uint32((bits & ~(255 << 23)) + (127 << 23)).view(np.float32)
    return np.float32(whole + ((np.float32(-0.34484843) * z + np.float32(2.02466578)) * z - np.float32(0.67487759)))


def _penalty(dd: int, cost: np.float32) -> int:
    logarithm = log2_of(dd + 1) if dd >= 1 else np.float32(0)
    return int(np.float32(cost * np.float32(dd)) + np.float32(0.5) * logarithm)


def link(i: Anchor, j: Anchor, reach: int, band: int, cost: np.float32, span: int) -> int | None:
    """comput_sc; anchors are (target, query) positions on one strand of one sequence."""
    dq, dr = i[1] - j[1], i[0] - j[0]
    if dq <= 0 or dq > reach or dr == 0 or abs(dr - dq) > band:
        return None
    dd, dg = abs(dr - dq), min(dr, dq)
    return min(span, dg) - (_penalty(dd, cost) if dd or dg > span else 0)


def chain(anchors: Sequence[Anchor], span: int, reach: int, band: int, most: int, cost: np.float32):  # type: ignore[no-untyped-def]
    """mg_lchain_dp's scores and predecessors of sorted anchors of one strand of one sequence."""
    score, before = [], []
    first, top = 0, -1
    for i, anchor in enumerate(anchors):
        best, best_j = span, -1
        while anchor[0] > anchors[first][0] + reach:
            first += 1
        first = max(first, i - most)
        for j in range(i - 1, first - 1, -1):
            s = link(anchor, anchors[j], reach, band, cost, span)
            if s is not None and s + score[j] > best:
                best, best_j = s + score[j], j
        if top < 0 or anchor[0] - anchors[top][0] > reach:
            top, most_score = -1, None
            for j in range(i - 1, first - 1, -1):
                if most_score is None or most_score < score[j]:
                    top, most_score = j, score[j]
        if 0 <= top < first - 1:
            s = link(anchor, anchors[top], reach, band, cost, span)
            if s is not None and best < s + score[top]:
                best, best_j = s + score[top], top
        score.append(best)
        before.append(best_j)
        if top < 0 or (anchor[0] - anchors[top][0] <= reach and score[top] < best):
            top = i
    return score, before


def chain_far(anchors: Sequence[Anchor], span: int, reach: int, inner: int, band: int, cost: np.float32):  # type: ignore[no-untyped-def]
    """mg_lchain_rmq's; its trees are looked through."""

    def simple(i: Anchor, j: Anchor) -> tuple[int, bool, int]:
        dq, dr = i[1] - j[1], i[0] - j[0]
        dd, dg = abs(dr - dq), min(dr, dq)
        return min(span, dg) - (_penalty(dd, cost) if dd or dq > span else 0), dd == 0 and dg <= span, dd

    score: list[int] = []
    before: list[int] = []
    for i, anchor in enumerate(anchors):
        best, best_j = span, -1
        there = [
            j
            for j in range(i)
            if anchors[j][0] < anchor[0] <= anchors[j][0] + reach and anchor[1] - reach < anchors[j][1] < anchor[1]
        ]
        if there:
            j = min(there, key=lambda j: (-(score[j] + 0.5 * float(cost) * sum(anchors[j])), -j))
            s, exact, width = simple(anchor, anchors[j])
            if width <= band and score[j] + s > best:
                best, best_j = score[j] + s, j
            if not exact and anchor[1] > 0:
                near = [j for j in there if anchor[0] <= anchors[j][0] + inner and anchors[j][1] >= anchor[1] - inner]
                for j in sorted(near, key=lambda j: (-anchors[j][1], -j)):
                    s, _, width = simple(anchor, anchors[j])
                    if width <= band and score[j] + s > best:
                        best, best_j = score[j] + s, j
        score.append(best)
        before.append(best_j)
    return score, before


def backtrack(score: Sequence[int], before: Sequence[int], least_count: int, least_score: int, drop: int):  # type: ignore[no-untyped-def]
    """mg_chain_backtrack: (score, anchors from first to last) of each chain, the best first."""
    used = [0] * len(score)
    chains = []
    for from_ in sorted(
        (i for i, s in enumerate(score) if s >= least_score), key=lambda i: (score[i], i), reverse=True
    ):
        if used[from_]:
            continue
        i = top = from_
        most, marked = 0, []
        while True:
            marked.append(i)
            i = before[i]
            s = score[from_] - (score[i] if i >= 0 else 0)
            if s > most:
                most, top = s, i
            elif most - s > drop:
                break
            if i < 0 or used[i]:
                break
        members, i = [], from_
        while i != top:
            members.append(i)
            used[i] = 1
            i = before[i]
        total = score[from_] - (score[i] if i >= 0 else 0)
        if total >= least_score and len(members) >= max(least_count, 1):
            chains.append((total, members[::-1]))
    return chains
