"""`porestream index`: where it puts its file, what it refuses, and that it leaves nothing when it is stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from porestream.cli.main import main
from porestream.kernels.align.index import load_index
from porestream.kernels.device import EmulatedDevice
from porestream.server.settings import Settings
from porestream.server.start.references import plan_references


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "r.fa"
    path.write_text(">c one\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 5000)) + "\n>d\nACGTN\n")
    return path


def index(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["index", *map(str, arguments)])


@pytest.mark.parametrize("preset", ["map-ont", "lr:hq"])
def test_the_server_finds_what_it_makes(fasta: Path, preset: str) -> None:
    done = index(fasta, "--preset", preset)
    assert done.exit_code == 0, done.output
    made = fasta.with_name(f"r.fa.{preset.replace(':', '-')}.psindex")
    assert f"{made}: 2 sequences, 5,005 bases, " in done.stderr
    assert "looks for it" not in done.stderr
    settings = Settings(reference=[fasta], preset=[preset])
    (plan,) = plan_references(settings, ["any_hac@v1"], fasta.parent / "cache", EmulatedDevice(), None)
    assert plan.index is not None
    assert plan.index.reference.sha256 == load_index(made).reference.sha256


def test_elsewhere_it_says_where_the_server_looks(fasta: Path, tmp_path: Path) -> None:
    done = index(fasta, "-o", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    assert load_index(tmp_path / "mine").preset.name == "lr:hq"
    assert f"looks for it at {tmp_path / 'r.fa.lr-hq.psindex'}" in done.stderr


def test_an_index_is_no_reference(fasta: Path, tmp_path: Path) -> None:
    assert index(fasta, "-o", tmp_path / "mine").exit_code == 0
    done = index(tmp_path / "mine")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"Error: reference {tmp_path / 'mine'}: this is an index that `porestream index` built; "
        "give the FASTA; porestream finds an index that is next to it"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MMI\2" + bytes(100), "a .mmi cannot be used on a GPU; pass the FASTA"),
        (b"hello\n", "not FASTA: it starts with b'hello\\n', not '>'"),
        (b">c\nACGT\n>d\nAC1\n", "sequence 'd' has '1' at base 3"),
        (None, "it cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_used_is_named_in_a_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = index(path)
    assert done.exit_code == 1
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert error.startswith(f"Error: reference {path}: ")
    assert message in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_there(fasta: Path, tmp_path: Path) -> None:
    done = index(fasta, "-o", tmp_path / "none" / "mine")
    assert done.exit_code == 1
    assert "No such file or directory" in done.stderr
    assert str(tmp_path / "none") in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_one_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    fasta, target = tmp_path / "r.fa", tmp_path / "r.fa.lr-hq.psindex"
    fasta.write_bytes(b">c\n" + np.random.default_rng(1).choice(np.frombuffer(b"ACGT", "S1"), 20_000_000).tobytes())
    command = ["env", "--default-signal=INT", sys.executable]  # a shell's job may ignore it
    process = subprocess.Popen(
        [*command, "-m", "porestream.cli.main", "index", fasta], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline_s = time.monotonic() + 60
        while not list(tmp_path.glob(f".{target.name}.*")):
            assert process.poll() is None
            assert time.monotonic() < deadline_s, "nothing is written"
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stderr.splitlines()[-1].endswith(f": {target} has not been written")
    assert process.returncode == code
    assert [path.name for path in tmp_path.iterdir()] == ["r.fa"]
