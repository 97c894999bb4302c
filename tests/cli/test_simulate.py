"""`porestream simulate`, as a user meets it: what it makes, how it fails, how it stops."""

import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch
from click.testing import CliRunner, Result

from porestream.cli.main import main
from porestream.client.sources.pod5_source import Pod5Source
from porestream.models.simulate.noise import SignalNoise
from porestream.models.simulate.run import Run
from porestream.models.simulate.sequence import decode, random_bases

ROWS = list[dict[str, str]]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "two.contigs.fasta"
    rng = np.random.default_rng(1)
    path.write_text(
        "".join(f">{name}\n{decode(random_bases(size, rng))}\n" for name, size in (("a", 9000), ("b", 3000)))
    )
    return path


def simulate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def rows(path: Path) -> ROWS:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def signals(path: Path) -> list[bytes]:
    source = Pod5Source([path])
    found = [read.signal_S.tobytes() for read in source]
    assert not source.file_faults
    return found


def test_a_run_with_its_truth(tmp_path: Path, reference: Path) -> None:
    output = tmp_path / "run.pod5"
    done = simulate(reference, "-o", output, "-n", 8, "--length-mean", 600, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("8 reads, ")
    assert "seed 3" in done.stderr
    assert f"truth in {tmp_path / 'run.truth.tsv'}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.pod5", "run.truth.tsv"]
    truth = rows(tmp_path / "run.truth.tsv")
    assert [int(row["samples"]) * 2 for row in truth] == [len(signal_S) for signal_S in signals(output)]
    lengths = dict(zip(*(pysam.FastaFile(str(reference)).references, (9000, 3000)), strict=True))
    for row in truth:
        assert 0 <= int(row["start"]) < int(row["end"]) <= lengths[row["contig"]]
        assert int(row["end"]) - int(row["start"]) == int(row["bases"]) >= 200
    run = next(iter(Pod5Source([output]).runs.values()))
    assert (run.flow_cell_product_code, run.sample_rate_hz, run.sample_id) == ("FLO-MIN114", 5000, "simulated_two")


def test_the_same_seed_makes_the_same_run(tmp_path: Path, reference: Path) -> None:
    options = ("-n", 5, "--length-mean", 300, "--boundaries", "--seed")
    for name, seed in (("one", 4), ("same", 4), ("other", 5)):
        assert simulate(reference, "-o", tmp_path / f"{name}.pod5", *options, seed).exit_code == 0
    one, same, other = (signals(tmp_path / f"{name}.pod5") for name in ("one", "same", "other"))
    assert one == same
    assert not set(one) & set(other)
    texts = [(tmp_path / f"{name}.truth.tsv").read_text() for name in ("one", "same", "other")]
    assert texts[0] == texts[1] != texts[2]


def test_options_do_what_they_say(tmp_path: Path, reference: Path) -> None:
    output, truth = tmp_path / "run.pod5", tmp_path / "where.tsv"
    options = ("--coverage", 0.5, "--length-mean", 500, "--length-sd", 0, "--strand", "reverse", "--sample-rate", 4000)
    more = ("--noise", 0, "--drift", 0, "--stalls", 0, "--speed", 200, "--speed-sd", 0, "--no-adapters", "--boundaries")
    done = simulate(reference, "-o", output, *options, *more, "--channels", 1, "--truth", truth, "--seed", 1)
    assert done.exit_code == 0, done.output
    found = rows(truth)
    assert len(found) == 12  # half of 12,000 bases, 500 at a time
    assert {row["strand"] for row in found} == {"-"}
    assert len({row["channel"] for row in found}) == 1
    assert {(row["leader_samples"], row["tail_samples"]) for row in found} == {("0", "0")}
    assert {row["boundaries"].count(",") for row in found} == {499}
    bases, samples = (sum(int(row[name]) for row in found) for name in ("bases", "samples"))
    assert bases / (samples / 4000) == pytest.approx(200, rel=0.05)
    assert next(iter(Pod5Source([output]).runs.values())).sample_rate_hz == 4000
    for read, row in zip(Pod5Source([output]), found, strict=True):  # without noise, bases are flat
        edges = [*map(int, row["boundaries"].split(",")), read.signal_S.size]
        spreads = [np.ptp(read.signal_S[a + 1 : b]) for a, b in itertools.pairwise(edges) if b > a + 2]
        assert np.mean(np.array(spreads) <= 1) > 0.99


