"""Every file that a call will write, held against every file that it will read, before any is opened."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from porestream.client.outputs.output_file import unfinished_of


def check_outputs(
    written: Iterable[tuple[str, Path]], read: Iterable[tuple[str, Path]], resumed: Iterable[Path], output: Path | None
) -> None:
    """Refuse what would destroy a file.

    Parameters
    ----------
    written, read
        Files, each with what it is called in messages.
    resumed
        Files of an interrupted call. `output` may replace one of them: it does so when it is whole.
    output
        The file of records, if it is one.

    Raises
    ------
    click.UsageError
        Two outputs are one file, or an output is an input; or an output is a folder. The message names it.
    """
    inputs = {place: what for what, path in read for place in _places(path)}
    taken_over = {place: path for path in resumed for place in _places(path)}
    outputs: dict[object, str] = {}
    for what, path in written:
        if path.is_dir():
            raise click.UsageError(f"{what} {path} is a folder")
        if path.exists() and not path.is_file():
            continue  # a device, or a pipe
        for place in {place for file in (path, *unfinished_of(path)) for place in _places(file)}:
            if place in inputs:
                raise click.UsageError(f"{what} {path} would replace {inputs[place]}: name another file")
            if place in taken_over and path != output:
                raise click.UsageError(f"{what} {path} would replace what is resumed from: name another file")
            if outputs.setdefault(place, what) != what:
                raise click.UsageError(f"{what} {path} is {outputs[place]}, too: give each a name of its own")


def check_resumed_folder(folder: Path, written: Iterable[tuple[str, Path]]) -> None:
    """Refuse outputs within a folder that is resumed from: which of its files are the earlier call's would be unclear.

    Raises
    ------
    click.UsageError
        One lies there.
    """
    for what, path in written:
        if Path(os.path.realpath(folder)) in (real := Path(os.path.realpath(path)), *real.parents):
            raise click.UsageError(f"{what} {path} lies in {folder}, which is resumed from: name another place")


def _places(path: Path) -> Iterator[object]:
    """What tells a file from others, whatever it is called: hard links, too."""
    yield os.path.realpath(path)
    try:
        status = path.stat()
    except OSError:
        return
    yield status.st_dev, status.st_ino
