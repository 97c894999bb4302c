"""Read POD5 files, and folders of them."""

import contextlib
import glob
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5

from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.client.sources.runs import FileRuns, Runs


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


def files_within(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the files of a folder, and of its subfolders if asked to, sorted. Follow links; visit each folder once.

    Skip names that begin with a dot: macOS writes `._x.pod5` beside x.pod5, which is not a POD5.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def is_new(path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:  # moved away in the meantime
            return False
        place = status.st_dev, status.st_ino
        return place not in seen and not seen.add(place)  # type: ignore[func-returns-value]

    is_new(str(folder))
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in sorted(folders) if recursive and name[0] != "." and is_new(os.path.join(root, name))
        ]
        found += [Path(root, name) for name in names if name[0] != "."]
    return sorted(found)


def pod5_files_within(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the POD5 files among `files_within`."""
    return [file for file in files_within(folder, recursive=recursive) if file.suffix == ".pod5"]


def find_pod5_files(paths: Iterable[Path], *, recursive: bool = False) -> tuple[list[Path], list[FileFault]]:
    """Return the POD5 files that the paths name, each once, and the paths that have none.

    Parameters
    ----------
    paths
        Files, folders with `*.pod5` files, and patterns (`run*/*.pod5`) that the shell did not expand.
    recursive
        Search subfolders as well, linked ones too.
    """
    files: list[Path] = []
    faults: list[FileFault] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = pod5_files_within(path, recursive=recursive)
            if not found:
                deeper = not recursive and any(pod5_files_within(path, recursive=True))
                hint = "; its subfolders do: use -r" if deeper else ""
                faults.append(FileFault(path, f"the folder has no .pod5 files{hint}"))
            files.extend(found)
        elif path.exists() or not glob.has_magic(str(path)):
            files.append(path)
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            files.extend(map(Path, matches))
        else:
            faults.append(FileFault(path, "no file matches this pattern"))
    once: dict[str, Path] = {}
    for path in files:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values()), faults


def load_read_ids(path: Path) -> frozenset[bytes]:
    """Read read ids from a text file: the first word of each line, so tables with a header work, too.

    Raises
    ------
    ValueError
        A line does not begin with a UUID (the message gives its number), or the file lists no ids.
    OSError
        The file cannot be read.
    """
    ids = set()
    data = path.read_bytes()  # only once, as it may be a pipe
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # Windows writes a byte-order mark
    for number, line in enumerate(data.decode(encoding, "replace").splitlines(), 1):
        word = (line.replace(",", " ").split() or [""])[0]
        if not word or word.startswith("#") or (number == 1 and word.strip('"') in ("read_id", "id")):
            continue
        try:
            ids.add(UUID(word.strip('"')).bytes)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {word[:60]!r} is not a read id (a UUID)") from None
    if not ids:
        raise ValueError(f"{path} lists no read ids")
    return frozenset(ids)


class ReadIds:
    """A growing set of read ids at 16 bytes each, small enough for a three-day run.

    Sorted arrays, each at most half as long as the one before, so there are few to search and ids rarely move.
    """

    def __init__(self) -> None:
        self._sorted: list[npt.NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(map(len, self._sorted))

    def __contains__(self, read_id: bytes) -> bool:
        return bool(self.known(np.array([read_id], "S16"))[0])

    @property
    def arrays(self) -> list[npt.NDArray[np.bytes_]]:
        """The ids, in several sorted arrays."""
        return self._sorted

    def known(self, ids_N: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        """Return for each id (S16) whether it is in the set."""
        known_N = np.zeros(ids_N.size, bool)
        for array in self._sorted:
            places_N = np.searchsorted(array, ids_N)
            known_N |= array[np.minimum(places_N, array.size - 1)] == ids_N
        return known_N

    def without(self, others: "ReadIds") -> "ReadIds":
        """Return the ids that are not in the other set."""
        left = ReadIds()
        for ids_N in self._sorted:
            left.add(ids_N[~others.known(ids_N)])
        return left

    def add(self, ids_N: npt.NDArray[np.bytes_]) -> None:
        """Add ids (S16)."""
        new = np.unique(ids_N[~self.known(ids_N)])
        if not new.size:
            return
        while self._sorted and self._sorted[-1].size < 2 * new.size:
            new = np.union1d(self._sorted.pop(), new)
        self._sorted.append(new)


class ReadFacts:
    """The start of many reads, and what they share with others: run, file, end reason and pore type.

    Takes 30 bytes per read, because a run may last three days.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._shared: dict[tuple[RunInfo, str, str, str], int] = {}
        self._sorted: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] | None = None
        self._kinds: list[tuple[RunInfo, str, str, str]] = []

    def add(self, infos: Iterable[ReadInfo]) -> None:
        """Add reads. If a read is added twice, its first facts count."""
        ids, starts, shared = list[bytes](), list[int](), list[int]()
        for info in infos:
            ids.append(info.read_id.bytes)
            starts.append(info.start_sample)
            facts = info.run, info.file_name, info.end_reason, info.pore_type
            shared.append(self._shared.setdefault(facts, len(self._shared)))
        if ids:
            self._batches.append((np.array(ids, "S16"), np.array(starts, np.uint64), np.array(shared, np.uint32)))
            self._sorted = None

    def of(self, read_id: UUID) -> ReadInfo | None:
        """Return a read, without channel, well, number and calibration; None if it is unknown."""
        if not self._batches:
            return None
        if self._sorted is None:
            ids_N, starts_N, shared_N = (np.concatenate(columns) for columns in zip(*self._batches, strict=True))
            self._batches = [(ids_N, starts_N, shared_N)]
            order_N = np.argsort(ids_N, kind="stable")
            self._sorted = ids_N[order_N], starts_N[order_N], shared_N[order_N]
            self._kinds = list(self._shared)
        ids_N, starts_N, shared_N = self._sorted
        name = np.array([read_id.bytes], "S16")
        place = int(np.searchsorted(ids_N, name)[0])
        if place == ids_N.size or ids_N[place] != name[0]:
            return None
        run, file_name, end_reason, pore_type = self._kinds[int(shared_N[place])]
        return ReadInfo(
            read_id=read_id,
            run=run,
            offset_adc=0.0,
            scale_pa_per_adc=1.0,
            start_sample=int(starts_N[place]),
            end_reason=end_reason,
            file_name=file_name,
            pore_type=pore_type,
        )


@dataclass
class Pod5Source:
    """The reads of POD5 files and folders, in order; iterate over it once. A file named twice is read once.

    What cannot be read is skipped and recorded in `file_faults` and `read_faults`.

    Parameters
    ----------
    paths, recursive
        Files, folders, patterns: see `find_pod5_files`.
    max_reads
        Stop after this many reads; None: all.
    read_ids
        Only these reads (16 bytes each); None: all.
    runs_before
        Runs of the call to resume from, by key: the same runs here get the same keys.

    Attributes
    ----------
    runs
        The runs of the reads found so far, by key; with `read_ids`, only the runs of those reads.
    total_reads
        How many reads there are to call, as far as known.
    """

    paths: Iterable[Path]
    max_reads: int | None = None
    recursive: bool = False
    read_ids: frozenset[bytes] | None = None
    runs_before: Mapping[str, RunInfo] = field(default_factory=dict)
    file_faults: list[FileFault] = field(default_factory=list, init=False)
    read_faults: list[ReadFault] = field(default_factory=list, init=False)
    runs: dict[str, RunInfo] = field(default_factory=dict, init=False)
    total_reads: int = field(default=0, init=False)
    _files: list["_File"] = field(default_factory=list, init=False)
    _known: ReadIds = field(default_factory=ReadIds, init=False)
    _done: ReadIds = field(default_factory=ReadIds, init=False)
    _found_reads: int = field(default=0, init=False)
    _wanted: npt.NDArray[np.bytes_] | None = field(default=None, init=False)
    _all_runs: Runs = field(init=False)

    def __post_init__(self) -> None:
        self._all_runs = Runs(self.runs_before)
        if self.read_ids is not None:
            self._wanted = np.array(sorted(self.read_ids), "S16")
        files, faults = find_pod5_files(self.paths, recursive=self.recursive)
        self.file_faults.extend(faults)
        for path in files:
            if reason := self.add(path):
                self.file_faults.append(FileFault(path, reason))

    def __iter__(self) -> Iterator[SignalRead]:
        while self._files:
            yield from self._read_file(self._files.pop(0))

    @property
    def unmet(self) -> list[str]:
        """The `read_ids` that no file has."""
        if self._wanted is None:
            return []
        unmet = _bytes_of(self._wanted[~self._known.known(self._wanted)])
        return [str(UUID(bytes=name)) for name in sorted(unmet)]

    @property
    def files(self) -> list[Path]:
        """The files still to be read."""
        return [file.path for file in self._files]

    def add(self, path: Path) -> str:
        """Add a file: count its reads and note its runs, which an output's header needs before the first read.

        Returns
        -------
        str
            Why the file cannot be read; empty if it can.
        """
        try:
            if not path.exists():
                raise FileNotFoundError("no such file")
            with pod5.Reader(path) as reader:
                if not reader.read_table.num_record_batches:
                    return ""  # pod5 cannot count reads if there are none
                ids_N = np.frombuffer(b"".join(reader.read_ids_raw.to_pylist()), "S16")
                runs = self._runs_with_reads(reader)
        except Exception as error:  # noqa: BLE001 - whatever pod5 and Arrow raise for a file that is not one
            return _reason(error)
        if self._wanted is not None and not np.isin(ids_N, self._wanted).any():
            return ""
        self.runs.update((run.key, run) for run in runs)
        copies = ids_N[self._known.known(ids_N)]
        distinct, counts = np.unique(ids_N, return_counts=True)
        self._files.append(_File(path, _bytes_of(copies), dict.fromkeys(_bytes_of(distinct[counts > 1]), False)))
        self._known.add(ids_N)
        self._found_reads += int(ids_N.size if self._wanted is None else np.isin(ids_N, self._wanted).sum())
        self._recount()
        return ""

    def _runs_with_reads(self, reader: pod5.Reader) -> list[RunInfo]:
        """Return the runs of the reads to call: other runs in the file must not matter."""
        runs, found = self._all_runs.of_file(reader), dict[RunInfo, None]()
        for index in range(reader.read_table.num_record_batches):
            batch = reader.read_table.get_batch(index)
            if (column := batch.column("run_info")).null_count or not _is_sound(column):
                continue  # skipped when the file is read
            run_N = column.indices.to_numpy()
            if self._wanted is not None:
                ids_N = np.frombuffer(b"".join(batch.column("read_id").to_pylist()), "S16")
                run_N = run_N[np.isin(ids_N, self._wanted)]
            of_batch = runs.of_batch(column)
            found |= dict.fromkeys(run for i in np.unique(run_N) if isinstance(run := of_batch[i], RunInfo))
        return list(found)

    def skip(self, done: ReadIds) -> None:
        """Skip reads that are called already. They count towards `max_reads` as if called now."""
        self._done = done
        self._recount()

    def facts(self, wanted: ReadIds) -> "ReadFacts":
        """Look up these reads in the files still to be read; of copies, the first counts.

        Reads nothing from the source. Skip what cannot be read: it is reported when its turn comes.
        """
        facts = ReadFacts()
        for file in self._files:
            with contextlib.suppress(Exception), pod5.Reader(file.path) as reader:
                runs = self._all_runs.of_file(reader)
                for index in range(reader.batch_count):
                    with contextlib.suppress(Exception):
                        facts.add(_infos_of_batch(reader, index, runs, wanted, file.path))
        return facts

    def _recount(self) -> None:
        total = self._found_reads if self.max_reads is None else min(self._found_reads, self.max_reads)
        done = 0
        for ids_N in self._done.arrays:
            here_N = self._known.known(ids_N)
            done += int(here_N.sum() if self._wanted is None else (here_N & np.isin(ids_N, self._wanted)).sum())
        self.total_reads = max(0, total - done)

    def _read_file(self, file: "_File") -> Iterator[SignalRead]:
        path = file.path
        try:
            with pod5.Reader(path) as reader:
                for record, runs in self._records(reader, path):
                    read_id = record.read_id
                    if self.read_ids is not None and read_id.bytes not in self.read_ids:
                        continue
                    if self.max_reads is not None:
                        if self.max_reads <= 0:
                            return
                        self.max_reads -= 1
                    if read_id.bytes in self._done:
                        continue
                    if file.is_copy(read_id.bytes):
                        reason = "duplicate: an earlier read has the same id, and that one is called"
                        self.read_faults.append(ReadFault(str(read_id), path, reason))
                        continue
                    try:
                        read = _convert(record, _run_of(record, runs), path)
                    except Exception as error:  # noqa: BLE001 - one bad read must not end the file
                        self.read_faults.append(ReadFault(str(read_id), path, _reason(error)))
                    else:
                        yield read
        except Exception as error:  # noqa: BLE001 - whatever pod5 and Arrow raise amid a damaged file
            self.file_faults.append(FileFault(path, f"not read to its end: {_reason(error)}"))

    def _records(self, reader: pod5.Reader, path: Path) -> Iterator[tuple[pod5.ReadRecord, Sequence[RunInfo | str]]]:
        """Yield the reads of undamaged batches, with the batch's runs by index.

        Batches are checked because Arrow would end the process on offsets outside a batch.
        """
        runs = self._all_runs.of_file(reader)
        if reader.batch_count:
            for index in range(reader.signal_table.num_record_batches):
                reader.signal_table.get_batch(index).validate(full=True)
        for index in range(reader.batch_count):
            try:
                reader.read_table.get_batch(index).validate(full=True)
            except Exception as error:  # noqa: BLE001 - ArrowInvalid, as a rule
                which = f"batch {index + 1} of {reader.batch_count}"
                self.file_faults.append(FileFault(path, f"damaged; skipped {which} of its reads: {_reason(error)}"))
            else:
                batch_runs = runs.of_batch(reader.read_table.get_batch(index).column("run_info"))
                for record in reader.get_batch(index).reads():
                    yield record, batch_runs


def _run_of(record: pod5.ReadRecord, runs: Sequence[RunInfo | str]) -> RunInfo:
    index = record.run_info_index
    run: RunInfo | str = "run unknown: the read does not name its run" if index is None else runs[index]
    if isinstance(run, str):
        raise ValueError(run)
    return run


def _infos_of_batch(reader: pod5.Reader, index: int, runs: FileRuns, wanted: ReadIds, path: Path) -> Iterator[ReadInfo]:
    """Yield the wanted reads of a batch. As in `_records`, a damaged batch must not be touched."""
    table = reader.read_table.get_batch(index)
    table.validate(full=True)
    wanted_N = wanted.known(np.array(table.column("read_id").to_pylist(), "S16"))
    if not wanted_N.any():
        return
    batch, batch_runs = reader.get_batch(index), runs.of_batch(table.column("run_info"))
    for row in np.flatnonzero(wanted_N):
        with contextlib.suppress(Exception):  # it could not be read for calling, either
            record = batch.get_read(int(row))
            yield _info(record, _run_of(record, batch_runs), path)


def _convert(record: pod5.ReadRecord, run: RunInfo, path: Path) -> SignalRead:
    """Convert a read for the client."""
    return SignalRead(_info(record, run, path), record.signal)


def _info(record: pod5.ReadRecord, run: RunInfo, path: Path) -> ReadInfo:
    level_pa = record.open_pore_level  # NaN: the instrument did not say
    calibration, pore = record.calibration, record.pore  # pod5 builds these anew on each access
    return ReadInfo(
        read_id=record.read_id,
        run=run,
        offset_adc=calibration.offset,
        scale_pa_per_adc=calibration.scale,
        channel=pore.channel,
        well=pore.well,
        read_number=record.read_number,
        start_sample=record.start_sample,
        end_reason=record.end_reason.name,
        pore_type=pore.pore_type,
        file_name=path.name,
        open_pore_level_pa=level_pa if math.isfinite(level_pa) else 0.0,
    )


def _is_sound(column: Any) -> bool:
    try:
        column.validate(full=True)
    except Exception:  # noqa: BLE001 - ArrowInvalid, as a rule
        return False
    return True


@dataclass(slots=True)
class _File:
    """A file, and which of its reads have an id that occurs more than once."""

    path: Path
    copies: set[bytes]  # of reads in earlier files
    repeated: dict[bytes, bool]  # ids that occur more than once in this file; whether seen yet

    def is_copy(self, read_id: bytes) -> bool:
        if read_id in self.copies:
            return True
        if read_id not in self.repeated:
            return False
        is_copy, self.repeated[read_id] = self.repeated[read_id], True
        return is_copy


def _bytes_of(ids_N: npt.NDArray[np.bytes_]) -> set[bytes]:
    return {bytes(name).ljust(16, b"\0") for name in ids_N}  # NumPy drops zeros at the end


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"not a POD5 file, or cut short ({text})" if "Invalid signature" in text else text
