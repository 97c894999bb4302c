"""Where commands are run: folders with odd files and names, streams that are closed, a terminal that hangs up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from servers import serving

from porestream.cli.main import main

PORESTREAM = Path(sys.executable).with_name("porestream")
TRAP = "import os, pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nos._exit(0)\n"
PLANTED = ("pod5", "numpy", "queue", "grpc", "pysam", "click", "torch", "logging", "signal")


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.fasta"
    bases = "".join(np.random.default_rng(2).choice(list("ACGT"), 5000))
    path.write_text(f">c\n{bases}\n")
    return path


@pytest.fixture
def run(tmp_path: Path, reference: Path) -> Path:
    output = tmp_path / "run.pod5"
    arguments = ["simulate", str(reference), "-o", str(output), "--reads", "3", "--seed", "3"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return output


def environment(**extra: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")} | extra


def trapped(folder: Path) -> Path:
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(TRAP)
    return folder


def finished(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PORESTREAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        **options,  # type: ignore[call-overload]
    )


def test_nothing_in_the_working_folder_is_executed(run: Path, reference: Path, tmp_path: Path) -> None:
    """`call` with its server and with sorting: a child of each kind that it starts."""
    folder = trapped(tmp_path / "trap")
    done = finished("call", run, "--reference", reference, "--sort", "-o", tmp_path / "a.bam", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "3 reads: 3 called" in done.stderr
    assert (tmp_path / "a.bam.bai").exists()
    assert not list(folder.glob("*.ran"))


def test_a_server_beside_other_peoples_files_and_a_terminal_that_hangs_up(tiny_model: Path, tmp_path: Path) -> None:
    folder = trapped(tmp_path / "trap")
    process = serving("--model", tiny_model, "--listen", "127.0.0.1:0", cwd=folder, env=environment())
    assert process.stderr is not None
    process.send_signal(signal.SIGHUP)
    rest = process.stderr.read()
    assert process.wait(60) == 0
    assert '"draining"' in rest
    assert '"stopped"' in rest
    assert not list(folder.glob("*.ran"))


def test_help_names_the_command(tmp_path: Path) -> None:
    done = finished("serve", "--help", cwd=tmp_path)
    assert done.stdout.startswith("Usage: porestream serve ")
    assert finished("serve", "--nonsense", cwd=tmp_path).stderr.startswith("Usage: porestream serve ")


@pytest.mark.parametrize("name", ["o#d", "wh?t", "a,b", "%41", "with space", "x" * 90])
def test_a_folder_for_temporary_files_with_an_odd_name(run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    done = subprocess.run(
        [PORESTREAM, "call", run, "-n", "1", "-o", tmp_path / "a.bam"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(TMPDIR=str(folder)),
    )
    assert done.returncode == 0, done.stderr
    assert "1 read: 1 called" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        ("call {run} -n 1 -o {out}", ">&-", 0),
        ("call {run} -n 1 -o {out}", "2>&-", 0),
        ("call {run} -n 1 -o {out}", ">&- 2>&- <&-", 0),
        ("call {run} -n 1", ">&-", 1),
        ("call {run} -n 1 --emit-fastq", ">&-", 1),
        ("info {run}", "2>&-", 0),
        ("info {run}", ">&-", 0),
        ("--help", ">&- 2>&-", 0),
    ],
)
def test_closed_streams(run: Path, tmp_path: Path, arguments: str, closed: str, code: int) -> None:
    out = tmp_path / "a.bam"
    command = f"{PORESTREAM} {arguments.format(run=run, out=out)} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert out.exists() == ("{out}" in arguments)
    if code:
        assert "Error: cannot write to standard output: " in done.stderr


# Habits from dorado


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["call", "fast", "reads.pod5"], "as an option: porestream call reads.pod5 --model fast"),
        (["call", "hac@v5.0.0", "pod5/", "more/"], "as an option: porestream call pod5 more --model hac@v5.0.0"),
        (["call", "sup,5mCG_5hmCG", "a.pod5"], "as an option: porestream call a.pod5 --model sup,5mCG_5hmCG"),
        (["call", "dna_r10.4.1_e8.2_400bps_hac@v5.0.0", "a.pod5"], "--model dna_r10.4.1_e8.2_400bps_hac@v5.0.0"),
        (["call", "fast"], "as an option: porestream call READS --model fast"),
        (["call", "a.pod5", "--kit-name", "X"], "call with --no-trim and pass the BAM to dorado demux"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_meant_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_several_models_are_not_taken_for_a_folder(run: Path, tmp_path: Path) -> None:
    for command in (["call", str(run), "-o", str(tmp_path / "a.bam")], ["serve", "--listen", "127.0.0.1:0"]):
        result = CliRunner().invoke(main, [*command, "--model", "hac,5mCG_5hmCG"])
        assert result.exit_code == 1
        assert "porestream does not call modified bases yet, so 5mCG_5hmCG cannot be used" in result.stderr
        assert "--model hac to call the canonical bases" in result.stderr
