"""The kernels on a card against the emulator, and in one stream and one memory with PyTorch. Skipped without a card."""

import kernel_check
import numpy as np
import pytest
import torch

from porestream.kernels.decode.crf import CrfDecoder
from porestream.kernels.device import Device
from porestream.models.call.card import Card, find_device
from porestream.server.start.devices import kernel_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card, or a PyTorch without CUDA")


@pytest.fixture(scope="module")
def card() -> Card:
    return Card(find_device("cuda"))


@pytest.fixture(scope="module")
def device(card: Card) -> Device:
    pytest.importorskip("cupy")
    found = kernel_device("cuda", card)
    assert found is not None
    return found


def test_results_are_the_emulators(device: Device) -> None:
    assert kernel_check.differences(device) == []


def test_memory_is_pytorchs_and_is_given_back(card: Card, device: Device) -> None:
    before = torch.cuda.memory_allocated(card.device)
    with device.in_order():
        array = device.xp.zeros(1 << 20, np.uint8)
        assert torch.cuda.memory_allocated(card.device) >= before + (1 << 20)
        del array
    assert torch.cuda.memory_allocated(card.device) == before


def test_kernels_wait_for_what_pytorch_put_into_the_stream(card: Card, device: Device) -> None:
    scores_TNC = torch.from_numpy(kernel_check.made_up_scores(200, 8, 4)).to(card.device)
    decoder = CrfDecoder(device, 4, kernel_check.STAY_SCORE)
    expected = [device.to_host(array) for array in decoder(scores_TNC)]
    late_TNC = torch.zeros_like(scores_TNC)
    torch.cuda.synchronize()
    with card.in_order():
        filler = torch.zeros(1 << 26, device=card.device)
        for _ in range(50):  # long enough that a kernel in another stream would come too early
            filler.add_(1.0)
        late_TNC.copy_(scores_TNC)
        found = decoder(late_TNC)
    for ours, theirs in zip(found, expected, strict=True):
        assert (device.to_host(ours)[: len(theirs)] == theirs).mean() > 0.99  # beyond the counts nothing is written
