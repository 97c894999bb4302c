"""Finds the minimizers of many reads on the device (sketch.cu)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from porestream.kernels.align.minimizers import check_parameters
from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

END_CODE = 5
_TILE, _THREADS = 256, 128


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads on the device, one after another.

    Attributes
    ----------
    codes
        uint8, on the device: A 0, C 1, G 2, T 3, anything else 4, and `END_CODE` after each read.
    start
        int64[reads + 1], in host memory: where each read begins in `codes`.
    """

    codes: Array
    start: npt.NDArray[np.int64]

    @staticmethod
    def of(device: Device, reads: "list[npt.NDArray[np.uint8]]") -> "Reads":
        """Copy reads to the device."""
        lengths = np.array([len(codes) + 1 for codes in reads], np.int64)
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        end = np.array([END_CODE], np.uint8)
        codes = np.concatenate([part for codes in reads for part in (codes, end)] or [end])
        with device.in_order():
            return Reads(device.xp.asarray(codes), start)

    @property
    def length(self) -> npt.NDArray[np.int32]:
        """Bases in each read, int32."""
        return (np.diff(self.start) - 1).astype(np.int32)

    def __len__(self) -> int:
        return len(self.start) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMinimizers:
    """Minimizers on the device, ordered by read and position.

    Attributes
    ----------
    read_M, position_M
        int32: the read, and the position of the k-mer's last base in it.
    hash_M
        uint64.
    reverse_M
        uint8: 1 if the other strand's k-mer was hashed.
    first
        int64[reads + 1]: where each read's minimizers begin.
    """

    read_M: Array
    position_M: Array
    hash_M: Array
    reverse_M: Array
    first: Array


def sketch(device: Device, reads: Reads, k: int, w: int) -> ReadMinimizers:
    """Find the minimizers of reads; for each, the result is that of `kernels.align.minimizers.minimizers`."""
    check_parameters(k, w)
    xp, steps = device.xp, int(reads.start[-1])
    with device.in_order():
        written = xp.zeros(steps // 32 + 1, np.uint32)
        kernel = load(device, "sketch.cu", "sketch", K=k, W=w)
        kernel(-(-steps // _TILE) or 1, _TILE, codes=reads.codes, written=written, steps=steps)
        place = xp.flatnonzero(xp.unpackbits(written.view(np.uint8), bitorder="little")).astype(np.int64)
        del written
        count = len(place)
        hash_M, reverse_M = xp.empty(count, np.uint64), xp.empty(count, np.uint8)
        if count:
            describe = load(device, "sketch.cu", "describe_minimizers", K=k, W=w)
            describe(
                -(-count // _THREADS),
                _THREADS,
                codes=reads.codes,
                place=place,
                hash=hash_M,
                reverse=reverse_M,
                count=count,
            )
        start = xp.asarray(reads.start)
        read = xp.searchsorted(start, place, side="right") - 1
        return ReadMinimizers(
            read_M=read.astype(np.int32),
            position_M=(place - start[read]).astype(np.int32),
            hash_M=hash_M,
            reverse_M=reverse_M,
            first=xp.searchsorted(place, start).astype(np.int64),
        )
