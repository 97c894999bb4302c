"""Turns reads' minimizers into anchors (matches with the index), as minimap2 does (seeds.cu)."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.index import Index
from porestream.kernels.align.sketch import ReadMinimizers, Reads
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

_THREADS = 128
_COPY_BYTES = 64 << 20
_TOO_FREQUENT, _APART_BASES = 4095, 500  # options.c: max_max_occ, occ_dist
_SHARE_IN_READ = np.float32(0.01)  # options.c: q_occ_frac


class IndexOnDevice:
    """An index's arrays on a device."""

    def __init__(self, device: Device, index: Index) -> None:
        xp = device.xp
        self.index = index
        self.key_bits = 2 * index.preset.k - (len(index.bucket) - 1).bit_length() + 1
        with device.in_order():
            self.bucket, self.key, self.start, self.position, self.strand, self.bases = (
                _copied(xp, part)
                for part in (index.bucket, index.key, index.start, index.position, index.strand, index.bases)
            )
            self.offset = xp.asarray(index.offset)


def _copied(xp: ModuleType, array: npt.NDArray[Any]) -> Array:
    """Copy an array to the device in pieces, because CuPy never frees the page-locked memory that it copies through."""
    copy = xp.empty(len(array), array.dtype)
    step = _COPY_BYTES // array.dtype.itemsize
    for first in range(0, len(array), step):
        copy[first : first + step] = xp.asarray(array[first : first + step])
    return copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Matches of reads and reference, sorted by read and `x`; on the device.

    Attributes
    ----------
    x_A, y_A
        uint64; see anchor.cuh.
    read_A
        int32.
    first
        int64[reads + 1]: where each read's anchors begin.
    repetitive
        int32[reads]: bases covered by minimizers that were left out (map.c, rep_len).
    seed_position, seed_first
        int32: each seed's position in its read, in order; int64[reads + 1]: where each read's seeds begin.
    """

    x_A: Array
    y_A: Array
    read_A: Array
    first: Array
    repetitive: Array
    seed_position: Array
    seed_first: Array


def find_anchors(device: Device, on_device: IndexOnDevice, reads: Reads, found: ReadMinimizers) -> Anchors:
    """Look up the minimizers, choose seeds, and make an anchor for each of their positions."""
    xp, index, count = device.xp, on_device.index, len(found.hash_M)
    span = index.preset.k
    with device.in_order():
        found = _without_frequent_in_read(device, found, index.frequent)
        count = len(found.hash_M)
        length = xp.asarray(reads.length)
        at, times = xp.zeros(max(count, 1), np.uint32), xp.zeros(max(count, 1), np.uint32)
        kept, scratch = xp.zeros(max(count, 1), np.uint8), xp.zeros(max(count, 1), np.uint32)
        repetitive = xp.zeros(len(reads), np.int32)
        key = {1: "u8", 2: "u16", 4: "u32"}[on_device.key.dtype.itemsize]
        if count:
            load(device, "seeds.cu", "look_up", KEY=key)(
                -(-count // _THREADS),
                _THREADS,
                hash=found.hash_M,
                bucket=on_device.bucket,
                key=on_device.key,
                start=on_device.start,
                first=at,
                found=times,
                key_bits=on_device.key_bits,
                count=count,
            )
            load(device, "seeds.cu", "select_seeds", KEY=key)(
                -(-len(reads) // _THREADS),
                _THREADS,
                mini=found.first,
                length=length,
                position=found.position_M,
                hash=found.hash_M,
                found=times,
                kept=kept,
                scratch=scratch,
                heaps=xp.zeros(count, np.uint64),
                repetitive=repetitive,
                span=span,
                frequent=index.frequent,
                too_frequent=_TOO_FREQUENT,
                apart=_APART_BASES,
                reads=len(reads),
            )
        seed = xp.flatnonzero(kept)
        ends = xp.cumsum(times[seed].astype(np.int64))
        total = int(ends[-1]) if len(seed) else 0
        number = xp.arange(total)
        of = xp.searchsorted(ends, number, side="right")
        in_seed = number - (ends - times[seed])[of]
        seed_of = seed[of]
        read = found.read_M[seed_of]
        x, y = xp.empty(total, np.uint64), xp.empty(total, np.uint64)
        if total:
            load(device, "seeds.cu", "expand", KEY=key)(
                -(-total // _THREADS),
                _THREADS,
                seed_of=seed_of,
                in_seed=in_seed.astype(np.int64),
                first=at,
                position=found.position_M,
                reverse=found.reverse_M,
                kept=kept,
                length=length[found.read_M],
                at=on_device.position,
                strand=on_device.strand,
                offset=on_device.offset,
                x=x,
                y=y,
                span=span,
                sequences=len(on_device.offset) - 1,
                count=total,
            )
        order = xp.lexsort(xp.stack([x, read.astype(np.uint64)]))
        reads_there = xp.arange(len(reads) + 1)
        return Anchors(
            x_A=x[order],
            y_A=y[order],
            read_A=read[order],
            first=xp.searchsorted(read[order], reads_there).astype(np.int64),
            repetitive=repetitive,
            seed_position=found.position_M[seed],
            seed_first=xp.searchsorted(found.read_M[seed], reads_there).astype(np.int64),
        )


def _without_frequent_in_read(device: Device, found: ReadMinimizers, frequent: int) -> ReadMinimizers:
    """Leave out minimizers that repeat within a read (seed.c, mm_seed_mz_flt)."""
    xp, count = device.xp, len(found.hash_M)
    if count == 0:
        return found
    order = xp.lexsort(xp.stack([found.hash_M, found.read_M.astype(np.uint64)]))
    read, value = found.read_M[order], found.hash_M[order]
    starts = xp.flatnonzero(xp.concatenate([xp.ones(1, bool), (read[1:] != read[:-1]) | (value[1:] != value[:-1])]))
    times = xp.diff(xp.concatenate([starts, xp.asarray([count])]))
    in_read = xp.diff(found.first)[read[starts]]
    dropped = (times > frequent) & (times.astype(np.float32) > in_read.astype(np.float32) * _SHARE_IN_READ)
    if not bool(dropped.any()):
        return found
    run = xp.searchsorted(starts, xp.arange(count), side="right") - 1
    keep = xp.ones(count, bool)
    keep[order[dropped[run]]] = False
    read_M = found.read_M[keep]
    return ReadMinimizers(
        read_M=read_M,
        position_M=found.position_M[keep],
        hash_M=found.hash_M[keep],
        reverse_M=found.reverse_M[keep],
        first=xp.searchsorted(read_M, xp.arange(len(found.first))).astype(np.int64),
    )
