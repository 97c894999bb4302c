"""A call's totals: counts that must balance, and throughput."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from porestream.client.outputs.output_file import OutputFile
from porestream.client.reads import ReadResult, ReadStatus
from porestream.client.text import counted


@dataclass(kw_only=True)
class Summary:
    """Counts of one call. The books balance when received = called + filtered + rejected + failed.

    `reads_unsent` counts received reads that no server saw: unreadable signal, or duplicates. So a server's books for
    this call say: attempts = received - unsent + resent (more only by what a broken connection lost).
    `reads_taken_over` counts reads of the earlier call that this one continues; no other count includes them.
    """

    reads_received: int = 0
    reads_called: int = 0
    reads_filtered: int = 0
    reads_rejected: int = 0
    reads_failed: int = 0
    reads_aligned: int = 0
    samples: int = 0
    bases: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    bases_per_second: float = 0.0
    reads_taken_over: int = 0
    reconnects: int = 0
    reads_resent: int = 0
    reads_unsent: int = 0
    files_unreadable: list[str] = field(default_factory=list)
    _started_s: float = field(default_factory=time.monotonic, repr=False)

    def start_clock(self) -> None:
        """Start counting seconds."""
        self._started_s = time.monotonic()

    def add(self, result: ReadResult) -> None:
        """Count a result."""
        self._count(result.status)
        self.reads_aligned += result.is_aligned
        self.samples += result.signal_samples
        self.bases += sum(len(part.sequence) for part in result.parts)

    def add_unreadable_read(self) -> None:
        """Count a read whose signal could not be read from its file."""
        self.reads_received += 1
        self.reads_unsent += 1
        self._count(ReadStatus.REJECTED)

    def stop_clock(self) -> None:
        """Take the time, and compute the rates."""
        self.seconds = max(time.monotonic() - self._started_s, 1e-9)
        self.samples_per_second = self.samples / self.seconds
        self.bases_per_second = self.bases / self.seconds

    @property
    def missing(self) -> int:
        """Received reads without a result."""
        done = self.reads_called + self.reads_filtered + self.reads_rejected + self.reads_failed
        return self.reads_received - done

    def to_json(self) -> str:
        """Return all figures as JSON."""
        figures = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        return json.dumps(figures, indent=2)

    def write(self, path: Path) -> None:
        """Write the figures to a JSON file."""
        place = OutputFile(path, keeps=False)
        place.written.write_text(self.to_json() + "\n")
        place.finish()

    def __str__(self) -> str:
        return (
            f"{counted(self.reads_received, 'read')}: {self.reads_called} called, {self.reads_filtered} filtered, "
            f"{self.reads_rejected} rejected, {self.reads_failed} failed; {self.reads_aligned} aligned\n"
            f"{self.samples:,} samples, {self.bases:,} bases in {self.seconds:.1f} s "
            f"({self.samples_per_second:,.0f} samples/s, {self.bases_per_second:,.0f} bases/s)"
        )

    def _count(self, status: ReadStatus) -> None:
        name = f"reads_{status.value}"
        setattr(self, name, getattr(self, name) + 1)
