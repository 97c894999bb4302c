"""`porestream call` on a server: what becomes of every read, whatever happens meanwhile."""

import contextlib
import functools
import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import grpc
import numpy as np
import pysam
import pytest
from click.testing import CliRunner, Result

from porestream.cli.main import main
from porestream.client.opening import StreamOptions
from porestream.client.outputs.output_file import partial_of
from porestream.client.outputs.writers import RecordWriter

READS = 40
LENGTHS = [1500 + 40 * number for number in range(READS)]
EMPTY = 7  # the read without samples
COMMAND = [sys.executable, "-m", "porestream.cli.main"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("call")


@pytest.fixture(scope="module")
def reads(folder: Path, write_pod5: Callable[..., Path]) -> Path:
    """Two files, the second in a folder within, of two runs."""
    rng = np.random.default_rng(4)
    lengths = [0 if number == EMPTY else length for number, length in enumerate(LENGTHS, 1)]
    signals = [rng.normal(500, 60, length).astype(np.int16) for length in lengths]
    (folder / "pod5/more").mkdir(parents=True)
    write_pod5(folder / "pod5/a.pod5", signals[:25], run_ids=("run-a", "run-b"))
    write_pod5(folder / "pod5/more/b.pod5", signals[25:], run_ids=("run-a", "run-b"), first=26)
    return folder / "pod5"


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few reads are under way at a time."""
    options = functools.partial(StreamOptions, window_samples=10_000)
    monkeypatch.setattr("porestream.client.opening.StreamOptions", options)
    monkeypatch.setattr("porestream.client.client._AHEAD_READS", 2)


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """The command takes SIGINT and SIGTERM, and leaves the defaults."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["call", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    return result


def records(path: Path) -> list[str]:
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return sorted(record.to_string() for record in file.fetch(until_eof=True))


def names(path: Path) -> set[int]:
    return {UUID(line.split("\t")[0]).int for line in records(path)}


def all_but_empty() -> set[int]:
    return set(range(1, READS + 1)) - {EMPTY}


def at_record(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Have something happen when a call is about to write its records of so many reads."""
    write, count = RecordWriter.write, 0

    def counted(self: RecordWriter, result: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            act()
        write(self, result)  # type: ignore[arg-type]

    monkeypatch.setattr(RecordWriter, "write", counted)


# Outputs


@pytest.fixture
def server(start_server) -> str:  # type: ignore[no-untyped-def]
    return str(start_server(threads=1).address)


def test_every_format_has_every_read(server: str, reads: Path, tmp_path: Path) -> None:
    for name in ("a.bam", "a.sam", "a.cram"):
        result = call(reads, "-r", "--server", server, "-o", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        assert "40 reads: 39 called, 0 filtered, 1 rejected, 0 failed" in result.stderr
        assert names(tmp_path / name) == all_but_empty()
    rejected = (tmp_path / "a.rejected_reads.tsv").read_text().splitlines()
    assert rejected[0] == "read_id\tfilename\tstatus\treason"
    assert rejected[1] == f"{UUID(int=EMPTY)}\ta.pod5\trejected\tempty: the read has no samples"
    assert f"read {UUID(int=EMPTY)} of a.pod5 rejected: empty: the read has no samples" in result.stderr
    assert f"rejected or failed: 1 empty; listed in {tmp_path / 'a.rejected_reads.tsv'}" in result.stderr
    assert call(reads, "-r", "--server", server, "-o", tmp_path / "a.fastq.gz").exit_code == 0
    assert gzip.decompress((tmp_path / "a.fastq.gz").read_bytes()).count(b"\n") == 4 * len(all_but_empty())


def test_standard_output_gets_what_is_asked_for_and_nothing_else(server: str, reads: Path) -> None:
    outputs = {}
    for flag in ("--emit-sam", "--emit-fastq", "--emit-cram"):
        command = [*COMMAND, "call", str(reads / "a.pod5"), "--server", server, flag]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        outputs[flag] = done.stdout
    assert outputs["--emit-sam"].startswith(b"@HD\tVN:1.6")
    assert outputs["--emit-sam"].count(b"\n00000000-") == 24
    assert outputs["--emit-fastq"].startswith(b"@00000000-")
    assert outputs["--emit-fastq"].count(b"\n") == 4 * 24
    assert outputs["--emit-cram"].startswith(b"CRAM")


def test_a_folder_with_pass_and_fail_and_the_summary(server: str, reads: Path, tmp_path: Path) -> None:
    every = tmp_path / "every.bam"
    assert call(reads, "-r", "--server", server, "-o", every).exit_code == 0
    with pysam.AlignmentFile(str(every), check_sq=False) as file:
        scores = {UUID(r.query_name).int: r.get_tag("qs") for r in file}
    least = float(np.mean(sorted(scores.values())[15:17]))  # between two
    out = tmp_path / "out"
    arguments = (reads, "-r", "--server", server, "--output-dir", out, "--min-qscore", least, "--emit-summary")
    result = call(*map(str, arguments))
    assert result.exit_code == 0, result.stderr
    found = {status: set().union(*map(names, out.rglob(f"bam_{status}/*.bam"))) for status in ("pass", "fail")}
    assert found["fail"] == {name for name, score in scores.items() if score < least}
    assert found["pass"] == all_but_empty() - found["fail"]
    assert len(list(out.rglob("*.bam"))) == 4
    rows = [row.split("\t") for row in (out / "sequencing_summary.txt").read_text().splitlines()]
    title = {name: place for place, name in enumerate(rows[0])}
    passes = {UUID(row[title["read_id"]]).int: row[title["passes_filtering"]] for row in rows[1:]}
    assert passes == {name: "FALSE" if name in found["fail"] else "TRUE" for name in all_but_empty()}
    again = call(*map(str, arguments))
    assert again.exit_code == 1
    assert "already has records of this run; choose another folder" in again.stderr


def test_failed_reads_left_out_of_a_fastq_are_counted(server: str, reads: Path, tmp_path: Path) -> None:
    result = call(reads / "a.pod5", "--server", server, "-o", tmp_path / "a.fastq", "--min-qscore", "50")
    assert result.exit_code == 0
    assert "24 reads below Q 50 left out of the FASTQ; use --output-dir to keep them" in result.stderr
    assert (tmp_path / "a.fastq").read_text() == ""


# Which reads


def test_read_ids_numbers_and_patterns(server: str, reads: Path, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("".join(f"{UUID(int=number)}\n" for number in (3, 30, 999)))
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "a.bam", "-l", listed)
    assert result.exit_code == 0
    assert names(tmp_path / "a.bam") == {3, 30}
    assert f"warning: 1 of the read ids in {listed} are not in any input: {UUID(int=999)}" in result.stderr
    assert call(reads / "*/*.pod5", "--server", server, "-o", tmp_path / "b.bam", "-n", "2").exit_code == 0
    assert names(tmp_path / "b.bam") == {26, 27}
    listed.write_text("nonsense\n")
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "c.bam", "-l", listed)
    assert result.exit_code == 1
    assert f"Error: {listed}, line 1: 'nonsense' is not a read id (a UUID)" in result.stderr


def test_watching_a_folder(server: str, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porestream.client.sources.watch._SETTLE_S", 0.0)
    watched = tmp_path / "run"
    (watched / "pod5").mkdir(parents=True)

    def sequence() -> None:
        data = (reads / "a.pod5").read_bytes()
        (watched / "pod5/a.pod5").write_bytes(data[:1000])
        time.sleep(0.3)
        (watched / "pod5/a.pod5").write_bytes(data)
        while not partial_of(out).exists():
            time.sleep(0.02)
        (watched / "pod5/b.pod5").write_bytes((reads / "more/b.pod5").read_bytes())
        (watched / "final_summary_x.txt").touch()

    out = tmp_path / "a.bam"
    with ThreadPoolExecutor(1) as sequencer:
        done = sequencer.submit(sequence)
        result = call("--watch", watched, "--server", server, "-o", out)
        done.result()
    assert result.exit_code == 0, result.stderr
    assert names(out) == all_but_empty()
    assert "watched until the end of the run" in result.stderr
    assert "cannot read" not in result.stderr
    result = call("--watch", tmp_path / "pod5", "--server", server, "-o", tmp_path / "b.bam")
    assert result.exit_code == 2  # there is no such folder
    (tmp_path / "none").mkdir()
    result = call(
        "--watch", tmp_path / "none", "--watch-timeout-s", "0.05", "--server", server, "-o", tmp_path / "b.bam"
    )
    assert result.exit_code == 0
    assert "watched until the time-out" in result.stderr


# Interrupted, and gone on with


@pytest.mark.usefixtures("small_window", "restored_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_the_rest_can_be_called(
    server: str, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    output, whole = tmp_path / "part.bam", tmp_path / "whole.bam"
    part = partial_of(output)
    summary = tmp_path / "summary.json"
    with monkeypatch.context() as patched:
        at_record(patched, 5, lambda: signal.raise_signal(number))
        result = call(reads, "-r", "--server", server, "-o", output, "--emit-summary", "--summary-json", summary)
    assert result.exit_code == code, result.stderr
    assert "finishing the reads under way; press or send it again to stop now" in result.stderr
    assert f"called so far are in {part}: to continue, run the same command with --resume-from {part}" in result.stderr
    assert not output.exists(), "it appears when it is whole"
    subprocess.run(["samtools", "quickcheck", "-u", part], check=True)
    counts = json.loads(summary.read_text())
    assert counts["reads_received"] == counts["reads_called"] + counts["reads_rejected"], "all that were sent came back"
    assert 5 <= len(names(part)) == counts["reads_called"] < READS - 5

    result = call(reads, "-r", "--server", server, "-o", whole, "--resume-from", part, "--emit-summary")
    assert result.exit_code == 0, result.stderr
    assert f"{len(names(part))} reads taken from {part}, {READS - len(names(part))} left to call" in result.stderr
    assert call(reads, "-r", "--server", server, "-o", tmp_path / "b.bam", "--emit-summary").exit_code == 0
    assert records(whole) == records(tmp_path / "b.bam")
    tables = [sorted((tmp_path / f"{name}.sequencing_summary.txt").read_text().splitlines()) for name in ("whole", "b")]
    assert tables[0] == tables[1]


@pytest.mark.usefixtures("small_window", "restored_signals")
def test_a_second_signal_stops_at_once(
    server: str, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.1)

    with monkeypatch.context() as patched:
        at_record(patched, 3, twice)
        result = call(reads, "-r", "--server", server, "-o", tmp_path / "a.bam")
    assert result.exit_code == 130, result.stderr
    assert "stopped by Ctrl-C; the reads called so far are in" in result.stderr
    subprocess.run(["samtools", "quickcheck", "-u", tmp_path / "a.bam.partial"], check=True)
    assert (
        call(reads, "-r", "--server", server, "-o", tmp_path / "b.bam", "--resume-from", tmp_path / "a.bam").exit_code
        == 0
    )
    assert names(tmp_path / "b.bam") == all_but_empty()


@pytest.mark.usefixtures("small_window", "restored_signals")
def test_a_server_that_is_lost(start_server, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    first = start_server(threads=1)
    with monkeypatch.context() as patched:
        at_record(patched, 4, first.stop)
        result = call(reads, "-r", "--server", first.address, "--give-up-s", "0.5", "-o", tmp_path / "a.bam")
    assert result.exit_code == 4, result.stderr
    assert "Error: server lost: " in result.stderr
    assert "reads without a result" in result.stderr
    assert "--resume-from" in result.stderr
    second = start_server(threads=1)
    result = call(
        reads, "-r", "--server", second.address, "-o", tmp_path / "b.bam", "--resume-from", tmp_path / "a.bam"
    )
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path / "b.bam") == all_but_empty()


def test_a_disk_that_fills_up(server: str, reads: Path, tmp_path: Path) -> None:
    """A limit on a file's size is met in the midst of writing, as the end of a disk is."""
    command = ["prlimit", "--fsize=30000", *COMMAND]
    arguments = ["call", str(reads), "-r", "--server", server, "--emit-moves", "-o", str(tmp_path / "a.sam")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"Error: cannot write to {tmp_path / 'a.sam.partial'}: " in done.stderr
    result = call(
        reads, "-r", "--server", server, "--emit-moves", "-o", tmp_path / "b.sam", "--resume-from", tmp_path / "a.sam"
    )
    assert result.exit_code == 0, result.stderr
    assert "\n0 reads taken" not in result.stderr
    assert call(reads, "-r", "--server", server, "--emit-moves", "-o", tmp_path / "c.sam").exit_code == 0
    assert records(tmp_path / "b.sam") == records(tmp_path / "c.sam")


def test_a_call_that_was_killed(server: str, reads: Path, tmp_path: Path) -> None:
    """SIGKILL: no file was finished; what is complete in it is taken over, whatever it is."""
    out = tmp_path / "a.bam"
    process = subprocess.Popen(
        [*COMMAND, "call", str(reads), "-r", "--server", server, "-o", str(out)], stderr=subprocess.DEVNULL
    )
    while not partial_of(out).exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "b.bam", "--resume-from", out)
    assert result.exit_code == 0, result.stderr
    assert call(reads, "-r", "--server", server, "-o", tmp_path / "c.bam").exit_code == 0
    assert records(tmp_path / "b.bam") == records(tmp_path / "c.bam")


def test_what_cannot_be_resumed(server: str, reads: Path, tmp_path: Path) -> None:
    part = tmp_path / "a.bam"
    assert call(reads / "a.pod5", "--server", server, "-o", part).exit_code == 0
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "folder/a.bam", "--resume-from", part.parent)
    assert result.exit_code == 2
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "b.bam", "--resume-from", part, "--min-qscore", "9")
    assert result.exit_code == 1
    assert f"{part} was made with min_qscore=0, but this call has 9" in result.stderr
    assert not (tmp_path / "b.bam").exists()
    result = call(reads, "-r", "--server", server, "-o", tmp_path / "b.bam", "--resume-from", tmp_path / "none.bam")
    assert result.exit_code == 1
    assert "none.bam nor " in result.stderr


