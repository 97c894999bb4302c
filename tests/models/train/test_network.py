"""The trained network against the network that ships, and the optimizer's pieces."""

from pathlib import Path

import numpy as np
import pytest
import torch

from porestream.models.call.network import Network
from porestream.models.files.bundle import load_bundle
from porestream.models.train.export import ExportSettings, export_model
from porestream.models.train.muon import Muon, orthogonalised
from porestream.models.train.network import STRIDE, TrainableNetwork, published_name
from porestream.models.train.state import Progress, TrainingState


def trained(width: int = 16, state_len: int = 2, gain: float = 1.0) -> tuple[TrainableNetwork, TrainingState]:
    """A network with weights that make scores of all sizes, and the state that holds it as its mean."""
    torch.manual_seed(7)
    network = TrainableNetwork(width, state_len)
    network.initialise()
    with torch.no_grad():
        network.linear.weight.mul_(gain)
    other = TrainableNetwork(width, state_len)
    opt = Muon(other).state_dict()
    return network, TrainingState(
        net=other.state_dict(), mean=network.state_dict(), opt=opt, progress=Progress(1_234_567, 7200.0, 99)
    )


@pytest.mark.parametrize(("width", "state_len"), [(16, 2), (96, 3)])
def test_the_exported_network_gives_the_same_scores(tmp_path: Path, width: int, state_len: int) -> None:
    network, state = trained(width, state_len, gain=100.0)
    export_model(state, tmp_path / "model", ExportSettings(date="2026-01-01"))
    bundle = load_bundle(tmp_path / "model")
    batch_NS = torch.randn(3, 600, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_TNC = network(batch_NS).clamp(-5, 5)
    assert expected_TNC.shape == (600 // STRIDE, 3, 4 ** (state_len + 1))
    assert (expected_TNC.abs() == 5).any()
    # Sums of terms that the gain makes a hundred times larger, in an order that is the processor's.
    torch.testing.assert_close(Network(bundle, "fp32")(batch_NS), expected_TNC, rtol=0, atol=1e-4)


def test_of_weights_finds_the_shape() -> None:
    network = TrainableNetwork.of_weights(TrainableNetwork(24, 4).state_dict())
    assert (network.width, network.state_len) == (24, 4)


def test_published_names() -> None:
    names = [published_name(key) for key in TrainableNetwork(16).state_dict()]
    assert names[:6] == [f"{i}.conv.{part}" for i in range(3) for part in ("weight", "bias")]
    assert names[6] == "4.rnn.weight_ih_l0"
    assert names[-2:] == ["8.rnn.bias_hh_l0", "9.linear.weight"]


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    assert ((values > 0.6) & (values < 1.3)).all()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (left @ right).flatten(), 0) > 0.97


def test_muon_steps_gate_by_gate_and_scales() -> None:
    network, _ = trained()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gate = before["rnns.0.rnn.weight_ih_l0"][:16]
    Muon(network, weight_decay=0.0).step(0.01)
    for name, parameter in network.named_parameters():
        assert (parameter != before[name]).any(), name
    change = (network.rnns[0].rnn.weight_ih_l0[:16] - gate) / (0.01 * 0.2 * 16**0.5)  # type: ignore[union-attr, index]
    values = torch.linalg.svdvals(change)
    assert ((values > 0.5) & (values < 1.3)).all()
    # Biases go with AdamW, whose first step is the rate, and never more than 3e-3.
    bias_change = network.rnns[0].rnn.bias_ih_l0 - before["rnns.0.rnn.bias_ih_l0"]  # type: ignore[union-attr]
    assert np.allclose(bias_change.detach().abs(), 3e-3, rtol=0.01)  # type: ignore[union-attr]


def test_muons_state_comes_back() -> None:
    steps = []
    for through_state in (False, True):
        network, _ = trained()
        optimizer = Muon(network)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            if through_state and step == 2:
                saved = optimizer.state_dict()
                optimizer = Muon(network)
                optimizer.load_state_dict(saved)
            optimizer.step(1e-3)
        steps.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    assert torch.equal(*steps)
