"""Cutting and stitching: every time step is kept once, and what a network that sees one step calls is the read's."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.models.call.chunk import FEW_LENGTHS, MANY_LENGTHS, Chunker, stitch

RATIOS = [FEW_LENGTHS, MANY_LENGTHS]
MODELS = [
    (12_000, 600, 6),
    (10_000, 500, 5),
    (4_000, 200, 6),
    (64, 16, 4),
    (60, 40, 5),
    (12_300, 600, 6, 192, 12),
    (480, 100, 5, 160, 10),
    (10_000, 1000, 5),  # the overlap is as long as the shortest chunk
    (12_288, 1152, 6, 192, 12),
]


def chunker_of(model: tuple[int, ...], ratio: float) -> Chunker:
    """The chunker of one of MODELS."""
    size, overlap, stride, *units = model
    granularity, unit = units or (None, None)
    return Chunker(size, overlap, stride, granularity, unit, ratio)


@given(st.sampled_from(MODELS), st.sampled_from(RATIOS), st.integers(12, 200_000))
def test_every_step_is_kept_exactly_once(model: tuple[int, ...], ratio: float, read_samples: int) -> None:
    chunker = chunker_of(model, ratio)
    plan = chunker.plan(read_samples)
    stride = model[2]
    kept = [
        (piece.start // stride + low, piece.start // stride + high)
        for piece, (low, high) in zip(plan.pieces, plan.kept_steps(), strict=True)
    ]
    assert kept[0][0] == 0
    assert kept[-1][1] == plan.steps == read_samples // stride
    assert all(end == following for (_, end), (following, _) in pairwise(kept))
    for piece, (low, high) in zip(plan.pieces, plan.kept_steps(), strict=True):
        assert piece.start % stride == 0
        assert piece.samples in chunker.lengths
        assert 0 <= low < high <= piece.samples // stride


@given(st.sampled_from(MODELS), st.sampled_from(RATIOS), st.integers(1, 100_000))
def test_neighbours_overlap_by_at_least_the_models_overlap(
    model: tuple[int, ...], ratio: float, read_samples: int
) -> None:
    plan = chunker_of(model, ratio).plan(read_samples)
    overlap = model[1] // model[-1] * model[-1]
    for piece, following in zip(plan.pieces, plan.pieces[1:], strict=False):
        assert piece.start < following.start
        assert piece.start + piece.samples - following.start >= overlap


@pytest.mark.parametrize(
    ("read_samples", "lengths"),
    [
        (1, [1002]),
        (1002, [1002]),
        (1003, [2292]),
        (2293, [2292] * 2),
        (5244, [5244]),
        (6000, [2292] * 4),  # less work than a long chunk, or two
        (12_000, [12_000]),
        (12_001, [12_000, 1002]),
        (23_400, [12_000] * 2),
        (24_000, [12_000, 12_000, 2292]),
    ],
)
def test_ends_and_short_reads_take_short_chunks(read_samples: int, lengths: list[int]) -> None:
    assert [piece.samples for piece in Chunker(12_000, 600, 6).plan(read_samples).pieces] == lengths


@pytest.mark.parametrize("chunk_size", [6000, 12_000])
def test_little_is_computed_in_vain(chunk_size: int) -> None:
    """Of reads longer than the shortest chunk, with the lengths of a CPU."""
    chunker = Chunker(chunk_size, 600, 6, ratio=MANY_LENGTHS)
    long = chunk_size / (chunk_size - 600)
    for read_samples in range(1003, 50_000, 13):
        computed = sum(piece.samples for piece in chunker.plan(read_samples).pieces)
        assert computed < 1.3 * long * read_samples


@pytest.mark.parametrize(
    ("model", "ratio", "lengths"),
    [
        ((10_000, 500, 5), FEW_LENGTHS, (10_000, 4645, 2155, 1000)),
        ((6000, 600, 5), FEW_LENGTHS, (6000, 2450, 1000)),
        ((6000, 600, 6), MANY_LENGTHS, (6000, 4650, 3600, 2790, 2160, 1674, 1296, 1002)),
        ((12_300, 600, 6, 192, 12), FEW_LENGTHS, (12_288, 5760, 2688, 1152)),
        ((1200, 120, 6), FEW_LENGTHS, (1200, 600, 300)),
        ((1200, 120, 6), MANY_LENGTHS, (1200, 954, 756, 600, 480, 378, 300)),
        ((1200, 200, 6), MANY_LENGTHS, (1200,)),
        ((1000, 150, 5), MANY_LENGTHS, (1000,)),
        ((480, 100, 5, 160, 10), MANY_LENGTHS, (480,)),
        ((64, 16, 4), FEW_LENGTHS, (64,)),
    ],
)
def test_lengths_lie_between_the_models_and_a_thousand(
    model: tuple[int, ...], ratio: float, lengths: tuple[int, ...]
) -> None:
    assert chunker_of(model, ratio).lengths == lengths


@given(st.sampled_from(MODELS), st.sampled_from(RATIOS), st.integers(1, 60_000))
def test_starts_are_multiples_of_the_overlaps_unit(model: tuple[int, ...], ratio: float, read_samples: int) -> None:
    unit = model[2 if len(model) == 3 else 4]
    assert all(piece.start % unit == 0 for piece in chunker_of(model, ratio).plan(read_samples).pieces)


def test_a_chunk_that_is_all_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size 150 is too small"):
        Chunker(150, 10, 5, 160)


@given(st.sampled_from(MODELS), st.sampled_from(RATIOS), st.integers(1, 60_000), st.integers(0, 2**32 - 1))
def test_stitching_inverts_cutting(model: tuple[int, ...], ratio: float, read_samples: int, seed: int) -> None:
    """A caller that sees one time step at a time must call the same of the chunks as of the whole."""
    rng = np.random.default_rng(seed)
    stride = model[2]
    signal_S = rng.integers(-500, 500, read_samples).astype(np.int16)
    plan = chunker_of(model, ratio).plan(read_samples)

    def call(chunk_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first_T = chunk_S[: chunk_S.size // stride * stride].reshape(-1, stride)[:, 0].astype(np.int64)
        moves_T = (first_T % 3 == 0).astype(np.uint8)
        bases_B = np.frombuffer(b"ACGT", np.uint8)[first_T[moves_T == 1] % 4]
        return bases_B, (first_T[moves_T == 1] % 50).astype(np.uint8), moves_T

    whole = call(signal_S)  # what is no whole step at the end has no base
    cut = [np.resize(signal_S[piece.start :][: piece.samples], piece.samples) for piece in plan.pieces]
    called = stitch(plan, [call(chunk_S) for chunk_S in cut])
    for expected, actual in zip(whole, called, strict=True):
        np.testing.assert_array_equal(actual, expected)
