"""Turns chains into alignments on a device, as minimap2 does (hits.cu)."""

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.chain import MAX_GAP, Chains
from porestream.kernels.align.extend import Extender
from porestream.kernels.align.fill import MAX_ROWS, Filler
from porestream.kernels.align.pack import Pieces
from porestream.kernels.align.seeds import Anchors, IndexOnDevice
from porestream.kernels.align.sketch import Reads
from porestream.kernels.align.tasks import Alignments
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load, struct

HIT, PLAN = struct("hits.cu", "Hit"), struct("hits.cu", "Plan")
REVERSE = 1
_THREADS = 64
_END_BAND, _ZDROP = 751, 400  # align.c: bw * 1.5 + 1; options.c: zdrop
_MAX_CELLS = 100_000_000  # options.c: max_sw_mat
_SEED = 11  # options.c


def _wang(key: int) -> int:
    """khash.h, __ac_Wang_hash."""
    mask = 0xFFFFFFFF
    key = (key + (~(key << 15) & mask)) & mask
    key ^= key >> 10
    key = (key + (key << 3)) & mask
    key ^= key >> 6
    key = (key + (~(key << 11) & mask)) & mask
    return key ^ key >> 16


def read_hash(name: str, length: int) -> int:
    """Return the hash of a read that breaks ties (map.c, mm_map_frag_core; khash.h, __ac_X31_hash_string)."""
    value = 0
    for byte in name.encode():
        value = (value * 31 + (byte if byte < 128 else byte - 256)) & 0xFFFFFFFF
    return _wang(value ^ (_wang(length) + _wang(_SEED)) & 0xFFFFFFFF)


def _hash64(xp: object, key: Array) -> Array:
    """hit.c, hash64."""
    u = np.uint64
    key = ~key + (key << u(21))
    key = key ^ key >> u(24)
    key = key + (key << u(3)) + (key << u(8))
    key = key ^ key >> u(14)
    key = key + (key << u(2)) + (key << u(4))
    key = key ^ key >> u(28)
    return key + (key << u(31))


