"""Runs LSTMs one after another, each forwards or backwards in time."""

import torch
from torch import nn

from porestream.models.networks.lstm import Lstms


class Recurrent(nn.ModuleList):
    """torch's LSTMs (cuDNN's on a GPU). Parameters are named `0.weight_ih_l0` and so on."""

    def __init__(self, shape: Lstms) -> None:
        super().__init__(nn.LSTM(shape.width, shape.width) for _ in shape.reverse)
        self._reverse = shape.reverse

    def forward(self, x_NCT: torch.Tensor) -> torch.Tensor:
        """Compute the features of each step, (T, N, C)."""
        x_TNC = x_NCT.permute(2, 0, 1).contiguous()
        for reverse, rnn in zip(self._reverse, self, strict=True):
            x_TNC = rnn(x_TNC.flip(0))[0].flip(0) if reverse else rnn(x_TNC)[0]
        return x_TNC
