"""Open the GPU, or in a rehearsal the CPU with the emulator in its place."""

import torch
from host_card import HostCard

from porestream.kernels.device import Device
from porestream.models.call.card import Card, find_device
from porestream.server.start.devices import kernel_device


def open_card(device: str, threads: int = 1, graphs: bool = True) -> Card:
    """Open the GPU; "emulated": the CPU."""
    torch.set_num_threads(1)
    return HostCard(threads) if device == "emulated" else Card(find_device(device), threads, graphs)


def kernels_of(card: Card) -> Device:
    """Return the device for kernels in the card's stream."""
    found = kernel_device("emulated" if isinstance(card, HostCard) else str(card.device), card)
    assert found is not None
    return found
