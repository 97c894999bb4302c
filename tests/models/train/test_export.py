"""From a state to a model directory that calls, over the command line."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from porestream.models.files.bundle import load_bundle
from porestream.models.train.__main__ import main
from porestream.models.train.muon import Muon
from porestream.models.train.network import TrainableNetwork
from porestream.models.train.state import DATA, Progress, TrainingState

NAME = "porestream_dna_r10.4.1_400bps_fast@v9"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    net, mean = TrainableNetwork(16, 2), TrainableNetwork(16, 2)
    path = tmp_path / "state.pt"
    opt = Muon(net).state_dict()
    TrainingState(
        net=net.state_dict(), mean=mean.state_dict(), opt=opt, progress=Progress(2_000_000_000, 5400.0, 9)
    ).save(path)
    return path


def export(state: Path, directory: Path, *options: str) -> None:
    arguments = ["export", str(state), str(directory), "--date", "2026-01-02", *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_a_model_directory(tmp_path: Path, state: Path) -> None:
    report = {
        "name": "simulated",
        "mapped": 9,
        "reads": 10,
        "median_identity": 0.9512,
        "mean_identity": 0.95,
        "quartiles": [0.94, 0.96],
        "mismatch": 0.02,
        "insertion": 0.01,
        "deletion": 0.03,
        "predicted_quality": 12.3,
        "observed_quality": 12.8,
        "homopolymers": [{"length": 4, "runs": 1200, "right_share": 0.91}],
    }
    (tmp_path / "sim.json").write_text(json.dumps(report))
    qscore = ("--qscore-scale", "0.9", "--qscore-bias", "-0.5", "--chunk-samples", "3000", "--overlap-samples", "300")
    export(state, tmp_path / NAME, "--evaluation", str(tmp_path / "sim.json"), *qscore)
    bundle = load_bundle(tmp_path / NAME)
    config = bundle.config
    assert (config.stride, config.layers.encoder.width, config.state_len) == (6, 16, 2)
    assert (config.quality_scale, config.quality_bias) == (0.9, -0.5)
    assert (config.chunk_size, config.overlap) == (3000, 300)
    assert config.scaling == "quantile"
    assert (config.quantiles.shift_multiplier, config.quantiles.scale_multiplier) == (0.5, 0.53)
    assert (config.sample_rate_hz, config.resample_from_hz) == (5000, (4000,))
    assert config.stay_score == 2.0
    saved = TrainingState.load(state)
    assert torch.equal(bundle.tensors["9.linear.weight"], saved.mean["linear.weight"])
    training = tomllib.loads((tmp_path / NAME / "config.toml").read_text())["training"]
    assert training["samples_seen"] == 2_000_000_000
    assert any("MIT" in line for line in training["data"])
    card = (tmp_path / NAME / "README.md").read_text()
    assert card.startswith(f"# {NAME}\n")
    assert "2,000,000,000 samples of signal in 1.5 hours, 2026-01-02" in card
    assert "| simulated | 9 of 10 | **0.9512**, 0.9500 | 0.9400-0.9600 |" in card
    assert "| simulated | - | - | 91% of 1,200 |" in card
    assert "ONT's models call\nbetter" in card


def test_the_card_names_what_the_state_says(tmp_path: Path, state: Path) -> None:
    values = torch.load(state)
    torch.save(values | {"inputs": ["Simulated reads: windows of the genome x.fa"]}, state)
    export(state, tmp_path / "named")
    card = (tmp_path / "named" / "README.md").read_text()
    assert "- Simulated reads: windows of the genome x.fa\n" in card
    assert "Real reads:" not in card
    del values["inputs"]
    torch.save(values, state)
    export(state, tmp_path / "old")
    assert f"- {DATA[1]}\n" in (tmp_path / "old" / "README.md").read_text()


def test_half_precision_is_half_as_large(tmp_path: Path, state: Path) -> None:
    export(state, tmp_path / "full")
    export(state, tmp_path / "half", "--fp16", "--data", "ours (CC0)")
    full, half = (load_bundle(tmp_path / name) for name in ("full", "half"))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    torch.testing.assert_close(
        half.tensors["4.rnn.weight_hh_l0"], full.tensors["4.rnn.weight_hh_l0"], rtol=1e-3, atol=1e-4
    )
    assert "- ours (CC0)\n" in (tmp_path / "half" / "README.md").read_text()
    assert "not evaluated yet" in (tmp_path / "half" / "README.md").read_text()
