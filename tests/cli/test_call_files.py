"""Files that `porestream call` reads and writes: none is destroyed, none is stale, and runs in them are told apart."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam
import pytest
from click.testing import CliRunner, Result

from porestream.cli.main import main
from porestream.client.outputs import records as records_module
from porestream.client.outputs.output_file import OutputFile
from porestream.client.outputs.writers import RecordWriter

READS = 24
CONTIG = "".join(np.random.default_rng(7).choice(list("ACGT"), 3000))
NO_MODEL = ["--model", "porestream_dna_r10.4.1_400bps_fast@v1"]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "genome.fasta"
    path.write_text(f">contig\n{CONTIG}\n")
    return path


@pytest.fixture
def server(start_server, reference: Path) -> str:  # type: ignore[no-untyped-def]
    return str(start_server(threads=1, reference=[reference]).address)


@pytest.fixture
def run(tmp_path: Path, write_pod5: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(4)
    (tmp_path / "pod5").mkdir()
    return write_pod5(
        tmp_path / "pod5/a.pod5",
        [rng.normal(500, 60, 0 if number == 5 else 1500).astype(np.int16) for number in range(READS)],
    )


@pytest.fixture(autouse=True)
def restored_signals() -> Iterator[None]:
    """The command takes SIGINT, and leaves the default."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["call", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    return result


def interrupted(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    """A call that Ctrl-C stops as its sixth read is written, with few under way."""
    write, count = RecordWriter.write, 0

    def counted(self: RecordWriter, result: object) -> None:
        nonlocal count
        count += 1
        if count == 6:
            signal.raise_signal(signal.SIGINT)
        write(self, result)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("porestream.client.client._AHEAD_READS", 2)
        patched.setattr("porestream.client.stream._MIN_WINDOW_SAMPLES", 1_000_000)  # a few reads are the whole window
        patched.setattr(RecordWriter, "write", counted)
        result = call(*arguments)
    assert result.exit_code == 130, result.stderr
    return result


def contents(path: Path) -> list[str]:
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return sorted(record.to_string() for record in file.fetch(until_eof=True))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} - {"genome.fasta"}


# Going on


