"""Describes the transformer of v5 sup models and the upsampling after it, from a config.

Dimensions: T time steps before upsampling.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from porestream.models.networks.config_values import Unsupported, finite, whole, within_limits
from porestream.models.networks.encoder import FLOAT32_BYTES, INT64_BYTES, Encoder, Table

if TYPE_CHECKING:
    from torch import nn

BLOCK_STEPS = 128
"""Queries per attention block."""

_ROTARY_BASE, _MAX_SEQ_LEN = 10_000.0, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer(Encoder):
    """The transformer of v5 sup models and the upsampling after it.

    Attributes
    ----------
    depth, width, heads, hidden
        Layers; features; attention heads; features between the two linear layers of SwiGLU.
    alpha
        DeepNorm's alpha: x -> RMSNorm(f(x) + alpha x).
    window
        How many steps back and ahead each step attends to.
    rotary_base
        Base of the rotary embedding's angles, t base^(-2 i / D).
    """

    kind = "transformer"
    chunk_steps = 16  # as in dorado
    cpu_rows = 1  # a larger batch is no faster, and would waste work when it is not full

    depth: int
    width: int
    heads: int
    hidden: int
    alpha: float
    window: tuple[int, int]
    rotary_base: float
    upsampling: int
    max_steps: int | None = _MAX_SEQ_LEN

    @classmethod
    def of_config(cls, stack: Table, upsample: Table, width: int, stride: int) -> "Transformer":
        """Read the transformer from config.toml; the convolutions give it `width` features every `stride` samples."""
        layer = stack["layer"]
        if upsample.get("type", "linearupsample") != "linearupsample" or whole(upsample, "d_model") != whole(
            layer, "d_model"
        ):
            raise Unsupported(f"upsample must be a linearupsample with d_model = {layer['d_model']}: {upsample}")
        if width != layer["d_model"] or layer.get("type", "transformerencoderlayer") != "transformerencoderlayer":
            raise Unsupported(f"layer must be a transformerencoderlayer with d_model = {width}: {layer}")
        if "theta" in layer and "rotary_base" in layer:
            raise Unsupported("the transformer's layer has both theta and rotary_base; they mean the same, keep one")
        back, ahead = layer["attn_window"]
        found = cls(
            depth=whole(stack, "depth"),
            width=width,
            heads=whole(layer, "nhead"),
            hidden=whole(layer, "dim_feedforward"),
            alpha=finite(layer, "deepnorm_alpha"),
            window=(within_limits("attn_window", back), within_limits("attn_window", ahead)),
            rotary_base=finite(layer, "theta" if "theta" in layer else "rotary_base", _ROTARY_BASE),
            upsampling=whole(upsample, "scale_factor"),
            max_steps=whole(layer, "max_seq_len", _MAX_SEQ_LEN),
        )
        if found.rotary_base <= 0:
            raise Unsupported(f"rotary_base must be greater than 0: {found}")
        if width % (2 * found.heads):
            raise Unsupported(f"{width} features cannot be split into {found.heads} heads of even width")
        if stride % found.upsampling:
            raise Unsupported(f"a stride of {stride} is not divisible by scale_factor = {found.upsampling}")
        return found

    @property
    def layer_count(self) -> int:
        return self.depth

    def convolution_name(self, index: int) -> str:
        return f"conv.{index}"

    def linear_name(self, number: int) -> str:
        return "crf"

    def tensors(self, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        width, hidden = self.width, self.hidden
        shapes: dict[str, tuple[int, ...]] = {
            f"transformer_encoder.{index}.{name}": shape
            for index in range(self.depth)
            for name, shape in (
                ("self_attn.Wqkv.weight", (3 * width, width)),
                ("self_attn.out_proj.weight", (width, width)),
                ("self_attn.out_proj.bias", (width,)),
                ("ff.fc1.weight", (2 * hidden, width)),
                ("ff.fc2.weight", (width, hidden)),
                ("norm1.weight", (width,)),
                ("norm2.weight", (width,)),
            )
        }
        shapes["upsample.linear.weight"] = (self.upsampling * width, width)
        shapes["upsample.linear.bias"] = (self.upsampling * width,)
        return {name: (name, shape) for name, shape in shapes.items()}

    def constants(self) -> dict[str, str]:
        names = (f"transformer_encoder.{index}" for index in range(self.depth))
        return {f"{name}.deepnorm_alpha": f"{name}.self_attn.Wqkv.weight" for name in names}

    def build(self, rows: int) -> "nn.Module":
        from porestream.models.networks.attention import TransformerEncoder

        return TransformerEncoder(self, rows)

    def tensor_bytes(self, steps: int, rows: int, item_bytes: int) -> int:
        """Includes the convolutions' features and a layer's input, which live as long as the layer: attention.py."""
        features = rows * self.width * steps
        half, full = features * item_bytes, features * FLOAT32_BYTES  # features in either dtype
        as_float = full if item_bytes < FLOAT32_BYTES else 0  # float32 needs no converted copy
        angles = 3 * steps * self.width // self.heads * FLOAT32_BYTES  # in double precision, their cosines and sines
        rotation = 4 * half + as_float + 2 * full + angles  # qkv, rotated q; k in float32; halves rotated and joined
        distances = 2 * self._seen_pairs(steps) * INT64_BYTES  # this block's and the previous block's
        # qkv, rotated q and k, attention output; then either this joined plus the layer's output, or the distances.
        attention = 6 * half + max(2 * half, half + distances)
        hidden = 3 * rows * self.hidden * steps * item_bytes  # fc1's two halves and the gate; the product is in place
        norm = 2 * half + as_float + 3 * full  # the two inputs; their sum, its square, the quotient
        upsampled = (1 + 3 * self.upsampling) * half  # the parts, all rows joined, and these with time first
        return 2 * half + max(rotation, attention, hidden + 2 * half, norm, upsampled)

    def workspace_bytes(self, steps: int) -> int:
        """Attention scores of one block, in case no fused kernel accepts a mask."""
        return 3 * self.heads * self._seen_pairs(steps) * FLOAT32_BYTES

    def _seen_pairs(self, steps: int) -> int:
        """Return how many query-key pairs a block has."""
        return min(steps, BLOCK_STEPS) * min(steps, BLOCK_STEPS + sum(self.window))

    def operations(self) -> int:
        """Per layer: attention's projections, its products with keys and values, SwiGLU; then the upsampling."""
        seen = sum(self.window) + 1
        attention = 4 * self.width**2 + 2 * self.width * seen
        return self.depth * 2 * (attention + 3 * self.width * self.hidden) + 2 * self.upsampling * self.width**2
