"""Chains anchors as minimap2 does (chain.cu)."""

from dataclasses import dataclass, replace

import numpy as np

from porestream.kernels.align.mmi import Preset
from porestream.kernels.align.seeds import Anchors
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

_WARP, _THREADS = 32, 128
BAND, BAND_LONG = 500, 20_000  # options.c: bw, bw_long
MAX_GAP = {"map-ont": 5000, "lr:hq": 10_000}  # options.c: max_gap
MIN_SCORE, MIN_COUNT = 40, 3  # options.c: min_chain_score, min_cnt
_MOST, _MOST_FAR, _REACH_INNER = 5000, 100_000, 1000  # options.c: max_chain_iter, rmq_size_cap, rmq_inner_dist
_RESCUE_BASES, _RESCUE_SHARE = 1000, np.float32(0.1)  # options.c: rmq_rescue_size, rmq_rescue_ratio
_SPAN = 0xFF
MAX_LINKS = 2e9
"""Most links per read; minimap2 aligns reads that have more. It takes hours for some of them (its issue 324)."""
MAX_CHAINS = 4096
"""Most chains per read, because they are all compared with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """Chains on the device, ordered by read and first anchor.

    Attributes
    ----------
    x_A, y_A, read_A
        The chains' anchors, in order.
    anchors
        int64[reads + 1]: where each read's anchors begin.
    score_C, count_C
        int32: each chain's score, and number of anchors.
    first_C
        int64: where each chain's anchors begin.
    read_C
        int32: each chain's read.
    """

    x_A: Array
    y_A: Array
    read_A: Array
    anchors: Array
    score_C: Array
    count_C: Array
    first_C: Array
    read_C: Array


def gap_cost(preset: Preset) -> np.float32:
    """Return map.c's chain_gap_scale * 0.01 * k, with the scale 0.8 in float32."""
    return np.float32(float(np.float32(0.8)) * 0.01 * preset.k)


def without_too_much_work(device: Device, anchors: Anchors, preset: Preset) -> tuple[Anchors, Array]:
    """Leave out the anchors of reads that would hold up all others; also return which reads those are: bool[reads].

    The work is estimated from above: in each row of anchors within reach, every anchor may have to be linked to as many
    others as chaining allows.
    """
    xp = device.xp
    with device.in_order():
        x, read = anchors.x_A, anchors.read_A
        reads = len(anchors.first) - 1
        too_many = _too_many_links(device, x, read, reads, max(MAX_GAP[preset.name], BAND), _MOST)
        if not bool(too_many.any()):
            return anchors, too_many
        keep = ~too_many[read]
        kept = read[keep]
        first = xp.searchsorted(kept, xp.arange(reads + 1)).astype(np.int64)
        return replace(anchors, x_A=x[keep], y_A=anchors.y_A[keep], read_A=kept, first=first), too_many


def _too_many_links(device: Device, x: Array, read: Array, reads: int, reach: int, most: int) -> Array:
    """Return which reads have more than `MAX_LINKS` links; bool[reads]."""
    xp = device.xp
    starts, ends = _segments(device, x, read, reach)
    size = ends - starts
    if len(size) == 0:
        return xp.zeros(reads, bool)
    work = (size * xp.minimum(size, most)).astype(np.float64)
    return xp.bincount(read[starts], weights=work, minlength=reads) > MAX_LINKS


def _segments(device: Device, x: Array, read: Array, reach: int) -> tuple[Array, Array]:
    """Return the start and end of each row of anchors that are close enough to be chained."""
    xp, count = device.xp, len(x)
    if count == 0:
        return xp.zeros(0, np.int64), xp.zeros(0, np.int64)
    apart = (read[1:] != read[:-1]) | (x[1:] >> np.uint64(32) != x[:-1] >> np.uint64(32))
    apart |= x[1:] - x[:-1] > np.uint64(reach)
    starts = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), apart])).astype(np.int64)
    return starts, xp.concatenate([starts[1:], xp.asarray([count], np.int64)])


