"""Runs that share an acquisition id, or have none, are runs of their own."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pod5
import pyarrow as pa
import pysam
import pytest
from made_up_results import UNALIGNED

from porestream.client import Pod5Source, RunInfo
from porestream.client.outputs.partial import Partial
from porestream.client.outputs.records import header, read_group
from porestream.client.sources.runs import FileRuns, Runs

A = RunInfo(
    run_id="id",
    sample_rate_hz=5000,
    flow_cell_id="FAA",
    flow_cell_product_code="FLO-MIN114",
    sequencing_kit="SQK-LSK114",
    position="MN1",
    sample_id="s",
    experiment_id="e",
    acquisition_start_time=datetime(2026, 1, 2, tzinfo=UTC),
    protocol_run_id="p",
)
B = replace(A, sample_rate_hz=4000, flow_cell_product_code="FLO-MIN106", sample_id="t")


def reader_of(*runs: RunInfo) -> pod5.Reader:
    """A file of these runs, as far as `Runs` looks at one."""
    rows = [
        {
            "acquisition_id": run.run_id,
            "sample_rate": run.sample_rate_hz,
            "flow_cell_id": run.flow_cell_id,
            "flow_cell_product_code": run.flow_cell_product_code,
            "sequencing_kit": run.sequencing_kit,
            "sequencer_position": run.position,
            "sample_id": run.sample_id,
            "experiment_name": run.experiment_id,
            "acquisition_start_time": run.acquisition_start_time,
            "protocol_run_id": run.protocol_run_id,
        }
        for run in runs
    ]
    table = SimpleNamespace(read_all=lambda: SimpleNamespace(to_pylist=lambda: rows))
    return cast(pod5.Reader, SimpleNamespace(run_info_table=table))


def column(ids: list[str], indexes: list[int]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indexes, pa.int16()), pa.array(ids))


def test_a_run_keeps_its_key_from_file_to_file() -> None:
    runs = Runs({})
    (first,) = runs.of_file(reader_of(A)).all
    both = runs.of_file(reader_of(B, A)).all
    assert first.key == "id"
    assert {run.sample_id: run.key == "id" for run in both} == {"s": True, "t": False}
    assert runs.of_file(reader_of(B)).all == both[:1]


def test_the_order_of_files_decides_only_who_has_the_plain_key() -> None:
    one, other = Runs({}), Runs({})
    keys = [run.key for file in (A, B) for run in one.of_file(reader_of(file)).all]
    turned = [run.key for file in (B, A) for run in other.of_file(reader_of(file)).all]
    assert keys[0] == turned[0] == "id"
    assert len({*keys, *turned}) == 3
    # with the header of the first call at hand, both have the keys that they had there
    resumed = Runs({"id": replace(A, sample_rate_hz=0, flow_cell_product_code="", sequencing_kit="")})
    assert [run.key for file in (B, A) for run in resumed.of_file(reader_of(file)).all] == keys[::-1]


ALIKE = ["run_", "run\x01", "run\x02", "run\t", "run\u00e9", "run\u00e8"]
"""The same in SAM, where each of these characters becomes an underscore."""


def test_ids_that_are_the_same_in_sam_are_told_apart(tmp_path: Path) -> None:
    said = [replace(A, run_id=name) for name in ALIKE]
    runs = Runs({}).of_file(reader_of(*said)).all
    assert [run.run_id for run in runs] == ALIKE
    groups = [read_group(run, "m") for run in runs]
    assert len(set(groups)) == len(ALIKE)
    assert groups[0] == "run__m"
    assert all(re.fullmatch("run_-[0-9a-f]{8}_m", group) for group in groups[1:])
    head = header(runs, replace(UNALIGNED, model="m"))
    assert [group["ID"] for group in head.to_dict()["RG"]] == groups
    # a call that goes on gives each the key that it had, in whatever order their files come
    with pysam.AlignmentFile(str(tmp_path / "a.bam"), "wb", header=head):
        pass
    before = Partial(tmp_path / "a.bam").runs
    assert list(before) == [run.key for run in runs]
    resumed = Runs(before)
    turned = resumed.of_file(reader_of(*said[::-1])).all
    assert {run.run_id: run.key for run in turned} == {run.run_id: run.key for run in runs}


def test_an_id_that_would_be_made_for_another() -> None:
    (_, other) = Runs({}).of_file(reader_of(A, B)).all
    planted = replace(A, run_id=other.key)
    runs = Runs({}).of_file(reader_of(A, planted, B)).all
    keys = {(run.run_id, run.sample_id): run.key for run in runs}
    assert (keys["id", "s"], keys[other.key, "s"]) == ("id", other.key)
    assert keys["id", "t"] not in ("id", other.key)


@pytest.mark.parametrize("run_id", ["a b", "a  b ", " a", "basecall_model=x", "id-12345678"])
def test_an_id_comes_back_from_a_header(tmp_path: Path, run_id: str) -> None:
    head = header([replace(A, run_id=run_id)], UNALIGNED)
    with pysam.AlignmentFile(str(tmp_path / "a.bam"), "wb", header=head):
        pass
    (key, run), *others = Partial(tmp_path / "a.bam").runs.items()
    assert (key, run.run_id, others) == (run_id, run_id, [])


def test_an_index_means_a_row_of_the_table_of_runs() -> None:
    runs = Runs({}).of_file(reader_of(A, B))
    assert [getattr(run, "sample_id", run) for run in runs.of_batch(column(["id", "id"], [0, 1]))] == ["s", "t"]


@pytest.mark.parametrize(
    ("known", "ids", "reason"),
    [
        ((A, B), ["id"], "run unknown: the file has 2 runs with the id id, and does not say which"),
        ((A,), ["other"], "run unknown: the file's run table does not list other"),
        ((A,), [""], "run unknown: the file's run table does not list unknown"),
    ],
)
def test_what_is_not_told_is_said(known: tuple[RunInfo, ...], ids: list[str], reason: str) -> None:
    assert FileRuns(known).of_batch(column(ids, [0])) == [reason]


def test_a_run_twice_in_the_table_is_one() -> None:
    assert FileRuns([A, A]).of_batch(column(["id"], [0])) == [A]


def test_merged_files(shared_data: Path) -> None:
    reads = list(Pod5Source([shared_data / "cases/nonuniq.pod5"]))
    assert [(read.info.run.sample_id, read.info.run.sample_rate_hz) for read in reads] == [("s", 5000), ("t", 4000)]
    assert len({read.info.run.run_id for read in reads}) == 1
    assert len({read.info.run.key for read in reads}) == 2


def test_only_the_runs_of_the_reads_that_are_wanted(shared_data: Path) -> None:
    first = next(iter(Pod5Source([shared_data / "cases/nonuniq.pod5"])))
    source = Pod5Source([shared_data / "cases/nonuniq.pod5"], read_ids=frozenset([first.info.read_id.bytes]))
    assert [run.sample_id for run in source.runs.values()] == ["s"]


def test_files_without_acquisition_ids(shared_data: Path, write_pod5: Callable[..., Path]) -> None:
    source = Pod5Source([shared_data / "cases/noid_a.pod5", shared_data / "cases/noid_r9.pod5"])
    assert [read.info.run.sample_id for read in source] == ["A", "C"]
    assert [run.run_id for run in source.runs.values()] == ["unknown", "unknown"]
