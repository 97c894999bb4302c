"""SAM and BAM records, judged by rules like those of Picard's ValidateSamFile and by samtools.

The rules are read off the SAM specification (SAMv1, sections 1.3-1.5; SAMtags) and dorado's list of tags, and look at
SAM text only, so that they share nothing with the code that writes it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import numpy as np
import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porestream.client import (
    Alignment,
    CalledPart,
    CallerIdentity,
    OutputSettings,
    ReadInfo,
    ReadResult,
    ReadStatus,
    RecordWriter,
    RunInfo,
)
from porestream.client.reads import ReferenceSequence

# The rules

_DORADO_TAGS = {
    **dict.fromkeys(("qs", "du", "sm", "sd"), "f"),
    **dict.fromkeys(("ns", "ts", "mx", "ch", "rn", "dx"), "i"),
    **dict.fromkeys(("fn", "sv", "RG"), "Z"),
}
_OPTIONAL_TAGS = {"st": "Z", "mv": "B", "pi": "Z", "er": "Z", "po": "Z"}
_ALIGNMENT_TAGS = {"NM": "i", "AS": "i", "de": "f", "tp": "A"}
_OPTIONAL_ALIGNMENT_TAGS = {"MD": "Z", "SA": "Z"}
_REFERENCE_NAME = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
_TAG = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9]):"
    r"(A:[!-~]|i:[-+]?\d+|f:[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|Z:[ -~]*|B:[cCsSiIf](,[-+]?[0-9.eE+-]+)*)"
)
_HEADER_KEYS = {
    "HD": {"VN", "SO", "GO", "SS"},
    "SQ": {"SN", "LN", "M5", "AS", "SP", "UR"},
    "RG": {"ID", "DS", "DT", "LB", "PG", "PL", "PM", "PU", "SM"},
    "PG": {"ID", "PN", "CL", "PP", "DS", "VN"},
}


@dataclass
class Sam:
    """A parsed SAM file: header lines by type, and records as (fields, tags with their type)."""

    header: dict[str, list[dict[str, str]]]
    records: list[tuple[list[str], dict[str, tuple[str, str]]]]


def parse(text: str) -> Sam:
    """Take SAM text apart, strictly."""
    header: dict[str, list[dict[str, str]]] = defaultdict(list)
    records = []
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        fields = line.split("\t")
        if line.startswith("@"):
            assert not records, "a header line after a record"
            kind, pairs = fields[0][1:], [field.split(":", 1) for field in fields[1:]]
            assert all(len(pair) == 2 for pair in pairs), line
            assert len({key for key, _ in pairs}) == len(pairs), f"a key comes twice: {line}"
            assert {key for key, _ in pairs} <= _HEADER_KEYS[kind], line
            assert kind != "HD" or not header, "@HD is not first"
            header[kind].append(dict(pairs))
            continue
        assert len(fields) >= 11, line
        tags: dict[str, tuple[str, str]] = {}
        for field in fields[11:]:
            match = _TAG.fullmatch(field)
            assert match, f"not a tag: {field!r}"
            assert match["name"] not in tags, f"{match['name']} comes twice"
            tags[match["name"]] = (field[3], field[5:])
        records.append((fields[:11], tags))
    return Sam(header, records)


def check(text: str, references: dict[str, str], sample_rate_hz: int = 4000) -> Sam:
    """Assert every rule; returns the parsed file."""
    sam = parse(text)
    _check_header(sam.header, references)
    groups = {line["ID"] for line in sam.header["RG"]}
    of_read = defaultdict(list)
    for fields, tags in sam.records:
        _check_record(fields, tags, references, groups, sample_rate_hz)
        of_read[fields[0]].append((fields, tags))
    for name, records in of_read.items():
        flags = [int(fields[1]) for fields, _ in records]
        assert sum(not flag & 0x900 for flag in flags) == 1, f"{name}: not exactly one primary record"
        assert not flags[0] & 0x900, f"{name}: the primary record is not first"
        assert len({flag & 0x200 for flag in flags}) == 1, f"{name}: filtered in part"
        assert not any(flag & 4 for flag in flags) or len(flags) == 1, f"{name}: mapped and unmapped"
        _check_sa(name, records)
    return sam


def _check_header(header: dict[str, list[dict[str, str]]], references: dict[str, str]) -> None:
    assert len(header["HD"]) == 1
    assert re.fullmatch(r"\d+\.\d+", header["HD"][0]["VN"])
    assert {line["SN"]: int(line["LN"]) for line in header["SQ"]} == {n: len(b) for n, b in references.items()}
    for line in header["SQ"]:
        assert _REFERENCE_NAME.fullmatch(line["SN"])
        assert re.fullmatch(r"[0-9a-f]{32}", line.get("M5", "0" * 32))
    for kind in ("SQ", "RG", "PG"):
        names = [line["SN" if kind == "SQ" else "ID"] for line in header[kind]]
        assert len(set(names)) == len(names), f"@{kind} comes twice"
    for line in header["RG"]:
        assert line["PL"] == "ONT"
        assert "basecall_model=" in line["DS"]
        assert "runid=" in line["DS"]
        assert line["PG"] in [program["ID"] for program in header["PG"]]
        if "DT" in line:
            datetime.fromisoformat(line["DT"])
        assert all(line.values()), "an empty value"
    programs = {line["ID"]: line for line in header["PG"]}
    assert programs
    for line in programs.values():
        assert line["PN"]
        seen: list[str] = []
        while (following := line.get("PP")) is not None:
            assert following in programs, f"@PG PP:{following} is not there"
            assert following not in seen, "@PG PP goes in a circle"
            seen.append(following)
            line = programs[following]


def _check_record(
    fields: list[str],
    tags: dict[str, tuple[str, str]],
    references: dict[str, str],
    groups: set[str],
    sample_rate_hz: int,
) -> None:
    name, flag_text, reference, position, mapq, cigar, mate, mate_position, template, sequence, quality = fields
    flag = int(flag_text)
    assert re.fullmatch(r"[!-?A-~]{1,254}", name)
    assert not flag & ~(0x4 | 0x10 | 0x100 | 0x200 | 0x800), f"flag {flag}: mates, or bits that mean nothing"
    assert flag & 0x900 != 0x900, "secondary and supplementary at once"
    assert (mate, mate_position, template) == ("*", "0", "0")
    expected = dict(_DORADO_TAGS)
    allowed = dict(_OPTIONAL_TAGS)
    if flag & 4:
        assert (reference, position, mapq, cigar) == ("*", "0", "0", "*")
        assert not flag & 0x910, "an unmapped record cannot be reverse, secondary or supplementary"
    else:
        expected |= _ALIGNMENT_TAGS
        allowed |= _OPTIONAL_ALIGNMENT_TAGS
        _check_alignment(fields, tags, references)
    for tag, kind in expected.items():
        assert tag in tags, f"{tag} is missing"
        assert tags[tag][0] == kind, f"{tag} has type {tags[tag][0]}"
    for tag, (kind, _) in tags.items():
        assert (expected | allowed).get(tag) == kind, f"unexpected {tag}:{kind}"
    if flag & 0x100:
        assert (sequence, quality) == ("*", "*"), "a secondary record repeats the sequence"
    elif sequence == "*":
        assert quality == "*"
    else:
        assert re.fullmatch(r"[ACGT]+", sequence)
        assert len(quality) == len(sequence)
        assert re.fullmatch(r"[!-~]+", quality)
    assert tags["RG"][1] in groups, "RG is not in the header"
    samples, trimmed = int(tags["ns"][1]), int(tags["ts"][1])
    assert 0 <= trimmed <= samples
    assert float(tags["du"][1]) == pytest.approx(samples / sample_rate_hz, rel=1e-5)
    if "st" in tags:
        assert datetime.fromisoformat(tags["st"][1]).tzinfo is not None
    if "pi" in tags:
        assert str(UUID(tags["pi"][1])) == tags["pi"][1] != name
    if "mv" in tags:
        element, stride, *moves = tags["mv"][1].split(",")
        assert element == "c", "mv is B:c, as dorado writes it and modkit and remora read it"
        assert int(stride) > 0
        assert set(moves) <= {"0", "1"}
        assert sequence == "*" or moves.count("1") == len(sequence), "not one move a base"
        assert len(moves) == (samples - trimmed) // int(stride), "Remora refuses all others"


def _operations(cigar: str) -> list[tuple[int, str]]:
    assert re.fullmatch(r"([1-9]\d*[MIDNSHP=X])+", cigar), cigar
    return [(int(length), op) for length, op in re.findall(r"(\d+)(\D)", cigar)]


def _check_alignment(fields: list[str], tags: dict[str, tuple[str, str]], references: dict[str, str]) -> None:
    _, flag, reference, position, mapq, cigar, _, _, _, sequence, _ = fields
    assert reference in references, f"{reference} is not in @SQ"
    operations = _operations(cigar)
    kinds = [op for _, op in operations]
    assert re.fullmatch(r"H?S?[^HS]+S?H?", "".join(kinds)), f"clips within {cigar}"
    assert all(a != b for a, b in pairwise(kinds)), f"an operation twice in a row: {cigar}"
    on_reference = sum(length for length, op in operations if op in "MDN=X")
    start = int(position) - 1
    assert start >= 0
    assert on_reference > 0
    assert start + on_reference <= len(references[reference]), "the alignment goes past the reference's end"
    assert 0 <= int(mapq) <= 254
    assert "H" not in kinds, "hard clips would leave SEQ shorter than the read"
    if sequence != "*":
        assert sum(length for length, op in operations if op in "MIS=X") == len(sequence), "CIGAR and SEQ differ"
    assert tags["tp"][1] == ("S" if int(flag) & 0x100 else "P")
    assert 0 <= float(tags["de"][1]) <= 1
    edits = int(tags["NM"][1])
    gap_bases = sum(length for length, op in operations if op in "ID")
    assert gap_bases <= edits <= gap_bases + sum(length for length, op in operations if op == "M")
    if sequence != "*":
        expected_edits, expected_md = _nm_and_md(sequence, references[reference], start, operations)
        assert edits == expected_edits
        assert tags.get("MD", ("Z", expected_md))[1] == expected_md
    elif "MD" in tags:
        _check_md_alone(tags["MD"][1], edits, operations)


def _nm_and_md(sequence: str, reference: str, start: int, operations: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """NM and MD by the book (SAMtags): MD is [0-9]+(([A-Z]|^[A-Z]+)[0-9]+)*."""
    edits, md, run = 0, "", 0
    at_read, at_reference = 0, start
    for length, op in operations:
        if op == "M":
            for offset in range(length):
                base = reference[at_reference + offset]
                if sequence[at_read + offset] == base:
                    run += 1
                else:
                    md, run, edits = f"{md}{run}{base}", 0, edits + 1
            at_read, at_reference = at_read + length, at_reference + length
        elif op == "D":
            md, run, edits = f"{md}{run}^{reference[at_reference : at_reference + length]}", 0, edits + length
            at_reference += length
        else:
            at_read += length
            edits += length if op == "I" else 0
    return edits, f"{md}{run}"


def _check_md_alone(md: str, edits: int, operations: Sequence[tuple[int, str]]) -> None:
    assert re.fullmatch(r"\d+(([A-Z]|\^[A-Z]+)\d+)*", md)
    deleted = [len(bases) for bases in re.findall(r"\^([A-Z]+)", md)]
    mismatches = len(re.findall(r"(?<![\^A-Z])[A-Z]", md))
    matches = sum(map(int, re.findall(r"\d+", md)))
    assert deleted == [length for length, op in operations if op == "D"]
    assert matches + mismatches == sum(length for length, op in operations if op == "M")
    assert edits == mismatches + sum(length for length, op in operations if op in "ID")


def _check_sa(name: str, records: Sequence[tuple[list[str], dict[str, tuple[str, str]]]]) -> None:
    """Each record of a chimeric alignment names all the others as they are, the primary first (SAMtags, SA)."""
    chimeric = [(fields, tags) for fields, tags in records if not int(fields[1]) & 0x104]
    places = [",".join([f[2], f[3], "-" if int(f[1]) & 16 else "+", f[5], f[4], tags["NM"][1]]) for f, tags in chimeric]
    for index, (_, tags) in enumerate(chimeric):
        others = places[:index] + places[index + 1 :]
        assert tags.get("SA", ("Z", ""))[1] == "".join(f"{place};" for place in others), name
    for fields, tags in records:
        assert "SA" not in tags or not int(fields[1]) & 0x100, "SA on a secondary record"


# Reads and alignments that keep the rules by construction

_RNG = np.random.default_rng(11)
_REPEAT = "".join(_RNG.choice(list("ACGT"), 300))
REFERENCES = {
    "chr1": "".join(_RNG.choice(list("ACGT"), 700)) + _REPEAT,
    "HLA*01:01.02|x": _REPEAT + "".join(_RNG.choice(list("ACGT"), 200)),
}
RUN = RunInfo(
    run_id="1a2b",
    sample_rate_hz=4000,
    flow_cell_id="FAB12345",
    flow_cell_product_code="FLO-MIN106",
    sequencing_kit="SQK-LSK109",
    position="MN00001",
    sample_id="patient 7",
    experiment_id="exp",
    acquisition_start_time=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
)
IDENTITY = CallerIdentity(
    model="dna_r9.4.1_fast@v3.4",
    model_sha256="ab" * 32,
    reference="ref.fa",
    reference_sha256="cd" * 32,
    preset="map-ont",
    precision="fp32",
    device_class="cpu-avx2",
    version="0.1.0",
)
SEQUENCES = [
    ReferenceSequence(name, len(bases), ("" if index else "0123456789abcdef0123456789abcdef"))
    for index, (name, bases) in enumerate(REFERENCES.items())
]
_OPERATIONS = "MIDNSHP=X"
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


PARENT = UUID(int=1)


@dataclass(frozen=True)
class Piece:
    """A stretch of a read: where it lies, and how it differs, as (operation, length); X is a mismatch."""

    contig: str
    start: int
    is_reverse: bool
    edits: tuple[tuple[str, int], ...]
    mapping_quality: int = 60

    def bases(self) -> str:
        """In the reference's orientation."""
        found, at = "", self.start
        for op, length in self.edits:
            if op == "I":
                found += ("ACGT" * length)[:length]
                continue
            here = REFERENCES[self.contig][at : at + length]
            at += length
            if op != "D":
                found += here if op == "M" else here.translate(str.maketrans("ACGT", "CATG"))
        return found

    def in_read(self) -> str:
        """In the read's orientation."""
        return self.bases().translate(_COMPLEMENT)[::-1] if self.is_reverse else self.bases()

    def alignment(self, before: int, after: int, flag: int) -> Alignment:
        """As a server sends it, with so many bases of the read to each side."""
        if self.is_reverse:
            before, after = after, before
        merged: list[tuple[int, str]] = []
        for op, length in [("S", before), *self.edits, ("S", after)]:
            kind = "M" if op == "X" else op
            if merged and merged[-1][1] == kind:
                merged[-1] = (merged[-1][0] + length, kind)
            elif length:
                merged.append((length, kind))
        padded = "A" * before + self.bases() + "A" * after
        edits, md = _nm_and_md(padded, REFERENCES[self.contig], self.start, merged)
        return Alignment(
            flag=flag | (16 if self.is_reverse else 0),
            reference_name=self.contig,
            reference_start=self.start,
            reference_end=self.start + sum(length for op, length in self.edits if op != "I"),
            mapping_quality=self.mapping_quality,
            cigar=tuple(length << 4 | _OPERATIONS.index(kind) for length, kind in merged),
            score=77,
            edit_distance=edits,
            md=md,
            divergence=edits / 1000,
        )


