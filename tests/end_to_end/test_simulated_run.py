"""Simulated reads through the command and the server, with the model that ships: nothing from outside is needed.

Places, tags and moves are compared with the simulation's truth; the same bytes come whatever happens to the server.

Dimensions: B bases of a read's truth, C called bases, M called bases that are aligned as matches.
"""

import csv
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5
import pysam
import pytest
from structlog.testing import capture_logs

from porestream.client import Pod5Source, StreamOptions, SyncBasecallClient
from porestream.client.outputs.output_file import partial_of

PORESTREAM = [sys.executable, "-m", "porestream.cli.main"]
MODEL = "porestream_dna_r10.4.1_400bps_fast@v1"
READS = 40
SOME = 12
"""Reads, where fewer do: the first ones of the file."""

LEAST_MEDIAN_IDENTITY = 0.82
MOST_UNMAPPED = 2
MOST_LOST_BY_BF16 = 0.002
MOST_MOVE_ERROR_SAMPLES = 12
"""Of each read, the median distance of a base's move from its true first sample: two steps, or one base at 5 kHz."""
MOST_MOVE_DRIFT_SAMPLES = 3
TWO_BASES_SAMPLES = 25
"""Between a read's beginning and its end: a wrong stride would come to hundreds."""

Row = dict[str, str]


def environment(folder: Path) -> dict[str, str]:
    """Without the user's settings and models."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")}
    return clean | {"XDG_DATA_HOME": str(folder)}


@dataclass(frozen=True)
class Called:
    """What a call left."""

    bam: Path
    stderr: str

    @property
    def primaries(self) -> dict[str, pysam.AlignedSegment]:
        """By read; each has one."""
        with pysam.AlignmentFile(str(self.bam), check_sq=False) as file:
            records = [record for record in file if not record.flag & 0x900]
        names = Counter(record.query_name for record in records)
        assert set(names.values()) == {1}
        return {record.query_name: record for record in records}

    @property
    def texts(self) -> list[str]:
        """All records as SAM lines, sorted."""
        with pysam.AlignmentFile(str(self.bam), check_sq=False) as file:
            return sorted(record.to_string() for record in file)


def call(folder: Path, *arguments: object, program: Sequence[str] = PORESTREAM) -> Called:
    bam = folder / "calls.bam"
    command = [*program, "call", *map(str, arguments), "-o", str(bam)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(folder))
    assert done.returncode == 0, done.stderr
    return Called(bam, done.stderr)


def truth_of(run: Path, reads: int = READS) -> dict[str, Row]:
    """Of the first reads."""
    with run.with_suffix(".truth.tsv").open() as table:
        return {row["read_id"]: row for row in islice(csv.DictReader(table, delimiter="\t"), reads)}


def first_names(run: Path, reads: int = SOME) -> list[str]:
    with pod5.Reader(run) as reader:
        return [str(read.read_id) for read in islice(reader.reads(), reads)]


def some(texts: list[str], run: Path, reads: int = SOME) -> list[str]:
    """The records of the first reads."""
    names = set(first_names(run, reads))
    return [text for text in texts if text.split("\t", 1)[0] in names]


@pytest.fixture(scope="module")
def reference(simulated_run: Path) -> Path:
    return simulated_run / "reference.fasta"


@pytest.fixture(scope="module")
def run(simulated_run: Path) -> Path:
    return simulated_run / "run_35.pod5"


@pytest.fixture(scope="module")
def truth(run: Path) -> dict[str, Row]:
    return truth_of(run)


@pytest.fixture(scope="module")
def run_4khz(simulated_run: Path, reference: Path, simulate_run: Callable[..., Path]) -> Path:
    return simulate_run(simulated_run, reference, 45, sample_rate_hz=4000)


@pytest.fixture(scope="module")
def called(run: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Called:
    """The 5 kHz run, on a server of the command's own, in fp32."""
    folder = tmp_path_factory.mktemp("called")
    return call(folder, run, "--reference", reference, "--emit-moves", "--precision", "fp32")


