"""Every format of model, in every container, against the float64 reference; and the transformer's layers alone.

Dimensions: N rows of a batch, S samples, T time steps, C channels or scores, F features, O outputs, K kernel, H heads,
D features of a head.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import reference_network as reference
import torch
from shapes import CONTAINERS, SHAPES, Shape, shape_config, shape_tensors, write_shape, write_torchscript

from porestream.models.call.cpu_runner import ROWS
from porestream.models.call.network import Network
from porestream.models.files.bundle import load_bundle
from porestream.models.networks.attention import TorchPasses, WindowedAttention, angles, rotated
from porestream.models.networks.transformer import Transformer

TINY = [name for name in SHAPES if name.startswith("tiny")]
PUBLISHED_SIZES = {
    "hac v4.3": SHAPES["hac v4.3"],
    "hac v6": SHAPES["hac v6"],
    "heads and window of sup v5": Shape(release="v5", features=128, state_len=3, depth=1, heads=2),
}
"""Kernels are chosen by size."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in production, where each worker computes on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def squiggles(rows: int, samples: int) -> npt.NDArray[np.float32]:
    """Noisy levels of nine samples, normalised, (N, S)."""
    rng = np.random.default_rng(rows)
    levels = rng.normal(size=(rows, samples // 9 + 1)).repeat(9, axis=1)[:, :samples]
    return (levels + rng.normal(0, 0.2, levels.shape)).astype(np.float32)


def samples_of(shape: Shape) -> int:
    """Enough for more than one block of attention (128 steps of 12 samples)."""
    return 192 * 9 if shape.release == "v5" else 100 * shape.stride


def scores(network: Network, batch_NS: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return network(torch.from_numpy(batch_NS)).numpy()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", TINY)
def test_scores_are_those_of_the_reference(tmp_path: Path, name: str, container: str) -> None:
    shape, batch_NS = SHAPES[name], squiggles(3, samples_of(SHAPES[name]))
    directory = write_shape(shape, tmp_path / "model", seed=5, container=container)
    config = tomllib.loads((directory / "config.toml").read_text())
    expected_TNC = reference.reference_scores(config, shape_tensors(shape, 5), batch_NS)
    assert expected_TNC.std() > 1.2  # weights that leave nothing to see would prove nothing
    assert expected_TNC.std(axis=0).mean() > 0.7
    assert (np.abs(expected_TNC) == 5).mean() < 0.05
    np.testing.assert_allclose(scores(Network(load_bundle(directory)), batch_NS), expected_TNC, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny v3", "tiny v4.2", "tiny v6", "hac v6"])
def test_scores_compiled_for_this_processor(tmp_path: Path, name: str) -> None:
    """As servers on CPUs compute them; "tiny v4.2" has LSTMs of a width that is no whole number of blocks of 16."""
    shape, batch_NS = SHAPES[name], squiggles(ROWS, 10 * SHAPES[name].stride)
    network = Network(load_bundle(write_shape(shape, tmp_path / "model", seed=5)))
    can = torch.cpu.get_capabilities()
    fits = shape.features % (16 if can.get("avx512_f") else 8) == 0
    assert network.compile_for_cpu() == bool(can.get("avx2") and fits)
    expected_TNC = reference.reference_scores(shape_config(shape), shape_tensors(shape, 5), batch_NS)
    np.testing.assert_allclose(scores(network, batch_NS), expected_TNC, rtol=0, atol=1e-4)


def test_hac_v6_has_the_published_number_of_parameters() -> None:
    """9,808,240: dorado issue tracker and model card of dna_r10.4.1_e8.2_400bps_hac@v6.0.0."""
    assert sum(tensor.size for tensor in shape_tensors(SHAPES["hac v6"], 1).values()) == 9_808_240


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_published_sizes(tmp_path: Path, name: str) -> None:
    shape = PUBLISHED_SIZES[name]
    batch_NS = squiggles(2, 192 * 25 if shape.release == "v5" else 600)
    expected_TNC = reference.reference_scores(shape_config(shape), shape_tensors(shape, 5), batch_NS)
    computed_TNC = scores(Network(load_bundle(write_shape(shape, tmp_path / "model", seed=5))), batch_NS)
    np.testing.assert_allclose(computed_TNC, expected_TNC, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_bf16_is_near_fp32(tmp_path: Path, name: str) -> None:
    """Relative to the scores' deviation; measured over seeds: mean 0.008 to 0.02, 99.9% below 0.04 to 0.48."""
    bundle = load_bundle(write_shape(name, tmp_path / "model", seed=5))
    batch_NS = squiggles(ROWS, samples_of(SHAPES[name]))
    full_TNC, half_TNC = (scores(Network(bundle, precision), batch_NS) for precision in ("fp32", "bf16"))
    difference = np.abs(full_TNC - half_TNC) / full_TNC.std()
    assert 0 < difference.mean() < 0.04
    assert np.quantile(difference, 0.999) < 0.8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TINY)
def test_no_row_depends_on_its_place_or_company(tmp_path: Path, name: str, precision: str) -> None:
    network = Network(load_bundle(write_shape(name, tmp_path / "model", seed=5)), precision)
    batch_NS = squiggles(ROWS, samples_of(SHAPES[name]))
    expected_TC = scores(network, np.tile(batch_NS[0], (ROWS, 1)))[:, 3]
    assert np.isfinite(expected_TC).all()
    batch_NS[1::4], batch_NS[2::4] = np.nan, 1e4
    for row in (0, 5, ROWS - 1):
        moved_NS = batch_NS.copy()
        moved_NS[row] = batch_NS[0]
        assert np.array_equal(scores(network, moved_NS)[:, row].view(np.uint32), expected_TC.view(np.uint32))


@pytest.mark.parametrize("name", ["tiny v4.2", "tiny sup v5"])
def test_batch_norms_are_fused(tmp_path: Path, name: str) -> None:
    """Of each convolution: bonito's weights with their batch norm, and the loaded ones without."""
    directory = write_shape(name, tmp_path / "model", seed=5, container="bonito")
    state = {key: value.double().numpy() for key, value in torch.load(directory / "weights_1.tar").items()}
    fused = {key: value.double().numpy() for key, value in load_bundle(directory).tensors.items()}
    theirs = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    ours = [key.removesuffix(".conv.weight") for key in fused if key.endswith(".conv.weight")]
    assert len(theirs) == len(ours) >= 3
    for their, our in zip(theirs, ours, strict=True):
        weight_OCK = state[f"{their}.conv.weight"]
        x_NCS = np.random.default_rng(1).normal(size=(2, weight_OCK.shape[1], 30))
        raw_NOT = reference.convolution(x_NCS, weight_OCK, state[f"{their}.conv.bias"], 1)
        norm = (state[f"{their}.norm.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        expected_NOT = reference.batch_norm(raw_NOT, *norm)
        computed_NOT = reference.convolution(x_NCS, fused[f"{our}.conv.weight"], fused[f"{our}.conv.bias"], 1)
        np.testing.assert_allclose(computed_NOT, expected_NOT, rtol=0, atol=1e-5)


def test_rotary_embedding() -> None:
    x_NHTD = np.random.default_rng(1).normal(size=(2, 3, 50, 8))
    turns = angles(50, 8, 10_000.0, torch.device("cpu"))
    computed_NHTD = rotated(torch.from_numpy(x_NHTD).float(), *turns).numpy()
    expected_NTHD = reference.rope(x_NHTD.transpose(0, 2, 1, 3))
    np.testing.assert_allclose(computed_NHTD, expected_NTHD.transpose(0, 2, 1, 3), rtol=0, atol=1e-5)


def test_rotary_logits_depend_on_distance_alone() -> None:
    """What it is for: q at t and k at s give the same product wherever t - s is the same."""
    q_D, k_D = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 16)))
    turns = angles(40, 16, 10_000.0, q_D.device)
    q_TD, k_TD = (rotated(x_D.expand(1, 1, 40, 16), *turns)[0, 0].numpy() for x_D in (q_D, k_D))
    logits = q_TD @ k_TD.T
    for distance in (-9, 0, 5):
        np.testing.assert_allclose(np.diagonal(logits, distance), logits[20, 20 + distance], rtol=0, atol=1e-4)
    assert np.ptp(logits[20]) > 1


@pytest.mark.parametrize("changed", [0, 60, 127, 128, 199])
def test_attention_sees_its_window_and_nothing_else(changed: int) -> None:
    """A step is changed: the outputs whose window it is in change, and the others stay, to the last bit."""
    T, window = 200, (7, 12)
    torch.manual_seed(2)
    layer = WindowedAttention(
        Transformer(
            depth=1, width=32, heads=4, hidden=128, alpha=2.4, window=window, rotary_base=10_000.0, upsampling=2
        )
    ).eval()
    x_NTF = torch.randn(1, T, 32)
    other_NTF = x_NTF.clone()
    other_NTF[:, changed] += 1
    with torch.inference_mode():
        before_NTF, after_NTF = (layer(one_NTF, TorchPasses()) for one_NTF in (x_NTF, other_NTF))
        same_T = (before_NTF == after_NTF).all(dim=2)[0].numpy()
    steps = np.arange(T)
    seen_T = (changed >= steps - window[0]) & (changed <= steps + window[1])
    assert same_T.tolist() == (~seen_T).tolist()


@pytest.mark.parametrize("rows_at_once", [2, ROWS])
def test_rows_of_a_transformer_may_go_through_together(tmp_path: Path, rows_at_once: int) -> None:
    bundle = load_bundle(write_shape("tiny sup v5", tmp_path / "model", seed=5))
    batch_NS = squiggles(3, samples_of(SHAPES["tiny sup v5"]))
    expected_TNC = scores(Network(bundle), batch_NS)
    computed_TNC = scores(Network(bundle, encoder_rows=rows_at_once), batch_NS)
    np.testing.assert_allclose(computed_TNC, expected_TNC, rtol=0, atol=1e-4)


def test_constants_among_a_transformers_tensors_change_nothing(tmp_path: Path) -> None:
    """Directories may hold `deepnorm_alpha`, which config.toml says too."""
    plain, more = (write_shape("tiny sup v5", tmp_path / name, container="dorado") for name in ("plain", "more"))
    write_torchscript(more / "transformer_encoder.0.deepnorm_alpha.tensor", np.array(2.4494897, np.float32))
    assert load_bundle(more).sha256 == load_bundle(plain).sha256
