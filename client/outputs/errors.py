"""Errors that name their file."""

import os
from pathlib import Path

from porestream.client.outputs.output_file import BeingWritten


def cannot_write(target: Path | None, error: OSError) -> OSError:
    """Return the same error with the file in its message; None: standard output."""
    where = f"cannot write to {target or 'standard output'}"
    if isinstance(error, BeingWritten):
        return OSError(f"{where}: another call is writing to it; choose another file, or wait for that call")
    if not error.errno:  # htslib sets none, whatever the system said
        return OSError(f"{where}: {error} (is the disk full, or a quota or `ulimit -f` reached?)")
    return OSError(error.errno, f"{where}: {os.strerror(error.errno)}")