def find_chains(device: Device, anchors: Anchors, preset: Preset, read_length: Array) -> tuple[Chains, Array]:
    """Chain anchors, and chain some reads again with long joins (map.c, mm_map_frag_core).

    Parameters
    ----------
    device, anchors, preset
        The device, the anchors, and the preset that gives the distances.
    read_length
        int32: length of every read, on the device.

    Returns
    -------
    chains
    too_much
        bool[reads]: reads with too many chains, or with too many links to be chained again.
    """
    xp, reads = device.xp, len(read_length)
    with device.in_order():
        chains = _chain(device, anchors.x_A, anchors.y_A, anchors.read_A, len(read_length), preset, far=False)
        too_much = xp.diff(xp.searchsorted(chains.read_C, xp.arange(reads + 1))) > MAX_CHAINS
        again_R = _to_chain_again(device, chains, read_length) & ~too_much
        if not bool(again_R.any()):
            return chains, too_much
        again_A = again_R[chains.read_A]
        x, y, read = (of[again_A] for of in (chains.x_A, chains.y_A, chains.read_A))
        order = xp.lexsort(xp.stack([x, read.astype(np.uint64)]))
        x, y, read = x[order], y[order], read[order]
        links = _too_many_links(device, x, read, reads, BAND_LONG, _MOST_FAR)
        if bool(links.any()):
            too_much, again_R, keep = too_much | links, again_R & ~links, ~links[read]
            x, y, read = x[keep], y[keep], read[keep]
        far = _chain(device, x, y, read, reads, preset, far=True)
        return _merged(device, chains, far, again_R), too_much


def _chain(device: Device, x: Array, y: Array, read: Array, reads: int, preset: Preset, *, far: bool) -> Chains:
    xp, count = device.xp, len(x)
    band = BAND_LONG if far else BAND
    reach = max(MAX_GAP[preset.name], band)
    score, before = (y >> np.uint64(32) & np.uint64(_SPAN)).astype(np.int32), xp.full(count, -1, np.int64)
    if count:
        starts, ends = _segments(device, x, read, reach)
        several = ends - starts > 1  # a single anchor is a chain by itself
        starts, ends = starts[several], ends[several]
        if len(starts):
            load(device, "chain.cu", "chain_far" if far else "chain")(
                len(starts),
                _WARP,
                segment=starts,
                segment_end=ends,
                x=x,
                y=y,
                score=score,
                before=before,
                reach=reach,
                band=band,
                most=_MOST_FAR if far else _MOST,
                gap_cost=gap_cost(preset),
                **({"reach_inner": _REACH_INNER} if far else {}),
            )
    return _backtracked(device, x, y, read, reads, score, before, band)


