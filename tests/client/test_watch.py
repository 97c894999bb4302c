"""A folder that a sequencer writes to: files are taken once they are whole, until the run's end."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from porestream.client.sources import Pod5Source
from porestream.client.watch import FolderWatch

WritePod5 = Callable[..., Path]
POLL_S = 0.01


def signals(count: int) -> Sequence[npt.NDArray[np.int16]]:
    return [np.arange(100 + index, dtype=np.int16) for index in range(count)]


@pytest.fixture(autouse=True)
def settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porestream.client.watch._SETTLE_S", 0.0)


def watch(folder: Path, timeout_s: float = 30.0, **options: int) -> FolderWatch:
    return FolderWatch(folder, Pod5Source((), **options), timeout_s, POLL_S)


def numbers(watched: FolderWatch) -> list[int]:
    return [read.info.read_id.int for read in watched]


def test_files_that_appear_are_read_until_the_run_ends(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "pod5").mkdir()
    write_pod5(tmp_path / "pod5/0.pod5", signals(3))
    watched = watch(tmp_path)
    assert watched.wait_for_first()
    assert set(watched.source.runs) == {"run-a"}
    found = []
    for read in watched:
        found.append(read.info.read_id.int)
        if len(found) == 2:  # another file, of another run, while this one is read
            write_pod5(tmp_path / "pod5/1.pod5", signals(2), run_ids=("run-b",), first=11)
        if len(found) == 5:
            write_pod5(tmp_path / "pod5/2.pod5", signals(1), first=21)
            (tmp_path / "final_summary_FAB_1_2.txt").touch()
    assert found == [1, 2, 3, 11, 12, 21]
    assert set(watched.source.runs) == {"run-a", "run-b"}
    assert watched.source.total_reads == 6
    assert watched.ended_by == "end of the run"
    assert not watched.source.file_faults


def test_a_file_is_taken_when_it_is_whole(tmp_path: Path, write_pod5: WritePod5) -> None:
    data = write_pod5(tmp_path / "whole", signals(4)).read_bytes()
    growing = tmp_path / "a.pod5"
    growing.write_bytes(data[: len(data) // 2])
    watched = watch(tmp_path)
    looks = 0
    look = watched._look

    def look_and_grow() -> bool:
        nonlocal looks
        looks += 1
        got = look()
        assert not got or looks > 3
        if looks == 2:
            growing.write_bytes(data[:-8])  # all but the end of its footer
        if looks == 3:
            growing.write_bytes(data)
            (tmp_path / "final_summary_x.txt").touch()
        return got

    watched._look = look_and_grow  # type: ignore[method-assign]
    assert numbers(watched) == [1, 2, 3, 4]
    assert not watched.source.file_faults


def test_a_file_that_never_becomes_whole_is_a_fault(tmp_path: Path, write_pod5: WritePod5) -> None:
    cut = write_pod5(tmp_path / "cut.pod5", signals(2), first=11)
    cut.write_bytes(cut.read_bytes()[:-20])
    write_pod5(tmp_path / "good.pod5", signals(2))
    (tmp_path / "final_summary_x.txt").touch()
    watched = watch(tmp_path)
    assert numbers(watched) == [1, 2]
    assert [fault.path for fault in watched.source.file_faults] == [cut]


def test_nothing_new_for_long_ends_it(tmp_path: Path, write_pod5: WritePod5) -> None:
    write_pod5(tmp_path / "a.pod5", signals(2))
    watched = watch(tmp_path, timeout_s=0.05)
    assert numbers(watched) == [1, 2]
    assert watched.ended_by == "time-out"
    assert not watch(tmp_path / "none", timeout_s=0.05).wait_for_first()


def test_stop_ends_it_from_another_thread(tmp_path: Path, write_pod5: WritePod5) -> None:
    write_pod5(tmp_path / "a.pod5", signals(1))
    watched = watch(tmp_path)
    found = []
    for read in watched:
        found.append(read.info.read_id.int)
        threading.Timer(0.05, watched.stop).start()
    assert found == [1]
    assert watched.ended_by == "stopped"


def test_the_summary_beside_the_pod5_folder_counts_and_others_do_not(tmp_path: Path, write_pod5: WritePod5) -> None:
    for name in ("pod5_pass", "other"):
        (tmp_path / name).mkdir()
        write_pod5(tmp_path / name / "a.pod5", signals(1))
    (tmp_path / "final_summary_x.txt").touch()
    watched = watch(tmp_path / "pod5_pass", timeout_s=30)
    assert numbers(watched) == [1]
    assert watched.ended_by == "end of the run"
    watched = watch(tmp_path / "other", timeout_s=0.05)
    assert numbers(watched) == [1]
    assert watched.ended_by == "time-out"


def test_one_run_of_two_that_has_ended_does_not_end_it(tmp_path: Path, write_pod5: WritePod5) -> None:
    for name in ("run1", "run2"):
        (tmp_path / name).mkdir()
        write_pod5(tmp_path / name / "a.pod5", signals(1), first=1 if name == "run1" else 2)
    (tmp_path / "run1/final_summary_x.txt").touch()
    watched = watch(tmp_path, timeout_s=0.2)
    assert numbers(watched) == [1, 2]
    assert watched.ended_by == "time-out"


def test_a_number_of_reads_ends_it(tmp_path: Path, write_pod5: WritePod5) -> None:
    write_pod5(tmp_path / "a.pod5", signals(5))
    assert numbers(watch(tmp_path, max_reads=3)) == [1, 2, 3]


def test_a_read_that_comes_again_in_a_later_file_is_named(tmp_path: Path, write_pod5: WritePod5) -> None:
    write_pod5(tmp_path / "a.pod5", signals(2))
    watched = watch(tmp_path)
    found = []
    for read in watched:
        found.append(read.info.read_id.int)
        if len(found) == 2:
            write_pod5(tmp_path / "b.pod5", signals(2), first=2)
            (tmp_path / "final_summary_x.txt").touch()
    assert found == [1, 2, 3]
    assert [int(fault.read_id[-1]) for fault in watched.source.read_faults] == [2]