def make_part(
    pieces: Sequence[Piece] = (), secondary: Piece | None = None, name: UUID = PARENT, head: str = "ACCGT"
) -> CalledPart:
    """A read of `head` and the pieces, the first of which is primary; `secondary` lies where the first piece does."""
    texts = [piece.in_read() for piece in pieces]
    sequence = head + "".join(texts)
    alignments, at = [], len(head)
    for index, (piece, text) in enumerate(zip(pieces, texts, strict=True)):
        after = len(sequence) - at - len(text)
        alignments.append(piece.alignment(at, after, 0x800 if index else 0))
        if secondary is not None and not index:
            alignments.append(secondary.alignment(at, after, 0x100))
        at += len(text)
    moves = bytes([1, 0] * len(sequence))
    return CalledPart(
        read_id=name,
        sequence=sequence,
        qualities=bytes(2 + index % 48 for index in range(len(sequence))),
        mean_qscore=12.3456789,
        samples=10 + len(moves) * 5 + 3,  # no whole step at the end
        trimmed_samples=10,
        stride_samples=5,
        moves=moves,
        alignments=tuple(alignments),
    )


def make_result(*parts: CalledPart, status: ReadStatus = ReadStatus.CALLED, info: ReadInfo | None = None) -> ReadResult:
    """One read's result."""
    info = info or ReadInfo(
        read_id=UUID(int=1),
        run=RUN,
        offset_adc=-243.0,
        scale_pa_per_adc=0.146,
        channel=12,
        well=3,
        read_number=456,
        start_sample=8000,
        end_reason="signal_positive",
        file_name="run 1.pod5",
    )
    return ReadResult(
        info=info,
        status=status,
        detail="",
        signal_samples=sum(part.samples for part in parts),
        scaling_midpoint_pa=90.5,
        scaling_dispersion_pa=12.5,
        scaling_strategy="med_mad",
        parts=parts,
    )


