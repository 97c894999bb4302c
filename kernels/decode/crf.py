"""Decodes CRF scores on the device that has them (crf.cu), with the results of models/call/decode.py.

Dimensions: T time steps, N rows of the batch, C transition scores (4 * S), S states.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from porestream.kernels.device import Array, Device
from porestream.kernels.source import load

MAX_BEAM_WIDTH = 32
MAX_STATE_LEN = 5
_WARP = 32
_BEAM_ROWS = 4  # rows per block of crf_beam and crf_call: BEAM_WARPS
_THREADS = 256
_FILE, _KERNELS = "crf.cu", ("crf_backward", "crf_beam", "crf_errors", "crf_call")
_PRECISIONS = {"float32": "FP32", "float16": "FP16"}


class Calls(NamedTuple):
    """A decoded batch on the device: uint8 (N, T); each row's first `counts_N` letters and qualities are valid.

    `counts_N`, int32, is -1 for rows with a score that is not finite. `moves_NT` is 1 for each step that begins a base.
    """

    letters_NT: Array
    qualities_NT: Array
    moves_NT: Array
    counts_N: Array


class CrfDecoder:
    """Decodes batches like `models.call.decode.Decoder`: the same bases and moves, qualities within 1.

    Parameters
    ----------
    device
        The device that has the scores.
    state_len
        Bases in a state: 1 to 5.
    stay_score, quality_scale, quality_bias, beam_width, beam_cut
        As in `models.call.decode.DecodeSettings`, but the beam is at most 32 wide.

    Raises
    ------
    ValueError
        The kernels do not support this state length or beam width.
    """

    def __init__(
        self,
        device: Device,
        state_len: int,
        stay_score: float,
        quality_scale: float = 1.0,
        quality_bias: float = 0.0,
        beam_width: int = 32,
        beam_cut: float = 100.0,
    ) -> None:
        if not 1 <= state_len <= MAX_STATE_LEN:
            raise ValueError(f"the kernels support a state_len of 1 to {MAX_STATE_LEN}, not {state_len}")
        if not 1 <= beam_width <= MAX_BEAM_WIDTH:
            raise ValueError(f"the kernels support a beam_width of 1 to {MAX_BEAM_WIDTH}, not {beam_width}")
        self.device, self.states = device, 4**state_len
        self._stay, self._width, self._cut = math.exp(stay_score), beam_width, 1.0 / beam_cut
        self._scale, self._bias = quality_scale, quality_bias
        self._state_len = state_len

    def __call__(self, scores_TNC: Any, into: Sequence[Any] | None = None) -> Calls:
        """Decode a batch, in the order of the device's stream.

        Parameters
        ----------
        scores_TNC
            Transition scores as for `models.call.decode.Decoder`, float32 or float16, on this device: a torch tensor or
            any other array that supports DLPack. They are not copied. Halves give what the same values in float32 do.
        into
            Arrays or tensors on this device for the four fields of `Calls`; None allocates them.

        Raises
        ------
        ValueError
            An array is not as described.
        """
        device, xp = self.device, self.device.xp
        with device.in_order():
            scores_TNC = device.array(scores_TNC)
            if scores_TNC.ndim != 3 or scores_TNC.shape[2] != 4 * self.states or 0 in scores_TNC.shape:
                raise ValueError(f"scores must be (T, N, {4 * self.states}) and not empty, not {scores_TNC.shape}")
            precision = _PRECISIONS.get(str(scores_TNC.dtype))
            if precision is None or not scores_TNC.flags.c_contiguous:
                raise ValueError(
                    f"scores must be C-contiguous float32 or float16, not {scores_TNC.dtype}, {scores_TNC.strides}"
                )
            backward, beam, errors, call = (
                load(device, _FILE, name, STATE_LEN=self._state_len, PRECISION=precision) for name in _KERNELS
            )
            T, N, _ = scores_TNC.shape
            backward_TNS = xp.empty((T + 1, N, self.states), np.float32)
            back_TNW = xp.empty((T, N, MAX_BEAM_WIDTH), np.uint16)
            path_NT, errors_NT = xp.empty((N, T), np.uint8), xp.empty((N, T), np.float32)
            first_N, status_N = xp.empty(N, np.int32), xp.zeros(N, np.int32)
            if into is None:
                into = [*(xp.empty((N, T), np.uint8) for _ in range(3)), xp.empty(N, np.int32)]
            calls = Calls._make(device.array(array) for array in into)
            for array, dtype in zip(calls, (np.uint8, np.uint8, np.uint8, np.int32), strict=True):
                shape = (N,) if array is calls.counts_N else (N, T)
                if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                    raise ValueError(
                        f"a result array must be contiguous {dtype.__name__} {shape}, not {array.dtype} {array.shape}"
                    )
            scan_threads, scan_rows = scan_block(self.states)
            scan = -(-N // scan_rows), scan_threads
            warps = -(-N // _BEAM_ROWS), _WARP * _BEAM_ROWS
            sizes: dict[str, Any] = {"T": T, "N": N, "status": status_N}
            scored = sizes | {"scores": scores_TNC, "backward": backward_TNS, "stay": self._stay}
            found = {"path": path_NT, "first": first_N}
            backward(*scan, **scored)
            beam(*warps, **scored, **found, back=back_TNW, width=self._width, cut=self._cut)
            errors(*scan, **scored, **found, errors=errors_NT)
            call(
                *warps,
                **sizes,
                **found,
                errors=errors_NT,
                letters=calls.letters_NT,
                qualities=calls.qualities_NT,
                moves=calls.moves_NT,
                counts=calls.counts_N,
                scale=self._scale,
                bias=self._bias,
            )
        return calls

    def finish_scores(self, scores_TNC: Any, is_tanh: bool, scale: float, limit: float) -> None:
        """Replace what a network's last matrix product gives by scores: x or tanh(x), times `scale`, within +-`limit`.

        Parameters
        ----------
        scores_TNC
            A contiguous torch tensor of float16 on this device, a multiple of 4 in size. It is computed in float32.

        Raises
        ------
        ValueError
            The tensor is not as described.
        """
        count = scores_TNC.numel()
        if str(scores_TNC.dtype) != "torch.float16" or not scores_TNC.is_contiguous() or count % 4 or not count:
            raise ValueError(
                f"scores must be contiguous torch.float16, in fours, not {scores_TNC.dtype} {tuple(scores_TNC.shape)}"
            )
        with self.device.in_order():
            finish = load(self.device, "scores.cu", "finish_scores", PRECISION="FP16")
            # An address, because DLPack might make one stream wait for another, which a graph cannot record.
            values = {"is_tanh": int(is_tanh), "scale": scale, "limit": limit, "fours": count // 4}
            finish(-(-count // 4 // _THREADS), _THREADS, scores=np.uintp(scores_TNC.data_ptr()), **values)

    def device_bytes(self, steps: int, rows: int) -> int:
        """Return the device memory that a batch takes besides its scores: workspace and results."""
        return decode_bytes(self.states, steps, rows)


def scan_block(states: int) -> tuple[int, int]:
    """Return the threads per block for the scans, and the batch rows that one block computes."""
    of_row = states // 4
    rows = max(1, _WARP // of_row)
    return of_row * rows, rows


def decode_bytes(states: int, steps: int, rows: int) -> int:
    """Sum up backward probabilities, back pointers, path, errors, calls, and three numbers per row."""
    of_step = 4 * states + 2 * MAX_BEAM_WIDTH + 1 + 4 + 3
    return rows * (steps * of_step + 4 * states + 3 * 4)
