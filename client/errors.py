"""Errors that say what they are about."""

import os
from pathlib import Path


def cannot_write(target: Path | None, error: OSError) -> OSError:
    """The same error, with the file in its message; None: standard output."""
    where = f"cannot write to {target or 'standard output'}"
    if not error.errno:  # htslib's has none
        return OSError(f"{where}: {error}")
    return OSError(error.errno, f"{where}: {os.strerror(error.errno)}")
