"""Files that appear when they are whole: until then they are written as NAME.partial, and what was there stays."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

PARTIAL = ".partial"
_OLD, _NEW = f"{PARTIAL}.old", f"{PARTIAL}.new"


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + PARTIAL)


def unfinished_of(path: Path) -> list[Path]:
    """All names that what is not whole may have: `OutputFile` may move each of them."""
    return [path.with_name(path.name + suffix) for suffix in (PARTIAL, _OLD, _NEW)]


def larger_kept(partial: Path) -> Path | None:
    """Of NAME.partial that which is kept as NAME.partial.old, if that is larger: it may have more in it."""
    kept = partial.with_name(partial.name.removesuffix(PARTIAL) + _OLD)
    if not partial.name.endswith(PARTIAL) or not kept.is_file() or kept.stat().st_size <= partial.stat().st_size:
        return None
    return kept


def whole_name(name: str) -> str:
    """A file's name without what an unfinished one has behind it."""
    return name.removesuffix(_OLD).removesuffix(_NEW).removesuffix(PARTIAL)


class BeingWritten(OSError):
    """Another process is writing the file."""


class OutputFile:
    """A place for a file, held until `finish` or `release`.

    What an earlier call has left unfinished there is kept as NAME.partial.old, unless this call goes on with it: then
    NAME.partial.new is written until `settle`, and the one before is kept until `finish`. So whenever this process is
    killed, what was there is there. Devices and pipes are written as they are.

    Parameters
    ----------
    path
        The file. Of a link, the file that it leads to is replaced.
    continued
        The file that this call goes on with, if any.
    keeps
        Whether what was left unfinished is kept.

    Attributes
    ----------
    path
        The file, once it is whole.
    written
        The file to write to.

    Raises
    ------
    BeingWritten
        By another process, on any machine whose locks this file system knows.
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
        self.written.unlink(missing_ok=True)  # it may be a link that somebody else has put there

    def settle(self) -> None:
        """All that was to be taken over is in this file: it takes the place of the one before, which is kept.

        Of what is kept the larger: one that was killed before its first records came to the disk has fewer.
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
        """The file is whole: it takes its place, and what this call went on with goes."""
        if not self._is_special:
            self.settle()
            os.replace(self.written, self.path)
        self.done()

    def done(self) -> None:
        """The file has taken its place in some other way."""
        if not self._is_special and self._continued:
            self._old.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let others write it. What was not settled is of no use: the one before has all of it."""
        if self._lock is None:
            return
        if self.written == self._new:
            self._new.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _hold(self) -> None:
        """Lock the place. A file of its own is locked: on some network drives what is locked cannot be written."""
        while self._lock is None:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise BeingWritten(errno.EBUSY, "another call is writing it", str(self.path)) from error
            except OSError:  # a file system without locks
                self._lock = lock
                return
            with contextlib.suppress(FileNotFoundError):  # whoever had it before may just have taken it away
                if os.path.samestat(os.fstat(lock), os.stat(self._lock_path)):
                    self._lock = lock
                    return
            os.close(lock)


def _is_same(file: Path, other: Path | None) -> bool:
    return other is not None and file.exists() and other.exists() and file.samefile(other)
