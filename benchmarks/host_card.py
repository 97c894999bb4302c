"""The CPU in a GPU's place, without stream, graphs and pinned memory, to test and rehearse the code that both share."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from porestream.models.call.card import Card
from porestream.models.call.cpu_runner import cpu_precision
from porestream.models.call.host import host_memory_bytes


class HostCard(Card):
    """A `Card` that is the CPU."""

    def __init__(self, threads: int = 1) -> None:
        self.device, self.threads = torch.device("cpu"), threads
        self.lock = threading.Lock()
        self.reserved_bytes = 0
        self._host_sizes = [0, 0]
        self._host = threading.local()

    @property
    def device_class(self) -> str:
        return "cpu"

    @property
    def device_name(self) -> str:
        return "cpu"

    def precision(self, asked: str) -> str:
        return cpu_precision(asked)

    def free_bytes(self) -> int:
        return host_memory_bytes() - self.reserved_bytes

    def in_order(self) -> AbstractContextManager[object]:
        return nullcontext()

    def warm_up(self, compute: Callable[[], object]) -> None:
        pass

    def recorded(self, compute: Callable[[], object]) -> Callable[[], object]:
        return compute

    def _new_buffers(self) -> list[torch.Tensor]:
        return [torch.zeros(size, dtype=torch.uint8) for size in self._host_sizes]

    def mark(self) -> Callable[[], object]:
        return lambda: None
