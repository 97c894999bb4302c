"""numba's compiler, with its results kept in the user's cache directory."""

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from porestream.models.files.private_folder import default_cache_dir, open_own, open_private, private_subfolder, through

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()


def compile_cached(function: Callable[..., Any], signature: str, cache_dir: Path | None = None) -> Callable[..., Any]:
    """Compile for one signature, or load what an earlier process compiled. The GIL is released when it runs.

    Without a cache directory the default one is taken; if it cannot be written, one of this process. Code is kept in
    `numba` in its `private_cache_dir` (private_folder.py), which only this user can enter. numba reads where its cache
    lies when a function is decorated, so its setting is changed for that moment only.

    Raises
    ------
    UnsafeCacheError
        As of `private_cache_dir`; or `numba` is another user's, or others can enter it.
    """
    wanted = default_cache_dir() if cache_dir is None else cache_dir
    with _lock, _numba_dir(wanted) as folder, _numba_keeps_in(folder):
        decorate = numba.njit(signature, nogil=True, cache=True, error_model="numpy", boundscheck=False)
        return cast(Callable[..., Any], decorate(function))


def compile_kept(function: Function, **options: Any) -> Function:
    """Compile with numba at the first call; else as `compile_cached`, with the default cache directory.

    numba would keep the code beside the source, or where NUMBA_CACHE_DIR says: others may write to either.
    """
    folder = private_subfolder(default_cache_dir(), "numba")
    if folder is None or not os.access(folder, os.W_OK):
        folder = Path(_temporary_dir().name)
    with _lock, _numba_keeps_in(folder):
        return cast(Function, numba.njit(cache=True, **options)(function))


@contextlib.contextmanager
def _numba_keeps_in(folder: Path) -> Iterator[None]:
    """For functions that are decorated meanwhile."""
    config = cast(Any, numba.config)
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


@contextlib.contextmanager
def _numba_dir(cache_dir: Path) -> Iterator[Path]:
    """Where numba keeps code: under a name that leads there and nowhere else as long as this lasts."""
    with contextlib.ExitStack() as stack:
        try:
            _, private = open_private(cache_dir)
            stack.callback(os.close, private)
            folder = open_own(private, "numba", cache_dir / "numba")
            stack.callback(os.close, folder)
            with tempfile.TemporaryFile(dir=through(folder)):
                place = through(folder)
        except OSError:  # nothing can be written there
            place = Path(_temporary_dir().name)
        yield place


@functools.cache
def _temporary_dir() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="porestream-numba-")  # removed when the interpreter ends
