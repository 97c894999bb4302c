"""The decoder against enumeration of every path, and against a slow decoder in float64 NumPy."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from porestream.models.call import decode_kernels
from porestream.models.call.decode import Decoded, Decoder, DecodeSettings, NonFiniteScores

EXHAUSTIVE = DecodeSettings(beam_width=8191, beam_cut=float("inf"))
LETTERS = np.frombuffer(b"ACGT", np.uint8)


def random_scores(seed: int, T: int, N: int, state_len: int, spread: float = 2.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(-0.5, spread, (T, N, 4 ** (state_len + 1))), -5, 5).astype(np.float32)


def peaky_scores(seed: int, T: int, N: int, state_len: int) -> npt.NDArray[np.float32]:
    """Scores that follow a random path, as a network's do."""
    rng = np.random.default_rng(seed)
    S = 4**state_len
    scores_TNC = rng.normal(-2.0, 1.2, (T, N, 4 * S))
    for row in range(N):
        state = int(rng.integers(S))
        for t in range(T):
            if rng.random() < 0.5:
                dropped, state = state // (S // 4), (4 * state) % S + int(rng.integers(4))
                scores_TNC[t, row, 4 * state + dropped] += 6.0
    return np.clip(scores_TNC, -5, 5).astype(np.float32)


