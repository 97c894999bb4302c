"""The log can neither stop the server nor fill a disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from porestream.server.watch.logs import LineWriter, RepeatLimit

PROGRAM = """
import os, sys, time
import structlog
from porestream.server.watch.logs import configure_logging
configure_logging("json"{options})
log = structlog.get_logger()
began = time.monotonic()
for number in range(50_000):
    log.info(f"event {{number % 4000}}", read_id="0a1b2c3d", text="x" * 200)
print("logged in", time.monotonic() - began, flush=True)
"""


def run(stderr: int, options: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(options=options)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False)


def test_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    try:
        done = run(writer)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0
    assert done.stdout.startswith("logged in")


def test_a_reader_that_is_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(writer)
    finally:
        os.close(writer)
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        assert run(full.fileno()).returncode == 0


def test_all_is_written_that_can_be_and_no_read_id() -> None:
    program = PROGRAM.replace("50_000", "5_000").replace("% 4000", "% 5_000")
    for options, has_ids in (("", False), (", read_ids=True", True)):
        command = [sys.executable, "-c", program.format(options=options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert [line["event"] for line in lines] == [f"event {number}" for number in range(5000)]
        assert ("read_id" in lines[0]) is has_ids


def test_a_closed_descriptor_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    lines = LineWriter(writer)
    lines.write("one\n")
    lines.close()


def test_repetitions_are_left_out_and_counted() -> None:
    now_s = 0.0
    limit = RepeatLimit(lambda: now_s)

    def written(count: int) -> list[dict[str, object]]:
        found = []
        for _ in range(count):
            try:
                found.append(dict(limit(None, "info", {"event": "read rejected"})))
            except structlog.DropEvent:
                continue
        return found

    assert len(written(10_000)) == 100
    assert limit(None, "info", {"event": "another"}) == {"event": "another"}
    now_s = 1.0
    assert written(5) == [{"event": "read rejected", "left_out": 9900}]
