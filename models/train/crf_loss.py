"""The training loss: a linear-chain CRF over the last `state_len` bases, in a band around a known alignment.

loss = log Z(all paths) - log Z(paths that spell the target within the band), per base. At each step, a path stays
(with a fixed score) or moves by one base. Scores have the decoder's layout: index new_state * 4 + dropped_base, with
the newest base in the low bits of a state. So the predecessor of state j by dropped base k is
k * 4**(state_len - 1) + j // 4.

Simulated signal comes with its alignment and real reads with a move table, so the band costs nothing. With it, training
avoids the long plateau at the start of CTC-like losses, and the target's part is cheap to compute.

Forward-backward is as in Rabiner (1989), in the probability domain, rescaled at every step. The gradient of log Z with
respect to a score is the posterior probability of its transition.

Dimensions: N rows, T time steps, C transition scores (4 * states), W cells of the band (2 half + 1), P positions of the
longest target of the batch.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.train.compiled import compiled

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

STAY_SCORE = 2.0
"""Score of not moving (natural log), `blank_score` in the published models; the network does not output it."""

SCORE_LIMIT = 5.0
"""Scores are clamped to +-SCORE_LIMIT here, and by the clamp layer of the exported network."""

START_SLACK = 1
"""By how many bases the first and the last position may differ from the given alignment."""

_TINY = 1e-300


def margins(half: int, state_len: int) -> tuple[int, int]:
    """Return how many bases a target must have before its first and after its last aligned position."""
    return half + state_len, half


def crf_loss(
    scores_TNC: torch.Tensor, targets_NP: npt.NDArray[np.uint8], positions_NT: npt.NDArray[np.int32], half: int = 8
) -> torch.Tensor:
    """Compute the mean loss per base, in nats; it is differentiable with respect to the scores.

    The loss is computed on the CPU with numba. If the scores are on a GPU, they are copied to the CPU and the gradient
    is copied back.

    Parameters
    ----------
    scores_TNC
        float32, natural logs, before the clamp to +-SCORE_LIMIT. The gradient never pushes scores beyond the limit
        further out.
    targets_NP
        Bases 0-3 of each row; the padding at the end can have any value.
    positions_NT
        Index, in the row's target, of the base that is in the pore at each step; it never decreases. A target must have
        `margins` bases before the first and after the last position.
    half
        Half width of the band, in bases.

    Raises
    ------
    ValueError
        The shapes do not fit together, or a target lacks its margins.
    """
    T, N, C = scores_TNC.shape
    state_len = (C.bit_length() - 1) // 2 - 1
    if 4 ** (state_len + 1) != C or state_len < 1:
        raise ValueError(f"{C} scores a step are not 4 ** (state_len + 1)")
    if positions_NT.shape != (N, T) or len(targets_NP) != N:
        raise ValueError(f"{N} rows of {T} steps do not fit targets {targets_NP.shape}, positions {positions_NT.shape}")
    before, after = margins(half, state_len)
    if positions_NT[:, 0].min() < before or positions_NT[:, -1].max() + after >= targets_NP.shape[1]:
        raise ValueError(f"a target needs {before} bases before and {after} after its aligned ones")
    return cast(torch.Tensor, _BandedCrf.apply(scores_TNC, targets_NP, positions_NT, half, state_len))  # type: ignore[no-untyped-call]


class _BandedCrf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores_TNC: torch.Tensor,
        targets_NP: npt.NDArray[np.uint8],
        positions_NT: npt.NDArray[np.int32],
        half: int,
        state_len: int,
    ) -> torch.Tensor:
        scores_TCN = scores_TNC.detach().float().cpu().transpose(1, 2).contiguous()
        T, _, N = scores_TCN.shape
        # First the weights of the transitions; then the posteriors and finally the gradient overwrite them.
        weights_TCN = torch.exp(scores_TCN.clamp(-SCORE_LIMIT, SCORE_LIMIT)).numpy()
        transitions_NP = _transitions(targets_NP, state_len)
        stay = np.float32(np.exp(STAY_SCORE))
        of_target_N, of_all_N = np.empty(N), np.empty(N)
        moved_NTW = np.empty((N, T, 2 * half + 1), np.float32)
        _scan_target(weights_TCN, transitions_NP, positions_NT, half, stay, of_target_N, moved_NTW)
        _scan_all(weights_TCN, stay, of_all_N)
        share_N = (1.0 / np.maximum(positions_NT[:, -1] - positions_NT[:, 0], 1) / N).astype(np.float32)
        _subtract_target(
            weights_TCN, scores_TCN.numpy(), transitions_NP, positions_NT, half, moved_NTW, share_N, SCORE_LIMIT
        )
        gradient_TNC = torch.from_numpy(weights_TCN).transpose(1, 2)
        ctx.save_for_backward(gradient_TNC.to(scores_TNC.device, scores_TNC.dtype))
        return torch.tensor(float(((of_all_N - of_target_N) * share_N).sum()), device=scores_TNC.device)

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None


def _transitions(targets_NP: npt.NDArray[np.uint8], state_len: int) -> I32:
    """Return the index of the score for moving onto each position; 0 where too few bases come before it."""
    P = targets_NP.shape[1]
    transitions_NP = np.zeros((len(targets_NP), P), np.int32)
    for back in range(state_len):
        transitions_NP[:, state_len:] += targets_NP[:, state_len - back : P - back].astype(np.int32) << (2 * back + 2)
    transitions_NP[:, state_len:] += targets_NP[:, : P - state_len]
    return transitions_NP


@compiled
def _scan_target(
    weights_TCN: F32, transitions_NP: I32, positions_NT: I32, half: int, stay: np.float32, log_z_N: F64, moved_NTW: F32
) -> None:
    """Run forward-backward along the targets: log Z, and the posterior of moving onto each band cell in each step."""
    T, _, N = weights_TCN.shape
    W = 2 * half + 1
    forward_TW = np.zeros((T + 1, W))
    stayed_W = np.zeros(W)
    backward_W = np.zeros(W)
    before_W = np.zeros(W)
    for n in range(N):
        centre_T = positions_NT[n]
        forward_TW[0, :] = 0.0
        forward_TW[0, half - START_SLACK : half + START_SLACK + 1] = 1.0
        log_z = 0.0
        for t in range(T):  # the band of a step is centred on its position
            shift = centre_T[t] - centre_T[max(t - 1, 0)]
            total = 0.0
            for w in range(W):
                u = w + shift
                value = 0.0
                if u < W:
                    value = forward_TW[t, u] * stay
                if 0 <= u - 1 < W:
                    value += forward_TW[t, u - 1] * weights_TCN[t, transitions_NP[n, centre_T[t] - half + w], n]
                forward_TW[t + 1, w] = value
                total += value
            total = max(total, _TINY)
            log_z += np.log(total)
            for w in range(W):
                forward_TW[t + 1, w] /= total
        end = 0.0
        backward_W[:] = 0.0
        for w in range(half - START_SLACK, half + START_SLACK + 1):
            end += forward_TW[T, w]
            backward_W[w] = 1.0
        log_z_N[n] = log_z + np.log(max(end, _TINY))
        for t in range(T - 1, -1, -1):
            shift = centre_T[t] - centre_T[max(t - 1, 0)]
            before_W[:] = 0.0
            total = 0.0
            mass = 0.0
            for w in range(W):
                u = w + shift
                stayed = 0.0
                moved = 0.0
                if u < W:
                    value = backward_W[w] * stay
                    before_W[u] += value
                    stayed = value * forward_TW[t, u]
                if 0 <= u - 1 < W:
                    value = backward_W[w] * weights_TCN[t, transitions_NP[n, centre_T[t] - half + w], n]
                    before_W[u - 1] += value
                    moved = value * forward_TW[t, u - 1]
                stayed_W[w] = stayed
                moved_NTW[n, t, w] = moved
                total += stayed + moved
            for w in range(W):
                moved_NTW[n, t, w] /= max(total, _TINY)
                mass += before_W[w]
            for w in range(W):
                backward_W[w] = before_W[w] / max(mass, _TINY)


@compiled
def _scan_all(weights_TCN: F32, stay: np.float32, log_z_N: F64) -> None:
    """Run forward-backward over all paths: log Z; overwrite the weights with the posteriors of the transitions."""
    T, C, N = weights_TCN.shape
    S = C // 4
    quarter = S // 4
    forward_TSN = np.empty((T + 1, S, N), np.float32)
    forward_TSN[0] = np.float32(1.0 / S)
    total_N = np.empty(N, np.float32)
    log_z_N[:] = np.log(S)
    for t in range(T):
        total_N[:] = 0.0
        for j in range(S):
            p = j // 4
            for n in range(N):  # innermost, so that LLVM vectorises over the rows
                value = (
                    stay * forward_TSN[t, j, n]
                    + weights_TCN[t, 4 * j, n] * forward_TSN[t, p, n]
                    + weights_TCN[t, 4 * j + 1, n] * forward_TSN[t, quarter + p, n]
                    + weights_TCN[t, 4 * j + 2, n] * forward_TSN[t, 2 * quarter + p, n]
                    + weights_TCN[t, 4 * j + 3, n] * forward_TSN[t, 3 * quarter + p, n]
                )
                forward_TSN[t + 1, j, n] = value
                total_N[n] += value
        for n in range(N):
            log_z_N[n] += np.log(total_N[n])
            total_N[n] = np.float32(1.0) / total_N[n]
        for j in range(S):
            for n in range(N):
                forward_TSN[t + 1, j, n] *= total_N[n]
    backward_SN = np.ones((S, N), np.float32)
    before_SN = np.empty((S, N), np.float32)
    for t in range(T - 1, -1, -1):
        total_N[:] = 0.0
        for j in range(S):
            for n in range(N):
                before_SN[j, n] = stay * backward_SN[j, n]
        for j in range(S):
            p = j // 4
            for k in range(4):
                for n in range(N):
                    value = weights_TCN[t, 4 * j + k, n] * backward_SN[j, n]
                    before_SN[quarter * k + p, n] += value
                    weights_TCN[t, 4 * j + k, n] = value * forward_TSN[t, quarter * k + p, n]
        for j in range(S):
            for n in range(N):
                total_N[n] += before_SN[j, n] * forward_TSN[t, j, n]
        for n in range(N):
            total_N[n] = np.float32(1.0) / total_N[n]
        for c in range(C):
            for n in range(N):
                weights_TCN[t, c, n] *= total_N[n]
        total_N[:] = 0.0
        for j in range(S):
            for n in range(N):
                total_N[n] += before_SN[j, n]
        for j in range(S):
            for n in range(N):
                backward_SN[j, n] = before_SN[j, n] / total_N[n]


@compiled
def _subtract_target(
    posteriors_TCN: F32,
    scores_TCN: F32,
    transitions_NP: I32,
    positions_NT: I32,
    half: int,
    moved_NTW: F32,
    share_N: F32,
    limit: float,
) -> None:
    """Turn the posteriors of all paths into the gradient: subtract the target's, and multiply by each row's share."""
    T, C, N = posteriors_TCN.shape
    for t in range(T):
        for n in range(N):
            for w in range(2 * half + 1):
                if moved_NTW[n, t, w] > 0.0:
                    transition = transitions_NP[n, positions_NT[n, t] - half + w]
                    posteriors_TCN[t, transition, n] -= moved_NTW[n, t, w]
        for c in range(C):
            for n in range(N):
                gradient = posteriors_TCN[t, c, n] * share_N[n]
                score = scores_TCN[t, c, n]
                if (score > limit and gradient < 0) or (score < -limit and gradient > 0):
                    gradient = np.float32(0.0)
                posteriors_TCN[t, c, n] = gradient
