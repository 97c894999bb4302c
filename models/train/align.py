"""Forced alignment: finds which samples belong to which base, given the levels that a pore model predicts.

Dimensions: S samples, B bases.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from porestream.models.train.arrays import TrainingRead
from porestream.models.train.compiled import compiled

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Found = TypeVar("Found")

HALF_BAND = 25  # bases
MAD_TO_SD = 1.4826
"""Standard deviation of normal values whose median absolute deviation is 1."""

_SD = 0.2  # of a sample around its level, table units
_LOG_STAY, _LOG_MOVE = float(np.log(0.9)), float(np.log(0.1))
_OUTLIER = 4.0  # beyond this many sd the penalty grows linearly: spikes must not bend the path
_IMPOSSIBLE = -1e30


class CannotAlign(ValueError):
    """A signal does not fit its bases."""


LeftOut = Callable[[str, CannotAlign], None]
"""Called with the id of a read that cannot be aligned, and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """A signal aligned to levels: signal = gain * level + offset + noise.

    Attributes
    ----------
    starts_B
        First sample of each base, int64; strictly rising.
    end_sample
        Where the last base ends.
    gain, offset
        In the signal's unit; gain is the size of one table unit.
    """

    starts_B: I64
    end_sample: int
    gain: float
    offset: float


def align(
    signal_S: F32, starts_B: npt.NDArray[np.number], end_sample: int, levels_B: F32, rounds: int = 4
) -> Alignment:
    """Align a signal to levels, starting from an approximate alignment.

    Two steps alternate, starting with the first: a robust line through the events' medians gives gain and offset, and
    Viterbi in a band around the given alignment finds the next path.

    Parameters
    ----------
    signal_S
        The signal, in any unit.
    starts_B
        First sample of each base, rising, within a few bases of the truth.
    end_sample
        Where the last base ends.
    levels_B
        The pore's level for each base, table units.
    rounds
        Number of paths to compute.

    Raises
    ------
    CannotAlign
        There are fewer samples than bases, or the signal does not vary with the levels.
    """
    guess_B = np.asarray(starts_B, np.int64)
    first, last = int(guess_B[0]), int(end_sample)
    if last - first < guess_B.size:
        raise CannotAlign(f"{guess_B.size} bases cannot lie in {last - first} samples")
    centre_S = np.interp(np.arange(last - first), guess_B - first, np.arange(guess_B.size)).astype(np.int64)
    found_B = guess_B
    gain, offset = fit_line(levels_B, *events(signal_S, found_B, last))
    for _ in range(rounds):
        if not gain > 0:
            raise CannotAlign(f"its levels do not rise with the pore model's (gain {gain:.2f})")
        units_S = ((signal_S[first:last] - offset) / gain).astype(np.float32)
        path_B = _viterbi(units_S, levels_B.astype(np.float32), centre_S, HALF_BAND, _SD, _LOG_STAY, _LOG_MOVE)
        if path_B[-1] < 0:
            raise CannotAlign("no path through the band reaches the last base")
        found_B = path_B + first
        gain, offset = fit_line(levels_B, *events(signal_S, found_B, last))
    return Alignment(starts_B=found_B, end_sample=last, gain=gain, offset=offset)


def each_aligned(
    reads: Iterable[TrainingRead], work: Callable[[TrainingRead], Found], left_out: LeftOut
) -> Iterator[tuple[TrainingRead, Found]]:
    """Yield the reads that can be aligned, each with what `work` returns for it; report the others to `left_out`.

    Raises
    ------
    ValueError
        No read can be aligned.
    """
    none = True
    for read in reads:
        try:
            found = work(read)
        except CannotAlign as error:
            left_out(read.read_id, error)
        else:
            none = False
            yield read, found
    if none:
        raise ValueError("no read is left that can be aligned: are signal, bases and pore model of one chemistry?")


def fit_line(levels_B: F32, medians_B: F64, counts_B: I64) -> tuple[float, float]:
    """Fit gain and offset of medians against levels, by least squares without outliers (beyond 3 robust sd)."""
    present_B = counts_B > 0
    kept_B = present_B
    gain, offset = 1.0, 0.0
    for _ in range(5):
        if np.count_nonzero(kept_B) < 10:
            raise CannotAlign(f"{np.count_nonzero(kept_B)} bases with samples are too few to fit their levels")
        gain, offset = np.polyfit(levels_B[kept_B], medians_B[kept_B], 1)
        errors_B = np.abs(medians_B - gain * levels_B - offset)
        kept_B = present_B & (errors_B <= 3 * MAD_TO_SD * np.median(errors_B[present_B]))
    return float(gain), float(offset)


def events(signal_S: F32, starts_B: I64, end_sample: int) -> tuple[F64, I64]:
    """Return the median of each base's samples (0 if it has none), and their number."""
    medians_B, _, counts_B = event_moments(signal_S, starts_B, end_sample)
    return medians_B, counts_B


@compiled
def event_moments(signal_S: F32, starts_B: I64, end_sample: int) -> tuple[F64, F64, I64]:
    """Return median, standard deviation and number of each base's samples; zeros if it has none."""
    B = starts_B.size
    medians_B, sds_B, counts_B = np.zeros(B), np.zeros(B), np.zeros(B, np.int64)
    for b in range(B):
        stop = starts_B[b + 1] if b + 1 < B else end_sample
        if stop > starts_B[b]:
            part = signal_S[starts_B[b] : stop]
            medians_B[b], sds_B[b], counts_B[b] = np.median(part), np.std(part), part.size
    return medians_B, sds_B, counts_B


@compiled
def _viterbi(units_S: F32, levels_B: F32, centre_S: I64, half: int, sd: float, log_stay: float, log_move: float) -> I64:
    """Return the first sample of every base on the best path from the first base to the last, or -1 if there is none.

    Each sample belongs to one base, within `half` bases of the band's centre at that sample. From one sample to the
    next the path stays or moves on by one base.
    """
    S, B = units_S.size, levels_B.size
    moved_SW = np.zeros((S, 2 * half + 1), np.uint8)
    before_B = np.full(B, _IMPOSSIBLE)
    after_B = np.full(B, _IMPOSSIBLE)
    before_B[0] = 0.0
    for s in range(1, S):
        low, high = max(0, centre_S[s] - half), min(B - 1, centre_S[s] + half)
        for b in range(low, high + 1):
            stay = before_B[b] + log_stay
            move = before_B[b - 1] + log_move if b > 0 else _IMPOSSIBLE
            distance = abs(units_S[s] - levels_B[b]) / sd
            cost = 0.5 * distance * distance if distance < _OUTLIER else 0.5 * _OUTLIER**2 + distance - _OUTLIER
            after_B[b] = max(stay, move) - cost
            moved_SW[s, b - centre_S[s] + half] = move > stay
        for b in range(max(0, centre_S[s - 1] - half), min(B - 1, centre_S[s - 1] + half) + 1):
            before_B[b] = _IMPOSSIBLE
        for b in range(low, high + 1):
            before_B[b] = after_B[b]
    starts_B = np.full(B, -1, np.int64)
    if before_B[B - 1] <= 0.5 * _IMPOSSIBLE:
        return starts_B
    base = B - 1
    for s in range(S - 1, 0, -1):
        if moved_SW[s, base - centre_S[s] + half]:
            starts_B[base] = s
            base -= 1
    starts_B[0] = 0
    return starts_B
