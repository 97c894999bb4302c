"""Links that somebody else has put where a command writes are not followed."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from porestream.cli.main import main


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "ref.fasta"
    path.write_text(">a\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 20_000)) + "\n")
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("of value\n")
    return path


def run(*arguments: object) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def test_simulate(tmp_path: Path, reference: Path, victim: Path) -> None:
    for name in (".run.truth.tsv.part", "run.truth.tsv"):
        (tmp_path / name).symlink_to(victim)
    run("simulate", reference, "-o", tmp_path / "run.pod5", "-n", 2)
    assert victim.read_text() == "of value\n"
    assert not (tmp_path / "run.truth.tsv").is_symlink()
    assert not (tmp_path / ".run.truth.tsv.part").is_symlink()


def test_index(tmp_path: Path, reference: Path, victim: Path) -> None:
    made = tmp_path / "ref.fasta.lr-hq.psindex"
    made.symlink_to(victim)
    run("index", reference)
    assert victim.read_text() == "of value\n"
    assert not made.is_symlink()
