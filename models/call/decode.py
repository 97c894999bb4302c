"""Decodes CRF scores to bases, qualities and moves: a beam search over 4**state_len states, one chunk at a time.

Dimensions: T time steps, N rows of the batch, C transitions (4 * S), S states, K neighbours of a state, B bases.
"""

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from porestream.models.call import decode_kernels
from porestream.models.call.compiled import compile_cached
from porestream.models.private_folder import default_cache_dir

MAX_STATE_LEN = 6
STAY_LIMIT = 10.0  # beyond this, the scans' float32 products may underflow


class NonFiniteScores(ValueError):
    """A row of scores holds NaN or an infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Decoder settings; the defaults are those of the published models.

    Attributes
    ----------
    stay_score
        Score of not moving, which the network does not output (natural log).
    quality_scale, quality_bias
        Calibration of Phred qualities: q * scale + bias, from a model's ``[qscore]``.
    beam_width
        Most hypotheses kept after a step.
    beam_cut
        A hypothesis more than this factor less likely than the best one is dropped; infinity keeps all.
    """

    stay_score: float = 2.0
    quality_scale: float = 1.0
    quality_bias: float = 0.0
    beam_width: int = 32
    beam_cut: float = 100.0

    def __post_init__(self) -> None:
        if not abs(self.stay_score) <= STAY_LIMIT:
            raise ValueError(f"stay_score must be within +-{STAY_LIMIT:g}, not {self.stay_score}")
        if not (math.isfinite(self.quality_scale) and math.isfinite(self.quality_bias)):
            raise ValueError(f"quality scale and bias must be finite, not {self.quality_scale} and {self.quality_bias}")
        if not 1 <= self.beam_width <= decode_kernels.MAX_BEAM_WIDTH:
            raise ValueError(f"beam_width must be 1 to {decode_kernels.MAX_BEAM_WIDTH}, not {self.beam_width}")
        if not self.beam_cut >= 1:
            raise ValueError(f"beam_cut must be at least 1, not {self.beam_cut}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """One chunk, called.

    Attributes
    ----------
    bases_B
        ASCII letters ACGT, uint8.
    qualities_B
        Phred qualities 1-50, uint8, without SAM's +33.
    moves_T
        uint8; 1 for each time step that begins a base. The first is always 1, and the sum is the number of bases.
    """

    bases_B: npt.NDArray[np.uint8]
    qualities_B: npt.NDArray[np.uint8]
    moves_T: npt.NDArray[np.uint8]


class Decoder:
    """Beam search guided by backward probabilities, after the published behaviour of dorado and openfish.

    A hypothesis is a first state and the bases that follow; different timings of the same bases merge. Its value is the
    sum over the timings that the search has seen, times the backward probability of its state. The bases are those of
    the best hypothesis, the moves those of the likelier branch at every merge.

    Parameters
    ----------
    state_len
        Bases in a state: 3 (fast models), 4 (hac) or 5 (sup); 1 to 6 work.
    settings
        Search and quality settings.
    cache_dir
        Where compiled code is kept between processes. By default ``$XDG_CACHE_HOME/porestream`` or
        ``~/.cache/porestream``. If it is not writable, a temporary directory is used for this process.

    Notes
    -----
    Scores are ordered (new state, dropped base), with the newest base in a state's low two bits: the predecessor of new
    state j by dropped base k is k * 4**(state_len - 1) + j // 4. They are natural logs, clamped to +-40, eight times
    the range that LSTM models output.

    Many threads may call one instance: each has its own workspace, which grows to the longest chunk seen (at 2,000
    steps 3 MB for 64 states, 50 MB for 1,024), and the GIL is released.
    """

    def __init__(self, state_len: int, settings: DecodeSettings, cache_dir: Path | None = None) -> None:
        if not 1 <= state_len <= MAX_STATE_LEN:
            raise ValueError(f"state_len must be 1 to {MAX_STATE_LEN}, not {state_len}")
        self.state_len = state_len
        self.settings = settings
        self._neighbours_SK = _neighbours(state_len)
        self._threads = threading.local()
        self._decode_row = _compiled(default_cache_dir() if cache_dir is None else cache_dir)

    def __call__(self, scores_TNC: npt.NDArray[np.float32], row: int) -> Decoded:
        """Decode one row of a batch.

        Parameters
        ----------
        scores_TNC
            Transition scores (natural log), (T, N, 4**(state_len + 1)) float32, C-contiguous.
        row
            Which of the N rows.

        Raises
        ------
        NonFiniteScores
            The row holds NaN or an infinity.
        ValueError
            The array or the row is not as described.
        """
        workspace = self._scan(scores_TNC, row)
        moves_T = workspace.moves_T[: len(scores_TNC)].copy()
        count = workspace.count
        return Decoded(workspace.bases_T[:count].copy(), workspace.qualities_T[:count].copy(), moves_T)

    def posteriors(self, scores_TNC: npt.NDArray[np.float32], row: int) -> npt.NDArray[np.float32]:
        """Return the posterior probability of each state after each step, (T, S) float32; arguments as for a call."""
        workspace = self._scan(scores_TNC, row)
        T = len(scores_TNC)
        posteriors_TS = workspace.forward_TS[1 : T + 1] * workspace.backward_TS[1 : T + 1]
        posteriors_TS /= posteriors_TS.sum(axis=1, keepdims=True)
        return posteriors_TS

    def _scan(self, scores_TNC: npt.NDArray[np.float32], row: int) -> "_Workspace":
        S = 4**self.state_len
        if scores_TNC.ndim != 3 or scores_TNC.shape[2] != 4 * S or len(scores_TNC) == 0:
            raise ValueError(f"scores must be (T, N, {4 * S}) with T at least 1, not {scores_TNC.shape}")
        if scores_TNC.dtype != np.float32 or not scores_TNC.flags.c_contiguous:
            raise ValueError(f"scores must be C-contiguous float32, not {scores_TNC.dtype}, {scores_TNC.strides}")
        if not 0 <= row < scores_TNC.shape[1]:
            raise ValueError(f"row {row} is out of range: the batch has {scores_TNC.shape[1]} rows")
        T = len(scores_TNC)
        workspace: _Workspace | None = getattr(self._threads, "workspace", None)
        if workspace is None or len(workspace.moves_T) < T:
            workspace = _Workspace(T, S, self.settings.beam_width)
            self._threads.workspace = workspace
        settings = self.settings
        workspace.count = self._decode_row(
            scores_TNC,
            row,
            settings.stay_score,
            settings.quality_scale,
            settings.quality_bias,
            1.0 / settings.beam_cut,
            settings.beam_width,
            self._neighbours_SK,
            *workspace.arrays,
            workspace.bases_T,
            workspace.qualities_T,
            workspace.moves_T[:T],
        )
        if workspace.count < 0:
            raise NonFiniteScores(f"row {row} of the scores {scores_TNC.shape} holds NaN or infinite values")
        return workspace


class _Workspace:
    """One thread's arrays for up to T time steps, in the order in which `decode_kernels.decode_row` takes them."""

    def __init__(self, T: int, S: int, width: int) -> None:
        candidates = 5 * width + 1
        self.forward_TS = np.empty((T + 1, S), np.float32)
        self.backward_TS = np.empty((T + 1, S), np.float32)
        self.arrays = (
            np.empty((T, 4 * S), np.float32),  # weights_TC
            np.empty(4 * S, np.float32),  # repeated_C
            self.forward_TS,
            self.backward_TS,
            np.empty((T, width), np.uint16),  # back_TW
            np.empty((2, width), np.float32),  # weight_2W
            np.empty((2, width), np.int32),  # state_2W
            np.empty((2, width), np.uint64),  # hash_2W
            np.empty((2, width), np.uint64),  # parent_2W
            np.empty(candidates, np.float32),  # values_H
            np.empty(candidates, np.int32),  # kept_H
            np.empty(candidates, np.float32),  # scratch_H
            np.full(1 << (4 * width).bit_length(), -1, np.int32),  # head_X
            np.empty((2, width), np.int32),  # found_2W
            np.empty(width, np.int32),  # seed_W
        )
        self.bases_T = np.empty(T, np.uint8)
        self.qualities_T = np.empty(T, np.uint8)
        self.moves_T = np.empty(T, np.uint8)
        self.count = 0


def _neighbours(state_len: int) -> npt.NDArray[np.int32]:
    """List each state with its four predecessors and four successors, each once: (S, 10) int32, the count first."""
    S = 4**state_len
    table_SK = np.zeros((S, 10), np.int32)
    for state in range(S):
        near = {state}
        near.update(dropped * (S // 4) + state // 4 for dropped in range(4))
        near.update((4 * state) % S + base for base in range(4))
        table_SK[state, 0] = len(near)
        table_SK[state, 1 : len(near) + 1] = sorted(near)
    return table_SK


@functools.cache
def _compiled(cache_dir: Path) -> Callable[..., int]:
    return compile_cached(decode_kernels.decode_row, decode_kernels.SIGNATURE, cache_dir)