# What does not go together


def test_chemistries(start_server, make_bundle, reads: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fitting, other = "dna_r9.4.1_e8.1_fast@v9", "dna_r10.4.1_e8.2_400bps_fast@v4.1.0"
    address = start_server(model=[make_bundle(tmp_path / name) for name in (fitting, other)]).address
    result = call(reads / "a.pod5", "--server", address, "--model", other, "-o", tmp_path / "a.bam")
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error == (
        "Error: run run-a (FLO-MIN106, sqk-lsk109) is R9.4.1 DNA (450 bases/s) at 4 kHz, but "
        f"{other} is for R10.4.1 DNA (400 bases/s) at 4 kHz; for such a run use {fitting}; "
        "--allow-chemistry-mismatch calls it anyway"
    )
    assert not (tmp_path / "a.bam").exists()
    arguments = (reads / "a.pod5", "--server", address, "--model", other, "-o", tmp_path / "a.bam")
    result = call(*arguments, "--allow-chemistry-mismatch")
    assert result.exit_code == 0
    assert "called anyway, as requested" in result.stderr
    result = call(reads / "a.pod5", "--server", address, "--model", "auto", "-o", tmp_path / "b.bam")
    assert result.exit_code == 0
    with pysam.AlignmentFile(str(tmp_path / "b.bam"), check_sq=False) as file:
        assert f"basecall_model={fitting} " in file.header.to_dict()["PG"][0]["DS"]


def test_a_server_of_something_else(reads: Path, tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop, None)
        result = call(reads / "a.pod5", "--server", f"127.0.0.1:{port}", "-o", tmp_path / "a.bam")
    assert result.exit_code == 1
    assert (
        f"Error: 127.0.0.1:{port} is not a porestream server, or runs an incompatible version: UNIMPLEMENTED"
        in result.stderr
    )


def test_a_server_of_another_version(server: str, reads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porestream.cli.caller.version", lambda _: "9.9.9")
    result = call(reads / "a.pod5", "--server", server, "-o", tmp_path / "a.bam")
    assert result.exit_code == 0
    assert "note: the server runs porestream 0.1.0, this is 9.9.9" in result.stderr


def test_the_same_read_in_two_files(server: str, reads: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pod5"
    copy.write_bytes((reads / "a.pod5").read_bytes())
    result = call(reads / "a.pod5", copy, "--server", server, "-o", tmp_path / "a.bam")
    assert result.exit_code == 0
    assert "50 reads: 24 called, 0 filtered, 26 rejected, 0 failed" in result.stderr
    assert "rejected or failed: 25 duplicate, 1 empty" in result.stderr
    assert f"more rejected and failed reads are in {tmp_path / 'a.rejected_reads.tsv'}" in result.stderr
    assert len((tmp_path / "a.rejected_reads.tsv").read_text().splitlines()) == 27
    assert len(names(tmp_path / "a.bam")) == 24


@pytest.mark.parametrize("target", ["/sys/calls.bam", "/proc/calls.fastq"])
def test_a_folder_that_cannot_be_written_to(server: str, reads: Path, tmp_path: Path, target: str) -> None:
    result = call(reads / "a.pod5", "--server", server, "-o", target, "--rejected-reads", tmp_path / "rejected.tsv")
    assert result.exit_code == 1
    assert f"Error: cannot write to {target}: " in result.stderr


def test_odd_files_are_called_or_named(server: str, shared_data: Path, tmp_path: Path) -> None:
    """Files that went through other software: fields that are missing, of another type, with tabs and line ends."""
    out = tmp_path / "a.bam"
    result = call(shared_data / "odd_pod5", "--server", server, "-o", out)
    assert result.exit_code == 3
    named = [line for line in result.stderr.splitlines() if line.startswith("cannot read ")]
    assert len(named) == 3
    assert result.stderr.splitlines()[-1].startswith("Error: 3 of the inputs could not be read")
    subprocess.run(["samtools", "quickcheck", "-u", out], check=True)
    assert names(out)


def test_a_hundred_rejected_reads_without_a_file_are_counted(server: str, reads: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pod5"
    copy.write_bytes((reads / "a.pod5").read_bytes())
    command = [*COMMAND, "call", str(reads / "a.pod5"), str(copy), "--server", server]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    lines = done.stderr.decode().splitlines()
    assert sum(" rejected: " in line for line in lines) == 20
    assert "more rejected and failed reads are only counted; --rejected-reads FILE lists all" in lines
