"""The list of reads without a record."""

import os
import stat
from pathlib import Path

from porestream.client.rejected import RejectedReads


def test_each_read_is_in_the_table_and_the_first_ones_are_told(tmp_path: Path) -> None:
    rejected = RejectedReads(tmp_path / "a.tsv")
    lines = [rejected.add(number, "a\tb.pod5", "rejected", f"gap: at {number}\n") for number in range(30)]
    rejected.add(30, "a.pod5", "failed", "ValueError: x")
    rejected.close()
    assert lines[19] == "read 19 of a\tb.pod5 rejected: gap: at 19\n"
    assert lines[20] == f"further rejected and failed reads are in {tmp_path / 'a.tsv'}"
    assert set(lines[21:]) == {""}
    rows = (tmp_path / "a.tsv").read_text().splitlines()
    assert rows[:2] == ["read_id\tfilename\tstatus\treason", "0\ta b.pod5\trejected\tgap: at 0"]
    assert len(rows) == 32
    assert str(rejected) == "30 gap, 1 ValueError"


def test_no_reads_no_table_and_an_old_one_goes(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("of an earlier call")
    RejectedReads(tmp_path / "a.tsv").close()
    assert not (tmp_path / "a.tsv").exists()


def test_a_device_or_pipe_is_left_where_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    RejectedReads(tmp_path / "pipe").close()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
