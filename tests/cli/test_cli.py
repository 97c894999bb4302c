"""The command, as a user meets it: help, wrong usage, what goes where, exit codes."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import click
import numpy as np
import numpy.typing as npt
import pysam
import pytest
from click.testing import CliRunner

from porestream.cli.commands.call import call
from porestream.cli.commands.serve import serve
from porestream.cli.main import main
from porestream.kernels.align.aligner import PRESETS

COMMAND = [sys.executable, "-m", "porestream.cli.main"]
MODEL_NAME = "tiny@v3"
JSON_KEYS = {
    "reads_received",
    "reads_called",
    "reads_filtered",
    "reads_rejected",
    "reads_failed",
    "reads_aligned",
    "samples",
    "bases",
    "seconds",
    "samples_per_second",
    "bases_per_second",
}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")}
    return clean | extra


def start(*arguments: str | Path, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment())


def finish(process: subprocess.Popen, timeout_s: float = 120) -> Done:
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return Done(process.returncode, stdout or b"", (stderr or b"").decode())


def run(*arguments: str | Path) -> Done:
    return finish(start(*arguments))


def make_signals(*lengths: int) -> list[npt.NDArray[np.int16]]:
    generator = np.random.default_rng(1)
    return [generator.normal(500, 60, length).astype(np.int16) for length in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def model(folder: Path, make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(folder / MODEL_NAME)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    bases = "".join(np.random.default_rng(2).choice(list("ACGT"), 5000))
    (folder / "ref.fa").write_text(f">chr1\n{bases}\n")
    return folder / "ref.fa"


@pytest.fixture(scope="module")
def reads(folder: Path, write_pod5: Callable[..., Path]) -> Path:
    return write_pod5(folder / "run.pod5", make_signals(4000, 6000, 5000, 0, 9000), run_ids=("x", "y"))


# Help, in no time


HEAVY = ("torch", "numpy", "grpc", "pysam", "pod5", "numba", "mappy", "google.protobuf", "pydantic")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["call", "--help"], ["serve", "--help"], ["call"], []], ids=" ".join
)
def test_nothing_heavy_is_loaded_for_help_and_wrong_usage(arguments: list[str]) -> None:
    program = (
        "import atexit, resource, sys\n"
        "def tell():\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print('\\nCPU', used.ru_utime + used.ru_stime, heavy, file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "from porestream.cli.main import main\n"
        f"main({arguments!r}, prog_name='porestream')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    _, seconds, heavy = done.stderr.splitlines()[-1].split(" ", 2)
    assert heavy == "[]"
    assert float(seconds) < 0.3, "0.06 s is usual"


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert re.fullmatch(r"porestream \d+\.\d+\.\d+\S* \(calling revision \d+\)\n", result.output)


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(main, ["-h"])
    assert result.exit_code == 0
    assert "  call " in result.output
    assert "  serve " in result.output


@pytest.mark.parametrize("command", [call, serve], ids=lambda command: command.name)
def test_help_tells_each_flags_default_and_unit(command: click.Command) -> None:
    text = " ".join(CliRunner().invoke(main, [str(command.name), "--help"], terminal_width=400).output.split())
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden or option.name in ("help", "config"):
            continue
        assert max(option.opts, key=len) in text
        assert option.help in text
        if not option.is_flag and option.name not in ("model", "reference", "summary_json"):
            assert option.help is not None
            assert "Default: " in option.help, option.name
    for flag, unit in (("batch-delay-s", "seconds"), ("grace-s", "Seconds"), ("memory-budget", "bytes")):
        if command is serve:
            assert unit in text, flag


def test_presets_are_those_of_the_aligner() -> None:
    (option,) = [option for option in call.params if option.name == "preset"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(PRESETS)


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ([], "READS"),
        (["a.pod5", "--server", "h:1", "-b", "4"], "--batch-size does not go with --server; pass it to"),
        (["a.pod5", "--server", "h:1", "--cache-dir", "d"], "--cache-dir does not go with --server"),
        (["a.pod5", "--model", "m", "--preset", "map-ont"], "needs --reference"),
        (["a.pod5", "--model", "m", "--reference", "r", "--preset", "map-ant"], "'map-ont', 'lr:hq'"),
        (["a.pod5", "--model", "m", "-o", "calls.txt"], "calls.txt: the output's name must end in .bam, .sam, .cram"),
        (["a.pod5", "--model", "m", "-o", "none/calls.bam"], "folder none does not exist"),
        (["a.pod5", "--model", "m", "--summary-json", "none/a.json"], "folder none does not exist"),
        (["a.pod5", "--model", "m", "-n", "0"], "-n"),
        (["a.pod5", "--model", "m", "-t", "none"], "not a valid integer"),
        (["a.pod5", "--model", "m", "--precision", "fp8"], "'auto', 'fp32', 'bf16'"),
        (["a.pod5", "--modle", "m"], "--model"),
    ],
)
def test_wrong_usage_names_the_way_out(arguments: list[str], way_out: str) -> None:
    result = CliRunner().invoke(main, ["call", *arguments])
    assert result.exit_code == 2
    assert way_out in result.stderr
    assert "Usage: " in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "extra", "toml", "problem"),
    [
        ([], {"PORESTREAM_MODEL": ""}, "", "no model given"),
        (["--model", "m"], {"PORESTREAM_FOO": "1"}, "", "unknown setting in the environment: PORESTREAM_FOO"),
        (["--model", "m"], {}, "foo = 1\n", "unknown setting 'foo'"),
        (["--model", "m", "--foo", "1"], {}, "", "--foo"),
        (["--model", "m", "--memory-budget", "many"], {}, "", "memory_budget"),
        (["--model", "m"], {"PORESTREAM_THREADS": "-1"}, "", "threads"),
        (["--model", "m"], {}, "max_streams = 0\n", "max_streams"),
        (["--model", "m", "--preset", "sr"], {}, "", "map-ont, lr:hq"),
        (["--model", "m", "--metrics-port", "70000"], {}, "", "metrics_port"),
        (["--model", "m", "--config", "missing.toml"], {}, "", "missing.toml: no such file"),
    ],
)
def test_settings_that_are_unknown_or_unfit_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    extra: dict[str, str],
    toml: str,
    problem: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("PORESTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PORESTREAM_CONFIG", "")  # so that what the command sets is undone
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    if toml:
        (tmp_path / "settings.toml").write_text(toml)
        arguments = [*arguments, "--config", str(tmp_path / "settings.toml")]
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) <= 5


# What cannot be used


def test_inputs_of_a_server_that_cannot_be_used_are_one_clean_line(folder: Path, model: Path, reads: Path) -> None:
    bad = {
        (folder / "missing").as_posix(): ["call", reads, "--model", folder / "missing", "-o", folder / "none.bam"],
        (folder / "no.fa").as_posix(): ["serve", "--model", model, "--reference", folder / "no.fa"],
        folder.as_posix(): ["serve", "--model", folder],
        f"unix:{folder}/none/socket": ["serve", "--model", model, "--listen", f"unix:{folder}/none/socket"],
        "--memory-budget 1048576 is too small": ["serve", "--model", model, "--memory-budget", "1M"],
    }
    processes = {name: start(*arguments) for name, arguments in bad.items()}
    for name, process in processes.items():
        done = finish(process)
        assert done.code in (1, 2), name
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.lines if line.startswith("Error: ")]
        assert name in line
        assert done.lines[-1] == line
        assert done.stdout == b""
    assert not (folder / "none.bam").exists()


# Calls


@pytest.fixture(scope="module")
def lost(reads: Path) -> Iterator[subprocess.Popen]:
    """A call to a server that is not there, begun early: most of its time it waits."""
    process = start("call", reads, "--server", "localhost:1", "-o", "-")
    yield process
    process.kill()
    process.wait()


def records_of(bam: bytes, path: Path) -> list[pysam.AlignedSegment]:
    path.write_bytes(bam)
    with pysam.AlignmentFile(str(path), "rb", check_sq=False) as file:
        return list(file)


@pytest.mark.usefixtures("lost")
def test_what_can_be_read_is_called_and_the_rest_is_named(
    folder: Path, model: Path, reference: Path, reads: Path, write_pod5: Callable[..., Path]
) -> None:
    cut = folder / "cut.pod5"
    cut.write_bytes(reads.read_bytes()[:-100])
    last = write_pod5(folder / "last.pod5", make_signals(7000), first=50)
    summary_file = folder / "summary.json"
    arguments = ["call", reads, cut, folder / "gone.pod5", last, "--model", model, "--reference", reference]
    done = run(*arguments, "-t", "1", "--emit-moves", "-o", "-", "--summary-json", summary_file)
    assert done.code == 3, done.stderr

    # standard output is a BAM and nothing else
    records = records_of(done.stdout, folder / "piped.bam")
    assert done.stdout[:4] == b"\x1f\x8b\x08\x04"
    assert done.stdout.endswith(bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")), "BGZF's end"
    called = [record for record in records if not record.flag & 0x900]
    assert {UUID(record.query_name).int for record in called} == {1, 2, 3, 5, 50}
    assert all(record.has_tag("mv") for record in records)
    with pysam.AlignmentFile(str(folder / "piped.bam")) as file:
        head = file.header.to_dict()
    assert [line["ID"] for line in head["RG"]] == [f"{run}_{MODEL_NAME}" for run in ("x", "y", "run-a")]
    assert head["PG"][0]["CL"].startswith(f"porestream call {reads} {cut} ")
    assert [line["SN"] for line in head["SQ"]] == ["chr1"]

    # standard error has the rest, and no progress bar
    assert "\r" not in done.stderr
    assert "it/s" not in done.stderr
    assert "read/s" not in done.stderr
    assert any(line.startswith(f"cannot read {cut}: ") for line in done.lines)
    assert f"cannot read {folder / 'gone.pod5'}: no such file" in done.lines
    assert any(line.startswith(f"read {UUID(int=4)} of {reads.name} rejected: ") for line in done.lines)
    assert "6 reads: 5 called, 0 filtered, 1 rejected, 0 failed; " in done.stderr
    assert done.lines[-1] == "Error: 2 of the inputs could not be read, or not to the end; see above"

    # and the books balance
    figures = json.loads(summary_file.read_text())
    assert figures.keys() >= JSON_KEYS
    outcomes = ("called", "filtered", "rejected", "failed")
    assert figures["reads_received"] == sum(figures[f"reads_{outcome}"] for outcome in outcomes) == 6
    assert figures["reads_aligned"] == sum(not record.is_unmapped for record in called)
    assert figures["samples"] == 4000 + 6000 + 5000 + 9000 + 7000
    assert figures["bases"] == sum(record.query_length for record in called)
    assert figures["bases_per_second"] == pytest.approx(figures["bases"] / figures["seconds"])
    assert figures["files_unreadable"] == sorted([str(cut), str(folder / "gone.pod5")])


def test_kernels_call_and_align_as_the_cpu_does(folder: Path) -> None:
    """Reads as long as an emulator is fit for, through the bundled model; without a card, kernels are refused."""
    generator = np.random.default_rng(3)
    genome = folder / "genome.fa"
    genome.write_text(f">chr1\n{''.join(generator.choice(list('ACGT'), 3000))}\n")
    short = folder / "short.pod5"
    lengths = ["--reads", "3", "--length-mean", "300", "--length-sd", "50", "--seed", "1"]
    simulated = run("simulate", genome, "-o", short, *lengths)
    assert simulated.code == 0, simulated.stderr
    devices: dict[str, tuple[str, ...]] = {
        "cpu": ("--device", "cpu"),
        "emulated": ("--device", "emulated", "--aligner", "gpu"),
        "mixed": ("--device", "emulated", "--decoder", "cpu"),
    }
    rest = ["-t", "1", "--precision", "fp32", "--emit-moves", "--reference", genome]
    processes = [start("call", short, "-o", folder / f"{name}.bam", *rest, *given) for name, given in devices.items()]
    for process in processes:
        done = finish(process)
        assert done.code == 0, done.stderr
    records = {name: fields_and_qualities(folder / f"{name}.bam") for name in devices}
    assert records["mixed"] == records["cpu"]
    assert records["emulated"].keys() == records["cpu"].keys()
    assert len(records["cpu"]) == 3
    for name, (fields, qualities) in records["cpu"].items():
        found_fields, found_qualities = records["emulated"][name]
        assert found_fields == fields
        assert any(field.startswith("AS:i:") for field in fields)
        assert len(qualities) > 150
        assert max(abs(left - right) for left, right in zip(found_qualities, qualities, strict=True)) <= 1

    refused = run("call", short, "-o", folder / "refused.bam", "--device", "cpu", "--decoder", "gpu")
    assert refused.code in (1, 2)
    assert "Traceback" not in refused.stderr
    assert "--device cpu is a CPU here; choose --device cuda or --device emulated" in refused.lines[-1]
    assert not (folder / "refused.bam").exists()


def fields_and_qualities(path: Path) -> dict[str, tuple[list[str], list[int]]]:
    """By name: all fields but what is made of qualities, and these."""
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return {
            record.query_name: (
                [
                    text
                    for place, text in enumerate(record.to_string().split("\t"))
                    if place != 10 and text[:3] != "qs:"
                ],
                list(record.query_qualities),
            )
            for record in file
        }


def test_inputs_that_are_all_unreadable(folder: Path, model: Path) -> None:
    done = run("call", folder / "gone.pod5", "--model", model, "-o", "-")
    assert done.code == 3
    assert done.stdout == b""
    assert f"cannot read {folder / 'gone.pod5'}: no such file" in done.lines
    assert "0 reads: " in done.stderr


@dataclass(frozen=True)
class Server:
    """A server of the command's own."""

    process: subprocess.Popen
    address: str


