"""Finds a cache folder that can be trusted.

The cache holds compiled code, some of it as pickles: anyone who can write or replace it can make this process run any
code. It also holds reference indexes: anyone who can write those decides where reads align.
"""

import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WAY_OUT = "give --cache-dir, or XDG_CACHE_HOME, a folder of your own"


class UnsafeCacheError(ValueError):
    """Another user may have written to a cache folder; the message names the folder and says what to do."""


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/porestream` or `~/.cache/porestream`."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # the XDG Base Directory Specification says to ignore relative paths
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "porestream"


def private_cache_dir(cache_dir: Path, way_out: str = _WAY_OUT) -> Path:
    """Return a folder in or at a cache directory that nobody else can write to.

    That is the directory itself (created with mode 0700 if missing) if it belongs to this user or root and neither
    group nor others can write to it. If they can, it is `user-UID` inside it, which only this user can enter. This
    happens in Kubernetes volumes (an emptyDir with an fsGroup belongs to root and has mode 2777), in /tmp, and with a
    umask of 002. If somebody else could rename a folder along the path, the returned path goes through this process's
    file descriptor, so it keeps pointing to the folder that was checked. A directory that cannot be created or entered
    is returned unchanged: it holds nothing, and writing to it will fail.

    Parameters
    ----------
    cache_dir
        The requested directory.
    way_out
        What the user can do; goes into the error message.

    Raises
    ------
    UnsafeCacheError
        The directory belongs to another user, or the folder in it does or cannot be created.
    """
    try:
        path, folder = open_private(cache_dir, way_out)
    except OSError:
        return cache_dir
    return _lasting(path, folder)


def private_subfolder(cache_dir: Path, name: str, way_out: str = _WAY_OUT) -> Path | None:
    """Return a folder in `private_cache_dir` that only this user can enter; None if it cannot be created or opened.

    Raises
    ------
    UnsafeCacheError
        As of `private_cache_dir`; or the folder is another user's, or others can enter it.
    """
    try:
        path, outer = open_private(cache_dir, way_out)
        try:
            return _lasting(path / name, open_own(outer, name, path / name, way_out))
        finally:
            os.close(outer)
    except OSError:
        return None


def _lasting(path: Path, folder: int) -> Path:
    """Return a folder's path if nobody else can rename a folder along it, or else a path through its descriptor."""
    if not any(map(_others_may_rename_in, path.resolve().parents)):
        os.close(folder)
        return path
    return through(folder)  # the descriptor stays open as long as the process runs


def open_private(cache_dir: Path, way_out: str = _WAY_OUT) -> tuple[Path, int]:
    """Return `private_cache_dir` and a descriptor for it; raise OSError if it cannot be created or opened."""
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    outer = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    about = os.fstat(outer)
    if about.st_uid in (0, os.geteuid()) and not about.st_mode & _OTHERS_WRITE:
        return cache_dir, outer
    try:
        if about.st_uid not in (0, os.geteuid()):
            raise UnsafeCacheError(
                f"the cache folder {cache_dir} belongs to user {about.st_uid} ({_mode(about)}), who could make this "
                f"process run any code and align reads anywhere: {way_out}"
            )
        path = cache_dir / f"user-{os.geteuid()}"
        try:
            return path, open_own(outer, path.name, path, way_out)
        except OSError as error:
            raise UnsafeCacheError(
                f"other users can write to the cache folder {cache_dir} ({_mode(about)}), and {path} cannot be "
                f"used instead ({error.strerror}): {way_out}"
            ) from error
    finally:
        os.close(outer)


def open_own(outer: int, name: str, path: Path, way_out: str = _WAY_OUT) -> int:
    """Open, or create, a folder that only this user can enter; return its descriptor. `path` is for messages."""
    try:
        os.mkdir(name, 0o700, dir_fd=outer)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=outer, follow_symlinks=False).st_mode):
            raise UnsafeCacheError(f"{path} is a link or a file, but should be a cache folder: remove it") from None
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
    about = os.fstat(folder)
    if about.st_uid == os.geteuid() and not about.st_mode & _OTHERS:
        return folder
    os.close(folder)
    whose = f"belongs to user {about.st_uid}" if about.st_uid != os.geteuid() else "is accessible to other users"
    raise UnsafeCacheError(
        f"the cache folder {path} {whose} ({_mode(about)}), so its contents cannot be trusted: remove it, or {way_out}"
    )


def _mode(about: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(about.st_mode):04o}"


def through(folder: int) -> Path:
    """Return a path to an open folder that survives renames; valid in this process only."""
    return Path(f"/proc/self/fd/{folder}")


def _others_may_rename_in(folder: Path) -> bool:
    about = folder.stat()
    is_sticky = bool(about.st_mode & stat.S_ISVTX)
    return about.st_uid not in (0, os.geteuid()) or bool(about.st_mode & _OTHERS_WRITE and not is_sticky)
