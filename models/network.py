"""The v3 network: three convolutions, five LSTMs of alternating direction, a linear layer of CRF scores.

Dimensions: N rows of a batch, S samples, T time steps (S / stride), C channels or transition scores.
"""

import torch
from torch import nn
from torch.nn import functional

from porestream.models.bundle import ModelBundle

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Network(nn.Module):
    """Normalised signal to CRF transition scores.

    Parameters
    ----------
    bundle
        The weights and sizes; `docs` of the format in models/bundle.py.
    precision
        "fp32" or "bf16": of weights and activations from the last convolution on. The two small ones before it are
        always float32: they see the signal's full range and cost little.
    """

    def __init__(self, bundle: ModelBundle, precision: str = "fp32") -> None:
        super().__init__()
        config = bundle.config
        self.stride, self.score_scale = config.stride, config.score_scale
        self.dtype = PRECISIONS[precision]
        sizes = ((1, config.first_conv_size, 5, 1), (config.first_conv_size, 16, 5, 1))
        self.convs = nn.ModuleList(
            nn.Conv1d(ins, outs, winlen, stride=stride, padding=winlen // 2)
            for ins, outs, winlen, stride in (*sizes, (16, config.features, config.winlen, config.stride))
        )
        self.rnns = nn.ModuleList(nn.LSTM(config.features, config.features) for _ in range(5))
        self.linear = nn.Linear(config.features, config.score_count)
        self.load_state_dict({_our_name(name): tensor for name, tensor in bundle.tensors.items()})
        self.convs[-1].to(self.dtype)
        self.rnns.to(self.dtype)
        self.linear.to(self.dtype)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, batch_NS: torch.Tensor) -> torch.Tensor:
        """Scores of a batch.

        Parameters
        ----------
        batch_NS
            float32, normalised signal; S a multiple of the stride.

        Returns
        -------
        torch.Tensor
            scores_TNC, float32, contiguous, within +-`score_scale`; C = new_state * 4 + dropped_base.
        """
        x_NCS = batch_NS[:, None, :]
        for conv in self.convs:
            x_NCS = functional.silu(conv(x_NCS.to(conv.weight.dtype)), inplace=True)
        x_TNC = x_NCS.permute(2, 0, 1).contiguous()
        for layer, rnn in enumerate(self.rnns):
            reverse = layer % 2 == 0
            x_TNC = rnn(x_TNC.flip(0))[0].flip(0) if reverse else rnn(x_TNC)[0]
        scores_TNC: torch.Tensor = self.linear(x_TNC).float().tanh_().mul_(self.score_scale)
        return scores_TNC


def _our_name(key: str) -> str:
    """`2.conv.bias` -> `convs.2.bias`, `4.rnn.x` -> `rnns.0.x` (3 is the permutation), `9.linear.x` -> `linear.x`."""
    index, kind, rest = key.split(".")
    if kind == "linear":
        return f"linear.{rest}"
    return f"convs.{index}.{rest}" if kind == "conv" else f"rnns.{int(index) - 4}.{rest}"
