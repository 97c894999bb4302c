"""Folders for what is kept from one process to the next, and which of them may be trusted.

Compiled code is kept there, some of it as pickles: whoever can write it, or put other in its place, has this process
run it. Indexes of references are kept there too: whoever can write those decides where reads align.
"""

import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WAY_OUT = "give --cache-dir, or XDG_CACHE_HOME, a folder of your own"


class UnsafeCacheError(ValueError):
    """What is in a cache folder may be somebody else's; the message names the folder and the way out."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/porestream` or `~/.cache/porestream`."""
    home = os.environ.get("XDG_CACHE_HOME", "")  # relative paths are to be ignored: XDG Base Directory Specification
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache")) / "porestream"


def private_cache_dir(cache_dir: Path, way_out: str = _WAY_OUT) -> Path:
    """The folder for what is kept in a cache directory: one in which nobody else can put anything.

    It is the directory itself, made with mode 0700 if it is missing, where that is this user's (or root's) and neither
    group nor others may write to it. Where they may, it is `user-UID` in it, which only this user can enter: so in a
    volume of Kubernetes' (an emptyDir with an fsGroup is root's, with mode 2777), in /tmp, and after a umask of 002.
    Where somebody else could rename a folder on the way there, the path that is returned leads through a descriptor of
    this process to the folder that was checked, whatever becomes of its name. A directory that cannot be made or
    entered is returned as it is: nothing is there, and who writes finds out.

    Parameters
    ----------
    cache_dir
        The directory that was asked for.
    way_out
        What the user can do, for the message.

    Raises
    ------
    UnsafeCacheError
        The directory is another user's; or the folder in it is, or cannot be made.
    """
    try:
        path, folder = open_private(cache_dir, way_out)
    except OSError:
        return cache_dir
    return _lasting(path, folder)


def private_subfolder(cache_dir: Path, name: str, way_out: str = _WAY_OUT) -> Path | None:
    """A folder in a cache directory's `private_cache_dir` that only this user can enter; None where it cannot be had.

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
    """A folder's path where nobody else can rename what leads there, else the way through its descriptor."""
    if not any(map(_others_may_rename_in, path.resolve().parents)):
        os.close(folder)
        return path
    return through(folder)  # which stays open as long as the process runs


def open_private(cache_dir: Path, way_out: str = _WAY_OUT) -> tuple[Path, int]:
    """What `private_cache_dir` says, and a descriptor of it. Raises OSError where the directory cannot be had."""
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    outer = os.open(cache_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    about = os.fstat(outer)
    if about.st_uid in (0, os.geteuid()) and not about.st_mode & _OTHERS_WRITE:
        return cache_dir, outer
    try:
        if about.st_uid not in (0, os.geteuid()):
            raise UnsafeCacheError(
                f"the cache folder {cache_dir} belongs to the user {about.st_uid} ({_mode(about)}), who could have "
                f"this process run any code and align reads anywhere: {way_out}"
            )
        path = cache_dir / f"user-{os.geteuid()}"
        try:
            return path, open_own(outer, path.name, path, way_out)
        except OSError as error:
            raise UnsafeCacheError(
                f"others can write to the cache folder {cache_dir} ({_mode(about)}), and {path} cannot be had "
                f"({error.strerror}): {way_out}"
            ) from error
    finally:
        os.close(outer)


def open_own(outer: int, name: str, path: Path, way_out: str = _WAY_OUT) -> int:
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
        f"the cache folder {path} {whose} ({_mode(about)}), and what is in it is not trusted: remove it, or {way_out}"
    )


def _mode(about: os.stat_result) -> str:
    return f"mode {stat.S_IMODE(about.st_mode):04o}"


def through(folder: int) -> Path:
    """The way to an open folder, whatever becomes of its name; for this process only."""
    return Path(f"/proc/self/fd/{folder}")


def _others_may_rename_in(folder: Path) -> bool:
    about = folder.stat()
    is_sticky = bool(about.st_mode & stat.S_ISVTX)
    return about.st_uid not in (0, os.geteuid()) or bool(about.st_mode & _OTHERS_WRITE and not is_sticky)