def step_matrix(scores_C: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log weights from old state to new state by a move, (S, S); -inf where there is none. Stays are not in it."""
    S = len(scores_C) // 4
    matrix = np.full((S, S), -np.inf)
    for new, dropped in itertools.product(range(S), range(4)):
        matrix[dropped * (S // 4) + new // 4, new] = scores_C[4 * new + dropped]
    return matrix


def slow_posteriors(scores_TC: npt.NDArray[np.float32], stay: float = 2.0) -> npt.NDArray[np.float64]:
    """Posterior of each state after each block by log-sum-exp over dense matrices, (T, S)."""
    T, S = len(scores_TC), scores_TC.shape[1] // 4
    logs = [np.logaddexp(step_matrix(row), np.where(np.eye(S) > 0, stay, -np.inf)) for row in scores_TC]
    forward, backward = np.zeros((T + 1, S)), np.zeros((T + 1, S))
    for t in range(T):
        forward[t + 1] = np.logaddexp.reduce(forward[t][:, None] + logs[t], axis=0)
    for t in reversed(range(T)):
        backward[t] = np.logaddexp.reduce(logs[t] + backward[t + 1][None], axis=1)
    both = forward + backward
    return np.exp(both - np.logaddexp.reduce(both, axis=1, keepdims=True))[1:]


@dataclass(frozen=True)
class EveryPath:
    """All paths of P timed moves from each of S first states: their log weights, and their state after each block.

    `moves_P` are the moved bases, without their timing.
    """

    weights_SP: npt.NDArray[np.float64]
    states_TSP: npt.NDArray[np.int64]
    moves_P: list[tuple[int, ...]]

    def best(self) -> tuple[int, tuple[int, ...]]:
        """First state and moved bases of the largest weight, summed over all timings."""
        columns: dict[tuple[int, ...], list[int]] = {}
        for place, moves in enumerate(self.moves_P):
            columns.setdefault(moves, []).append(place)
        sums_SQ = np.stack([np.logaddexp.reduce(self.weights_SP[:, of], axis=1) for of in columns.values()], axis=1)
        first, place = np.unravel_index(sums_SQ.argmax(), sums_SQ.shape)
        return int(first), list(columns)[place]


def every_path(scores_TC: npt.NDArray[np.float32], stay: float = 2.0) -> EveryPath:
    """Lists every path."""
    T, S = len(scores_TC), scores_TC.shape[1] // 4
    steps_PT = np.array(list(itertools.product(range(-1, 4), repeat=T)))
    state_SP = np.arange(S)[:, None].repeat(len(steps_PT), axis=1)
    weights_SP, states = np.zeros(state_SP.shape), []
    for scores_C, base_P in zip(scores_TC.astype(np.float64), steps_PT.T, strict=True):
        dropped_SP = state_SP // (S // 4)
        state_SP = np.where(base_P < 0, state_SP, (4 * state_SP) % S + base_P)
        weights_SP += np.where(base_P < 0, stay, scores_C[4 * state_SP + dropped_SP])
        states.append(state_SP)
    return EveryPath(weights_SP, np.stack(states), [tuple(steps[steps >= 0].tolist()) for steps in steps_PT])


def lifted(scores_TNC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same lattice over states that are one base longer, their oldest.

    A move's score was by new state and dropped base. That base is now the new state's oldest one, and the one dropped
    changes nothing.
    """
    T, N, C = scores_TNC.shape
    by_dropped_TNKS = scores_TNC.reshape(T, N, C // 4, 4).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(by_dropped_TNKS[..., None].repeat(4, axis=4).reshape(T, N, 4 * C))


def as_text(decoded: Decoded) -> str:
    return decoded.bases_B.tobytes().decode()


def same(left: Decoded, right: Decoded) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in ("bases_B", "qualities_B", "moves_T")
    )


def states_of_call(decoded: Decoded, state_len: int) -> list[int]:
    """State after each block, -1 until enough bases are called to know it."""
    indices, states, state, called = np.searchsorted(LETTERS, decoded.bases_B), [], 0, 0
    for move in decoded.moves_T:
        if move:
            state = (4 * state + int(indices[called])) % 4**state_len
            called += 1
        states.append(state if called >= state_len else -1)
    return states


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numba")


@pytest.fixture(scope="module")
def fast(cache: Path) -> Decoder:
    return Decoder(3, DecodeSettings(), cache)


@pytest.mark.parametrize(
    ("state_len", "T", "seed"),
    [(1, 6, 1), (1, 5, 2), (1, 4, 3), (2, 4, 4), (2, 3, 5), (2, 1, 6), (4, 3, 7), (4, 2, 8), (5, 2, 9), (5, 3, 10)],
)
def test_beam_finds_the_best_of_all_sequences(cache: Path, state_len: int, T: int, seed: int) -> None:
    scores_TNC = random_scores(seed, T, 1, state_len)
    first, moves = every_path(scores_TNC[:, 0]).best()
    called = as_text(Decoder(state_len, EXHAUSTIVE, cache)(scores_TNC, 0))
    after_move = "".join("ACGT"[base] for base in moves)
    assert called in (after_move, "ACGT"[first & 3] + after_move)  # the first block either moved or stayed


@pytest.mark.parametrize(("state_len", "T"), [(1, 5), (2, 3), (4, 3), (5, 3)])
def test_posteriors_are_those_of_all_paths(cache: Path, state_len: int, T: int) -> None:
    scores_TNC = random_scores(7, T, 1, state_len)
    paths = every_path(scores_TNC[:, 0])
    likelihoods = np.exp(paths.weights_SP - paths.weights_SP.max()).ravel()
    posteriors = np.stack([np.bincount(states.ravel(), likelihoods, 4**state_len) for states in paths.states_TSP])
    posteriors /= posteriors.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(slow_posteriors(scores_TNC[:, 0]), posteriors, rtol=1e-9)
    np.testing.assert_allclose(Decoder(state_len, EXHAUSTIVE, cache).posteriors(scores_TNC, 0), posteriors, rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scores", ["random", "peaky"])
def test_longer_states_that_say_no_more_call_the_same(cache: Path, scores: str, seed: int) -> None:
    """256 and 1,024 states against the decoder of 64, on one lattice; a posterior is the sum over the added bases."""
    make, T = (peaky_scores, 200) if scores == "peaky" else (random_scores, 40)
    scores_TNC = make(seed, T, 2, 3)
    wide = DecodeSettings(beam_width=4096, beam_cut=1e9)  # many states of equal weight to begin with
    decoder = Decoder(3, wide, cache)
    called, posteriors_TS = decoder(scores_TNC, 1), decoder.posteriors(scores_TNC, 1)
    assert len(called.bases_B) > T // 4
    for state_len in (4, 5):
        scores_TNC = lifted(scores_TNC)
        decoder = Decoder(state_len, wide, cache)
        longer = decoder(scores_TNC, 1)
        assert as_text(longer) == as_text(called)
        assert longer.moves_T.tolist() == called.moves_T.tolist()
        sums_TS = decoder.posteriors(scores_TNC, 1).reshape(T, -1, 64).sum(axis=1)
        np.testing.assert_allclose(sums_TS, posteriors_TS, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("state_len", "T"), [(1, 40), (2, 40), (3, 60), (4, 30), (5, 6)])
@pytest.mark.parametrize("stay_score", [2.0, -1.0])
def test_posteriors_against_float64(cache: Path, state_len: int, T: int, stay_score: float) -> None:
    scores_TNC = random_scores(state_len, T, 2, state_len, spread=3.0)
    decoder = Decoder(state_len, DecodeSettings(stay_score=stay_score), cache)
    expected = slow_posteriors(scores_TNC[:, 1], stay_score)
    np.testing.assert_allclose(decoder.posteriors(scores_TNC, 1), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("state_len", [1, 2, 3, 4, 5])
def test_qualities_against_the_formula(cache: Path, state_len: int) -> None:
    T = 40 if state_len == 5 else 60
    scores_TNC = peaky_scores(state_len, T, 1, state_len)
    scale, bias = 0.9, -0.3
    decoder = Decoder(state_len, DecodeSettings(quality_scale=scale, quality_bias=bias), cache)
    decoded = decoder(scores_TNC, 0)
    posteriors = slow_posteriors(scores_TNC[:, 0])
    S = 4**state_len
    blocks: list[list[float]] = []
    for t, state in enumerate(states_of_call(decoded, state_len)):
        near = {state, *((4 * state) % S + b for b in range(4)), *(b * (S // 4) + state // 4 for b in range(4))}
        if decoded.moves_T[t]:
            blocks.append([])
        blocks[-1].append(min(sum(posteriors[t, s] for s in near), 1) ** 0.4 if state >= 0 else np.nan)
    assert len(blocks) == len(decoded.bases_B)
    compared = 0
    for quality, probabilities in zip(decoded.qualities_B, blocks, strict=True):
        error = max(1 - np.mean(probabilities), 1e-12)
        if np.isfinite(error):
            expected = np.clip(-10 * np.log10(error) * scale + bias, 1, 50)
            assert abs(int(quality) - expected) <= 0.505
            compared += 1
    assert compared > len(blocks) // 2


@pytest.mark.parametrize("state_len", [3, 4, 5])
def test_follows_a_clear_path(cache: Path, state_len: int) -> None:
    rng = np.random.default_rng(state_len)
    S, T, state = 4**state_len, 80, 0
    scores_TNC = np.full((T, 1, 4 * S), -5, np.float32)
    bases, moves = [], []
    for t in range(T):
        moves.append(t == 0 or rng.random() < 0.5)
        if moves[-1]:
            dropped, base = state // (S // 4), int(rng.integers(4))
            state = (4 * state) % S + base
            bases.append(base)
            scores_TNC[t, 0, 4 * state + dropped] = 5
    decoded = Decoder(state_len, DecodeSettings(), cache)(scores_TNC, 0)
    assert decoded.moves_T.tolist() == [int(move) for move in moves]
    assert as_text(decoded) == "".join("ACGT"[base] for base in bases)
    assert decoded.qualities_B.min() > 15


@pytest.mark.parametrize("beam_width", [1, 2, 5, 32, 100])
def test_narrow_beams(cache: Path, beam_width: int) -> None:
    scores_TNC = peaky_scores(1, 300, 1, 3)
    wide = as_text(Decoder(3, DecodeSettings(beam_width=400, beam_cut=float("inf")), cache)(scores_TNC, 0))
    narrow = as_text(Decoder(3, DecodeSettings(beam_width=beam_width), cache)(scores_TNC, 0))
    differing = sum(a != b for a, b in zip(narrow, wide, strict=False)) + abs(len(narrow) - len(wide))
    assert differing == 0 or beam_width < 32


@pytest.mark.parametrize("neighbour", [np.nan, np.inf, 1e4, -1e4, 0.0])
def test_a_row_does_not_depend_on_the_others(fast: Decoder, neighbour: float) -> None:
    alone_TNC = peaky_scores(2, 200, 1, 3)
    expected = fast(alone_TNC, 0)
    for N, row in [(2, 0), (3, 1), (7, 6)]:
        scores_TNC = np.full((200, N, 256), neighbour, np.float32)
        scores_TNC[:, row] = alone_TNC[:, 0]
        assert same(fast(scores_TNC, row), expected)


@pytest.mark.parametrize("offset", [4, 8, 20, 36, 60])
def test_result_does_not_depend_on_alignment(fast: Decoder, offset: int) -> None:
    scores_TNC = random_scores(3, 150, 2, 3)
    memory = np.empty(scores_TNC.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    moved_TNC = memory[start : start + scores_TNC.nbytes].view(np.float32).reshape(scores_TNC.shape)
    moved_TNC[:] = scores_TNC
    assert same(fast(moved_TNC, 1), fast(scores_TNC, 1))


@given(seed=st.integers(0, 2**32), T=st.integers(1, 60), spread=st.floats(0, 1e4))
@hypothesis_settings(max_examples=60)
def test_any_finite_scores_decode(fast: Decoder, seed: int, T: int, spread: float) -> None:
    scores_TNC = np.random.default_rng(seed).uniform(-spread, spread, (T, 1, 256)).astype(np.float32)
    decoded = fast(scores_TNC, 0)
    assert decoded.moves_T.shape == (T,)
    assert decoded.moves_T[0] == 1
    assert set(decoded.moves_T.tolist()) <= {0, 1}
    assert decoded.moves_T.sum() == len(decoded.bases_B) == len(decoded.qualities_B)
    assert set(decoded.bases_B.tobytes()) <= set(b"ACGT")
    assert 1 <= decoded.qualities_B.min() <= decoded.qualities_B.max() <= 50
    posteriors_TS = fast.posteriors(scores_TNC, 0)
    np.testing.assert_allclose(posteriors_TS.sum(axis=1), 1, rtol=1e-5)
    clipped_TNC = np.clip(scores_TNC, -decode_kernels.SCORE_LIMIT, decode_kernels.SCORE_LIMIT).astype(np.float32)
    assert same(fast(clipped_TNC, 0), decoded)


@pytest.mark.parametrize("state_len", [1, 3, 5])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
@pytest.mark.parametrize("stay_score", [-10.0, 10.0])
def test_one_extreme_transition_at_a_step(cache: Path, state_len: int, extreme: float, stay_score: float) -> None:
    rng = np.random.default_rng(0)
    scores_TNC = np.full((30, 1, 4 ** (state_len + 1)), -extreme, np.float32)
    scores_TNC[np.arange(30), 0, rng.integers(0, scores_TNC.shape[2], 30)] = extreme
    decoder = Decoder(state_len, DecodeSettings(stay_score=stay_score), cache)
    decoded = decoder(scores_TNC, 0)
    assert decoded.moves_T.sum() == len(decoded.bases_B)
    assert np.isfinite(decoder.posteriors(scores_TNC, 0)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_row_is_refused_and_others_decode(fast: Decoder, bad: float) -> None:
    scores_TNC = peaky_scores(4, 50, 3, 3)
    expected = fast(scores_TNC, 2)
    scores_TNC[:, 1] = bad
    scores_TNC[49, 0, 255] = bad
    for row in (0, 1):
        with pytest.raises(NonFiniteScores, match=f"row {row}"):
            fast(scores_TNC, row)
    assert same(fast(scores_TNC, 2), expected)


@pytest.mark.parametrize("constant", [-5.0, 0.0, 2.0, 5.0])
@pytest.mark.parametrize("T", [1, 50])
def test_constant_scores(fast: Decoder, constant: float, T: int) -> None:
    scores_TNC = np.full((T, 1, 256), constant, np.float32)
    decoded = fast(scores_TNC, 0)
    assert decoded.moves_T.sum() == len(decoded.bases_B) >= 1
    assert same(fast(scores_TNC, 0), decoded)
    np.testing.assert_allclose(fast.posteriors(scores_TNC, 0), 1 / 64, rtol=1e-5)


def test_long_after_short_and_short_after_long(fast: Decoder) -> None:
    scores_TNC = peaky_scores(5, 400, 1, 3)
    short = fast(scores_TNC[:30], 0)
    long = fast(scores_TNC, 0)
    assert same(fast(scores_TNC[:30], 0), short)
    assert len(long.moves_T) == 400
    assert len(short.moves_T) == 30


def test_threads_agree(fast: Decoder) -> None:
    scores_TNC = peaky_scores(6, 300, 8, 3)
    expected = [fast(scores_TNC, row) for row in range(8)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            results = pool.map(lambda row: fast(scores_TNC, row), range(8))
            assert all(same(a, b) for a, b in zip(results, expected, strict=True))


def test_wrong_arguments(fast: Decoder) -> None:
    scores_TNC = np.zeros((5, 2, 256), np.float32)
    for wrong in (scores_TNC[:0], scores_TNC[:, :, :64], scores_TNC[0], scores_TNC.astype(np.float64), scores_TNC[::2]):
        with pytest.raises(ValueError, match="scores must be"):
            fast(wrong, 0)
    for row in (-1, 2):
        with pytest.raises(ValueError, match="row"):
            fast(scores_TNC, row)
    with pytest.raises(ValueError, match="state_len"):
        Decoder(0, DecodeSettings())
    for name, value in [("beam_width", 0), ("beam_cut", 0.5), ("stay_score", np.nan), ("quality_scale", np.inf)]:
        with pytest.raises(ValueError, match=name.split("_")[0]):
            DecodeSettings(**{name: value})


@given(
    values=st.lists(st.integers(0, 6).map(float) | st.floats(0, 2.0**100, width=32), min_size=2, max_size=40),
    data=st.data(),
)
@hypothesis_settings(max_examples=100)
def test_selection_against_sorting(values: list[float], data: st.DataObject) -> None:
    width = data.draw(st.integers(1, len(values) - 1))
    values_H = np.array(values, np.float32)
    kept_H = np.arange(len(values), dtype=np.int32)
    kept = decode_kernels.keep_best(values_H, kept_H, np.empty_like(values_H), len(values), width)
    best = np.sort(np.argsort(-values_H, kind="stable")[:width])
    assert kept_H[:kept].tolist() == best.tolist()


def test_exponential() -> None:
    x = np.linspace(-40, 40, 4001).astype(np.float32)
    computed = np.array([decode_kernels.exp32(value) for value in x], np.float64)
    np.testing.assert_allclose(computed, np.exp(x.astype(np.float64)), rtol=3e-7)


CALL = """
from pathlib import Path
import numba, numpy as np
from porestream.models.call.decode import Decoder, DecodeSettings
before = numba.config.CACHE_DIR
decoder = Decoder(1, DecodeSettings(), {cache!r} and Path({cache!r}))
print(len(decoder(np.zeros((3, 1, 16), np.float32), 0).moves_T), numba.config.CACHE_DIR == before)
"""


@pytest.mark.parametrize("given_dir", [True, False])
def test_unwritable_cache_falls_back(tmp_path: Path, given_dir: bool) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("no directory can be below this")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = CALL.format(cache=str(blocker / "cache") if given_dir else None)
    # it compiles anew: without optimising, a quarter faster
    environment = {**os.environ, "XDG_CACHE_HOME": str(blocker), "TMPDIR": str(scratch), "NUMBA_OPT": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["3", "True"]
    assert list(scratch.iterdir()) == []  # the temporary cache is gone


def test_second_decoder_loads_what_the_first_compiled(cache: Path, fast: Decoder) -> None:
    code = CALL.format(cache=str(cache))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb*")}
    assert any(path.suffix == ".nbc" for path in before)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb*")} == before
