"""Files of every format, sorted ones, and folders as MinKNOW lays them out."""

import errno
import gzip
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pysam
import pytest
from made_up_results import IDENTITY, RUN_A, RUN_B, RUNS, SEQUENCES, UNALIGNED, contents, make_result, write_reference

from porestream.client.outputs.writers import (
    Format,
    OutputFolder,
    OutputSettings,
    RecordWriter,
    SingleOutput,
    beside,
    format_of,
)
from porestream.client.reads import ReadStatus

RESULTS = [make_result(number) for number in range(60)]
UNALIGNED_RESULTS = [make_result(number, aligned=False) for number in range(60)]
SETTINGS = OutputSettings(identity=IDENTITY, sequences=SEQUENCES)


def write(path: Path, settings: OutputSettings = SETTINGS) -> Path:
    with RecordWriter(str(path), RUNS, settings) as writer:
        writer.write_all(RESULTS if settings.identity is IDENTITY else UNALIGNED_RESULTS)
    return path


@pytest.mark.parametrize("with_reference", [True, False])
def test_cram_has_what_bam_has(tmp_path: Path, with_reference: bool) -> None:
    reference = write_reference(tmp_path)
    pysam.faidx(str(reference))
    expected = contents(write(tmp_path / "a.bam"))
    settings = replace(SETTINGS, reference=reference if with_reference else None)
    cram = write(tmp_path / "a.cram", settings)
    assert sorted(map(_tags_sorted, contents(cram, reference if with_reference else None))) == sorted(
        map(_tags_sorted, expected)
    )
    assert cram.read_bytes()[:4] == b"CRAM"


def _tags_sorted(line: str) -> str:
    """CRAM keeps tags, but not their order; it makes NM and MD itself."""
    fields = line.split("\t")
    return "\t".join([*fields[:11], *sorted(fields[11:])])


@pytest.mark.parametrize("suffix", ["fastq", "fastq.gz", "fq"])
def test_fastq_has_each_sequence_once_with_its_tags(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", OutputSettings(identity=UNALIGNED))
    opener = gzip.open if suffix.endswith("gz") else open
    with opener(path, "rt") as file:
        lines = file.read().splitlines()
    called = [result for result in UNALIGNED_RESULTS if result.status is ReadStatus.CALLED]
    assert len(lines) == 4 * len(called)
    with pysam.AlignmentFile(str(write(tmp_path / "a.bam", OutputSettings(identity=UNALIGNED))), check_sq=False) as sam:
        tags = {record.query_name: record.to_string().split("\t")[11:] for record in sam}
    for result, (title, bases, plus, qualities) in zip(called, zip(*[iter(lines)] * 4, strict=True), strict=True):
        (part,) = result.parts
        name, *fields = title[1:].split("\t")
        run = result.info.run
        assert name == str(part.read_id)
        assert fields[: len(tags[name])] == tags[name]
        assert fields[len(tags[name]) :] == [
            "DT:Z:2024-05-06T07:08:09.000000+00:00",
            f"PU:Z:{run.flow_cell_id}",
            "LB:Z:sample/../7",
            "SM:Z:sample/../7",
        ]
        assert (bases, plus) == (part.sequence, "+")
        assert qualities == "".join(chr(33 + quality) for quality in part.qualities)


def test_fastq_counts_the_reads_below_the_least_q_that_it_leaves_out(tmp_path: Path) -> None:
    with RecordWriter(str(tmp_path / "a.fastq"), RUNS, OutputSettings(identity=UNALIGNED)) as writer:
        writer.write_all(UNALIGNED_RESULTS)
    filtered = sum(result.status is ReadStatus.FILTERED for result in UNALIGNED_RESULTS)
    assert writer.left_out == filtered > 0


@pytest.mark.parametrize(("suffix", "index"), [("bam", "bai"), ("cram", "crai"), ("sam", "")])
def test_sorted_files_have_all_records_and_an_index(tmp_path: Path, suffix: str, index: str) -> None:
    expected = contents(write(tmp_path / "unsorted.bam"))
    path = write(tmp_path / f"sorted.{suffix}", replace(SETTINGS, sort=True))
    assert sorted(map(_tags_sorted, contents(path))) == sorted(map(_tags_sorted, expected))
    with pysam.AlignmentFile(str(path)) as file:
        assert file.header.to_dict()["HD"]["SO"] == "coordinate"
        places = [(record.reference_id, record.reference_start) for record in file if record.is_mapped]
        assert places == sorted(places)
    if index:
        with pysam.AlignmentFile(str(path)) as file:
            fetched = sum(1 for _ in file.fetch("c2", 50, 60))
        assert fetched == sum(1 for line in expected if line.split("\t")[2] == "c2" and _overlaps(line, 50, 60))
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"unsorted.bam", path.name} | ({f"{path.name}.{index}"} if index else set())