PRIMARY = Piece("chr1", 20, False, (("M", 30), ("X", 1), ("M", 5), ("I", 2), ("M", 9), ("D", 3), ("M", 20)))
REVERSE = Piece("chr1", 400, True, (("M", 12), ("D", 2), ("M", 8), ("X", 2), ("M", 30), ("I", 1), ("M", 7)), 3)
IN_REPEAT = Piece("chr1", 710, False, (("X", 1), ("M", 80), ("D", 1), ("M", 40)), 0)
ITS_COPY = replace(IN_REPEAT, contig="HLA*01:01.02|x", start=10)
AT_ENDS = Piece("HLA*01:01.02|x", 0, True, (("M", len(REFERENCES["HLA*01:01.02|x"])),))
BARE = ReadInfo(
    read_id=UUID(int=1), run=replace(RUN, acquisition_start_time=None), offset_adc=0.0, scale_pa_per_adc=1.0
)

RESULTS = {
    "forward": make_result(make_part([PRIMARY])),
    "reverse": make_result(make_part([REVERSE])),
    "whole contig": make_result(make_part([AT_ENDS], head="")),
    "supplementary": make_result(make_part([PRIMARY, REVERSE, AT_ENDS])),
    "reverse primary, forward supplementary": make_result(make_part([REVERSE, PRIMARY])),
    "secondary": make_result(make_part([IN_REPEAT], secondary=ITS_COPY)),
    "secondary and supplementary": make_result(make_part([IN_REPEAT, REVERSE], secondary=replace(ITS_COPY))),
    "unmapped": make_result(make_part()),
    "filtered": make_result(make_part([PRIMARY, REVERSE]), status=ReadStatus.FILTERED),
    "filtered and unmapped": make_result(make_part(), status=ReadStatus.FILTERED),
    "no moves": make_result(replace(make_part([REVERSE]), moves=b"")),
    "no MD": make_result(
        replace(
            make_part(),
            alignments=(replace(make_part([REVERSE]).alignments[0], md=""),),
            sequence=make_part([REVERSE]).sequence,
            qualities=make_part([REVERSE]).qualities,
            moves=b"",
        )
    ),
    "split": make_result(make_part([PRIMARY], name=UUID(int=2)), make_part([REVERSE], name=UUID(int=3))),
    "bare": make_result(make_part([PRIMARY]), info=BARE),
    "no bases": make_result(replace(make_part(head=""), moves=bytes(9), samples=55)),
    "rejected": make_result(status=ReadStatus.REJECTED),
}


