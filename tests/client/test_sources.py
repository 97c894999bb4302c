"""POD5 files and folders: every read once and in order, and what cannot be read is named."""

import re
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pod5
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porestream.client import Pod5Source, RunInfo, SignalRead
from porestream.client.sources import pod5_source as sources_module
from porestream.client.sources.pod5_source import ReadIds, find_pod5_files, load_read_ids

WritePod5 = Callable[..., Path]


def make_signals(*lengths: int, seed: int = 0) -> list[npt.NDArray[np.int16]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(-4096, 4096, length).astype(np.int16) for length in lengths]


def numbers(reads: Sequence[SignalRead]) -> list[int]:
    return [read.info.read_id.int for read in reads]


def test_a_read_has_its_signal_and_facts(tmp_path: Path, write_pod5: WritePod5) -> None:
    signals = make_signals(5, 40_000, 250_000)  # pod5 stores rows of 102,400 samples
    source = Pod5Source([write_pod5(tmp_path / "a.pod5", signals, first=10)])
    assert source.total_reads == 3
    reads = list(source)
    assert numbers(reads) == [10, 11, 12]
    for read, signal_S in zip(reads, signals, strict=True):
        assert read.signal_S.dtype == np.int16
        np.testing.assert_array_equal(read.signal_S, signal_S)
    info = reads[2].info
    assert info.read_id == UUID(int=12)
    assert (info.channel, info.well, info.read_number, info.start_sample) == (3, 3, 102, 8000)
    assert (info.end_reason, info.file_name) == ("signal_positive", "a.pod5")
    assert (info.offset_adc, info.scale_pa_per_adc) == (-243.0, float(np.float32(0.1462)))
    run = info.run
    assert run is source.runs["run-a"]
    assert (run.run_id, run.sample_rate_hz, run.flow_cell_id) == ("run-a", 4000, "FAB12345")
    assert (run.flow_cell_product_code, run.sequencing_kit) == ("FLO-MIN106", "sqk-lsk109")
    assert (run.position, run.sample_id, run.experiment_id) == ("MN00001", "sample", "experiment")
    assert run.acquisition_start_time == datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
    assert not source.file_faults


def test_files_and_folders_in_order(tmp_path: Path, write_pod5: WritePod5) -> None:
    folder = tmp_path / "pod5"
    (folder / "deeper").mkdir(parents=True)
    for name, first in (("b.pod5", 30), ("a.pod5", 20), ("deeper/c.pod5", 90)):
        write_pod5(folder / name, make_signals(10, 10), first=first)
    (folder / "notes.txt").write_text("no POD5")
    last, first = (
        write_pod5(tmp_path / "z.pod5", make_signals(10), first=1),
        write_pod5(tmp_path / "y.pod5", make_signals(10), first=2),
    )
    source = Pod5Source([last, folder, first])
    assert source.total_reads == 6
    assert numbers(list(source)) == [1, 20, 21, 30, 31, 2]
    assert not source.file_faults


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, write_pod5: WritePod5) -> None:
    path = write_pod5(tmp_path / "a.pod5", make_signals(10, 10))
    (tmp_path / "link.pod5").symlink_to(path)
    source = Pod5Source([path, tmp_path, path])
    assert source.total_reads == 2
    assert numbers(list(source)) == [1, 2]


@pytest.mark.parametrize(("limit", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3, 4]), (None, 4)])
def test_a_number_of_reads(tmp_path: Path, write_pod5: WritePod5, limit: int | None, expected: list[int] | int) -> None:
    files = [write_pod5(tmp_path / f"{i}.pod5", make_signals(10, 10), first=i) for i in (1, 3)]
    source = Pod5Source(files, limit)
    found = numbers(list(source))
    assert source.total_reads == len(found)
    assert found == (expected if isinstance(expected, list) else [1, 2, 3, 4])


def test_two_runs_in_a_file(tmp_path: Path, write_pod5: WritePod5) -> None:
    write_pod5(tmp_path / "a.pod5", make_signals(10, 10, 10), run_ids=("x", "y"))
    write_pod5(tmp_path / "b.pod5", make_signals(10), run_ids=("z",), first=9, sample_rate_hz=5000)
    source = Pod5Source([tmp_path])
    assert list(source.runs) == ["x", "y", "z"], "known before the first read: an output's header needs them"
    assert [(read.info.run.run_id, read.info.run.sample_rate_hz) for read in source] == [
        ("x", 4000),
        ("y", 4000),
        ("x", 4000),
        ("z", 5000),
    ]


def test_reads_without_samples_are_reads(tmp_path: Path, write_pod5: WritePod5) -> None:
    source = Pod5Source([write_pod5(tmp_path / "a.pod5", make_signals(0, 7, 0))])
    assert source.total_reads == 3
    assert [read.signal_S.size for read in source] == [0, 7, 0]
    assert not source.read_faults