@pytest.fixture(scope="module")
def server(folder: Path, model: Path, reference: Path) -> Iterator[Server]:
    address = f"unix:{folder / 'socket'}"
    log = (folder / "log").open("wb")
    arguments = ["serve", "--model", model, "--reference", reference, "--listen", address, "-t", "1"]
    process = start(*arguments, stdout=subprocess.DEVNULL, stderr=log.fileno())
    deadline_s = time.monotonic() + 60
    while not (folder / "socket").exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline_s, "the server does not start"
        time.sleep(0.05)
    yield Server(process, address)
    process.kill()
    process.wait()
    log.close()


def read_terminal(master: int, process: subprocess.Popen) -> str:
    """What a process writes to a terminal, to its end."""
    found = b""
    while True:
        ready, _, _ = select.select([master], [], [], 0.1)
        if ready:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux says so when the other end is closed
                piece = b""
            found += piece
            if not piece:
                return found.decode()
        elif process.poll() is not None:
            return found.decode()


def test_on_a_server(server: Server, folder: Path, reads: Path, reference: Path) -> None:
    arguments = ["call", reads, "--server", server.address, "--reference", reference.name]
    done = run(*arguments, "-o", folder / "a.sam", "-n", "3")
    assert done.code == 0, done.stderr
    assert done.stdout == b""
    with pysam.AlignmentFile(str(folder / "a.sam")) as file:
        assert {UUID(record.query_name).int for record in file} == {1, 2, 3}
    assert "3 reads: 3 called" in done.stderr

    # on a terminal: SAM, and a progress bar above which lines stand
    master, slave = pty.openpty()
    process = start(*arguments, stdout=slave, stderr=subprocess.PIPE)
    os.close(slave)
    text = read_terminal(master, process)
    os.close(master)
    assert finish(process).code == 0
    assert text.startswith("@HD\tVN:")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = start(*arguments, "-o", folder / "b.bam", stderr=slave)
    os.close(slave)
    text = read_terminal(master, process)
    os.close(master)
    assert finish(process).code == 0
    assert "5/5" in text
    assert "bases/s" in text