def write(path: Path, results: Sequence[ReadResult], **options: object) -> Path:
    settings = OutputSettings(
        identity=options.pop("identity", IDENTITY), sequences=options.pop("sequences", SEQUENCES), **options
    )
    with RecordWriter(str(path), {"1a2b": RUN}, settings) as writer:
        for result in results:
            writer.write(result)
    return path


@pytest.fixture(scope="session")
def samtools() -> Callable[..., str]:
    """Run samtools; skips where there is none, but not in CI."""
    program = shutil.which("samtools")
    if program is None:
        message = "samtools is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("name", RESULTS)
def test_records_keep_the_rules(tmp_path: Path, name: str) -> None:
    result = RESULTS[name]
    sam = check(write(tmp_path / "a.sam", [result]).read_text(), REFERENCES)
    assert len(sam.records) == sum(max(1, len(part.alignments)) for part in result.parts)
    assert all(bool(int(fields[1]) & 0x200) is (result.status is ReadStatus.FILTERED) for fields, _ in sam.records)
    assert all(("mv" in tags) is bool(result.parts[0].moves) for _, tags in sam.records)
    assert all(("MD" in tags) is (name != "no MD" and not int(f[1]) & 4) for f, tags in sam.records)
    assert all(("st" in tags) is (name != "bare") for _, tags in sam.records)


