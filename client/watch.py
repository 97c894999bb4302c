"""A folder that a sequencer is writing to: its POD5 files are read as they are finished, until the run's end."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from porestream.client.reads import SignalRead
from porestream.client.sources import FileFault, Pod5Source

_END = "final_summary*.txt"
_SETTLE_S = 5.0


@dataclass
class FolderWatch:
    """The reads of the POD5 files in a folder and those within, as they appear; iterate over it once.

    MinKNOW writes the footer, without which a POD5 cannot be read, when it closes a file: a file that cannot be read
    is tried again when it has changed. The run is over when MinKNOW's `final_summary_*.txt` is there, which it writes
    last, and no file has changed for a few seconds. Files that cannot be read then are `source.file_faults`.

    Parameters
    ----------
    folder
        The run's, or its `pod5` folder.
    source
        A source without paths, which takes the files.
    timeout_s
        Stop when nothing was new for so long.
    poll_s
        How often to look.
    """

    folder: Path
    source: Pod5Source
    timeout_s: float
    poll_s: float = 1.0
    ended_by: str = field(default="", init=False)
    """Why the watch is over: "end of the run", "time-out" or "stopped"."""
    _taken: set[Path] = field(default_factory=set, init=False)
    _unreadable: dict[Path, tuple[tuple[int, int], str]] = field(default_factory=dict, init=False)
    _news_s: float = field(default_factory=time.monotonic, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def wait_for_first(self) -> bool:
        """Wait for the first file that can be read; False: the watch is over before there is one."""
        while not self.source.runs:
            self._look()
            if not self.source.runs and not self._wait() and not self._look():
                self._end()
                return False
        return True

    def __iter__(self) -> Iterator[SignalRead]:
        while True:
            yield from self.source  # what it was given since
            if self.source.max_reads == 0:
                self.ended_by = "the reads that were asked for"
                return
            if self._look() or self._wait():
                continue
            if not self._look():  # once more: what was finished before the end was seen
                break
        self._end()

    def stop(self) -> None:
        """Take no more files."""
        self._stopped.set()

    def _look(self) -> bool:
        """Give the source what is new; whether it got something."""
        got = False
        for path in sorted(self.folder.rglob("*.pod5")):
            if path in self._taken:
                continue
            try:
                status = path.stat()
            except OSError:  # moved away meanwhile
                continue
            state = status.st_size, status.st_mtime_ns
            if path in self._unreadable and self._unreadable[path][0] == state:
                continue
            self._news_s = time.monotonic()
            if reason := self.source.add(path):
                self._unreadable[path] = state, reason
            else:
                self._unreadable.pop(path, None)
                self._taken.add(path)
                got = True
        return got

    def _wait(self) -> bool:
        """Wait before the next look; False: there is no need for one."""
        quiet_s = time.monotonic() - self._news_s
        if self._stopped.is_set():
            self.ended_by = "stopped"
        elif quiet_s >= min(_SETTLE_S, self.timeout_s) and self._is_run_over():
            self.ended_by = "end of the run"
        elif quiet_s >= self.timeout_s:
            self.ended_by = "time-out"
        else:
            self._stopped.wait(self.poll_s)
            return True
        return False

    def _is_run_over(self) -> bool:
        """Whether every POD5 lies in a run folder that has its final summary, and there is one."""
        folder = self.folder.absolute()
        if any(folder.glob(_END)) or (folder.name.startswith("pod5") and any(folder.parent.glob(_END))):
            return True
        ended = [file.parent for file in self.folder.rglob(_END)]
        files = [*self._taken, *self._unreadable]
        return bool(ended) and all(any(folder in file.parents for folder in ended) for file in files)

    def _end(self) -> None:
        for path, (_, reason) in self._unreadable.items():
            self.source.file_faults.append(FileFault(Path(os.path.normpath(path)), reason))
        self._unreadable.clear()
