"""The network against a plain float64 reference, and each row's independence of its company, to the last bit.

Dimensions: N rows of a batch, S samples, T time steps, C channels or transition scores.
"""

import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference_network import reference_scores

from porestream.models.call.cpu_runner import ROWS
from porestream.models.call.host import processor_has_bf16
from porestream.models.call.network import Network
from porestream.models.files.bundle import ModelBundle, load_bundle

MakeBundle = Callable[..., Path]

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


def production(bundle: ModelBundle, precision: str) -> Network:
    """The network as a CPU's server has it: with recurrences that are compiled, where this processor has the target."""
    network = Network(bundle, precision)
    network.compile_for_cpu()
    return network


def squiggle(samples: int, seed: int) -> npt.NDArray[np.float32]:
    """Noisy levels of about nine samples, normalised, as a read has them."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.normal(size=samples // 5), rng.integers(3, 16, samples // 5))
    return (np.resize(levels, samples) + rng.normal(0, 0.2, samples)).astype(np.float32)


def reference(directory: Path, batch_NS: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Scores in float64, (T, N, C)."""
    tensors = {name: tensor.numpy() for name, tensor in load_bundle(directory).tensors.items()}
    return reference_scores(tomllib.loads((directory / "config.toml").read_text()), tensors, batch_NS)


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
    ],
)
def test_scores_are_those_of_the_reference(
    make_bundle: MakeBundle, tmp_path: Path, config: dict[str, int | float | str]
) -> None:
    directory = make_bundle(tmp_path / "model", seed=11, **config)
    batch = np.stack([squiggle(600, seed) for seed in range(3)])
    computed_TNC = scores(Network(load_bundle(directory)), batch)
    assert computed_TNC.dtype == np.float32
    assert computed_TNC.flags.c_contiguous
    expected_TNC = reference(directory, batch)
    assert expected_TNC.std(axis=(0, 2)).min() > 0.9  # weights that leave nothing to see would prove nothing
    np.testing.assert_allclose(computed_TNC, expected_TNC, rtol=0, atol=1e-4)


def test_scores_of_the_real_model_are_those_of_the_reference(shared_data: Path) -> None:
    import pod5

    directory = shared_data / "models" / "dna_r9.4.1_e8.1_fast@v3.4"
    bundle = load_bundle(directory)
    network, half = Network(bundle), Network(bundle, "bf16")
    with pod5.Reader(shared_data / "klebsiella_r94" / "reads.pod5") as reader:
        signal_S = next(reader.reads()).signal[2000:8000].astype(np.float32)
    signal_S = (signal_S - signal_S.mean()) / signal_S.std()
    expected_TNC = reference(directory, signal_S[None, :600])
    np.testing.assert_allclose(scores(network, signal_S[None, :600]), expected_TNC, rtol=0, atol=1e-4)
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
    network = production(tiny, precision)
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
    if precision == "bf16" and samples > 3000 and not processor_has_bf16():
        pytest.skip("this processor does not compute bf16: it would take a minute, and the service does not choose it")
    network = production(fast, precision)
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
def test_a_small_batch_has_the_bits_of_a_large_one(fast: ModelBundle, precision: str) -> None:
    """A CPU's runner computes only the rows that it has, in groups."""
    network = production(fast, precision)
    if network.row_group == 1:
        pytest.skip("nothing is compiled for this processor and precision: batches always have all rows")
    batch = np.stack([squiggle(3000, seed) for seed in range(ROWS)])
    large_TNC = scores(network, batch)
    for rows in range(network.row_group, ROWS, network.row_group):
        assert same_bits(scores(network, batch[:rows]), np.ascontiguousarray(large_TNC[:, :rows]))
        assert same_bits(scores(network, batch[-rows:]), np.ascontiguousarray(large_TNC[:, -rows:]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_broken_row_stays_broken_alone(tiny: ModelBundle, precision: str) -> None:
    batch = np.stack([squiggle(300, seed) for seed in range(ROWS)])
    batch[3, 100] = np.nan
    finite_N = np.isfinite(scores(production(tiny, precision), batch)).all(axis=(0, 2))
    assert finite_N.tolist() == [row != 3 for row in range(ROWS)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_compute_the_same_bits(tiny: ModelBundle, precision: str) -> None:
    network = production(tiny, precision)
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
        assert same_bits(scores(production(tiny, precision), batch), scores(production(tiny, precision), batch))