def test_the_read_is_written_as_the_sequencer_saw_it_once_reversed(tmp_path: Path) -> None:
    part = make_part([REVERSE])
    fields, tags = check(write(tmp_path / "a.sam", [make_result(part)]).read_text(), REFERENCES).records[0]
    assert fields[9] == part.sequence.translate(_COMPLEMENT)[::-1]
    assert fields[10] == "".join(chr(q + 33) for q in reversed(part.qualities))
    assert tags["mv"][1] == "c,5," + ",".join(str(move) for move in part.moves), "mv stays in the signal's order"


def test_values_of_tags(tmp_path: Path) -> None:
    text = write(tmp_path / "a.sam", [RESULTS["split"]], command_line="porestream call a.pod5").read_text()
    sam = check(text, REFERENCES)
    fields, tags = sam.records[1]
    assert fields[0] == str(UUID(int=3))
    assert {name: tags[name] for name in ("pi", "st", "ch", "mx", "rn", "fn", "sv", "dx", "RG", "ts")} == {
        "pi": ("Z", str(UUID(int=1))),
        "st": ("Z", "2024-05-06T07:08:11.000+00:00"),  # 8000 samples at 4 kHz after the run began
        "ch": ("i", "12"),
        "mx": ("i", "3"),
        "rn": ("i", "456"),
        "fn": ("Z", "run 1.pod5"),
        "sv": ("Z", "med_mad"),
        "dx": ("i", "0"),
        "RG": ("Z", "1a2b_dna_r9.4.1_fast@v3.4"),
        "ts": ("i", "10"),
    }
    assert float(tags["qs"][1]) == pytest.approx(12.3456789, rel=1e-5)
    assert sam.header["RG"] == [
        {
            "ID": "1a2b_dna_r9.4.1_fast@v3.4",
            "PU": "FAB12345",
            "PM": "MN00001",
            "SM": "patient 7",
            "LB": "patient 7",
            "DT": "2024-05-06T07:08:09.000000+00:00",
            "PL": "ONT",
            "PG": "basecaller",
            "DS": "runid=1a2b basecall_model=dna_r9.4.1_fast@v3.4",
        }
    ]
    caller, aligner = sam.header["PG"]
    assert (caller["PN"], caller["VN"], caller["CL"]) == ("porestream", "0.1.0", "porestream call a.pod5")
    assert f"model_sha256={'ab' * 32}" in caller["DS"]
    assert (aligner["PN"], aligner["PP"]) == ("minimap2", caller["ID"])
    assert sam.header["SQ"][0]["M5"] == "0123456789abcdef0123456789abcdef"
    assert "M5" not in sam.header["SQ"][1]


