"""Rows of the sequencing summary that a killed call has not written, made again from its records."""

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_results import IDENTITY, RUNS, SEQUENCES, UNALIGNED, make_result

from porestream.client.outputs.partial import Partial
from porestream.client.outputs.sequencing_summary import SummaryTable
from porestream.client.outputs.writers import Format, OutputFolder, Outputs, OutputSettings, RecordWriter, SingleOutput
from porestream.client.reads import ReadResult
from porestream.client.sources.pod5_source import ReadFacts, ReadIds

FORMS = ["bam", "cram", "sam", "fastq", "fastq.gz"]
READS = 60
SCORE = float(np.float32(12.345679))  # as it comes over the wire


def results(aligned: bool) -> list[ReadResult]:
    """With a read that was split in two, scores of many digits, and a name that no record can hold."""
    made = [make_result(number, aligned=aligned) for number in range(READS)]
    (part,) = made[12].parts
    halves = (replace(part, read_id=UUID(int=number << 70 | 7)) for number in (3, 5))
    made[12] = replace(made[12], parts=tuple(halves))
    made[15] = replace(made[15], info=replace(made[15].info, file_name="Blüte 3.pod5", start_sample=123_456_789))
    return [
        replace(r, parts=tuple(replace(p, mean_qscore=SCORE) for p in r.parts)) if i % 4 else r
        for i, r in enumerate(made)
    ]


def settings_for(form: str) -> OutputSettings:
    aligned = not form.startswith("fastq")
    return OutputSettings(
        identity=IDENTITY if aligned else UNALIGNED,
        sequences=SEQUENCES if aligned else (),
        form=Format.FASTQ if not aligned else Format(form),
    )


def table_of(path: Path, some: Iterable[ReadResult], aligned: bool) -> list[str]:
    with SummaryTable(path, aligned=aligned) as table:
        table.write_all(some)
    return rows_of(path)


def rows_of(path: Path) -> list[str]:
    return sorted(path.read_text().splitlines(keepends=True)[1:])


def facts_of(some: Iterable[ReadResult]) -> ReadFacts:
    facts = ReadFacts()
    for result in some:
        facts.add([result.info])
    return facts


def complete(partial: Partial, before: Path, path: Path, outputs: Outputs, aligned: bool, facts: ReadFacts) -> int:
    """As the command does; returns how many rows were made again."""
    partial.take_over(outputs, RUNS)
    with SummaryTable(path, aligned=aligned) as table:
        missing = partial.sequences.without(table.copy(before, partial.read_ids))
        table.write_all(partial.results(outputs, RUNS, missing, facts))
    outputs.close()
    return len(missing)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remade")


@pytest.fixture(scope="module")
def whole(scratch: Path) -> dict[str, Path]:
    files = {}
    for form in FORMS:
        files[form] = scratch / f"whole.{form}"
        with RecordWriter(str(files[form]), RUNS, settings_for(form), keeps_failed=True) as writer:
            writer.write_all(results(not form.startswith("fastq")))
    return files


def six_digits(rows: list[str]) -> list[str]:
    return [row.replace("12.345679", "12.345700") for row in rows]


def passed(rows: list[str]) -> list[str]:
    return [row.replace("\tFALSE\t", "\tTRUE\t") for row in rows]


@pytest.mark.parametrize("form", FORMS)
@given(share=st.floats(0, 1))
@example(share=0.0)
@example(share=1.0)
@settings(max_examples=10)
def test_a_table_that_was_cut_anywhere_is_completed(
    whole: dict[str, Path], scratch: Path, form: str, share: float
) -> None:
    aligned = not form.startswith("fastq")
    expected = table_of(scratch / "expected.txt", results(aligned), aligned)
    data = (scratch / "expected.txt").read_bytes()
    (scratch / "cut.txt").write_bytes(data[: round(share * len(data))])
    outputs = SingleOutput(str(scratch / f"out.{form}"), RUNS, settings_for(form))
    made = complete(
        Partial(whole[form]), scratch / "cut.txt", scratch / "out.txt", outputs, aligned, facts_of(results(aligned))
    )
    found = rows_of(scratch / "out.txt")
    if form in ("sam", "fastq"):  # whose last read is called again, as they do not say that they are whole
        last = {row.split("\t")[1] for row in expected} - {row.split("\t")[1] for row in found}
        assert len(last) == 1
        expected = [row for row in expected if row.split("\t")[1] not in last]
    if form.startswith("fastq"):  # which cannot say what is below the least Q; only its folder does
        expected, found = passed(expected), passed(found)
    if form in ("bam", "cram") or made == 0:
        assert found == expected
    else:
        assert six_digits(found) == six_digits(expected)


