"""Decodes VBZ signal, POD5's compression, without the GIL.

pod5's own decoder takes half the time, but keeps the GIL, for which all workers wait that feed a GPU. So a server with
a GPU compiles this one (`compile_decoder`); others use pod5's.

A chunk is a zstd frame. In it are one control bit for each sample, from the lowest bit of the first byte, then each
sample's difference to the one before: zigzag-coded (0, -1, 1, -2, ... are 0, 1, 2, 3), in one byte, or in two, low byte
first, if its control bit is set (https://github.com/nanoporetech/pod5-file-format/blob/master/docs/DESIGN.md, "VBZ
compression"; https://github.com/lemire/streamvbyte with 16-bit values).

Dimensions: S samples, B bytes.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard
from numba import types
from pod5.signal_tools import vbz_decompress_signal

from porestream.models.call.compiled import compile_cached

_SIGNATURE = types.boolean(types.Array(types.uint8, 1, "C", readonly=True), types.int16[::1])
_compiled: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int16]], bool] | None = None

_of_thread = threading.local()


def compile_decoder(cache_dir: Path | None = None) -> None:
    """Decode without the GIL from now on; takes a second if the cache does not have the code yet."""
    global _compiled
    _compiled = compile_cached(unpack, _SIGNATURE, cache_dir)


def decode_vbz(signal: bytes, sample_count: int) -> npt.NDArray[np.int16]:
    """Return the samples of a chunk.

    Raises
    ------
    ValueError, RuntimeError, zstandard.ZstdError
        The bytes are not VBZ, or hold another number of samples.
    """
    if _compiled is None:
        samples_S: npt.NDArray[np.int16] = vbz_decompress_signal(np.frombuffer(signal, np.uint8), sample_count)
        return samples_S
    if not hasattr(_of_thread, "zstd"):
        _of_thread.zstd = zstandard.ZstdDecompressor()  # making one takes a fifth as long as a chunk
    unpacked_B = np.frombuffer(_of_thread.zstd.decompress(signal, allow_extra_data=False), np.uint8)
    samples_S = np.empty(sample_count, np.int16)
    if not _compiled(unpacked_B, samples_S):
        raise ValueError(f"{unpacked_B.size} bytes cannot be {sample_count} samples")
    return samples_S


def unpack(unpacked_B: npt.NDArray[np.uint8], samples_S: npt.NDArray[np.int16]) -> bool:
    """Fill in the samples; return whether there were exactly as many bytes as the control bits say."""
    count = samples_S.size
    controls = (count + 7) >> 3
    if unpacked_B.size < controls:
        return False
    twos = 0
    for place in range(controls):
        bits = unpacked_B[place]
        if place == controls - 1 and count & 7:
            bits &= (1 << (count & 7)) - 1
        bits = bits - ((bits >> 1) & 0x55)
        bits = (bits & 0x33) + ((bits >> 2) & 0x33)
        twos += (bits + (bits >> 4)) & 0x0F
    if unpacked_B.size != controls + count + twos:
        return False
    place, value = controls, np.uint32(0)
    for block in range(controls - 1):  # never the last byte, so that one more byte can always be read
        bits = int(unpacked_B[block])
        for number in range(8):
            two = bits >> number & 1
            coded = np.uint32(unpacked_B[place]) | np.uint32(unpacked_B[place + 1]) << 8 & np.uint32(-two)
            place += 1 + two
            value += (coded >> 1) ^ (np.uint32(0) - (coded & 1))
            samples_S[8 * block + number] = np.int16(value & 0xFFFF)
    for number in range(8 * max(controls - 1, 0), count):
        two = int(unpacked_B[number >> 3]) >> (number & 7) & 1
        coded = np.uint32(unpacked_B[place])
        if two:
            coded |= np.uint32(unpacked_B[place + 1]) << 8
        place += 1 + two
        value += (coded >> 1) ^ (np.uint32(0) - (coded & 1))
        samples_S[number] = np.int16(value & 0xFFFF)
    return True
