"""Plans how many rows a batch can have, from the GPU memory that a network needs.

Memory is proportional to the rows and to the chunk length, so the longest length decides; shorter ones reuse the same
memory.

Dimensions: N rows of a batch, S samples, T time steps, C channels or transition scores, F features, H attention heads.
"""

import math
from collections.abc import Callable, Iterable

from porestream.models.call.network import PRECISIONS, convolution_dtypes, slab_steps
from porestream.models.files.config import ModelConfig, ModelError
from porestream.models.files.tensors import tensor_shapes

MAX_ROWS = 1024
_FEW_ROWS = (48, 32, 16)
_ROW_STEP = 64

_FLOAT32, _INT32 = 4, 4
_LIBRARIES_BYTES = 512 << 20  # kernels that CUDA, cuBLAS and cuDNN load on first use, and cuBLAS's workspaces
_FRAGMENTATION = 1.1  # PyTorch's allocator rounds up, and leaves gaps

DecodeBytes = Callable[[int, int], int]
"""Returns the GPU memory that decoding takes, in bytes, for (time steps, rows)."""


def plan_rows(
    config: ModelConfig,
    lengths: Iterable[int],
    precision: str,
    free_bytes: int,
    host_bytes: int,
    threads: int,
    rows: int | None = None,
    decode_bytes: DecodeBytes | None = None,
) -> int:
    """Return how many rows fit in a GPU batch: a multiple of 64 up to 1,024, or 48, 32 or 16 if 64 do not fit.

    Parameters
    ----------
    config
        The model's config.
    lengths
        The model's chunk lengths, in samples.
    precision
        "fp32", "bf16" or "fp16".
    free_bytes
        Free GPU memory.
    host_bytes
        Host memory that may be pinned; each thread pins a batch's signal and results.
    threads
        Threads that call batches.
    rows
        Use exactly this many rows; None means as many as fit.
    decode_bytes
        GPU memory for decoding a batch of (time steps, rows), besides its scores; None means that the host decodes.

    Raises
    ------
    ModelError
        `rows`, or 16 rows, do not fit; the message says how much memory they need and what to do.
    """
    samples = max(lengths)
    most = MAX_ROWS // _ROW_STEP
    candidates = [rows] if rows else [*(step * _ROW_STEP for step in range(most, 0, -1)), *_FEW_ROWS]
    for count in candidates:
        if (
            device_bytes(config, samples, precision, count, decode_bytes) <= free_bytes
            and threads * pinned_bytes(config, samples, count, decode_bytes is not None) <= host_bytes
        ):
            return count
    count = candidates[-1]
    needed = device_bytes(config, samples, precision, count, decode_bytes)
    if needed > free_bytes:
        raise ModelError(
            f"a batch of {count} chunks needs {_gib(needed)} of GPU memory, but only {_gib(free_bytes)} is "
            f"available: choose {_way_out(rows)}, free GPU memory, or use --device cpu"
        )
    pinned = threads * pinned_bytes(config, samples, count, decode_bytes is not None)
    raise ModelError(
        f"a batch of {count} chunks needs {_gib(pinned)} of pinned memory for {threads} threads, but only a quarter of "
        f"this machine's, {_gib(host_bytes)}, may be pinned: choose {_way_out(rows)}, fewer --threads, or --device cpu"
    )


def device_bytes(
    config: ModelConfig, samples: int, precision: str, rows: int, decode_bytes: DecodeBytes | None = None
) -> int:
    """Return the peak GPU memory of a network and its decoder while computing chunks of `samples`, weights included."""
    in_batch = tensor_bytes(config, samples, precision, rows, decode_bytes is not None) + rows * _workspace_bytes(
        config, samples, precision
    )
    if decode_bytes is not None:
        in_batch += decode_bytes(_steps(config, samples), rows)
    return _LIBRARIES_BYTES + 2 * weight_bytes(config, precision) + math.ceil(_FRAGMENTATION * in_batch)


def pinned_bytes(config: ModelConfig, samples: int, rows: int, decoded: bool = False) -> int:
    """Return the host memory that one thread pins: signal in, and scores out (or calls, if `decoded` on the GPU).

    Each buffer is rounded up to a power of two, as PyTorch's CachingHostAllocator does.
    """
    signal = rows * samples * _FLOAT32
    return sum(1 << (size - 1).bit_length() for size in (signal, result_bytes(config, samples, rows, decoded)))


def result_bytes(config: ModelConfig, samples: int, rows: int, decoded: bool) -> int:
    """Return the size of a batch's scores or, if decoded on the GPU, of a count and 3 bytes per time step per row."""
    steps = _steps(config, samples)
    return rows * (_INT32 + 3 * steps) if decoded else rows * steps * config.score_count * _FLOAT32


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Return the size of one copy of the weights. While cuDNN packs them into one buffer, there are two copies."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values()) * _size(precision)


def half_scores(precision: str) -> bool:
    """Whether the scores that a GPU decodes are halves: bf16's eight bits would be too few."""
    return precision == "fp16"


def tensor_bytes(config: ModelConfig, samples: int, precision: str, rows: int, decoded: bool = False) -> int:
    """Return the peak size of a batch's tensors, including its signal and scores, which may be `decoded` on the GPU.

    This follows models/call/network.py and the encoder's module, with all rows at once: a tensor lives as long as
    something refers to it.
    """
    T, size = _steps(config, samples), _size(precision)
    are_half = decoded and half_scores(precision)
    static = samples * _FLOAT32 + T * config.score_count * (size if are_half else _FLOAT32)
    inner = config.layers.encoder.tensor_bytes(_coarse_steps(config, samples), rows, size)
    steps = min(T, slab_steps(rows, config.score_count, "cuda"))
    last = (
        rows
        * (config.layers.encoder.width * T + steps * (config.score_count * (not are_half) + config.layers.bottleneck))
        * size
    )
    return rows * static + max(rows * _convolution_bytes(config, samples, precision), inner, last)


def _convolution_bytes(config: ModelConfig, samples: int, precision: str) -> int:
    """Per row: the input of the largest convolution, its converted copy if any, and the output."""
    most, before, before_size, length = 0, 0, _FLOAT32, samples  # the signal itself counts as static
    channels = 1
    for layer, dtype in zip(
        config.layers.convolutions, convolution_dtypes(config.layers, PRECISIONS[precision]), strict=True
    ):
        converted = channels * length * dtype.itemsize if dtype.itemsize != before_size else 0
        length, channels = -(-length // layer.stride), layer.outs
        output = channels * length * dtype.itemsize
        most = max(most, before + converted + output)
        before, before_size = output, dtype.itemsize
    return most


def _workspace_bytes(config: ModelConfig, samples: int, precision: str) -> int:
    """Per row, what libraries take besides the tensors: the encoder's, or the largest convolution's size again."""
    encoder = config.layers.encoder.workspace_bytes(_coarse_steps(config, samples))
    return max(encoder, _convolution_bytes(config, samples, precision))


def _steps(config: ModelConfig, samples: int) -> int:
    return samples // config.stride


def _coarse_steps(config: ModelConfig, samples: int) -> int:
    return samples // config.coarse_stride


def _size(precision: str) -> int:
    return PRECISIONS[precision].itemsize


def _way_out(rows: int | None) -> str:
    return "a smaller --batch-size" if rows else "a smaller model"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
