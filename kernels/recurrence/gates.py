"""Computes the next states of LSTMs on the device that has their gates (gates.cu).

Dimensions: N rows of a batch, C features, G = 4 C gates.
"""

from typing import Any

import numpy as np

from porestream.kernels.device import Device
from porestream.kernels.source import load

_FILE = "gates.cu"
_THREADS = 256
_FEATURES = 4  # of a thread
_PRECISIONS = {"torch.float32": "FP32", "torch.float16": "FP16", "torch.bfloat16": "BF16"}


class LstmGates:
    """Computes the cells and hidden states after a step, in one launch; CUDA graphs can record it.

    Parameters
    ----------
    device
        The device that has the tensors.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    @staticmethod
    def fits(width: int) -> bool:
        """Return whether the kernel can compute LSTMs of this width."""
        return width % _FEATURES == 0

    def __call__(self, gates_NG: Any, cells_NC: Any, hidden_NC: Any, is_hard: bool) -> None:
        """Compute a step, in the order of the device's stream.

        Parameters
        ----------
        gates_NG
            The gates i, f, g, o before their functions: a contiguous torch tensor of float32, float16 or bfloat16.
        cells_NC
            The cells, float32, which are overwritten.
        hidden_NC
            Memory for the hidden states, of the same dtype as the gates.
        is_hard
            Whether i, f and o are 0.2 x + 0.5 between 0 and 1, and g is x between -1 and 1; otherwise sigmoid and tanh.

        Raises
        ------
        ValueError
            A tensor is not as described.
        """
        rows, width = hidden_NC.shape
        dtype = str(gates_NG.dtype)
        wanted = {
            "gates": (gates_NG, (rows, 4 * width), dtype),
            "cells": (cells_NC, (rows, width), "torch.float32"),
            "hidden states": (hidden_NC, (rows, width), dtype),
        }
        for name, (tensor, shape, kind) in wanted.items():
            if tuple(tensor.shape) != shape or str(tensor.dtype) != kind or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous {kind} {shape}, not {tensor.dtype} {tuple(tensor.shape)} with strides "
                    f"{tensor.stride()}"
                )
        if dtype not in _PRECISIONS or not self.fits(width) or not rows:
            kinds = ", ".join(_PRECISIONS)
            raise ValueError(f"the kernel computes {kinds} and widths of 4 n, not {rows} x {width} {dtype}")
        kernel = load(self.device, _FILE, "next_states", PRECISION=_PRECISIONS[dtype], HARD=int(is_hard))
        # Addresses, because DLPack might make one stream wait for another, which a graph cannot record.
        gates, cells, hidden = (np.uintp(tensor.data_ptr()) for tensor in (gates_NG, cells_NC, hidden_NC))
        quarters = width // _FEATURES
        with self.device.in_order():
            kernel(
                -(-rows * quarters // _THREADS),
                _THREADS,
                gates=gates,
                cells=cells,
                hidden=hidden,
                rows=rows,
                quarters=quarters,
            )
