"""The kernels of networks' passes, emulated: against the formulas, alone and in networks on a card.

Dimensions: N rows of a batch, C features, G = 4 C gates; T steps, F features, H heads, D features of a head.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from altered import AlteredDevice
from host_card import HostCard
from shapes import SHAPES, write_shape

from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator.emulator import Schedule, scheduled
from porestream.kernels.network.passes import NetworkPasses
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.files.bundle import load_bundle
from porestream.models.networks.attention import TorchPasses, angles
from porestream.server.start.devices import network_passes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 4), (5, 32), (3, 1024), (70, 36)]


def made_up(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and cells, some of which saturate."""
    made = torch.Generator().manual_seed(rows)
    gates_NG = torch.randn(rows, 4 * width, generator=made) * 3
    gates_NG.flatten()[::7] *= 30
    return gates_NG.to(dtype), torch.randn(rows, width, generator=made) * 2


def expected(gates_NG: torch.Tensor, cells_NC: torch.Tensor, is_hard: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells and hidden states, float64."""
    i, f, g, o = gates_NG.double().chunk(4, 1)
    if is_hard:
        i, f, o = ((0.2 * gate + 0.5).clamp(0, 1) for gate in (i, f, o))
        g = g.clamp(-1, 1)
    else:
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cells_NC = f * cells_NC.double() + i * g
    return cells_NC, o * cells_NC.tanh()


def computed(
    device: EmulatedDevice, gates_NG: torch.Tensor, cells_NC: torch.Tensor, is_hard: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells and hidden states, by the kernel."""
    cells_NC, hidden_NC = cells_NC.clone(), torch.full_like(cells_NC, torch.nan, dtype=gates_NG.dtype)
    NetworkPasses(device).next_states(gates_NG, cells_NC, hidden_NC, is_hard)
    return cells_NC, hidden_NC


def is_right(device: EmulatedDevice, rows: int, width: int, dtype: torch.dtype, is_hard: bool) -> bool:
    """Whether a kernel's states are the formulas', rounded once."""
    gates_NG, cells_NC = made_up(rows, width, dtype)
    their_cells_NC, their_hidden_NC = expected(gates_NG, cells_NC, is_hard)
    our_cells_NC, our_hidden_NC = computed(device, gates_NG, cells_NC, is_hard)
    half_a_unit = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    return torch.allclose(our_cells_NC.double(), their_cells_NC, rtol=1e-6, atol=1e-6) and torch.allclose(
        our_hidden_NC.double(), their_hidden_NC, rtol=1.01 * half_a_unit, atol=1e-6
    )


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_are_those_of_the_formulas(dtype: torch.dtype, is_hard: bool) -> None:
    for rows, width in SIZES:
        for schedule in Schedule:
            with scheduled(schedule):
                assert is_right(EmulatedDevice(), rows, width, dtype, is_hard)


DEFECTS = {
    "a cell that forgets nothing": ("gate(number(f)) * *cell", "*cell"),
    "gates in another order": ("i = of_row[0], f = of_row[quarters]", "f = of_row[0], i = of_row[quarters]"),
    "an output without tanh": ("tanh32(*cell), hidden", "*cell, hidden"),
    "a candidate of one feature for another": ("next(i.z, f.z, g.z", "next(i.z, f.z, g.y"),
    "a wrong slope": ("x * 0.2f", "x * 0.25f"),
    "a candidate that isn't cut": ("between(-1.0f, x, 1.0f)", "x"),
    "rows that lie closer": ("row * 4 * quarters", "row * 3 * quarters"),
    "a cell that isn't kept": ("cells[place] = cell;", ""),
    "a rounding that cuts off": ("bits + 0x7fff + (bits >> 16 & 1)", "bits"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_seen(defect: str) -> None:
    passage, by = DEFECTS[defect]
    device = AlteredDevice(passage=passage, by=by)
    assert not is_right(device, 5, 32, torch.bfloat16, is_hard=True)


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_a_number_stays_so(dtype: torch.dtype, is_hard: bool) -> None:
    gates_NG, cells_NC = made_up(5, 32, dtype)
    _, good_NC = computed(EmulatedDevice(), gates_NG, cells_NC, is_hard)
    for gate in range(4):
        bad_NG = gates_NG.clone()
        bad_NG[2, 32 * gate + 7] = torch.nan
        _, found_NC = computed(EmulatedDevice(), bad_NG, cells_NC, is_hard)
        assert found_NC.isnan().nonzero().tolist() == [[2, 7]]
        good = ~found_NC.isnan()
        assert torch.equal(found_NC[good], good_NC[good])


def test_tensors_that_do_not_fit_are_refused() -> None:
    passes, (gates_NG, cells_NC) = NetworkPasses(EmulatedDevice()), made_up(5, 32, torch.float16)
    hidden_NC = torch.empty(5, 32, dtype=torch.float16)
    for tensors in (
        (gates_NG[:4], cells_NC, hidden_NC),
        (gates_NG, cells_NC.half(), hidden_NC),
        (gates_NG, cells_NC, hidden_NC.float()),
        (gates_NG, cells_NC, torch.empty(5, 64, dtype=torch.float16)[:, ::2]),
        (gates_NG[:, :24], cells_NC[:, :6], hidden_NC[:, :6]),
        (gates_NG.double(), cells_NC, hidden_NC.double()),
    ):
        with pytest.raises(ValueError, match=r"contiguous|the kernels compute"):
            passes.next_states(*tensors, is_hard=True)


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


HALF_A_UNIT = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def are_near(ours: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether they are the exact results, rounded once."""
    return torch.allclose(ours.double(), exact, rtol=1.01 * HALF_A_UNIT[ours.dtype], atol=1e-6)


def is_turned(device: EmulatedDevice, dtype: torch.dtype, heads: int, features: int) -> bool:
    """Whether `rotated` gives torch's bits, which does the same float32 operations."""
    qkv_NTF = made(2, 7, 3 * heads * features, dtype=dtype)
    turns = angles(7, features, 10_000.0, qkv_NTF.device)
    theirs = TorchPasses().rotated(qkv_NTF.clone(), *turns, heads)
    ours = NetworkPasses(device).rotated(qkv_NTF, *turns, heads)
    return all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))


def is_normed(device: EmulatedDevice, dtype: torch.dtype, width: int) -> bool:
    added_NTF, x_NTF, weight_F = (made(3, 5, width, dtype=dtype, seed=seed) for seed in (1, 2, 3))
    weight_F = weight_F[0, 0].clone()
    sums_NTF = added_NTF.double() + 2.5 * x_NTF.double()
    exact_NTF = weight_F * sums_NTF / (sums_NTF.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return are_near(NetworkPasses(device).normed(added_NTF, x_NTF, weight_F, 2.5), exact_NTF)


def is_gated(device: EmulatedDevice, dtype: torch.dtype, hidden: int) -> bool:
    both_NTE = 4 * made(3, 5, 2 * hidden, dtype=dtype)
    value_NTF, gate_NTF = both_NTE.double().chunk(2, -1)
    return are_near(NetworkPasses(device).gated(both_NTE), gate_NTF * gate_NTF.sigmoid() * value_NTF)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_passes_of_transformers_are_the_formulas(dtype: torch.dtype) -> None:
    for schedule in Schedule:
        with scheduled(schedule):
            assert is_turned(EmulatedDevice(), dtype, 3, 16)
            assert is_turned(EmulatedDevice(), dtype, 8, 64)
            assert all(is_normed(EmulatedDevice(), dtype, width) for width in (128, 512, 2048))
            assert all(is_gated(EmulatedDevice(), dtype, hidden) for hidden in (4, 36, 2048))


TRANSFORMER_DEFECTS = {
    "a sine with the wrong sign": ("a * cosine - b * sine", "a * cosine + b * sine"),
    "a turned coordinate turned again": ("b = a * sine + b", "b = first * sine + b"),
    "angles of another step": ("step % steps * halves", "0 * halves"),
    "values turned as well": ("head / (2 * heads)", "head / (3 * heads)"),
    "queries that lie elsewhere": ("(step * 3 * heads", "(step * 2 * heads"),
    "alpha times the other part": ("a.x + alpha * b.x", "alpha * a.x + b.x"),
    "half of a row's sum": ("other = LANES / 2", "other = LANES / 4"),
    "no mean": ("square / WIDTH", "square"),
    "another epsilon": ("EPSILON = 1e-5f", "EPSILON = 1e-2f"),
    "one weight for another": ("scale * w.y", "scale * w.x"),
    "gate and value exchanged": ("value = numbers(of_row[0]), gate", "gate = numbers(of_row[0]), value"),
    "a gate without its factor": ("return x * sigmoid(x)", "return sigmoid(x)"),
}


@pytest.mark.parametrize("defect", TRANSFORMER_DEFECTS)
def test_defects_in_transformers_are_seen(defect: str) -> None:
    passage, by = TRANSFORMER_DEFECTS[defect]
    device = AlteredDevice(passage=passage, by=by)
    dtype = torch.float32
    assert not (is_turned(device, dtype, 3, 16) and is_normed(device, dtype, 256) and is_gated(device, dtype, 36))


def test_a_transformers_tensors_that_do_not_fit_are_refused() -> None:
    passes, turns = NetworkPasses(EmulatedDevice()), angles(7, 16, 10_000.0, torch.device("cpu"))
    with pytest.raises(ValueError, match="cosines must be contiguous"):
        passes.rotated(made(2, 6, 3 * 32), *turns, 2)
    with pytest.raises(ValueError, match="the weight must be"):
        passes.normed(made(2, 128), made(2, 128), made(64), 1.0)
    with pytest.raises(ValueError, match="what is added must be"):
        passes.normed(made(2, 128), made(2, 128).half(), made(128).half(), 1.0)
    with pytest.raises(ValueError, match="values and gates must be contiguous"):
        passes.gated(made(16, 4).t())
    with pytest.raises(ValueError, match="the kernels compute"):
        passes.gated(made(4, 16).double())
    assert not NetworkPasses.fits_transformer(512, 8, 2046)
    assert not NetworkPasses.fits_transformer(480, 8, 2048)
    assert not NetworkPasses.fits_transformer(512, 128, 2048)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", ["tiny v6", "wide enough v5"])
def test_a_cards_network_takes_them(tmp_path: Path, shape: str, precision: str) -> None:
    if shape not in SHAPES:
        SHAPES[shape] = replace(SHAPES["tiny sup v5"], features=128, heads=4)
    bundle = load_bundle(write_shape(shape, tmp_path / "model"))
    samples = bundle.config.chunk_size
    passes = network_passes(EmulatedDevice(), bundle.config)
    assert passes is not None
    by_torch = CudaRunner(bundle, [samples], precision, HostCard(), 2)
    ours = CudaRunner(bundle, [samples], precision, HostCard(), 2, passes=passes)
    assert ours.device_class == f"{by_torch.device_class}-gpu-passes"
    chunks = [one.numpy() for one in made(2, samples)]
    found, theirs = (torch.from_numpy(runner(chunks, samples)) for runner in (ours, by_torch))
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4 if precision == "fp32" else 0.2)
    assert not torch.equal(found, theirs)  # other bits: the passes were the kernels'


def test_other_networks_have_none(tmp_path: Path) -> None:
    config = load_bundle(write_shape("tiny v4.3", tmp_path / "model")).config
    assert network_passes(EmulatedDevice(), config) is None
