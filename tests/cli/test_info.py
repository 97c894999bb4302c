"""`porestream info`: what it shows of files, against reading them read by read."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pod5
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from porestream.cli.commands.info import _Run
from porestream.cli.main import main
from porestream.client.reads import RunInfo

WritePod5 = Callable[..., Path]
HEAVY = ("torch", "numpy", "grpc", "pysam", "pod5", "numba", "mappy", "google.protobuf", "pydantic")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No models of whoever runs the tests."""
    monkeypatch.delenv("PORESTREAM_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["info", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def runs_of(*arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)["runs"]


def signals(*lengths: int) -> list[np.ndarray]:
    return [np.full(length, 500, np.int16) for length in lengths]


def write_run(path: Path, reads: int = 1, **fields: Any) -> Path:
    """A file of one run, with any of its fields as told."""
    values: dict[str, Any] = {
        field: ""
        for field in [
            "experiment_name",
            "flow_cell_id",
            "flow_cell_product_code",
            "protocol_name",
            "protocol_run_id",
            "sample_id",
            "sequencing_kit",
            "sequencer_position",
            "sequencer_position_type",
            "software",
            "system_name",
            "system_type",
        ]
    }
    values |= {"acquisition_id": "run-a", "sample_rate": 4000, "adc_max": 1, "adc_min": 0}
    values |= {"context_tags": {}, "tracking_id": {}}
    values |= dict.fromkeys(("acquisition_start_time", "protocol_start_time"), datetime(2024, 5, 6, tzinfo=UTC))
    run_info = pod5.RunInfo(**values | fields)
    reasons = [pod5.EndReasonEnum.SIGNAL_POSITIVE] * 2 + [pod5.EndReasonEnum.UNBLOCK_MUX_CHANGE]
    with pod5.Writer(path) as writer:
        writer.add_reads(
            [
                pod5.Read(
                    read_id=UUID(int=number + 1),
                    pore=pod5.Pore(channel=number % 7 + 1, well=1, pore_type="x"),
                    calibration=pod5.Calibration(offset=0.0, scale=1.0),
                    read_number=number,
                    start_sample=10 * number,
                    median_before=0.0,
                    end_reason=pod5.EndReason.from_reason_with_default_forced(reasons[number % 3]),
                    run_info=run_info,
                    signal=np.full(number % 11 + 1, 500, np.int16),
                )
                for number in range(reads)
            ]
        )
    return path


# What is shown


def test_of_a_file(tmp_path: Path, write_pod5: WritePod5) -> None:
    """write_pod5 puts read i at sample 4000 i on channel i + 1; reads take turns between runs."""
    path = write_pod5(tmp_path / "a.pod5", signals(4000, 1000, 12_000, 3000, 2000), run_ids=("b", "a"))
    result = run(path)
    assert result.exit_code == 0
    assert result.stderr == ""
    said = [
        "  flow cell     FAB12345 (FLO-MIN106)",
        "  kit           sqk-lsk109",
        "  position      MN00001",
        "  sample        sample",
        "  experiment    experiment",
        "  started       2024-05-06 07:08:09 UTC",
        "  sample rate   4000 Hz",
        "  chemistry     R9.4.1 DNA (450 bases/s) at 4 kHz",
        "  model         none: found no model for R9.4.1 DNA (450 bases/s) at 4 kHz; give --model DIR, or put the "
        f"model directory into {tmp_path}/home/porestream/models",
    ]
    assert result.stdout.splitlines() == [
        "run a",
        *said,
        "  reads         2 in 1 file",
        "  samples       4,000 (0:00:01 of signal)",
        "  bases         about 450",
        "  time covered  0:00:03",  # from 4000 to 12,000 + 3000
        "  read length   mean 2,000, N50 3,000 samples (mean 0.50 s, N50 0.75 s)",
        "  channels      2",
        "  end reasons   signal_positive 2 (100.0%)",
        "run b",
        *said,
        "  reads         3 in 1 file",
        "  samples       18,000 (0:00:04 of signal)",
        "  bases         about 2,025",
        "  time covered  0:00:05",  # from 0 to 8000 + 12,000
        "  read length   mean 6,000, N50 12,000 samples (mean 1.50 s, N50 3.00 s)",
        "  channels      3",
        "  end reasons   signal_positive 3 (100.0%)",
        "2 runs, 5 reads, 22,000 samples in 1 file",
    ]


def test_as_json(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a.pod5", 30, flow_cell_product_code="FLO-MIN114", sample_rate=5000, sample_id="s")
    (found,) = runs_of(path)
    lengths = [number % 11 + 1 for number in range(30)]
    assert found == {
        "run_id": "run-a",
        "flow_cell_id": None,
        "flow_cell_product_code": "FLO-MIN114",
        "sequencing_kit": None,
        "position": None,
        "sample_id": "s",
        "experiment_id": None,
        "acquisition_start_time": "2024-05-06T00:00:00+00:00",
        "sample_rate_hz": 5000,
        "chemistry": "R10.4.1 DNA (400 bases/s) at 5 kHz",
        "model": "porestream_dna_r10.4.1_400bps_fast@v1",
        "no_model_because": None,
        "files": 1,
        "reads": 30,
        "samples": sum(lengths),
        "signal_seconds": sum(lengths) / 5000,
        "bases_estimate": round(sum(lengths) * 400 / 5000),
        "first_start_seconds": 0.0,
        "covered_seconds": (290 + lengths[29]) / 5000,
        "mean_read_samples": sum(lengths) / 30,
        "n50_read_samples": 8.0,
        "channels": 7,
        "end_reasons": {"signal_positive": 20, "unblock_mux_change": 10},
    }


def test_what_a_file_does_not_say_is_a_dash_or_null(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a.pod5", acquisition_id="", sample_rate=0)
    lines = run(path).stdout.splitlines()
    assert lines[0] == "run unknown"
    assert {line.split()[-1] for line in lines if line.split()[0] in ("kit", "position", "sample", "bases")} == {"-"}
    assert "  read length   mean 1, N50 1 samples" in lines
    (found,) = runs_of(path)
    assert [found[key] for key in ("sample_rate_hz", "bases_estimate", "covered_seconds", "model")] == [None] * 4
    assert "give --model DIR" in found["no_model_because"]


def test_a_file_without_reads(tmp_path: Path) -> None:
    pod5.Writer(tmp_path / "none.pod5").close()
    result = run(tmp_path / "none.pod5")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert runs_of(tmp_path / "none.pod5") == []


def test_the_model_is_what_call_takes(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    path = write_run(tmp_path / "a.pod5", flow_cell_product_code="FLO-MIN106", sequencing_kit="sqk-lsk109")
    model = make_bundle(tmp_path / "models" / "dna_r9.4.1_e8_fast@v3.4")
    assert runs_of(path)[0]["model"] is None
    assert runs_of(path, "--models-dir", model.parent)[0]["model"] == model.name
    assert "  model         dna_r9.4.1_e8_fast@v3.4\n" in run(path, "--models-dir", model.parent).stdout


# Fast path against exact path


def read_by_read(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    reads: dict[str, list[tuple[int, int, int, str]]] = {}
    runs = {}
    for path in paths:
        with pod5.Reader(path) as reader:
            for read in reader.reads():
                runs[read.run_info.acquisition_id] = read.run_info
                facts = (read.start_sample, read.sample_count, read.pore.channel, read.end_reason.name)
                reads.setdefault(read.run_info.acquisition_id, []).append(facts)
    found = {}
    for run_id, facts_of_reads in reads.items():
        starts, lengths, channels, reasons = zip(*facts_of_reads, strict=True)
        first, last = min(starts), max(start + length for start, length in zip(starts, lengths, strict=True))
        found[run_id] = {
            "reads": len(lengths),
            "samples": sum(lengths),
            "channels": len(set(channels)),
            "end_reasons": dict(Counter(reasons)),
            "covered_seconds": (last - first) / runs[run_id].sample_rate,
            "n50_read_samples": pytest.approx(n50(lengths), rel=0.002),
            "sample_id": runs[run_id].sample_id or None,
            "acquisition_start_time": runs[run_id].acquisition_start_time.isoformat(timespec="seconds"),
        }
    return found


def n50(lengths: Sequence[int]) -> int:
    """The length that half of all samples are in reads of or above."""
    counted = 0
    for length in sorted(lengths, reverse=True):
        counted += length
        if 2 * counted >= sum(lengths):
            return length
    return 0


def assert_equal_to_read_by_read(found: list[dict[str, Any]], paths: Sequence[Path]) -> None:
    expected = read_by_read(paths)
    assert {run["run_id"]: {key: run[key] for key in expected[run["run_id"]]} for run in found} == expected


def test_of_many_batches(tmp_path: Path) -> None:
    """Batches have 1000 reads."""
    path = write_run(tmp_path / "a.pod5", 2500)
    found = runs_of(path)
    assert_equal_to_read_by_read(found, [path])
    assert found[0]["reads"] == 2500


@pytest.mark.parametrize("name", ["sarscov2_r941", "klebsiella_r94", "human_r941", "human_r1041_4khz", "r1041_5khz"])
def test_of_real_files(shared_data: Path, name: str) -> None:
    path = shared_data / name / "reads.pod5"
    assert_equal_to_read_by_read(runs_of(path), [path])


@given(st.lists(st.lists(st.integers(0, 2**33), min_size=1, max_size=50), min_size=1, max_size=4))
def test_n50_is_within_two_per_thousand(batches: list[list[int]]) -> None:
    """Or, where a half falls between two reads, at either of them."""
    found = _Run(said=RunInfo(run_id="", sample_rate_hz=0))
    for lengths in batches:
        part = _Run(said=RunInfo(run_id="", sample_rate_hz=0))
        length_R = np.array(lengths, np.uint64)
        part.add_reads(np.zeros_like(length_R), length_R, np.zeros(len(lengths), np.int64), Counter())
        found.add(part)
    everything = [length for lengths in batches for length in lengths]
    above = sum(length for length in everything if length >= found.n50_samples * 0.998)
    longer = sum(length for length in everything if length > found.n50_samples * 1.002)
    assert 2 * above >= sum(everything) * (1 - 1e-9)
    assert 2 * longer <= sum(everything) * (1 + 1e-9)
    assert found.n50_samples <= max(everything)


# Files and folders


def test_folders_and_files_each_once(tmp_path: Path, write_pod5: WritePod5) -> None:
    for index, place in enumerate(("", "one", "one/two")):
        (tmp_path / "top" / place).mkdir(parents=True, exist_ok=True)
        write_pod5(tmp_path / "top" / place / "a.pod5", signals(1000, 2000), first=10 * index + 1)
    (tmp_path / "top" / "notes.txt").write_text("no POD5")
    (tmp_path / "link.pod5").symlink_to(tmp_path / "top" / "a.pod5")
    (flat,) = runs_of(tmp_path / "top")
    assert (flat["files"], flat["reads"], flat["samples"]) == (1, 2, 3000)
    for given_paths in (["top"], ["top", "top/one", "top/a.pod5", "link.pod5"]):
        (deep,) = runs_of("-r", *(tmp_path / path for path in given_paths))
        assert (deep["files"], deep["reads"], deep["samples"]) == (3, 6, 9000)
        assert deep["covered_seconds"] == (4000 + 2000) / 4000
        assert deep["end_reasons"] == {"signal_positive": 6}
    assert "  reads         6 in 3 files\n" in run("-r", tmp_path / "top").stdout


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path, write_pod5: WritePod5) -> None:
    good = write_pod5(tmp_path / "good.pod5", signals(1000))
    (tmp_path / "cut.pod5").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text\x1b[31m.pod5").write_text("not a POD5 file")
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    paths = ["cut.pod5", "good.pod5", "text\x1b[31m.pod5", "gone.pod5", "folder"]
    result = run(*(tmp_path / path for path in paths))
    assert result.exit_code == 3
    assert result.stdout.startswith("run run-a\n")
    assert "  reads         1 in 1 file\n" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert f"cannot read {tmp_path}/gone.pod5: no such file" in lines
    assert f"cannot read {tmp_path}/folder: the folder has no .pod5 files" in lines
    assert any(line.startswith(f"cannot read {tmp_path}/cut.pod5: not a POD5 file, or cut short (") for line in lines)
    assert any(line.startswith(f"cannot read {tmp_path}/text\\x1b[31m.pod5: ") for line in lines)

    done = json.loads(run(*(tmp_path / path for path in paths), "--json").stdout)
    assert [found["reads"] for found in done["runs"]] == [1]
    assert {Path(fault["path"]).name for fault in done["unreadable"]} == {*paths} - {"good.pod5"}
    assert all(fault["reason"] for fault in done["unreadable"])


def test_a_file_cut_short_anywhere_does_not_hide_another(tmp_path: Path) -> None:
    """Files whose bytes are damaged are no test: pod5 0.3.49 ends the process where its own lengths are wrong."""
    whole = write_run(tmp_path / "whole.pod5", 3, acquisition_id="whole").read_bytes()
    good = write_run(tmp_path / "good.pod5")
    for kept_bytes in range(0, len(whole), 997):
        (tmp_path / "cut.pod5").write_bytes(whole[:kept_bytes])
        assert [found["run_id"] for found in runs_of(tmp_path / "cut.pod5", good, code=3)] == ["run-a"]


def test_no_file_is_wrong_usage() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Missing argument 'FILE...'" in result.stderr
    assert result.stdout == ""


# Odd files


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    odd = "a\tb\nc\x1b]0;title\x07\r\u202ed\x9b31m"
    fields = ("experiment_name", "sample_id", "flow_cell_id", "flow_cell_product_code", "sequencing_kit")
    path = write_run(tmp_path / "a.pod5", acquisition_id=odd, **dict.fromkeys((*fields, "sequencer_position"), odd))
    result = run(path)
    shown = r"a\tb\nc\x1b]0;title\x07\r\u202ed\x9b31m"
    assert result.stdout.count(shown) == 6
    assert all(character.isprintable() for character in result.stdout.replace("\n", ""))
    assert len(result.stdout.splitlines()) == 17
    text = run(path, "--json").stdout
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert json.loads(text)["runs"][0]["sample_id"] == odd


def test_of_odd_files(shared_data: Path) -> None:
    """Each is shown as pod5 reads it, or named where pod5 cannot open it."""
    unreadable = set()
    paths = sorted((shared_data / "odd_pod5").glob("*.pod5"))
    assert len(paths) == 14
    for path in paths:
        try:
            expected = read_by_read([path])
        except RuntimeError:
            unreadable.add(path)
            result = run(path)
            assert result.exit_code == 3
            assert result.stderr.startswith(f"cannot read {path}: Type error: Schema missing field ")
            assert len(result.stderr.splitlines()) == 1
        else:
            assert_equal_to_read_by_read(runs_of(path), [path])
            result = run(path)
            assert len(result.stdout.splitlines()) == 17 * len(expected) + (len(expected) > 1)
        assert all(character.isprintable() for character in (result.stdout + result.stderr).replace("\n", ""))
    assert len(unreadable) == 3
    rest = [path for path in paths if path not in unreadable]
    assert_equal_to_read_by_read(runs_of(shared_data / "odd_pod5", code=3), rest)


# Help, in no time


@pytest.mark.parametrize("arguments", [["--help"], []], ids=str)
def test_nothing_heavy_is_loaded_for_help_and_wrong_usage(arguments: list[str]) -> None:
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))\n"
        "from porestream.cli.commands.info import info\n"
        f"info({arguments!r}, prog_name='porestream info')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stderr.splitlines()[-1] == "[]"


def test_torch_is_not_needed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a.pod5")
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from porestream.cli.commands.info import info\n"
        f"info([{str(path)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0
    assert done.stderr == "False\n"


def test_runs_that_share_an_id_are_shown_apart(shared_data: Path) -> None:
    """As `call` tells them apart: the read groups' names are here, and which model each would get."""
    cases = shared_data / "cases"
    result = CliRunner().invoke(main, ["info", str(cases / "nonuniq.pod5")])
    assert re.findall(r"^run (c{40})(?:-[0-9a-f]{8})?$", result.output, re.MULTILINE) == ["c" * 40] * 2
    assert re.findall(r"^  sample rate +(\d+) Hz$", result.output, re.MULTILINE) == ["5000", "4000"]
    files = [str(cases / name) for name in ("noid_a.pod5", "noid_r9.pod5")]
    shown = json.loads(CliRunner().invoke(main, ["info", "--json", *files]).output)["runs"]
    assert [(run["run_id"], run["sample_id"], run["reads"]) for run in shown] == [
        ("unknown", "A", 1),
        ("unknown", "C", 1),
    ]
    assert [bool(run["model"]) for run in shown] == [True, False]
