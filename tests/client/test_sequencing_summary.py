"""The sequencing summary: read back, and compared with numbers worked out by hand."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porestream.client import Alignment, CalledPart, ReadInfo, ReadResult, ReadStatus, RunInfo
from porestream.client.outputs.sequencing_summary import SummaryTable
from porestream.client.sources.pod5_source import ReadIds

# ONT's output specification, sequencing summary 1.1: its columns for files, without batch_id, minknow_events,
# num_events_template, poly_tail_*, those of barcodes, alignment_bed_hits, and duplex_*.
READ_COLUMNS = [
    "input_filename",
    "parent_read_id",
    "read_id",
    "run_id",
    "channel",
    "mux",
    "start_time",
    "duration",
    "passes_filtering",
    "template_start",
    "template_duration",
    "sequence_length_template",
    "mean_qscore_template",
    "pore_type",
    "experiment_id",
    "sample_id",
    "end_reason",
]
ALIGNMENT_COLUMNS = [
    f"alignment_{name}"
    for name in [
        "genome",
        "direction",
        "genome_start",
        "genome_end",
        "strand_start",
        "strand_end",
        "num_insertions",
        "num_deletions",
        "num_aligned",
        "num_correct",
        "identity",
        "accuracy",
        "score",
        "coverage",
        "mapping_quality",
        "num_alignments",
        "num_secondary_alignments",
        "num_supplementary_alignments",
    ]
]
OPERATIONS = "MIDNSHP=X"

RUN = RunInfo(run_id="1a2b", sample_rate_hz=4000, experiment_id="exp 1", sample_id="patient-7")
INFO = ReadInfo(
    read_id=UUID(int=1),
    run=RUN,
    offset_adc=0.0,
    scale_pa_per_adc=1.0,
    channel=12,
    well=3,
    read_number=456,
    start_sample=8001,
    end_reason="signal_positive",
    file_name="run 1.pod5",
)


def cigar(*operations: tuple[int, str]) -> tuple[int, ...]:
    return tuple(length << 4 | OPERATIONS.index(kind) for length, kind in operations)


# 3 clipped, 10 aligned, 2 inserted, 20 aligned, 4 deleted, 5 aligned, 1 clipped; 3 of the 35 aligned are wrong
FORWARD = Alignment(
    flag=0,
    reference_name="chr1",
    reference_start=100,
    reference_end=139,
    mapping_quality=60,
    cigar=cigar((3, "S"), (10, "M"), (2, "I"), (20, "M"), (4, "D"), (5, "M"), (1, "S")),
    score=77,
    edit_distance=9,
    md="",
    divergence=0.1,
)
REVERSE = replace(FORWARD, flag=16)
PART = CalledPart(
    read_id=UUID(int=1),
    sequence="A" * 41,
    qualities=b"\x09" * 41,
    mean_qscore=8.7654321,
    samples=500,
    trimmed_samples=100,
    stride_samples=5,
    moves=b"",
    alignments=(FORWARD,),
)


def make_result(*parts: CalledPart, status: ReadStatus = ReadStatus.CALLED, info: ReadInfo = INFO) -> ReadResult:
    return ReadResult(
        info=info,
        status=status,
        detail="",
        signal_samples=500,
        scaling_midpoint_pa=90.5,
        scaling_dispersion_pa=12.5,
        scaling_strategy="med_mad",
        parts=parts,
    )


def write(path: Path, results: Sequence[ReadResult], aligned: bool = True) -> list[dict[str, str]]:
    with SummaryTable(path, aligned=aligned) as table:
        table.write_all(results)
    return read_back(path)


def read_back(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode()
    assert text.endswith("\n")
    header, *lines = text[:-1].split("\n")
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


def test_columns_are_onts_in_their_order(tmp_path: Path) -> None:
    (aligned,) = write(tmp_path / "a.txt", [make_result(PART)])
    assert list(aligned) == READ_COLUMNS + ALIGNMENT_COLUMNS
    (alone,) = write(tmp_path / "b.txt", [make_result(PART)], aligned=False)
    assert list(alone) == READ_COLUMNS
    assert write(tmp_path / "c.txt", []) == []
    assert (tmp_path / "c.txt").read_text() == "\t".join(READ_COLUMNS + ALIGNMENT_COLUMNS) + "\n"


def test_of_a_read(tmp_path: Path) -> None:
    (row,) = write(tmp_path / "a.txt", [make_result(PART)], aligned=False)
    assert row == {
        "input_filename": "run 1.pod5",
        "parent_read_id": "00000000-0000-0000-0000-000000000001",
        "read_id": "00000000-0000-0000-0000-000000000001",
        "run_id": "1a2b",
        "channel": "12",
        "mux": "3",
        "start_time": "2.000250",  # 8001 samples at 4 kHz
        "duration": "0.125000",
        "passes_filtering": "TRUE",
        "template_start": "2.025250",  # 100 samples later
        "template_duration": "0.100000",
        "sequence_length_template": "41",
        "mean_qscore_template": "8.765432",
        "pore_type": "",
        "experiment_id": "exp 1",
        "sample_id": "patient-7",
        "end_reason": "signal_positive",
    }


@pytest.mark.parametrize(("alignment", "direction"), [(FORWARD, "+"), (REVERSE, "-")])
def test_of_an_alignment(tmp_path: Path, alignment: Alignment, direction: str) -> None:
    (row,) = write(tmp_path / "a.txt", [make_result(replace(PART, alignments=(alignment,)))])
    assert {name: row[name] for name in ALIGNMENT_COLUMNS} == {
        "alignment_genome": "chr1",
        "alignment_direction": direction,
        "alignment_genome_start": "100",
        "alignment_genome_end": "139",
        "alignment_strand_start": "3",
        "alignment_strand_end": "40",
        "alignment_num_insertions": "2",
        "alignment_num_deletions": "4",
        "alignment_num_aligned": "35",
        "alignment_num_correct": "32",
        "alignment_identity": "0.914286",  # 32 / 35
        "alignment_accuracy": "0.780488",  # 32 / 41
        "alignment_score": "77",
        "alignment_coverage": "0.902439",  # 37 / 41
        "alignment_mapping_quality": "60",
        "alignment_num_alignments": "1",
        "alignment_num_secondary_alignments": "0",
        "alignment_num_supplementary_alignments": "0",
    }


def test_the_primary_alignment_counts(tmp_path: Path) -> None:
    others = [replace(FORWARD, flag=flag, reference_name="chr2") for flag in (0x100, 0x800, 0x100 | 16, 0x100)]
    (row,) = write(tmp_path / "a.txt", [make_result(replace(PART, alignments=(FORWARD, *others)))])
    assert row["alignment_genome"] == "chr1"
    kinds = ("alignments", "secondary_alignments", "supplementary_alignments")
    assert [row[f"alignment_num_{kind}"] for kind in kinds] == ["5", "3", "1"]


def test_unmapped(tmp_path: Path) -> None:
    (row,) = write(tmp_path / "a.txt", [make_result(replace(PART, alignments=()))])
    assert [row[name] for name in ALIGNMENT_COLUMNS] == [
        "*",
        "*",
        "-1",
        "-1",
        "-1",
        "-1",
        "0",
        "0",
        "0",
        "0",
        "0.0",
        "0.0",
        "0",
        "0.0",
        "0",
        "0",
        "0",
        "0",
    ]


def test_one_row_a_sequence_and_none_without(tmp_path: Path) -> None:
    halves = [replace(PART, read_id=UUID(int=number), samples=250, alignments=()) for number in (7, 8)]
    rows = write(
        tmp_path / "a.txt",
        [
            make_result(*halves),
            make_result(status=ReadStatus.REJECTED),
            make_result(status=ReadStatus.FAILED),
            make_result(PART, status=ReadStatus.FILTERED),
            make_result(replace(PART, sequence="", qualities=b"", mean_qscore=0.0, alignments=())),
        ],
    )
    assert [(UUID(row["read_id"]).int, UUID(row["parent_read_id"]).int) for row in rows] == [
        (7, 1),
        (8, 1),
        (1, 1),
        (1, 1),
    ]
    assert [row["passes_filtering"] for row in rows] == ["TRUE", "TRUE", "FALSE", "TRUE"]
    assert [row["duration"] for row in rows] == ["0.062500", "0.062500", "0.125000", "0.125000"]
    assert [row["sequence_length_template"] for row in rows] == ["41", "41", "41", "0"]


def test_a_run_without_a_sample_rate_has_no_times(tmp_path: Path) -> None:
    info = replace(INFO, run=RunInfo(run_id="", sample_rate_hz=0))
    (row,) = write(tmp_path / "a.txt", [make_result(PART, info=info)])
    assert {row[name] for name in ("start_time", "duration", "template_start", "template_duration")} == {"0.000000"}
    assert row["run_id"] == ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.tuples(*[st.text(st.characters(), max_size=8) for _ in range(5)]),
    edits=st.lists(st.tuples(st.integers(1, 400), st.sampled_from("M=XIDN")), min_size=1, max_size=12),
    clips=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    mismatches=st.integers(0, 50),
)
def test_any_name_keeps_to_its_cell_and_any_alignment_adds_up(
    tmp_path: Path, names: Sequence[str], edits: list[tuple[int, str]], clips: tuple[int, int], mismatches: int
) -> None:
    """Column by column of the alignment, and read as pandas reads it: quotation marks quote."""
    columns = "".join(kind * length for length, kind in edits)
    pairs = sum(columns.count(kind) for kind in "M=X")
    wrong = columns.count("X") + min(mismatches, columns.count("M"))
    in_read = clips[0] + sum(columns.count(kind) for kind in "M=XI") + clips[1]
    alignment = replace(
        FORWARD,
        reference_name=names[0],
        cigar=cigar(*((n, "S") for n in clips[:1] if n), *edits, *((n, "S") for n in clips[1:] if n)),
        edit_distance=wrong + columns.count("I") + columns.count("D"),
    )
    run = RunInfo(run_id=names[1], sample_rate_hz=4000, experiment_id=names[2], sample_id=names[3])
    result = make_result(
        replace(PART, sequence="A" * in_read, alignments=(alignment,)), info=replace(INFO, run=run, file_name=names[4])
    )
    path = tmp_path / "any.txt"
    first, second = write(path, [result, make_result(PART)])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file, dialect="excel-tab")) == [first, second]
    assert second["alignment_genome"] == "chr1"

    assert int(first["alignment_num_aligned"]) == pairs
    assert int(first["alignment_num_correct"]) == pairs - wrong
    assert int(first["alignment_num_insertions"]) == columns.count("I")
    assert int(first["alignment_num_deletions"]) == columns.count("D")
    assert float(first["alignment_identity"]) == pytest.approx((pairs - wrong) / pairs if pairs else 0, abs=1e-6)
    width = len(columns) - columns.count("N")
    assert float(first["alignment_accuracy"]) == pytest.approx((pairs - wrong) / width if width else 0, abs=1e-6)
    assert int(first["alignment_strand_start"]) == clips[0]
    assert int(first["alignment_strand_end"]) == in_read - clips[1]


def test_names_keep_all_that_does_no_harm(tmp_path: Path) -> None:
    run = replace(RUN, sample_id='Blüte 3\tof "4"\r\n\x1b[31m', experiment_id="\udcff")  # a name that is not UTF-8
    (row,) = write(tmp_path / "a.txt", [make_result(PART, info=replace(INFO, run=run))])
    assert row["sample_id"] == "Blüte 3_of _4____[31m"
    assert row["experiment_id"] == "_"


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", " =", "\uff0b"])
def test_no_name_is_computed(tmp_path: Path, begin: str) -> None:
    """By spreadsheets; numbers and the directions + and - stay, and a call that goes on takes the row as it is."""
    evil = f"{begin}cmd|' /C calc'!A1"
    run = replace(RUN, run_id=evil, sample_id=evil, experiment_id=evil)
    info = replace(INFO, run=run, file_name=evil, end_reason=evil, pore_type=evil)
    place = replace(REVERSE, reference_name=evil, score=-12)
    (row,) = write(tmp_path / "a.txt", [make_result(replace(PART, mean_qscore=-12.5, alignments=(place,)), info=info)])
    texts = ["input_filename", "run_id", "sample_id", "experiment_id", "end_reason", "pore_type", "alignment_genome"]
    assert {row[name] for name in texts} == {f"'{evil}"}
    assert (row["mean_qscore_template"], row["alignment_score"], row["alignment_direction"]) == (
        "-12.500000",
        "-12",
        "-",
    )
    found, rows = copy(tmp_path / "a.txt", tmp_path / "b.txt", ids(1))
    assert (found, rows) == (1, [row])


# Files


def ids(*numbers: int) -> ReadIds:
    found = ReadIds()
    found.add(np.array([UUID(int=number).bytes for number in numbers], "S16"))
    return found


def result_of(number: int, *parts: int) -> ReadResult:
    """Read `number`, split into parts of these numbers, or whole."""
    made = (replace(PART, read_id=UUID(int=part)) for part in parts or (number,))
    return make_result(*made, info=replace(INFO, read_id=UUID(int=number)))


def copy(before: Path, path: Path, read_ids: ReadIds, aligned: bool = True) -> tuple[int, list[dict[str, str]]]:
    with SummaryTable(path, aligned=aligned) as table:
        found = table.copy(before, read_ids)
        table.write_all([result_of(9)])
    *rows, last = read_back(path)
    assert UUID(last["read_id"]).int == 9
    assert {UUID(row["read_id"]).bytes for row in rows} == {
        bytes(name).ljust(16, b"\0") for ids_N in found.arrays for name in ids_N
    }
    return len(found), rows


def test_rows_of_reads_are_taken_over(tmp_path: Path) -> None:
    """Of a split read all, by the id of the read."""
    before = write(tmp_path / "before.txt", [result_of(1), result_of(2, 21, 22), result_of(3), result_of(256)])
    found, rows = copy(tmp_path / "before.txt", tmp_path / "a.txt", ids(2, 256, 4, 21))
    assert found == 3
    assert rows == [before[1], before[2], before[4]]


def test_a_row_that_was_cut_short_is_left(tmp_path: Path) -> None:
    path = tmp_path / "before.txt"
    write(path, [result_of(1), result_of(2)])
    whole = path.read_bytes()
    header_bytes = whole.index(b"\n") + 1
    row_bytes = (len(whole) - header_bytes) // 2
    for rows, left_bytes in (
        (0, 0),
        (0, 5),
        (0, header_bytes - 1),
        (0, header_bytes),
        (0, header_bytes + row_bytes - 1),
        (1, header_bytes + row_bytes),
        (1, header_bytes + row_bytes + 3),
        (1, len(whole) - 1),
        (2, len(whole)),
    ):
        path.write_bytes(whole[:left_bytes])
        assert copy(path, tmp_path / "a.txt", ids(1, 2))[0] == rows


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("before", [None, b"filename\tread_id\nx\ty\n", b"\n", b"BAM\x01\xff\n\xfe"])
def test_another_table_is_left(tmp_path: Path, before: bytes | None, aligned: bool) -> None:
    if before is None:
        write(tmp_path / "before.txt", [result_of(1)], aligned=not aligned)
    else:
        (tmp_path / "before.txt").write_bytes(before)
    assert copy(tmp_path / "before.txt", tmp_path / "a.txt", ids(1), aligned) == (0, [])


def test_a_row_that_is_damaged_is_left_and_none_comes_twice(tmp_path: Path) -> None:
    """As a disk leaves them that lost its power: zeros, bytes that are no text, a row without its middle."""
    path = tmp_path / "before.txt"
    write(path, [result_of(number) for number in (1, 2, 3, 4, 5, 6)])
    head, *rows = path.read_bytes().splitlines(keepends=True)
    rows[1] = bytes(len(rows[1]) - 1) + b"\n"
    rows[2] = rows[2].replace(b"exp 1", b"ex\xff 1")
    rows[3] = rows[3][:40] + rows[3][60:]
    path.write_bytes(b"".join([head, *rows, b"\n", b"\t\t\n", rows[0], rows[4]]))
    found, kept = copy(path, tmp_path / "a.txt", ids(1, 2, 3, 4, 5, 6))
    assert found == 3
    assert [UUID(row["read_id"]).int for row in kept] == [1, 5, 6]


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none" / "a.txt", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=f"cannot write to {path}: {reason}"):
            SummaryTable(path, aligned=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("copied", [False, True])
def test_a_disk_that_is_full(tmp_path: Path, rows: int, copied: bool) -> None:
    before = tmp_path / "before.txt"
    write(before, [result_of(1)] * rows)

    def fill() -> None:
        with SummaryTable(Path("/dev/full"), aligned=True) as table:
            if copied:
                table.copy(before, ids(1))
            else:
                table.write_all([result_of(1)] * rows)

    with pytest.raises(OSError, match="cannot write to /dev/full: No space left on device"):
        fill()
