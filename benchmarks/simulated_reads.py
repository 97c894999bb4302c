"""Make up a genome with repeats, and reads from it with errors and structural variants."""

import numpy as np

BASES = np.array(list("ACGT"))
_COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


def reverse_complement(bases: str) -> str:
    return bases[::-1].translate(_COMPLEMENT)


def random_bases(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(BASES, length))


def genome(rng: np.random.Generator, length: int = 300_000) -> list[str]:
    """Make three sequences.

    They have interspersed repeats of three families, 0 to 10% diverged, on either strand; tandem repeats; and N.
    """
    bases = random_bases(rng, length)
    for size in (300, 1500, 6000):
        element = random_bases(rng, size)
        for _ in range(int(rng.integers(3, 12))):
            copy = np.array(list(element))
            changed = rng.random(size) < rng.choice([0.0, 0.02, 0.1])
            copy[changed] = rng.choice(BASES, int(changed.sum()))
            text = "".join(copy)
            text = reverse_complement(text) if rng.random() < 0.5 else text
            bases = _put(bases, text, int(rng.integers(0, length - size)))
    for _ in range(5):
        unit = random_bases(rng, int(rng.integers(2, 60)))
        size = int(rng.integers(100, 2000))
        bases = _put(bases, (unit * size)[:size], int(rng.integers(0, length - 2000)))
    return [_put(bases, "N" * 500, length // 2), random_bases(rng, length // 5), random_bases(rng, length // 15)]


def _put(bases: str, part: str, place: int) -> str:
    return bases[:place] + part + bases[place + len(part) :]


def with_errors(rng: np.random.Generator, bases: str, rate: float) -> str:
    """Add errors: two fifths substitutions, and the rest insertions and deletions in equal parts."""
    chance = rng.random(len(bases))
    other = rng.choice(BASES, len(bases))
    out = []
    for base, dice, drawn in zip(bases, chance, other, strict=True):
        if dice < rate * 0.4:
            out.append(drawn)
        elif dice < rate * 0.7:
            continue
        else:
            out.append(base + drawn if dice < rate else base)
    return "".join(out)


def reads(rng: np.random.Generator, sequences: list[str], count: int, longest: int = 10_000) -> list[tuple[str, str]]:
    """Make reads of 0.2 kb to `longest`, with 1 to 12% errors.

    A tenth have a deletion of 0.1 to 15 kb, and a tenth an insertion; a few come from two places.
    """
    found = []
    for number in range(count):
        sequence = sequences[int(rng.integers(0, len(sequences)))]
        length = min(int(np.exp(rng.uniform(np.log(200), np.log(longest)))), len(sequence))
        start = int(rng.integers(0, len(sequence) - length + 1))
        bases, kind = sequence[start : start + length], rng.random()
        size = int(np.exp(rng.uniform(np.log(100), np.log(15_000))))
        if kind < 0.1 and length > 1000:
            bases = bases[: length // 2] + sequence[start + length // 2 + size : start + length + size]
        elif kind < 0.2 and length > 1000:
            bases = bases[: length // 2] + random_bases(rng, size) + bases[length // 2 :]
        elif kind < 0.23:
            bases += sequences[int(rng.integers(0, len(sequences)))][:3000]
        bases = with_errors(rng, bases.replace("N", "A"), float(rng.choice([0.01, 0.03, 0.06, 0.12])))
        found.append((f"read{number}", reverse_complement(bases) if rng.random() < 0.5 else bases))
    return found
