"""The LSTM-CRF network: convolutions, LSTMs of alternating direction, a linear layer of CRF scores.

Dimensions: N rows of a batch, S samples, T time steps (S / stride), C channels or transition scores.
"""

import torch
from torch import nn
from torch.nn import functional

from porestream.models.bundle import ModelBundle

_SLAB_STEPS = 200

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Network(nn.Module):
    """Normalised signal to CRF transition scores.

    Parameters
    ----------
    bundle
        The weights and sizes.
    precision
        "fp32" or "bf16": of weights and activations from the last convolution on. The two small ones before it are
        always float32: they see the signal's full range and cost little.
    """

    def __init__(self, bundle: ModelBundle, precision: str = "fp32") -> None:
        super().__init__()
        config = bundle.config
        self.stride, self.score_limit, self.score_tanh = config.stride, config.score_limit, config.score_tanh
        self.reverse = config.reverse
        self.dtype = PRECISIONS[precision]
        # Over images one pixel high, for these can have their channels last: as the LSTMs want them, and faster.
        self.convs = nn.ModuleList(
            nn.Conv2d(
                layer.ins, layer.outs, (1, layer.winlen), stride=(1, layer.stride), padding=(0, layer.winlen // 2)
            )
            for layer in config.convolutions
        )
        self.rnns = nn.ModuleList(nn.LSTM(config.features, config.features) for _ in config.reverse)
        self.linear = nn.Linear(config.features, config.score_count, bias=config.linear_bias)
        self.load_state_dict(dict(self._our_tensor(name, tensor) for name, tensor in bundle.tensors.items()))
        for conv in self.convs:
            conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        self.convs[-1].to(self.dtype)
        self.rnns.to(self.dtype)
        self.linear.to(self.dtype)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, batch_NS: torch.Tensor, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of a batch.

        Parameters
        ----------
        batch_NS
            float32, normalised signal; S a multiple of the stride.
        out_TNC
            Where the scores go; None: into a new tensor.

        Returns
        -------
        torch.Tensor
            scores_TNC, float32, contiguous, within +-`score_limit`; C = new_state * 4 + dropped_base.
        """
        x_NC1S = batch_NS[:, None, None, :]
        for conv in self.convs:
            dtype = self.dtype if conv is self.convs[-1] else torch.float32
            x_NC1S = functional.silu(conv(x_NC1S.to(dtype)), inplace=True)
        x_TNC = x_NC1S[:, :, 0].permute(2, 0, 1).contiguous()
        for reverse, rnn in zip(self.reverse, self.rnns, strict=True):
            x_TNC = rnn(x_TNC.flip(0))[0].flip(0) if reverse else rnn(x_TNC)[0]
        scores_TNC = out_TNC if out_TNC is not None else torch.empty(*x_TNC.shape[:2], self.linear.out_features)
        for first in range(0, len(x_TNC), _SLAB_STEPS):  # a slab stays in the core's cache
            slab = scores_TNC[first : first + _SLAB_STEPS]
            slab.copy_(self.linear(x_TNC[first : first + _SLAB_STEPS]))
            if self.score_tanh:
                slab.tanh_().mul_(self.score_limit)
            else:
                slab.clamp_(-self.score_limit, self.score_limit)
        return scores_TNC

    def _our_tensor(self, key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """`2.conv.bias` -> `convs.2.bias`, `4.rnn.x` -> `rnns.0.x` (3: the permutation), `9.linear.x` -> `linear.x`."""
        index, kind, rest = key.split(".")
        if kind == "linear":
            return f"linear.{rest}", tensor
        if kind == "conv":
            return f"convs.{index}.{rest}", tensor.unsqueeze(2) if rest == "weight" else tensor
        return f"rnns.{int(index) - len(self.convs) - 1}.{rest}", tensor