def _overlaps(line: str, start: int, end: int) -> bool:
    fields = line.split("\t")
    length = sum(int(count) for count in re.findall(r"(\d+)M", fields[5]))
    return int(fields[3]) - 1 < end and int(fields[3]) - 1 + length > start


def test_a_long_contig_gets_the_index_that_can_hold_it(tmp_path: Path) -> None:
    sequences = (*SEQUENCES, replace(SEQUENCES[0], name="wheat", length=1 << 29))
    write(tmp_path / "a.bam", OutputSettings(identity=IDENTITY, sequences=sequences, sort=True))
    assert (tmp_path / "a.bam.csi").is_file()


def test_sorting_that_fails_keeps_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(write(tmp_path / "b.bam"))
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(OSError, match=r"cannot sort .*a\.bam\.partial into a\.bam: .*; the unsorted records are kept"):
        write(tmp_path / "a.bam", replace(SETTINGS, sort=True))
    assert contents(tmp_path / "a.bam.partial") == expected
    assert not (tmp_path / "a.bam").exists()


def test_what_a_killed_sort_has_left_goes_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.bam.sorting-x1").mkdir()
    (tmp_path / ".a.bam.sorting-x1/a.bam.part.0000.bam").write_bytes(b"gigabytes")
    (tmp_path / ".a.bam.sorting-x2").symlink_to(tmp_path)
    write(tmp_path / "a.bam", replace(SETTINGS, sort=True))
    assert (tmp_path / "precious").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"a.bam", "a.bam.bai", "precious", ".a.bam.sorting-x2"}


def test_a_writer_that_is_left_by_an_error_does_not_sort(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        RecordWriter(str(tmp_path / "a.bam"), RUNS, replace(SETTINGS, sort=True)) as writer,
    ):
        writer.write(RESULTS[0])
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.bam.partial"]


def test_a_folder_is_laid_out_as_minknow_does(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path / "out", RUNS, SETTINGS)
    outputs.write_all(RESULTS)
    outputs.close()
    files = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*.bam")}
    assert sorted(files) == [
        f"exp/sample_.._7/20240506_0708_MN1_FAB{x}_{x}0123456/bam_{status}/FAB{x}_{status}_{x}0123456_{x * 8}_0.bam"
        for x in "ab"
        for status in ("fail", "pass")
    ]
    for name, path in files.items():
        with pysam.AlignmentFile(str(path)) as file:
            (group,) = file.header.to_dict()["RG"]
            assert group["PU"] in name
            assert all(record.get_tag("RG") == group["ID"] and record.is_qcfail is ("fail" in name) for record in file)
    together = sorted(line for path in files.values() for line in contents(path))
    assert together == contents(write(tmp_path / "all.bam"))
    with pytest.raises(FileExistsError, match="already has records of this run") as caught:
        OutputFolder(tmp_path / "out", RUNS, SETTINGS)
    assert caught.value.errno == errno.EEXIST


