"""The list of reads without a record."""

import csv
import os
import stat
from pathlib import Path

import pytest

from porestream.client.outputs.rejected import RejectedReads


def test_each_read_is_in_the_table_and_the_first_ones_are_told(tmp_path: Path) -> None:
    rejected = RejectedReads(tmp_path / "a.tsv")
    lines = [rejected.add(number, "a\tb.pod5", "rejected", f"gap: at {number}\n") for number in range(30)]
    rejected.add(30, "a.pod5", "failed", "ValueError: x")
    rejected.close()
    assert lines[19] == "read 19 of a\tb.pod5 rejected: gap: at 19\n"
    assert lines[20] == f"more rejected and failed reads are in {tmp_path / 'a.tsv'}"
    assert set(lines[21:]) == {""}
    rows = (tmp_path / "a.tsv").read_text().splitlines()
    assert rows[:2] == ["read_id\tfilename\tstatus\treason", "0\ta b.pod5\trejected\tgap: at 0"]
    assert len(rows) == 32
    assert str(rejected) == "30 gap, 1 ValueError"


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", " =", "\uff1d", '"'])
def test_no_cell_is_computed(tmp_path: Path, begin: str) -> None:
    """By spreadsheets, which take what begins so for a formula; nor is what follows taken for a part of it."""
    rejected = RejectedReads(tmp_path / "a.tsv")
    evil = f"{begin}HYPERLINK(1)\t\r\n\x1b[31m"
    rejected.add(1, evil.replace(" ", ""), "rejected", evil.replace(" ", ""))
    rejected.add(2, "a-b=c.pod5", "rejected", "gap: -12.5")
    rejected.close()
    with (tmp_path / "a.tsv").open(newline="") as file:
        rows = list(csv.reader(file, dialect="excel-tab"))
    assert rows[1] == ["1", f"'{begin.strip()}HYPERLINK(1) _[31m", "rejected", f"'{begin.strip()}HYPERLINK(1) _[31m"]
    assert rows[2] == ["2", "a-b=c.pod5", "rejected", "gap: -12.5"]


def test_no_reads_no_table_and_an_old_one_goes(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("of an earlier call")
    RejectedReads(tmp_path / "a.tsv").close()
    assert not (tmp_path / "a.tsv").exists()


def test_a_device_or_pipe_is_left_where_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    RejectedReads(tmp_path / "pipe").close()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
