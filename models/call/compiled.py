"""Compiles with numba and keeps the code in the user's cache directory."""

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from porestream.models.private_folder import default_cache_dir, open_own, open_private, private_subfolder, through

Function = TypeVar("Function", bound=Callable[..., Any])

_lock = threading.Lock()


def compile_cached(function: Callable[..., Any], signature: Any, cache_dir: Path | None = None) -> Callable[..., Any]:
    """Compile for one signature (numba's, or its text), or load what was compiled before. It runs without the GIL.

    If no cache directory is given, the default one is used; if it is not writable, a temporary one for this process.
    Code goes into `numba` in its `private_cache_dir` (private_folder.py), which only this user can enter. numba reads
    its cache setting when a function is decorated, so the setting is changed only for that moment.

    Raises
    ------
    UnsafeCacheError
        As for `private_cache_dir`; or `numba` belongs to another user, or others can enter it.
    """
    wanted = default_cache_dir() if cache_dir is None else cache_dir
    with _lock, _numba_dir(wanted) as folder, _numba_keeps_in(folder):
        decorate = numba.njit(signature, nogil=True, cache=True, error_model="numpy", boundscheck=False)
        return cast(Callable[..., Any], decorate(function))


def compile_kept(function: Function, **options: Any) -> Function:
    """Like `compile_cached` with the default cache directory, but compile at the first call.

    On its own, numba would keep the code next to the source or in NUMBA_CACHE_DIR, and others may be able to write to
    either.
    """
    folder = private_subfolder(default_cache_dir(), "numba")
    if folder is None or not os.access(folder, os.W_OK):
        folder = Path(_temporary_dir().name)
    with _lock, _numba_keeps_in(folder):
        return cast(Function, numba.njit(cache=True, **options)(function))


@contextlib.contextmanager
def _numba_keeps_in(folder: Path) -> Iterator[None]:
    """Point numba's cache at a folder for functions decorated inside this context."""
    config = cast(Any, numba.config)
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


@contextlib.contextmanager
def _numba_dir(cache_dir: Path) -> Iterator[Path]:
    """Yield a path to numba's cache folder that cannot be redirected while this context is open."""
    with contextlib.ExitStack() as stack:
        try:
            _, private = open_private(cache_dir)
            stack.callback(os.close, private)
            folder = open_own(private, "numba", cache_dir / "numba")
            stack.callback(os.close, folder)
            with tempfile.TemporaryFile(dir=through(folder)):
                place = through(folder)
        except OSError:  # the folder is not writable
            place = Path(_temporary_dir().name)
        yield place


@functools.cache
def _temporary_dir() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="porestream-numba-")  # removed when the interpreter ends
