"""Messages on standard error, above the progress bar."""

import contextlib
import sys

from tqdm import tqdm

from porestream.cli.text import escaped


def say(message: str) -> None:
    """Tell the user."""
    _print("\n".join(map(escaped, message.split("\n"))))


def _print(text: str) -> None:
    """Above the progress bar. A terminal that is gone, or a pipe that nobody reads from, must not end a call."""
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stderr)


class AboveProgress:
    """Lets log lines stand above the progress bar."""

    def write(self, text: str) -> None:
        """A line or several."""
        _print(text.rstrip("\n"))

    def flush(self) -> None:
        """As a file's."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
