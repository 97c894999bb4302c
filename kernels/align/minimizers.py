"""minimap2's minimizers (sketch.c, mm_sketch), with NumPy: for the index, and what the kernel is held against.

What minimap2 does step by step is written here as rules for each step, so that all steps can be looked at at once. At a
step, a base, the k-mer that ends there comes into the window of the last w steps; `m` is the window's least, the last
one of equals. A minimizer is written down when it stops being that:

- the new k-mer is no greater: the least before it is written;
- else the least leaves the window: it is written, and of the new least's equals all but the new least itself;
- in a run's first full window all equals of the least so far but itself are written;
- where a sequence ends, the least of the last window is written; where N ends a run, it is not.

Only odd k: there no k-mer is its own reverse complement, which minimap2 passes over. k >= w: no window meets two runs.
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
    """Of a sequence, in the order of their positions.

    Attributes
    ----------
    hash_M
        uint64, 2 k bits.
    position_M
        Of the k-mer's last base, int64.
    reverse_M
        Whether the other strand's k-mer is the one that was hashed, bool.
    """

    hash_M: U64
    position_M: npt.NDArray[np.int64]
    reverse_M: npt.NDArray[np.bool_]


def check_parameters(k: int, w: int) -> None:
    """Raise ValueError where the rules above do not hold, or a hash does not fit."""
    if not (k % 2 and w <= k <= 27 and w >= 2):
        raise ValueError(f"minimizers of k {k} and w {w}: k must be odd, at most 27 and no less than w")


def hash64(key: U64, bits: int) -> U64:
    """minimap2's invertible hash of so many bits (sketch.c)."""
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
    """Of one sequence of codes: A 0, C 1, G 2, T 3, all else 4."""
    parts = list(minimizer_chunks(codes_S, k, w))
    empty = Minimizers(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    return Minimizers(
        np.concatenate([part.hash_M for part in [empty, *parts]]),
        np.concatenate([part.position_M for part in [empty, *parts]]),
        np.concatenate([part.reverse_M for part in [empty, *parts]]),
    )


def minimizer_chunks(codes_S: U8, k: int, w: int) -> Iterator[Minimizers]:
    """`minimizers`, some hundred thousand bases at a time."""
    check_parameters(k, w)
    count = len(codes_S)
    for start in range(0, count, _CHUNK_BASES):
        stop = min(count, start + _CHUNK_BASES)
        # Whether a k-mer is written hangs on w steps after it, and each of these on w k-mers before.
        first, last = max(0, start - w - k), min(count, stop + w)
        hash_S, reverse_S = _kmers(codes_S[first:last], k)
        written_S = _written(hash_S, w, ends=last == count)
        written_S[: start - first] = written_S[stop - first :] = False
        place = np.flatnonzero(written_S)
        yield Minimizers(hash_S[place], place + first, reverse_S[place])


def _kmers(codes_S: U8, k: int) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Of the k-mer that ends at each base its hash, NONE where there is none; whether the other strand's is less."""
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
    """The rules; `ends`: the sequence does at the last step."""
    count = len(hash_S)
    padded = np.concatenate([np.full(w, NONE), hash_S])  # step s is at s + w

    def before(steps: int) -> U64:
        """Of the k-mer so many steps before each step."""
        return padded[w - steps : w - steps + count]

    least_S, age_S = hash_S.copy(), np.zeros(count, np.int64)  # the least of a window, and its steps before the last
    for steps in range(1, w):
        earlier = before(steps)
        less = earlier < least_S
        least_S[less], age_S[less] = earlier[less], steps
    valid = np.concatenate([np.zeros(w, np.int64), np.cumsum(hash_S != NONE)])
    steps_valid = valid[w:] - valid[:-w]  # of the last w
    full = steps_valid == w
    first_full = full & (before(w) == NONE)
    later = full & ~first_full
    least_before = np.concatenate([[NONE], least_S[:-1]])
    place_before = np.arange(count) - 1 - np.concatenate([[0], age_S[:-1]])
    written = np.zeros(count + 1, np.bool_)  # the last one is for whom there is none
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
