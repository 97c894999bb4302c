"""Low-rank LSTMs ("flstm" in config.toml) with alternating directions, the encoder of hac v6."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from porestream.models.networks.config_values import Unsupported, whole
from porestream.models.networks.encoder import FLOAT32_BYTES, Encoder, Table

if TYPE_CHECKING:
    from torch import nn

SLAB_STEPS = 16
"""Steps whose gates are computed from the input at once where torch computes the recurrence."""

_GATES = 4


@dataclass(frozen=True, slots=True)
class LowRankLstms(Encoder):
    """LSTMs whose weight matrices are products of two narrow ones.

    gates = U_ih (D_ih x) + U_hh (D_hh h) + up_bias_ih, with D of K x C and U of 4 C x K weights. Directories also hold
    an `up_bias_hh`, which dorado ignores (nn/FLSTMStack.cpp), and so do we.

    Attributes
    ----------
    inner
        K.
    reverse
        For each LSTM, whether it runs backwards in time.
    """

    kind = "low-rank lstm"
    upsampling = 1
    max_steps = None
    cpu_rows = 32  # of 16, fetching the weights would take as long as multiplying

    width: int
    inner: int
    reverse: tuple[bool, ...]

    @classmethod
    def listed(cls, layers: list[Table], width: int) -> "LowRankLstms":
        """Read the LSTMs that config.toml lists after a convolution of `width` features.

        Directions alternate and the first runs backwards, as in dorado, which doesn't read `reverse`; where a layer has
        it, it must say so, too.
        """
        inner = whole(layers[0], "inner_dim")
        reverse = tuple(index % 2 == 0 for index in range(len(layers)))
        for layer, is_reverse in zip(layers, reverse, strict=True):
            if (whole(layer, "size", width), whole(layer, "insize", width)) != (width, width):
                raise Unsupported(f"an flstm must be {width} wide, like the last convolution: {layer}")
            if whole(layer, "inner_dim") != inner:
                raise Unsupported(f"all flstm layers must have the same inner_dim, {inner}: {layer}")
            if not layer.get("bias", True) or bool(layer.get("reverse", is_reverse)) != is_reverse:
                raise Unsupported(f"flstm layers must have a bias and alternate, the first one reversed: {layer}")
        return cls(width, inner, reverse)

    @property
    def layer_count(self) -> int:
        return len(self.reverse)

    def tensors(self, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        shapes: dict[str, tuple[int, ...]] = {f"dn_weight_{part}": (self.inner, self.width) for part in ("ih", "hh")}
        shapes |= {f"up_weight_{part}": (_GATES * self.width, self.inner) for part in ("ih", "hh")}
        shapes |= {f"up_bias_{part}": (_GATES * self.width,) for part in ("ih", "hh")}
        return {
            f"{first + index}.rnn.{name}": (f"{index}.{name}", shape)
            for index in range(self.layer_count)
            for name, shape in shapes.items()
        }

    def build(self, rows: int) -> "nn.Module":
        from porestream.models.networks.recurrent import LowRankRecurrent

        return LowRankRecurrent(self)

    def tensor_bytes(self, steps: int, rows: int, item_bytes: int) -> int:
        """As for other LSTMs; and inner features, the gates of some steps, and a step's products."""
        features = 4 * self.width * (steps + 1) + self.inner * (steps + 1)
        gates = _GATES * self.width * (2 * min(SLAB_STEPS, steps) + 1)  # two slabs, while one follows the other
        return rows * (features + gates + 2 * self.width) * item_bytes

    def workspace_bytes(self, steps: int) -> int:
        """cuBLAS may split a step's product over its inner width, in float32."""
        return 2 * _GATES * self.width * FLOAT32_BYTES

    def operations(self) -> int:
        """For the input and the hidden state, one product into the inner features and one out of them."""
        return self.layer_count * 2 * 2 * (1 + _GATES) * self.width * self.inner
