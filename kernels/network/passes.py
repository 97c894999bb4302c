"""Computes networks' passes between matrix products on the device that has the tensors (gates.cu, transformer.cu).

Tensors are torch's, contiguous, of float32, float16 or bfloat16. Everything goes into the device's stream, in one
launch each, and CUDA graphs can record it.

Dimensions: N rows of a batch, T time steps, C features of an LSTM, G = 4 C gates, F features of a transformer, H heads,
E = 2 * hidden features of SwiGLU, D features of a head.
"""

from typing import Any

import numpy as np

from porestream.kernels.device import Device
from porestream.kernels.source import load

_THREADS = 256
_WARP = 32
_FOUR = 4  # features that a thread loads at once
_PRECISIONS = {"torch.float32": "FP32", "torch.float16": "FP16", "torch.bfloat16": "BF16"}
_WARP_FEATURES = _WARP * _FOUR
_MAX_NORM_FEATURES = 2048  # a lane keeps 64 of them in registers


class NetworkPasses:
    """The passes of low-rank LSTMs and transformers. `models.networks` has the same ones with torch.

    Every method raises a ValueError if a tensor is not as described.

    Parameters
    ----------
    device
        The device that has the tensors.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    @staticmethod
    def fits_lstm(width: int) -> bool:
        """Return whether the kernels can compute LSTMs of this width."""
        return width % _FOUR == 0

    @staticmethod
    def fits_transformer(width: int, heads: int, hidden: int) -> bool:
        """Return whether the kernels can compute transformers of these sizes."""
        is_norm = width % _WARP_FEATURES == 0 and width <= _MAX_NORM_FEATURES
        return is_norm and width // heads % (2 * _FOUR) == 0 and hidden % _FOUR == 0

    def next_states(self, gates_NG: Any, cells_NC: Any, hidden_NC: Any, is_hard: bool) -> None:
        """Compute the states of an LSTM after a step: `models.networks.recurrent.next_states`.

        Parameters
        ----------
        gates_NG
            The gates i, f, g, o before their functions.
        cells_NC
            The cells, float32, which are overwritten.
        hidden_NC
            Memory for the hidden states.
        is_hard
            Whether i, f and o are 0.2 x + 0.5 between 0 and 1, and g is x between -1 and 1; otherwise sigmoid and tanh.
        """
        rows, width = hidden_NC.shape
        _check("gates", gates_NG, (rows, 4 * width), hidden_NC.dtype)
        _check("cells", cells_NC, (rows, width), "torch.float32")
        _check("hidden states", hidden_NC, (rows, width), hidden_NC.dtype)
        self._launch(
            "gates.cu", "next_states", hidden_NC, rows * width // _FOUR, {"HARD": int(is_hard)},
            gates=gates_NG, cells=cells_NC, hidden=hidden_NC, rows=rows, quarters=width // _FOUR,
        )  # fmt: skip

    def rotated(self, qkv_NTF: Any, cosines_TD: Any, sines_TD: Any, heads: int) -> tuple[Any, Any, Any]:
        """Turn queries and keys in place by each step's angles; return them, and the values, as views (N, H, T, D).

        Parameters
        ----------
        qkv_NTF
            (N, T, 3 F): queries, keys and values of all heads.
        cosines_TD, sines_TD
            float32, (T, D / 2).
        """
        rows, steps, features = qkv_NTF.shape
        half = features // (3 * heads) // 2
        _check("queries, keys and values", qkv_NTF, (rows, steps, 3 * heads * 2 * half), qkv_NTF.dtype)
        for name, angles_TD in (("cosines", cosines_TD), ("sines", sines_TD)):
            _check(name, angles_TD, (steps, half), "torch.float32")
        self._launch(
            "transformer.cu", "rotate", qkv_NTF, rows * steps * 2 * heads * half // _FOUR, {},
            qkv=qkv_NTF, cosines=cosines_TD, sines=sines_TD, rows=rows, steps=steps, heads=heads, halves=half // _FOUR,
        )  # fmt: skip
        q_NHTD, k_NHTD, v_NHTD = qkv_NTF.view(rows, steps, 3, heads, 2 * half).permute(2, 0, 3, 1, 4)
        return q_NHTD, k_NHTD, v_NHTD

    def normed(self, added_NTF: Any, x_NTF: Any, weight_F: Any, alpha: float) -> Any:
        """Return weight * RMSNorm(added + alpha x)."""
        *_, width = x_NTF.shape
        out_NTF = x_NTF.new_empty(x_NTF.shape)
        for tensor in (added_NTF, x_NTF):
            _check("what is added", tensor, tuple(x_NTF.shape), x_NTF.dtype)
        _check("the weight", weight_F, (width,), x_NTF.dtype)
        rows = x_NTF.numel() // width
        self._launch(
            "transformer.cu", "add_norm", x_NTF, rows * _WARP, {"WIDTH": width},
            added=added_NTF, x=x_NTF, weight=weight_F, out=out_NTF, alpha=alpha, rows=rows,
        )  # fmt: skip
        return out_NTF

    def gated(self, both_NTE: Any) -> Any:
        """Return silu(gate) * value; `both_NTE` has the values, then the gates, of each step."""
        *shape, double = both_NTE.shape
        hidden = double // 2
        _check("values and gates", both_NTE, (*shape, 2 * hidden), both_NTE.dtype)
        out_NTF = both_NTE.new_empty((*shape, hidden))
        rows = out_NTF.numel() // max(hidden, 1)
        self._launch(
            "transformer.cu", "gate_values", out_NTF, rows * hidden // _FOUR, {},
            both=both_NTE, out=out_NTF, rows=rows, fours=hidden // _FOUR,
        )  # fmt: skip
        return out_NTF

    def _launch(self, file: str, name: str, like: Any, threads: int, macros: dict[str, int], **arguments: Any) -> None:
        """Launch a kernel on at least this many threads, for the dtype of the tensor `like`."""
        precision = _PRECISIONS.get(str(like.dtype))
        if precision is None or not threads:
            raise ValueError(f"the kernels compute {', '.join(_PRECISIONS)}, not {like.dtype} {tuple(like.shape)}")
        # Addresses, because DLPack might make one stream wait for another, which a graph cannot record.
        values = {key: np.uintp(one.data_ptr()) if hasattr(one, "data_ptr") else one for key, one in arguments.items()}
        with self.device.in_order():
            load(self.device, file, name, PRECISION=precision, **macros)(-(-threads // _THREADS), _THREADS, **values)


def _check(name: str, tensor: Any, shape: tuple[int, ...], dtype: Any) -> None:
    is_whole = all(size % _FOUR == 0 for size in shape[-1:])
    if tuple(tensor.shape) != shape or str(tensor.dtype) != str(dtype) or not tensor.is_contiguous() or not is_whole:
        raise ValueError(
            f"{name} must be contiguous {dtype} {shape}, in fours, not {tensor.dtype} {tuple(tensor.shape)} with "
            f"strides {tensor.stride()}"
        )
