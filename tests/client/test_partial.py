"""What an interrupted call left, cut off anywhere: the rest of the reads and what was taken over make the whole."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pysam
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_results import IDENTITY, RUN_A, RUNS, SEQUENCES, UNALIGNED, contents, make_result, write_reference

from porestream.client.outputs.partial import CannotResume, Partial
from porestream.client.outputs.writers import Format, OutputFolder, Outputs, OutputSettings, RecordWriter, SingleOutput
from porestream.client.reads import ReadResult

READS = 150
LOST = {"bam": 60, "sam": 9, "cram": READS, "fastq": 9, "fastq.gz": 60}
"""Reads at most that a cut takes with it, of each format: a BGZF block, an entry, a container of 10,000 records."""
SUFFIXES = list(LOST)


def settings_for(suffix: str, **changes: object) -> OutputSettings:
    aligned = not suffix.startswith("fastq")
    form = Format.FASTQ if not aligned else Format(suffix)
    return replace(
        OutputSettings(identity=IDENTITY if aligned else UNALIGNED, sequences=SEQUENCES if aligned else (), form=form),
        **changes,
    )


def results(suffix: str) -> list[ReadResult]:
    return [make_result(number, aligned=not suffix.startswith("fastq")) for number in range(READS)]


def write(path: Path, suffix: str, some: list[ReadResult], **changes: object) -> Path:
    with RecordWriter(str(path), RUNS, settings_for(suffix, **changes)) as writer:
        writer.write_all(some)
    return path


def records_of(path: Path) -> list[str]:
    if "fastq" in path.name:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            import gzip

            raw = gzip.decompress(raw)
        lines = raw.decode().splitlines()
        return sorted("\n".join(entry) for entry in zip(*[iter(lines)] * 4, strict=True))
    if path.suffix == ".cram":
        return sorted("\t".join(sorted(line.split("\t"))) for line in contents(path))
    return contents(path)


def go_on(partial_path: Path, suffix: str, output: Path, **changes: object) -> int:
    """As the command does: take over what is complete, call the rest."""
    partial = Partial(partial_path)
    chosen = settings_for(suffix, **changes)
    partial.check(chosen)
    outputs: Outputs = SingleOutput(str(output), RUNS, chosen)
    taken = partial.take_over(outputs, RUNS)
    done = partial.read_ids
    assert len(done) == taken
    outputs.write_all([result for result in results(suffix) if result.info.read_id.bytes not in done])
    outputs.close()
    return taken


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {suffix: write(folder / f"a.{suffix}", suffix, results(suffix)) for suffix in SUFFIXES}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(share=st.floats(0, 1))
@example(share=0.0)
@example(share=1.0)
@settings(max_examples=25)
def test_cut_off_anywhere(whole: dict[str, Path], scratch: Path, suffix: str, share: float) -> None:
    data = whole[suffix].read_bytes()
    cut = scratch / f"cut.{suffix}"
    cut.write_bytes(data[: round(share * len(data))])
    taken = go_on(cut, suffix, scratch / f"out.{suffix}")
    assert records_of(scratch / f"out.{suffix}") == records_of(whole[suffix])
    assert taken >= 0.6 * READS * share - LOST[suffix]
    if share == 1.0 and suffix not in ("sam", "fastq"):  # text does not say that it is complete
        assert taken == sum(
            bool(result.parts) and not (suffix.startswith("fastq") and result.status.value == "filtered")
            for result in results(suffix)
        )


@pytest.mark.parametrize("suffix", ["bam", "sam", "cram"])
def test_bytes_that_were_damaged_at_the_end(whole: dict[str, Path], scratch: Path, suffix: str) -> None:
    """As a disk leaves them that lost its power."""
    data, rng = bytearray(whole[suffix].read_bytes()), random.Random(1)
    for position in range(len(data) * 9 // 10, len(data)):
        data[position] = rng.randrange(256)
    (scratch / f"damaged.{suffix}").write_bytes(data)
    go_on(scratch / f"damaged.{suffix}", suffix, scratch / f"out.{suffix}")
    assert records_of(scratch / f"out.{suffix}") == records_of(whole[suffix])


@pytest.mark.parametrize("count", range(0, READS, 7))
def test_every_read_that_was_written_is_taken_over(scratch: Path, count: int) -> None:
    part = write(scratch / "part.bam", "bam", results("bam")[:count])
    assert go_on(part, "bam", scratch / "out.bam") == sum(bool(result.parts) for result in results("bam")[:count])


def test_from_one_format_into_another(whole: dict[str, Path], scratch: Path) -> None:
    for old, new in (("bam", "sam"), ("sam", "bam"), ("cram", "bam")):
        go_on(whole[old], new, scratch / f"other.{new}")
        found, expected = (
            sorted("\t".join(sorted(line.split("\t"))) for line in contents(path))
            for path in (scratch / f"other.{new}", whole[new])
        )
        assert found == expected  # CRAM does not keep the order of tags


def test_a_bam_can_become_a_fastq(whole: dict[str, Path], scratch: Path) -> None:
    bam = write(scratch / "unaligned.bam", "fastq", results("fastq"), form=None)
    assert go_on(bam, "fastq", scratch / "from_bam.fastq")
    assert set(records_of(whole["fastq"])) <= set(records_of(scratch / "from_bam.fastq"))


def test_a_sorted_file(whole: dict[str, Path], scratch: Path) -> None:
    part = write(scratch / "sorted.bam", "bam", results("bam")[:25], sort=True)
    assert go_on(part, "bam", scratch / "out.bam", sort=True) == sum(bool(r.parts) for r in results("bam")[:25])
    assert contents(scratch / "out.bam") == contents(whole["bam"])
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(CannotResume, match=r"sorted\.bam: sorted and cut off"):
        go_on(part, "bam", scratch / "out.bam")


def test_with_the_reference_a_cram_was_compressed_against(scratch: Path, whole: dict[str, Path]) -> None:
    reference = write_reference(scratch)
    pysam.faidx(str(reference))
    part = write(scratch / "ref.cram", "cram", results("cram")[:20], reference=reference)
    go_on(part, "cram", scratch / "ref_out.cram", reference=reference)
    assert len(contents(scratch / "ref_out.cram", reference)) == len(contents(whole["cram"]))


def test_a_folder(tmp_path: Path, whole: dict[str, Path]) -> None:
    first = OutputFolder(tmp_path / "first", RUNS, settings_for("bam"))
    first.write_all(results("bam")[:23])
    first.close(finish=False)
    (cut,) = (tmp_path / "first").rglob("FABa_pass*.bam.partial")
    cut.write_bytes(cut.read_bytes()[:-60])
    partial = Partial(tmp_path / "first")
    second = OutputFolder(tmp_path / "second", RUNS, settings_for("bam"))
    assert 0 < partial.take_over(second, RUNS) < 22
    second.write_all([r for r in results("bam") if r.info.read_id.bytes not in partial.read_ids])
    second.close()
    together = sorted(line for path in (tmp_path / "second").rglob("*.bam") for line in contents(path))
    assert together == contents(whole["bam"])


def test_runs_that_are_no_longer_among_the_inputs(whole: dict[str, Path], tmp_path: Path) -> None:
    partial = Partial(whole["bam"])
    assert {run: (info.flow_cell_id, info.acquisition_start_time) for run, info in partial.runs.items()} == {
        run: (info.flow_cell_id, info.acquisition_start_time) for run, info in RUNS.items()
    }
    outputs = SingleOutput(str(tmp_path / "a.bam"), partial.runs | {RUN_A.run_id: RUN_A}, settings_for("bam"))
    partial.take_over(outputs, {RUN_A.run_id: RUN_A})
    outputs.close()
    assert contents(tmp_path / "a.bam") == contents(whole["bam"])


def others() -> Iterator[tuple[str, OutputSettings, str]]:
    same = settings_for("bam")
    for field, value, shown in (
        ("model", "other@v1", "basecall_model=dna_r9.4.1_e8_fast@v3.4, but this call has other@v1"),
        ("model_sha256", "00" * 32, "model_sha256=abab"),
        ("precision", "bf16", "precision=fp32, but this call has bf16"),
        ("calling_revision", 9, "calling_revision=2, but this call has 9"),
        ("reference_sha256", "11" * 32, "sha256=cdcd"),
        ("preset", "lr:hq", "preset=map-ont, but this call has lr:hq"),
    ):
        yield field, replace(same, identity=replace(IDENTITY, **{field: value})), shown
    yield "choices", replace(same, choices="min_qscore=10 trim=none"), "min_qscore=none, but this call has 10"
    yield "sequences", replace(same, sequences=SEQUENCES[:1]), "has different reference sequences"
    yield "unaligned", replace(same, identity=UNALIGNED, sequences=()), "pn=minimap2, but this call has none"


@pytest.mark.parametrize(("chosen", "words"), [pytest.param(s, w, id=name) for name, s, w in others()])
def test_another_caller_is_refused_by_name(whole: dict[str, Path], chosen: OutputSettings, words: str) -> None:
    with pytest.raises(CannotResume) as caught:
        Partial(whole["bam"]).check(chosen)
    assert words in str(caught.value)
    assert str(whole["bam"]) in str(caught.value)


def test_a_fastq_cannot_become_a_bam(whole: dict[str, Path]) -> None:
    with pytest.raises(CannotResume, match=r"a\.fastq: a FASTQ lacks fields that other formats need"):
        Partial(whole["fastq"]).check(settings_for("bam"))


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CannotResume, match=r"neither .*none\.bam nor .*none\.bam\.partial exists"):
        Partial(tmp_path / "none.bam")
    with pytest.raises(CannotResume, match="this folder has no BAM, SAM, CRAM or FASTQ"):
        Partial(tmp_path)
    (tmp_path / "a.txt").write_text("?")
    with pytest.raises(CannotResume, match=r"a\.txt: can only resume from \.bam, \.sam, \.cram"):
        Partial(tmp_path / "a.txt")
    (tmp_path / "a.bam").write_text("not a BAM at all")
    with pytest.raises(CannotResume, match=r"a\.bam: not a file that porestream wrote"):
        Partial(tmp_path / "a.bam")


def test_an_empty_file_is_a_beginning(tmp_path: Path, whole: dict[str, Path]) -> None:
    (tmp_path / "a.bam").touch()
    assert go_on(tmp_path / "a.bam", "bam", tmp_path / "b.bam") == 0
    assert contents(tmp_path / "b.bam") == contents(whole["bam"])


def test_ids_keep_their_zeros(tmp_path: Path, whole: dict[str, Path]) -> None:
    """NumPy's strings drop zero bytes at the end; a read id may end with one."""
    partial = Partial(Path(shutil.copy(whole["bam"], tmp_path)))
    outputs = SingleOutput(str(tmp_path / "b.bam"), RUNS, settings_for("bam"))
    partial.take_over(outputs, RUNS)
    outputs.close()
    ids = {result.info.read_id for result in results("bam") if result.parts}
    assert all(read_id.bytes in partial.read_ids for read_id in ids)
    assert UUID(int=1).bytes not in partial.read_ids
