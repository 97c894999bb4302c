"""Kernels of the CRF decoder, compiled with numba: they turn one row of scores into bases, qualities and moves.

Everything runs in the probability domain: a step's scores are exponentiated once, and the forward and backward
vectors are rescaled to sum to one at every step, so that no logarithm is taken before the qualities.

Everything that decides bases and moves is plain IEEE arithmetic in the order in which it is written, without fused
multiply-adds. kernels/decode/crf.cu does the same, operation by operation, so a GPU calls the same bases and moves.
Only `dot`, which qualities are computed from, may be reordered. It runs over workspaces with a fixed layout, and LLVM
never peels a loop to align it, so a row decodes to the same bytes wherever it lies.

Dimensions: T time steps (scans have T + 1 borders), N rows of the batch, C transitions (4 * S), S states, K neighbours,
W hypotheses of the beam, H candidates for the beam (5 * W + 1), X slots of a hash table.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., Any])

SCORE_LIMIT = 40.0
"""Scores are clamped to +-SCORE_LIMIT, so that no step over- or underflows; LSTM models stay within +-5."""

FLOOR = 1e-30
"""Least value of a rescaled forward or backward probability, so that their products stay normal float32 numbers."""

MAX_BEAM_WIDTH = 8191
"""A back pointer has 13 bits for the parent."""

STEP = 4
"""Bit of a back pointer that marks a move; bits 0-1 hold the base, bits 3-15 the parent's place in the beam."""

BEST_QUALITY = 50.0
FINITE_BITS = 0x7F7FFFFF  # the largest finite float32 without its sign
BASES = np.frombuffer(b"ACGT", np.uint8)