def _backtracked(
    device: Device, x: Array, y: Array, read: Array, reads: int, score: Array, before: Array, drop: int
) -> Chains:
    xp, count = device.xp, len(x)
    numbers = xp.arange(reads + 1)
    anchors = xp.searchsorted(read, numbers).astype(np.int64)
    last = xp.flatnonzero(score >= MIN_SCORE).astype(np.int64)
    order = xp.lexsort(xp.stack([score[last].astype(np.int64), read[last].astype(np.int64)]))
    last = last[order]
    ends = xp.searchsorted(read[last], numbers).astype(np.int64)
    size = max(len(last), 1)
    chain_score, chain_count = xp.zeros(size, np.int32), xp.zeros(size, np.int32)
    used, taken, chains = (
        xp.zeros(max(count, 1), np.uint8),
        xp.zeros(max(count, 1), np.int64),
        xp.zeros(reads, np.int32),
    )
    if len(last):
        load(device, "chain.cu", "backtrack")(
            -(-reads // _THREADS),
            _THREADS,
            ends=ends,
            last=last,
            anchors=anchors,
            score=score,
            before=before,
            used=used,
            chain_score=chain_score,
            chain_count=chain_count,
            order=taken,
            chains=chains,
            least_count=MIN_COUNT,
            least_score=MIN_SCORE,
            drop=drop,
            reads=reads,
        )
    # Concatenate: chain c of read r is at ends[r] + c, and its anchors follow those of the chains before it.
    total = int(chains.sum())
    first_of_read = xp.cumsum(chains) - chains
    read_C = xp.repeat(xp.arange(reads), chains.tolist()) if total else xp.zeros(0, np.int64)
    place = ends[read_C] + xp.arange(total) - first_of_read[read_C]
    score_C, count_C = chain_score[place], chain_count[place].astype(np.int64)
    before_C = xp.cumsum(count_C) - count_C  # anchors of all chains before
    start_C = (
        anchors[read_C] + before_C - (before_C[xp.minimum(first_of_read, max(total - 1, 0))][read_C] if total else 0)
    )
    # Sort by the place of the first anchor, which comes last in `taken`.
    x_first = x[taken[start_C + count_C - 1]] if total else xp.zeros(0, np.uint64)
    order = xp.lexsort(xp.stack([x_first, read_C.astype(np.uint64)])) if total else xp.zeros(0, np.int64)
    score_C, count_C, start_C, read_C = (of[order] for of in (score_C, count_C, start_C, read_C))
    ends_C = xp.cumsum(count_C)
    members = int(ends_C[-1]) if total else 0
    number = xp.arange(members)
    of = xp.searchsorted(ends_C, number, side="right")
    from_end = ends_C[of] - 1 - number
    source = taken[start_C[of] + from_end]
    read_A = read_C[of].astype(np.int32)
    return Chains(
        x_A=x[source],
        y_A=y[source],
        read_A=read_A,
        anchors=xp.searchsorted(read_A, numbers).astype(np.int64),
        score_C=score_C.astype(np.int32),
        count_C=count_C.astype(np.int32),
        first_C=(ends_C - count_C).astype(np.int64),
        read_C=read_C.astype(np.int32),
    )


def _to_chain_again(device: Device, chains: Chains, read_length: Array) -> Array:
    """Return which reads have several chains, and a first one that leaves much of the read uncovered (map.c)."""
    xp, reads = device.xp, len(read_length)
    first = xp.searchsorted(chains.read_C, xp.arange(reads + 1))
    several = xp.diff(first) > 1
    if not bool(several.any()):
        return several
    at = xp.where(several, first[:-1], 0)
    begin = chains.y_A[chains.first_C[at]].astype(np.uint32).astype(np.int64)
    end = chains.y_A[chains.first_C[at] + chains.count_C[at] - 1].astype(np.uint32).astype(np.int64)
    long = end - begin
    share = read_length.astype(np.float32) * _RESCUE_SHARE
    return several & ((read_length - long > _RESCUE_BASES) | (long.astype(np.float32) > share))


def _merged(device: Device, chains: Chains, far: Chains, again_R: Array) -> Chains:
    """Take the chains of `far` for the reads that were chained again, and keep the others' chains."""
    xp = device.xp
    old_A, old_C = ~again_R[chains.read_A], ~again_R[chains.read_C]

    def both(name: str, old: Array) -> Array:
        return xp.concatenate([getattr(chains, name)[old], getattr(far, name)])

    x, y, read = (both(name, old_A) for name in ("x_A", "y_A", "read_A"))
    score, count, read_C = (both(name, old_C) for name in ("score_C", "count_C", "read_C"))
    order_A, order_C = (xp.argsort(of, kind="stable") for of in (read, read_C))
    count, read = count[order_C], read[order_A]
    ends = xp.cumsum(count.astype(np.int64))
    return Chains(
        x_A=x[order_A],
        y_A=y[order_A],
        read_A=read,
        anchors=xp.searchsorted(read, xp.arange(len(again_R) + 1)).astype(np.int64),
        score_C=score[order_C],
        count_C=count,
        first_C=(ends - count).astype(np.int64),
        read_C=read_C[order_C],
    )
