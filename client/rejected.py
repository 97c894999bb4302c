"""The list of the reads that have no record, and why: nobody should have to guess what became of a read."""

import collections
from pathlib import Path
from typing import TextIO

_LISTED = 20


class RejectedReads:
    """Writes each read that was rejected or failed to a table, which appears with the first of them.

    Parameters
    ----------
    path
        The table (tab-separated: read_id, filename, status, reason); None: there is none.

    Attributes
    ----------
    counts
        Reads by the kind of reason, which is what stands before its first colon.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.counts: collections.Counter[str] = collections.Counter()
        self._file: TextIO | None = None
        if path is not None and path.is_file():  # of an earlier call; a device is left alone
            path.unlink()

    def add(self, read_id: object, file_name: str, status: str, reason: str) -> str:
        """Note a read; returns the line for the user, empty once there were many.

        Raises
        ------
        OSError
            The table cannot be written.
        """
        self.counts[reason.partition(":")[0]] += 1
        if self.path is not None:
            if self._file is None:
                self._file = self.path.open("w", encoding="utf-8")
                self._file.write("read_id\tfilename\tstatus\treason\n")
            self._file.write("\t".join(" ".join(str(x).split()) for x in (read_id, file_name, status, reason)) + "\n")
            self._file.flush()
        listed = sum(self.counts.values())
        if listed <= _LISTED:
            return f"read {read_id} of {file_name} {status}: {reason}"
        if listed == _LISTED + 1:
            where = f"are in {self.path}" if self.path else "are counted, not listed: --rejected-reads FILE lists all"
            return f"further rejected and failed reads {where}"
        return ""

    def close(self) -> None:
        """Finish the table."""
        if self._file is not None:
            self._file.close()

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
