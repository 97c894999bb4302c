"""A folder that a sequencer is writing to: its POD5 files are read as they are finished, until the run's end."""

import fnmatch
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from porestream.client.reads import SignalRead
from porestream.client.sources.pod5_source import FileFault, Pod5Source, files_within
from porestream.client.text import counted

_END = "final_summary*.txt"
_COUNTS = re.compile(r"^pod5_files_in_(?:final_dest|fallback)=(\d+)\s*$", re.MULTILINE)
_SETTLE_S = 5.0
_UNREADABLE_SETTLE_S = 60.0  # a file that cannot be read may still be copied


@dataclass
class FolderWatch:
    """The reads of the POD5 files in a folder and those within, as they appear; iterate over it once.

    MinKNOW writes the footer, without which a POD5 cannot be read, when it closes a file: a file that cannot be read
    is tried again when it has changed. The run is over when MinKNOW's `final_summary_*.txt` is there, which it writes
    last, and no file has changed for a few seconds. Where the run's own folder is watched, as many files must be there
    as the summary counts: a copy of the folder may get the summary first. Files that cannot be read, and those that
    never came, are `source.file_faults`.

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
    _real: set[str] = field(default_factory=set, init=False)  # where those lie, for links may lead there too
    _unreadable: dict[Path, tuple[tuple[int, int], str]] = field(default_factory=dict, init=False)
    _summaries: list[Path] = field(default_factory=list, init=False)
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
        files = files_within(self.folder, recursive=True)
        self._summaries = [file for file in files if fnmatch.fnmatch(file.name, _END)]
        for path in files:
            if path.suffix != ".pod5" or path in self._taken or (real := os.path.realpath(path)) in self._real:
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
                self._real.add(real)
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
        """Whether there is a final summary, every POD5 lies in a folder that has one, and as many came as it counts."""
        folder = self.folder.absolute()
        if folder.name.startswith("pod5") and any(folder.parent.glob(_END)):
            return True  # a run has several such folders, and counts the files of all
        ended = [file.parent for file in self._summaries]
        files = [*self._taken, *self._unreadable]
        if not ended or not all(self.folder in ended or any(_is_within(file, run) for run in ended) for file in files):
            return False
        quiet_s = time.monotonic() - self._news_s
        least_s = min(_UNREADABLE_SETTLE_S if self._unreadable else 0.0, self.timeout_s)
        return quiet_s >= least_s and not any(self._missing())

    def _missing(self) -> Iterator[tuple[Path, int, int]]:
        """Runs of which files have not come: folder, how many its summaries count, how many there are."""
        there = [*self._taken, *self._unreadable]
        for folder in sorted({file.parent for file in self._summaries}):
            expected = sum(_counted_files(file) for file in self._summaries if file.parent == folder)
            found = sum(_is_within(file, folder) for file in there)
            if found < expected:
                yield folder, expected, found

    def _end(self) -> None:
        missing = [] if self.ended_by == "stopped" else list(self._missing())
        for path, (_, reason) in self._unreadable.items():
            self.source.file_faults.append(FileFault(Path(os.path.normpath(path)), reason))
        self._unreadable.clear()
        for folder, expected, found in missing:
            reason = f"its final summary counts {counted(expected, 'POD5 file')}, {found:,} came"
            self.source.file_faults.append(FileFault(folder, reason))


def _is_within(file: Path, folder: Path) -> bool:
    """As it was met, or where it lies: links may lead into the folder, and out of it."""
    return folder in file.parents or Path(os.path.realpath(folder)) in Path(os.path.realpath(file)).parents


def _counted_files(summary: Path) -> int:
    """How many POD5 files a run has by its final summary, wherever MinKNOW has put them; 0: it does not say."""
    try:
        text = summary.read_text(errors="replace")
    except OSError:  # moved away meanwhile
        return 0
    return sum(int(number) for number in _COUNTS.findall(text))
