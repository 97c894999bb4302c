"""The examples do what they say, on a server."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porestream.cli.commands.call import call
from porestream.client import BasecallClient, Pod5Source

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = EXAMPLES / "node"
EMPTY = 5
Entry = tuple[str, str]


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory, write_pod5: Callable[..., Path]) -> Path:
    """Reads of less than a chunk and of several, and one without samples."""
    rng = np.random.default_rng(8)
    lengths = [3000, 900, 140_000, 65_536, 0, 65_537, *rng.integers(2000, 30_000, 34).tolist()]
    signals = [rng.normal(500, 60, length).astype(np.int16) for length in lengths]
    return write_pod5(tmp_path_factory.mktemp("examples") / "run.pod5", signals)


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, with what the example needs installed and generated; skips where there is none, but not in CI."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program is None or npm is None:
        if os.environ.get("CI"):
            pytest.fail("node and npm are not installed")
        pytest.skip("node and npm are not installed")
    for command in (["ci", "--no-audit", "--no-fund"], ["run", "generate"]):
        done = subprocess.run([npm, *command], cwd=NODE, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def exported(reads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "reads.jsonl"
    with path.open("w") as file:
        subprocess.run([sys.executable, NODE / "export_signal.py", reads], stdout=file, check=True, timeout=60)
    return path


def called_by_python(address: str, reads: Path) -> dict[str, Entry]:
    async def collect() -> dict[str, Entry]:
        return {
            str(part.read_id): (part.sequence, "".join(chr(33 + quality) for quality in part.qualities))
            async for result in BasecallClient(address).call(Pod5Source([reads]))
            for part in result.parts
        }

    return asyncio.run(collect())


def entries(fastq: str) -> dict[str, Entry]:
    lines = fastq.splitlines()
    assert lines[2::4] == ["+"] * (len(lines) // 4)
    names = [line[1:].split()[0] for line in lines[::4]]
    assert len(set(names)) == len(names), "each read once"
    return dict(zip(names, zip(lines[1::4], lines[3::4], strict=True), strict=True))


def test_node_gets_the_same_bases_as_python(node: str, start_server, reads: Path, exported: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(threads=2)
    command = [node, NODE / "client.js", server.address, exported]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = called_by_python(server.address, reads)
    assert len(expected) == 39
    assert entries(done.stdout) == expected
    assert "40 reads: 39 called, 1 rejected, 0 failed" in done.stderr
    assert f"read 00000000-0000-0000-0000-{EMPTY:012} rejected: empty: the read has no samples" in done.stderr


def test_node_goes_on_with_the_next_server(
    node: str, start_server, reads: Path, exported: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    """One that drains, and one that breaks off; the reads without a result go to the next on the address."""
    address = f"unix:{tmp_path / 'socket'}"
    server = start_server(listen=address, threads=1)
    expected = called_by_python(address, reads)
    process = subprocess.Popen(
        [node, NODE / "client.js", address, exported],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"WINDOW_SAMPLES": "100000"},
    )
    output: list[str] = []
    assert process.stdout is not None
    output.append(process.stdout.readline())  # results are coming; as nobody takes them, it cannot get far
    leaving = threading.Thread(target=server.leave)
    leaving.start()
    while not server.service._draining:
        time.sleep(0.01)
    rest = threading.Thread(target=lambda: output.append(process.stdout.read()))  # type: ignore[union-attr]
    rest.start()
    leaving.join()
    server = start_server(listen=address, threads=1)
    assert process.stderr is not None
    messages = ""
    while "connection lost" not in messages:
        line = process.stderr.readline()
        assert line, messages
        messages += line
    server.stop()
    start_server(listen=address, threads=1)
    messages += process.stderr.read()
    assert process.wait(60) == 0, messages
    rest.join()
    assert entries("".join(output)) == expected


def test_node_says_what_is_wrong(node: str, start_server, exported: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(threads=1)
    done = subprocess.run(
        [node, NODE / "client.js", server.address, exported, "none"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Error: refused: this server has no model 'none'" in done.stderr
    done = subprocess.run([node, NODE / "client.js"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "usage: node client.js HOST:PORT reads.jsonl" in done.stderr


def test_the_export_is_the_signal(reads: Path, exported: Path) -> None:
    run, *lines = map(json.loads, exported.read_text().splitlines())
    assert run["run"]["runId"] == "run-a"
    assert run["run"]["sampleRateHz"] == 4000
    for line, read in zip(lines, Pod5Source([reads]), strict=True):
        assert line["read_id"] == str(read.info.read_id)
        assert line["calibration"]["scalePaPerAdc"] == read.info.scale_pa_per_adc


def test_the_step_of_a_pipeline(start_server, reads: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(threads=1)
    every = called_by_python(server.address, reads)
    for least_q, count in ((0, 39), (50, 0)):
        command = [sys.executable, EXAMPLES / "pipeline_step.py", server.address, str(least_q), reads]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, "a read has no samples"
        found = entries(done.stdout)
        assert len(found) == count
        assert all(every[name] == entry for name, entry in found.items())


def test_the_workflow_uses_flags_that_there_are() -> None:
    script = (EXAMPLES / "nextflow/main.nf").read_text()
    command = re.search(r"porestream call (.*?)\n    \"\"\"", script, re.DOTALL)
    assert command is not None
    flags = set(re.findall(r"(?<!\w)--[a-z-]+", command[1])) | {"--server", "--threads"}
    known = {name for option in call.params for name in option.opts}
    assert len(flags) > 8
    assert flags <= known
