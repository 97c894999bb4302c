"""The optimizer: Muon for the large matrices, AdamW for the rest.

Muon (K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by
approximately the nearest orthogonal matrix. The elements of a step are scaled to AdamW's usual size, 0.2 (Moonlight,
arXiv:2502.16982), so that both can share one learning rate.

Dimensions: M matrices, R rows, C columns.
"""

from typing import Any

import torch

from porestream.models.train.network import TrainableNetwork

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAM_MAX_RATE = 3e-3  # for biases and the small convolutions, which cannot take Muon's rate


def orthogonalised(matrices_MRC: torch.Tensor) -> torch.Tensor:
    """Approximate the polar factor of each matrix (rows >= columns): singular values become 0.7 to 1.2.

    Makes five steps of Jordan's quintic Newton-Schulz iteration.
    """
    a, b, c = _COEFFICIENTS
    x_MRC: torch.Tensor = matrices_MRC / (matrices_MRC.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram_MCC = x_MRC.transpose(1, 2) @ x_MRC
        x_MRC = a * x_MRC + x_MRC @ (b * gram_MCC + c * (gram_MCC @ gram_MCC))
    return x_MRC


class Muon:
    """Updates a network from its gradients.

    Each gate of an LSTM's weights is a separate matrix; the last convolution and the linear layer are one matrix each.

    Parameters
    ----------
    network
        The network to update.
    momentum, weight_decay
        Used for all matrices; AdamW uses the weight decay, too.
    """

    def __init__(self, network: TrainableNetwork, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self._momentum, self._decay = momentum, weight_decay
        self._matrices: list[tuple[torch.nn.Parameter, int]] = []  # with the number of blocks in each
        rest = []
        for name, parameter in network.named_parameters():
            if "rnn.weight" in name:
                self._matrices.append((parameter, 4))
            elif name in ("linear.weight", "conv.2.weight"):
                self._matrices.append((parameter, 1))
            else:
                rest.append(parameter)
        self._adam = torch.optim.AdamW(rest, weight_decay=weight_decay)
        self._momenta = [torch.zeros_like(parameter) for parameter, _ in self._matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Make one update with this learning rate."""
        for group in self._adam.param_groups:
            group["lr"] = min(rate, _ADAM_MAX_RATE)
        self._adam.step()
        by_shape: dict[torch.Size, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
        for (parameter, blocks), momentum in zip(self._matrices, self._momenta, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 1 - self._momentum)
            update = torch.lerp(parameter.grad, momentum, self._momentum)  # Nesterov's
            update_MRC = update.reshape(blocks, len(parameter) // blocks, -1)
            by_shape.setdefault(update_MRC.shape, []).append((parameter, update_MRC))
        for shape, updates in by_shape.items():  # all matrices of one shape in one batched product
            stacked_MRC = torch.cat([update_MRC for _, update_MRC in updates])
            tall = shape[1] >= shape[2]
            step_MRC = orthogonalised(stacked_MRC if tall else stacked_MRC.transpose(1, 2))
            step_MRC = step_MRC if tall else step_MRC.transpose(1, 2)
            size = 0.2 * max(shape[1:]) ** 0.5
            for (parameter, _), part in zip(updates, torch.split(step_MRC, shape[0]), strict=True):
                parameter.mul_(1 - rate * self._decay).add_(part.reshape(parameter.shape), alpha=-rate * size)

    def state_dict(self) -> dict[str, Any]:
        """Return AdamW's state, and the momenta in the order of the network's parameters."""
        return {"adam": self._adam.state_dict(), "buf": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._adam.load_state_dict(state["adam"])
        for momentum, saved in zip(self._momenta, state["buf"], strict=True):
            momentum.copy_(saved)
