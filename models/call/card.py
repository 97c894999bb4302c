"""A CUDA GPU, shared by all models of the process."""

import os
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from porestream.models.files.config import ModelError

_WARM_UPS = 3  # PyTorch's advice before a capture: builds plans, allocates workspaces
_DEVICE_NAME = re.compile(r"auto|cpu|cuda(:\d+)?")


def find_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu", "cuda" or "cuda:N"; "auto" is the first GPU, or the CPU if there is none.

    Raises
    ------
    ModelError
        The name is invalid, or there is no such GPU.
    """
    if not _DEVICE_NAME.fullmatch(name):
        raise ModelError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    found = torch.cuda.is_available()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if not found:
        why = "finds no GPU or driver" if torch.version.cuda else "is a build without CUDA"
        raise ModelError(f"device {name}: PyTorch {torch.__version__} {why}: see docs/operate/gpu.md")
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ModelError(f"device {name}: PyTorch finds {torch.cuda.device_count()} GPU(s), numbered from 0")
    return torch.device("cuda", index)


class Card:
    """A CUDA GPU that all models share, with one stream that runs their work in order.

    Parameters
    ----------
    device
        The GPU.
    threads
        Threads that call batches; each pins host memory.
    graphs
        Whether to capture networks in CUDA graphs, rather than launch kernel by kernel.

    Attributes
    ----------
    stream
        The stream; `cupy.cuda.ExternalStream(card.stream.cuda_stream)` is the same stream in CuPy.
    lock
        Hold it while putting one batch's work into the stream.
    """

    def __init__(self, device: torch.device, threads: int = 1, graphs: bool = True) -> None:
        fix_arithmetic()
        self.device, self.threads = device, threads
        self.lock = threading.Lock()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.reserved_bytes = 0  # GPU memory set aside for anything other than networks
        self._pool = torch.cuda.graph_pool_handle() if graphs else None
        self._host_sizes = [0, 0]  # bytes of the largest batch of all models, and of the largest results
        self._host = threading.local()
        self._others: list[torch.cuda.Stream] = []

    @property
    def device_class(self) -> str:
        """The GPU's architecture, e.g. "sm_90"."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    @property
    def device_name(self) -> str:
        """The GPU's name, e.g. "cuda:NVIDIA H100 80GB HBM3"."""
        return f"cuda:{torch.cuda.get_device_name(self.device)}"

    def precision(self, asked: str) -> str:
        """Resolve "auto" to the precision used on a GPU; return other names unchanged."""
        return "fp16" if asked == "auto" else asked

    def free_bytes(self) -> int:
        """Return the GPU's free memory, less what is reserved."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0]) - self.reserved_bytes

    def in_order(self) -> AbstractContextManager[object]:
        """Return a context manager; work inside it goes into the GPU's stream."""
        return torch.cuda.stream(self.stream)

    def another_stream(self) -> int:
        """Create another stream, which does not wait for the networks' stream, and return its address."""
        self._others.append(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        return int(self._others[-1].cuda_stream)

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Run some work a few times, as PyTorch requires before recording it; its memory goes back to PyTorch."""
        with self.in_order():
            for _ in range(_WARM_UPS):
                compute()
        self.stream.synchronize()

    def recorded(self, compute: Callable[[], object]) -> Callable[[], object]:
        """Record the work as a CUDA graph, so that one launch replaces a launch per kernel; return what replays it.

        All graphs share memory, because the stream runs them one after another: keep nothing in memory that `compute`
        allocates. The graphs never give that memory back, so warm everything up first, and record the largest first.
        """
        if self._pool is None:
            return compute
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
            compute()
        return graph.replay

    def reserve(self, batch: int, results: int) -> None:
        """Register a model's largest batch and results, in bytes; threads allocate host memory for the largest."""
        self._host_sizes = [max(sizes) for sizes in zip(self._host_sizes, (batch, results), strict=True)]

    def host_buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the calling thread's pinned buffers (uint8) for a batch and its results; copies need not wait."""
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
        """Allocate GPU memory from PyTorch's pool for another library's work in the stream; return its address.

        Raises
        ------
        MemoryError
            Not enough memory is free.
        """
        try:
            return int(torch.cuda.caching_allocator_alloc(size, self.device, self.stream))
        except torch.OutOfMemoryError as error:
            raise MemoryError(first_line(error)) from error

    def free(self, address: int) -> None:
        """Free memory from `allocate`."""
        torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]

    def mark(self) -> Callable[[], object]:
        """Return a function that waits for all work now in the stream. The thread sleeps while it waits."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event.synchronize


def fix_arithmetic() -> None:
    """Make CUDA's libraries deterministic, for the whole process; call it before any work on a GPU.

    After https://docs.pytorch.org/docs/stable/notes/randomness.html: no TF32, no choosing kernels by timing, no sums in
    half precision, and fixed-size workspaces for cuBLAS and cuDNN's LSTMs. (But don't fill each torch.empty with NaN.)
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
    """Return the first line of an error's message; libraries append stack traces and advice."""
    return str(error).partition("\n")[0]