@pytest.mark.parametrize("name", ["calls.bam", "calls.bam.partial"])
@pytest.mark.parametrize("sort", [[], ["--sort"]])
def test_the_same_command_goes_on_in_place(
    server: str, run: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sort: list[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    same = (run, "--server", server, "--reference", reference, "-o", out / "calls.bam", "--emit-summary", *sort)
    result = interrupted(monkeypatch, *same)
    made = {"calls.bam", "calls.sequencing_summary.txt", "calls.rejected_reads.tsv"}
    assert names(out) == {f"{name}.partial" for name in made}
    assert f"to continue, run the same command with --resume-from {out}/calls.bam.partial" in result.stderr
    again = interrupted(monkeypatch, *same, "--resume-from", out / name)
    assert "\n0 reads taken" not in again.stderr
    result = call(*same, "--resume-from", out / name)
    assert result.exit_code == 0, result.stderr
    indexes = {"calls.bam.bai"} if sort else set()
    assert names(out) == made | indexes
    whole = (run, "--server", server, "--reference", reference, "-o", tmp_path / "whole.bam", "--emit-summary", *sort)
    assert call(*whole).exit_code == 0
    assert contents(out / "calls.bam") == contents(tmp_path / "whole.bam")
    tables = [path.read_text().splitlines() for path in sorted(tmp_path.rglob("*.sequencing_summary.txt"))]
    assert sorted(tables[0]) == sorted(tables[1])


CUTS: dict[str, Callable[[Path], object]] = {
    "amid a row": lambda table: table.write_bytes(table.read_bytes()[:-400]),
    "rows amid it": lambda table: table.write_text("".join(table.read_text().splitlines(keepends=True)[:2])),
    "amid the title": lambda table: table.write_bytes(table.read_bytes()[:50]),
    "empty": lambda table: table.write_bytes(b""),
    "not there": Path.unlink,
    "of another call": lambda table: table.write_text("filename\tread_id\nx\ty\n"),
    "zeros": lambda table: table.write_bytes(table.read_bytes()[:-400] + bytes(400)),
}


@pytest.mark.parametrize("name", ["calls.bam", "calls.sam", "calls.fastq.gz"])
@pytest.mark.parametrize("cut", CUTS)
def test_rows_that_were_lost_are_made_again(
    server: str, run: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cut: str
) -> None:
    """A call that is killed has records on the disk of which the table has no rows yet."""
    aligned = [] if name.endswith("gz") else ["--reference", reference]
    same = (run, "--server", server, *aligned, "--emit-summary")
    interrupted(monkeypatch, *same, "-o", tmp_path / name)
    table = tmp_path / "calls.sequencing_summary.txt.partial"
    rows = table.read_text().splitlines()
    CUTS[cut](table)
    result = call(*same, "-o", tmp_path / name, "--resume-from", tmp_path / name)
    assert result.exit_code == 0, result.stderr
    assert f" of the sequencing summary not found in {table}, rebuilt from the records" in result.stderr
    is_text = name != "calls.bam"
    assert ("rounded to six digits" in result.stderr) is is_text
    assert not table.exists()
    assert call(*same, "-o", tmp_path / "whole.bam").exit_code == 0
    found, found_scores = split(tmp_path / table.stem)
    expected, scores = split(tmp_path / "whole.sequencing_summary.txt")
    assert found == expected
    assert found_scores == (pytest.approx(scores, rel=1e-5) if is_text else scores)
    assert len(rows) < len(found) == READS


def split(table: Path) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Rows by read, without mean qualities, and these."""
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    column = rows[0].index("mean_qscore_template")
    scores = {row[2]: float(row.pop(column)) for row in rows[1:]}
    rows[0].pop(column)
    return {row[2]: row for row in rows}, scores


def test_a_summary_that_was_not_asked_for_before(server: str, run: Path, tmp_path: Path) -> None:
    """Whole, of reads whose POD5 is not named again, and of others."""
    assert call(run, "--server", server, "-o", tmp_path / "a.bam", "-n", "9").exit_code == 0
    same = (run, "--server", server, "--emit-summary", "-o")
    assert call(*same, tmp_path / "b.bam", "--resume-from", tmp_path / "a.bam").exit_code == 0
    assert call(*same, tmp_path / "c.bam").exit_code == 0
    b, c = (sorted((tmp_path / f"{name}.sequencing_summary.txt").read_text().splitlines()) for name in "bc")
    assert b == c


def test_where_both_names_are_there_one_must_be_named(server: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "calls.bam"
    assert call(run, "--server", server, "-o", out, "-n", "3").exit_code == 0
    (tmp_path / "calls.bam.partial").write_bytes(out.read_bytes())
    result = call(run, "--server", server, "-o", tmp_path / "b.bam", "--resume-from", out)
    assert result.exit_code == 1
    assert f"{out} is complete, but a later call left {out}.partial" in result.stderr
    result = call(run, "--server", server, "-o", tmp_path / "b.bam", "--resume-from", f"{out}.partial")
    assert result.exit_code == 0
    assert "3 reads taken from" in result.stderr


def test_a_whole_file_is_added_to_in_place(server: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "calls.bam"
    assert call(run, "--server", server, "-o", out, "-n", "3").exit_code == 0
    before = contents(out)
    result = call(run, "--server", server, "-o", out, "--resume-from", out)
    assert result.exit_code == 0, result.stderr
    assert set(before) < set(contents(out))
    assert len(contents(out)) == READS - 1


def test_what_an_interrupted_call_has_left_is_kept_by_the_next(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "calls.bam"
    interrupted(monkeypatch, run, "--server", server, "-o", out)
    left = contents(tmp_path / "calls.bam.partial")
    assert call(run, "--server", server, "-o", out).exit_code == 0
    assert contents(tmp_path / "calls.bam.partial.old") == left


def test_a_call_that_fails_leaves_what_was_there(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "calls.bam"
    out.write_text("of yesterday")
    (tmp_path / "calls.rejected_reads.tsv").write_text("of yesterday")
    (tmp_path / "calls.bam.bai").write_text("of yesterday")
    interrupted(monkeypatch, run, "--server", server, "-o", out)
    for name in ("calls.bam", "calls.rejected_reads.tsv", "calls.bam.bai"):
        assert (tmp_path / name).read_text() == "of yesterday"


# Inputs and outputs


def conflicts() -> Iterator[tuple[str, str, str]]:
    yield "-l ids.txt --rejected-reads ids.txt -o a.bam", "the table of rejected reads", "the list of --read-ids"
    yield "-l calls.rejected_reads.tsv -o calls.bam", "the table of rejected reads", "the list of --read-ids"
    yield "--summary-json pod5/a.pod5 -o a.bam", "--summary-json", "a file to be called"
    yield "--summary-json linked.pod5 -o a.bam", "--summary-json", "a file to be called"
    yield "--reference genome.fasta --rejected-reads genome.fasta -o a.bam", "the table of rejected", "the reference"
    yield "--summary-json x --rejected-reads x -o a.bam", "the table of rejected reads", "same file as --summary-json"
    yield "--rejected-reads old.bam --resume-from old.bam -o a.bam", "the table of rejected", "call to resume from"
    yield "--resume-from folder -o folder/a.bam", "the output", "the folder to resume from"
    yield "--resume-from folder --output-dir folder", "the output folder", "the folder to resume from"
    yield "--summary-json pod5 -o a.bam", "", "is a directory"


@pytest.mark.parametrize(("flags", "written", "read"), list(conflicts()))
def test_no_file_is_both(server: str, run: Path, tmp_path: Path, flags: str, written: str, read: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("old.bam", "folder/old.bam"):
        assert call(run, "--server", server, "-o", tmp_path / name, "-n", "3").exit_code == 0
    for name in ("ids.txt", "calls.rejected_reads.tsv"):
        (tmp_path / name).write_text(f"{UUID(int=1)}\n")
    (tmp_path / "linked.pod5").hardlink_to(run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = [word if word.startswith("-") else str(tmp_path / word) for word in flags.split()]
    result = call(run, "--server", server, *words)
    assert result.exit_code == 2, result.stderr
    said = result.stderr.splitlines()[-1]
    assert written in said
    assert read in said
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_two_calls_at_once(server: str, run: Path, tmp_path: Path) -> None:
    held = OutputFile(tmp_path / "calls.bam")
    result = call(run, "--server", server, "-o", tmp_path / "calls.bam")
    assert result.exit_code == 1
    assert (
        f"Error: cannot write to {tmp_path}/calls.bam: another call is writing to it; choose another file"
        in result.stderr
    )
    held.release()
    done = [subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "b.bam")], stdout=subprocess.PIPE)]
    assert done[0].stdout is not None
    done[0].stdout.readline()
    assert call(run, "--server", server, "-o", tmp_path / "b.bam").exit_code == 1
    done[0].kill()
    done[0].wait()
    assert call(run, "--server", server, "-o", tmp_path / "b.bam").exit_code == 0


HOLD = """
import sys, time
from pathlib import Path
from porestream.client.outputs.output_file import OutputFile
file = OutputFile(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_in_the_working_folder(server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As most people call it: names without a folder, over what is there, with a model named or not."""
    monkeypatch.chdir(tmp_path)
    interrupted(monkeypatch, "pod5", "--server", server, "-o", "calls.bam")
    assert call("pod5", "--server", server, "-o", "calls.bam", "--resume-from", "calls.bam").exit_code == 0
    for flags in ((), ("--model", "tiny_fast@v1")):
        (tmp_path / "tiny_fast@v1").mkdir(exist_ok=True)
        assert call("pod5", "--server", server, *flags, "-o", "calls.bam", "--emit-summary").exit_code == 0
    assert len(contents(Path("calls.bam"))) == READS - 1


def test_the_table_of_rejected_reads_is_another_calls(server: str, run: Path, tmp_path: Path) -> None:
    held = OutputFile(tmp_path / "calls.rejected_reads.tsv")
    result = call(run, "--server", server, "-o", tmp_path / "calls.fastq")
    assert result.exit_code == 1
    assert "calls.rejected_reads.tsv: another call is writing to it" in result.stderr
    held.release()


def test_what_was_kept_can_be_gone_on_with(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "calls.bam"
    interrupted(monkeypatch, run, "--server", server, "-o", out)
    kept = contents(tmp_path / "calls.bam.partial")
    assert call(run, "--server", server, "-o", tmp_path / "none.bam", "-n", "1").exit_code == 0
    interrupted(monkeypatch, run, "--server", server, "-o", out)
    (tmp_path / "calls.bam.partial").write_bytes((tmp_path / "none.bam").read_bytes())
    result = call(run, "--server", server, "-o", tmp_path / "b.bam", "--resume-from", out)
    assert f"note: {out}.partial.old is larger and may have more reads" in result.stderr
    result = call(run, "--server", server, "-o", out, "--resume-from", tmp_path / "calls.bam.partial.old")
    assert result.exit_code == 0
    assert f"{len(kept)} reads taken from {tmp_path}/calls.bam.partial.old" in result.stderr
    assert set(kept) < set(contents(out))
    assert not list(tmp_path.glob("calls.bam.*"))


def test_a_linked_output_has_its_index_beside_the_link(server: str, run: Path, reference: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/x.bam").touch()
    (tmp_path / "calls.bam").symlink_to("disk/x.bam")
    for name in ("calls.bam.csi", "calls.bai", "disk/x.bam.bai"):
        (tmp_path / name).write_text("stale")
    out = tmp_path / "calls.bam"
    assert call(run, "--server", server, "--reference", reference, "--sort", "-o", out).exit_code == 0
    assert out.is_symlink()
    assert {path.name for path in tmp_path.rglob("*.*ai")} == {"calls.bam.bai"}
    assert not list(tmp_path.rglob("*.csi"))
    with pysam.AlignmentFile(str(out)) as bam:
        assert bam.has_index()


def test_a_list_through_a_pipe(server: str, run: Path, tmp_path: Path) -> None:
    listed = "".join(f"{UUID(int=number)}\n" for number in (2, 3))
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(listed))
    writer.start()
    result = call(run, "--server", server, "-l", tmp_path / "pipe", "-o", tmp_path / "a.bam")
    writer.join()
    assert result.exit_code == 0
    assert len(contents(tmp_path / "a.bam")) == 2


def test_no_index_of_a_file_that_is_gone(server: str, run: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "calls.bam"
    same = (run, "--server", server, "--reference", reference, "-o", out)
    assert call(*same, "--sort").exit_code == 0
    (tmp_path / "calls.bam.csi").write_text("of another tool")
    assert call(*same, "--sort").exit_code == 0
    assert {path.suffix for path in tmp_path.glob("calls.bam.*")} == {".bai"}
    assert call(*same).exit_code == 0
    assert not list(tmp_path.glob("calls.bam.*"))


def test_a_list_that_was_made_on_windows(server: str, run: Path, tmp_path: Path) -> None:
    ids = "".join(f"{UUID(int=number)}\r\n" for number in (2, 3))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "ids.txt").write_bytes(ids.encode(encoding))
        assert call(run, "--server", server, "-l", tmp_path / "ids.txt", "-o", tmp_path / "a.bam").exit_code == 0
        assert len(contents(tmp_path / "a.bam")) == 2


def test_linked_folders_and_dot_files(server: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "links/within").mkdir(parents=True)
    (tmp_path / "links/within/pod5").symlink_to(run.parent)
    (tmp_path / "links/again").symlink_to(run.parent)
    (run.parent / "loop").symlink_to(tmp_path / "links")
    (run.parent / "._a.pod5").write_bytes(b"what macOS writes beside a.pod5")
    result = call(tmp_path / "links", "-r", "--server", server, "-o", tmp_path / "a.bam")
    assert result.exit_code == 0, result.stderr
    assert f"{READS} reads: {READS - 1} called" in result.stderr
    shown = CliRunner().invoke(main, ["info", "-r", str(tmp_path / "links")])
    assert shown.exit_code == 0
    assert f"{READS} in 1 file" in shown.output


# What is in them


def test_a_value_that_no_record_can_hold_costs_a_tag(shared_data: Path, tmp_path: Path) -> None:
    result = call(shared_data / "cases/read_number.pod5", "-o", tmp_path / "a.bam")
    assert result.exit_code == 0, result.stderr
    lines = contents(tmp_path / "a.bam")
    assert len(lines) == 12
    assert sum("\trn:i:" in line for line in lines) == 11
    result = call(shared_data / "cases/read_number.pod5", "-o", tmp_path / "b.bam", "--resume-from", tmp_path / "a.bam")
    assert result.exit_code == 0
    assert contents(tmp_path / "b.bam") == lines


def test_a_read_without_a_record_fails_by_name(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = records_module._tags

    def tags(result, part, model):  # type: ignore[no-untyped-def]
        if result.info.read_id.int == 3:
            raise struct.error("a value that no tag can hold")
        return make(result, part, model)

    monkeypatch.setattr(records_module, "_tags", tags)
    result = call(run, "--server", server, "-o", tmp_path / "a.bam", "--emit-summary")
    assert result.exit_code == 6, "reads that failed are no success"
    assert f"{READS} reads: {READS - 2} called, 0 filtered, 1 rejected, 1 failed" in result.stderr
    assert f"to continue, run the same command with --resume-from {tmp_path}/a.bam" in result.stderr
    assert f"read {UUID(int=3)} of a.pod5 failed: no record: error: a value that no tag can hold" in result.stderr
    assert len(contents(tmp_path / "a.bam")) == READS - 2
    assert str(UUID(int=3)) not in (tmp_path / "a.sequencing_summary.txt").read_text()


@pytest.mark.parametrize("remote", [False, True])
def test_runs_that_share_an_id_are_each_checked(start_server, shared_data: Path, tmp_path: Path, remote: bool) -> None:  # type: ignore[no-untyped-def]
    cases = shared_data / "cases"
    at = ["--server", start_server(model=["auto"], threads=1).address] if remote else []
    for files, run in (
        ([cases / "nonuniq.pod5"], "c" * 40),
        ([cases / "noid_a.pod5", cases / "noid_r9.pod5"], "unknown"),
    ):
        for model in ([], NO_MODEL):
            result = call(*files, *model, *at, "-o", tmp_path / "a.bam")
            assert result.exit_code == 1, result.stderr
            assert "R9.4.1" in result.stderr.splitlines()[-1]
        result = call(*files, *NO_MODEL, *at, "--allow-chemistry-mismatch", "-o", tmp_path / "a.bam")
        assert result.exit_code == 0, result.stderr
        with pysam.AlignmentFile(str(tmp_path / "a.bam"), check_sq=False) as bam:
            groups = {group["ID"]: group for group in bam.header.to_dict()["RG"]}
            samples = {groups[str(record.get_tag("RG"))]["SM"]: record for record in bam.fetch(until_eof=True)}
        assert len(groups) == len(samples) == 2
        assert all(f"runid={run} " in group["DS"] for group in groups.values())
        rates = [round(record.get_tag("ns") / record.get_tag("du")) for _, record in sorted(samples.items())]
        assert rates == [5000, 4000]


def test_the_other_runs_of_a_file_do_not_matter(shared_data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    mixed = shared_data / "cases/nonuniq.pod5"
    result = call(mixed, *NO_MODEL, "--allow-chemistry-mismatch", "-o", tmp_path / "both.bam")
    with pysam.AlignmentFile(str(tmp_path / "both.bam"), check_sq=False) as bam:
        first = next(record for record in bam.fetch(until_eof=True) if "-" not in str(record.get_tag("RG")))
    listed.write_text(f"{first.query_name}\n")
    result = call(mixed, "-l", listed, "-o", tmp_path / "a.bam")
    assert result.exit_code == 0, result.stderr
    assert [line.split("\t")[0] for line in contents(tmp_path / "a.bam")] == [first.query_name]


# References


@pytest.mark.parametrize("form", ["bam", "cram"])
def test_another_reference_of_the_same_name(server: str, run: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine/genome.fasta"
    mine.write_text(f">contig\n{CONTIG[:-1]}{'A' if CONTIG[-1] != 'A' else 'C'}\n")
    result = call(run, "--server", server, "--reference", mine, "-o", tmp_path / f"a.{form}")
    assert result.exit_code == 1
    assert (
        f"Error: reference {mine} is not the same as genome.fasta on {server}: sequence contig differs" in result.stderr
    )
    assert not list(tmp_path.glob("a.*"))
    mine.write_text(f">contig\n{CONTIG.lower()}\n")
    assert call(run, "--server", server, "--reference", mine, "-o", tmp_path / f"a.{form}").exit_code == 0


@pytest.mark.parametrize("name", ["*", "=a", "a,b", "a(1)", "it's", "a\\b", "<x>"])
def test_names_that_sam_does_not_allow(run: Path, tmp_path: Path, name: str) -> None:
    odd = tmp_path / "odd.fasta"
    odd.write_text(f">{name}\n{CONTIG}\n")
    result = call(run, *NO_MODEL, "--allow-chemistry-mismatch", "--reference", odd, "-o", tmp_path / "a.bam")
    assert result.exit_code == 1
    assert f"SAM does not allow the name {name!r}" in result.stderr
    assert not (tmp_path / "a.bam").exists()


# A hang-up


def test_a_terminal_that_hangs_up(server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP comes, and what stands on the terminal fails: the reads under way are finished all the same."""
    ours, theirs = pty.openpty()
    script = tmp_path / "hang_up.py"
    script.write_text(HANG_UP)
    command = [sys.executable, script, "call", str(run), "--server", server, "-o", str(tmp_path / "a.bam")]
    process = subprocess.Popen(
        [*command, "--summary-json", str(tmp_path / "a.json")], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    while not (tmp_path / "at-the-sixth").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.close(ours)
    (tmp_path / "closed").touch()
    assert process.wait(60) == 129
    counts = json.loads((tmp_path / "a.json").read_text())
    assert 6 <= counts["reads_called"] == len(contents(tmp_path / "a.bam.partial"))


HANG_UP = """
import os, signal, sys, time
from pathlib import Path
from porestream.cli.main import main
from porestream.client.outputs.writers import RecordWriter

folder, write, count = Path(__file__).parent, RecordWriter.write, 0

def counted(self, result):
    global count
    count += 1
    if count == 6:
        (folder / "at-the-sixth").touch()
        while not (folder / "closed").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
    write(self, result)

RecordWriter.write = counted
main()
"""
