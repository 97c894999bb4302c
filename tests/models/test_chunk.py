"""Cutting and stitching: every time step is kept once, and what a network that sees one step calls is the read's."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.models.call.chunk import Chunker, stitch

MODELS = [
    (12_000, 600, 6),
    (10_000, 500, 5),
    (4_000, 200, 6),
    (64, 16, 4),
    (60, 40, 5),
    (12_300, 600, 6, 192, 12),
    (480, 100, 5, 160, 10),
]


@given(st.sampled_from(MODELS), st.integers(12, 200_000))
def test_every_step_is_kept_exactly_once(model: tuple[int, ...], read_samples: int) -> None:
    chunker = Chunker(*model)
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


@given(st.sampled_from(MODELS), st.integers(1, 100_000))
def test_neighbours_overlap_by_at_least_the_models_overlap(model: tuple[int, ...], read_samples: int) -> None:
    plan = Chunker(*model).plan(read_samples)
    overlap = model[1] // model[-1] * model[-1]
    for piece, following in zip(plan.pieces, plan.pieces[1:], strict=False):
        assert piece.start < following.start
        assert piece.start + piece.samples - following.start >= overlap


@pytest.mark.parametrize(
    ("read_samples", "lengths"),
    [
        (1, [1002]),
        (1002, [1002]),
        (1003, [3000]),
        (3000, [3000]),
        (3001, [3000] * 2),
        (9000, [3000] * 4),  # as much work as one long chunk
        (12_000, [12_000]),
        (12_001, [12_000, 3000]),
        (23_400, [12_000] * 2),
        (24_000, [12_000, 12_000, 3000]),
    ],
)
def test_ends_take_short_chunks_and_short_reads_brief_ones(read_samples: int, lengths: list[int]) -> None:
    plan = Chunker(12_000, 600, 6).plan(read_samples)
    if read_samples == 9000:
        assert sum(piece.samples for piece in plan.pieces) == 12_000
    else:
        assert [piece.samples for piece in plan.pieces] == lengths


@pytest.mark.parametrize(
    ("model", "lengths"),
    [
        ((10_000, 500, 5), (10_000, 2500, 1000)),
        ((6000, 600, 5), (6000, 1500, 1000)),
        ((12_300, 600, 6, 192, 12), (12_288, 3072, 1152)),
        ((5000, 500, 5), (5000, 1250)),  # 1,000 would be hardly shorter
        ((8000, 1200, 5), (8000, 1000)),  # a quarter is less than two overlaps
        ((480, 100, 5, 160, 10), (480,)),  # a quarter is less than 160
        ((64, 16, 4), (64,)),
    ],
)
def test_lengths_are_multiples_and_those_of_no_use_are_left_out(
    model: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    assert Chunker(*model).lengths == lengths


@given(st.sampled_from(MODELS), st.integers(1, 60_000))
def test_starts_are_multiples_of_the_overlaps_unit(model: tuple[int, ...], read_samples: int) -> None:
    assert all(
        piece.start % model[2 if len(model) == 3 else 4] == 0 for piece in Chunker(*model).plan(read_samples).pieces
    )


def test_a_chunk_that_is_all_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size 150 is too small"):
        Chunker(150, 10, 5, 160)


@given(st.sampled_from(MODELS), st.integers(1, 60_000), st.integers(0, 2**32 - 1))
def test_stitching_inverts_cutting(model: tuple[int, ...], read_samples: int, seed: int) -> None:
    """A caller that sees one time step at a time must call the same of the chunks as of the whole."""
    rng = np.random.default_rng(seed)
    stride = model[2]
    signal_S = rng.integers(-500, 500, read_samples).astype(np.int16)
    plan = Chunker(*model).plan(read_samples)

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
