"""The compiled recurrence against the formulas in float64, for each processor that it can be compiled for.

Dimensions: N rows of a batch, T time steps, C features, K inner features, G = 4 C gates.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_network import low_rank_lstm

from porestream.models.call import host
from porestream.models.call.cpu_runner import cpu_precision
from porestream.models.call.network import PRECISIONS
from porestream.models.networks import recurrence
from porestream.models.networks.flstm import LowRankLstms
from porestream.models.networks.recurrence import AVX2, AVX512, AVX512_BF16, Recurrence, Target, target_of
from porestream.models.networks.recurrent import LowRankRecurrent

ROWS = 16
_NEEDS = {"avx2": AVX2, "avx512": AVX512, "avx512, bf16": AVX512_BF16}
_FLAGS = {AVX2: ("avx2", "fma3"), AVX512: ("avx512_f",), AVX512_BF16: ("avx512_bf16",)}


@pytest.fixture(params=list(_NEEDS))
def target(request: pytest.FixtureRequest) -> Target:
    """A processor that this one can stand for."""
    found, can = _NEEDS[request.param], torch.cpu.get_capabilities()
    if not all(can.get(flag) for flag in _FLAGS[found]):
        pytest.skip(f"this processor has no {request.param}")
    return found


def weights(width: int, inner: int, seed: int) -> list[torch.Tensor]:
    """What `Recurrence` takes, in float32, so large that states vary without saturating."""
    made = torch.Generator().manual_seed(seed)
    ins = inner or width
    gates = [torch.randn(4 * width, ins, generator=made) * gain / math.sqrt(ins) for gain in (2.0, 1.0)]
    bias = torch.randn(4 * width, generator=made) * 0.3
    if not inner:
        return [*gates, bias]
    return [*gates, bias, *(torch.randn(inner, width, generator=made) / math.sqrt(width) for _ in range(2))]


def expected(tensors: list[torch.Tensor], x_TNC: torch.Tensor, reverse: bool, is_hard: bool = False) -> torch.Tensor:
    """Hidden states in float64, after the formulas."""
    up_ih, up_hh, bias, *down = (tensor.double().numpy() for tensor in tensors)
    down = down or [np.eye(up_ih.shape[1])] * 2
    return torch.from_numpy(low_rank_lstm(x_TNC.double().numpy(), down, (up_ih, up_hh), bias, reverse, is_hard))


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("width", "inner"), [(16, 0), (96, 0), (48, 8), (64, 64), (160, 100)])
def test_states_are_those_of_an_lstm(target: Target, width: int, inner: int, reverse: bool, is_hard: bool) -> None:
    tensors = [tensor.to(target.dtype).float() for tensor in weights(width, inner, seed=width)]
    x_TNC = torch.randn(40, ROWS, width, generator=torch.Generator().manual_seed(1)).to(target.dtype)
    states_TNC = expected(tensors, x_TNC, reverse, is_hard)
    assert states_TNC.std() > 0.2
    computed_TNC = Recurrence(target, *tensors, is_hard=is_hard)(x_TNC, reverse)
    torch.testing.assert_close(
        computed_TNC.double(), states_TNC, rtol=0, atol=5e-6 if target.dtype == torch.float32 else 0.03
    )


@pytest.mark.parametrize(("rows", "steps", "inner"), [(16, 1, 0), (16, 2, 8), (8, 1, 8), (32, 3, 0), (4, 5, 16)])
def test_few_steps_and_other_numbers_of_rows(target: Target, rows: int, steps: int, inner: int) -> None:
    tensors = [tensor.to(target.dtype).float() for tensor in weights(32, inner, seed=3)]
    x_TNC = torch.randn(steps, rows, 32, generator=torch.Generator().manual_seed(1)).to(target.dtype)
    computed_TNC = Recurrence(target, *tensors)(x_TNC, True).double()
    atol = 5e-6 if target.dtype == torch.float32 else 0.03
    torch.testing.assert_close(computed_TNC, expected(tensors, x_TNC, True), rtol=0, atol=atol)


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("inner", [0, 8])
def test_what_is_not_a_number_stays_so(target: Target, inner: int, is_hard: bool) -> None:
    """A bad read must fail, not get made-up bases."""
    recurrence = Recurrence(target, *weights(32, inner, seed=8), is_hard=is_hard)
    x_TNC = torch.zeros(9, ROWS, 32, dtype=target.dtype)
    x_TNC[4, 5, 7] = math.nan
    states_TNC = recurrence(x_TNC, False)
    assert states_TNC[4:, 5].isnan().all()
    states_TNC[4:, 5] = 0
    assert states_TNC.isfinite().all()


def test_threads_share_it(target: Target) -> None:
    recurrence = Recurrence(target, *weights(32, 8, seed=9))
    batches = [torch.randn(50, ROWS, 32, generator=torch.Generator().manual_seed(n)).to(target.dtype) for n in range(8)]
    alone = [recurrence(batch, False) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda batch: recurrence(batch, False), batches)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    "x_TNC",
    [
        torch.zeros(5, ROWS, 16),
        torch.zeros(5, 6, 32),
        torch.zeros(5, ROWS, 32, dtype=torch.float64),
        torch.zeros(5, 32, ROWS).transpose(1, 2),
        torch.zeros(0, ROWS, 32),
        torch.zeros(5, ROWS, 32, device="meta"),
    ],
)
def test_other_batches_are_refused(x_TNC: torch.Tensor) -> None:
    if target_of(torch.float32) is None:
        pytest.skip("nothing is compiled for this processor")
    with pytest.raises(ValueError, match="compiled for C, dtype"):
        Recurrence(AVX2, *weights(32, 0, seed=1))(x_TNC, False)


@pytest.mark.parametrize(
    ("vendor", "can", "fp32", "bf16", "auto"),
    [
        ("GenuineIntel", {"avx2": True, "fma3": True}, AVX2, None, "fp32"),
        ("GenuineIntel", {"avx512_f": True, "avx2": True, "fma3": True}, AVX512, None, "fp32"),
        ("GenuineIntel", {"avx512_f": True, "avx512_bf16": True}, AVX512, AVX512_BF16, "fp32"),
        ("GenuineIntel", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, AVX512, None, "bf16"),
        ("AuthenticAMD", {"avx512_f": True, "avx512_bf16": True}, AVX512, AVX512_BF16, "bf16"),
        ("AuthenticAMD", {"avx2": True}, None, None, "fp32"),
        ("", {"bf16": True}, None, None, "bf16"),  # ARM
    ],
)
def test_what_each_processor_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    vendor: str,
    can: dict[str, bool],
    fp32: Target | None,
    bf16: Target | None,
    auto: str,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert (target_of.__wrapped__(torch.float32), target_of.__wrapped__(torch.bfloat16)) == (fp32, bf16)
    assert cpu_precision("auto") == auto


def test_large_gates_saturate(target: Target) -> None:
    """Exponents are limited: neither infinite nor undefined."""
    tensors = [tensor * 1e4 for tensor in weights(32, 0, seed=4)]
    x_TNC = torch.ones(20, ROWS, 32, dtype=target.dtype)
    states_TNC = Recurrence(target, *tensors)(x_TNC, False)
    assert states_TNC.isfinite().all()
    assert states_TNC.abs().max() <= 1


@pytest.mark.parametrize("inner", [0, 8])
def test_no_row_depends_on_its_place_or_company(target: Target, inner: int) -> None:
    recurrence = Recurrence(target, *weights(32, inner, seed=5))
    x_TNC = torch.randn(30, ROWS, 32, generator=torch.Generator().manual_seed(2)).to(target.dtype)
    expected_TC = recurrence(x_TNC[:, :1].expand(-1, ROWS, -1).contiguous(), False)[:, 3]
    company_TNC = x_TNC.clone()
    company_TNC[:, 1::4], company_TNC[:, 2::4] = math.nan, 1e4
    for row in (0, 5, ROWS - 1):
        moved_TNC = company_TNC.clone()
        moved_TNC[:, row] = x_TNC[:, 0]
        assert torch.equal(recurrence(moved_TNC, False)[:, row], expected_TC)


def test_sizes_that_do_not_fit_are_left_to_torch() -> None:
    assert Recurrence.fits(AVX512, 96)
    assert not Recurrence.fits(AVX512, 24)
    assert Recurrence.fits(AVX2, 24)


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_computes_the_same(precision: str, is_hard: bool) -> None:
    """What GPUs run, and processors that nothing is compiled for."""
    shape, dtype = LowRankLstms(32, 8, (True, False), is_hard), PRECISIONS[precision]
    layers, tensors = LowRankRecurrent(shape), weights(32, 8, seed=6)
    x_NCT = torch.randn(ROWS, 32, 45, generator=torch.Generator().manual_seed(7)).to(dtype)
    with torch.inference_mode():
        for layer in layers:
            for name, tensor in zip(("up_weight_ih", "up_weight_hh", "up_bias_hh"), tensors, strict=False):
                getattr(layer, name).copy_(tensor)
            layer.up_bias_ih.fill_(0.25)
            layer.dn_weight_ih.copy_(tensors[3])
            layer.dn_weight_hh.copy_(tensors[4])
        tensors[2] = tensors[2] + 0.25
        layers.to(dtype)
        by_torch_TNC = layers(x_NCT)
        states_TNC = x_NCT.permute(2, 0, 1)
        for reverse in shape.reverse:
            states_TNC = expected(tensors, states_TNC, reverse, is_hard)
        atol = 1e-5 if precision == "fp32" else 0.06
        torch.testing.assert_close(by_torch_TNC.double(), states_TNC, rtol=0, atol=atol)
        x_NCT[1::4], x_NCT[2::4] = math.nan, 1e4
        assert torch.equal(layers(x_NCT)[:, 0], by_torch_TNC[:, 0])
        x_NCT[1::4], x_NCT[2::4] = 0, 0
        states_TN = layers(x_NCT)[:, 0].double()
        if layers.compile_for_cpu():
            torch.testing.assert_close(layers(x_NCT)[:, 0].double(), states_TN, rtol=0, atol=atol)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("inner", [0, 8])
def test_slabs_change_no_bit(target: Target, inner: int, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many steps' sums are started at once: one, some, with a rest, or more than there are."""
    layer = Recurrence(target, *weights(64, inner, seed=8))
    x_TNC = torch.randn(23, 8, 64, generator=torch.Generator().manual_seed(9)).to(target.dtype)
    step_by_step = layer(x_TNC, reverse)
    monkeypatch.setattr(recurrence, "_CACHED_BYTES", 0)
    for steps in (1, 2, 5, 23, 100):
        monkeypatch.setattr(recurrence, "_SLAB_BYTES", steps * 8 * 4 * 64 * 4)
        assert layer._slab_steps(23, 8) == min(steps, 23)
        assert torch.equal(layer(x_TNC, reverse), step_by_step)
