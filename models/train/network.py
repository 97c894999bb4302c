"""The network for training: the same layers and arithmetic as the inference network, with gradients.

Dimensions: N rows of a batch, S samples, T time steps (S / STRIDE), C channels or transition scores.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional

STRIDE = 6
LAYERS = 5
CONVOLUTIONS = ((16, 5, 1), (16, 5, 1))
"""Size, window and stride of the small convolutions. The third has the network's width, a window of 19 and STRIDE."""

WINLEN = 19


class Directed(nn.Module):
    """An LSTM that runs forwards or backwards in time."""

    def __init__(self, width: int, reverse: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width)
        self.reverse = reverse

    def forward(self, x_TNC: torch.Tensor) -> torch.Tensor:
        """Return the hidden states, (T, N, C)."""
        if self.reverse:
            return torch.flip(self.rnn(x_TNC.flip(0))[0], (0,))
        hidden_TNC: torch.Tensor = self.rnn(x_TNC)[0]
        return hidden_TNC


class TrainableNetwork(nn.Module):
    """Computes transition scores, before the clamp, from normalised signal.

    It has three convolutions with SiLU, five LSTMs (the first, third and fifth run backwards in time) and a linear
    layer without bias. With a `width` of 96 and a `state_len` of 3, this is ONT's published "fast" v4 shape.

    Parameters
    ----------
    width
        Channels of the last convolution and of the LSTMs.
    state_len
        Bases in a state of the CRF.
    """

    def __init__(self, width: int = 96, state_len: int = 3) -> None:
        super().__init__()
        self.width, self.state_len = width, state_len
        sizes = (1, *(size for size, _, _ in CONVOLUTIONS), width)
        windows = (*((winlen, stride) for _, winlen, stride in CONVOLUTIONS), (WINLEN, STRIDE))
        self.conv = nn.ModuleList(
            nn.Conv1d(ins, outs, winlen, stride=stride, padding=winlen // 2)
            for ins, outs, (winlen, stride) in zip(sizes, sizes[1:], windows, strict=False)
        )
        self.rnns = nn.ModuleList(Directed(width, reverse=layer % 2 == 0) for layer in range(LAYERS))
        self.linear = nn.Linear(width, 4 ** (state_len + 1), bias=False)

    def forward(self, batch_NS: torch.Tensor) -> torch.Tensor:
        """Return scores_TNC for float signal; C = new_state * 4 + dropped_base. S must be a multiple of STRIDE."""
        x_NCS = batch_NS[:, None]
        for conv in self.conv:
            x_NCS = functional.silu(conv(x_NCS))
        x_TNC = x_NCS.permute(2, 0, 1)
        for rnn in self.rnns:
            x_TNC = rnn(x_TNC)
        scores_TNC: torch.Tensor = self.linear(x_TNC)
        return scores_TNC

    @torch.no_grad()
    def initialise(self) -> None:
        """Set random weights from torch's generator: orthogonal recurrence, open forget gates."""
        for directed in self.rnns:
            weights = dict(cast(Directed, directed).rnn.named_parameters())
            for block in torch.split(weights["weight_hh_l0"], self.width):
                nn.init.orthogonal_(block)
            nn.init.xavier_uniform_(weights["weight_ih_l0"])
            weights["bias_ih_l0"].zero_()
            weights["bias_hh_l0"].zero_()
            weights["bias_ih_l0"][self.width : 2 * self.width] = 1.0  # torch's order: input, forget, cell, output
        nn.init.normal_(self.linear.weight, std=0.1)

    @classmethod
    def of_weights(cls, weights: dict[str, torch.Tensor]) -> "TrainableNetwork":
        """Make a network of the right shape for these weights (a state file's `net` or `mean`), and load them.

        Raises
        ------
        RuntimeError
            Weights are missing, unknown or of the wrong shape; raised by torch.
        """
        scores, width = weights["linear.weight"].shape
        network = cls(width, (scores.bit_length() - 1) // 2 - 1)
        network.load_state_dict(weights)
        return network


def published_name(key: str) -> str:
    """Return a tensor's name in model directories: `conv.2.bias` -> `2.conv.bias`, `rnns.0.rnn.x` -> `4.rnn.x`.

    Layer 3 is the permutation; `linear.x` is `9.linear.x`.
    """
    kind, rest = key.split(".", 1)
    if kind == "linear":
        return f"{len(CONVOLUTIONS) + LAYERS + 2}.linear.{rest}"
    index, rest = rest.split(".", 1)
    return f"{index}.conv.{rest}" if kind == "conv" else f"{int(index) + len(CONVOLUTIONS) + 2}.{rest}"
