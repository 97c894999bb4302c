"""What a network needs of a card's memory, and how many rows of a batch therefore go at once.

Everything is in proportion to the rows and to the chunk length, so the longest length decides; shorter ones are
computed in the same memory.

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
_LIBRARIES_BYTES = 512 << 20  # kernels that CUDA, cuBLAS and cuDNN load when first used, and cuBLAS's workspaces
_FRAGMENTATION = 1.1  # PyTorch's allocator rounds up, and leaves gaps

DecodeBytes = Callable[[int, int], int]
"""Bytes that decoding takes on a card, of (time steps, rows)."""


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
    """Rows of a batch on a card: as many as fit, a multiple of 64 (16, 32 or 48 where that is too many), at most 1,024.

    Parameters
    ----------
    config
        The model's.
    lengths
        Its chunk lengths, in samples.
    precision
        "fp32", "bf16" or "fp16".
    free_bytes
        Of the card's memory.
    host_bytes
        What pinned memory of the host may take: each thread has a batch's signal and scores there.
    threads
        Threads that call batches.
    rows
        As many and no others; None: planned.
    decode_bytes
        What decoding a batch of (time steps, rows) takes on the card beside its scores; None: the host decodes.

    Raises
    ------
    ModelError
        So many, or 16, do not fit; the message says what they need, and the way out.
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
            f"a batch of {count} chunks needs {_gib(needed)} of the card's memory, and {_gib(free_bytes)} is there for "
            f"it: choose {_way_out(rows)}, free memory on the card, or --device cpu"
        )
    pinned = threads * pinned_bytes(config, samples, count, decode_bytes is not None)
    raise ModelError(
        f"a batch of {count} chunks needs {_gib(pinned)} of pinned memory for {threads} threads, and a quarter of this "
        f"machine's is {_gib(host_bytes)}: choose {_way_out(rows)}, fewer --threads, or --device cpu"
    )


def device_bytes(
    config: ModelConfig, samples: int, precision: str, rows: int, decode_bytes: DecodeBytes | None = None
) -> int:
    """Most that a network takes on a card, once loaded and while it computes chunks of `samples`, and its decoder."""
    in_batch = tensor_bytes(config, samples, precision, rows) + rows * _workspace_bytes(config, samples, precision)
    if decode_bytes is not None:
        in_batch += decode_bytes(_steps(config, samples), rows)
    return _LIBRARIES_BYTES + 2 * weight_bytes(config, precision) + math.ceil(_FRAGMENTATION * in_batch)


def pinned_bytes(config: ModelConfig, samples: int, rows: int, decoded: bool = False) -> int:
    """What one thread pins of the host's memory: signal in, and scores out, or what was called where it is `decoded`.

    Each is rounded up to a power of two, as PyTorch's CachingHostAllocator does.
    """
    signal = rows * samples * _FLOAT32
    return sum(1 << (size - 1).bit_length() for size in (signal, result_bytes(config, samples, rows, decoded)))


def result_bytes(config: ModelConfig, samples: int, rows: int, decoded: bool) -> int:
    """Of a batch's scores; or, decoded on the card, of each row a number and three bytes a time step."""
    steps = _steps(config, samples)
    return rows * (_INT32 + 3 * steps) if decoded else rows * steps * config.score_count * _FLOAT32


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Of the weights once; while cuDNN's copy of them in one piece is made, they are there twice."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values()) * _size(precision)


def tensor_bytes(config: ModelConfig, samples: int, precision: str, rows: int) -> int:
    """Most that the tensors of a batch take at a time, its signal and its scores included.

    Follows models/call/network.py and the encoder's module, all rows at once: a tensor lives until nothing names it.
    """
    T, size = _steps(config, samples), _size(precision)
    static = (samples + T * config.score_count) * _FLOAT32
    inner = config.layers.encoder.tensor_bytes(_coarse_steps(config, samples), rows, size)
    steps = min(T, slab_steps(rows, config.score_count, "cuda"))
    last = rows * (config.layers.encoder.width * T + steps * (config.score_count + config.layers.bottleneck)) * size
    return rows * static + max(rows * _convolution_bytes(config, samples, precision), inner, last)


def _convolution_bytes(config: ModelConfig, samples: int, precision: str) -> int:
    """Of a row: a convolution's input, the input in the convolution's type, and its output; of the largest one."""
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
    """Of a row, what libraries take beside the tensors: the encoder's, or as much as the largest convolution again."""
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
