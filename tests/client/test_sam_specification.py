"""Tags and header, one by one, against what dorado's and ONT's specifications say of them: docs/use/files.md."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pysam
import pytest
from made_up_results import CONTIGS, IDENTITY, RUN_A, RUNS, SEQUENCES, make_result

from porestream.client.outputs.writers import OutputSettings, RecordWriter
from porestream.client.reads import ReadResult

DOCS = Path(__file__).parents[2] / "docs/use/files.md"
CHIMERIC, REPEATED, SPLIT = 4, 8, 12
Value = Callable[[ReadResult], object]

# Tag, type, and the value that a read must have, computed from what is known of it.
TAGS: list[tuple[str, str, Value]] = [
    ("qs", "f", lambda read: read.parts[0].mean_qscore),
    ("du", "f", lambda read: read.parts[0].samples / 4000),
    ("ns", "i", lambda read: read.parts[0].samples),
    ("ts", "i", lambda read: 5),
    ("mx", "i", lambda read: read.info.well),
    ("ch", "i", lambda read: read.info.channel),
    ("rn", "i", lambda read: read.info.read_number),
    ("st", "Z", lambda read: f"2024-05-06T07:08:{9 + read.info.read_number:02}.000+00:00"),  # 4000 samples each
    ("fn", "Z", lambda read: "run.pod5"),
    ("sm", "f", lambda read: 80.0),
    ("sd", "f", lambda read: 12.0),
    ("sv", "Z", lambda read: "med_mad"),
    ("dx", "i", lambda read: 0),
    ("RG", "Z", lambda read: f"{read.info.run.run_id}_{IDENTITY.model}"),
    ("er", "Z", lambda read: "signal_positive"),
    ("po", "Z", lambda read: "r9.4.1"),
    ("mv", "B,c", lambda read: [5, *read.parts[0].moves]),
    ("NM", "i", lambda read: 0),
    ("AS", "i", lambda read: read.parts[0].alignments[0].score),
    ("de", "f", lambda read: 0.0),
    ("tp", "A", lambda read: "P"),
    ("MD", "Z", lambda read: read.parts[0].alignments[0].md),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = [make_result(number) for number in (0, CHIMERIC, REPEATED)]
    split = make_result(SPLIT)
    parts = tuple(replace(split.parts[0], read_id=UUID(int=number)) for number in (77, 78))
    path = tmp_path_factory.mktemp("specification") / "a.bam"
    settings = OutputSettings(
        identity=IDENTITY,
        sequences=SEQUENCES,
        command_line="porestream call a.pod5",
        choices="min_qscore=9 trim=adapters",
    )
    with RecordWriter(str(path), RUNS, settings) as writer:
        writer.write_all([*results, replace(split, parts=parts)])
    return path


def records(path: Path) -> list[pysam.AlignedSegment]:
    with pysam.AlignmentFile(str(path)) as file:
        return list(file)


@pytest.mark.parametrize(("tag", "kind", "value"), TAGS, ids=[tag for tag, *_ in TAGS])
def test_a_tag_has_its_type_and_meaning(written: Path, tag: str, kind: str, value: Value) -> None:
    record, read = records(written)[0], make_result(0)
    found, found_kind = record.get_tag(tag, with_value_type=True)
    if kind.startswith("B"):
        (field,) = [field for field in record.to_string().split("\t") if field.startswith(f"{tag}:")]
        assert field.startswith(f"{tag}:{kind.replace(',', ':')},")
        assert list(found) == value(read)
        return
    # BAM stores integers in as few bytes as they need: c, C, s, S, i, I
    assert found_kind in ("cCsSiI" if kind == "i" else kind)
    assert found == pytest.approx(value(read)) if kind == "f" else found == value(read)


def test_tags_of_several_alignments_and_of_parts(written: Path) -> None:
    by_name: dict[str, list[pysam.AlignedSegment]] = {}
    for record in records(written):
        by_name.setdefault(record.query_name, []).append(record)
    primary, supplementary = by_name[str(make_result(CHIMERIC).info.read_id)]
    contig, start, strand, cigar, quality, edits = primary.get_tag("SA").rstrip(";").split(",")
    assert (contig, int(start) - 1) == (supplementary.reference_name, supplementary.reference_start)
    assert (strand, cigar) == ("-" if supplementary.is_reverse else "+", supplementary.cigarstring)
    assert (int(quality), int(edits)) == (supplementary.mapping_quality, supplementary.get_tag("NM"))
    assert supplementary.query_length == primary.query_length, "soft-clipped"
    primary, secondary = by_name[str(make_result(REPEATED).info.read_id)]
    assert (primary.get_tag("tp"), secondary.get_tag("tp")) == ("P", "S")
    assert secondary.query_sequence is None
    parent = str(make_result(SPLIT).info.read_id)
    assert [by_name[str(UUID(int=number))][0].get_tag("pi") for number in (77, 78)] == [parent, parent]
    assert not primary.has_tag("pi")


def test_the_page_has_these_tags(written: Path) -> None:
    rows = dict(re.findall(r"^\| `(\w\w)` \| (\S+) \| \S", DOCS.read_text(), re.MULTILINE))
    assert rows == {tag: kind for tag, kind, _ in TAGS} | {"pi": "Z", "SA": "Z"}
    found = {name for record in records(written) for name, _ in record.get_tags()}
    assert found == rows.keys()


def test_the_header_is_as_specified(written: Path) -> None:
    with pysam.AlignmentFile(str(written)) as file:
        head = file.header.to_dict()
    assert head["HD"]["VN"] == "1.6"
    assert [(line["SN"], line["LN"]) for line in head["SQ"]] == [(name, len(bases)) for name, bases in CONTIGS.items()]
    group = head["RG"][0]
    # ONT's output specification for BAM, its own regular expressions but for the shape of made-up ids
    assert group["ID"] == f"{RUN_A.run_id}_{IDENTITY.model}"
    assert re.fullmatch(r"runid=(\S+)\s+basecall_model=([a-z0-9_@\.]+)", group["DS"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(Z|\.\d{6}\+\d{2}:\d{2})", group["DT"])
    assert (group["PL"], group["PU"], group["PM"]) == ("ONT", "FABa", "MN1")
    assert group["LB"] == group["SM"] == "sample/../7"
    caller, aligner = head["PG"]
    assert (caller["ID"], caller["PN"], caller["VN"]) == ("basecaller", "porestream", IDENTITY.version)
    assert caller["CL"] == "porestream call a.pod5"
    assert caller["DS"] == (
        f"basecall_model={IDENTITY.model} model_sha256={'ab' * 32} precision=fp32 device=cpu calling_revision=2 "
        "min_qscore=9 trim=adapters"
    )
    assert (aligner["ID"], aligner["PN"], aligner["PP"]) == ("aligner", "minimap2", "basecaller")
    assert aligner["DS"] == f"preset=map-ont reference=ref.fa sha256={'cd' * 32}"