def test_names_that_are_too_long_for_a_file(tmp_path: Path) -> None:
    runs = [replace(RUN_A, sample_id="s" * 300, experiment_id=300 * "e", flow_cell_id=f"{300 * 'f'}{x}") for x in "ab"]
    outputs = OutputFolder(tmp_path / "out", {str(number): run for number, run in enumerate(runs)}, SETTINGS)
    for run in runs:
        outputs.write_all(
            [replace(RESULTS[0], info=replace(RESULTS[0].info, run=replace(run, run_id=run.flow_cell_id)))]
        )
    outputs.close()
    files = list((tmp_path / "out").rglob("*.bam"))
    assert len({path.parent for path in files}) == 2, "they are told apart by more than their first letters"


def test_fastq_in_a_folder_keeps_the_failed_reads(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path, RUNS, OutputSettings(identity=UNALIGNED, form=Format.FASTQ))
    outputs.write_all(UNALIGNED_RESULTS)
    outputs.close()
    entries = {
        status: sum(
            gzip.decompress(path.read_bytes()).count(b"\n") // 4
            for path in tmp_path.rglob(f"fastq_{status}/*.fastq.gz")
        )
        for status in ("pass", "fail")
    }
    assert entries["fail"] == sum(result.status is ReadStatus.FILTERED for result in UNALIGNED_RESULTS)
    assert entries["pass"] == sum(result.status is ReadStatus.CALLED for result in UNALIGNED_RESULTS)


def test_runs_whose_short_ids_are_the_same_do_not_overwrite_each_other(tmp_path: Path) -> None:
    twin = replace(RUN_A, run_id=f"{RUN_A.run_id}-twin")
    outputs = OutputFolder(tmp_path, {}, SETTINGS)
    results = [RESULTS[4], replace(RESULTS[4], info=replace(RESULTS[4].info, run=twin))]
    outputs.write_all(results)
    outputs.close()
    assert len(list(tmp_path.rglob("*_0.bam"))) == len(list(tmp_path.rglob("*_1.bam"))) == 1


def test_a_run_that_comes_late_gets_a_file_of_its_own(tmp_path: Path) -> None:
    outputs = SingleOutput(str(tmp_path / "a.bam"), {RUN_A.run_id: RUN_A}, SETTINGS)
    outputs.write_all(RESULTS)
    outputs.close()
    late = tmp_path / "a.bbbbbbbb.bam"
    assert sorted(contents(tmp_path / "a.bam") + contents(late)) == contents(write(tmp_path / "b.bam"))
    with pysam.AlignmentFile(str(late)) as file:
        assert [group["PU"] for group in file.header.to_dict()["RG"]] == [RUN_B.flow_cell_id]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("a.b.BAM", None, Format.BAM),
        ("a.sam", Format.SAM, Format.SAM),
        ("a.fq.gz", None, Format.FASTQ),
        ("-", Format.CRAM, Format.CRAM),
        ("-", None, Format.BAM),  # not a terminal
    ],
)
def test_formats_of_names(name: str, asked: Format | None, expected: Format) -> None:
    assert format_of(name, asked) is expected


@pytest.mark.parametrize(
    ("name", "expected"), [("a.bam", "a.x"), ("a.1.fastq.gz", "a.1.x"), ("a.b.SAM", "a.b.x"), ("a.bam.partial", "a.x")]
)
def test_names_beside_an_output(name: str, expected: str) -> None:
    assert beside(Path("f") / name, "x") == Path("f") / expected


def test_a_name_that_contradicts_the_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.bam is named as BAM, but --emit-fastq asks for another format"):
        format_of("a.bam", Format.FASTQ)


def test_samtools_reads_every_format(tmp_path: Path) -> None:
    reference = write_reference(tmp_path)
    for suffix in ("bam", "sam", "cram"):
        path = write(tmp_path / f"a.{suffix}")
        done = subprocess.run(["samtools", "quickcheck", path], check=False)
        count = subprocess.run(["samtools", "view", "-c", "-T", reference, path], capture_output=True, check=True)
        assert done.returncode == 0
        assert int(count.stdout) == len(contents(path))
