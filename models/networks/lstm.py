"""LSTMs with alternating directions, the encoder of all published models except v5 sup and hac v6."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from porestream.models.networks.config_values import Unsupported, whole
from porestream.models.networks.encoder import FLOAT32_BYTES, Encoder, Table

if TYPE_CHECKING:
    from torch import nn

_GATES = 4


@dataclass(frozen=True, slots=True)
class Lstms(Encoder):
    """LSTMs as wide as the last convolution.

    Attributes
    ----------
    reverse
        For each LSTM, whether it runs backwards in time.
    """

    kind = "lstm"
    upsampling = 1
    max_steps = None

    width: int
    reverse: tuple[bool, ...]

    @classmethod
    def listed(cls, layers: list[Table], width: int) -> "Lstms":
        """Read the LSTMs that config.toml lists after a convolution of `width` features."""
        for layer in layers:
            if (whole(layer, "size"), whole(layer, "insize")) != (width, width) or not layer.get("bias", True):
                raise Unsupported(f"an LSTM must be {width} wide, like the last convolution, and have a bias: {layer}")
        return cls(width, tuple(bool(layer.get("reverse", False)) for layer in layers))

    @property
    def layer_count(self) -> int:
        return len(self.reverse)

    def tensors(self, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        shapes: dict[str, tuple[int, ...]] = {
            f"weight_{part}_l0": (_GATES * self.width, self.width) for part in ("ih", "hh")
        }
        shapes |= {f"bias_{part}_l0": (_GATES * self.width,) for part in ("ih", "hh")}
        return {
            f"{first + index}.rnn.{name}": (f"{index}.{name}", shape)
            for index in range(self.layer_count)
            for name, shape in shapes.items()
        }

    def build(self, rows: int) -> "nn.Module":
        from porestream.models.networks.recurrent import Recurrent

        return Recurrent(self)

    def tensor_bytes(self, steps: int, rows: int, item_bytes: int) -> int:
        """Sum of the convolutions' features, an LSTM's input, the same reversed, its output, and its states."""
        return rows * 4 * self.width * (steps + 1) * item_bytes

    def workspace_bytes(self, steps: int) -> int:
        """An LSTM's four gates at all steps, in float32: cuDNN computes them for the whole input first."""
        return _GATES * self.width * steps * FLOAT32_BYTES

    def operations(self) -> int:
        """For each gate, one product with the input and one with the hidden state."""
        return self.layer_count * 2 * 2 * _GATES * self.width**2