@pytest.fixture(scope="module")
def two_runs(run: Path, run_4khz: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Called:
    """The 5 kHz run and some of the 4 kHz one in one call, in the precision that the processor is best at."""
    options = ("--reference", reference, "--emit-moves", "-n", READS + SOME)
    return call(tmp_path_factory.mktemp("two"), run, run_4khz, *options)


# Without --model


def test_the_bundled_model_is_chosen_and_said_so(called: Called) -> None:
    assert f"model: {MODEL}, " in called.stderr
    assert "ONT's models call better" in called.stderr
    with pysam.AlignmentFile(str(called.bam)) as file:
        program = file.header.to_dict()["PG"][0]
    assert f"basecall_model={MODEL} " in program["DS"]


def test_the_books_and_the_file(called: Called) -> None:
    assert f"{READS} reads: {READS} called, 0 filtered, 0 rejected, 0 failed; " in called.stderr
    pysam.quickcheck("-v", str(called.bam))


# Places


def identity(record: pysam.AlignedSegment) -> float:
    """Matches over alignment columns."""
    matched, inserted, deleted = record.get_cigar_stats()[0][:3]
    columns = matched + inserted + deleted
    return float((columns - record.get_tag("NM")) / columns)


def check_places(records: dict[str, pysam.AlignedSegment], truth: dict[str, Row]) -> None:
    assert records.keys() == truth.keys()
    mapped = {name: record for name, record in records.items() if record.is_mapped}
    assert len(mapped) >= len(truth) - MOST_UNMAPPED
    for name, record in mapped.items():
        row = truth[name]
        assert (record.reference_name, record.is_reverse) == (row["contig"], row["strand"] == "-")
        overlap = min(record.reference_end, int(row["end"])) - max(record.reference_start, int(row["start"]))
        assert overlap > 0.9 * record.reference_length, "of the aligned stretch, what the read is from"
    assert statistics.median(map(identity, mapped.values())) > LEAST_MEDIAN_IDENTITY
    for name, record in records.items():
        assert record.query_length == pytest.approx(int(truth[name]["bases"]), rel=0.25)


def test_every_read_maps_where_it_is_from(called: Called, truth: dict[str, Row]) -> None:
    check_places(called.primaries, truth)


def test_reads_at_4_khz_are_resampled_and_map_too(two_runs: Called, run_4khz: Path) -> None:
    truth = truth_of(run_4khz, SOME)
    check_places({name: record for name, record in two_runs.primaries.items() if name in truth}, truth)


def test_two_runs_in_one_call_are_told_apart(
    two_runs: Called, called: Called, run: Path, run_4khz: Path, truth: dict[str, Row]
) -> None:
    expected = {}
    for path, reads in ((run, READS), (run_4khz, SOME)):
        with pod5.Reader(path) as reader:
            first = islice(reader.reads(), reads)
            expected |= {str(read.read_id): (path.name, read.run_info.acquisition_id) for read in first}
    assert len(expected) == READS + SOME
    found = two_runs.primaries
    groups = {name: (record.get_tag("fn"), record.get_tag("RG")) for name, record in found.items()}
    assert groups == {name: (file, f"{run_id}_{MODEL}") for name, (file, run_id) in expected.items()}
    with pysam.AlignmentFile(str(two_runs.bam)) as file:
        assert {line["ID"] for line in file.header.to_dict()["RG"]} == {group for _, group in groups.values()}
    check_places({name: found[name] for name in truth}, truth)


def test_bf16_costs_next_to_nothing(two_runs: Called, called: Called) -> None:
    """Where this processor computes it; elsewhere both are fp32."""
    bf16, fp32 = two_runs.primaries, called.primaries
    both = [name for name, record in fp32.items() if record.is_mapped and bf16[name].is_mapped]
    lost = [identity(fp32[name]) - identity(bf16[name]) for name in both]
    assert statistics.fmean(lost) < MOST_LOST_BY_BF16


# Tags


def test_tags_are_those_of_the_instrument_and_the_truth(called: Called, run: Path, truth: dict[str, Row]) -> None:
    began = datetime(2025, 1, 1, tzinfo=UTC)
    records = called.primaries
    leaders = tails = 0
    with pod5.Reader(run) as reader:
        for read in reader.reads():
            record, row = records[str(read.read_id)], truth[str(read.read_id)]
            tags = dict(record.get_tags())
            assert (tags["ch"], tags["mx"], tags["rn"]) == (read.pore.channel, read.pore.well, read.read_number)
            assert (tags["ch"], tags["mx"]) == (int(row["channel"]), int(row["well"]))
            assert read.num_samples == int(row["samples"])
            cut = read.num_samples - tags["ns"]  # with the adapter behind the read
            assert 0 <= cut < int(row["tail_samples"]) + TWO_BASES_SAMPLES, "no base of the read itself is trimmed"
            assert tags["du"] == pytest.approx(tags["ns"] / 5000)
            start = began + timedelta(seconds=int(row["start_sample"]) / 5000)
            assert tags["st"] == start.isoformat(timespec="milliseconds")
            assert tags["RG"] == f"{read.run_info.acquisition_id}_{MODEL}"
            left = int(row["leader_samples"]) - tags["ts"]  # of what is before the read
            assert left > -TWO_BASES_SAMPLES, "no base of the read itself is trimmed"
            leaders += left < 4 * TWO_BASES_SAMPLES
            tails += cut > 0
            counted_C = np.array(record.get_forward_qualities()[60:], float)
            assert tags["qs"] == pytest.approx(-10 * np.log10(np.mean(10 ** (counted_C / -10))), abs=0.01)
    assert leaders >= 0.9 * READS, "adapters before the reads are trimmed"
    assert tails > 0.7 * sum(int(row["tail_samples"]) > 0 for row in truth.values())


# Moves


def move_errors(record: pysam.AlignedSegment, row: Row, stride: int) -> npt.NDArray[np.int64]:
    """Where the moves say that bases begin, less where they do, in samples and in their order; (M,) int64."""
    moves = np.array(record.get_tag("mv"))
    assert moves[0] == stride
    starts_C = record.get_tag("ts") + stride * np.flatnonzero(moves[1:])
    assert starts_C.size == record.query_length
    assert moves.size - 1 == (record.get_tag("ns") - record.get_tag("ts")) // stride
    true_B = np.array(row["boundaries"].split(","), int)
    matches = np.array(
        [(q, r) for q, r, base in record.get_aligned_pairs(matches_only=True, with_seq=True) if base.isupper()]
    )
    called_M, truth_M = matches[:, 0], matches[:, 1] - int(row["start"])
    if record.is_reverse:
        called_M, truth_M = record.query_length - 1 - called_M[::-1], true_B.size - 1 - truth_M[::-1]
    inside_M = (truth_M >= 0) & (truth_M < true_B.size)  # adapters may match what lies beside the read
    errors_M: npt.NDArray[np.int64] = starts_C[called_M[inside_M]] - true_B[truth_M[inside_M]]
    return errors_M


@pytest.mark.parametrize(("rate_hz", "stride"), [(5000, 6), (4000, 4)])
def test_moves_say_where_bases_begin(
    called: Called, two_runs: Called, run: Path, run_4khz: Path, rate_hz: int, stride: int
) -> None:
    """At 4 kHz the network has 4.8 measured samples a step: this is the way back."""
    records, truth = (called, truth_of(run)) if rate_hz == 5000 else (two_runs, truth_of(run_4khz, SOME))
    errors = [
        move_errors(record, truth[name], stride)
        for name, record in records.primaries.items()
        if name in truth and record.is_mapped
    ]
    assert len(errors) >= len(truth) - MOST_UNMAPPED
    assert max(np.median(np.abs(errors_M)) for errors_M in errors) < MOST_MOVE_ERROR_SAMPLES
    drifts = [np.median(errors_M[-300:]) - np.median(errors_M[:300]) for errors_M in errors]
    assert abs(statistics.median(drifts)) < MOST_MOVE_DRIFT_SAMPLES


# Servers


class Server:
    """`porestream serve` on a Unix socket, with one worker, started as its users start it."""

    def __init__(self, folder: Path, reference: Path) -> None:
        self._socket, self._log = folder / "socket", folder / "log"
        self.address = f"unix:{self._socket}"
        options = ["--reference", str(reference), "--precision", "fp32", "-t", "1", "-b", "5", "--grace-s", "1"]
        self._command = [*PORESTREAM, "serve", "--listen", self.address, *options]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(self._log.parent)
            )
        deadline_s = time.monotonic() + 60
        while not self._socket.exists():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, "the server does not start"
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), reference)
    server.start()
    yield server
    server.process.kill()
    server.process.wait()


