"""The fast evaluation of the pore's levels against the plain one, and its file.

Dimensions: B bases, K 9-mers, I inputs and O outputs of a layer.
"""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porestream.models.simulate import pore as pore_module
from porestream.models.simulate.pore import Layer, PoreModel

U8 = npt.NDArray[np.uint8]

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = Path(pore_module.__file__).with_name("r10.4.1_400bps.npz")
OUTPUTS = ("mean_B", "log_sd_B", "log_dwell_B")


def random_layers(rng: np.random.Generator, *widths: int) -> list[Layer]:
    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return [(normal(outs, ins), normal(outs)) for ins, outs in itertools.pairwise(widths)]


def plain_levels(pore: PoreModel, bases_B: U8, at: int) -> npt.NDArray[np.float64]:
    """Level, log sd and log dwell of base `at`, from a one-hot input, in float64."""
    kmer = int("".join(map(str, bases_B[at - 6 : at + 3])), 4)
    mean = float(pore.kmer_means_K[kmer])
    inputs_I = np.zeros(93)
    for place, base in enumerate(bases_B[at - 12 : at + 11]):
        inputs_I[4 * place + base] = 1
    inputs_I[92] = mean
    for number, (weight_OI, bias_O) in enumerate(pore.layers):
        inputs_I = weight_OI.astype(np.float64) @ inputs_I + bias_O
        if number < 2:
            inputs_I = inputs_I / (1 + np.exp(-inputs_I))
    return inputs_I + np.array([mean, 0, 0])


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=23, max_size=60))
def test_levels_are_those_of_the_plain_network(pore: PoreModel, bases: list[int]) -> None:
    bases_B = np.array(bases, np.uint8)
    levels = pore.levels(bases_B)
    expected = np.array([plain_levels(pore, bases_B, at) for at in range(12, len(bases) - 10)])
    for column, name in enumerate(OUTPUTS):
        found_B = getattr(levels, name)
        assert found_B.dtype == np.float32
        np.testing.assert_allclose(found_B, expected[:, column], atol=2e-5)


def test_blocks_join_without_a_seam(pore: PoreModel, monkeypatch: pytest.MonkeyPatch) -> None:
    bases_B = np.random.default_rng(1).integers(0, 4, 500, np.uint8)
    whole = pore.levels(bases_B)
    monkeypatch.setattr(pore_module, "_BLOCK_BASES", 97)
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(pore.levels(bases_B), name), getattr(whole, name), atol=1e-5)


def test_too_few_bases_are_refused(pore: PoreModel) -> None:
    with pytest.raises(ValueError, match="22 bases are too few: one level needs 23"):
        pore.levels(np.zeros(22, np.uint8))


def test_the_shipped_table_is_one_of_r1041(pore: PoreModel) -> None:
    bases_B = np.random.default_rng(2).integers(0, 4, 20_000, np.uint8)
    levels = pore.levels(bases_B)
    assert 0.9 < levels.mean_B.std() < 1.1  # table units are standardised
    assert abs(levels.mean_B.mean()) < 0.1
    assert levels.mean_B.min() > -3
    assert levels.mean_B.max() < 4
    assert 0.05 < np.exp(levels.log_sd_B).mean() < 0.25
    context_B = levels.mean_B - [
        pore.kmer_means_K[int("".join(map(str, bases_B[i : i + 9])), 4)] for i in range(6, 19_984)
    ]
    assert 0.05 < context_B.std() < 0.3, "the network adds what the 9-mers miss"


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = PoreModel(rng.normal(0, 1, 4**9).astype(np.float32), random_layers(rng, 93, 20, 10, 3))
    model.save(tmp_path / "own.pore")
    again = PoreModel.load(tmp_path / "own.pore")
    assert np.abs(again.kmer_means_K - model.kmer_means_K).max() < 2e-4
    bases_B = rng.integers(0, 4, 1000, np.uint8)
    for name in OUTPUTS:
        np.testing.assert_allclose(
            getattr(again.levels(bases_B), name), getattr(model.levels(bases_B), name), atol=5e-3
        )


@pytest.mark.parametrize(
    ("kmers", "widths", "message"),
    [
        (4**6, (93, 8, 8, 3), r"must have shape \(262144,\), not"),
        (4**9, (92, 8, 8, 3), r"must have shape \(8, 93\), not \(8, 92\)"),
        (4**9, (93, 8, 3), "there must be three layers, the last with 3 outputs"),
        (4**9, (93, 8, 8, 2), r"the last with 3 outputs, not layers of \[8, 8, 2\] outputs"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kmers: int, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoreModel(np.zeros(kmers, np.float32), random_layers(np.random.default_rng(0), *widths))


def test_files_that_are_no_pore_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("levels")
    np.savez(tmp_path / "other.npz", current=np.zeros(3))
    for name in ("text", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a pore model"):
            PoreModel.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        PoreModel.load(tmp_path / "absent")


def test_the_table_is_small_and_its_source_is_named() -> None:
    assert SHIPPED.stat().st_size < 1_000_000
    notice = (ROOT / "NOTICE").read_text()
    for words in (SHIPPED.name, "uncalled4", "Copyright (c) 2023 Sam Kovaka", "MIT License", "squigualiser"):
        assert words in notice
