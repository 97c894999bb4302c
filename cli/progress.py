"""Messages on standard error, above the progress bar."""

import contextlib
import sys

from tqdm import tqdm

from porestream.cli.text import escaped

_MOST_LINES = 40


def say(message: str) -> None:
    """Print a message, without its middle lines if it is long."""
    lines = message.split("\n")
    if (left_out := len(lines) - _MOST_LINES) > 0:
        lines = [*lines[: _MOST_LINES // 2], f"... ({left_out:,} lines) ...", *lines[-_MOST_LINES // 2 :]]
    _print("\n".join(map(escaped, lines)))


def _print(text: str) -> None:
    """Print above the progress bar. A lost terminal, or a pipe without a reader, must not end a call."""
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stderr)


class AboveProgress:
    """A file that prints log lines above the progress bar."""

    def write(self, text: str) -> None:
        """Print one or more lines."""
        _print(text.rstrip("\n"))

    def flush(self) -> None:
        """Flush standard error."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
