"""Files that appear when they are whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from porestream.client.outputs.output_file import OutputFile, partial_of, whole_name


def write(file: OutputFile, text: str) -> None:
    file.written.write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_what_was_there_stays_until_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    file = OutputFile(path)
    write(file, "now")
    assert files(tmp_path) == {".a.txt.lock": "", "a.txt": "before", "a.txt.partial": "now"}
    file.finish()
    assert files(tmp_path) == {"a.txt": "now"}


def test_what_was_left_unfinished_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("first", "second", "third"):
        file = OutputFile(path)
        write(file, text)
        file.release()
    assert files(tmp_path) == {"a.txt.partial": "third", "a.txt.partial.old": "second"}
    OutputFile(path, keeps=False).release()
    assert files(tmp_path)["a.txt.partial.old"] == "second"


def test_going_on_in_place(tmp_path: Path) -> None:
    """Whenever it is killed, all that was there is there."""
    path = tmp_path / "a.txt"
    partial = partial_of(path)
    partial.write_text("half")
    file = OutputFile(path, partial)
    write(file, "ha")
    assert files(tmp_path) == {".a.txt.lock": "", "a.txt.partial": "half", "a.txt.partial.new": "ha"}
    file.release()
    assert files(tmp_path) == {"a.txt.partial": "half"}
    file = OutputFile(path, partial)
    write(file, "half, and")
    file.settle()
    assert files(tmp_path) == {".a.txt.lock": "", "a.txt.partial": "half, and", "a.txt.partial.old": "half"}
    file.finish()
    assert files(tmp_path) == {"a.txt": "half, and"}


def test_going_on_with_what_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.partial").write_text("forgot to go on")
    (tmp_path / "a.txt.partial.old").write_text("twenty hours of work")
    file = OutputFile(path, tmp_path / "a.txt.partial.old")
    assert (tmp_path / "a.txt.partial.old").read_text() == "twenty hours of work"
    write(file, "twenty hours of work, and")
    file.settle()
    file.release()
    assert files(tmp_path) == {
        "a.txt.partial": "twenty hours of work, and",
        "a.txt.partial.old": "twenty hours of work",
    }


def test_killed_before_its_first_records_came_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.partial").write_text("")  # all of it was in a buffer
    (tmp_path / "a.txt.partial.old").write_text("twenty hours of work")
    file = OutputFile(path, tmp_path / "a.txt.partial")
    write(file, "")
    file.settle()
    file.release()
    assert (tmp_path / "a.txt.partial.old").read_text() == "twenty hours of work"


def test_places_are_not_taken_from_one_another(tmp_path: Path) -> None:
    """Many processes at once: one at a time has the place, and each finds it as the one before has left it."""
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path / "a.txt")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    turns = sum(int(process.communicate(timeout=60)[0]) for process in processes)
    assert [process.returncode for process in processes] == [0] * 4
    assert len((tmp_path / "a.txt").read_text()) == turns
    assert files(tmp_path).keys() == {"a.txt"}


TAKE_TURNS = """
import sys, time
from pathlib import Path
from porestream.client.outputs.output_file import BeingWritten, OutputFile

path, turns = Path(sys.argv[1]), 0
ends_s = time.monotonic() + 1
while time.monotonic() < ends_s:
    try:
        file = OutputFile(path)
    except BeingWritten:
        continue
    file.written.write_text((path.read_text() if path.exists() else "") + "x")
    file.finish()
    turns += 1
print(turns)
"""


def test_two_cannot_write_one_file(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "a.txt")
    with pytest.raises(OSError, match="another call is writing to it"):
        OutputFile(tmp_path / "a.txt")
    first.release()
    OutputFile(tmp_path / "a.txt").release()


def test_a_linked_file_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.txt").write_text("before")
    (tmp_path / "a.txt").symlink_to("disk/a.txt")
    file = OutputFile(tmp_path / "a.txt")
    assert file.written.parent == (tmp_path / "disk").resolve(), "a file can only be renamed on its own disk"
    write(file, "now")
    file.finish()
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "disk/a.txt").read_text() == "now"


def test_links_that_somebody_has_put_there_are_not_followed(tmp_path: Path) -> None:
    for name in ("precious", "another"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "a.txt.partial").symlink_to("precious")
    file = OutputFile(tmp_path / "a.txt")
    write(file, "now")
    file.finish()
    (tmp_path / ".b.txt.lock").symlink_to("another")
    with pytest.raises(OSError, match="symbolic links"):
        OutputFile(tmp_path / "b.txt")
    assert (tmp_path / "precious").read_text() == (tmp_path / "another").read_text() == "precious"


def test_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = OutputFile(tmp_path / "pipe")
    assert file.written == tmp_path / "pipe"
    file.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        OutputFile(tmp_path)


@pytest.mark.parametrize("name", ["a.bam", "a.bam.partial", "a.bam.partial.old", "a.bam.partial.new"])
def test_the_whole_name(name: str) -> None:
    assert whole_name(name) == "a.bam"
