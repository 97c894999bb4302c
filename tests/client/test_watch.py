"""A folder that a sequencer writes to: files are taken once they are whole, until the run's end."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from porestream.client.sources.pod5_source import Pod5Source
from porestream.client.sources.watch import FolderWatch

WritePod5 = Callable[..., Path]
POLL_S = 0.01


def signals(count: int) -> Sequence[npt.NDArray[np.int16]]:
    return [np.arange(100 + index, dtype=np.int16) for index in range(count)]


@pytest.fixture(autouse=True)
def settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porestream.client.sources.watch._SETTLE_S", 0.0)
    monkeypatch.setattr("porestream.client.sources.watch._UNREADABLE_SETTLE_S", 0.0)


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


def final_summary(folder: Path, final_dest: int, fallback: int = 0) -> None:
    """As MinKNOW writes it; the names of the fields are those of published ones."""
    (folder / "final_summary_FAB12345_01234567_89abcdef.txt").write_text(
        "instrument=MN12345\nposition=MN12345\nflow_cell_id=FAB12345\nsample_id=\nprotocol_group_id=group\n"
        "protocol=sequencing/sequencing_MIN114_DNA_e8_2_400K:FLO-MIN114:SQK-LSK114:400\n"
        "protocol_run_id=01234567-1111\nacquisition_run_id=89abcdef\nstarted=2024-05-06T07:08:09.123+00:00\n"
        "acquisition_stopped=2024-05-09T07:08:09.123+00:00\nprocessing_stopped=2024-05-09T07:09:09.123+00:00\n"
        "basecalling_enabled=1\nsequencing_summary_file=\nfast5_files_in_final_dest=0\nfast5_files_in_fallback=0\n"
        f"pod5_files_in_final_dest={final_dest}\npod5_files_in_fallback={fallback}\n"
        "fastq_files_in_final_dest=9\nfastq_files_in_fallback=9\nbam_files_in_final_dest=9\n"
    )


def test_a_copy_of_a_run_may_get_its_summary_first(tmp_path: Path, write_pod5: WritePod5) -> None:
    """As rsync does it: by name, under temporary names, and `final_` goes before `pod5`."""
    final_summary(tmp_path, 4)
    for number, folder in enumerate(("pod5_pass", "pod5_pass", "pod5_fail", "pod5_skip")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_pod5(tmp_path / folder / f".{number}.pod5.x4Yz", signals(1), first=number + 1)
    watched = watch(tmp_path)
    look, looks = watched._look, 0

    def look_and_copy() -> bool:
        nonlocal looks
        got = look()
        if looks % 3 == 0 and (hidden := sorted(tmp_path.glob("*/.*"))):
            hidden[0].rename(hidden[0].with_name(hidden[0].name[1:7]))
        looks += 1
        return got

    watched._look = look_and_copy  # type: ignore[method-assign]
    assert sorted(numbers(watched)) == [1, 2, 3, 4]
    assert watched.ended_by == "end of the run"
    assert not watched.source.file_faults


def test_files_that_never_come_are_a_fault(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "run/pod5").mkdir(parents=True)
    write_pod5(tmp_path / "run/pod5/a.pod5", signals(2))
    final_summary(tmp_path / "run", 2, fallback=1)
    watched = watch(tmp_path, timeout_s=0.2)
    assert numbers(watched) == [1, 2]
    assert watched.ended_by == "time-out"
    (fault,) = watched.source.file_faults
    assert (fault.path, fault.reason) == (tmp_path / "run", "its final summary lists 3 POD5 files, but only 1 arrived")


def test_one_of_a_runs_folders_is_not_held_against_the_count_of_all(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "pod5_pass").mkdir()
    write_pod5(tmp_path / "pod5_pass/a.pod5", signals(2))
    final_summary(tmp_path, 40)
    watched = watch(tmp_path / "pod5_pass")
    assert numbers(watched) == [1, 2]
    assert watched.ended_by == "end of the run"
    assert not watched.source.file_faults


def test_a_linked_folder_is_watched_and_a_loop_is_not_followed(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "disk/pod5").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pod5").symlink_to(tmp_path / "disk/pod5")
    (tmp_path / "disk/pod5/again").symlink_to(tmp_path / "run")
    write_pod5(tmp_path / "disk/pod5/a.pod5", signals(2))
    (tmp_path / "run/link.pod5").symlink_to(tmp_path / "disk/pod5/a.pod5")
    (tmp_path / "disk/pod5/._a.pod5").write_bytes(b"what macOS writes")
    (tmp_path / "run/final_summary_x.txt").touch()
    watched = watch(tmp_path / "run")
    assert numbers(watched) == [1, 2]
    assert not watched.source.file_faults
    assert not watched.source.read_faults


def test_a_link_that_comes_first_does_not_hide_a_runs_files(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "run1/pod5").mkdir(parents=True)
    write_pod5(tmp_path / "run1/pod5/a.pod5", signals(2))
    (tmp_path / "latest_pod5").symlink_to("run1/pod5")
    final_summary(tmp_path / "run1", 1)
    watched = watch(tmp_path)
    assert numbers(watched) == [1, 2]
    assert watched.ended_by == "end of the run"
    assert not watched.source.file_faults


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