def test_a_server_gives_the_same_records_to_the_last_byte(
    server: Server, run: Path, reference: Path, called: Called, tmp_path: Path
) -> None:
    """Though it has other batches and another number of workers. It was told no model: it serves the bundled one."""
    options = ("--reference", reference.name, "--emit-moves", "-n", SOME)
    found = call(tmp_path, run, "--server", server.address, *options)
    assert found.texts == some(called.texts, run)


def test_nothing_is_lost_or_doubled_though_servers_die_and_drain(server: Server, run: Path, called: Called) -> None:
    """Killed after the first result, told to go after the sixth; results are taken one by one."""
    endings = {1: signal.SIGKILL, 6: signal.SIGTERM}
    source, sequences = Pod5Source([run], max_reads=SOME), {}
    options = StreamOptions(reference="reference.fasta")
    with capture_logs() as logs, SyncBasecallClient(server.address, options) as client:
        for number, result in enumerate(client.call(source), 1):
            assert result.info.read_id not in sequences
            (part,) = result.parts
            sequences[result.info.read_id] = part.sequence, part.qualities
            if number in endings:
                code = server.end(endings[number])
                assert code == (0 if endings[number] is signal.SIGTERM else -signal.SIGKILL)
                server.start()
    assert any(line["event"] == "connection lost, trying again" and line["reads_without_result"] for line in logs)
    records = called.primaries
    assert sequences == {
        UUID(name): (records[name].get_forward_sequence(), bytes(records[name].get_forward_qualities()))
        for name in first_names(run)
    }


