"""The CRF network: convolutions, then LSTMs of alternating direction or a transformer, then linear layers of scores.

Dimensions: N rows of a batch, S samples, T time steps (S / stride), C channels or transition scores.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from porestream.models.bundle import ModelBundle
from porestream.models.layers import Convolution, Layers
from porestream.models.transformer import TransformerEncoder

_SLAB_SCORES = 200 * 16 * 256  # a slab of scores stays in the core's cache
_CUDA_SLAB_SCORES = 1 << 25  # fills a card; in half precision 64 MiB
_MANY_CHANNELS = 64

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network(nn.Module):
    """Normalised signal to CRF transition scores.

    Parameters
    ----------
    bundle
        The weights and sizes.
    precision
        "fp32", "bf16" or "fp16": of weights and activations from the last convolution on, and of convolutions of many
        channels. Small ones before it are always float32: they see the signal's full range and cost little.
    transformer_rows
        Rows that go through a transformer at once.
    """

    def __init__(self, bundle: ModelBundle, precision: str = "fp32", transformer_rows: int = 1) -> None:
        super().__init__()
        config, layers = bundle.config, bundle.config.layers
        self.stride, self._layers = config.stride, layers
        self.dtype = PRECISIONS[precision]
        # Over images one pixel high, for these can have their channels last: as the LSTMs want them, and faster.
        self.convs = nn.ModuleList(_conv(layer) for layer in layers.convolutions)
        self.rnns = nn.ModuleList(nn.LSTM(layers.width, layers.width) for _ in layers.reverse)
        self.encoder = TransformerEncoder(layers.transformer, transformer_rows) if layers.transformer else None
        bottleneck = layers.bottleneck
        self.bottleneck = nn.Linear(layers.width, bottleneck, layers.bottleneck_bias) if bottleneck else None
        self.linear = nn.Linear(bottleneck or layers.width, config.score_count, layers.linear_bias)
        self.load_state_dict(dict(self._our_tensor(name, tensor) for name, tensor in bundle.tensors.items()))
        for conv in self.convs:
            conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        for module in (*self.rnns, self.encoder, self.bottleneck, self.linear):
            if module is not None:
                module.to(self.dtype)
        for conv, dtype in zip(self.convs, convolution_dtypes(layers, self.dtype), strict=True):
            conv.to(dtype)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, batch_NS: torch.Tensor, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of a batch.

        Parameters
        ----------
        batch_NS
            float32, normalised signal; S a multiple of the model's `chunk_unit`.
        out_TNC
            Where the scores go; None: into a new tensor.

        Returns
        -------
        torch.Tensor
            scores_TNC, float32, contiguous; C = new_state * 4 + dropped_base.
        """
        return self.scores(self.encoded(self.convolved(batch_NS)), out_TNC)

    def convolved(self, batch_NS: torch.Tensor) -> torch.Tensor:
        """The convolutions' features, (N, C, T)."""
        x_NC1S = batch_NS[:, None, None, :]
        for conv, layer in zip(self.convs, self._layers.convolutions, strict=True):
            x_NC1S = conv(x_NC1S.to(next(conv.parameters()).dtype))
            x_NC1S = x_NC1S.tanh_() if layer.activation == "tanh" else functional.silu(x_NC1S, inplace=True)
            if layer.limits:
                x_NC1S = x_NC1S.clamp_(*layer.limits)
        return x_NC1S[:, :, 0]

    def encoded(self, x_NCT: torch.Tensor) -> torch.Tensor:
        """The LSTMs' or the transformer's features, (T, N, C)."""
        if self.encoder is not None:
            return self.encoder(x_NCT.transpose(1, 2).to(self.dtype))  # type: ignore[no-any-return]
        x_TNC = x_NCT.permute(2, 0, 1).contiguous()
        for reverse, rnn in zip(self._layers.reverse, self.rnns, strict=True):
            x_TNC = rnn(x_TNC.flip(0))[0].flip(0) if reverse else rnn(x_TNC)[0]
        return x_TNC

    def scores(self, x_TNC: torch.Tensor, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """The last layers, slab by slab."""
        T, N, C = *x_TNC.shape[:2], self.linear.out_features
        scores_TNC = out_TNC if out_TNC is not None else torch.empty(T, N, C, device=x_TNC.device)
        layers, steps = self._layers, slab_steps(N, C, x_TNC.device.type)
        for first in range(0, T, steps):
            slab = scores_TNC[first : first + steps]
            # As a matrix: a batch of one row has odd strides, with which torch's product is 100 times slower.
            features = x_TNC[first : first + steps].flatten(0, 1)
            if self.bottleneck is not None:
                features = self.bottleneck(features)
            slab.copy_(self.linear(features).view(slab.shape))
            if layers.score_tanh:
                slab.tanh_()
            if layers.score_scale != 1:
                slab.mul_(layers.score_scale)
            if math.isfinite(layers.score_limit):
                slab.clamp_(-layers.score_limit, layers.score_limit)
        return scores_TNC

    def _our_tensor(self, key: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """`2.conv.bias` -> `convs.2.bias`, `4.rnn.x` -> `rnns.0.x` (3: the permutation), `9.linear.x` -> `linear.x`.

        Of a transformer `conv.2.conv.bias` -> `convs.2.bias`, `crf.linear.x` -> `linear.x`; `encoder.` before the rest.
        """
        if self.encoder is not None:
            if not key.startswith(("conv.", "crf.")):
                return f"encoder.{key}", tensor
            key = key.removeprefix("conv.")
        index, kind, rest = key.split(".")
        if kind == "conv":
            return f"convs.{index}.{rest}", tensor.unsqueeze(2) if rest == "weight" else tensor
        if kind == "rnn":
            return f"rnns.{int(index) - len(self.convs) - 1}.{rest}", tensor
        is_last = self.bottleneck is None or int(index) == len(self.convs) + 1 + len(self.rnns) + 1
        return f"linear.{rest}" if is_last else f"bottleneck.{rest}", tensor


def convolution_dtypes(layers: Layers, dtype: torch.dtype) -> list[torch.dtype]:
    """Of each convolution's weights and output, where the rest of the network computes in `dtype`."""
    last = layers.convolutions[-1]
    return [dtype if layer is last or layer.ins >= _MANY_CHANNELS else torch.float32 for layer in layers.convolutions]


def slab_steps(rows: int, scores: int, device_type: str) -> int:
    """Time steps of which the scores are computed at once."""
    return max(1, (_SLAB_SCORES if device_type == "cpu" else _CUDA_SLAB_SCORES) // (rows * scores))


def _conv(layer: Convolution) -> nn.Conv2d:
    window, padding = (1, layer.winlen), (0, layer.winlen // 2)
    return nn.Conv2d(layer.ins, layer.outs, window, stride=(1, layer.stride), padding=padding)
