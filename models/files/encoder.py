"""What a kind of network must know of itself: the part between convolutions and scores, in which published ones differ.

A new kind is a file with one class of these methods (lstm.py is the shortest), and a row in layers.py.
Reading a config needs no torch, so `build` imports what computes.

Dimensions: N rows of a batch, T time steps before any upsampling, C features.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn

FLOAT32_BYTES, INT64_BYTES = 4, 8

Table = dict[str, Any]
"""A table of config.toml."""


class Encoder(ABC):
    """The LSTMs, or the transformer, of a network, as its config describes them.

    Attributes
    ----------
    kind
        Its name for people.
    width
        Features of its steps.
    upsampling
        Time steps that each one becomes.
    chunk_steps
        Chunks are whole multiples of so many of its steps.
    max_steps
        Most steps of a chunk that it was made for; None: any.
    cpu_rows
        Rows of a batch from which on a CPU gains nothing; None: no such number is known.
    """

    kind: ClassVar[str]
    chunk_steps: ClassVar[int] = 1
    cpu_rows: ClassVar[int | None] = None
    width: int
    upsampling: int
    max_steps: int | None

    def convolution_name(self, index: int) -> str:
        """What published directories call the tensors of a convolution: `2` of `2.conv.weight`."""
        return str(index)

    def linear_name(self, number: int) -> str:
        """What they call those of a linear layer, the `number`th of all layers: `9` of `9.linear.weight`."""
        return str(number)

    @property
    @abstractmethod
    def layer_count(self) -> int:
        """Layers that published directories number, where they number them."""

    @abstractmethod
    def tensors(self, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Its tensors in order, as directories name them: their names in the module of `build`, and their shapes.

        `first` is its first layer's number among all, the permutation before it being one.
        """

    def constants(self) -> dict[str, str]:
        """Tensors in published files that only repeat the config: of each, the tensor that bonito has after it."""
        return {}

    @abstractmethod
    def build(self, rows: int) -> "nn.Module":
        """The module, of x_NCT in the network's precision to x_TNC; `rows` of a batch go through at once where rows
        do not share a product."""

    @abstractmethod
    def tensor_bytes(self, steps: int, rows: int, item_bytes: int) -> int:
        """Most that the module's tensors take on a card at a time, its input included, in a type of `item_bytes`."""

    @abstractmethod
    def workspace_bytes(self, steps: int) -> int:
        """What libraries take on a card beside them, a row; estimated from above, for no library says so beforehand."""

    @abstractmethod
    def operations(self) -> int:
        """Floating-point operations of its matrix products, a step of a row."""
