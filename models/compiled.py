"""numba's compiler, with its results kept in the user's cache directory; and which folder may be trusted as such.

What numba keeps are pickles: whoever can write them, or put others in their place, has this process run their code.
Indexes of references are kept there too: whoever can write those decides where reads align.
"""

import contextlib
import functools
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numba

_lock = threading.Lock()
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WAY_OUT = "give --cache-dir, or XDG_CACHE_HOME, a folder of your own"


class UnsafeCacheError(ValueError):
    """What is in a cache folder may be somebody else's; the message names the folder and the way out."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/porestream` or `~/.cache/porestream`."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # relative paths are to be ignored: XDG Base Directory Specification
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "porestream"


def private_cache_dir(cache_dir: Path) -> Path:
    """The folder for what is kept in a cache directory: one in which nobody else can put anything.

    It is the directory itself, made with mode 0700 if it is missing, where that is this user's (or root's) and neither
    group nor others may write to it. Where they may, it is `user-UID` in it, which only this user can enter: so in a
    volume of Kubernetes' (an emptyDir with an fsGroup is root's, with mode 2777), in /tmp, and after a umask of 002.
    Where somebody else could rename a folder on the way there, the path that is returned leads through a descriptor of
    this process to the folder that was checked, whatever becomes of its name. A directory that cannot be made or
    entered is returned as it is: nothing is there, and who writes finds out.

    Raises
    ------
    UnsafeCacheError
        The directory is another user's; or the folder in it is, or cannot be made.
    """
    try:
        path, folder = _open_private(cache_dir)
    except OSError:
        return cache_dir
    if not any(map(_others_may_rename_in, path.resolve().parents)):
        os.close(folder)
        return path
    return _through(folder)  # which stays open as long as the process runs


def compile_cached(function: Callable[..., Any], signature: str, cache_dir: Path | None = None) -> Callable[..., Any]:
    """Compile for one signature, or load what an earlier process compiled. The GIL is released when it runs.

    Without a cache directory the default one is taken; if it cannot be written, one of this process. Code is kept in
    `numba` in its `private_cache_dir`, which only this user can enter. numba reads where its cache lies when a function
    is decorated, so its setting is changed for that moment only.

    Raises
    ------
    UnsafeCacheError
        As of `private_cache_dir`; or `numba` is another user's, or others can enter it.
    """
    with _lock, _numba_dir(default_cache_dir() if cache_dir is None else cache_dir) as folder:
        config = cast(Any, numba.config)
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder)
        try:
            decorate = numba.njit(signature, nogil=True, cache=True, error_model="numpy", boundscheck=False)
            return cast(Callable[..., Any], decorate(function))
        finally:
            config.CACHE_DIR = before


@contextlib.contextmanager
def _numba_dir(cache_dir: Path) -> Iterator[Path]:
    """Where numba keeps code: under a name that leads there and nowhere else as long as this lasts."""
    with contextlib.ExitStack() as stack:
        try:
            _, private = _open_private(cache_dir)
            stack.callback(os.close, private)
            folder = _open_own(private, "numba", cache_dir / "numba")
            stack.callback(os.close, folder)
            with tempfile.TemporaryFile(dir=_through(folder)):
                place = _through(folder)
        except OSError:  # nothing can be written there
            place = Path(_temporary_dir().name)
        yield place


def _open_private(cache_dir: Path) -> tuple[Path, int]:
    """What `private_cache_dir` says, and a descriptor of it. Raises OSError where the directory cannot be had."""
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    outer = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    about = os.fstat(outer)
    if about.st_uid in (0, os.geteuid()) and not about.st_mode & _OTHERS_WRITE:
        return cache_dir, outer
    try:
        if about.st_uid not in (0, os.geteuid()):
            raise UnsafeCacheError(
                f"the cache folder {cache_dir} belongs to the user {about.st_uid}, who could have this process run any "
                f"code and align reads anywhere: {_WAY_OUT}"
            )
        path = cache_dir / f"user-{os.geteuid()}"
        try:
            return path, _open_own(outer, path.name, path)
        except OSError as error:
            raise UnsafeCacheError(
                f"others can write to the cache folder {cache_dir}, and {path} cannot be had ({error.strerror}): "
                f"{_WAY_OUT}"
            ) from error
    finally:
        os.close(outer)


def _open_own(outer: int, name: str, path: Path) -> int:
    """A descriptor of a folder that only this user can enter, made if it is missing; `path` is for messages."""
    try:
        os.mkdir(name, 0o700, dir_fd=outer)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=outer, follow_symlinks=False).st_mode):
            raise UnsafeCacheError(f"{path} is a link or a file, where a cache folder should be: remove it") from None
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
    about = os.fstat(folder)
    if about.st_uid == os.geteuid() and not about.st_mode & _OTHERS:
        return folder
    os.close(folder)
    whose = f"belongs to the user {about.st_uid}" if about.st_uid != os.geteuid() else "can be entered by others"
    raise UnsafeCacheError(
        f"the cache folder {path} {whose}, and what is in it is not trusted: remove it, or {_WAY_OUT}"
    )


def _through(folder: int) -> Path:
    return Path(f"/proc/self/fd/{folder}")


def _others_may_rename_in(folder: Path) -> bool:
    about = folder.stat()
    is_sticky = bool(about.st_mode & stat.S_ISVTX)
    return about.st_uid not in (0, os.geteuid()) or bool(about.st_mode & _OTHERS_WRITE and not is_sticky)


@functools.cache
def _temporary_dir() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="porestream-numba-")  # removed when the interpreter ends
