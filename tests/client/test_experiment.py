"""readfish's TOML and targets: read as they are, or refused with every reason and its place."""

import copy
from pathlib import Path
from typing import Any

import pytest

from porestream.client.experiment import ExperimentError, Target, load_experiment, parse_experiment
from porestream.client.flow_cell import CHANNELS, divide, layout

REGION = """
[[regions]]
name = "{name}"
single_on = "stop_receiving"
multi_on = "stop_receiving"
single_off = "unblock"
multi_off = "unblock"
no_map = "proceed"
no_seq = "proceed"
"""
TOML = (
    """
split_axis = 1
[caller_settings.dorado]
config = "dna_r10.4.1_e8.2_400bps_5khz_fast"
address = "ipc:///tmp/.guppy/5555"
[mapper_settings.mappy_rs]
fn_idx_in = "/data/hg38.mmi"
n_threads = 4
"""
    + REGION.format(name="exome")
    + 'min_chunks = 1\nmax_chunks = 4\ntargets = "targets.bed"\n'
    + REGION.format(name="control")
    + 'control = true\ntargets = ["chr1", "chr2,100,200,+", "chr3,5,9,."]\n'
)
BED = "#a header\ntrack name=exome\nchr1\t100\t200\tgene\t0\t+\nchr1\t300\t400\tgene\t0\t.\n\n"


def written(folder: Path, toml: str = TOML, bed: str = BED) -> Path:
    (folder / "targets.bed").write_text(bed)
    path = folder / "experiment.toml"
    path.write_text(toml)
    return path


def test_a_toml_of_readfish(tmp_path: Path) -> None:
    found = load_experiment(written(tmp_path), 512)
    exome, control = found.regions
    assert (exome.name, exome.max_chunks, exome.above_max_chunks, exome.control) == ("exome", 4, "unblock", False)
    assert exome.targets == (Target("chr1", 100, 200, 1), Target("chr1", 300, 400, 1), Target("chr1", 300, 400, -1))
    assert control.control
    assert control.targets[:3] == (Target("chr1", 0, None, 1), Target("chr1", 0, None, -1), Target("chr2", 100, 200, 1))
    assert len(exome.channels) == len(control.channels) == 256
    assert sorted(exome.channels + control.channels) == [*range(1, 513)]
    assert found.reference == "/data/hg38.mmi"
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("split_axis = 1", "split_axis = 2", "split_axis is 2; it must be 0 (rows) or 1 (columns)"),
        ("split_axis = 1", "channels = 512", "unknown key 'channels'; the flow cell says how many"),
        ("split_axis = 1", "padding = 5", "unknown key 'padding'; known are barcodes, caller_settings"),
        (
            'no_map = "proceed"',
            'no_map = "eject"',
            "region 1 (exome): no_map is 'eject'; it must be one of unblock, stop",
        ),
        ('no_map = "proceed"', "", "region 1 (exome): no_map is missing"),
        ("max_chunks = 4", "max_chunk = 4", "region 1 (exome): unknown key 'max_chunk'; known are above_max_chunks"),
        ("max_chunks = 4", "max_chunks = true", "max_chunks is True; it must be a number of chunks"),
        ("max_chunks = 4", "max_chunks = -1", "max_chunks is -1; it must be a number of chunks"),
        ("control = true", "control = 1", "region 2 (control): control is 1; it must be true or false"),
        ('"targets.bed"', '"no.bed"', "cannot read the targets "),
        ('"targets.bed"', "5", "targets are 5; they must be a list of texts or the path"),
        ('"chr2,100,200,+"', '"chr2,100"', "targets, number 2: 2 column(s) of 4"),
        ('"chr2,100,200,+"', '"chr2,100,200,?"', "targets, number 2: strand '?' must be +, - or ."),
        ('"chr2,100,200,+"', '"chr2,300,200,+"', "targets, number 2: start 300 is after end 200"),
        ('"chr2,100,200,+"', '"chr2,a,200,+"', "targets, number 2: start 'a' and end '200' must be numbers"),
        ('"chr2,100,200,+"', '"chr2,-100,200,+"', "targets, number 2: -100 to 200 is on no contig"),
        ('"chr2,100,200,+"', f'"chr2,100,{10**20},+"', "is on no contig"),
        ("split_axis = 1", "split_axis = 1.0", "split_axis is 1.0; it must be 0"),
        ("split_axis = 1", "split_axis = true", "split_axis is True; it must be 0"),
        ('"targets.bed"', '"chr1,1,2,+' + "x" * 5000 + '"', "cannot read the targets 'chr1,1,2,+xxx"),
        ('"targets.bed"', '"a\\u0000b"', "cannot read the targets"),
        ('"targets.bed"', '"long.csv"', "long.csv, line 1: field larger than field limit"),
        ("[[regions]]", "[[region]]", "no [[regions]]"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in TOML
    (tmp_path / "long.csv").write_text("A" * 200_000)
    path = written(tmp_path, TOML.replace(before, after))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path, 512)
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    bed = "chr1\t1\t2\nchr1\t5\t6\tgene\t0\tx\n"
    with pytest.raises(ExperimentError) as caught:
        load_experiment(written(tmp_path, TOML.replace("max_chunks = 4", "max_chunks = 4.5"), bed), 3000)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("max_chunks is 4.5; it must be a number of chunks")
    assert lines[1].endswith("targets.bed, line 1: 3 column(s) of 6: contig, start, end, name, score, strand")
    assert lines[2].endswith("targets.bed, line 2: strand 'x' must be +, - or .")


