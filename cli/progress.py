"""Messages on standard error, above the progress bar."""

import contextlib
import sys

from tqdm import tqdm

from porestream.cli.text import escaped

_MOST_LINES = 40


def say(message: str) -> None:
    """Tell the user."""
    lines = message.split("\n")
    if (left_out := len(lines) - _MOST_LINES) > 0:
        lines = [*lines[: _MOST_LINES // 2], f"... ({left_out:,} lines) ...", *lines[-_MOST_LINES // 2 :]]
    _print("\n".join(map(escaped, lines)))


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