def test_without_a_reference(tmp_path: Path) -> None:
    identity = replace(IDENTITY, reference="", reference_sha256="", preset="")
    text = write(tmp_path / "a.sam", [RESULTS["unmapped"]], identity=identity, sequences=()).read_text()
    sam = check(text, {})
    assert [line["PN"] for line in sam.header["PG"]] == ["porestream"]


def test_times_keep_their_zone(tmp_path: Path) -> None:
    run = replace(RUN, acquisition_start_time=datetime(2024, 5, 6, 23, 59, 59, 999000, timezone(timedelta(hours=-7))))
    result = make_result(make_part(), info=replace(BARE, run=run, start_sample=4))
    sam = check(write(tmp_path / "a.sam", [result]).read_text(), REFERENCES)
    assert sam.records[0][1]["st"] == ("Z", "2024-05-07T00:00:00.000-07:00")


@pytest.mark.parametrize("odd", ["a\tb", "a\nb", "läufe", "\x7f", "", " ", "a\r\n\tb", "東京"])
def test_no_text_can_break_a_line(tmp_path: Path, odd: str) -> None:
    run = replace(RUN, run_id=odd, flow_cell_id=odd, position=odd, sample_id=odd, experiment_id=odd)
    result = make_result(make_part([PRIMARY]), info=replace(BARE, run=run, file_name=odd))
    settings = OutputSettings(identity=IDENTITY, sequences=SEQUENCES, command_line=f"porestream call {odd}")
    with RecordWriter(str(tmp_path / "a.sam"), {odd: run}, settings) as writer:
        writer.write(replace(result, scaling_strategy=odd))
    sam = check((tmp_path / "a.sam").read_text(), REFERENCES)
    assert len(sam.header["RG"]) == 1
    assert len(sam.records) == 1


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("\t2064\t", "\t2065\t"),
        ("\t2064\t", "\t16\t"),
        ("\tMD:Z:30", "\tMD:Z:31"),
        ("\tNM:i:", "\tNM:i:1"),
        ("\tSA:Z:chr1,", "\tSA:Z:chr1,1"),
        ("mv:B:c", "mv:B:C"),
        ("ns:i", "ns:f"),
        ("\tPP:basecaller", "\tPP:other"),
        ("36M", "35M"),
        ("RG:Z:1", "RG:Z:2"),
        ("\t*\t0\t0\t", "\t=\t0\t0\t"),
        ("LN:1000", "LN:50"),
    ],
)
def test_the_rules_have_teeth(tmp_path: Path, good: str, bad: str) -> None:
    text = write(tmp_path / "a.sam", [RESULTS["supplementary"]]).read_text()
    assert good in text
    with pytest.raises((AssertionError, ValueError, KeyError)):
        check(text.replace(good, bad, 1), REFERENCES)


