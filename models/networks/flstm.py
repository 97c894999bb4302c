"""Low-rank LSTMs with alternating directions: `flstm_softout` in config.toml, the encoder of hac v6, and `flstm`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from porestream.models.networks.config_values import Unsupported, whole
from porestream.models.networks.encoder import FLOAT32_BYTES, Encoder, Table

if TYPE_CHECKING:
    from torch import nn

SOFT_OUTPUT = "flstm_softout"

SLAB_STEPS = 16
"""Steps whose gates are computed from the input at once where torch computes the recurrence."""

_GATES = 4


@dataclass(frozen=True, slots=True)
class LowRankLstms(Encoder):
    """LSTMs whose weight matrices are products of two narrow ones.

    gates = U_ih (D_ih x) + U_hh (D_hh h) + both biases, with D of K x C and U of 4 C x K weights. (dorado's code for
    GPUs leaves out the second bias, its code for CPUs adds it.)

    `flstm_softout`, the type that ONT publishes, has hard gates: i, f and o are 0.2 x + 0.5 between 0 and 1, g is x
    between -1 and 1, and only the output has a real tanh. Sources: dorado 2, nn/FLSTMStack.cpp, and slorado, which
    calls hac@v6.0.0. `flstm`, as dorado 1.4 reads it, has the gates of an ordinary LSTM.

    Attributes
    ----------
    inner
        K.
    reverse
        For each LSTM, whether it runs backwards in time.
    is_hard
        Whether the gates are hard.
    """

    kind = "low-rank lstm"
    upsampling = 1
    max_steps = None
    cpu_rows = 32  # with 16, fetching the weights takes almost as long as multiplying

    width: int
    inner: int
    reverse: tuple[bool, ...]
    is_hard: bool

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
                raise Unsupported(f"a low-rank LSTM must be {width} wide, like the last convolution: {layer}")
            if whole(layer, "inner_dim") != inner:
                raise Unsupported(f"all low-rank LSTMs must have the same inner_dim, {inner}: {layer}")
            if not layer.get("bias", True) or bool(layer.get("reverse", is_reverse)) != is_reverse:
                raise Unsupported(f"low-rank LSTMs must have a bias and alternate, the first one reversed: {layer}")
        return cls(width, inner, reverse, layers[0]["type"] == SOFT_OUTPUT)

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