def test_an_older_run_is_replaced(tmp_path: Path, reference: Path) -> None:
    output = tmp_path / "run.pod5"
    output.write_text("an older file")
    assert simulate(reference, "-o", output, "-n", 2, "--length-mean", 300).exit_code == 0
    assert len(signals(output)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("", "is not FASTA: it is empty"),
        ("@read\nACGT\n+\nIIII\n", "is not FASTA: it starts with b'@'"),
        (">a\nACGT\n", "the longest sequence has 4 bases, but the shortest read has 200"),
    ],
)
def test_a_reference_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "ref.fasta"
    if text is not None:
        path.write_text(text)
    before = sorted(tmp_path.iterdir())
    done = simulate(path, "-o", tmp_path / "run.pod5")
    assert done.exit_code == 1
    assert message in done.stderr
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("blocked", ["pod5", "truth"])
def test_a_place_that_cannot_be_written(tmp_path: Path, reference: Path, blocked: str) -> None:
    path = {"pod5": Path("/proc/run.pod5"), "truth": tmp_path / "run.truth.tsv"}[blocked]  # not for root either
    if blocked == "truth":
        (tmp_path / ".run.truth.tsv.part").mkdir()
    output, truth = (path, tmp_path / "t.tsv") if blocked == "pod5" else (tmp_path / "run.pod5", path)
    done = simulate(reference, "-o", output, "--truth", truth, "-n", 1)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert path.name in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path for path in tmp_path.iterdir() if path.name != ".run.truth.tsv.part"] == []


def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path, reference: Path) -> None:
    code = (
        "import resource; from porestream.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); main()"
    )
    output = tmp_path / "run.pod5"
    command = [sys.executable, "-c", code, "simulate", str(reference), "-o", str(output), "-n", "100", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot write {output}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "run.pod5", "-n", 5, "--coverage", 2), "give either --reads or --coverage, not both"),
        (("-o", "run.fast5"), "the name must end in .pod5"),
        (("-o", "nowhere/run.pod5"), "folder nowhere does not exist; create it first"),
        (("-o", "run.pod5", "--truth", "nowhere/truth.tsv"), "folder nowhere does not exist"),
        (("-o", "run.pod5", "--truth", "./run.pod5"), "this is the reference or the output"),
        (("-o", "run.pod5", "--channels", 513), "1<=x<=512"),
        (("-o", "run.pod5", "--noise", "nan"), "'nan' is not a finite number"),
        (("-o", "run.pod5", "--speed", "nan"), "'nan' is not a finite number"),
        (("-o", "run.pod5", "--coverage", "inf"), "'inf' is not a finite number"),
        (("-o", "run.pod5", "--drift", "inf"), "0<=x<=1000"),
        (("-o", "run.pod5", "--sample-rate", 3000), "'5000', '4000'"),
        ((), "Missing option '-o'"),
    ],
)
def test_wrong_usage(options: tuple[str | int, ...], message: str, reference: Path) -> None:
    done = simulate(reference, *map(str, options))
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "stopped: "), (signal.SIGTERM, 143, "stopped by SIGTERM: ")],
)
def test_a_stopped_run_says_so_and_leaves_nothing(
    tmp_path: Path, reference: Path, number: signal.Signals, code: int, message: str
) -> None:
    output = tmp_path / "run.pod5"
    command = ["env", "--default-signal=INT", sys.executable]  # a shell's job may ignore it
    arguments = ["-m", "porestream.cli.main", "simulate", reference, "-o", output]
    options = ["-n", "100000000", "--length-mean", "200", "--length-sd", "0"]
    process = subprocess.Popen([*command, *arguments, *options], stderr=subprocess.PIPE, text=True)
    try:
        truth = tmp_path / ".run.truth.tsv.part"
        deadline_s = time.monotonic() + 60
        while not (truth.exists() and truth.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline_s, "nothing is written"
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stderr == f"{message}{output} has not been written\n"
    assert process.returncode == code
    assert not list(tmp_path.iterdir())


def test_the_default_noise_is_that_of_real_reads(monkeypatch: pytest.MonkeyPatch, reference: Path) -> None:
    runs: list[Run] = []
    monkeypatch.setattr("porestream.cli.commands.simulate._simulate", lambda run, *_: runs.append(run))
    assert simulate(reference, "-o", "run.pod5").exit_code == 0
    (run,) = runs
    noise = asdict(run.settings.noise)
    assert noise == pytest.approx(asdict(SignalNoise()))
    text = simulate("--help").stdout
    for shown in ("392.0", "0.1", "0.45", "0.25"):
        assert f"[default: {shown};" in text


def test_help_teaches() -> None:
    done = simulate("--help")
    assert done.exit_code == 0
    for words in ("porestream simulate ref.fasta -o run.pod5", "--coverage 30", "--boundaries", "Exit codes"):
        assert words in done.stdout
