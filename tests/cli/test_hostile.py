"""`porestream call` on inputs and servers that are broken, or worse: all is named, nothing is lost, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam
import pytest
from click.testing import CliRunner, Result
from fake_server import REFERENCE, FakeServer, batch, honest_result, server_info, serving

from porestream.cli.choose import ChemistryCheck
from porestream.cli.main import main
from porestream.cli.progress import say
from porestream.client.reads import RunInfo
from porestream.models.files.chemistry import Chemistry
from porestream.v1 import porestream_pb2 as pb

READS = 12
LONG = "x" * 300


@pytest.fixture
def reads(tmp_path: Path, write_pod5: Callable[..., Path]) -> Path:
    """Every second read is of a run with an id that no server takes."""
    rng = np.random.default_rng(4)
    (tmp_path / "pod5").mkdir()
    signals = [rng.normal(500, 60, 1500).astype(np.int16) for _ in range(READS)]
    return write_pod5(tmp_path / "pod5/a.pod5", signals, run_ids=("run-a", LONG))


@pytest.fixture
def one_run(tmp_path: Path, write_pod5: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(4)
    return write_pod5(tmp_path / "one.pod5", [rng.normal(500, 60, 1500).astype(np.int16) for _ in range(READS)])


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["call", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    return result


def names(path: Path) -> set[int]:
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return {UUID(record.query_name).int for record in file.fetch(until_eof=True)}


@pytest.mark.parametrize("output", ["-o", "--output-dir"])
def test_one_odd_run_does_not_end_the_others(start_server, reads: Path, tmp_path: Path, output: str) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / ("calls.bam" if output == "-o" else "calls")
    books = tmp_path / "books.json"
    server = start_server(threads=1)
    result = call(reads, "--server", server.address, output, out, "--emit-summary", "--summary-json", books)
    assert result.exit_code == 0, result.stderr
    odd, others = set(range(2, READS + 1, 2)), set(range(1, READS + 1, 2))
    assert set().union(*map(names, [out] if output == "-o" else out.rglob("*.bam"))) == others
    table = tmp_path / "calls.rejected_reads.tsv" if output == "-o" else out / "rejected_reads.tsv"
    rows = [row.split("\t") for row in table.read_text().splitlines()[1:]]
    assert {UUID(row[0]).int for row in rows} == odd
    why = f"run not sendable: its id has 300 characters; servers accept at most 256 (run {'x' * 60}...)"
    assert {(row[2], row[3]) for row in rows} == {("rejected", why)}
    assert f"{READS} reads: 6 called, 0 filtered, 6 rejected, 0 failed" in result.stderr
    assert "rejected or failed: 6 run not sendable; listed in" in result.stderr
    figures = json.loads(books.read_text())
    assert (figures["reads_rejected"], figures["reads_unsent"], figures["reconnects"]) == (6, 6, 0)


def test_a_result_that_cannot_be_fails_its_read(one_run: Path, tmp_path: Path) -> None:
    def spoil(result: pb.ReadResult) -> None:
        number, (part,) = UUID(bytes=result.read_id).int, result.parts
        if number == 3:
            part.alignments[0].reference_start = 1 << 40
        elif number == 5:
            part.qualities = b"\1"

    with serving(FakeServer(change=spoil)) as target:
        out = tmp_path / "calls.bam"
        result = call(one_run, "--server", target, "--reference", REFERENCE, "--sort", "--emit-summary", "-o", out)
    assert result.exit_code == 6, result.stderr
    assert names(out) == set(range(1, READS + 1)) - {3, 5}
    rows = (tmp_path / "calls.rejected_reads.tsv").read_text().splitlines()
    assert sorted(UUID(row.split("\t")[0]).int for row in rows[1:]) == [3, 5]
    assert all("\tfailed\tthe server sent an impossible result: " in row for row in rows[1:])
    assert len((tmp_path / "calls.sequencing_summary.txt").read_text().splitlines()) == READS - 1


def test_a_stream_that_cannot_be_ends_the_call_and_the_rest_can_be_called(one_run: Path, tmp_path: Path) -> None:
    def answer(result: pb.ReadResult, seq: int) -> list[pb.StreamReadsResponse | bytes]:
        return [batch(seq, result if seq < 6 else honest_result(UUID(int=99).bytes, 1500))]

    out = tmp_path / "calls.bam"
    with serving(FakeServer(answer=answer)) as target:
        result = call(one_run, "--server", target, "--reference", REFERENCE, "-o", out)
        assert result.exit_code == 1, result.stderr
        last = result.stderr.splitlines()[-1]
        assert f"it sent a result for read {UUID(int=99)}, which is not waiting for one" in last
        assert f"to continue, run the same command with --resume-from {out}.partial" in last
    with serving(FakeServer()) as target:
        result = call(one_run, "--server", target, "--reference", REFERENCE, "-o", out, "--resume-from", out)
    assert result.exit_code == 0, result.stderr
    assert names(out) == set(range(1, READS + 1))


def test_a_server_without_the_model_that_it_calls_with(one_run: Path, tmp_path: Path) -> None:
    info = server_info()
    info.models[0].name = "another"
    with serving(FakeServer(info)) as target:
        result = call(one_run, "--server", target, "-o", tmp_path / "calls.bam")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: the server would call with 'tiny_fast@v1', but lists only another"


ALIKE = ("run\x01", "run\x02", "run_")


def test_a_server_with_much_to_say_does_not_fill_the_terminal(one_run: Path, tmp_path: Path) -> None:
    info = server_info()
    info.version = "9" * 1_000_000
    info.models[0].name = "another" * 100_000
    with serving(FakeServer(info)) as target:
        result = call(one_run, "--server", target, "-o", tmp_path / "calls.bam")
    assert result.exit_code == 1
    assert "note: the server runs porestream 999" in result.stderr
    assert "Error: the server would call with 'tiny_fast@v1', but lists only another" in result.stderr
    assert len(result.stderr) < 2000


def test_what_files_say_is_cut_in_messages() -> None:
    flow_cell, kit = (f"{name}{'y' * 1_000_000}" for name in ("FLO-MIN106", "SQK-LSK112"))
    run = RunInfo(run_id="x" * 1_000_000, sample_rate_hz=4000, flow_cell_product_code=flow_cell, sequencing_kit=kit)
    model, made_for = "dna_r10.4.1_e8.2_400bps_fast@v5.0.0", Chemistry(molecule="dna", pore="r10.4.1")
    mismatch = ChemistryCheck(model, {model: made_for}, {}, allowed=False).mismatch(run)
    warnings = ChemistryCheck(model, {model: made_for}, {}, allowed=True).warnings(run)
    assert f"run {'x' * 60}... (FLO-MIN106{'y' * 50}..., SQK-LSK112{'y' * 50}...) is R9.4.1" in mismatch
    assert [len(words) < 1000 for words in (mismatch, *warnings)] == [True] * 3


def test_a_long_message_keeps_its_beginning_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    say("begins " + "x" * 1_000_000 + "\x1b[2J; a way out")
    said = capsys.readouterr().err
    assert said.startswith("begins xxx")
    assert said.endswith("xx\\x1b[2J; a way out\n")
    assert "... (998,0" in said
    assert len(said) < 2100
    say("\n".join(map(str, range(1_000_000))))
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[20], lines[-1], len(lines)) == ("0", "... (999,960 lines) ...", "999999", 41)


def test_runs_that_look_alike_in_sam_have_groups_of_their_own(
    start_server,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    write_pod5: Callable[..., Path],
) -> None:
    """Also where a call goes on with the files in another order."""
    rng = np.random.default_rng(4)
    files = [
        write_pod5(tmp_path / f"{place}.pod5", [rng.normal(500, 60, 1500).astype(np.int16)] * 2, (name,), 2 * place)
        for place, name in enumerate(ALIKE)
    ]
    same = ("--server", start_server(threads=1).address, "--emit-summary", "-o")

    def groups(path: Path) -> dict[int, str]:
        with pysam.AlignmentFile(str(path), check_sq=False) as file:
            named = [group["ID"] for group in file.header.to_dict()["RG"]]
            found = {UUID(record.query_name).int: str(record.get_tag("RG")) for record in file.fetch(until_eof=True)}
        assert len(named) == len(set(named)) == len(ALIKE)
        assert set(found.values()) == set(named)
        return found

    assert call(*files, *same, tmp_path / "a.bam", "-n", "5").exit_code == 0
    assert call(*files[::-1], *same, tmp_path / "b.bam", "--resume-from", tmp_path / "a.bam").exit_code == 0
    assert call(*files, *same, tmp_path / "c.bam").exit_code == 0
    first, resumed, whole = (groups(tmp_path / f"{name}.bam") for name in "abc")
    assert resumed == whole
    assert first.items() < whole.items()
    assert [whole[2 * place] == whole[2 * place + 1] for place in range(len(ALIKE))] == [True] * len(ALIKE)
    assert whole[4] == "run__tiny_fast@v1"
    tables = [sorted((tmp_path / f"{name}.sequencing_summary.txt").read_text().splitlines()) for name in "bc"]
    assert tables[0] == tables[1]
