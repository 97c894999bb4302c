"""Directories with low-rank LSTMs that are damaged or hostile are refused by name; good ones are called to a BAM."""

from pathlib import Path

import numpy as np
import pysam
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from shapes import write_shape

from porestream.cli.main import main
from porestream.models.files.bundle import load_bundle
from porestream.models.files.config import ModelError, load_config
from porestream.models.networks.flstm import LowRankLstms


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_shape("tiny v6", tmp_path / "model")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("inner_dim = 8", "inner_dim = 16", r"dn_weight_ih.*\(?\[?8, 32.*16, 32"),
        ("inner_dim = 8", "inner_dim = 0", "inner_dim = 0"),
        ("inner_dim = 8", "inner_dim = 1000000000", "inner_dim = 1000000000"),
        ("inner_dim = 8\n", "", "'inner_dim' is missing"),
        ('softout"\nsize = 32', 'softout"\nsize = 16', "a low-rank LSTM must be 32 wide"),
        ("reverse = 1", "reverse = 0", "alternate, the first one reversed"),
        ('type = "flstm_softout"', 'type = "lstm"', "lstm and flstm_softout layers cannot be mixed"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(directory: Path, old: str, new: str, reason: str) -> None:
    text = (directory / "config.toml").read_text()
    assert old in text
    (directory / "config.toml").write_text(text.replace(old, new, 1 if "type" in old or "size" in old else -1))
    with pytest.raises(ModelError, match=reason):
        load_bundle(directory)


def test_layers_of_different_inner_widths_are_refused(directory: Path) -> None:
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace("inner_dim = 8", "inner_dim = 4", 1))
    with pytest.raises(ModelError, match="all low-rank LSTMs must have the same inner_dim, 4"):
        load_bundle(directory)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"4.rnn.dn_weight_hh": None}, "4.rnn.dn_weight_hh"),
        ({"5.rnn.up_bias_hh": None}, "5.rnn.up_bias_hh"),
        ({"6.rnn.up_weight_ih": np.full((128, 8), np.inf, np.float32)}, "6.rnn.up_weight_ih"),
        ({"4.rnn.weight_ih_l0": np.zeros((128, 32), np.float32)}, "4.rnn.weight_ih_l0"),
        ({"4.rnn.up_weight_hh": np.zeros((8, 128), np.float32)}, "4.rnn.up_weight_hh"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    directory: Path, change: dict[str, np.ndarray | None], reason: str
) -> None:
    tensors = load_file(directory / "model.safetensors") | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, directory / "model.safetensors")
    with pytest.raises(ModelError, match=reason):
        load_bundle(directory)


def test_directions_alternate_where_the_config_does_not_say(directory: Path) -> None:
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace("reverse = 1\n", "").replace("reverse = 0\n", ""))
    encoder = load_config(directory).layers.encoder
    assert isinstance(encoder, LowRankLstms)
    assert encoder.reverse == (True, False, True)


def test_flstm_has_the_gates_of_an_ordinary_lstm(directory: Path) -> None:
    """The type that dorado 1.4 knows; ONT publishes flstm_softout."""
    encoder = load_config(directory).layers.encoder
    assert isinstance(encoder, LowRankLstms)
    assert encoder.is_hard
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace("flstm_softout", "flstm"))
    encoder = load_config(directory).layers.encoder
    assert isinstance(encoder, LowRankLstms)
    assert not encoder.is_hard


def test_the_whole_service_calls_with_it(directory: Path, tmp_path: Path) -> None:
    """Random weights call random bases; every read of a simulated run gets a record."""
    runner = CliRunner()
    reads, reference = tmp_path / "reads.pod5", tmp_path / "reference.fasta"
    bases = np.random.default_rng(1).choice(list("ACGT"), 20_000)
    reference.write_text(f">made_up\n{''.join(bases)}\n")
    done = runner.invoke(main, ["simulate", str(reference), "--reads", "4", "--seed", "3", "-o", str(reads)])
    assert done.exit_code == 0, done.output
    calls = tmp_path / "calls.bam"
    command = ["call", str(reads), "--model", str(directory), "-o", str(calls), "-t", "1", "--min-qscore", "0"]
    done = runner.invoke(main, command)
    assert done.exit_code == 0, done.output
    with pysam.AlignmentFile(str(calls), check_sq=False) as file:
        records = list(file)
    assert len(records) == 4
    assert all(record.query_sequence for record in records)