@pytest.mark.parametrize(("text", "said"), [("a = ", "is not TOML"), (b"\xff\xfe", "cannot read")])
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ExperimentError, match=said):
        load_experiment(path, 512)
    with pytest.raises(ExperimentError, match="cannot read"):
        load_experiment(tmp_path / "none.toml", 512)


def table(**changes: Any) -> dict[str, Any]:
    actions = {"single_on": "stop_receiving", "multi_on": "stop_receiving", "single_off": "unblock"}
    actions |= {"multi_off": "unblock", "no_map": "proceed", "no_seq": "proceed"}
    return {"regions": [{"name": "one", **actions, "targets": ["chr1"]} | changes]}


def test_barcodes_are_refused_by_name() -> None:
    with pytest.raises(ExperimentError, match=r"\[barcodes\] cannot be used yet"):
        parse_experiment(table() | {"barcodes": {"classified": {}}}, 512)


DEPLETE = {"single_on": "unblock", "multi_on": "unblock", "single_off": "stop_receiving", "multi_off": "stop_receiving"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (DEPLETE, "above_max_chunks = unblock (the default) ejects all that is still unknown after 2 chunks"),
        (DEPLETE | {"no_map": "unblock"}, "no_map = unblock ejects what is unknown too"),
        ({"targets": []}, "there are no targets, so every read is off target"),
        ({"min_chunks": 5}, "min_chunks (5) is more than max_chunks (2)"),
    ],
)
def test_what_is_seldom_meant_is_warned_about(changes: dict[str, Any], said: str) -> None:
    (warning,) = parse_experiment(table(**changes), 512).warnings
    assert warning.startswith("the TOML, region 1 (one): ")
    assert said in warning


def test_a_depletion_that_keeps_what_is_unknown_is_not() -> None:
    assert parse_experiment(table(**DEPLETE, above_max_chunks="stop_receiving"), 512).warnings == ()


def test_a_million_and_one_targets_are_too_many() -> None:
    made = table()
    made["regions"][0]["targets"] = [f"chr1,{number},{number},+" for number in range(1_000_001)]
    with pytest.raises(ExperimentError, match=r"number 1000001: there are more than 1,000,000 targets"):
        parse_experiment(made, 512)


def test_a_parsed_table_is_left_as_it_was() -> None:
    made = table()
    before = copy.deepcopy(made)
    parse_experiment(made, 512)
    assert made == before


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_channel_lies_somewhere(channels: int) -> None:
    places = layout(channels)
    assert places.shape == CHANNELS[channels]
    assert sorted(place for place in places.flat if place) == [*range(1, channels + 1)]
    rows = CHANNELS[channels][0]
    parts = divide(channels, rows, axis=0)
    assert sorted(channel for part in parts for channel in part) == [*range(1, channels + 1)]


@pytest.mark.parametrize(
    ("channels", "parts", "said"),
    [(128, 1, "no layout is known of a flow cell with 128"), (512, 5, "5 regions cannot share the 32 columns")],
)
def test_what_cannot_be_divided_is_refused(channels: int, parts: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        divide(channels, parts)
