"""Commands that are stopped by Ctrl-C or SIGTERM."""

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
    """Make up for streams that whoever started us has closed: a file that is opened would get their number.

    What is written to a closed standard output is an error all the same; messages nobody wants to see are dropped.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR if number == 2 else os.O_RDONLY)  # the lowest free number
            os.set_inheritable(taken, True)
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class Terminated(BaseException):
    """SIGTERM came: what is open is to be cleaned up, as by Ctrl-C."""


@contextlib.contextmanager
def whole_or_not_at_all(output: Path) -> Iterator[None]:
    """Stopped within it, the command cleans up, says that `output` has not been written, and exits with 130 or 143.

    SIGTERM raises `Terminated`, instead of ending the process on the spot.
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
