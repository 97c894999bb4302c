"""Base class for encoders: the part between convolutions and scores, where published networks differ.

To add a kind, write a file with one class that has these methods (lstm.py is the shortest), and add a row in layers.py.
Reading a config must not need torch, so `build` imports the module that computes.

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
    """A network's LSTMs or transformer, as its config describes them.

    Attributes
    ----------
    kind
        Human-readable name.
    width
        Features per step.
    upsampling
        Time steps that each step becomes.
    chunk_steps
        Chunks are a whole multiple of this many steps.
    max_steps
        Longest chunk that the encoder supports, in steps; None means no limit.
    cpu_rows
        Batch rows beyond which a CPU gets no faster; None if unknown.
    """

    kind: ClassVar[str]
    chunk_steps: ClassVar[int] = 1
    cpu_rows: ClassVar[int | None] = None
    width: int
    upsampling: int
    max_steps: int | None

    def convolution_name(self, index: int) -> str:
        """Return the prefix of a convolution's tensors in published directories: `2` for `2.conv.weight`."""
        return str(index)

    def linear_name(self, number: int) -> str:
        """Return the prefix of a linear layer's tensors, given its layer number: `9` for `9.linear.weight`."""
        return str(number)

    @property
    @abstractmethod
    def layer_count(self) -> int:
        """How many layer numbers the encoder takes up in published directories that number layers."""

    @abstractmethod
    def tensors(self, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Map each tensor's published name, in order, to its name in the module from `build` and its shape.

        `first` is the number of the encoder's first layer; the permutation before it counts as a layer.
        """

    def constants(self) -> dict[str, str]:
        """Map each published tensor that only repeats the config to the tensor that follows it in bonito."""
        return {}

    @abstractmethod
    def build(self, rows: int) -> "nn.Module":
        """Build the module, which turns x_NCT in the network's precision into x_TNC.

        An encoder whose rows do not share a matrix product computes `rows` of a batch at once.
        """

    @abstractmethod
    def tensor_bytes(self, steps: int, rows: int, item_bytes: int) -> int:
        """Return the peak GPU memory of the module's tensors, input included, for a dtype of `item_bytes`."""

    @abstractmethod
    def workspace_bytes(self, steps: int) -> int:
        """Return an upper bound on the GPU memory that libraries use per row; none reports it in advance."""

    @abstractmethod
    def operations(self) -> int:
        """Return the floating-point operations of the matrix products, per step and row."""
