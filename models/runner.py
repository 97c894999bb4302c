"""One network in few fixed shapes on one device: on the CPU in the thread that calls, on a CUDA card in its one stream.

Where there is a decoder for the device, scores do not leave it: `call` brings back bases, qualities and moves.

Libraries choose their kernels by shape, and with them the last bits: with one shape a chunk length, a chunk's scores do
not depend on how full its batch was.

Dimensions: N rows of a batch, M samples at the model's rate, T time steps, C transition scores.
"""

import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from porestream.models.bundle import ModelBundle
from porestream.models.config import ModelConfig, ModelError
from porestream.models.decode import Decoded, NonFiniteScores
from porestream.models.memory import device_bytes, plan_rows, result_bytes
from porestream.models.network import Network

ROWS = 16
"""Rows of the CPU's one shape."""

_FEWER_ROWS = 8
_MANY_SCORE_BYTES = 128 << 20
_WARM_UPS = 3  # PyTorch's advice before a capture: plans are made, workspaces taken
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_DEVICE_NAME = re.compile(r"auto|cpu|cuda(:\d+)?")

F32 = npt.NDArray[np.float32]


class Runner(Protocol):
    """A network that computes batches. Thread-safe.

    Attributes
    ----------
    network
        The network itself.
    rows
        Most chunks of a batch. It is always computed with so many rows.
    precision
        "fp32", "bf16" or "fp16".
    device_class
        What decides the last bits of scores beside model and precision: the kind of processor, and the rows where they
        are not always the same.
    """

    network: Network
    rows: int
    precision: str
    device_class: str

    @property
    def device_name(self) -> str:
        """The device for people: "cpu", "cuda:NVIDIA H100 80GB HBM3"."""

    def __call__(self, chunks: Iterable[F32], samples: int) -> F32:
        """Scores of at most `rows` chunks of `samples` samples each; on a card only without a decoder.

        Returns
        -------
        numpy.ndarray
            scores_TNC, float32, contiguous, of all rows; it is overwritten by the calling thread's next call.
        """

    def call(self, chunks: Sequence[F32], samples: int) -> list[Decoded | ValueError]:
        """What at most `rows` chunks say, decoded where their scores are; of each what was called, or why not.

        Only with a decoder.
        """


class BatchDecoder(Protocol):
    """Decodes batches on the device where their scores are; `porestream.kernels.crf.CrfDecoder` is one."""

    def __call__(self, scores_TNC: Any, into: Sequence[Any] | None = None) -> Sequence[Any]:
        """Letters, qualities and moves, uint8 (N, T), and counts, int32 (N), -1 where scores are not finite.

        Arrays speak DLPack. With `into`, they are these.
        """

    def device_bytes(self, steps: int, rows: int) -> int:
        """What a batch takes on the device beside its scores."""


def decoded_rows(calls: Sequence[npt.NDArray[Any]], rows: int) -> list[Decoded | ValueError]:
    """The first rows of what a `BatchDecoder` gave, as copies."""
    letters_NT, qualities_NT, moves_NT, counts_N = calls
    called: list[Decoded | ValueError] = []
    for row, count in enumerate(counts_N[:rows].tolist()):
        if count < 0:
            called.append(NonFiniteScores(f"row {row} of the scores holds values that are not finite"))
        else:
            parts = letters_NT[row, :count], qualities_NT[row, :count], moves_NT[row]
            called.append(Decoded(*(part.copy() for part in parts)))
    return called


