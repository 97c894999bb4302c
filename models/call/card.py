"""A CUDA card as all the process's models share it."""

import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from porestream.models.files.config import ModelError

_WARM_UPS = 3  # PyTorch's advice before a capture: plans are made, workspaces taken
_DEVICE_NAME = re.compile(r"auto|cpu|cuda(:\d+)?")


def find_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means; "auto" is the first CUDA card where PyTorch finds one.

    Raises
    ------
    ModelError
        Another name, or there is no such card.
    """
    if not _DEVICE_NAME.fullmatch(name):
        raise ModelError(f"not a device: {name!r}; auto, cpu, cuda and cuda:N are")
    found = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        why = "finds no card or driver" if torch.version.cuda else "is a build without CUDA"
        raise ModelError(f"device {name}: PyTorch {torch.__version__} {why}; docs/gpu.md says how to install it")
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ModelError(f"device {name}: there are {torch.cuda.device_count()} cards, numbered from 0")
    return torch.device("cuda", index)


class Card:
    """A CUDA card as all its models share it: one stream, whose order is that of the work on the card.

    Parameters
    ----------
    device
        Where.
    threads
        Threads that call batches: each pins memory of the host.
    graphs
        Whether networks are captured in CUDA graphs, or called kernel by kernel.

    Attributes
    ----------
    stream
        The stream; `cupy.cuda.ExternalStream(card.stream.cuda_stream)` is the same to CuPy.
    lock
        Held while one batch's work is put into the stream.
    """

    def __init__(self, device: torch.device, threads: int = 1, graphs: bool = True) -> None:
        fix_arithmetic()
        self.device, self.threads = device, threads
        self.lock = threading.Lock()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.reserved_bytes = 0  # of the card's memory, for others than networks
        self._pool = torch.cuda.graph_pool_handle() if graphs else None
        self._host_sizes = [0, 0]  # bytes of the largest batch of all models, and of what comes of it
        self._host = threading.local()
        self._others: list[torch.cuda.Stream] = []

    @property
    def device_class(self) -> str:
        """The kind of card, e.g. "sm_90"."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    @property
    def device_name(self) -> str:
        """The card, e.g. "cuda:NVIDIA H100 80GB HBM3"."""
        return f"cuda:{torch.cuda.get_device_name(self.device)}"

    def precision(self, asked: str) -> str:
        """The precision of networks that "auto", or a name, means here."""
        return "fp16" if asked == "auto" else asked

    def free_bytes(self) -> int:
        """Of the card's memory, less what is reserved."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0]) - self.reserved_bytes

    def in_order(self) -> AbstractContextManager[object]:
        """What is done inside goes into the card's stream."""
        return torch.cuda.stream(self.stream)

    def another_stream(self) -> int:
        """Address of a stream of the card beside the networks', which does not wait for theirs."""
        self._others.append(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        return int(self._others[-1].cuda_stream)

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Do some work a few times, as it must be before it is recorded; its memory is given back to PyTorch."""
        with self.in_order():
            for _ in range(_WARM_UPS):
                compute()
        self.stream.synchronize()

    def recorded(self, compute: Callable[[], object]) -> Callable[[], object]:
        """The same work as a CUDA graph, which is started at once and not kernel by kernel.

        All graphs share memory, for the stream runs them one after another: nothing may be kept in what `compute`
        allocates. That memory stays theirs, so warm up everything before, and record the largest first.
        """
        if self._pool is None:
            return compute
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
            compute()
        return graph.replay

    def reserve(self, batch: int, results: int) -> None:
        """A model's batches and results have at most so many bytes: threads take memory of the host for the largest."""
        self._host_sizes = [max(sizes) for sizes in zip(self._host_sizes, (batch, results), strict=True)]

    def host_buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The calling thread's buffers (uint8) for a batch and for what comes of it, pinned: copies need not wait."""
        buffers: list[torch.Tensor] = self._host.__dict__.setdefault("buffers", [])
        if [buffer.numel() for buffer in buffers] != self._host_sizes:
            buffers.clear()
            buffers += self._new_buffers()
        batch, results = buffers
        return batch, results

    def _new_buffers(self) -> list[torch.Tensor]:
        with torch.cuda.device(self.device):
            return [torch.zeros(size, dtype=torch.uint8, pin_memory=True) for size in self._host_sizes]

    def allocate(self, size: int) -> int:
        """The address of memory of the card from PyTorch's pool, for work in the stream: for other libraries.

        Raises
        ------
        MemoryError
            There is not so much.
        """
        try:
            return int(torch.cuda.caching_allocator_alloc(size, self.device, self.stream))
        except torch.OutOfMemoryError as error:
            raise MemoryError(first_line(error)) from error

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]

    def mark(self) -> Callable[[], object]:
        """A function that waits until all is done that is in the stream now. The thread sleeps meanwhile."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event.synchronize


def fix_arithmetic() -> None:
    """Make CUDA's libraries compute the same bits each time; for the whole process, before its first work on a card.

    https://docs.pytorch.org/docs/stable/notes/randomness.html: no TF32, no choice of kernels by timing, no sums in half
    precision, and for cuBLAS and cuDNN's LSTMs workspaces of a fixed size. (But no NaN in each torch.empty.)
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def first_line(error: Exception) -> str:
    """Of its message, which libraries fill with stacks and advice."""
    return str(error).partition("\n")[0]