def _inline(*fastmath: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function as part of its calling kernel, with these LLVM fast-math flags."""
    flags = set(fastmath) or False
    decorate = numba.njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=flags)
    return cast(Callable[[Function], Function], decorate)


@_inline()
def as_float(bits: np.int32) -> np.float32:
    return np.int32(bits).view(np.float32)


@_inline()
def as_bits(value: np.float32) -> np.int32:
    return np.float32(value).view(np.int32)


@_inline()
def exp32(x: np.float32) -> np.float32:
    """Compute e to the power x for |x| < 87, with a polynomial that LLVM vectorises; relative error below 2e-7.

    Cody and Waite, Software Manual for the Elementary Functions (1980): x = n ln 2 + r, and a Taylor polynomial of r.
    """
    shifted = x * np.float32(1.44269504) + np.float32(12582912.0)  # 1.5 * 2**23 puts n into the low mantissa bits
    n = shifted - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(0.5)
    p = p * r + np.float32(1.0)
    p = p * r + np.float32(1.0)
    power = as_float(np.int32((as_bits(shifted) + 127) << 23))
    return np.float32(p * power)


@_inline()
def exponentiate(scores_C: F32, scratch_C: F32, weights_C: F32) -> np.int32:
    """Exponentiate a step's scores, and reorder them from (new state, dropped base) to (dropped base, new state).

    Return the largest magnitude among the scores, as the bits of a float32. If it is above FINITE_BITS, one of the
    scores is not finite.
    """
    least, most = np.float32(-SCORE_LIMIT), np.float32(SCORE_LIMIT)
    largest = np.int32(0)
    for transition in range(scores_C.size):
        score = scores_C[transition]
        largest = max(largest, np.int32(as_bits(score) & 0x7FFFFFFF))
        scratch_C[transition] = exp32(min(max(score, least), most))
    S = scores_C.size // 4
    for dropped in range(4):
        weights_S = weights_C[dropped * S : (dropped + 1) * S]
        for new in range(S):
            weights_S[new] = scratch_C[4 * new + dropped]
    return largest


@_inline()
def sum_in_pairs(values: F32) -> np.float32:
    """Sum 2**n values, adding halves to halves, in the order in which a GPU's threads add. Overwrites them."""
    half = values.size >> 1
    while half > 0:
        for place in range(half):
            values[place] += values[place + half]
        half >>= 1
    return np.float32(values[0])


@_inline()
def backward_step(
    weights_C: F32, stay: np.float32, scale: np.float32, after_S: F32, sums_C: F32, before_S: F32
) -> np.float32:
    """Do a step of the backward algorithm: `before_S` from `after_S` times `scale`. Return the sum of `before_S`.

    `sums_C` is scratch.
    """
    S = after_S.size
    quarter = S // 4
    sums = sums_C[:quarter]
    for dropped in range(4):
        weights_S = weights_C[dropped * S : (dropped + 1) * S]
        out = before_S[dropped * quarter : (dropped + 1) * quarter]
        kept = after_S[dropped * quarter : (dropped + 1) * quarter]
        for suffix in range(quarter):
            new = 4 * suffix
            value = stay * kept[suffix] + (
                weights_S[new] * after_S[new]
                + weights_S[new + 1] * after_S[new + 1]
                + weights_S[new + 2] * after_S[new + 2]
                + weights_S[new + 3] * after_S[new + 3]
            )
            value = max(value * scale, np.float32(FLOOR))
            out[suffix] = value
            sums[suffix] = value if dropped == 0 else sums[suffix] + value
    return sum_in_pairs(sums)


@_inline()
def forward_step(
    weights_C: F32, stay: np.float32, scale: np.float32, before_S: F32, repeated_C: F32, after_S: F32
) -> np.float32:
    """Do a step of the forward algorithm: `after_S` from `before_S` times `scale`. Return the sum of `after_S`.

    `repeated_C` is scratch. It holds each state of `before_S` four times, to line up predecessors with new states.
    """
    S = before_S.size
    for state in range(S):
        for copy in range(4):
            repeated_C[4 * state + copy] = before_S[state]
    for new in range(S):
        value = stay * before_S[new] + (
            weights_C[new] * repeated_C[new]
            + weights_C[S + new] * repeated_C[S + new]
            + weights_C[2 * S + new] * repeated_C[2 * S + new]
            + weights_C[3 * S + new] * repeated_C[3 * S + new]
        )
        after_S[new] = max(value * scale, np.float32(FLOOR))
    sums = repeated_C[: S // 4]
    for suffix in range(sums.size):
        new = 4 * suffix
        sums[suffix] = after_S[new] + after_S[new + 1] + after_S[new + 2] + after_S[new + 3]
    return sum_in_pairs(sums)


@_inline("contract", "reassoc", "nsz")
def dot(left_S: F32, right_S: F32) -> np.float64:
    """Sum the products in float64."""
    total = 0.0
    for state in range(left_S.size):
        total += np.float64(left_S[state] * right_S[state])
    return np.float64(total)


@_inline()
def mix(history: np.uint64, base: np.uint64) -> np.uint64:
    """Hash a sequence, given the hash of all but its last base: one round of a 64-bit multiply-xorshift."""
    mixed = (history ^ (base + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    return np.uint64(mixed ^ (mixed >> np.uint64(32)))


@_inline()
def limit_of_best(values: F32, width: int) -> tuple[np.float32, int]:
    """Return the least of the `width` best of more than `width` values >= 0, and how many of the best equal it.

    This bisects the bits of the floats, which sort like the values. If it finds a limit between two values that
    separates the best from the rest, it returns that limit and a count of zero: then all of the best exceed it.
    """
    low, high = np.int32(0), np.int32(0x7F800000)  # at least `width` values reach low, fewer reach high
    above = 0
    while high - low > 1:
        middle = np.int32(low + (high - low) // 2)
        limit = as_float(middle)
        reached = np.int32(0)
        for place in range(values.size):
            reached += np.int32(values[place] >= limit)
        if reached == width:
            return as_float(np.int32(middle - 1)), 0
        if reached > width:
            low = middle
        else:
            high, above = middle, int(reached)
    return as_float(low), width - above


@_inline()
def keep_best(values_H: F32, kept_H: I32, scratch_H: F32, count: int, width: int) -> int:
    """Shorten the list of kept candidates to the `width` best; of equal ones, the first stay."""
    for place in range(count):
        scratch_H[place] = values_H[kept_H[place]]
    limit, ties = limit_of_best(scratch_H[:count], width)
    filled = 0
    for place in range(count):
        kept_H[filled] = kept_H[place]
        tied = (scratch_H[place] == limit) & (ties > 0)
        ties -= tied
        filled += (scratch_H[place] > limit) | tied
    return filled


@_inline()
def start_beam(guide_S: F32, width: int, weight_W: F32, state_W: I32, hash_W: U64, parent_W: U64) -> int:
    """Fill the beam before the first step: the states with the largest backward probabilities, all with weight one."""
    S = guide_S.size
    limit, ties = np.float32(0.0), 0
    if width < S:
        limit, ties = limit_of_best(guide_S, width)
    count = 0
    for state in range(S):
        tied = guide_S[state] == limit and ties > 0
        ties -= tied
        if guide_S[state] > limit or tied:
            weight_W[count] = 1.0
            state_W[count] = state
            hash_W[count] = mix(np.uint64(0x2545F4914F6CDD1D), np.uint64(state))
            parent_W[count] = np.uint64(0)
            count += 1
    return count


@_inline("nnan", "nsz")
def maximum(values: F32) -> np.float32:
    """Return the largest of the values, or zero; none may be NaN."""
    largest = np.float32(0.0)
    for place in range(values.size):
        largest = max(largest, values[place])
    return largest


@_inline()
def find_parents(hash_W: U64, parent_W: U64, count: int, head_X: I32, next_W: I32, found_W: I32) -> None:
    """Find where the beam has each hypothesis' sequence without its last base; `count` if it is not in the beam.

    `head_X` and `next_W` are scratch: a hash table with chains. `head_X` is filled with -1, before and after.
    """
    mask = np.uint64(head_X.size - 1)
    for place in range(count):
        slot = np.int64(hash_W[place] & mask)
        next_W[place] = head_X[slot]
        head_X[slot] = place
    for place in range(count):
        origin = head_X[np.int64(parent_W[place] & mask)]
        while origin >= 0 and hash_W[origin] != parent_W[place]:
            origin = next_W[origin]
        found_W[place] = origin if origin >= 0 else count
    for place in range(count):
        head_X[np.int64(hash_W[place] & mask)] = -1


@_inline()
def beam_step(
    weights_C: F32,
    stay: np.float32,
    guide_S: F32,
    cut: np.float32,
    width: int,
    count: int,
    weight_W: F32,
    state_W: I32,
    hash_W: U64,
    parent_W: U64,
    next_weight_W: F32,
    next_state_W: I32,
    next_hash_W: U64,
    next_parent_W: U64,
    values_H: F32,
    kept_H: I32,
    scratch_H: F32,
    head_X: I32,
    found_2W: I32,
    back_W: U16,
) -> int:
    """Extend `count` hypotheses by one step into the `next_` arrays and `back_W`; return how many are left.

    A candidate's value is its path's weight times the backward probability of its state: the sum over everything that
    may follow. The candidates are four moves for each hypothesis, then one stay for each. A stay and a move into the
    same sequence merge into the likelier one. Candidates below the best times `cut` are dropped, and so are all but the
    `width` best. `hash_W` and `parent_W` are the hashes of a hypothesis' sequence (its first state and its moves), and
    of that sequence without the last move.
    """
    S = guide_S.size
    last, quarter = S - 1, S // 4
    for place in range(count):
        state = state_W[place]
        new = (4 * state) & last
        index = (state // quarter) * S + new
        weight = weight_W[place]
        for base in range(4):
            values_H[4 * place + base] = weight * (weights_C[index + base] * guide_S[new + base])
    find_parents(hash_W, parent_W, count, head_X, found_2W[0], found_2W[1])
    nothing = 5 * count  # a slot beyond the candidates; a stay without a parent in the beam merges with it
    for place in range(count):
        state = state_W[place]
        parent = found_2W[1, place]
        move = 4 * parent + (state & 3) if parent < count else nothing
        stayed = weight_W[place] * (stay * guide_S[state])
        values_H[nothing] = 0.0
        moved = values_H[move]
        merged = stayed + moved
        stays = stayed > moved
        values_H[4 * count + place] = merged if stays else np.float32(-1.0)
        values_H[move] = np.float32(-1.0) if stays else merged

    best = maximum(values_H[: 5 * count])
    limit = best * cut
    kept = 0
    for candidate in range(5 * count):  # without a branch, which would be mispredicted
        kept_H[kept] = candidate
        kept += values_H[candidate] >= limit
    if kept > width:
        kept = keep_best(values_H, kept_H, scratch_H, kept, width)

    scale = np.float32(1.0) / best
    for place in range(kept):
        candidate = kept_H[place]
        if candidate < 4 * count:
            origin, base = candidate >> 2, candidate & 3
            state = ((4 * state_W[origin]) & last) | base
            next_hash_W[place] = mix(hash_W[origin], np.uint64(base))
            next_parent_W[place] = hash_W[origin]
            back_W[place] = (origin << 3) | STEP | base
        else:
            origin = candidate - 4 * count
            state = state_W[origin]
            next_hash_W[place] = hash_W[origin]
            next_parent_W[place] = parent_W[origin]
            back_W[place] = (origin << 3) | (state & 3)
        next_state_W[place] = state
        next_weight_W[place] = values_H[candidate] * scale / guide_S[state]
    return kept


@_inline("contract")
def block_probability(forward_S: F32, backward_S: F32, neighbours_K: I32) -> np.float64:
    """Return the posterior of a state and its neighbours (a row of the neighbour table: their number, then the states).

    The neighbours have the same bases shifted by one. They stand for a right call at a slightly wrong time.
    """
    near = 0.0
    for place in range(1, neighbours_K[0] + 1):
        state = neighbours_K[place]
        near += np.float64(forward_S[state] * backward_S[state])
    return np.float64(min(near / dot(forward_S, backward_S), 1.0))


@_inline()
def phred(probability: float, scale: float, bias: float) -> np.uint8:
    """Return the Phred quality of a call with this probability, calibrated, rounded and clamped to 1-50."""
    error = 1.0 - probability
    if error <= 0.0:
        return np.uint8(BEST_QUALITY)
    quality = -10.0 * np.log10(error) * scale + bias
    return np.uint8(min(max(np.floor(quality + 0.5), 1.0), BEST_QUALITY))


@_inline()
def backward(
    scores_TNC: F32, row: int, stay: np.float32, repeated_C: F32, weights_TC: F32, backward_TS: F32
) -> np.int32:
    """Compute a row's backward probabilities at the T + 1 borders of its T blocks.

    Return the largest magnitude among the scores, as `exponentiate` does.
    """
    T = scores_TNC.shape[0]
    S = backward_TS.shape[1]
    largest = np.int32(0)
    backward_TS[T] = np.float32(1.0 / S)
    total = np.float32(1.0)
    for t in range(T - 1, -1, -1):
        largest = max(largest, exponentiate(scores_TNC[t, row], repeated_C, weights_TC[t]))
        scale = np.float32(1.0) / total
        total = backward_step(weights_TC[t], stay, scale, backward_TS[t + 1], repeated_C, backward_TS[t])
    return largest


@_inline()
def call_bases(
    state: int,
    quality_scale: float,
    quality_bias: float,
    neighbours_SK: I32,
    forward_TS: F32,
    backward_TS: F32,
    bases_T: U8,
    qualities_T: U8,
    moves_T: U8,
) -> int:
    """Call bases and qualities along a path, given its first state and the moves and bases of its blocks.

    A base's quality comes from the mean, over its blocks, of the block's probability to the power of 0.4, after the
    published behaviour of dorado and openfish. Overwrites the front of `bases_T` with letters; returns how many.
    """
    last = neighbours_SK.shape[0] - 1
    called = 0
    mass, blocks = 0.0, 0
    for t in range(moves_T.size):
        if moves_T[t]:
            state = ((4 * state) & last) | bases_T[t]
        elif t == 0:
            moves_T[0] = 1  # the first block calls a base even if it stays
        if moves_T[t]:
            if blocks:
                qualities_T[called - 1] = phred(mass / blocks, quality_scale, quality_bias)
            bases_T[called] = BASES[state & 3]
            called += 1
            mass, blocks = 0.0, 0
        mass += block_probability(forward_TS[t + 1], backward_TS[t + 1], neighbours_SK[state]) ** 0.4
        blocks += 1
    qualities_T[called - 1] = phred(mass / blocks, quality_scale, quality_bias)
    return called


def decode_row(
    scores_TNC: F32,
    row: int,
    stay_score: float,
    quality_scale: float,
    quality_bias: float,
    cut: float,
    width: int,
    neighbours_SK: I32,
    weights_TC: F32,
    repeated_C: F32,
    forward_TS: F32,
    backward_TS: F32,
    back_TW: U16,
    weight_2W: F32,
    state_2W: I32,
    hash_2W: U64,
    parent_2W: U64,
    values_H: F32,
    kept_H: I32,
    scratch_H: F32,
    head_X: I32,
    found_2W: I32,
    seed_W: I32,
    bases_T: U8,
    qualities_T: U8,
    moves_T: U8,
) -> int:
    """Decode one row into `bases_T`, `qualities_T` and `moves_T`.

    Returns the number of bases, or -1 if a score is not finite.

    `cut` is the least value that a candidate may have, relative to the best one. The arrays from `weights_TC` to
    `seed_W` are workspace. Afterwards, `forward_TS` and `backward_TS` (T + 1, S) hold the scans, each row up to a
    factor.
    """
    T = scores_TNC.shape[0]
    S = neighbours_SK.shape[0]
    stay = np.float32(np.exp(stay_score))
    if backward(scores_TNC, row, stay, repeated_C, weights_TC, backward_TS) > FINITE_BITS:
        return -1

    count = start_beam(backward_TS[0], width, weight_2W[0], state_2W[0], hash_2W[0], parent_2W[0])
    forward_TS[0] = np.float32(1.0 / S)
    total = np.float32(1.0)
    seed_W[:count] = state_2W[0, :count]
    for t in range(T):
        scale = np.float32(1.0) / total
        total = forward_step(weights_TC[t], stay, scale, forward_TS[t], repeated_C, forward_TS[t + 1])
        old, new = t & 1, (t & 1) ^ 1
        count = beam_step(
            weights_TC[t],
            stay,
            backward_TS[t + 1],
            np.float32(cut),
            width,
            count,
            weight_2W[old],
            state_2W[old],
            hash_2W[old],
            parent_2W[old],
            weight_2W[new],
            state_2W[new],
            hash_2W[new],
            parent_2W[new],
            values_H,
            kept_H,
            scratch_H,
            head_X,
            found_2W,
            back_TW[t],
        )

    place = 0  # backward probabilities are all equal at the last border, so the largest weight is the best path
    for candidate in range(1, count):
        if weight_2W[T & 1, candidate] > weight_2W[T & 1, place]:
            place = candidate
    for t in range(T - 1, -1, -1):
        link = int(np.int64(back_TW[t, place]))
        moves_T[t] = (link >> 2) & 1
        bases_T[t] = link & 3
        place = link >> 3
    return call_bases(
        seed_W[place],
        quality_scale,
        quality_bias,
        neighbours_SK,
        forward_TS,
        backward_TS,
        bases_T,
        qualities_T,
        moves_T,
    )


SIGNATURE = (
    "i8(f4[:, :, ::1], i8, f8, f8, f8, f8, i8, i4[:, ::1], "
    + "f4[:, ::1], f4[::1], f4[:, ::1], f4[:, ::1], "  # weights_TC, repeated_C, forward_TS, backward_TS
    + "u2[:, ::1], f4[:, ::1], i4[:, ::1], u8[:, ::1], u8[:, ::1], "  # back_TW and the two generations of the beam
    + "f4[::1], i4[::1], f4[::1], "  # values_H, kept_H, scratch_H
    + "i4[::1], i4[:, ::1], i4[::1], "  # head_X, found_2W, seed_W
    + "u1[::1], u1[::1], u1[::1])"
)
