"""What CIGARs say: against examples by hand, minimap2's own figures, and pysam's reading of MD."""

from random import Random

import mappy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.kernels.align.cigar import D, I, M, S, describe, figures_of_hits, joined
from porestream.kernels.align.pack import encode_bases

Cigar = list[tuple[int, int]]


def encoded(cigar: Cigar) -> np.ndarray:
    return np.array([length << 4 | operation for length, operation in cigar], np.uint32)


@pytest.mark.parametrize(
    ("cigar", "query", "target", "score", "edits", "md", "divergence"),
    [
        ([(4, M)], "ACGT", "ACGT", 8, 0, "4", 0.0),
        ([(4, M)], "ACGT", "AGGT", 2, 1, "1G2", 0.25),
        ([(4, M)], "ANGT", "ACGT", 5, 1, "1C2", 0.25),
        ([(4, M)], "ANGT", "ANGT", 5, 1, "4", 0.25),  # N against N: no match, but nothing in MD
        ([(2, M), (1, I), (2, M)], "ACTGT", "ACGT", 2, 1, "4", 0.2),
        ([(2, M), (2, D), (2, M)], "ACGT", "ACTTGT", 0, 2, "2^TT2", 0.2),
        ([(2, M), (1, D), (2, M)], "ACAT", "ACTGT", -4, 2, "2^T0G1", 0.4),
        ([(1, I), (1, D)], "A", "C", -12, 2, "0^C0", 1.0),
        ([], "", "", 0, 0, "0", 0.0),
    ],
)
def test_figures_by_hand(
    cigar: Cigar, query: str, target: str, score: int, edits: int, md: str, divergence: float
) -> None:
    found = describe(encoded(cigar), encode_bases(query), encode_bases(target))
    assert (found.score, found.edit_distance, found.md) == (score, edits, md)
    assert found.divergence == pytest.approx(divergence)
    assert describe(encoded(cigar), encode_bases(query), encode_bases(target), md=False).md == ""


@pytest.mark.parametrize("gap", [1, 19, 20, 21, 500])
def test_a_long_gap_costs_the_less_of_the_two(gap: int) -> None:
    found = describe(encoded([(2, M), (gap, D), (2, M)]), encode_bases("ACGT"), encode_bases("AC" + "A" * gap + "GT"))
    assert found.score == 8 - min(4 + 2 * gap, 24 + gap)


def test_figures_are_minimap2s() -> None:
    rng = np.random.default_rng(1)
    genome = "".join(rng.choice([*"ACGT"], 20_000))
    aligner = mappy.Aligner(seq=genome, preset="map-ont")
    compared = 0
    for start in range(0, 16_000, 800):
        bases = list(genome[start : start + 2_000])
        for place in rng.choice(2_000, 200, replace=False):
            bases[place] = rng.choice(["", "A", "C", "G", "T", "AC", "N"])
        read = "".join(bases)
        for hit in aligner.map(read, MD=True):
            query = read[hit.q_st : hit.q_en]
            query = query if hit.strand > 0 else mappy.revcomp(query)
            found = describe(encoded(hit.cigar), encode_bases(query), encode_bases(genome[hit.r_st : hit.r_en]))
            assert (found.edit_distance, found.md) == (hit.NM, hit.MD if hit.MD[-1:].isdigit() else hit.MD + "0")
            compared += 1
    assert compared >= 20


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([M, I, D])), max_size=12), st.integers(1, 4))
def test_joined_cigars_say_the_same(cigar: Cigar, parts: int) -> None:
    whole = joined([encoded(cigar)])
    cut = [encoded(cigar[len(cigar) * part // parts : len(cigar) * (part + 1) // parts]) for part in range(parts)]
    again = joined(cut)
    assert again.tolist() == whole.tolist()
    operations = again & 15
    assert (operations[1:] != operations[:-1]).all()
    assert np.repeat(again & 15, again >> 4).tolist() == [op for length, op in cigar for _ in range(length)]


@pytest.mark.parametrize(
    ("cigar", "why"),
    [([(4, 4)], "operations other than M"), ([(3, M)], "consumes 3 and 3 bases, but the sequences have 4 and 4")],
)
def test_cigars_that_do_not_fit_are_refused(cigar: Cigar, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        describe(encoded(cigar), encode_bases("ACGT"), encode_bases("ACGT"))


_BLOCK = st.tuples(st.integers(1, 40), st.sampled_from([M, I, D]))


@given(st.lists(st.tuples(st.lists(_BLOCK, min_size=1, max_size=8), st.integers(0, 5)), max_size=6), st.randoms())
def test_figures_from_counts_are_those_from_sequences(made: list[tuple[Cigar, int]], random: Random) -> None:
    """Of CIGARs in any order in their pool, with something between them."""
    pool, first, matches, columns, expected = [], [], [], [], []
    for cigar, spare in made:
        pool += [7 << 4 | S] * spare
        first.append(len(pool))
        pool += encoded(cigar).tolist()
        query, target = (
            np.array([random.randrange(4) for _ in range(sum(n for n, op in cigar if op in takes))], np.uint8)
            for takes in ((M, I), (M, D))
        )
        found = describe(encoded(cigar), query, target, md=False)
        columns.append(sum(n for n, _ in cigar))
        matches.append(columns[-1] - found.edit_distance)
        expected.append((found.score, found.edit_distance, found.divergence))
    order = random.sample(range(len(made)), len(made))
    counts = (
        np.array([values[k] for k in order], np.int32) for values in ([len(c) for c, _ in made], matches, columns)
    )
    figures = figures_of_hits(np.array(pool, np.uint32), np.array([first[k] for k in order], np.int64), *counts)
    assert [*zip(*(column.tolist() for column in figures), strict=True)] == [expected[k] for k in order]
