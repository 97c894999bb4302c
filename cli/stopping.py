"""Stop commands cleanly on Ctrl-C or SIGTERM."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

EXIT_HUNG_UP, EXIT_INTERRUPTED, EXIT_TERMINATED = 128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM


def open_standard_streams() -> None:
    """Reopen standard streams that our parent closed, or the next file opened would get their number.

    Writing to a closed standard output stays an error; messages to a closed standard error are dropped.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR if number == 2 else os.O_RDONLY)  # the lowest free number
            os.set_inheritable(taken, True)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class Terminated(BaseException):
    """SIGTERM came; clean up, as after Ctrl-C."""


@contextlib.contextmanager
def whole_or_not_at_all(output: Path) -> Iterator[None]:
    """If the command is stopped, clean up, say that `output` was not written, and exit with 130 or 143.

    SIGTERM raises `Terminated` instead of ending the process at once.
    """

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"stopped: {output} has not been written", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except Terminated:
        click.echo(f"stopped by SIGTERM: {output} has not been written", err=True)
        raise click.exceptions.Exit(EXIT_TERMINATED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