def test_bam_has_what_sam_has(tmp_path: Path, samtools: Callable[..., str]) -> None:
    results = [
        replace(
            result, parts=tuple(replace(part, read_id=UUID(int=100 * i + j)) for j, part in enumerate(result.parts))
        )
        for i, result in enumerate(RESULTS.values())
    ]
    bam, sam = write(tmp_path / "a.bam", results), write(tmp_path / "a.sam", results)
    samtools("quickcheck", "-v", bam, sam)
    text = samtools("view", "-h", "--no-PG", bam)
    assert text == sam.read_text() == samtools("view", "-h", "--no-PG", sam)
    check(text, REFERENCES)
    samtools("sort", "-o", tmp_path / "sorted.bam", bam)
    samtools("index", tmp_path / "sorted.bam")
    assert int(samtools("view", "-c", "-f", "0x200", bam)) == 3


@pytest.mark.parametrize("suffix", ["bam", "sam"])
def test_pysam_reads_back_what_was_written(tmp_path: Path, suffix: str) -> None:
    result = RESULTS["secondary and supplementary"]
    part = result.parts[0]
    with pysam.AlignmentFile(str(write(tmp_path / f"a.{suffix}", [result])), check_sq=False) as file:
        records = list(file)
    assert len(records) == len(part.alignments) == 3
    for record, alignment in zip(records, part.alignments, strict=True):
        assert record.flag == alignment.flag
        assert (record.reference_name, record.reference_start) == (
            alignment.reference_name,
            alignment.reference_start,
        )
        assert record.reference_end == alignment.reference_end
        assert record.mapping_quality == alignment.mapping_quality
        assert tuple(length << 4 | op for op, length in record.cigartuples) == alignment.cigar
        assert record.get_tag("MD") == alignment.md
        assert record.get_tag("AS") == alignment.score
        assert record.get_tag("NM") == alignment.edit_distance
        assert record.get_tag("de") == pytest.approx(alignment.divergence)
        if not record.is_secondary:
            assert record.get_forward_sequence() == part.sequence
            assert bytes(record.get_forward_qualities()) == part.qualities
            if not record.is_reverse:
                assert record.get_reference_sequence().upper() in REFERENCES[record.reference_name]


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    contig = draw(st.sampled_from(sorted(REFERENCES)))
    length = len(REFERENCES[contig])
    start = draw(st.integers(0, length - 60))
    ops = draw(st.lists(st.tuples(st.sampled_from("MXID"), st.integers(1, 9)), max_size=6))
    edits = [("M", 1), *ops, ("M", 1)]
    edits = [
        edit for edit, before in zip(edits, [("", 0), *edits], strict=False) if edit[0] != before[0] or edit[0] in "MX"
    ]
    return Piece(contig, start, draw(st.booleans()), tuple(edits), draw(st.integers(0, 60)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces(), max_size=4), st.sampled_from(["", "A", "ACCGTAC"]), st.sampled_from(ReadStatus))
