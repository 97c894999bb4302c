"""The CRF's kernels on the emulator against the CPU's decoder: the same bases and moves, qualities within 1.

Dimensions: T time steps, N rows of a batch, C transition scores, S states.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pod5
import pytest
import torch
from altered import AlteredDevice
from decode import made_up_scores
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from porestream.kernels.decode.crf import Calls, CrfDecoder, decode_bytes, scan_block
from porestream.kernels.device import EmulatedDevice
from porestream.kernels.emulator import Schedule, scheduled
from porestream.kernels.emulator.sanitize import FOUND, Kind, SanitizerMissingError, find_runtime, run_sanitized
from porestream.kernels.source import read_source
from porestream.models.call.decode import Decoded, Decoder, DecodeSettings, NonFiniteScores
from porestream.models.call.runner import decoded_rows

F32 = npt.NDArray[np.float32]
INFINITY = float("inf")
DEVICE = EmulatedDevice()


def crf_decoder(state_len: int, settings: DecodeSettings, device: EmulatedDevice = DEVICE) -> CrfDecoder:
    return CrfDecoder(
        device,
        state_len,
        settings.stay_score,
        settings.quality_scale,
        settings.quality_bias,
        settings.beam_width,
        settings.beam_cut,
    )


@cache
def cpu_decoder(state_len: int, settings: DecodeSettings) -> Decoder:
    return Decoder(state_len, settings)


def on_the_cpu(scores_TNC: F32, state_len: int, settings: DecodeSettings) -> list[Decoded | None]:
    """Of each row what the CPU calls; None where it refuses it for scores that are not finite."""
    decoder, called = cpu_decoder(state_len, settings), list[Decoded | None]()
    for row in range(scores_TNC.shape[1]):
        try:
            called.append(decoder(scores_TNC, row))
        except NonFiniteScores:
            called.append(None)
    return called


def rows_of(calls: Any) -> list[Decoded | None]:
    found = decoded_rows(calls, len(calls[3]))
    return [None if isinstance(row, ValueError) else row for row in found]


def agree(ours: Decoded | None, theirs: Decoded | None) -> bool:
    """The same bases and moves, qualities within 1."""
    if ours is None or theirs is None:
        return ours is theirs
    same = np.array_equal(ours.bases_B, theirs.bases_B) and np.array_equal(ours.moves_T, theirs.moves_T)
    return same and bool(np.abs(ours.qualities_B.astype(int) - theirs.qualities_B).max() <= 1)


def assert_agree(found: list[Decoded | None], expected: list[Decoded | None]) -> None:
    assert [agree(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)


def check(scores_TNC: F32, state_len: int, settings: DecodeSettings | None = None) -> list[Decoded | None]:
    """Decodes in every schedule: all must give the same bytes, and what the CPU gives, which is returned."""
    settings = settings or DecodeSettings()
    decoder, expected = crf_decoder(state_len, settings), on_the_cpu(scores_TNC, state_len, settings)
    qualities = set()
    for schedule in Schedule:
        with scheduled(schedule, seed=len(scores_TNC)):
            found = rows_of(decoder(scores_TNC))
        assert_agree(found, expected)
        qualities.add(b"".join(row.qualities_B.tobytes() for row in found if row is not None))
    assert len(qualities) == 1
    return expected


def few_values(T: int, N: int, state_len: int, values: tuple[float, ...], seed: int = 1) -> F32:
    """Scores that are equal in many places: nearly all that is compared ties, or differs in its last bit."""
    C = 4 ** (state_len + 1)
    return np.random.default_rng(seed).choice(np.array(values, np.float32), (T, N, C))


def one_transition_stands_out(T: int, N: int, state_len: int, extreme: float, seed: int = 0) -> F32:
    scores_TNC = np.full((T, N, 4 ** (state_len + 1)), -extreme, np.float32)
    places_TN = np.random.default_rng(seed).integers(0, scores_TNC.shape[2], (T, N))
    np.put_along_axis(scores_TNC, places_TN[..., None], np.float32(extreme), axis=2)
    return scores_TNC


# The same as the CPU's


@pytest.mark.parametrize("state_len", [1, 2, 3, 4, 5])
def test_scores_as_a_network_makes_them(state_len: int) -> None:
    T, N = 70, 5  # more than a block's rows of each kernel
    called = check(made_up_scores(T, N, state_len), state_len)
    assert sum(len(row.bases_B) for row in called if row is not None) > T * N // 4


@pytest.mark.parametrize("state_len", [1, 2, 3, 4, 5])
def test_halves_give_what_the_same_values_do(state_len: int) -> None:
    """To the last bit, qualities too; and what is not finite in halves is refused."""
    halves_TNC = made_up_scores(33, 5, state_len).astype(np.float16)
    halves_TNC[3, 1, 2], halves_TNC[7, 3, 5] = np.inf, np.nan
    decoder = crf_decoder(state_len, DecodeSettings())
    found, expected = decoder(halves_TNC), decoder(halves_TNC.astype(np.float32))
    assert found.counts_N.tolist() == expected.counts_N.tolist()
    assert [count < 0 for count in found.counts_N] == [False, True, False, True, False]
    for row, count in enumerate(found.counts_N.tolist()):
        for ours, theirs in zip(found[:3], expected[:3], strict=True):
            assert ours[row, : max(count, 0)].tobytes() == theirs[row, : max(count, 0)].tobytes()
    check(halves_TNC.astype(np.float32), state_len)


@pytest.mark.parametrize(("is_tanh", "scale", "limit"), [(True, 5.0, INFINITY), (False, 1.0, 5.0), (False, 2.5, 40.0)])
def test_scores_are_finished_in_one_pass(is_tanh: bool, scale: float, limit: float) -> None:
    exact = torch.linspace(-9, 9, 4 * 501).reshape(1, 501, 4).half()
    exact[0, 0, :3] = torch.tensor([INFINITY, -INFINITY, math.nan])
    found = exact.clone()
    crf_decoder(1, DecodeSettings()).finish_scores(found, is_tanh, scale, limit)
    x = exact.double()
    expected = ((x.tanh() if is_tanh else x) * scale).clamp(-limit, limit)
    torch.testing.assert_close(found.double(), expected, rtol=2**-11, atol=1e-6, equal_nan=True)


def test_what_is_no_half_is_not_finished() -> None:
    decoder = crf_decoder(1, DecodeSettings())
    for odd in (torch.zeros(4), torch.zeros(3).half(), torch.zeros(0).half(), torch.zeros(8).half()[::2]):
        with pytest.raises(ValueError, match=r"scores must be contiguous torch\.float16, in fours"):
            decoder.finish_scores(odd, True, 1.0, 1.0)


@pytest.mark.parametrize("state_len", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("spread", [0.3, 2.0, 20.0])
def test_random_scores(state_len: int, spread: float) -> None:
    rng = np.random.default_rng(state_len)
    check(rng.normal(-0.5, spread, (25, 3, 4 ** (state_len + 1))).astype(np.float32), state_len)


@pytest.mark.parametrize(("state_len", "N"), [(1, 33), (2, 33), (3, 33), (4, 33), (5, 9), (3, 1), (4, 1), (5, 1)])
@pytest.mark.parametrize("T", [1, 2, 33])
def test_batches_of_any_size(state_len: int, N: int, T: int) -> None:
    check(made_up_scores(T, N, state_len, seed=T), state_len)


@pytest.mark.parametrize("state_len", [1, 3, 4, 5])
@pytest.mark.parametrize("values", [(0.0,), (-5.0,), (5.0,), (-1.0, 1.0), (-5.0, 0.0, 5.0), (1e-3, -1e-3)])
def test_ties(state_len: int, values: tuple[float, ...]) -> None:
    for settings in (DecodeSettings(), DecodeSettings(stay_score=0.0, beam_width=5, beam_cut=INFINITY)):
        check(few_values(20, 2, state_len, values), state_len, settings)


@pytest.mark.parametrize("state_len", [1, 3, 5])
@pytest.mark.parametrize("extreme", [1e4, -1e4, 40.0])
@pytest.mark.parametrize("stay_score", [-10.0, 10.0])
def test_one_extreme_transition_at_a_step(state_len: int, extreme: float, stay_score: float) -> None:
    settings = DecodeSettings(stay_score=stay_score)
    check(one_transition_stands_out(20, 2, state_len, extreme), state_len, settings)


@pytest.mark.parametrize("state_len", [3, 4, 5])
@pytest.mark.parametrize("beam_width", [1, 2, 5, 31, 32])
@pytest.mark.parametrize("beam_cut", [1.0, 100.0, 1e9, INFINITY])
def test_beams(state_len: int, beam_width: int, beam_cut: float) -> None:
    check(made_up_scores(25, 2, state_len), state_len, DecodeSettings(beam_width=beam_width, beam_cut=beam_cut))


@pytest.mark.parametrize(("scale", "bias"), [(0.9, -0.3), (1.1, 2.0), (0.0, 7.4), (1.0, 60.0), (1.0, -60.0)])
def test_qualities_are_calibrated(scale: float, bias: float) -> None:
    called = check(made_up_scores(60, 2, 3), 3, DecodeSettings(quality_scale=scale, quality_bias=bias))
    qualities = np.concatenate([row.qualities_B for row in called if row is not None])
    if scale == 0.0 or abs(bias) == 60.0:
        assert np.unique(qualities).tolist() == [{7.4: 7, 60.0: 50, -60.0: 1}[bias]]
    else:
        assert len(np.unique(qualities)) > 5


@dataclass(frozen=True)
class Case:
    state_len: int
    settings: DecodeSettings
    schedule: Schedule
    scores_TNC: F32


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any batch: of random scores, of few different values, or of one extreme transition, some with bad values."""
    state_len, N = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 5, 33]))
    T = draw(st.integers(1, min(60, (600 if state_len == 5 else 1500) // N)))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["uniform", "few values", "extreme"]))
    if kind == "uniform":
        spread, shape = draw(st.floats(0, 1e4)), (T, N, 4 ** (state_len + 1))
        scores_TNC = np.random.default_rng(seed).uniform(-spread, spread, shape).astype(np.float32)
    elif kind == "few values":
        values = draw(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=3))
        scores_TNC = few_values(T, N, state_len, tuple(values), seed)
    else:
        scores_TNC = one_transition_stands_out(T, N, state_len, draw(st.sampled_from([-1e4, 5.0, 1e4])), seed)
    place = st.tuples(*(st.integers(0, size - 1) for size in scores_TNC.shape))
    for t, row, transition in draw(st.lists(place, max_size=2)):
        scores_TNC[t, row, transition] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    settings = DecodeSettings(
        stay_score=draw(st.floats(-10, 10)),
        quality_scale=draw(st.floats(0.5, 1.0)),
        quality_bias=draw(st.floats(-2, 2)),
        beam_width=draw(st.sampled_from([1, 2, 5, 31, 32])),
        beam_cut=draw(st.sampled_from([1.0, 1.5, 100.0, 1e9, INFINITY])),
    )
    return Case(state_len, settings, draw(st.sampled_from(Schedule)), scores_TNC)


@given(case=cases())
@hypothesis_settings(max_examples=60)
def test_any_scores(case: Case) -> None:
    with scheduled(case.schedule, seed=case.scores_TNC.shape[0]):
        found = rows_of(crf_decoder(case.state_len, case.settings)(case.scores_TNC))
    assert_agree(found, on_the_cpu(case.scores_TNC, case.state_len, case.settings))


@pytest.mark.parametrize("state_len", [1, 3, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_refused_and_others_are_unharmed(state_len: int, bad: float) -> None:
    scores_TNC = made_up_scores(12, 9, state_len)
    good = on_the_cpu(scores_TNC, state_len, DecodeSettings())
    scores_TNC[:, 4] = bad
    scores_TNC[0, 1, 0] = scores_TNC[11, 6, -1] = scores_TNC[5, 8, 7] = bad
    called = check(scores_TNC, state_len)
    for row in range(9):
        if row in (1, 4, 6, 8):
            assert called[row] is None
        else:
            assert agree(called[row], good[row])
    counts_N = crf_decoder(state_len, DecodeSettings())(scores_TNC).counts_N
    assert (counts_N < 0).tolist() == [row in (1, 4, 6, 8) for row in range(9)]
    assert counts_N.min() == -1


def test_real_scores(shared_data: Path) -> None:
    from porestream.models.call.basecaller import Basecaller
    from porestream.models.files.bundle import load_bundle

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    caller = Basecaller(load_bundle(shared_data / "models/dna_r9.4.1_e8.1_fast@v3.4"), "fp32")
    samples = 1998  # of stride 6
    with pod5.Reader(shared_data / "sarscov2_r941/reads.pod5") as reader:
        reads = [caller.prepare(read.signal) for read, _ in zip(reader.reads(), range(8), strict=False)]
    chunks = [read.chunk(1000, samples) for read in reads]
    scores_TNC = np.ascontiguousarray(caller.runner(chunks, samples)[:, : len(chunks)])
    torch.set_num_threads(before)
    called = check(scores_TNC, caller.bundle.config.state_len, caller.decode_settings)
    bases = [len(row.bases_B) for row in called if row is not None]
    assert len(bases) == len(chunks)
    assert min(bases) > samples // 20  # 450 bases a second at 4 kHz


# Arrays


def test_tensors_are_taken_as_they_are() -> None:
    scores_TNC = made_up_scores(20, 3, 3)
    tensor = torch.from_numpy(scores_TNC.copy())
    assert DEVICE.array(tensor).ctypes.data == tensor.data_ptr()
    decoder = crf_decoder(3, DecodeSettings())
    assert_agree(rows_of(decoder(tensor)), on_the_cpu(scores_TNC, 3, DecodeSettings()))
    assert np.array_equal(tensor.numpy(), scores_TNC)
    fixed_TNC = scores_TNC.copy()
    fixed_TNC.flags.writeable = False
    assert_agree(rows_of(decoder(fixed_TNC)), on_the_cpu(scores_TNC, 3, DecodeSettings()))


@pytest.mark.parametrize("made_by", ["numpy", "torch"])
def test_into_given_arrays(made_by: str) -> None:
    T, N = 20, 3
    scores_TNC = made_up_scores(T, N, 3)
    scores_TNC[3, 1, 5] = np.nan
    shapes = [((N, T), "uint8")] * 3 + [((N,), "int32")]
    given: list[Any] = [np.full(shape, 99, dtype) for shape, dtype in shapes]
    if made_by == "torch":
        given = [torch.from_numpy(array) for array in given]
    calls = crf_decoder(3, DecodeSettings())(scores_TNC, given)
    assert isinstance(calls, Calls)
    expected = on_the_cpu(scores_TNC, 3, DecodeSettings())
    for arrays in (calls, [np.asarray(array) for array in given]):
        assert_agree(rows_of(arrays), expected)
        letters_NT, qualities_NT, _, counts_N = arrays
        for row, count in enumerate(counts_N):  # no more is written than is called
            assert (letters_NT[row, max(count, 0) :] == 99).all()
            assert (qualities_NT[row, max(count, 0) :] == 99).all()


@pytest.mark.parametrize(("place", "shape", "dtype"), [(0, (2, 20), "uint8"), (2, (3, 20), "int8"), (3, (4,), "int32")])
def test_arrays_that_do_not_fit_are_refused(place: int, shape: tuple[int, ...], dtype: str) -> None:
    given = [*(np.zeros((3, 20), np.uint8) for _ in range(3)), np.zeros(3, np.int32)]
    given[place] = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match=r"a result array must be contiguous u?int\d+ \(3,"):
        crf_decoder(3, DecodeSettings())(made_up_scores(20, 3, 3), given)


@dataclass(frozen=True)
class CountingDevice(EmulatedDevice):
    """Writes down the bytes that are allocated."""

    sizes: list[int] = field(default_factory=list, compare=False)

    @property
    def xp(self) -> ModuleType:
        def counted(make: Any) -> Any:
            def allocate(*args: Any) -> Any:
                array = make(*args)
                self.sizes.append(array.nbytes)
                return array

            return allocate

        return cast(ModuleType, SimpleNamespace(empty=counted(np.empty), zeros=counted(np.zeros)))


@pytest.mark.parametrize(("state_len", "T", "N"), [(1, 3, 2), (3, 20, 5), (5, 4, 1)])
def test_memory_is_what_is_planned(state_len: int, T: int, N: int) -> None:
    device = CountingDevice()
    decoder = crf_decoder(state_len, DecodeSettings(), device)
    decoder(made_up_scores(T, N, state_len))
    assert sum(device.sizes) == decoder.device_bytes(T, N) == decode_bytes(4**state_len, T, N)


def test_memory_by_hand() -> None:
    backward, back, path, errors, calls, rows = 1001 * 64 * 4, 1000 * 32 * 2, 1000, 1000 * 4, 3 * 1000, 3 * 4
    assert decode_bytes(64, 1000, 16) == 16 * (backward + back + path + errors + calls + rows)


def test_a_block_of_the_scans_has_a_warp_at_least() -> None:
    assert [scan_block(4**state_len) for state_len in range(1, 6)] == [(32, 32), (32, 8), (32, 2), (64, 1), (256, 1)]


def test_what_the_kernels_do_not_have() -> None:
    for state_len in (0, 6):
        with pytest.raises(ValueError, match=f"the kernels support a state_len of 1 to 5, not {state_len}"):
            CrfDecoder(DEVICE, state_len, 2.0)
    for beam_width in (0, 33):
        with pytest.raises(ValueError, match=f"the kernels support a beam_width of 1 to 32, not {beam_width}"):
            CrfDecoder(DEVICE, 3, 2.0, beam_width=beam_width)


def test_wrong_arguments() -> None:
    decoder = crf_decoder(3, DecodeSettings())
    good = np.zeros((5, 2, 256), np.float32)
    for wrong in (good[0], good[None], np.zeros((5, 2, 64), np.float32), good[:0], good[:, :0], good[..., ::2]):
        with pytest.raises(ValueError, match=r"must be \(T, N, 256\) and not empty, not \("):
            decoder(wrong)
    strided = np.zeros((5, 4, 256), np.float32)[:, ::2]
    for wrong in (strided, good.astype(np.float64), good.view(np.int32)):
        with pytest.raises(ValueError, match="must be C-contiguous float32 or float16, not"):
            decoder(wrong)
    with pytest.raises(ValueError, match="must be C-contiguous float32 or float16, not"):
        decoder(torch.zeros(5, 4, 256)[:, ::2])
    with pytest.raises(ValueError, match="must be C-contiguous float32 or float16, not"):
        decoder(torch.zeros(5, 2, 256, dtype=torch.float64))


# Defects are seen


def passes(device: EmulatedDevice, state_len: int, settings: DecodeSettings, scores_TNC: F32) -> bool:
    """Whether an altered kernel gives what the CPU does in every schedule."""
    decoder, expected = crf_decoder(state_len, settings, device), on_the_cpu(scores_TNC, state_len, settings)
    for schedule in Schedule:
        with scheduled(schedule):
            found = rows_of(decoder(scores_TNC))
        if not all(map(agree, found, expected)):
            return False
    return True


SUM = "weights[0][k] * next.x + weights[1][k] * next.y + weights[2][k] * next.z + weights[3][k] * next.w"
TURNED_SUM = "weights[3][k] * next.w + weights[2][k] * next.z + weights[1][k] * next.y + weights[0][k] * next.x"
DEFECTS = {
    "no barrier after a backward step": ("crf_backward", "row_sync();", 1, ""),
    "no barrier after a forward step": ("crf_errors", "row_sync();", 1, ""),
    "no barrier after merging": ("crf_beam", "__syncwarp();", 3, ""),
    "no barrier after keeping": ("crf_beam", "__syncwarp();", 4, ""),
    "a sum in another order": ("crf_backward", SUM, 0, TURNED_SUM),
    "another floor": ("", "FLOOR = 1e-30f", 0, "FLOOR = 1e-20f"),
    "a tie between stay and move": ("crf_beam", "stayed > moved", 0, "stayed >= moved"),
    "one tied candidate too many": ("crf_beam", "lane) < width - more", 0, "lane) <= width - more"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_seen(defect: str) -> None:
    """Barriers that are missing, arithmetic in another order, ties broken otherwise: a result differs somewhere."""
    kernel, passage, place, by = DEFECTS[defect]
    device = AlteredDevice(kernel=kernel, passage=passage, place=place, by=by)
    narrow = DecodeSettings(stay_score=0.0, beam_width=5, beam_cut=INFINITY)
    state_len = 5 if "row_sync" in passage else 3  # of 64 states, a warp's shuffles hide it from all but sanitizers
    for settings in (DecodeSettings(), narrow):
        for scores_TNC in (
            made_up_scores(40, 5, state_len),
            few_values(20, 2, state_len, (-1.0, 1.0)),
            one_transition_stands_out(20, 2, state_len, 1e4),
        ):
            if not passes(device, state_len, settings, scores_TNC):
                return
    pytest.fail("nothing differs")


SCRIPT = """
import numpy as np
from porestream.kernels import source
from porestream.kernels.decode.crf import CrfDecoder
from porestream.kernels.device import EmulatedDevice

texts = source.read_source("crf.cu").split({cut!r})
source.read_source = lambda file: {cut!r}.join(texts[:{place}]) + "".join(texts[{place}:])
for state_len in {state_lens}:
    decoder = CrfDecoder(EmulatedDevice(sanitize={kind!r}), state_len, 2.0, beam_width=20)
    rng = np.random.default_rng(1)
    for T, N in ((7, 5), (1, 1), (33, 2)):
        scores_TNC = rng.normal(-0.5, 2.0, (T, N, 4 ** (state_len + 1))).astype(np.float32)
        scores_TNC[T // 2, N // 2, 3] = np.nan if N == 5 else 1.0
        print((decoder(scores_TNC).counts_N < 0).tolist())
"""


def skip_without(kind: Kind) -> None:
    try:
        find_runtime(kind)
    except SanitizerMissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_are_silent(kind: Kind) -> None:
    skip_without(kind)
    script = SCRIPT.format(kind=kind, state_lens=(3, 5), cut="no such text", place=1)
    result = run_sanitized(kind, script)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    expected = ["[False, False, True, False, False]", "[False]", "[False, False]"]
    assert result.stdout.splitlines() == expected * 2


def test_a_race_that_the_emulators_order_hides_is_seen_by_the_sanitizer() -> None:
    """Shuffles order no memory on a card; on the emulator they happen to."""
    skip_without("thread")
    source = read_source("crf.cu")
    place = source.count("__syncwarp();", 0, source.index("crf_beam(")) + 3  # after the moves' values
    result = run_sanitized("thread", SCRIPT.format(kind="thread", state_lens=(3,), cut="__syncwarp();", place=place))
    assert result.returncode == FOUND, result.stderr
    assert "data race" in result.stderr
    assert "crf_beam crf.cu:" in result.stderr
