"""numba's compiler, with its results kept in the user's cache directory."""

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba

_lock = threading.Lock()


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/porestream` or `~/.cache/porestream`."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # relative paths are to be ignored: XDG Base Directory Specification
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "porestream"


def compile_cached(function: Callable[..., Any], signature: str, cache_dir: Path | None = None) -> Callable[..., Any]:
    """Compile for one signature, or load what an earlier process compiled. The GIL is released when it runs.

    Without a cache directory the default one is taken; if it cannot be written, one of this process. numba reads where
    its cache lies when a function is decorated, so its setting is changed for that moment only.
    """
    with _lock:
        config = cast(Any, numba.config)
        before = config.CACHE_DIR
        config.CACHE_DIR = str(_writable(default_cache_dir() if cache_dir is None else cache_dir))
        try:
            decorate = numba.njit(signature, nogil=True, cache=True, error_model="numpy", boundscheck=False)
            return cast(Callable[..., Any], decorate(function))
        finally:
            config.CACHE_DIR = before


def _writable(cache_dir: Path) -> Path:
    """The directory, made if need be, or a temporary one of this process if nothing can be written there."""
    with contextlib.suppress(OSError):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_dir):
            return cache_dir
    return Path(_temporary_dir().name)


@functools.cache
def _temporary_dir() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="porestream-numba-")  # removed when the interpreter ends
