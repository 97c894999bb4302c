"""Runs LSTMs one after another, each forwards or backwards in time: compiled for this CPU, or with torch.

Dimensions: N rows of a batch, T time steps, S steps of a slab, C features, K inner features, G = 4 C gates.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from porestream.models.networks.flstm import SLAB_STEPS, LowRankLstms
from porestream.models.networks.lstm import Lstms
from porestream.models.networks.recurrence import Recurrence, target_of


class AlongTime(nn.ModuleList):
    """LSTMs, of which each reads the states of the one before."""

    def __init__(self, layers: Iterable[nn.Module], shape: Lstms | LowRankLstms) -> None:
        super().__init__(layers)
        self._width, self._reverse = shape.width, shape.reverse
        self._is_hard = isinstance(shape, LowRankLstms) and shape.is_hard
        self._compiled: list[Recurrence] = []

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_for_cpu` did it."""
        return bool(self._compiled)

    def compile_for_cpu(self) -> bool:
        """Compile the recurrence, and return whether this processor and these sizes allow it.

        If so, nothing else can be computed from then on, because torch's copies of the weights are given up.
        """
        target = target_of(next(self.parameters()).dtype)
        if target is None or not Recurrence.fits(target, self._width):
            return False
        self._compiled = [Recurrence(target, *self._weights(layer), is_hard=self._is_hard) for layer in self]
        for parameter in self.parameters():
            parameter.data = parameter.data.new_empty(0)
        return True

    def forward(self, x_NCT: torch.Tensor) -> torch.Tensor:
        """Compute the features of each step, (T, N, C)."""
        x_TNC = x_NCT.permute(2, 0, 1).contiguous()
        if self._compiled:
            return self.along_time(x_TNC, torch.empty_like(x_TNC))
        for reverse, layer in zip(self._reverse, self, strict=True):
            x_TNC = self._with_torch(layer, x_TNC.flip(0)).flip(0) if reverse else self._with_torch(layer, x_TNC)
        return x_TNC

    def along_time(self, x_TNC: torch.Tensor, spare_TNC: torch.Tensor) -> torch.Tensor:
        """Compute the same with compiled code, in the memory of the arguments, of which it returns one.

        Both are contiguous, and N is a multiple of 4.
        """
        for reverse, recurrence in zip(self._reverse, self._compiled, strict=True):
            x_TNC, spare_TNC = recurrence(x_TNC, reverse, spare_TNC), x_TNC
        return x_TNC

    @abstractmethod
    def _weights(self, layer: nn.Module) -> list[torch.Tensor]:
        """Return the weights of a layer that `Recurrence` takes."""

    @abstractmethod
    def _with_torch(self, layer: nn.Module, x_TNC: torch.Tensor) -> torch.Tensor:
        """Compute a layer forwards in time."""


class Recurrent(AlongTime):
    """Ordinary LSTMs: torch's (cuDNN's on a GPU). Parameters are named `0.weight_ih_l0` and so on."""

    def __init__(self, shape: Lstms) -> None:
        super().__init__((nn.LSTM(shape.width, shape.width) for _ in shape.reverse), shape)

    def _weights(self, layer: nn.Module) -> list[torch.Tensor]:
        tensors = dict(layer.named_parameters())
        bias_G = tensors["bias_ih_l0"].float() + tensors["bias_hh_l0"].float()
        return [tensors["weight_ih_l0"], tensors["weight_hh_l0"], bias_G]

    def _with_torch(self, layer: nn.Module, x_TNC: torch.Tensor) -> torch.Tensor:
        return layer(x_TNC)[0]  # type: ignore[no-any-return]


class NextStates(Protocol):
    """Computes the cells, and the hidden states, after a step: `next_states`, or porestream.kernels.network.passes."""

    def __call__(
        self, gates_NG: torch.Tensor, cells_NC: torch.Tensor, hidden_NC: torch.Tensor, is_hard: bool
    ) -> None: ...


class LowRankRecurrent(AlongTime):
    """Low-rank LSTMs. Parameters are named `0.dn_weight_ih` and so on.

    Attributes
    ----------
    next_states
        What computes the states from a step's gates where the recurrence is not compiled; torch unless it is set.
    """

    def __init__(self, shape: LowRankLstms) -> None:
        super().__init__((LowRankLstm(shape) for _ in shape.reverse), shape)
        self.next_states: NextStates = next_states

    def _weights(self, layer: nn.Module) -> list[torch.Tensor]:
        tensors = dict(layer.named_parameters())
        bias_G = tensors["up_bias_ih"].float() + tensors["up_bias_hh"].float()
        down = [tensors["dn_weight_ih"], tensors["dn_weight_hh"]]
        return [tensors["up_weight_ih"], tensors["up_weight_hh"], bias_G, *down]

    def _with_torch(self, layer: nn.Module, x_TNC: torch.Tensor) -> torch.Tensor:
        return layer(x_TNC, self.next_states)  # type: ignore[no-any-return]


class LowRankLstm(nn.Module):
    """One low-rank LSTM."""

    def __init__(self, shape: LowRankLstms) -> None:
        super().__init__()
        width, inner, self._is_hard = shape.width, shape.inner, shape.is_hard
        self.dn_weight_ih, self.dn_weight_hh = _parameter(inner, width), _parameter(inner, width)
        self.up_weight_ih, self.up_weight_hh = _parameter(4 * width, inner), _parameter(4 * width, inner)
        self.up_bias_ih, self.up_bias_hh = _parameter(4 * width), _parameter(4 * width)

    def forward(self, x_TNC: torch.Tensor, next_states: NextStates) -> torch.Tensor:
        """Return the hidden states, (T, N, C), forwards in time."""
        inner_TNK = functional.linear(x_TNC, self.dn_weight_ih)
        y_TNC, cells_NC = torch.empty_like(x_TNC), torch.zeros_like(x_TNC[0], dtype=torch.float32)
        hidden_NC, inner_NK = torch.zeros_like(x_TNC[0]), torch.empty_like(inner_TNK[0])
        down_CK, up_KG, bias_G = self.dn_weight_hh.t(), self.up_weight_hh.t(), self.up_bias_ih + self.up_bias_hh
        for first in range(0, len(x_TNC), SLAB_STEPS):
            gates_SNG = functional.linear(inner_TNK[first : first + SLAB_STEPS], self.up_weight_ih, bias_G)
            for gates_NG, next_hidden_NC in zip(gates_SNG, y_TNC[first : first + SLAB_STEPS], strict=True):
                gates_NG.addmm_(torch.mm(hidden_NC, down_CK, out=inner_NK), up_KG)
                next_states(gates_NG, cells_NC, next_hidden_NC, self._is_hard)
                hidden_NC = next_hidden_NC
        return y_TNC


def next_states(gates_NG: torch.Tensor, cells_NC: torch.Tensor, hidden_NC: torch.Tensor, is_hard: bool) -> None:
    """Compute the cells and hidden states after a step, in float32, with torch. See `NextStates`."""
    i, f, g, o = gates_NG.float().chunk(4, 1)
    if is_hard:
        i, f, o = ((gate * 0.2 + 0.5).clamp(0, 1) for gate in (i, f, o))
        g = g.clamp(-1, 1)
    else:
        i, f, o = (gate.sigmoid() for gate in (i, f, o))
        g = g.tanh()
    cells_NC.mul_(f).add_(i * g)
    hidden_NC.copy_(o * cells_NC.tanh())


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))
