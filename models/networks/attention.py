"""Computes transformers: windowed attention with rotary embedding, SwiGLU, RMSNorm, then upsampling.

Dimensions: N rows, T time steps (before upsampling), F features, H heads, D features of a head, B steps of a block.
"""

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from porestream.models.networks.transformer import BLOCK_STEPS, Transformer

_RMS_EPSILON = 1e-5


class Passes(Protocol):
    """The passes over a layer's features between its matrix products: see `porestream.kernels.network.passes`."""

    def rotated(
        self, qkv_NTF: torch.Tensor, cosines_TD: torch.Tensor, sines_TD: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries and keys, rotated, and values, (N, H, T, D)."""

    def normed(
        self, added_NTF: torch.Tensor, x_NTF: torch.Tensor, weight_F: torch.Tensor, alpha: float
    ) -> torch.Tensor:
        """Return weight * RMSNorm(added + alpha x)."""

    def gated(self, both_NTE: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * value, of values and gates side by side."""


class TorchPasses:
    """`Passes` with torch; the sums are float32."""

    def rotated(
        self, qkv_NTF: torch.Tensor, cosines_TD: torch.Tensor, sines_TD: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q_NHTD, k_NHTD, v_NHTD = qkv_NTF.view(*qkv_NTF.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        q_NHTD, k_NHTD = (rotated(part, cosines_TD, sines_TD) for part in (q_NHTD, k_NHTD))
        return q_NHTD, k_NHTD, v_NHTD

    def normed(
        self, added_NTF: torch.Tensor, x_NTF: torch.Tensor, weight_F: torch.Tensor, alpha: float
    ) -> torch.Tensor:
        total_NTF = added_NTF.float().add_(x_NTF.float(), alpha=alpha)
        return functional.rms_norm(total_NTF, total_NTF.shape[-1:], weight_F.float(), _RMS_EPSILON).to(x_NTF.dtype)

    def gated(self, both_NTE: torch.Tensor) -> torch.Tensor:
        value_NTF, gate_NTF = both_NTE.chunk(2, dim=-1)
        return functional.silu(gate_NTF).mul_(value_NTF)


class TransformerEncoder(nn.Module):
    """`depth` layers and the upsampling; parameter names match the published directories.

    Computes `rows_at_once` rows together; with one, a layer's activations stay in a core's cache.

    Attributes
    ----------
    passes
        What computes the passes between matrix products; torch unless it is set.
    """

    def __init__(self, shape: Transformer, rows_at_once: int) -> None:
        super().__init__()
        self._rows, self._upsampling = rows_at_once, shape.upsampling
        self.passes: Passes = TorchPasses()
        self.transformer_encoder = nn.ModuleList(TransformerLayer(shape) for _ in range(shape.depth))
        self.upsample = nn.ModuleDict({"linear": nn.Linear(shape.width, shape.upsampling * shape.width)})

    def forward(self, x_NFT: torch.Tensor) -> torch.Tensor:
        """Return each step's features, upsampled: (T * upsampling, N, F), contiguous."""
        done = []
        for part_NTF in x_NFT.transpose(1, 2).split(self._rows):  # type: ignore[no-untyped-call]
            for layer in self.transformer_encoder:
                part_NTF = layer(part_NTF, self.passes)
            wide_NTF = self.upsample["linear"](part_NTF)
            done.append(wide_NTF.reshape(len(wide_NTF), -1, part_NTF.shape[2]))  # a step's features, then the next's
        return torch.cat(done).transpose(0, 1).contiguous()


class TransformerLayer(nn.Module):
    """x -> RMSNorm(attention(x) + alpha x) -> RMSNorm(SwiGLU(x) + alpha x); the sums are float32."""

    def __init__(self, shape: Transformer) -> None:
        super().__init__()
        self._alpha, self._width = shape.alpha, shape.width
        self.self_attn = WindowedAttention(shape)
        self.ff = SwiGLU(shape.width, shape.hidden)
        self.norm1 = _RMSNorm(shape.width)
        self.norm2 = _RMSNorm(shape.width)

    def forward(self, x_NTF: torch.Tensor, passes: Passes) -> torch.Tensor:
        x_NTF = passes.normed(self.self_attn(x_NTF, passes), x_NTF, self.norm1.weight, self._alpha)
        return passes.normed(self.ff(x_NTF, passes), x_NTF, self.norm2.weight, self._alpha)


class WindowedAttention(nn.Module):
    """Attention from every step to those from `window[0]` before it to `window[1]` after it.

    Queries are computed in blocks, each with only the keys that the block can see: T x window, not T x T.
    """

    def __init__(self, shape: Transformer) -> None:
        super().__init__()
        self._heads, self._window, self._base = shape.heads, shape.window, shape.rotary_base
        self.Wqkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x_NTF: torch.Tensor, passes: Passes) -> torch.Tensor:
        N, T, F = x_NTF.shape
        turns = angles(T, F // self._heads, self._base, x_NTF.device)
        q_NHTD, k_NHTD, v_NHTD = passes.rotated(self.Wqkv(x_NTF), *turns, self._heads)
        back, ahead = self._window
        steps = torch.arange(T, device=x_NTF.device)
        out_NHTD = torch.empty_like(v_NHTD, memory_format=torch.contiguous_format)
        for first in range(0, T, BLOCK_STEPS):
            last = min(first + BLOCK_STEPS, T)
            low, high = max(first - back, 0), min(last + ahead, T)
            distance = steps[low:high] - steps[first:last, None]
            out_NHTD[:, :, first:last] = functional.scaled_dot_product_attention(
                q_NHTD[:, :, first:last],
                k_NHTD[:, :, low:high],
                v_NHTD[:, :, low:high],
                attn_mask=(distance >= -back) & (distance <= ahead),
            )
        return self.out_proj(out_NHTD.transpose(1, 2).reshape(N, T, F))  # type: ignore[no-any-return]


def angles(steps: int, features: int, base: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines of rotary embedding (Su et al., 2021, arXiv:2104.09864), float32, (T, D / 2).

    Features i and i + D / 2 of step t are a point, rotated by t base^(-2 i / D).
    """
    rates_D = base ** (-torch.arange(0, features, 2, dtype=torch.float64, device=device) / features)
    angles_TD = torch.arange(steps, dtype=torch.float64, device=device)[:, None] * rates_D
    return angles_TD.cos().float(), angles_TD.sin().float()


def rotated(x_NHTD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Turn the halves of each head's features by `angles`; computed in float32, returned in x's dtype."""
    first, second = x_NHTD.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos_TD - second * sin_TD, first * sin_TD + second * cos_TD), dim=-1)
    return turned.to(x_NHTD.dtype)


class SwiGLU(nn.Module):
    """fc2(silu(gate) y), where y and gate are the halves of fc1(x) (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x_NTF: torch.Tensor, passes: Passes) -> torch.Tensor:
        return self.fc2(passes.gated(self.fc1(x_NTF)))  # type: ignore[no-any-return]


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
