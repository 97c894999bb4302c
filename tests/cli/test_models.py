"""`porestream models`, and how call and serve find the models folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from click.testing import CliRunner, Result

from porestream.cli.main import main
from porestream.models.files.bundle import load_bundle
from porestream.models.files.catalog import BUNDLED
from porestream.server.engine import Engine
from porestream.server.settings import Settings, SettingsError, load_settings

MakeBundle = Callable[..., Path]


class RunningServer(Protocol):
    """What `start_server` returns."""

    address: str
    engine: Engine


R1041 = "dna_r10.4.1_e8.2_400bps"
GOOD, OLD, BROKEN, MODIFIED = (
    f"{R1041}_hac@v5.0.0",
    "dna_r9.4.1_e8_fast@v3.4",
    f"{R1041}_hac@v4.3.0",
    f"{R1041}_hac@v5.0.0_5mCG_5hmCG@v3",
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither models nor settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("PORESTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PORESTREAM_CONFIG", "")  # so that what load_settings sets is undone
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_bundle: MakeBundle) -> Path:
    """Two models that run, one with a weight too few, one for modified bases, and what is no model."""
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder / GOOD, run_info__sample_rate=5000)
    make_bundle(folder / OLD, container="safetensors")
    make_bundle(folder / BROKEN, tensors={"9.linear.weight": None})
    (folder / MODIFIED).mkdir()
    (folder / MODIFIED / "config.toml").write_text("[model_params]\nsize = 128\n")
    (folder / "notes").mkdir()
    return folder


def models(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def rows_of(result: Result) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_each_model_is_a_row(folder: Path) -> None:
    result = models(folder)
    assert result.exit_code == 0
    assert result.stderr == ""
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["name", "molecule", "pore", "bases/s", "Hz", "network", "MB", "sha256", "runs"]
    assert [line.split()[0] for line in lines] == [OLD, BUNDLED.name, GOOD, MODIFIED, BROKEN]  # the newest first
    digest = load_bundle(folder / GOOD).sha256.hex()
    megabytes = sum(file.stat().st_size for file in (folder / GOOD).glob("*.tensor")) / 1e6
    assert lines[2].split() == [GOOD, "dna", "r10.4.1", "400", "5000", "lstm", f"{megabytes:.1f}", digest[:12], "yes"]
    assert lines[3].endswith("no: modified bases, not a basecaller")
    assert "no: missing tensors: 9.linear.weight" in lines[4]
    column = head.index("molecule")
    assert all(line[column - 2 : column] == "  " and line[column:].startswith("dna") for line in lines)


def test_json_has_whole_digests_and_reasons(folder: Path) -> None:
    rows = rows_of(models(folder, "--json"))
    assert rows[GOOD] == {
        "name": GOOD,
        "directory": str(folder / GOOD),
        "molecule": "dna",
        "pore": "r10.4.1",
        "bases_per_second": 400,
        "sample_rates_hz": [5000],
        "kind": "hac",
        "release": "5.0.0",
        "network": "lstm",
        "weights_bytes": sum(file.stat().st_size for file in (folder / GOOD).glob("*.tensor")),
        "sha256": load_bundle(folder / GOOD).sha256.hex(),
        "runs": True,
        "reason": None,
    }
    assert (rows[BROKEN]["runs"], rows[BROKEN]["sha256"]) == (False, None)
    assert rows[BROKEN]["reason"] == "missing tensors: 9.linear.weight"
    assert rows[MODIFIED]["reason"] == "modified bases, not a basecaller"
    assert rows[MODIFIED]["pore"] == "r10.4.1"


def test_without_digests_no_weights_are_read(folder: Path) -> None:
    lines = models(folder, "--no-digest").stdout.splitlines()
    assert lines[3].endswith("-       yes (weights not read)")
    assert lines[5].endswith("yes (weights not read)")  # the broken one
    rows = rows_of(models(folder, "--no-digest", "--json"))
    assert (rows[GOOD]["runs"], rows[GOOD]["sha256"]) == (True, None)


def test_one_model_directory_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(rows_of(models(folder / OLD, "--json"))) == [OLD]
    monkeypatch.chdir(folder / OLD)
    assert list(rows_of(models(".", "--json"))) == [OLD]


def test_broken_directories_are_rows_and_steer_no_terminal(tmp_path: Path, make_bundle: MakeBundle) -> None:
    make_bundle(tmp_path / "colour\x1b[31m\n@v1")
    for name, text in {"not_toml": "[", "no_text": "\xff", "empty": "", "no_weights": "", "no_zip": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_bytes(text.encode("latin-1"))
    for name in ("no_weights", "no_zip"):
        (tmp_path / name / "config.toml").write_text((tmp_path / "colour\x1b[31m\n@v1" / "config.toml").read_text())
    (tmp_path / "no_zip" / "0.conv.weight.tensor").write_bytes(b"no\x1b[0m")
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_folder" / "config.toml").mkdir()
    result = models(tmp_path)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert "colour\\x1b[31m\\n@v1 " in result.stdout
    rows = rows_of(models(tmp_path, "--json"))
    assert len(rows) == len(result.stdout.splitlines()) - 1 == 8
    for name in ("not_toml", "no_text", "empty", "no_weights", "no_zip", "a_folder"):
        assert not rows[name]["runs"], name
        assert rows[name]["reason"], name
        assert str(tmp_path) not in str(rows[name]["reason"]), name
    assert "no weights" in str(rows_of(models(tmp_path, "--json", "--no-digest"))["no_weights"]["reason"])


def test_a_folder_without_models_says_so(tmp_path: Path) -> None:
    result = models(tmp_path)
    assert result.exit_code == 0
    assert f"{tmp_path}: no models in it" in result.stderr
    assert "docs/use/models/directories.md" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["name", BUNDLED.name]
    result = models()  # nobody made the default folder yet
    assert result.exit_code == 0
    assert f"{tmp_path}/home/porestream/models: no such folder" in result.stderr


def test_a_folder_that_is_named_but_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["models", "gone"], ["call", "a.pod5", "--models-dir", "gone"], ["serve", "--models-dir", "gone"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, command
        assert "gone" in result.stderr
    monkeypatch.setenv("PORESTREAM_MODELS", str(tmp_path / "gone"))
    for command in (["models"], ["call", "a.pod5"], ["serve"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, command
        assert "gone" in result.stderr


def test_the_folder_may_be_in_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORESTREAM_MODELS", str(folder))
    assert GOOD in rows_of(models("--json", "--no-digest"))
    assert load_settings({}, None).models_dir == folder


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, variable, written = (tmp_path / name for name in ("flag", "variable", "written"))
    for directory in (flag, variable, written):
        directory.mkdir()
    for spelling in ("models", "models_dir", "models_directory"):
        config = tmp_path / f"{spelling}.toml"
        config.write_text(f"{spelling} = {json.dumps(str(written))}\n")
        monkeypatch.delenv("PORESTREAM_MODELS", raising=False)
        assert load_settings({}, config).models_dir == written
        monkeypatch.setenv("PORESTREAM_MODELS", str(variable))
        assert load_settings({}, config).models_dir == variable
        assert load_settings({"models_dir": flag}, config).models_dir == flag
    monkeypatch.setenv("PORESTREAM_MODELS", "")
    monkeypatch.setenv("PORESTREAM_CONFIG", "")
    assert load_settings({}, None).models_dir is None


def test_other_variables_are_refused_with_the_right_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORESTREAM_MODELS_DIR", "x")
    with pytest.raises(SettingsError, match=r"PORESTREAM_MODELS_DIR; did you mean PORESTREAM_MODELS\?"):
        load_settings({}, None)


@pytest.mark.parametrize("flag", ["--models-dir", "--models-directory"])
def test_serve_takes_both_spellings(flag: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    async def serve(settings: Settings, *_: object, **__: object) -> None:
        seen.append(settings)

    monkeypatch.setattr("porestream.server.start.app.serve", serve)
    monkeypatch.setattr("porestream.server.watch.logs.configure_logging", lambda *_, **__: ExitStack())
    assert CliRunner().invoke(main, ["serve", flag, str(folder), "--model", "hac"]).exit_code == 0
    assert (seen[0].models_dir, seen[0].model) == (folder, ["hac"])


def test_call_takes_a_kind_of_the_folder_and_says_which(
    folder: Path, tmp_path: Path, write_pod5: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = write_pod5(tmp_path / "run.pod5", [np.random.default_rng(1).normal(500, 60, 4000).astype(np.int16)])
    monkeypatch.setenv("PORESTREAM_MODELS", str(folder))
    output = tmp_path / "calls.sam"
    arguments = ["call", str(reads), "-o", str(output), "-t", "1"]
    called = CliRunner().invoke(main, [*arguments, "--model", "fast"])
    assert called.exit_code == 0, called.output
    assert f"model: {folder / OLD}" in called.stderr
    assert f"_{OLD}\t" in output.read_text()  # its read group
    output.unlink()
    refused = CliRunner().invoke(main, [*arguments, "--model", "hac"])
    assert refused.exit_code == 1
    assert "no hac model for R9.4.1 DNA (450 bases/s) at 4 kHz" in refused.stderr
    assert f"{GOOD} is for R10.4.1 DNA" in refused.stderr
    assert not output.exists()


def test_a_server_of_a_kind_has_one_model_a_chemistry(
    folder: Path, start_server: Callable[..., RunningServer], make_bundle: MakeBundle
) -> None:
    slow = make_bundle(folder.parent / "slow" / f"{R1041}_hac@v4.1.0")
    for name in (GOOD, f"{R1041}_hac@v4.2.0"):
        make_bundle(slow.parent / name, run_info__sample_rate=5000)
    server = start_server(model=["hac"], models_dir=slow.parent)
    assert list(server.engine.basecallers) == [GOOD, slow.name]


def test_help_teaches_without_loading_torch() -> None:
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules]))\n"
        "from porestream.cli.main import main\n"
        "main(['models', '--help'], prog_name='porestream')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    text = " ".join(done.stdout.split())
    for said in ("--models-dir DIR", "$PORESTREAM_MODELS", "fast, hac or sup", "--no-digest", "--json"):
        assert said in text


def test_call_finds_the_model_for_its_run_among_a_servers(
    folder: Path, tmp_path: Path, write_pod5: Callable[..., Path], start_server: Callable[..., RunningServer]
) -> None:
    reads = write_pod5(tmp_path / "run.pod5", [np.random.default_rng(1).normal(500, 60, 4000).astype(np.int16)])
    server = start_server(model=[folder / GOOD, folder / OLD])
    output = tmp_path / "calls.sam"
    arguments = ["call", str(reads), "-o", str(output), "--server", server.address]
    for kind in ([], ["--model", "fast"], ["--model", "fast@v3.4"]):
        called = CliRunner().invoke(main, [*arguments, *kind])
        assert called.exit_code == 0, called.output
        assert f"_{OLD}\t" in output.read_text()
        output.unlink()
    refused = CliRunner().invoke(main, [*arguments, "--model", "hac"])
    assert refused.exit_code == 1
    assert "no hac model for R9.4.1 DNA (450 bases/s) at 4 kHz on " in refused.stderr
    assert f"it has: {GOOD}, {OLD}" in refused.stderr
    assert not output.exists()
