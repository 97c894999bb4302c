"""The banded loss and its gradient against an exact, unbanded one in torch's float64 autograd."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from porestream.models.train.crf_loss import SCORE_LIMIT, START_SLACK, STAY_SCORE, crf_loss, margins


def exact_loss(
    scores_TNC: torch.Tensor, targets_NP: npt.NDArray[np.uint8], positions_NT: npt.NDArray[np.int32], state_len: int
) -> torch.Tensor:
    """All paths, path by path of positions and states, without a band: the definition, in log space."""
    T, N, C = scores_TNC.shape
    S = C // 4
    scores_TNC = scores_TNC.clamp(-SCORE_LIMIT, SCORE_LIMIT)
    losses = []
    for n in range(N):
        from_K4 = torch.tensor([[k * (S // 4) + j // 4 for k in range(4)] for j in range(S)])
        all_S = torch.zeros(S, dtype=torch.float64)
        target = targets_NP[n]
        P = len(target)
        first, last = int(positions_NT[n, 0]), int(positions_NT[n, -1])
        on_P = [torch.tensor(0.0 if abs(p - first) <= START_SLACK else -1e4, dtype=torch.float64) for p in range(P)]
        for t in range(T):
            moves_S4 = scores_TNC[t, n].view(S, 4) + all_S[from_K4]
            all_S = torch.logsumexp(torch.cat([all_S[:, None] + STAY_SCORE, moves_S4], 1), 1)
            after_P = [on_P[p] + STAY_SCORE for p in range(P)]
            for p in range(state_len, P):
                state = 0
                for base in target[p - state_len + 1 : p + 1]:
                    state = 4 * state + int(base)
                move = scores_TNC[t, n, 4 * state + int(target[p - state_len])]
                after_P[p] = torch.logaddexp(after_P[p], on_P[p - 1] + move)
            on_P = after_P
        ends = torch.stack(on_P[last - START_SLACK : last + START_SLACK + 1])
        losses.append((torch.logsumexp(all_S, 0) - torch.logsumexp(ends, 0)) / max(last - first, 1))
    return torch.stack(losses).mean()


def case(
    state_len: int, seed: int, half: int = 9, spread: float = 3.0
) -> tuple[torch.Tensor, npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Scores, targets and positions of three short rows."""
    rng = np.random.default_rng(seed)
    before, after = margins(half, state_len)
    steps_NT = rng.random((3, 8)) < 0.5
    positions_NT = (before + 1 + np.cumsum(steps_NT, axis=1)).astype(np.int32)
    targets_NP = rng.integers(0, 4, (3, int(positions_NT.max()) + after + 1)).astype(np.uint8)
    scores_TNC = torch.from_numpy(rng.normal(0, spread, (8, 3, 4 ** (state_len + 1))))
    return scores_TNC, targets_NP, positions_NT


@pytest.mark.parametrize("state_len", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_band_wide_enough_gives_the_exact_loss_and_gradient(state_len: int, seed: int) -> None:
    scores_TNC, targets_NP, positions_NT = case(state_len, seed)
    exact_TNC = scores_TNC.clone().requires_grad_()
    exact = exact_loss(exact_TNC, targets_NP, positions_NT, state_len)
    exact.backward()  # type: ignore[no-untyped-call]
    fast_TNC = scores_TNC.float().requires_grad_()
    fast = crf_loss(fast_TNC, targets_NP, positions_NT, half=9)
    (3.0 * fast).backward()  # type: ignore[no-untyped-call]
    assert fast.item() == pytest.approx(exact.item(), rel=1e-5)
    assert exact_TNC.grad is not None
    assert fast_TNC.grad is not None
    inside = scores_TNC.abs() <= SCORE_LIMIT
    torch.testing.assert_close(fast_TNC.grad.double()[inside], 3 * exact_TNC.grad[inside], rtol=1e-4, atol=1e-6)
    # Outside the clamp the exact gradient is zero; ours still pulls back in.
    outwards = (fast_TNC.grad * scores_TNC.sign())[~inside]
    assert (outwards >= 0).all()
    assert (outwards > 0).any()


def test_gradient_is_the_slope() -> None:
    scores_TNC, targets_NP, positions_NT = case(3, seed=5, spread=1.0)
    scores_TNC = scores_TNC.float().requires_grad_()
    crf_loss(scores_TNC, targets_NP, positions_NT, half=4).backward()  # type: ignore[no-untyped-call]
    assert scores_TNC.grad is not None
    for t, n, c in [(0, 0, 0), *(tuple(i) for i in np.argwhere(scores_TNC.grad.abs().numpy() > 0.02)[:12])]:
        around = []
        for step in (-0.02, 0.02):
            moved_TNC = scores_TNC.detach().clone()
            moved_TNC[t, n, c] += step
            around.append(float(crf_loss(moved_TNC, targets_NP, positions_NT, half=4)))
        slope = (around[1] - around[0]) / 0.04
        assert float(scores_TNC.grad[t, n, c]) == pytest.approx(slope, rel=0.02, abs=2e-4)


def test_a_narrower_band_forbids_paths() -> None:
    scores_TNC, targets_NP, positions_NT = case(3, seed=1)
    losses = [float(crf_loss(scores_TNC.float(), targets_NP, positions_NT, half)) for half in (1, 2, 4, 9)]
    assert losses[0] > losses[1] > losses[2] >= losses[3] - 1e-6


def test_scores_of_the_target_give_no_loss() -> None:
    """The network that is sure of the right path has nothing left to learn."""
    _, targets_NP, positions_NT = case(3, seed=2)
    moves_NT = np.diff(positions_NT, axis=1, prepend=positions_NT[:, :1])
    scores_TNC = torch.full((8, 3, 256), -5.0)
    for n, t in np.argwhere(moves_NT):
        p = positions_NT[n, t]
        state = targets_NP[n, p - 2] * 16 + targets_NP[n, p - 1] * 4 + targets_NP[n, p]
        scores_TNC[t, n, 4 * int(state) + int(targets_NP[n, p - 3])] = 5.0
    right = float(crf_loss(scores_TNC, targets_NP, positions_NT, half=4))
    wrong = float(crf_loss(scores_TNC, (targets_NP + 1) % 4, positions_NT, half=4))
    assert wrong > right + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t, p: (s[:, :, :250], t, p), "250 scores"),
        (lambda s, t, p: (s, t, p[:, :-1]), "do not fit"),
        (lambda s, t, p: (s, t[:, 1:], p), "needs 12 bases before and 9 after"),
        (lambda s, t, p: (s, t, p - 5), "needs 12 bases before and 9 after"),
    ],
)
def test_what_does_not_fit_is_refused(change: object, message: str) -> None:
    arguments = case(3, seed=3)
    with pytest.raises(ValueError, match=message):
        crf_loss(*change(*arguments), half=9)  # type: ignore[operator]