def test_a_file_without_reads_is_no_fault(tmp_path: Path) -> None:
    with pod5.Writer(tmp_path / "a.pod5"):
        pass
    source = Pod5Source([tmp_path / "a.pod5"])
    assert (source.total_reads, list(source), source.file_faults) == (0, [], [])


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path: Path, write_pod5: WritePod5) -> None:
    whole = write_pod5(tmp_path / "a.pod5", make_signals(5000, 5000), first=1)
    raw = whole.read_bytes()
    bad = {
        "empty.pod5": b"",
        "text.pod5": b"this is no POD5 file\n" * 100,
        "half.pod5": raw[: len(raw) // 2],
        "nearly.pod5": raw[:-1],
        "zeros.pod5": bytes(len(raw)),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder.pod5").mkdir()
    last = write_pod5(tmp_path / "z.pod5", make_signals(10), first=8)
    paths = [tmp_path / "missing.pod5", whole, *(tmp_path / name for name in bad), tmp_path / "nothing", last]
    source = Pod5Source([*paths, tmp_path / "folder.pod5"])
    assert source.total_reads == 3
    assert numbers(list(source)) == [1, 2, 8]
    reasons = {fault.path.name: fault.reason for fault in source.file_faults}
    assert reasons.keys() == {"missing.pod5", *bad, "nothing", "folder.pod5"}
    assert reasons["missing.pod5"] == "no such file"
    assert reasons["nothing"] == reasons["folder.pod5"] == "the folder has no .pod5 files"
    assert all("not a POD5 file, or cut short" in reasons[name] for name in bad)
    assert all("\n" not in reason for reason in reasons.values())


def test_a_file_that_goes_away_after_it_was_counted(tmp_path: Path, write_pod5: WritePod5) -> None:
    gone, stays = (write_pod5(tmp_path / f"{i}.pod5", make_signals(10), first=i) for i in (1, 2))
    source = Pod5Source([gone, stays])
    gone.unlink()
    assert numbers(list(source)) == [2]
    (fault,) = source.file_faults
    assert fault.path == gone
    assert fault.reason.startswith("not read to its end: ")


def test_a_read_that_cannot_be_decoded_is_named_and_the_rest_is_read(
    tmp_path: Path, write_pod5: WritePod5, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pod5(tmp_path / "a.pod5", make_signals(10, 10, 10))
    intact = sources_module._convert

    def convert(record: pod5.ReadRecord, run: RunInfo, path: Path) -> SignalRead:
        if record.read_id.int == 2:
            raise RuntimeError("the signal\ncannot be decoded")
        return intact(record, run, path)

    monkeypatch.setattr(sources_module, "_convert", convert)
    source = Pod5Source([path])
    assert numbers(list(source)) == [1, 3]
    (fault,) = source.read_faults
    assert (fault.read_id, fault.path) == (str(UUID(int=2)), path)
    assert fault.reason == "the signal cannot be decoded"
    assert not source.file_faults


def test_files_that_went_through_blue_crab(shared_data: Path) -> None:
    files = sorted((shared_data / "odd_pod5").glob("*.pod5"))
    assert len(files) == 14
    source = Pod5Source(files)
    reads = list(source)
    assert len(reads) + len(source.read_faults) == source.total_reads
    assert all("duplicate" in fault.reason for fault in source.read_faults)  # the files are variants of few reads
    assert len({read.info.read_id for read in reads}) == len(reads)
    yielded = {read.info.file_name for read in reads} | {fault.path.name for fault in source.read_faults}
    named = {fault.path.name for fault in source.file_faults}
    assert not yielded & named
    assert yielded | named == {file.name for file in files}
    assert named == {"missing_primary_field.pod5", "newline_in_field.pod5", "tab_in_field.pod5"}  # pod5 raises
    alone = Pod5Source([shared_data / "odd_pod5" / "multigroup.pod5"])
    assert len(list(alone)) == 5
    assert len(alone.runs) == 2
    assert all(read.signal_S.size and read.info.run.sample_rate_hz for read in reads)


def test_a_copy_of_real_data_that_was_cut_short(shared_data: Path, tmp_path: Path) -> None:
    whole = shared_data / "sarscov2_r941" / "reads.pod5"
    shutil.copyfile(whole, tmp_path / "whole.pod5")
    (tmp_path / "cut.pod5").write_bytes(whole.read_bytes()[:200_000])
    source = Pod5Source([tmp_path])
    assert len(list(source)) == source.total_reads == 100
    assert [fault.path.name for fault in source.file_faults] == ["cut.pod5"]


def test_copies_of_a_read_are_called_once_and_named(tmp_path: Path, write_pod5: WritePod5) -> None:
    signals = [np.arange(100, dtype=np.int16)] * 3
    write_pod5(tmp_path / "a.pod5", signals, first=1)
    write_pod5(tmp_path / "b.pod5", signals, first=3)  # read 3 is in both
    source = Pod5Source([tmp_path])
    assert [read.info.read_id.int for read in source] == [1, 2, 3, 4, 5]
    (fault,) = source.read_faults
    assert fault.read_id == str(UUID(int=3))
    assert fault.path.name == "b.pod5"
    assert "duplicate" in fault.reason


# Which files, which reads


def test_recursion_patterns_and_hints(tmp_path: Path, write_pod5: WritePod5) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    top, deep = (write_pod5(tmp_path / name, make_signals(100)) for name in ("a/1.pod5", "a/b/2.pod5"))
    assert find_pod5_files([tmp_path / "a"]) == ([top], [])
    assert find_pod5_files([tmp_path / "a"], recursive=True) == ([top, deep], [])
    assert find_pod5_files([tmp_path / "a/*.pod5", tmp_path / "a/1.pod5"]) == ([top], [])
    assert find_pod5_files([tmp_path / "**/*.pod5"]) == ([top, deep], [])
    files, faults = find_pod5_files([tmp_path, tmp_path / "x*.pod5", tmp_path / "gone.pod5"])
    assert files == [tmp_path / "gone.pod5"]
    assert [fault.reason for fault in faults] == [
        "the folder has no .pod5 files; its subfolders do: use -r",
        "no file matches this pattern",
    ]


def test_a_list_of_read_ids(tmp_path: Path, write_pod5: WritePod5) -> None:
    files = [write_pod5(tmp_path / f"{first}.pod5", make_signals(100, 101, 102), first=first) for first in (1, 11, 21)]
    table = tmp_path / "ids.tsv"
    table.write_text(f"read_id\tlength\n# a remark\n{UUID(int=2)}\t5\n\n{UUID(int=23)}\n{UUID(int=99)}\n")
    source = Pod5Source(files, read_ids=load_read_ids(table))
    assert source.total_reads == 2
    assert source.unmet == [str(UUID(int=99))]
    assert [read.info.read_id.int for read in source] == [2, 23]
    assert [read.info.read_id.int for read in Pod5Source(files, 1, read_ids=load_read_ids(table))] == [2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("x\n", "line 1: 'x' is not a read id"), (f"{UUID(int=1)}\n12\n", "line 2: '12'"), ("\n", "lists no read ids")],
)
def test_a_list_of_something_else(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "ids.txt"))) as caught:
        load_read_ids(tmp_path / "ids.txt")
    assert problem in str(caught.value)