@pytest.mark.parametrize("form", ["bam", "cram"])
def test_of_a_sorted_file(scratch: Path, form: str) -> None:
    unsorted = results(True)
    with RecordWriter(str(scratch / f"sorted.{form}"), RUNS, replace(settings_for(form), sort=True)) as writer:
        writer.write_all(unsorted)
    expected = table_of(scratch / "expected.txt", unsorted, True)
    (scratch / "none.txt").touch()
    outputs = SingleOutput(str(scratch / f"out.{form}"), RUNS, settings_for(form))
    partial = Partial(scratch / f"sorted.{form}")
    complete(partial, scratch / "none.txt", scratch / "out.txt", outputs, True, facts_of(unsorted))
    assert rows_of(scratch / "out.txt") == expected
    assert any(row.split("\t")[-2:] == ["1", "0\n"] for row in expected)  # some with secondary records
    assert any(row.split("\t")[-2:] == ["0", "1\n"] for row in expected)  # and some with supplementary ones


@pytest.mark.parametrize("form", ["bam", "fastq"])
def test_of_a_folder(tmp_path: Path, form: str) -> None:
    """In which FASTQ files, too, say which reads are below the least Q."""
    aligned = form == "bam"
    first = OutputFolder(tmp_path / "first", RUNS, settings_for(form))
    made = [result for result in results(aligned) if result.parts]
    first.write_all(made)
    first.close()
    expected = table_of(tmp_path / "expected.txt", made, aligned)
    (tmp_path / "none.txt").touch()
    second = OutputFolder(tmp_path / "second", RUNS, settings_for(form))
    complete(Partial(tmp_path / "first"), tmp_path / "none.txt", tmp_path / "out.txt", second, aligned, facts_of(made))
    found = rows_of(tmp_path / "out.txt")
    whole_reads = {row.split("\t")[1] for row in found}
    assert len(whole_reads) >= len(made) - 4  # the last one of each text is called again
    expected = [row for row in expected if row.split("\t")[1] in whole_reads]
    assert six_digits(found) == six_digits(expected)
    files = [sorted(path.name for path in (tmp_path / name).rglob("*.bam")) for name in ("first", "second")]
    assert files[0] == files[1]
    for status in ("pass", "fail"):
        entries = [
            sorted(line for path in (tmp_path / name).rglob(f"*_{status}/*.fastq.gz") for line in _names(path))
            for name in ("first", "second")
        ]
        assert set(entries[1]) <= set(entries[0])


def _names(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()[::4]


def test_without_its_pod5_a_read_keeps_what_its_record_says(whole: dict[str, Path], scratch: Path) -> None:
    unsaid = {"start_time", "template_start", "experiment_id", "input_filename"}
    expected = table_of(scratch / "expected.txt", results(True), True)
    title = (scratch / "expected.txt").read_text().splitlines()[0].split("\t")
    (scratch / "none.txt").touch()
    outputs = SingleOutput(str(scratch / "out.bam"), {}, settings_for("bam"))
    partial = Partial(whole["bam"])
    partial.take_over(outputs, {})
    with SummaryTable(scratch / "out.txt", aligned=True) as table:
        table.write_all(partial.results(outputs, {}, partial.sequences, ReadFacts()))
    outputs.close()
    found = rows_of(scratch / "out.txt")
    assert len(found) == len(expected)
    by_id = [{row.split("\t")[2]: row.rstrip("\n").split("\t") for row in rows} for rows in (found, expected)]
    for name, row in by_id[0].items():
        differ = {what for what, a, b in zip(title, row, by_id[1][name], strict=True) if a != b}
        assert differ <= unsaid
        cells = dict(zip(title, row, strict=True))
        assert float(cells["start_time"]) == pytest.approx(float(by_id[1][name][title.index("start_time")]), abs=1e-3)
        assert cells["experiment_id"] == ""


def test_facts_of_many_reads() -> None:
    infos = [make_result(number).info for number in range(50)]
    facts = ReadFacts()
    assert facts.of(infos[0].read_id) is None
    facts.add([])
    facts.add(infos[:20])
    facts.add([replace(infos[3], start_sample=5), *infos[20:40]])
    for info in infos[:40]:
        said = facts.of(info.read_id)
        assert said is not None
        assert (said.start_sample, said.run, said.file_name) == (info.start_sample, info.run, info.file_name)
        assert (said.end_reason, said.pore_type) == (info.end_reason, info.pore_type)
    assert all(facts.of(info.read_id) is None for info in infos[40:])
    facts.add(infos[40:])
    assert all(facts.of(info.read_id) for info in infos)


def test_ids_without_others() -> None:
    all_ids, some = ReadIds(), ReadIds()
    names = [UUID(int=number << 8).bytes for number in range(100)]
    all_ids.add(np.array(names[:90], "S16"))
    all_ids.add(np.array(names[90:], "S16"))
    some.add(np.array(names[::3], "S16"))
    left = all_ids.without(some)
    assert len(left) == 66
    assert all((name in left) is (number % 3 > 0) for number, name in enumerate(names))
