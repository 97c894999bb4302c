"""Encodes sequences for simulation, and makes up random ones.

Dimensions: B bases.
"""

import numpy as np
import numpy.typing as npt

Bases = npt.NDArray[np.uint8]

UNKNOWN = 4
"""Code of anything other than A, C, G, T or U; must be replaced before simulation."""

_CODES = np.full(256, UNKNOWN, np.uint8)
for _code, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"TtUu")):
    _CODES[list(_letters)] = _code


def encode(sequence: str | bytes) -> Bases:
    """Encode letters of either case: 0-3 for A, C, G and T or U, `UNKNOWN` for anything else; uint8."""
    letters = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return _CODES[np.frombuffer(letters, np.uint8)]


def decode(bases_B: Bases) -> str:
    """Invert `encode`; unknown bases become N."""
    return np.frombuffer(b"ACGTN", np.uint8)[bases_B].tobytes().decode()


def reverse_complement(bases_B: Bases) -> Bases:
    """Return the other strand, 5' to 3'; unknown bases stay unknown."""
    return np.where(bases_B < UNKNOWN, 3 - bases_B, UNKNOWN)[::-1].astype(np.uint8)


def random_bases(count: int, rng: np.random.Generator) -> Bases:
    """Make up a sequence of 0-3 with a random GC content (30-65%), homopolymers and tandem repeats.

    For every thousand bases drawn there are 6 homopolymers of 3-14 bases and 1.5 repeats of 3-9 units of 2-6 bases:
    more than by chance, because basecallers find these hard.
    """
    gc = rng.uniform(0.30, 0.65)
    drawn_B = rng.choice(4, count, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]).astype(np.uint8)
    kind_B = rng.random(count)
    parts, done, length = [], 0, 0
    for place in np.flatnonzero(kind_B < 0.0075):
        parts.append(drawn_B[done:place])
        if kind_B[place] < 0.006:
            part_B = np.full(3 + min(11, int(rng.exponential(2.5))), rng.integers(4), np.uint8)
        else:
            part_B = np.tile(rng.integers(0, 4, rng.integers(2, 7), np.uint8), rng.integers(3, 10))
        parts.append(part_B)
        length += int(place) - done + part_B.size
        done = int(place) + 1
        if length >= count:
            break
    return np.concatenate([*parts, drawn_B[done:]])[:count]
