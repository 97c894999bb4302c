"""`porestream demo`, as a user meets it: files, figures, a second time, where it cannot write, Ctrl-C."""

import asyncio
import csv
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam
import pytest
import torch
from calling_revision import check_digest
from click.testing import CliRunner

from porestream.cli.main import main
from porestream.cli.request import Request

LEAST_MEDIAN_IDENTITY = 0.82
READS = 10
FILES = ["calls.bam", "calls.bam.bai", "reads.pod5", "reads.truth.tsv", "reference.fasta"]
FIGURE = re.compile(r"^    (.+?)  +(.+)$", re.MULTILINE)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "porestream.cli.main", "demo", *map(str, arguments)]


@dataclass(frozen=True)
class Stopped:
    """A demo that Ctrl-C ended as the first record was about to be written, and what it left."""

    code: int
    stderr: str
    files: list[str]
    read_ids: set[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which demos are run, and that has their demo/."""
    return tmp_path_factory.mktemp("home")


STOPPED_AT_THE_FIRST_RECORD = """
import os, signal, sys
from porestream.cli.main import main
from porestream.client.outputs.writers import RecordWriter

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
write = RecordWriter.write

def stop(self, result):
    RecordWriter.write = write
    os.kill(os.getpid(), signal.SIGINT)
    write(self, result)

RecordWriter.write = stop
main()
"""


@pytest.fixture(scope="module")
def stopped(home: Path) -> Stopped:
    """The first one, stopped in the midst of calling."""
    demo = [sys.executable, "-c", STOPPED_AT_THE_FIRST_RECORD, "demo", "--reads", str(READS), "--seed", "2"]
    done = subprocess.run(demo, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    folder = home / "demo"
    return Stopped(done.returncode, done.stderr, sorted(path.name for path in folder.iterdir()), set(truth(folder)))


@pytest.fixture(scope="module")
def done(home: Path, stopped: Stopped) -> subprocess.CompletedProcess[str]:
    """The second one, in the same folder."""
    (home / "demo/calls.bam").write_text(f"of {stopped}")
    options = ("--reads", READS, "--seed", 1)
    return subprocess.run(
        command(*options), cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def truth(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "reads.truth.tsv").open() as table:
        return {row["read_id"]: row for row in csv.DictReader(table, delimiter="\t")}


def device(folder: Path) -> str:
    """What called it, by the BAM's header."""
    with pysam.AlignmentFile(str(folder / "calls.bam")) as file:
        description = file.header.to_dict()["PG"][0]["DS"]
    return " ".join(re.findall(r"(?:precision|device)=(\S+)", description))


def primaries(folder: Path) -> list[pysam.AlignedSegment]:
    with pysam.AlignmentFile(str(folder / "calls.bam")) as file:
        return [record for record in file if not record.flag & 0x900]


def test_it_shows_what_is_in_the_bam(done: subprocess.CompletedProcess[str], home: Path) -> None:
    assert done.returncode == 0, done.stderr
    folder = home / "demo"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    places, records = truth(folder), primaries(folder)
    assert sorted(record.query_name for record in records) == sorted(places)
    assert len(places) == READS
    check_digest(device(folder), (record.to_string() for record in records))
    identities = []
    for record in records:
        row = places[record.query_name]
        if record.is_mapped and record.reference_name == row["contig"]:
            assert record.is_reverse == (row["strand"] == "-")
            assert record.get_overlap(int(row["start"]), int(row["end"])) > 0
            pairs = record.get_aligned_pairs(with_seq=True)
            inside = pairs[record.query_alignment_start : len(pairs) - _clipped_at_end(record)]
            matches = sum(q is not None and base is not None and base.isupper() for q, _, base in inside)
            identities.append(matches / len(inside))
    figures = dict(FIGURE.findall(done.stdout.split("\n\n")[0]))
    assert figures["reads"] == f"{READS} of {READS}"
    assert figures["bases"] == f"{sum(record.query_length for record in records):,}"
    assert figures["at their origin"] == f"{len(identities)} ({len(identities) / READS:.1%})"
    assert len(identities) >= READS - 1
    assert figures["median identity"] == f"{statistics.median(identities):.1%}"
    assert statistics.median(identities) > LEAST_MEDIAN_IDENTITY
    assert figures["mean Q"] == f"{statistics.fmean(record.get_tag('qs') for record in records):.1f}"
    assert re.fullmatch(r"[\d,]+ samples/s", figures["speed"])


def _clipped_at_end(record: pysam.AlignedSegment) -> int:
    return int(record.query_length - record.query_alignment_end)


def test_the_bam_is_sorted_and_indexed(done: subprocess.CompletedProcess[str], home: Path) -> None:
    assert done.returncode == 0
    bam = str(home / "demo/calls.bam")
    pysam.quickcheck(bam)
    with pysam.AlignmentFile(bam) as file:
        assert file.header.to_dict()["HD"]["SO"] == "coordinate"
        assert dict(zip(file.references, file.lengths, strict=True)) == {"demo_1": 60_000, "demo_2": 40_000}
        mapped = [record for record in primaries(home / "demo") if record.is_mapped]
        assert sum(file.count(name) for name in file.references) >= len(mapped) > 0


def test_it_says_what_it_does_and_what_to_do_next(done: subprocess.CompletedProcess[str], home: Path) -> None:
    steps = [line[:5] for line in done.stderr.splitlines() if line.startswith("[")]
    assert steps == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert "porestream_dna_r10.4.1_400bps_fast@v1" in done.stderr
    assert "\r" not in done.stderr, "progress is for terminals"
    next_steps = done.stdout.split("\n\n", 1)[1]
    for words in (
        "samtools flagstat demo/calls.bam",
        "igv -g demo/reference.fasta demo/calls.bam",
        "porestream call READS.pod5 --reference REF.fasta -o calls.bam",
        "porestream serve --reference demo/reference.fasta --listen 127.0.0.1:50051",
        "porestream call demo/reads.pod5 --server 127.0.0.1:50051 --reference reference.fasta -o calls.bam",
    ):
        assert words in next_steps


def test_a_stopped_demo_leaves_no_calls(stopped: Stopped) -> None:
    assert stopped.code == 130
    assert stopped.stderr.splitlines()[-1] == "stopped: demo/calls.bam has not been written"
    assert "Traceback" not in stopped.stderr
    assert stopped.files == FILES[2:]


def test_a_second_demo_replaces_the_first(done: subprocess.CompletedProcess[str], stopped: Stopped, home: Path) -> None:
    assert done.returncode == 0
    assert stopped.read_ids
    assert not stopped.read_ids & set(truth(home / "demo"))


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """`simulate` takes one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fake_call(request: Request, code: int) -> int:
    """Writes records of reads that map nowhere, and leaves SIGTERM as the real one does."""

    async def call() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)

    asyncio.run(call())
    with pysam.AlignmentFile(request.output, "wb", reference_names=["a"], reference_lengths=[9]) as file:
        for name in truth(request.reads[0].parent):
            record = pysam.AlignedSegment(file.header)
            record.query_name, record.flag, record.query_sequence = name, 4, "ACGT"
            record.set_tag("qs", 5.0)
            file.write(record)
    pysam.index(request.output)
    assert request.summary_json is not None
    request.summary_json.write_text('{"samples_per_second": 1}')
    return code


@pytest.mark.usefixtures("threads_as_before")
@pytest.mark.parametrize("fault", ["call fails", "nothing maps"])
def test_what_does_not_work_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    code = 4 if fault == "call fails" else 0
    monkeypatch.setattr("porestream.cli.caller.run_call", lambda request: fake_call(request, code))
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path), "--reads", "2"])
    if fault == "call fails":
        assert result.exit_code == 4
        assert f"calling failed (exit code 4): {tmp_path / 'calls.bam'} was not written" in result.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES[2:]
    else:
        assert result.exit_code == 1
        assert "at their origin    0 (0.0%)" in result.stdout
        assert "Error: of 2 reads, 2 were called and 0 aligned to their origin" in result.stderr


@pytest.mark.usefixtures("threads_as_before")
@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("porestream.cli.commands.demo._write_reference", []),
        ("porestream.cli.commands.simulate._simulate", FILES[4:]),
        ("porestream.cli.caller.run_call", FILES[2:]),
        ("porestream.cli.commands.demo._compare", FILES[2:]),
    ],
)
def test_sigterm_cleans_up_in_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, left: list[str]
) -> None:
    def terminate(*_: object) -> None:
        assert callable(signal.getsignal(signal.SIGTERM)), "it would end the tests"
        signal.raise_signal(signal.SIGTERM)

    def terminated(request: Request) -> int:
        return fake_call(request, 128 + signal.SIGTERM)

    monkeypatch.setattr("porestream.cli.caller.run_call", lambda request: fake_call(request, 0))
    monkeypatch.setattr(place, terminated if place.endswith("run_call") else terminate)
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path), "--reads", "2"])
    assert result.exit_code == 143, result.output
    assert result.stderr.splitlines()[-1].startswith("stopped by SIGTERM: ")
    assert result.stderr.splitlines()[-1].endswith(" has not been written")
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["reads.pod5", "calls.bam"])
def test_what_is_not_of_a_demo_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("the work of years")
    (tmp_path / "reference.fasta").write_text(">chr1\nACGT\n")
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not from an earlier demo and would be lost; use another -o DIR" in result.stderr
    assert (tmp_path / name).read_text() == "the work of years"
    assert (tmp_path / "reference.fasta").read_text() == ">chr1\nACGT\n"


def test_a_folder_that_cannot_be_written() -> None:
    result = CliRunner().invoke(main, ["demo", "-o", "/proc/demo"])  # not for root either
    assert result.exit_code == 1
    assert result.stderr == "Error: /proc/demo: No such file or directory; use another -o DIR\n"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 2
    assert f"'{tmp_path / 'demo'}' is a file" in result.stderr


def test_help_teaches() -> None:
    result = CliRunner().invoke(main, ["demo", "--help"])
    assert result.exit_code == 0
    for words in ("porestream simulate", "porestream serve", "porestream call", "calls.bam", "Exit codes: 0"):
        assert words in result.output