def test_reads_that_are_done_are_passed_over_and_count(tmp_path: Path, write_pod5: WritePod5) -> None:
    path = write_pod5(tmp_path / "a.pod5", make_signals(*[100] * 10))
    done = ReadIds()
    done.add(np.array([UUID(int=number).bytes for number in (1, 4, 77)], "S16"))
    for limit, expected in ((None, [2, 3, 5, 6, 7, 8, 9, 10]), (5, [2, 3, 5])):
        source = Pod5Source([path], limit)
        source.skip(done)
        assert source.total_reads == len(expected)
        assert [read.info.read_id.int for read in source] == expected


@given(
    st.lists(st.lists(st.binary(min_size=16, max_size=16) | st.integers(0, 40).map(lambda n: bytes(15) + bytes([n]))))
)
def test_read_ids_are_a_set(batches: list[list[bytes]]) -> None:
    ids, expected = ReadIds(), set()
    for batch in batches:
        array = np.array(batch, "S16")
        assert ids.known(array).tolist() == [name in expected for name in batch]
        ids.add(array)
        expected.update(batch)
        assert len(ids) == len(expected)
    assert all(name in ids for name in expected)
    assert sum(map(len, ids.arrays)) == len(expected)
    assert len(ids.arrays) <= max(1, len(expected)).bit_length() + 1


def test_offsets_that_lead_out_of_the_file_are_a_fault_and_the_process_goes_on(
    tmp_path: Path, write_pod5: WritePod5
) -> None:
    """Arrow ends the process if it follows them: they are checked first. The other file is read."""
    damaged = write_pod5(tmp_path / "a.pod5", make_signals(*[100] * 30))
    data = damaged.read_bytes()
    offsets = np.arange(31, dtype=np.int32).tobytes()  # of the lists of signal rows, one a read
    assert data.count(offsets) == 1
    at = data.index(offsets)
    damaged.write_bytes(data[: at + 40] + np.int32(1 << 20).tobytes() + data[at + 44 :])
    good = write_pod5(tmp_path / "b.pod5", make_signals(100, 100), first=51)
    source = Pod5Source([damaged, good])
    assert numbers(list(source)) == [51, 52]
    (fault,) = source.file_faults
    assert fault.path == damaged
    assert fault.reason.startswith("damaged; skipped batch 1 of 1 of its reads: ")
