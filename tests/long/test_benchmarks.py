"""The benchmarks that need nobody else's programs come to their tables: each in its quickest form, as a user runs it.

No figure is looked at. compare_bonito.py, compare_remora.py and compare_ksw2.py need their peers, gpu_first.py and
cubin.py have tests of their own.
"""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUMBER = re.compile(r"\d")


def tables(markdown: str) -> dict[str, list[str]]:
    """The rows of each table, by its first line."""
    found: dict[str, list[str]] = {}
    lines = markdown.splitlines()
    for above, line in pairwise(lines):
        if re.fullmatch(r"\|( --- \|)+", line):
            assert above.count("|") == line.count("|"), above
            rows = found[above] = []
        elif found and line.startswith("|") and above.startswith("|"):
            rows.append(line)
    return found


@pytest.mark.parametrize(
    ("script", "arguments", "titles"),
    [
        ("run.py", ["--quick"], ["| reads | network (f)", "| set streamed | server peak, MiB |"]),
        ("alignment.py", ["--count", "4"], ["|  | map-ont | lr:hq |"]),
        ("decode.py", ["--steps", "50", "--rows", "1"], ["| states | k samples/core-s |"]),
        ("network.py", ["tiny v4.3", "--rows", "4", "--gemm", "64"], ["| shape | stage | kFLOP a sample |"]),
        ("recurrence.py", ["--steps", "2"], ["| layer | precision |"]),
        ("beside.py", ["--quick"], ["| us a read |"]),
        ("fed.py", ["--quick"], ["| a batch, s | workers |"]),
        ("reads.py", ["--quick"], ["| | samples a read, or open streams |"]),
        ("simulate.py", ["--reads", "3", "--turns", "1"], ["| simulator | M samples/s a core |"]),
        ("sorting.py", ["300"], ["| records | uncompressed, GB |"]),
        ("watching.py", ["--quick"], ["| | value | limit |", "| operation | times | ns |"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_its_tables_come_out(script: str, arguments: list[str], titles: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = tables(done.stdout)
    for title in titles:
        (rows,) = [rows for head, rows in found.items() if head.startswith(title)]
        assert rows, done.stdout
        for row in rows:
            assert NUMBER.search(row.partition("|")[2].partition("|")[2]) or "none" in row, row
