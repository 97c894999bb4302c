"""The plan of a card's memory: against the tensors that really live in a forward pass, and by its own rules.

Dimensions: N rows of a batch, S samples, T time steps, C scores.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES, Shape, write_shape
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from porestream.models.call.memory import (
    MAX_ROWS,
    device_bytes,
    half_scores,
    pinned_bytes,
    plan_rows,
    result_bytes,
    tensor_bytes,
    weight_bytes,
)
from porestream.models.call.network import Network
from porestream.models.files.bundle import load_bundle
from porestream.models.files.config import ModelConfig, ModelError, load_config

GIB = 1 << 30
MEASURED = {
    "LSTM, many scores": SHAPES["tiny v4"],
    "LSTM, wide convolutions": SHAPES["tiny v4.2"],
    "LSTM, bottleneck": SHAPES["tiny sup v4"],
    "LSTM, wide": Shape(release="v4.3", features=64, state_len=2, chunk_size=1200, overlap=120),
    "low-rank LSTM": SHAPES["tiny v6"],
    "low-rank LSTM, wide": replace(SHAPES["tiny v6"], features=64, inner=16),
    "transformer": SHAPES["tiny sup v5"],
    "transformer, many scores": Shape(
        release="v5", features=32, state_len=3, depth=2, heads=4, chunk_size=1920, overlap=192
    ),
}
PLANNED = {
    "fast": SHAPES["fast v4.3"],
    "hac": SHAPES["hac v4.3"],
    "hac v6": SHAPES["hac v6"],
    "sup": replace(SHAPES["sup v5"], depth=1),  # what a batch takes does not depend on it
}


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators return, until nothing holds them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._seen = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        self._now = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_iter(returned):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return returned

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    folder = tmp_path_factory.mktemp("planned")
    return {name: load_config(write_shape(shape, folder / name)) for name, shape in PLANNED.items()}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", MEASURED)
def test_the_formula_is_what_lives_in_a_forward_pass(tmp_path: Path, name: str, precision: str, rows: int) -> None:
    bundle = load_bundle(write_shape(MEASURED[name], tmp_path / "model"))
    config = bundle.config
    network = Network(bundle, precision, encoder_rows=rows)
    network.finish_scores = lambda *_: None
    are_half = half_scores(precision)
    samples = config.chunk_size // config.chunk_unit * config.chunk_unit
    batch_NS = torch.zeros(rows, samples)
    scores_TNC = torch.zeros(
        samples // config.stride, rows, config.score_count, dtype=torch.float16 if are_half else torch.float32
    )
    with LiveBytes(network) as live:
        batch_NS.zero_()
        scores_TNC.zero_()
        network(batch_NS, scores_TNC)
    assert live.peak > 1.2 * (batch_NS.nbytes + scores_TNC.nbytes)
    planned = tensor_bytes(config, samples, precision, rows, decoded=are_half)
    assert live.peak <= planned <= (1.35 if rows == 1 else 1.1) * live.peak


def test_weights_are_those_of_the_network(tmp_path: Path) -> None:
    for name in ("tiny v4.3", "tiny sup v4", "tiny v6", "tiny sup v5"):
        bundle = load_bundle(write_shape(name, tmp_path / name))
        real = sum(parameter.nbytes for parameter in Network(bundle, "fp32").parameters())
        assert weight_bytes(bundle.config, "fp32") == real


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_fits_and_is_the_largest_that_does(configs: dict[str, ModelConfig], name: str, precision: str) -> None:
    config = configs[name]
    samples = config.chunk_size
    rows_before = 0
    for free_gib in (1.0, 1.5, 2, 4, 8, 12, 24, 80, 640):
        free = int(free_gib * GIB)
        try:
            rows = plan_rows(config, [samples, samples // 4], precision, free, 1 << 50, 4)
        except ModelError:
            assert rows_before == 0
            assert device_bytes(config, samples, precision, 16) > free
            continue
        assert rows >= rows_before
        assert rows % 64 == 0 or rows in (16, 32, 48)
        assert device_bytes(config, samples, precision, rows) <= free
        larger = rows + (16 if rows < 64 else 64)
        assert rows == MAX_ROWS or device_bytes(config, samples, precision, larger) > free
        rows_before = rows
    assert rows_before == MAX_ROWS


def test_more_of_anything_needs_more_memory(configs: dict[str, ModelConfig]) -> None:
    for config in configs.values():
        samples = config.chunk_size // 2
        needed = device_bytes(config, samples, "fp16", 64)
        assert device_bytes(config, samples, "fp16", 128) > needed
        assert device_bytes(config, 2 * samples, "fp16", 64) > needed
        assert device_bytes(config, samples, "fp32", 64) > needed
        assert device_bytes(config, samples, "bf16", 64) == needed
    small, middle, large = (device_bytes(configs[name], 12_000, "fp16", 64) for name in ("fast", "hac", "sup"))
    assert small < middle < large


def test_the_hosts_memory_bounds_the_rows_too(configs: dict[str, ModelConfig]) -> None:
    config = configs["hac"]
    plans = [plan_rows(config, [12_000], "fp16", 80 * GIB, 32 * GIB, threads) for threads in (2, 4, 16, 64)]
    assert plans == sorted(plans, reverse=True)
    assert len(set(plans)) == 4
    for rows, threads in zip(plans, (2, 4, 16, 64), strict=True):
        assert threads * pinned_bytes(config, 12_000, rows) <= 32 * GIB
    assert pinned_bytes(config, 12_000, 100) >= 100 * 4 * (12_000 + 2_000 * 1024)


def test_results_by_hand(configs: dict[str, ModelConfig]) -> None:
    hac = configs["hac"]  # 256 states, 1,024 scores a step of 6 samples
    assert result_bytes(hac, 12_000, 64, decoded=False) == 64 * 2000 * 1024 * 4
    assert result_bytes(hac, 12_000, 64, decoded=True) == 64 * (4 + 3 * 2000)
    signal = 1 << 22  # of 64 * 12,000 * 4 bytes: the next power of two
    assert pinned_bytes(hac, 12_000, 64) == signal + (1 << 29)
    assert pinned_bytes(hac, 12_000, 64, decoded=True) == signal + (1 << 19)


def test_decoding_on_the_card_takes_its_memory_and_spares_the_hosts(configs: dict[str, ModelConfig]) -> None:
    config, asked = configs["hac"], []

    def decode_bytes(steps: int, rows: int) -> int:
        asked.append((steps, rows))
        return steps * rows * 1000

    needed = device_bytes(config, 12_000, "bf16", 64)
    assert asked == []
    decoding = device_bytes(config, 12_000, "bf16", 64, decode_bytes)
    assert asked == [(2000, 64)]
    assert 0 <= decoding - needed - 1.1 * 2000 * 64 * 1000 <= 1  # a tenth for the allocator, rounded up
    # In fp16, scores that are decoded there are halves.
    saved = decoding - device_bytes(config, 12_000, "fp16", 64, decode_bytes)
    assert saved >= 1.1 * 2000 * 64 * 1024 * 2
    # A card that holds exactly 64 rows of the network holds fewer with what decodes them.
    assert plan_rows(config, [12_000, 3_000], "bf16", needed, 1 << 50, 4) == 64
    assert plan_rows(config, [12_000, 3_000], "bf16", needed, 1 << 50, 4, None, decode_bytes) == 48
    assert plan_rows(config, [12_000, 3_000], "bf16", decoding, 1 << 50, 4, None, decode_bytes) == 64
    # A host that pins few rows' scores pins the calls of many.
    host = 4 * pinned_bytes(config, 12_000, 64)
    assert plan_rows(config, [12_000], "bf16", 640 * GIB, host, 4) == 64
    assert plan_rows(config, [12_000], "bf16", 640 * GIB, host, 4, None, decode_bytes) == MAX_ROWS
    with pytest.raises(ModelError, match=r"512 chunks needs .* of GPU memory"):
        plan_rows(config, [12_000], "bf16", decoding, 1 << 50, 4, 512, decode_bytes)
    with pytest.raises(ModelError, match=r"64 chunks needs .* pinned memory for 64 threads"):
        plan_rows(config, [12_000], "bf16", decoding, 64 << 20, 64, 64, decode_bytes)


def test_what_does_not_fit_is_refused_with_figures_and_a_way_out(configs: dict[str, ModelConfig]) -> None:
    sup = configs["sup"]
    with pytest.raises(
        ModelError, match=r"16 chunks needs \d\.\d\d GiB of GPU memory, but only 1\.00 GiB is available"
    ) as e:
        plan_rows(sup, [12_000], "fp16", GIB, 1 << 50, 4)
    assert "choose a smaller model" in str(e.value)
    with pytest.raises(
        ModelError, match=r"512 chunks needs .* but only 8\.00 GiB is available: choose a smaller --batch"
    ):
        plan_rows(sup, [12_000], "fp16", 8 * GIB, 1 << 50, 4, rows=512)
    with pytest.raises(
        ModelError, match=r"16 chunks needs .* pinned memory for 64 threads.* 1\.00 GiB, may be pinned: .*--threads"
    ):
        plan_rows(sup, [12_000], "fp16", 80 * GIB, GIB, 64)
    assert plan_rows(sup, [12_000], "fp16", 80 * GIB, 1 << 50, 4, rows=100) == 100