def test_what_a_server_does_not_have(server: Server, folder: Path, reads: Path) -> None:
    arguments = ["call", reads, "--server", server.address, "-o", folder / "none.bam"]
    for extra, problem in (
        (["--model", "other@v3"], f"this server has no model 'other@v3'; choose from {MODEL_NAME}"),
        (["--reference", "other.fa"], "this server has no reference 'other.fa'; it has: ref.fa"),
        (
            ["--reference", "ref.fa", "--preset", "lr:hq"],
            "reference 'ref.fa' is not available with preset 'lr:hq'; choose from: map-ont",
        ),
    ):
        done = run(*arguments, *extra)
        assert done.code == 1
        assert done.lines[-1].startswith("Error: ")
        assert problem in done.lines[-1]
        assert "Traceback" not in done.stderr
    assert not (folder / "none.bam").exists()


@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
def test_output_that_cannot_be_written(server: Server, reads: Path, target: str) -> None:
    if target == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif Path(target).exists():
        writer = os.open(target, os.O_WRONLY)
    else:
        pytest.skip(f"there is no {target} here")
    process = start("call", reads, "--server", server.address, stdout=writer)
    os.close(writer)
    done = finish(process)
    assert done.code == 1
    reason = "Broken pipe" if target == "closed pipe" else "No space left on device"
    assert [line for line in done.lines if line.startswith("Error: ")] == [
        f"Error: cannot write to standard output: {reason}"
    ]
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_server_that_is_told_to_stop_says_so_and_exits_with_0(server: Server, folder: Path) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    log: Sequence[dict[str, object]] = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert [line["event"] for line in log][-1] == "stopped"
    assert "serving" in [line["event"] for line in log]
    assert not (folder / "socket").exists()


def test_a_server_that_does_not_answer(lost: subprocess.Popen) -> None:
    done = finish(lost)
    assert done.code == 4
    (line,) = done.lines
    assert line.startswith("Error: server lost: localhost:1 did not answer within 10 s; is it running? (UNAVAILABLE: ")
    assert "Connection refused" in line, "what gRPC says stands there, too"
    assert done.stdout == b""