class Failure(IntEnum):
    """Why the device cannot align a read."""

    NONE = 0
    SIZE = 1  # the gap between two anchors is too large
    DROPS = 2  # the score drops so far in a gap that minimap2 may split the alignment or look for an inversion
    WORK = 3  # too many anchors or chains
    MEMORY = 4  # the read does not fit in device memory, even alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Alignments of reads, in host memory.

    Attributes
    ----------
    hit
        `HIT` structs, read by read, in minimap2's order.
    first
        int64[reads + 1]: where each read's hits begin.
    cigars
        uint32: all CIGARs, without clips; a hit's has `operations` entries, starting at `cigar`.
    failed
        uint8[reads]: `Failure`; if not 0, minimap2 must align the read.
    """

    hit: npt.NDArray[np.void]
    first: npt.NDArray[np.int64]
    cigars: npt.NDArray[np.uint32]
    failed: npt.NDArray[np.uint8]


class HitAligner:
    """Aligns chains base by base."""

    def __init__(self, device: Device, on_device: IndexOnDevice, memory_bytes: int) -> None:
        self._device, self._on_device = device, on_device
        self._filler, self._extender = Filler(device, memory_bytes), Extender(device, memory_bytes)
        sequences = on_device.index.reference.sequences
        with device.in_order():
            self._sequence_length = device.xp.asarray(np.array([s.length for s in sequences], np.int32))
            self._unknown = device.xp.asarray(on_device.index.unknown.reshape(-1))
            if len(self._unknown) == 0:
                self._unknown = device.xp.zeros(2, np.int64)

    def __call__(
        self,
        reads: Reads,
        hashes: npt.NDArray[np.uint32],
        anchors: Anchors,
        chains: Chains,
        failed: npt.NDArray[np.uint8],
    ) -> Hits:
        """Choose chains, align them, and choose alignments. Skips reads marked in `failed`, and marks new failures."""
        device, xp, preset = self._device, self._device.xp, self._on_device.index.preset
        span, max_gap = preset.k, MAX_GAP[preset.name]
        count = len(reads)
        with device.in_order():
            length = xp.asarray(reads.length)
            hit, first = self._from_chains(hashes, chains, count)
            covered, primaries = (
                xp.zeros(max(len(chains.read_C), 1), np.uint64),
                xp.zeros(max(len(chains.read_C), 1), np.int32),
            )
            left = xp.zeros(count, np.int32)
            if len(chains.read_C):
                self._run(
                    "choose_chains",
                    count,
                    hits=first,
                    hit=hit,
                    x=chains.x_A,
                    y=chains.y_A,
                    length=length,
                    sequence_length=self._sequence_length,
                    seeds=anchors.seed_first,
                    seed_position=anchors.seed_position,
                    failed=xp.asarray(failed),
                    covered=covered,
                    primaries=primaries,
                    left=left,
                    span=span,
                    max_gap=max_gap,
                    reads=count,
                )
            table, read_of = _kept(device.to_host(hit).view(HIT), device.to_host(first), device.to_host(left))
            first_host = _starts(np.bincount(read_of, minlength=count))
            if len(table) == 0:
                return Hits(hit=table, first=first_host, cigars=np.zeros(0, np.uint32), failed=failed)
            x, y, anchor_first = self._squeezed(table, read_of, chains, count)
            plans = self._plan(table, read_of, anchor_first, x, y, length, span, max_gap)
            cigars = self._align(reads, table, read_of, plans, x, y, length, span, failed)
            hit, first = xp.asarray(table.view(np.uint8)), xp.asarray(first_host)
            self._run(
                "choose_hits",
                count,
                hits=first,
                hit=hit,
                length=length,
                cigars=cigars,
                covered=covered,
                primaries=primaries,
                repetitive=anchors.repetitive,
                left=left,
                span=span,
                max_gap=max_gap,
                reads=count,
            )
            table, read_of = _kept(device.to_host(hit).view(HIT), first_host, device.to_host(left))
            return Hits(
                hit=table,
                first=_starts(np.bincount(read_of, minlength=count)),
                cigars=device.to_host(cigars),
                failed=failed,
            )

    def _run(self, name: str, threads: int, **arguments: object) -> None:
        load(self._device, "hits.cu", name)(-(-threads // _THREADS) or 1, _THREADS, **arguments)

    def _from_chains(self, hashes: npt.NDArray[np.uint32], chains: Chains, reads: int) -> tuple[Array, Array]:
        """Make one hit per chain, each read's best first (hit.c, mm_gen_regs)."""
        xp = self._device.xp
        x, y = chains.x_A[chains.first_C], chains.y_A[chains.first_C]
        of_read = xp.asarray(hashes)[chains.read_C].astype(np.uint64)
        value = _hash64(xp, _hash64(xp, x) + _hash64(xp, y) ^ of_read) & np.uint64(0xFFFFFFFF)
        key = (chains.score_C.astype(np.uint64) << np.uint64(32) | chains.count_C.astype(np.uint64)) ^ value
        order = xp.lexsort(xp.stack([~key, chains.read_C.astype(np.uint64)]))
        table = np.zeros(len(order), HIT)
        to_host = self._device.to_host
        table["anchors"] = to_host(chains.first_C[order])
        table["score"] = table["score0"] = to_host(chains.score_C[order])
        table["count"] = to_host(chains.count_C[order])
        table["hash"] = to_host(key[order]).astype(np.uint32)
        table["parent"] = -1
        first = xp.searchsorted(chains.read_C, xp.arange(reads + 1)).astype(np.int64)
        return xp.asarray(table.view(np.uint8)), first

    def _squeezed(
        self, table: npt.NDArray[np.void], read_of: npt.NDArray[np.int64], chains: Chains, reads: int
    ) -> tuple[Array, Array, Array]:
        """Keep only the hits' anchors, in their original order (hit.c, mm_squeeze_a)."""
        xp = self._device.xp
        order = np.argsort(table["anchors"], kind="stable")
        counts = table["count"][order].astype(np.int64)
        starts = _starts(counts)
        source = np.arange(starts[-1]) - np.repeat(starts[:-1] - table["anchors"][order], counts)
        table["anchors"][order] = starts[:-1]
        of_read = np.bincount(read_of, weights=table["count"], minlength=reads).astype(np.int64)
        on_device = xp.asarray(source)
        return chains.x_A[on_device], chains.y_A[on_device], xp.asarray(_starts(of_read))

    def _plan(
        self,
        table: npt.NDArray[np.void],
        read_of: npt.NDArray[np.int64],
        anchor_first: Array,
        x: Array,
        y: Array,
        length: Array,
        span: int,
        max_gap: int,
    ) -> npt.NDArray[np.void]:
        xp, count = self._device.xp, len(table)
        plans, scratch = xp.zeros(count * PLAN.itemsize, np.uint8), xp.zeros(len(x), np.int32)
        self._run(
            "plan_hits",
            count,
            hit=xp.asarray(table.view(np.uint8)),
            read_of=xp.asarray(read_of.astype(np.int32)),
            anchors=anchor_first,
            x=x,
            y=y,
            length=length,
            sequence_length=self._sequence_length,
            plans=plans,
            scratch=scratch,
            half_span=span >> 1,
            max_gap=max_gap,
            count=count,
        )
        return self._device.to_host(plans).view(PLAN)

    def _align(
        self,
        reads: Reads,
        table: npt.NDArray[np.void],
        read_of: npt.NDArray[np.int64],
        plans: npt.NDArray[np.void],
        x: Array,
        y: Array,
        length: Array,
        span: int,
        failed: npt.NDArray[np.uint8],
    ) -> Array:
        """Fill, extend and join; updates `table` and `failed`."""
        device, xp, count = self._device, self._device.xp, len(table)
        of_device = xp.asarray(plans.view(np.uint8))
        points = _starts(plans["fills"].astype(np.int64) + 1)
        query_P, target_P = xp.zeros(int(points[-1]), np.int32), xp.zeros(int(points[-1]), np.int32)
        self._run(
            "list_fills",
            count,
            plans=of_device,
            x=x,
            y=y,
            first_point=xp.asarray(points),
            query=query_P,
            target=target_P,
            half_span=span >> 1,
            count=count,
        )
        windows = _starts((plans["re0"] - plans["rs0"]).astype(np.int64))
        target = self._unpacked(table, plans, windows)
        side = _Sides(reads=reads, table=table, read_of=read_of, plans=plans, windows=windows, codes=target)
        query, place = device.to_host(query_P).astype(np.int64), device.to_host(target_P).astype(np.int64)
        is_piece = np.ones(len(query), np.bool_)
        is_piece[points[1:] - 1] = False  # no piece begins at a hit's last point
        piece = np.flatnonzero(is_piece)
        of_piece = np.repeat(np.arange(count), plans["fills"])
        rows, columns = query[piece + 1] - query[piece], place[piece + 1] - place[piece]
        too_large = (np.minimum(rows, columns) > MAX_ROWS) | (rows * columns > _MAX_CELLS)
        failed[read_of[of_piece[too_large]]] = Failure.SIZE
        rows, columns = np.where(too_large, 0, rows), np.where(too_large, 0, columns)
        filled = self._filler(
            side.query(of_piece, query[piece], rows, backwards=False),
            side.target(of_piece, place[piece], columns, backwards=False),
        )
        lefts = np.flatnonzero((plans["qs"] > plans["qs0"]) & (plans["rs"] > plans["rs0"]))
        rights = np.flatnonzero((plans["qe0"] > plans["qe"]) & (plans["re0"] > plans["re"]))
        ends = self._ends(side, plans, lefts, rights)
        end_task = np.full((count, 2), -1, np.int64)
        end_task[lefts, 0] = np.arange(len(lefts))
        end_task[rights, 1] = len(lefts) + np.arange(len(rights))
        room = np.bincount(of_piece, weights=np.diff(filled.offset_N), minlength=count)
        for sides in end_task.T:
            room += np.where(sides >= 0, np.diff(ends.offset_N)[sides] if len(ends.score_N) else 0, 0)
        cigar_at = _starts(room.astype(np.int64))
        cigars = xp.zeros(max(int(cigar_at[-1]), 1), np.uint32)
        hit, failed_device = xp.asarray(table.view(np.uint8)), xp.zeros(len(reads), np.uint8)
        fill = _starts(plans["fills"].astype(np.int64))
        some = np.zeros(1, np.uint32)
        self._run(
            "join_hits",
            count,
            hit=hit,
            read_of=xp.asarray(read_of.astype(np.int32)),
            plans=of_device,
            codes=reads.codes,
            read_start=xp.asarray(reads.start),
            length=length,
            target=target,
            window=xp.asarray(windows),
            end_task=xp.asarray(end_task.reshape(-1)),
            end_query=xp.asarray(ends.query_N),
            end_target=xp.asarray(ends.target_N),
            end_cigar=xp.asarray(np.concatenate([ends.cigar, some])),
            end_offset=xp.asarray(ends.offset_N),
            fill=xp.asarray(fill),
            point_query=query_P,
            point_target=target_P,
            fill_cigar=xp.asarray(np.concatenate([filled.cigar, some])),
            fill_offset=xp.asarray(filled.offset_N),
            cigar_at=xp.asarray(cigar_at),
            cigars=cigars,
            failed=failed_device,
            count=count,
        )
        table[:] = device.to_host(hit).view(HIT)
        np.maximum(failed, device.to_host(failed_device), out=failed)
        return cigars

    def _unpacked(
        self, table: npt.NDArray[np.void], plans: npt.NDArray[np.void], windows: npt.NDArray[np.int64]
    ) -> Array:
        """Unpack the reference's bases within reach of each hit, on the device."""
        xp, total = self._device.xp, int(windows[-1])
        first = self._on_device.index.offset[table["sequence"]] + plans["rs0"]
        codes = xp.zeros(max(total, 1), np.uint8)
        self._run(
            "unpack",
            total,
            bases=self._on_device.bases,
            unknown=self._unknown,
            window=xp.asarray(windows),
            first=xp.asarray(first),
            codes=codes,
            windows=len(table),
            unknowns=len(self._on_device.index.unknown),
            count=total,
        )
        return codes

    def _ends(
        self, side: "_Sides", plans: npt.NDArray[np.void], lefts: npt.NDArray[np.int64], rights: npt.NDArray[np.int64]
    ) -> Alignments:
        left, right = plans[lefts], plans[rights]
        query = _both(
            side.query(lefts, left["qs"] - 1, left["qs"] - left["qs0"], backwards=True),
            side.query(rights, right["qe"], right["qe0"] - right["qe"], backwards=False),
        )
        target = _both(
            side.target(lefts, left["rs"] - 1, left["rs"] - left["rs0"], backwards=True),
            side.target(rights, right["re"], right["re0"] - right["re"], backwards=False),
        )
        return self._extender(query, target, band=_END_BAND, zdrop=_ZDROP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Pieces of the hits' reads and of their windows of the reference."""

    reads: Reads
    table: npt.NDArray[np.void]
    read_of: npt.NDArray[np.int64]
    plans: npt.NDArray[np.void]
    windows: npt.NDArray[np.int64]
    codes: Array

    def query(
        self,
        hits: npt.NDArray[np.int64],
        place: npt.NDArray[np.integer],
        length: npt.NDArray[np.integer],
        *,
        backwards: bool,
    ) -> Pieces:
        """Make pieces that start at a place on the hit's strand; for the reverse strand, the read is complemented."""
        read = self.read_of[hits]
        other = (self.table["flags"][hits] & REVERSE) != 0
        forward = np.where(other, self.reads.length[read] - 1 - place, place)
        return Pieces(
            codes=self.reads.codes,
            start_N=self.reads.start[read] + forward,
            length_N=length.astype(np.int32),
            backwards_N=other ^ backwards,
            complement_N=other,
        )

    def target(
        self,
        hits: npt.NDArray[np.int64],
        place: npt.NDArray[np.integer],
        length: npt.NDArray[np.integer],
        *,
        backwards: bool,
    ) -> Pieces:
        start = self.windows[hits] + place - self.plans["rs0"][hits]
        never = np.zeros(len(hits), np.bool_)
        return Pieces(
            codes=self.codes,
            start_N=start,
            length_N=length.astype(np.int32),
            backwards_N=never | backwards,
            complement_N=never,
        )


def _both(one: Pieces, other: Pieces) -> Pieces:
    names = [field.name for field in fields(Pieces) if field.name != "codes"]
    joined = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    return Pieces(codes=one.codes, **joined)


def _starts(sizes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _kept(
    table: npt.NDArray[np.void], first: npt.NDArray[np.int64], left: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Return the first `left` of each read's hits, and the read of each."""
    read_of = np.repeat(np.arange(len(left)), left)
    place = np.arange(len(read_of)) - np.repeat(_starts(left)[:-1], left) + first[:-1][read_of]
    return table[place].copy(), read_of