AT_THE_FIRST_RECORD = """
import os, signal, sys, time
from pathlib import Path
from porestream.cli.main import main
from porestream.client.outputs.writers import RecordWriter

def server():
    return Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text().split()

def act(self, result):
    RecordWriter.write = write
    {action}
    write(self, result)

write, RecordWriter.write = RecordWriter.write, act
main()
"""
"""`porestream` that does something when it is about to write the first record: calling is under way, on any machine."""

STOP = "[(os.kill(os.getpid(), {number}), time.sleep(0.2)) for _ in range(2)]"  # the second one: at once
KILL_THE_SERVER = """
    before = server()
    os.kill(int(before[0]), signal.SIGKILL)
    deadline_s = time.monotonic() + 60
    while server() in ([], before):  # the call cannot end meanwhile: this is its writer
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
"""


def test_the_commands_own_server_is_started_again(run: Path, reference: Path, called: Called, tmp_path: Path) -> None:
    options = ("--reference", reference, "--emit-moves", "--precision", "fp32", "-t", 1, "-n", SOME // 2)
    program = [sys.executable, "-c", AT_THE_FIRST_RECORD.format(action=KILL_THE_SERVER)]
    done = call(tmp_path, run, *options, program=program)
    assert "restarting it" in done.stderr
    assert done.texts == some(called.texts, run, SOME // 2)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_stopped_call_leaves_a_valid_file_and_nothing_else(
    run: Path, reference: Path, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    """The second signal does; after the first one, the reads under way would be finished."""
    output = tmp_path / "calls.bam"
    bam = partial_of(output)
    stop = AT_THE_FIRST_RECORD.format(action=STOP.format(number=int(number)))
    command = ["env", "--default-signal=INT", sys.executable, "-c", stop]  # a background job of a shell ignores it
    variables = environment(tmp_path) | {"TMPDIR": str(tmp_path)}
    arguments = ["call", str(run), "--reference", str(reference), "-o", str(output)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=120, check=False, env=variables
    )
    assert done.returncode == 128 + number, done.stderr
    assert (
        f"stopped by {name}; the reads called so far are in {bam}: to continue, run the same command with "
        f"--resume-from {bam}" in done.stderr
    )
    pysam.quickcheck(str(bam))
    assert 1 <= len(Called(bam, done.stderr).primaries) < READS
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("porestream-")] == []
