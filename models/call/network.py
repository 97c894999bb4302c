"""The CRF network: convolutions, then an encoder (LSTMs or a transformer), then linear layers.

Dimensions: N rows of a batch, S samples, T time steps (S / stride), C channels or transition scores.
"""

import math
import threading
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from porestream.models.files.bundle import ModelBundle
from porestream.models.files.tensors import tensor_places
from porestream.models.networks.layers import Convolution, Layers
from porestream.models.networks.recurrence import ROWS as ROW_GROUP
from porestream.models.networks.recurrent import AlongTime

_SLAB_SCORES = 200 * 16 * 256  # a slab of scores stays in the core's cache
_CUDA_SLAB_SCORES = 1 << 22  # stays in a GPU's L2 cache: in half precision 8 MiB
_MANY_CHANNELS = 64

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network(nn.Module):
    """Normalised signal to CRF transition scores.

    Parameters
    ----------
    bundle
        The weights and sizes.
    precision
        "fp32", "bf16" or "fp16", for weights and activations from the last convolution on, and for convolutions with
        many channels. Small ones before it are always float32: they see the signal's full range and cost little.
    encoder_rows
        Rows that a transformer computes at once.

    Attributes
    ----------
    finish_scores
        Makes scores of the last matrix product in half precision, in place: `BatchDecoder.finish_scores`. Needed if
        scores are wanted in half precision.
    """

    finish_scores: Callable[[torch.Tensor, bool, float, float], None] | None = None

    def __init__(self, bundle: ModelBundle, precision: str = "fp32", encoder_rows: int = 1) -> None:
        super().__init__()
        config, layers = bundle.config, bundle.config.layers
        self.stride, self._layers = config.stride, layers
        self.row_group = 1  # rows that a batch has a multiple of
        self._memory = threading.local()
        self.dtype = PRECISIONS[precision]
        # Convolve images one pixel high: unlike 1D, these can have channels last, which is faster and suits the LSTMs.
        self.convs = nn.ModuleList(_conv(layer) for layer in layers.convolutions)
        self.encoder = layers.encoder.build(encoder_rows)
        width, bottleneck = layers.encoder.width, layers.bottleneck
        self.bottleneck = nn.Linear(width, bottleneck, layers.bottleneck_bias) if bottleneck else None
        self.linear = nn.Linear(bottleneck or width, config.score_count, layers.linear_bias)
        places = tensor_places(config)
        self.load_state_dict(
            {
                # add the height of the one-pixel-high images
                place.ours: bundle.tensors[name][:, :, None] if len(place.shape) == 3 else bundle.tensors[name]
                for name, place in places.items()
            }
        )
        for conv in self.convs:
            conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        for module in (self.encoder, self.bottleneck, self.linear):
            if module is not None:
                module.to(self.dtype)
        for conv, dtype in zip(self.convs, convolution_dtypes(layers, self.dtype), strict=True):
            conv.to(dtype)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, batch_NS: torch.Tensor, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the scores of a batch.

        Parameters
        ----------
        batch_NS
            float32, normalised signal; S is a multiple of the model's `chunk_unit`, and N of `row_group`.
        out_TNC
            Tensor for the scores, float32, or float16 if the network computes in that; None makes a new one of float32.

        Returns
        -------
        torch.Tensor
            scores_TNC; C = new_state * 4 + dropped_base.
        """
        return self.scores(self.encoded(self.convolved(batch_NS)), out_TNC)

    def compile_for_cpu(self) -> bool:
        """Compile the LSTMs for this CPU; return whether there are any, and that was possible.

        Libraries' convolutions and matrix products then have the shape of `row_group` rows, however many rows a batch
        has: a small batch costs little, and its bits are those of a large one.
        """
        if isinstance(self.encoder, AlongTime) and self.encoder.compile_for_cpu():
            self.row_group = ROW_GROUP
        return self.row_group > 1

    def convolved(self, batch_NS: torch.Tensor) -> torch.Tensor:
        """Compute the convolutions' features, (T, N, C) if the LSTMs are compiled, or else (N, C, T)."""
        if self.row_group == 1:
            return self._convolved(batch_NS)
        T, N = batch_NS.shape[1] // self._layers.coarse_stride, len(batch_NS)
        x_TNC = self._features("x", T, N)
        for row in range(0, N, self.row_group):
            rows = slice(row, row + self.row_group)
            x_TNC[:, rows] = self._convolved(batch_NS[rows]).permute(2, 0, 1)
        return x_TNC

    def _convolved(self, batch_NS: torch.Tensor) -> torch.Tensor:
        x_NC1S = batch_NS[:, None, None, :]
        for conv, layer in zip(self.convs, self._layers.convolutions, strict=True):
            x_NC1S = conv(x_NC1S.to(next(conv.parameters()).dtype))
            x_NC1S = x_NC1S.tanh_() if layer.activation == "tanh" else functional.silu(x_NC1S, inplace=True)
            if layer.limits:
                x_NC1S = x_NC1S.clamp_(*layer.limits)
        return x_NC1S[:, :, 0]

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the encoder's features, (T, N, C), from those of `convolved`."""
        if self.row_group > 1:
            spare = self._features("spare", *x.shape[:2])
            return self.encoder.along_time(x, spare)  # type: ignore[no-any-return, operator]
        return self.encoder(x)  # type: ignore[no-any-return]

    def _features(self, name: str, steps: int, rows: int) -> torch.Tensor:
        """Return memory for features, (T, N, C), the thread's own and the same for all batches.

        Batches have many lengths and numbers of rows: tensors of so many sizes would fragment the heap.
        """
        shape = steps, rows, self._layers.encoder.width
        buffer = getattr(self._memory, name, None)
        if buffer is None or buffer.numel() < math.prod(shape):
            buffer = torch.empty(math.prod(shape), dtype=self.dtype)
            setattr(self._memory, name, buffer)
        return buffer[: math.prod(shape)].view(shape)

    def scores(self, x_TNC: torch.Tensor, out_TNC: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the last layers, slab by slab."""
        T, N, C = *x_TNC.shape[:2], self.linear.out_features
        scores_TNC = out_TNC if out_TNC is not None else torch.empty(T, N, C, device=x_TNC.device)
        group = self.row_group if self.row_group > 1 else N
        layers, steps = self._layers, slab_steps(group, C, x_TNC.device.type)
        for row in range(0, N, group):
            for first in range(0, T, steps):
                slab = scores_TNC[first : first + steps, row : row + group]
                # Flatten to a matrix: a batch of one row has odd strides that make torch's product 100 times slower.
                features = x_TNC[first : first + steps, row : row + group].flatten(0, 1)
                if self.bottleneck is not None:
                    features = self.bottleneck(features)
                if slab.dtype == self.dtype != torch.float32:
                    self._half_scores(features, slab)
                    continue
                slab.copy_(self.linear(features).view(slab.shape))
                if layers.score_tanh:
                    slab.tanh_()
                if layers.score_scale != 1:
                    slab.mul_(layers.score_scale)
                if math.isfinite(layers.score_limit):
                    slab.clamp_(-layers.score_limit, layers.score_limit)
        return scores_TNC

    def _half_scores(self, features: torch.Tensor, slab: torch.Tensor) -> None:
        """Compute a slab of scores where they stay, in one product and one pass."""
        assert self.finish_scores is not None
        weight, bias, layers = self.linear.weight.t(), self.linear.bias, self._layers
        flat = slab.view(-1, slab.shape[-1])
        if bias is None:
            torch.mm(features, weight, out=flat)
        else:
            torch.addmm(bias, features, weight, out=flat)
        if layers.score_tanh or layers.score_scale != 1 or math.isfinite(layers.score_limit):
            self.finish_scores(slab, layers.score_tanh, layers.score_scale, layers.score_limit)


def convolution_dtypes(layers: Layers, dtype: torch.dtype) -> list[torch.dtype]:
    """Return the dtype of each convolution's weights and output if the rest of the network computes in `dtype`."""
    last = layers.convolutions[-1]
    return [dtype if layer is last or layer.ins >= _MANY_CHANNELS else torch.float32 for layer in layers.convolutions]


def slab_steps(rows: int, scores: int, device_type: str) -> int:
    """Return how many time steps' scores to compute at once."""
    return max(1, (_SLAB_SCORES if device_type == "cpu" else _CUDA_SLAB_SCORES) // (rows * scores))


def _conv(layer: Convolution) -> nn.Conv2d:
    window, padding = (1, layer.winlen), (0, layer.winlen // 2)
    return nn.Conv2d(layer.ins, layer.outs, window, stride=(1, layer.stride), padding=padding)
