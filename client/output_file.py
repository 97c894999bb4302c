"""Files that appear when they are whole: until then they are written as NAME.partial, and what was there stays."""

import errno
import fcntl
import os
from pathlib import Path

PARTIAL = ".partial"
_OLD, _NEW = f"{PARTIAL}.old", f"{PARTIAL}.new"


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + PARTIAL)


def whole_name(name: str) -> str:
    """A file's name without what an unfinished one has behind it."""
    return name.removesuffix(_OLD).removesuffix(_NEW).removesuffix(PARTIAL)


class OutputFile:
    """A place for a file, held until `finish` or `release`.

    What an earlier call has left unfinished there is kept as NAME.partial.old, unless this call goes on with it: then
    it stays until `settle`. Devices and pipes are written as they are.

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
    OSError
        It cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, continued: Path | None = None, *, keeps: bool = True) -> None:
        self._is_special = path.exists() and not path.is_file()
        self._lock: int | None = None
        if self._is_special:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            self.path = self.written = path
            return
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path
        partial = partial_of(self.path)
        goes_on = continued is not None and partial.exists() and partial.samefile(continued)
        self.written = self.path.with_name(self.path.name + _NEW) if goes_on else partial
        self._hold()
        if keeps and self.written.stat().st_size and not goes_on:
            os.replace(self.written, self.path.with_name(self.path.name + _OLD))
            self.release()
            self._hold()

    def settle(self) -> None:
        """All that was to be taken over is in this file: it takes the place of the one before."""
        if self.written.name.endswith(_NEW):
            os.replace(self.written, partial_of(self.path))
            self.written = partial_of(self.path)

    def finish(self) -> None:
        """The file is whole: it takes its place."""
        if not self._is_special:
            os.replace(self.written, self.path)
        self.release()

    def release(self) -> None:
        """Let others write it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self) -> None:
        self._lock = os.open(self.written, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise OSError(errno.EBUSY, "another call is writing it", str(self.written)) from error
        except OSError:  # a file system without locks
            pass
