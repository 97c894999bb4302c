"""Files that appear when complete: until then NAME.partial is written, and any older file stays in place."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

PARTIAL = ".partial"
_OLD, _NEW = f"{PARTIAL}.old", f"{PARTIAL}.new"


def partial_of(path: Path) -> Path:
    """Return the name under which a file is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


def unfinished_of(path: Path) -> list[Path]:
    """Return all names that an unfinished file may have: `OutputFile` may move each of them."""
    return [path.with_name(path.name + suffix) for suffix in (PARTIAL, _OLD, _NEW)]


def larger_kept(partial: Path) -> Path | None:
    """Return the NAME.partial.old kept beside NAME.partial if it is larger: it may have more reads."""
    kept = partial.with_name(partial.name.removesuffix(PARTIAL) + _OLD)
    if not partial.name.endswith(PARTIAL) or not kept.is_file() or kept.stat().st_size <= partial.stat().st_size:
        return None
    return kept


def whole_name(name: str) -> str:
    """Strip the suffixes of an unfinished file from a name."""
    return name.removesuffix(_OLD).removesuffix(_NEW).removesuffix(PARTIAL)


class BeingWritten(OSError):
    """Another process is writing the file."""


class OutputFile:
    """A file's name, locked until `finish` or `release`.

    An earlier call's unfinished file is kept as NAME.partial.old, unless this call continues it. In that case
    NAME.partial.new is written until `settle`, and the earlier file is kept until `finish`. So nothing is lost whenever
    this process is killed. Devices and pipes are written directly.

    Parameters
    ----------
    path
        The file. If it is a link, its target is replaced.
    continued
        The file that this call continues, if any.
    keeps
        Whether to keep what an earlier call left unfinished.

    Attributes
    ----------
    path
        The file, once it is complete.
    written
        The file to write to.

    Raises
    ------
    BeingWritten
        Another process, on any machine that shares this file system's locks, is writing it.
    OSError
        It cannot be written.
    """

    def __init__(self, path: Path, continued: Path | None = None, *, keeps: bool = True) -> None:
        self._lock: int | None = None
        self._is_special = path.exists() and not path.is_file()
        if self._is_special:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            self.path = self.written = path
            return
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path
        self._partial, self._old, self._new = unfinished_of(self.path)
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._hold()
        self._continued = next((file for file in (self._partial, self._old) if _is_same(file, continued)), None)
        self.written = self._new if self._continued else self._partial
        if not self._continued and keeps and self._partial.is_file() and self._partial.stat().st_size:
            os.replace(self._partial, self._old)
        self.written.unlink(missing_ok=True)  # it may be a link that somebody else planted

    def settle(self) -> None:
        """Everything is taken over: put this file in place of the earlier one, which is kept as NAME.partial.old.

        The larger one is kept: a call killed before its first records reached the disk left fewer.
        """
        if self._is_special or self.written != self._new:
            return
        if self._continued == self._partial:
            if self._old.exists() and self._old.stat().st_size > self._partial.stat().st_size:
                self._partial.unlink()
            else:
                os.replace(self._partial, self._old)
        os.replace(self._new, self._partial)
        self.written = self._partial

    def finish(self) -> None:
        """Give the complete file its name, and remove the one that this call continued."""
        if not self._is_special:
            self.settle()
            os.replace(self.written, self.path)
        self.done()

    def done(self) -> None:
        """Clean up after the file got its name in some other way."""
        if not self._is_special and self._continued:
            self._old.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let others write it. Remove what was not settled: the earlier file has all of it."""
        if self._lock is None:
            return
        if self.written == self._new:
            self._new.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _hold(self) -> None:
        """Lock the name, by a separate file: on some network drives a locked file cannot be written."""
        while self._lock is None:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise BeingWritten(errno.EBUSY, "another call is writing to it", str(self.path)) from error
            except OSError:  # a file system without locks
                self._lock = lock
                return
            with contextlib.suppress(FileNotFoundError):  # the previous holder may just have removed it
                if os.path.samestat(os.fstat(lock), os.stat(self._lock_path)):
                    self._lock = lock
                    return
            os.close(lock)


def _is_same(file: Path, other: Path | None) -> bool:
    return other is not None and file.exists() and other.exists() and file.samefile(other)
