"""Where reads come from: POD5 files and folders."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pod5

from porestream.client.reads import ReadInfo, RunInfo, SignalRead

_UNKNOWN_RUN = "unknown"


@dataclass(frozen=True, slots=True)
class FileFault:
    """A file that could not be read, or not to its end."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ReadFault:
    """A read whose signal could not be read."""

    read_id: str
    path: Path
    reason: str


@dataclass
class Pod5Source:
    """The reads of POD5 files and folders, in order; iterate over it once. A file named twice is read once.

    What cannot be read is passed over and recorded in `file_faults` and `read_faults`; the rest goes on.

    Parameters
    ----------
    paths
        Files, or folders whose `*.pod5` are taken (not those of folders within).
    max_reads
        Stop after so many; None: all.
    """

    paths: Iterable[Path]
    max_reads: int | None = None
    file_faults: list[FileFault] = field(default_factory=list, init=False)
    read_faults: list[ReadFault] = field(default_factory=list, init=False)
    runs: dict[str, RunInfo] = field(default_factory=dict, init=False)
    total_reads: int = field(default=0, init=False)
    _files: list[Path] = field(default_factory=list, init=False)
    _ids: list[npt.NDArray[np.bytes_]] = field(default_factory=list, init=False)
    _copies: dict[bytes, bool] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for path in map(Path, self.paths):
            if path.is_dir():
                found = sorted(path.glob("*.pod5"))
                if not found:
                    self.file_faults.append(FileFault(path, "the folder has no .pod5 files"))
                self._files.extend(found)
            else:
                self._files.append(path)
        once: dict[str, Path] = {}
        for path in self._files:
            once.setdefault(os.path.realpath(path), path)
        self._files = [path for path in once.values() if self._survey(path)]
        self._copies = _repeated(self._ids)
        self._ids.clear()
        if self.max_reads is not None:
            self.total_reads = min(self.total_reads, self.max_reads)

    def __iter__(self) -> Iterator[SignalRead]:
        left = self.max_reads
        for path in self._files:
            for read in self._read_file(path):
                if left is not None:
                    if left <= 0:
                        return
                    left -= 1
                yield read

    def _survey(self, path: Path) -> bool:
        """Count a file's reads and learn its runs: an output's header needs all of them before the first read."""
        try:
            if not path.exists():
                raise FileNotFoundError("no such file")
            with pod5.Reader(path) as reader:
                if not reader.read_table.num_record_batches:
                    return False  # no reads: pod5 cannot count them then
                self.total_reads += reader.num_reads
                self._ids.append(np.frombuffer(b"".join(reader.read_ids_raw.to_pylist()), "S16"))
                for run in reader.run_info_table.read_all().to_pylist():
                    info = _run_info(run)
                    self.runs.setdefault(info.run_id, info)
        except Exception as error:  # noqa: BLE001 - whatever pod5 and Arrow raise for a file that is not one
            self.file_faults.append(FileFault(path, _reason(error)))
            return False
        return True

    def _read_file(self, path: Path) -> Iterator[SignalRead]:
        try:
            with pod5.Reader(path) as reader:
                for record in reader.reads():
                    read_id = record.read_id
                    if self._is_copy(read_id.bytes):
                        reason = "duplicate: a read of this id was met before, and is called"
                        self.read_faults.append(ReadFault(str(read_id), path, reason))
                        continue
                    try:
                        read = self._convert(record, path)
                    except Exception as error:  # noqa: BLE001 - one bad read must not end the file
                        self.read_faults.append(ReadFault(str(read_id), path, _reason(error)))
                    else:
                        yield read
        except Exception as error:  # noqa: BLE001 - whatever pod5 and Arrow raise amid a damaged file
            self.file_faults.append(FileFault(path, f"not read to its end: {_reason(error)}"))

    def _is_copy(self, read_id: bytes) -> bool:
        """Whether a read of this id was met before; only ids that come more than once are remembered."""
        if read_id not in self._copies:
            return False
        is_copy, self._copies[read_id] = self._copies[read_id], True
        return is_copy

    def _convert(self, record: pod5.ReadRecord, path: Path) -> SignalRead:
        level_pa = record.open_pore_level  # NaN: the instrument did not say
        calibration, pore = record.calibration, record.pore  # each is made anew whenever it is asked for
        info = ReadInfo(
            read_id=record.read_id,
            run=self.runs[record.run_info.acquisition_id or _UNKNOWN_RUN],
            offset_adc=calibration.offset,
            scale_pa_per_adc=calibration.scale,
            channel=pore.channel,
            well=pore.well,
            read_number=record.read_number,
            start_sample=record.start_sample,
            end_reason=record.end_reason.name,
            file_name=path.name,
            open_pore_level_pa=level_pa if math.isfinite(level_pa) else 0.0,
        )
        return SignalRead(info, record.signal)


def _repeated(ids: list[npt.NDArray[np.bytes_]]) -> dict[bytes, bool]:
    """The read ids that stand in more than one place, none of them met yet. Takes 16 bytes a read, for a moment."""
    if len(ids) < 2:
        return {}
    sorted_ids = np.sort(np.concatenate(ids))
    return {bytes(name).ljust(16, b"\0"): False for name in sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]}


def _run_info(run: dict[str, Any]) -> RunInfo:
    return RunInfo(
        run_id=run["acquisition_id"] or _UNKNOWN_RUN,
        sample_rate_hz=run["sample_rate"],
        flow_cell_id=run["flow_cell_id"],
        flow_cell_product_code=run["flow_cell_product_code"],
        sequencing_kit=run["sequencing_kit"],
        position=run["sequencer_position"],
        sample_id=run["sample_id"],
        experiment_id=run["experiment_name"],
        acquisition_start_time=run["acquisition_start_time"],
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"not a POD5 file, or cut short ({text})" if "Invalid signature" in text else text
