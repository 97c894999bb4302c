"""List the reads without a record, and why: nobody should have to guess what happened to a read."""

import collections
from pathlib import Path
from typing import TextIO

from porestream.client.outputs.errors import cannot_write
from porestream.client.outputs.output_file import OutputFile
from porestream.client.text import cell

_LISTED = 20


class RejectedReads:
    """Count rejected and failed reads, and write them to a table, which appears when it is complete.

    Parameters
    ----------
    path
        The table (tab-separated: read_id, filename, status, reason); None: write no table.

    Attributes
    ----------
    counts
        Number of reads by kind of reason: the text before its first colon.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.counts: collections.Counter[str] = collections.Counter()
        self._place: OutputFile | None = None
        self._file: TextIO | None = None

    def hold(self) -> None:
        """Lock the table when a call starts, so that it cannot fail midway because another call has it.

        Raises
        ------
        OSError
            The table cannot be written.
        """
        if self.path is not None and self._place is None:
            try:
                self._place = OutputFile(self.path, keeps=False)  # rejected reads are called again on resuming
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def add(self, read_id: object, file_name: str, status: str, reason: str) -> str:
        """Add a read; return a line for the user, empty after the first 21.

        Raises
        ------
        OSError
            The table cannot be written.
        """
        self.counts[reason.partition(":")[0]] += 1
        self.hold()
        if self._place is not None:
            try:
                self._write(self._place.written, (read_id, file_name, status, reason))
            except OSError as error:
                raise cannot_write(self._place.written, error) from error
        listed = sum(self.counts.values())
        if listed <= _LISTED:
            return f"read {read_id} of {file_name} {status}: {reason}"
        if listed == _LISTED + 1:
            where = f"are in {self.path}" if self.path else "are only counted; --rejected-reads FILE lists all"
            return f"more rejected and failed reads {where}"
        return ""

    def close(self, *, finish: bool = True) -> None:
        """Finish the table, or leave it unfinished. A finished call without such reads leaves none."""
        if finish:
            self.hold()
        if self._place is None:
            return
        if self._file is not None:
            self._file.close()
            if finish:
                self._place.finish()
            else:
                self.path = self._place.written
        elif finish and self._place.path.is_file():  # an earlier call's table; devices are left alone
            self._place.path.unlink()
        self.release()

    def release(self) -> None:
        """Unlock the table."""
        if self._place is not None:
            self._place.release()

    def _write(self, path: Path, row: tuple[object, ...]) -> None:
        if self._file is None:
            self._file = path.open("w", encoding="utf-8")
            self._file.write("read_id\tfilename\tstatus\treason\n")
        self._file.write("\t".join(cell(" ".join(str(field).split())) for field in row) + "\n")
        self._file.flush()

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
