"""Finds minimap2's minimizers (sketch.c, mm_sketch) with NumPy: for the index, and to test the kernel against.

minimap2 works step by step; here the same is written as rules that apply to each step by itself, so that all steps can
be computed at once. Each base is a step: the k-mer that ends there enters the window of the last w steps. The window's
minimum is its smallest hash, the last one if several are equal. A minimum is written when it stops being the minimum:

- if the new k-mer is not greater, the previous minimum is written;
- or else, if the minimum leaves the window, it is written, and so are all equals of the new minimum except itself;
- in a run's first full window, all equals of the minimum so far are written, except itself;
- at the end of a sequence, the last window's minimum is written; if N ends a run, it is not.

k must be odd, so that no k-mer is its own reverse complement (minimap2 skips those), and k >= w, so that no window
spans two runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NONE = np.iinfo(np.uint64).max
_CHUNK_BASES = 1 << 18

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Minimizers:
    """A sequence's minimizers, in order of position.

    Attributes
    ----------
    hash_M
        uint64, 2 k bits.
    position_M
        int64: position of the k-mer's last base.
    reverse_M
        bool: whether the other strand's k-mer was hashed.
    """

    hash_M: U64
    position_M: npt.NDArray[np.int64]
    reverse_M: npt.NDArray[np.bool_]


def check_parameters(k: int, w: int) -> None:
    """Raise ValueError if the rules above do not hold, or a hash does not fit."""
    if not (k % 2 and w <= k <= 27 and w >= 2):
        raise ValueError(f"k = {k}, w = {w} is not supported: k must be odd and w to 27, and w at least 2")


def hash64(key: U64, bits: int) -> U64:
    """Compute minimap2's invertible hash of `bits` bits (sketch.c)."""
    mask = np.uint64((1 << bits) - 1)

    def shifted(value: U64, by: int) -> U64:
        return value << np.uint64(by)

    key = (~key + shifted(key, 21)) & mask
    key = key ^ key >> np.uint64(24)
    key = (key + shifted(key, 3) + shifted(key, 8)) & mask
    key = key ^ key >> np.uint64(14)
    key = (key + shifted(key, 2) + shifted(key, 4)) & mask
    key = key ^ key >> np.uint64(28)
    return (key + shifted(key, 31)) & mask


def minimizers(codes_S: U8, k: int, w: int) -> Minimizers:
    """Find the minimizers of one sequence of codes: A 0, C 1, G 2, T 3, anything else 4."""
    parts = list(minimizer_chunks(codes_S, k, w))
    empty = Minimizers(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    return Minimizers(
        np.concatenate([part.hash_M for part in [empty, *parts]]),
        np.concatenate([part.position_M for part in [empty, *parts]]),
        np.concatenate([part.reverse_M for part in [empty, *parts]]),
    )


def minimizer_chunks(codes_S: U8, k: int, w: int) -> Iterator[Minimizers]:
    """Yield the minimizers of `minimizers`, a few hundred thousand bases at a time."""
    check_parameters(k, w)
    count = len(codes_S)
    for start in range(0, count, _CHUNK_BASES):
        stop = min(count, start + _CHUNK_BASES)
        # Whether a k-mer is written depends on w steps after it, and each of those on w k-mers before.
        first, last = max(0, start - w - k), min(count, stop + w)
        hash_S, reverse_S = _kmers(codes_S[first:last], k)
        written_S = _written(hash_S, w, ends=last == count)
        written_S[: start - first] = written_S[stop - first :] = False
        place = np.flatnonzero(written_S)
        yield Minimizers(hash_S[place], place + first, reverse_S[place])


def _kmers(codes_S: U8, k: int) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Return the hash of the k-mer that ends at each base (or NONE), and whether the other strand's is smaller."""
    count = len(codes_S)
    forward_S, backward_S = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    valid_S = np.zeros(count, np.bool_)
    bases_S = (codes_S & 3).astype(np.uint64)
    if count >= k:
        forward, backward = forward_S[k - 1 :], backward_S[k - 1 :]
        for i in range(k):  # base i of the k-mer
            part = bases_S[i : count - k + 1 + i]
            np.bitwise_or(forward << np.uint64(2), part, out=forward)
            np.bitwise_or(backward, (np.uint64(3) - part) << np.uint64(2 * i), out=backward)
        bad = np.concatenate([[0], np.cumsum(codes_S > 3)])
        valid_S[k - 1 :] = bad[k:] == bad[:-k]
    reverse_S = backward_S < forward_S
    hash_S = hash64(np.where(reverse_S, backward_S, forward_S), 2 * k)
    hash_S[~valid_S] = NONE
    return hash_S, reverse_S


def _written(hash_S: U64, w: int, *, ends: bool) -> npt.NDArray[np.bool_]:
    """Apply the rules; `ends` says whether the sequence ends at the last step."""
    count = len(hash_S)
    padded = np.concatenate([np.full(w, NONE), hash_S])  # step s is at s + w

    def before(steps: int) -> U64:
        """Return the hash of the k-mer this many steps before each step."""
        return padded[w - steps : w - steps + count]

    least_S, age_S = hash_S.copy(), np.zeros(count, np.int64)  # a window's minimum, and how many steps ago it was
    for steps in range(1, w):
        earlier = before(steps)
        less = earlier < least_S
        least_S[less], age_S[less] = earlier[less], steps
    valid = np.concatenate([np.zeros(w, np.int64), np.cumsum(hash_S != NONE)])
    steps_valid = valid[w:] - valid[:-w]  # among the last w
    full = steps_valid == w
    first_full = full & (before(w) == NONE)
    later = full & ~first_full
    least_before = np.concatenate([[NONE], least_S[:-1]])
    place_before = np.arange(count) - 1 - np.concatenate([[0], age_S[:-1]])
    written = np.zeros(count + 1, np.bool_)  # the extra entry takes writes at -1
    replaced = later & (hash_S <= least_before)
    left = later & ~replaced & (place_before == np.arange(count) - w)
    written[place_before[replaced | left]] = True
    for steps in range(w):
        place = np.arange(count) - steps
        equal = left & (before(steps) == least_S) & (steps != age_S)
        if steps:
            equal |= first_full & (before(steps) == least_before) & (place != place_before)
        written[place[equal]] = True
    if ends and count and least_S[-1] != NONE:
        written[count - 1 - age_S[-1]] = True
    return written[:count]
