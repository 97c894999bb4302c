"""Files that appear when they are whole."""

import os
from pathlib import Path

import pytest

from porestream.client.output_file import OutputFile, partial_of, whole_name


def write(file: OutputFile, text: str) -> None:
    file.written.write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_what_was_there_stays_until_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    file = OutputFile(path)
    write(file, "now")
    assert files(tmp_path) == {"a.txt": "before", "a.txt.partial": "now"}
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
    path = tmp_path / "a.txt"
    partial = partial_of(path)
    partial.write_text("half")
    file = OutputFile(path, partial)
    write(file, "ha")  # killed here, nothing is lost
    assert files(tmp_path) == {"a.txt.partial": "half", "a.txt.partial.new": "ha"}
    file.release()
    file = OutputFile(path, partial)
    write(file, "half, and")
    file.settle()
    assert files(tmp_path) == {"a.txt.partial": "half, and"}
    file.finish()
    assert files(tmp_path) == {"a.txt": "half, and"}


def test_two_cannot_write_one_file(tmp_path: Path) -> None:
    first = OutputFile(tmp_path / "a.txt")
    with pytest.raises(OSError, match="another call is writing it"):
        OutputFile(tmp_path / "a.txt")
    first.finish()
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
