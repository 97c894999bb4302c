"""The compiled recurrence against torch's LSTM in float64, for each processor that it can be compiled for.

Dimensions: N rows of a batch, T time steps, C features, K inner features, G = 4 C gates.
"""

import math

import pytest
import torch

from porestream.models.call.network import PRECISIONS
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


def expected(tensors: list[torch.Tensor], x_TNC: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Hidden states of torch's LSTM in float64; a low-rank one has the product of its matrices."""
    up_ih, up_hh, bias, *down = (tensor.double() for tensor in tensors)
    lstm = torch.nn.LSTM(len(bias) // 4, len(bias) // 4).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(up_ih @ down[0] if down else up_ih)
        lstm.weight_hh_l0.copy_(up_hh @ down[1] if down else up_hh)
        lstm.bias_ih_l0.copy_(bias)
        lstm.bias_hh_l0.zero_()
        x_TNC = x_TNC.double()
        return lstm(x_TNC.flip(0))[0].flip(0) if reverse else lstm(x_TNC)[0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("width", "inner"), [(16, 0), (96, 0), (48, 8), (64, 64), (160, 100)])
def test_states_are_those_of_an_lstm(target: Target, width: int, inner: int, reverse: bool) -> None:
    tensors = [tensor.to(target.dtype).float() for tensor in weights(width, inner, seed=width)]
    x_TNC = torch.randn(40, ROWS, width, generator=torch.Generator().manual_seed(1)).to(target.dtype)
    states_TNC = expected(tensors, x_TNC, reverse)
    assert states_TNC.std() > 0.2
    computed_TNC = Recurrence(target, ROWS, *tensors)(x_TNC, reverse)
    torch.testing.assert_close(
        computed_TNC.double(), states_TNC, rtol=0, atol=2e-6 if target.dtype == torch.float32 else 0.03
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_a_few_steps(target: Target, steps: int) -> None:
    tensors = [tensor.to(target.dtype).float() for tensor in weights(32, 0, seed=3)]
    x_TNC = torch.randn(steps, ROWS, 32, generator=torch.Generator().manual_seed(1)).to(target.dtype)
    computed_TNC = Recurrence(target, ROWS, *tensors)(x_TNC, True).double()
    torch.testing.assert_close(computed_TNC, expected(tensors, x_TNC, True), rtol=0, atol=0.01)


def test_large_gates_saturate(target: Target) -> None:
    """Exponents are limited: neither infinite nor undefined."""
    tensors = [tensor * 1e4 for tensor in weights(32, 0, seed=4)]
    x_TNC = torch.ones(20, ROWS, 32, dtype=target.dtype)
    states_TNC = Recurrence(target, ROWS, *tensors)(x_TNC, False)
    assert states_TNC.isfinite().all()
    assert states_TNC.abs().max() <= 1


@pytest.mark.parametrize("inner", [0, 8])
def test_no_row_depends_on_its_place_or_company(target: Target, inner: int) -> None:
    recurrence = Recurrence(target, ROWS, *weights(32, inner, seed=5))
    x_TNC = torch.randn(30, ROWS, 32, generator=torch.Generator().manual_seed(2)).to(target.dtype)
    expected_TC = recurrence(x_TNC[:, :1].expand(-1, ROWS, -1).contiguous(), False)[:, 3]
    company_TNC = x_TNC.clone()
    company_TNC[:, 1::4], company_TNC[:, 2::4] = math.nan, 1e4
    for row in (0, 5, ROWS - 1):
        moved_TNC = company_TNC.clone()
        moved_TNC[:, row] = x_TNC[:, 0]
        assert torch.equal(recurrence(moved_TNC, False)[:, row], expected_TC)


def test_sizes_that_do_not_fit_are_left_to_torch() -> None:
    assert Recurrence.fits(AVX512, 16, 96)
    assert not Recurrence.fits(AVX512, 16, 24)
    assert Recurrence.fits(AVX2, 16, 24)
    assert not Recurrence.fits(AVX512, 6, 96)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_computes_the_same(precision: str) -> None:
    """What GPUs run, and processors that nothing is compiled for."""
    shape, dtype = LowRankLstms(32, 8, (True, False)), PRECISIONS[precision]
    layers, tensors = LowRankRecurrent(shape), weights(32, 8, seed=6)
    x_NCT = torch.randn(ROWS, 32, 45, generator=torch.Generator().manual_seed(7)).to(dtype)
    with torch.inference_mode():
        for layer in layers:
            for name, tensor in zip(("up_weight_ih", "up_weight_hh", "up_bias_ih"), tensors, strict=False):
                getattr(layer, name).copy_(tensor)
            layer.dn_weight_ih.copy_(tensors[3])
            layer.dn_weight_hh.copy_(tensors[4])
        layers.to(dtype)
        by_torch_TNC = layers(x_NCT).double()
        states_TNC = x_NCT.permute(2, 0, 1)
        for reverse in shape.reverse:
            states_TNC = expected(tensors, states_TNC, reverse)
        atol = 1e-5 if precision == "fp32" else 0.05
        torch.testing.assert_close(by_torch_TNC, states_TNC, rtol=0, atol=atol)
        if target_of(dtype) and layers.compile_for_cpu(ROWS):
            torch.testing.assert_close(layers(x_NCT).double(), states_TNC, rtol=0, atol=atol)
