"""The network against a plain float64 reference, and each row's independence of its company, to the last bit.

Dimensions: N rows of a batch, S samples, T time steps, C channels or transition scores.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from porestream.models.basecaller import ROWS
from porestream.models.bundle import ModelBundle, load_bundle
from porestream.models.network import Network

MakeBundle = Callable[..., Path]
F64 = npt.NDArray[np.float64]

TINY_LENGTHS = (1200, 300)
FAST_LENGTHS = (12_000, 3000)
PRECISIONS = ("fp32", "bf16")
FAST_SIZES = {
    "encoder__features": 128,
    "global_norm__state_len": 3,
    "basecaller__chunksize": 12_000,
    "basecaller__overlap": 600,
}
"""The sizes of ONT's R9.4.1 fast model; kernels, and so the last bits, are chosen by size."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in production, where each worker computes on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return load_bundle(make_bundle(tmp_path_factory.mktemp("models") / "tiny", seed=7))


@pytest.fixture(scope="module")
def fast(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return load_bundle(make_bundle(tmp_path_factory.mktemp("models") / "fast", seed=8, **FAST_SIZES))


def squiggle(samples: int, seed: int) -> npt.NDArray[np.float32]:
    """Noisy levels of about nine samples, normalised, as a read has them."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(size=samples // 5), rng.integers(3, 16, samples // 5))
    return (np.resize(levels, samples) + rng.normal(0, 0.2, samples)).astype(np.float32)


def sigmoid(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def reference_conv(x_CS: F64, weight_OCK: F64, bias_O: F64, stride: int) -> F64:
    """Convolution over zero-padded samples (padding half the kernel), then SiLU."""
    width = weight_OCK.shape[2]
    padded_CS = np.pad(x_CS, ((0, 0), (width // 2, width // 2)))
    windows_CTK = np.lib.stride_tricks.sliding_window_view(padded_CS, width, axis=1)[:, ::stride]
    y_OT = np.einsum("ock,ctk->ot", weight_OCK, windows_CTK) + bias_O[:, None]
    return y_OT * sigmoid(y_OT)


def reference_lstm(x_TC: F64, tensors: dict[str, F64], layer: int, backwards: bool) -> F64:
    """One LSTM over time or against it; gates in the order input, forget, cell, output."""
    weight_ih, weight_hh = (tensors[f"{layer}.rnn.weight_{part}_l0"] for part in ("ih", "hh"))
    bias = tensors[f"{layer}.rnn.bias_ih_l0"] + tensors[f"{layer}.rnn.bias_hh_l0"]
    hidden_C = cell_C = np.zeros(weight_hh.shape[1])
    y_TC = np.empty((len(x_TC), hidden_C.size))
    for t in reversed(range(len(x_TC))) if backwards else range(len(x_TC)):
        entry, forget, update, exit_ = np.split(weight_ih @ x_TC[t] + weight_hh @ hidden_C + bias, 4)
        cell_C = sigmoid(forget) * cell_C + sigmoid(entry) * np.tanh(update)
        hidden_C = sigmoid(exit_) * np.tanh(cell_C)
        y_TC[t] = hidden_C
    return y_TC


def reference_scores(bundle: ModelBundle, signal_S: npt.NDArray[np.float32]) -> F64:
    """Scores of one row in float64, (T, C), after the description of v3 models in their config.toml."""
    tensors = {name: tensor.numpy().astype(np.float64) for name, tensor in bundle.tensors.items()}
    x_CS = signal_S.astype(np.float64)[None]
    for layer, stride in ((0, 1), (1, 1), (2, bundle.config.stride)):
        x_CS = reference_conv(x_CS, tensors[f"{layer}.conv.weight"], tensors[f"{layer}.conv.bias"], stride)
    x_TC = x_CS.T
    for layer, backwards in ((4, True), (5, False), (6, True), (7, False), (8, True)):
        x_TC = reference_lstm(x_TC, tensors, layer, backwards)
    scores_TC = x_TC @ tensors["9.linear.weight"].T + tensors.get("9.linear.bias", 0.0)
    layers = bundle.config.layers
    scores_TC = (np.tanh(scores_TC) if layers.score_tanh else scores_TC) * layers.score_scale
    return np.clip(scores_TC, -layers.score_limit, layers.score_limit)


def scores(network: Network, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return network(torch.from_numpy(batch)).numpy()


def same_bits(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> bool:
    return np.array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"encoder__stride": 5, "global_norm__state_len": 3, "encoder__winlen": 9},
        {"encoder__features": 24, "encoder__stride": 3, "encoder__scale": 3.5, "global_norm__state_len": 1},
        {"layers": "listed"},
    ],
)
def test_scores_are_those_of_the_reference(
    make_bundle: MakeBundle, tmp_path: Path, config: dict[str, int | float | str]
) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "model", seed=11, **config))
    batch = np.stack([squiggle(600, seed) for seed in range(3)])
    computed_TNC = scores(Network(bundle), batch)
    assert computed_TNC.dtype == np.float32
    assert computed_TNC.flags.c_contiguous
    for row, signal_S in enumerate(batch):
        expected_TC = reference_scores(bundle, signal_S)
        assert expected_TC.std() > 0.9  # weights that leave nothing to see would prove nothing
        np.testing.assert_allclose(computed_TNC[:, row], expected_TC, rtol=0, atol=1e-4)


def test_scores_of_the_real_model_are_those_of_the_reference(shared_data: Path) -> None:
    import pod5

    bundle = load_bundle(shared_data / "models" / "dna_r9.4.1_e8.1_fast@v3.4")
    network, half = Network(bundle), Network(bundle, "bf16")
    with pod5.Reader(shared_data / "klebsiella_r94" / "reads.pod5") as reader:
        signal_S = next(reader.reads()).signal[2000:8000].astype(np.float32)
    signal_S = (signal_S - signal_S.mean()) / signal_S.std()
    expected_TC = reference_scores(bundle, signal_S[:600])
    np.testing.assert_allclose(scores(network, signal_S[None, :600])[:, 0], expected_TC, rtol=0, atol=1e-4)
    difference = np.abs(scores(network, signal_S[None]) - scores(half, signal_S[None]))
    assert difference.mean() < 0.06  # measured: 0.014 to 0.03 from read to read, scores deviating by 1.8
    assert np.quantile(difference, 0.999) < 0.5  # measured: 0.08 to 0.21


@pytest.mark.parametrize("size", ["tiny", "fast"])
def test_bf16_is_near_fp32(tiny: ModelBundle, fast: ModelBundle, size: str) -> None:
    """Scores within +-5, deviating by 3.3; measured: mean 0.02 to 0.04, 99.9% below 0.6, the largest 2.2."""
    bundle = tiny if size == "tiny" else fast
    batch = np.stack([squiggle(1200, seed) for seed in range(ROWS)])
    full, half = (scores(Network(bundle, precision), batch) for precision in PRECISIONS)
    difference = np.abs(full - half)
    assert not same_bits(full, half)
    assert difference.mean() < 0.08
    assert np.quantile(difference, 0.999) < 1.2


def company(samples: int) -> dict[str, npt.NDArray[np.float32]]:
    """Rows that a batch may hold beside the one looked at."""
    noise = np.random.default_rng(5).normal(size=samples).astype(np.float32)
    return {
        "random": noise,
        "extreme": np.where(noise > 0, np.float32(1e4), np.float32(-1e4)),
        "NaN": np.full(samples, np.nan, np.float32),
        "inf": np.where(noise > 0, np.float32(np.inf), np.float32(-np.inf)),
        "zero": np.zeros(samples, np.float32),
    }


@pytest.mark.parametrize("samples", TINY_LENGTHS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_row_depends_on_its_place_or_company(tiny: ModelBundle, precision: str, samples: int) -> None:
    network = Network(tiny, precision)
    signal_S = squiggle(samples, 1)
    expected_TC = scores(network, np.tile(signal_S, (ROWS, 1)))[:, 0]
    assert np.isfinite(expected_TC).all()
    for name, other_S in company(samples).items():
        for row in range(ROWS):
            batch = np.tile(other_S, (ROWS, 1))
            batch[row] = signal_S
            assert same_bits(scores(network, batch)[:, row], expected_TC), f"row {row} among {name}"


@pytest.mark.parametrize("samples", FAST_LENGTHS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_row_depends_on_its_company_at_the_fast_models_size(fast: ModelBundle, precision: str, samples: int) -> None:
    """Every row index, among rows of all kinds, a few rows looked at in each batch."""
    network = Network(fast, precision)
    signal_S = squiggle(samples, 2)
    others = list(company(samples).values())
    expected_TC = None
    for first in range(4):
        batch = np.stack([others[(row + first) % len(others)] for row in range(ROWS)])
        batch[first::4] = signal_S
        computed_TNC = scores(network, batch)
        for row in range(first, ROWS, 4):
            expected_TC = computed_TNC[:, row] if expected_TC is None else expected_TC
            assert same_bits(computed_TNC[:, row], expected_TC), f"row {row}"
    assert expected_TC is not None
    assert np.isfinite(expected_TC).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_broken_row_stays_broken_alone(tiny: ModelBundle, precision: str) -> None:
    batch = np.stack([squiggle(300, seed) for seed in range(ROWS)])
    batch[3, 100] = np.nan
    finite_N = np.isfinite(scores(Network(tiny, precision), batch)).all(axis=(0, 2))
    assert finite_N.tolist() == [row != 3 for row in range(ROWS)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_compute_the_same_bits(tiny: ModelBundle, precision: str) -> None:
    network = Network(tiny, precision)
    batches = [
        np.stack([squiggle(samples, seed + row) for row in range(ROWS)]) for seed, samples in enumerate([1200, 300])
    ]
    expected = [scores(network, batch) for batch in batches]
    workers = 4
    together = threading.Barrier(workers)

    def work(worker: int) -> list[bool]:
        torch.set_num_threads(1)
        together.wait(30)
        return [same_bits(scores(network, batches[(worker + k) % 2]), expected[(worker + k) % 2]) for k in range(12)]

    with ThreadPoolExecutor(workers) as pool:
        assert all(all(same) for same in pool.map(work, range(workers)))


def test_two_instances_compute_the_same_bits(tiny: ModelBundle) -> None:
    batch = np.stack([squiggle(300, row) for row in range(ROWS)])
    for precision in PRECISIONS:
        assert same_bits(scores(Network(tiny, precision), batch), scores(Network(tiny, precision), batch))
