"""Tell runs apart by all their metadata: merged files may have several runs with the same acquisition id."""

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import pod5

from porestream.client.reads import RunInfo
from porestream.client.text import one_line

_UNKNOWN = "unknown"


def instrument_fields(run: RunInfo) -> dict[str, str]:
    """Return the @RG fields that say where and when a run was sequenced, without unknown ones."""
    line = {
        "PU": one_line(run.flow_cell_id),
        "PM": one_line(run.position),
        "SM": one_line(run.sample_id),
        "LB": one_line(run.sample_id),
        "DT": run.acquisition_start_time.isoformat(timespec="microseconds") if run.acquisition_start_time else "",
    }
    return {key: value for key, value in line.items() if value}


class Runs:
    """Give every run a unique key: its id, plus a digest of its metadata if another run has the same id.

    An id with characters that SAM cannot hold gets the digest, too: other ids may differ only in those.

    Parameters
    ----------
    before
        Runs of an earlier call, by key, as far as a header tells: no other run gets their keys.
    """

    def __init__(self, before: Mapping[str, RunInfo]) -> None:
        self._before = before
        self._known: dict[RunInfo, RunInfo] = {}  # a run as in the file: the same with its key
        self._taken: set[str] = set()

    def of_file(self, reader: pod5.Reader) -> "FileRuns":
        """Return the runs of a POD5 file."""
        return FileRuns(self._keyed(_run_info(row)) for row in reader.run_info_table.read_all().to_pylist())

    def _keyed(self, said: RunInfo) -> RunInfo:
        if said not in self._known:
            run, values = said, [str(value) for value in astuple(said)]
            while self._is_anothers(run):
                digest = hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()
                run = replace(said, distinction=digest[:8])
                values.append("again")  # a run may already have the key that another would get
            self._taken.add(run.key)
            self._known[said] = run
        return self._known[said]

    def _is_anothers(self, run: RunInfo) -> bool:
        """Whether another run has, or might have, this run's key."""
        if not run.distinction and run.key != run.run_id:
            return True
        before = self._before.get(run.key)
        return run.key in self._taken or bool(before and instrument_fields(before) != instrument_fields(run))


class FileRuns:
    """The runs of one file, in the order of its run table."""

    def __init__(self, runs: Iterable[RunInfo]) -> None:
        self._by_id: dict[str, list[RunInfo]] = collections.defaultdict(list)
        for run in runs:
            self._by_id[run.run_id].append(run)

    @property
    def all(self) -> list[RunInfo]:
        """The runs, each once."""
        return list(dict.fromkeys(run for runs in self._by_id.values() for run in runs))

    def of_batch(self, column: Any) -> Sequence[RunInfo | str]:
        """Return, for each index in a batch's column `run_info`, the run, or why it is unknown.

        The column's dictionary has only ids. If several runs of the table share an id, the dictionary has it that many
        times, in the same order.
        """
        ids = [name or _UNKNOWN for name in column.dictionary.to_pylist()]
        counts, met = collections.Counter(ids), collections.Counter[str]()
        found: list[RunInfo | str] = []
        for name in ids:
            runs = self._by_id.get(name, [])
            if len(set(runs)) == 1:
                found.append(runs[0])
            elif not runs:
                found.append(f"run unknown: the file's run table does not list {name}")
            elif counts[name] == len(runs):
                found.append(runs[met[name]])
            else:
                found.append(f"run unknown: the file has {len(runs)} runs with the id {name}, and does not say which")
            met[name] += 1
        return found


def _run_info(row: dict[str, Any]) -> RunInfo:
    return RunInfo(
        run_id=row["acquisition_id"] or _UNKNOWN,
        sample_rate_hz=row["sample_rate"],
        flow_cell_id=row["flow_cell_id"],
        flow_cell_product_code=row["flow_cell_product_code"],
        sequencing_kit=row["sequencing_kit"],
        position=row["sequencer_position"],
        sample_id=row["sample_id"],
        experiment_id=row["experiment_name"],
        acquisition_start_time=row["acquisition_start_time"],
        protocol_run_id=row["protocol_run_id"],
    )
