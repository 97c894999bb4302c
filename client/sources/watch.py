"""Watch a folder that a sequencer writes to, and read its POD5 files as they are finished until the run ends."""

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
_UNREADABLE_SETTLE_S = 60.0  # an unreadable file may still be being copied


@dataclass
class FolderWatch:
    """Yield the reads of POD5 files in a folder and its subfolders as they appear; iterate over it once.

    A POD5 cannot be read without its footer, which MinKNOW writes when it closes the file; so an unreadable file is
    tried again when it has changed. The run is over when MinKNOW has written `final_summary_*.txt`, its last file, and
    nothing has changed for a few seconds. If the run's own folder is watched, it must also have as many files as the
    summary counts: a copy of the folder may get the summary first. Files that cannot be read, or never came, are added
    to `source.file_faults`.

    Parameters
    ----------
    folder
        The run's folder, or its `pod5` folder.
    source
        A source without paths; it gets the files.
    timeout_s
        Stop after this long without a new or changed file.
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
    _real: set[str] = field(default_factory=set, init=False)  # their real paths, as links may lead there too
    _unreadable: dict[Path, tuple[tuple[int, int], str]] = field(default_factory=dict, init=False)
    _summaries: list[Path] = field(default_factory=list, init=False)
    _news_s: float = field(default_factory=time.monotonic, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def wait_for_first(self) -> bool:
        """Wait for the first readable file; return False if the watch ends before there is one."""
        while not self.source.runs:
            self._look()
            if not self.source.runs and not self._wait() and not self._look():
                self._end()
                return False
        return True

    def __iter__(self) -> Iterator[SignalRead]:
        while True:
            yield from self.source  # the files added since
            if self.source.max_reads == 0:
                self.ended_by = "the reads that were asked for"
                return
            if self._look() or self._wait():
                continue
            if not self._look():  # once more, for files finished just before the end
                break
        self._end()

    def stop(self) -> None:
        """Take no more files."""
        self._stopped.set()

    def _look(self) -> bool:
        """Give new files to the source; return whether there were any."""
        got = False
        files = files_within(self.folder, recursive=True)
        self._summaries = [file for file in files if fnmatch.fnmatch(file.name, _END)]
        for path in files:
            if path.suffix != ".pod5" or path in self._taken or (real := os.path.realpath(path)) in self._real:
                continue
            try:
                status = path.stat()
            except OSError:  # moved away in the meantime
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
        """Wait before looking again; return False if the watch is over."""
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
        """Whether every POD5 lies in a folder with a final summary, and as many came as the summary counts."""
        folder = self.folder.absolute()
        if folder.name.startswith("pod5") and any(folder.parent.glob(_END)):
            return True  # a run has several such folders, and its summary counts the files of all
        ended = [file.parent for file in self._summaries]
        files = [*self._taken, *self._unreadable]
        if not ended or not all(self.folder in ended or any(_is_within(file, run) for run in ended) for file in files):
            return False
        quiet_s = time.monotonic() - self._news_s
        least_s = min(_UNREADABLE_SETTLE_S if self._unreadable else 0.0, self.timeout_s)
        return quiet_s >= least_s and not any(self._missing())

    def _missing(self) -> Iterator[tuple[Path, int, int]]:
        """Yield runs with missing files: folder, number of files in its summaries, number found."""
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
            reason = f"its final summary lists {counted(expected, 'POD5 file')}, but only {found:,} arrived"
            self.source.file_faults.append(FileFault(folder, reason))


def _is_within(file: Path, folder: Path) -> bool:
    """Whether a file is in a folder, by its path or its real path: links may lead in and out."""
    return folder in file.parents or Path(os.path.realpath(folder)) in Path(os.path.realpath(file)).parents


def _counted_files(summary: Path) -> int:
    """Return how many POD5 files a final summary counts, wherever MinKNOW put them; 0 if it does not say."""
    try:
        text = summary.read_text(errors="replace")
    except OSError:  # moved away in the meantime
        return 0
    return sum(int(number) for number in _COUNTS.findall(text))
