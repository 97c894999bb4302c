"""The kernel of LSTMs' gates, emulated: against torch's formulas, alone and in a network on a card.

Dimensions: N rows of a batch, C features, G = 4 C gates.
"""

from pathlib import Path

import pytest
import torch
from altered import AlteredDevice
from host_card import HostCard
from shapes import write_shape

from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator.emulator import Schedule, scheduled
from porestream.kernels.recurrence.gates import LstmGates
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.files.bundle import load_bundle
from porestream.server.start.devices import lstm_gates

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
    LstmGates(device)(gates_NG, cells_NC, hidden_NC, is_hard)
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
    gates, (gates_NG, cells_NC) = LstmGates(EmulatedDevice()), made_up(5, 32, torch.float16)
    hidden_NC = torch.empty(5, 32, dtype=torch.float16)
    for tensors in (
        (gates_NG[:4], cells_NC, hidden_NC),
        (gates_NG, cells_NC.half(), hidden_NC),
        (gates_NG, cells_NC, hidden_NC.float()),
        (gates_NG, cells_NC, torch.empty(5, 64, dtype=torch.float16)[:, ::2]),
        (gates_NG[:, :24], cells_NC[:, :6], hidden_NC[:, :6]),
        (gates_NG.double(), cells_NC, hidden_NC.double()),
    ):
        with pytest.raises(ValueError, match=r"contiguous|widths of 4 n"):
            gates(*tensors, is_hard=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cards_network_takes_them(tmp_path: Path, precision: str) -> None:
    bundle = load_bundle(write_shape("tiny v6", tmp_path / "model"))
    gates = lstm_gates(EmulatedDevice(), bundle.config)
    assert gates is not None
    by_torch = CudaRunner(bundle, [1200], precision, HostCard(), 16)
    ours = CudaRunner(bundle, [1200], precision, HostCard(), 16, next_states=gates)
    assert ours.device_class == f"{by_torch.device_class}-gpu-gates"
    made = torch.Generator().manual_seed(3)
    chunks = [torch.randn(1200, generator=made).numpy() for _ in range(16)]
    found, theirs = (torch.from_numpy(runner(chunks, 1200)) for runner in (ours, by_torch))
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4 if precision == "fp32" else 0.1)
    assert not torch.equal(found, theirs)  # other bits: the gates were the kernel's


def test_other_networks_have_none(tmp_path: Path) -> None:
    config = load_bundle(write_shape("tiny v4.3", tmp_path / "model")).config
    assert lstm_gates(EmulatedDevice(), config) is None
