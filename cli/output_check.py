"""Compare every file that a call will write with every file that it will read, before opening any."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from porestream.client.outputs.output_file import unfinished_of


def check_outputs(
    written: Iterable[tuple[str, Path]], read: Iterable[tuple[str, Path]], resumed: Iterable[Path], output: Path | None
) -> None:
    """Refuse outputs that would destroy a file.

    Parameters
    ----------
    written, read
        Files, each with its name for messages.
    resumed
        Files of an interrupted call. `output` may replace one of them, which happens when it is complete.
    output
        The file of records, if the output is a single file.

    Raises
    ------
    click.UsageError
        An output is also another output or an input, or is a folder. The message names it.
    """
    inputs = {place: what for what, path in read for place in _places(path)}
    taken_over = {place: path for path in resumed for place in _places(path)}
    outputs: dict[object, str] = {}
    for what, path in written:
        if path.is_dir():
            raise click.UsageError(f"{what} {path} is a folder; give a file name")
        if path.exists() and not path.is_file():
            continue  # a device, or a pipe
        for place in {place for file in (path, *unfinished_of(path)) for place in _places(file)}:
            if place in inputs:
                raise click.UsageError(f"{what} {path} would overwrite {inputs[place]}; choose another file")
            if place in taken_over and path != output:
                raise click.UsageError(f"{what} {path} would overwrite the call to resume from; choose another file")
            if outputs.setdefault(place, what) != what:
                raise click.UsageError(f"{what} {path} is the same file as {outputs[place]}; give each its own name")


def check_resumed_folder(folder: Path, written: Iterable[tuple[str, Path]]) -> None:
    """Refuse outputs in the folder to resume from: they would mix with the earlier call's files.

    Raises
    ------
    click.UsageError
        An output is in that folder.
    """
    for what, path in written:
        if Path(os.path.realpath(folder)) in (real := Path(os.path.realpath(path)), *real.parents):
            raise click.UsageError(f"{what} {path} is in {folder}, the folder to resume from; choose another place")


def _places(path: Path) -> Iterator[object]:
    """Yield what identifies a file under any name, hard links included."""
    yield os.path.realpath(path)
    try:
        status = path.stat()
    except OSError:
        return
    yield status.st_dev, status.st_ino