def processor_has_bf16() -> bool:
    """Whether bf16 is computed by this processor, not emulated."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def cpu_class(precision: str) -> str:
    """The kind of this processor, e.g. "cpu-avx512", "cpu-avx512-amx"."""
    capabilities = torch.cpu.get_capabilities()
    name = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    if precision == "bf16":
        name += "-amx" if capabilities.get("amx_bf16") else "-bf16" if processor_has_bf16() else "-emulated"
    return name


def cpu_precision(precision: str) -> str:
    """What "auto" is on a CPU: bf16 where the processor computes it.

    Raises
    ------
    ModelError
        fp16, which no x86 processor's libraries compute quickly.
    """
    if precision == "fp16":
        raise ModelError("precision fp16 is ten times slower than fp32 on a CPU: choose bf16 or fp32, or --device cuda")
    return precision if precision != "auto" else "bf16" if processor_has_bf16() else "fp32"


def cpu_rows(config: ModelConfig) -> int:
    """Rows of a batch on the CPU: 16, or 8 where the scores of 16 would take more than 128 MiB.

    A transformer gains nothing from more than one row, and one wastes nothing where a batch is not full.
    """
    if config.layers.transformer:
        return 1
    scores = ROWS * config.chunk_size // config.stride * config.score_count
    return ROWS if scores * torch.float32.itemsize <= _MANY_SCORE_BYTES else _FEWER_ROWS


class CpuRunner:
    """A network on the CPU: each thread computes its own batches, in buffers of its own."""

    def __init__(self, bundle: ModelBundle, precision: str = "auto", decoder: BatchDecoder | None = None) -> None:
        self.precision = cpu_precision(precision)
        self.rows = cpu_rows(bundle.config)
        scores_bytes = result_bytes(bundle.config, bundle.config.chunk_size, self.rows, decoded=False)
        if scores_bytes > host_memory_bytes() // 2:
            raise ModelError(
                f"{bundle.name}: chunksize = {bundle.config.chunk_size}: a batch's scores take {scores_bytes:,} bytes, "
                f"and this machine has {host_memory_bytes():,}, of which they may take half: choose a shorter one"
            )
        self.network = Network(bundle, self.precision)
        self.device_class = cpu_class(self.precision) + ("-gpu-decoder" if decoder else "")
        self._decoder = decoder
        self._score_count = bundle.config.score_count
        self._buffers = threading.local()

    @property
    def device_name(self) -> str:
        """See `Runner`."""
        return "cpu"

    def __call__(self, chunks: Iterable[F32], samples: int) -> F32:
        batch_NM, scores_TNC = self._buffers_of_thread(samples)
        _fill(batch_NM, chunks)
        return self.network(batch_NM, scores_TNC).numpy()  # type: ignore[no-any-return]

    def call(self, chunks: Sequence[F32], samples: int) -> list[Decoded | ValueError]:
        assert self._decoder is not None
        scores_TNC = np.ascontiguousarray(self(chunks, samples)[:, : len(chunks)])  # the others cost as much
        calls = self._decoder(scores_TNC)
        return decoded_rows([np.from_dlpack(array) for array in calls], len(chunks))

    def _buffers_of_thread(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """batch_NM and scores_TNC, kept from batch to batch: allocated anew, the latter would fragment the heap."""
        buffers: dict[int, tuple[torch.Tensor, torch.Tensor]] = self._buffers.__dict__.setdefault("by_length", {})
        if samples not in buffers:
            steps = samples // self.network.stride
            buffers[samples] = torch.zeros(self.rows, samples), torch.zeros(steps, self.rows, self._score_count)
        return buffers[samples]


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

    `torch.device("cpu")` works too, without stream, graphs and pinned memory: for tests of what is the same on both.

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
        The stream; `cupy.cuda.ExternalStream(card.stream.cuda_stream)` is the same to CuPy. None: not a CUDA device.
    lock
        Held while one batch's work is put into the stream.
    """

    def __init__(self, device: torch.device, threads: int = 1, graphs: bool = True) -> None:
        self.device, self.threads = device, threads
        self.lock = threading.Lock()
        self.stream: torch.cuda.Stream | None = None
        self._pool = None
        self._host_sizes = [0, 0]  # bytes of the largest batch of all models, and of what comes of it
        self._host = threading.local()
        self.reserved_bytes = 0  # of the card's memory, for others than networks
        self._others: list[torch.cuda.Stream] = []
        if device.type == "cuda":
            fix_arithmetic()
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle() if graphs else None

    @property
    def device_class(self) -> str:
        """The kind of card, e.g. "sm_90"."""
        if self.stream is None:
            return "cpu"
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    @property
    def device_name(self) -> str:
        """The card, e.g. "cuda:NVIDIA H100 80GB HBM3"."""
        return "cpu" if self.stream is None else f"cuda:{torch.cuda.get_device_name(self.device)}"

    def free_bytes(self) -> int:
        """Of the card's memory, less what is reserved."""
        if self.stream is None:
            return host_memory_bytes() - self.reserved_bytes
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0]) - self.reserved_bytes

    def in_order(self) -> AbstractContextManager[object]:
        """What is done inside goes into the card's stream."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def another_stream(self) -> int:
        """Address of a stream of the card beside the networks', which does not wait for theirs."""
        self._others.append(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        return int(self._others[-1].cuda_stream)

    def warm_up(self, compute: Callable[[], object]) -> None:
        """Do some work a few times, as it must be before it is recorded; its memory is given back to PyTorch."""
        if self.stream is None:
            return
        with self.in_order():
            for _ in range(_WARM_UPS):
                compute()
        self.stream.synchronize()

    def recorded(self, compute: Callable[[], object]) -> Callable[[], object]:
        """The same work as a CUDA graph, which is started at once and not kernel by kernel.

        All graphs share memory, for the stream runs them one after another: nothing may be kept in what `compute`
        allocates. That memory stays theirs, so warm up everything before, and record the largest first.
        """
        if self.stream is None or self._pool is None:
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
            with torch.cuda.device(self.device) if self.stream else nullcontext():
                buffers += [
                    torch.zeros(size, dtype=torch.uint8, pin_memory=self.stream is not None)
                    for size in self._host_sizes
                ]
        batch, results = buffers
        return batch, results

    def allocate(self, size: int) -> int:
        """The address of memory of the card from PyTorch's pool, for work in the stream: for other libraries.

        Raises
        ------
        MemoryError
            There is not so much.
        """
        assert self.stream is not None
        try:
            return int(torch.cuda.caching_allocator_alloc(size, self.device, self.stream))
        except torch.OutOfMemoryError as error:
            raise MemoryError(_first_line(error)) from error

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        torch.cuda.caching_allocator_delete(address)  # type: ignore[no-untyped-call]

    def mark(self) -> Callable[[], object]:
        """A function that waits until all is done that is in the stream now. The thread sleeps meanwhile."""
        if self.stream is None:
            return lambda: None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event.synchronize


class CudaRunner:
    """A network on a card: a CUDA graph a chunk length, between pinned copies.

    Parameters
    ----------
    bundle
        The model.
    lengths
        Its chunk lengths, in samples.
    precision
        "auto" is fp16 on a card.
    card
        Where.
    rows
        Rows of a batch; None: as many as its share of the memory holds, by `models.memory`.
    share
        Of the card's free memory, what this model may take.
    decoder
        Of its scores, on the card; None: they go to the host.

    Raises
    ------
    ModelError
        It does not fit, or the card's libraries refuse it.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        lengths: Sequence[int],
        precision: str,
        card: Card,
        rows: int | None = None,
        share: float = 1.0,
        decoder: BatchDecoder | None = None,
    ) -> None:
        config = bundle.config
        decode_bytes = decoder.device_bytes if decoder else None
        if card.stream is None:
            self.precision = cpu_precision(precision)
        else:
            self.precision = "fp16" if precision == "auto" else precision
        self._card, self._decoder = card, decoder
        free_bytes = int(share * card.free_bytes())
        try:
            limits = free_bytes, host_memory_bytes() // 4, card.threads
            self.rows = plan_rows(config, lengths, self.precision, *limits, rows, decode_bytes)
        except ModelError as error:
            raise ModelError(f"{bundle.name} on {card.device}: {error}") from error
        self.planned_bytes = device_bytes(config, max(lengths), self.precision, self.rows, decode_bytes)
        self.device_class = f"{card.device_class}-{self.rows}rows" + ("-gpu-decoder" if decoder else "")
        sizes = [(self.rows * length, length // config.stride * self.rows * config.score_count) for length in lengths]
        try:
            with card.in_order():
                self.network = Network(bundle, self.precision, transformer_rows=self.rows).to(card.device)
                # Shorter lengths are computed in the memory of the longest: the stream's order keeps them apart.
                batch, scores = (torch.zeros(max(size), device=card.device) for size in zip(*sizes, strict=True))
                size = result_bytes(config, max(lengths), self.rows, decoder is not None)
                self._calls = torch.zeros(size, dtype=torch.uint8, device=card.device) if decoder else None
            self._shapes = self._recorded(batch, scores, lengths, config.score_count)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{bundle.name} on {card.device}: {self.rows} rows do not fit after all, though of "
                f"{free_bytes:,} bytes no more than {self.planned_bytes:,} were expected: choose a smaller "
                f"--batch-size, or --device cpu ({_first_line(error)})"
            ) from error
        except RuntimeError as error:  # of CUDA's libraries: a card or a driver that is too old, say
            raise ModelError(
                f"{bundle.name} does not run on {card.device}: {_first_line(error)}; --device cpu does without"
            ) from error
        card.reserve(self.rows * max(lengths) * torch.float32.itemsize, size)

    def _recorded(
        self, batch: torch.Tensor, scores: torch.Tensor, lengths: Sequence[int], score_count: int
    ) -> dict[int, tuple[torch.Tensor, torch.Tensor, Callable[[], object]]]:
        """By chunk length batch_NM and scores_TNC, the first parts of the two, and what computes one of the other."""
        parts = {}
        for length in sorted(lengths, reverse=True):
            shape = length // self.network.stride, self.rows, score_count
            batch_NM = batch[: self.rows * length].view(self.rows, length)
            scores_TNC = scores[: math.prod(shape)].view(shape)
            parts[length] = batch_NM, scores_TNC, partial(self.network, batch_NM, scores_TNC)
        for _, _, compute in parts.values():
            self._card.warm_up(compute)
        return {
            length: (batch_NM, scores_TNC, self._card.recorded(compute))
            for length, (batch_NM, scores_TNC, compute) in parts.items()
        }

    @property
    def device_name(self) -> str:
        """See `Runner`."""
        return self._card.device_name

    def __call__(self, chunks: Iterable[F32], samples: int) -> F32:
        if self._decoder is not None:
            raise ValueError("this runner has a decoder: its scores stay on the card, and `call` says what they mean")
        scores_TNC = self._shapes[samples][1]
        host = self._computed(chunks, samples, scores_TNC.flatten().view(torch.uint8))
        return host.view(torch.float32).view_as(scores_TNC).numpy()

    def call(self, chunks: Sequence[F32], samples: int) -> list[Decoded | ValueError]:
        assert self._calls is not None
        steps = self._shapes[samples][1].shape[0]
        size = sum(part.nbytes for part in _parts(self._calls, self.rows, steps))
        host = self._computed(chunks, samples, self._calls[:size])
        return decoded_rows([part.numpy() for part in _parts(host, self.rows, steps)], len(chunks))

    def _computed(self, chunks: Iterable[F32], samples: int, results: torch.Tensor) -> torch.Tensor:
        """Compute a batch and copy `results`, bytes on the card, into the calling thread's buffer."""
        batch_NM, scores_TNC, compute = self._shapes[samples]
        host_batch, host_results = self._card.host_buffers()
        host_NM = host_batch[: batch_NM.nbytes].view(torch.float32).view_as(batch_NM)
        host_results = host_results[: results.numel()]
        _fill(host_NM, chunks)
        with self._card.lock, self._card.in_order():
            batch_NM.copy_(host_NM, non_blocking=True)
            compute()
            if self._decoder is not None and self._calls is not None:
                self._decoder(scores_TNC, _parts(self._calls, self.rows, len(scores_TNC)))
            host_results.copy_(results, non_blocking=True)
            wait = self._card.mark()
        wait()
        return host_results

    def compute_only(self, samples: int) -> None:
        """Compute what was last on the card once more, without copies: for measurements."""
        with self._card.lock, self._card.in_order():
            self._shapes[samples][2]()
            wait = self._card.mark()
        wait()


def _parts(buffer: torch.Tensor, rows: int, steps: int) -> list[torch.Tensor]:
    """Letters, qualities, moves and counts of a batch, as views of the first of so many bytes."""
    counts_N, rest = buffer[: 4 * rows].view(torch.int32), buffer[4 * rows : (4 + 3 * steps) * rows]
    return [*rest.view(3, rows, steps), counts_N]


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


def host_memory_bytes() -> int:
    """Of this machine, or of the container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return machine if limit == "max" else min(machine, int(limit))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _fill(batch_NM: torch.Tensor, chunks: Iterable[F32]) -> None:
    """Chunks into the first rows, zeros into the rest."""
    count = 0
    for count, chunk_M in enumerate(chunks, 1):
        batch_NM[count - 1] = torch.from_numpy(chunk_M)
    batch_NM[count:] = 0.0