def test_any_alignments_keep_the_rules(tmp_path: Path, found: list[Piece], head: str, status: ReadStatus) -> None:
    if not found and not head:
        head = "A"
    result = make_result(make_part(found, head=head), status=status)
    bam = write(tmp_path / "a.bam", [result])
    text = write(tmp_path / "a.sam", [result]).read_text()
    sam = check(text, REFERENCES)
    assert len(sam.records) == max(1, len(found))
    with pysam.AlignmentFile(str(bam)) as file:
        assert [record.to_string() for record in file] == [line for line in text.splitlines() if line[0] != "@"]


def test_real_calls_keep_the_rules(shared_data: Path, tmp_path: Path, samtools: Callable[..., str]) -> None:
    (model,) = (shared_data / "models").iterdir()
    reference = shared_data / "sarscov2_r941" / "reference.fasta"
    bam = tmp_path / "out.bam"
    command = [sys.executable, "-m", "porestream.cli.main", "call", str(shared_data / "sarscov2_r941" / "reads.pod5")]
    command += ["--model", str(model), "--reference", str(reference), "-o", str(bam), "--emit-moves", "-t", "1"]
    done = subprocess.run([*command, "-n", "30"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    samtools("quickcheck", "-v", bam)
    lines = reference.read_text().splitlines()
    text = samtools("view", "-h", "--no-PG", bam)
    sam = check(text, {lines[0][1:].split()[0]: "".join(lines[1:]).upper()})
    assert len({fields[0] for fields, _ in sam.records}) == 30
    mapped = [tags for fields, tags in sam.records if not int(fields[1]) & 4]
    assert mapped
    assert all("mv" in tags for _, tags in sam.records)
    assert all("MD" in tags for tags in mapped)


# What cannot be written


@pytest.fixture
def full_disk(tmp_path: Path) -> Callable[[str], Path]:
    """A file of this suffix on a disk that is full."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("there is no /dev/full here")

    def make(suffix: str) -> Path:
        path = tmp_path / f"calls.{suffix}"
        path.symlink_to(device)
        return path

    return make


@pytest.mark.parametrize("suffix", ["bam", "sam"])
@pytest.mark.parametrize("count", [0, 1, 3000])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pysam's own, when it opens SAM
def test_a_full_disk_is_an_error_that_names_the_file(full_disk: Callable[[str], Path], suffix: str, count: int) -> None:
    path = full_disk(suffix)
    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        write(path, [RESULTS["forward"]] * count)
    assert "No space left" in str(caught.value)


@pytest.mark.parametrize("suffix", ["bam", "sam"])
def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "missing" / f"a.{suffix}"
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        write(path, [])


def test_a_file_as_folder_and_a_folder_as_file(tmp_path: Path) -> None:
    (tmp_path / "a.bam").mkdir()
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path / "a.bam"))):
        write(tmp_path / "a.bam", [])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"b\.bam"):
        write(tmp_path / "file" / "b.bam", [])


def test_a_read_only_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    folder = tmp_path if os.geteuid() else Path("/sys")  # root may write into any folder but this
    with pytest.raises(PermissionError, match=re.escape(str(folder / "a.bam"))):
        write(folder / "a.bam", [])


@pytest.mark.parametrize("name", ["calls", "calls.txt", "calls.bam.gz", ".bam", "calls.BAM.tmp"])
def test_a_name_that_tells_no_format_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        write(path, [])
    assert ".bam, .sam, .cram, .fastq" in str(caught.value)
    assert not path.exists()
