"""benchmarks/gpu_kit.py and gpu_first.py, rehearsed with the CPU and the emulator in the GPU's place."""

import argparse
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import gpu_first
import gpu_kit
import numpy as np
import pytest
from gpu_first import Step, read_report, run_step, table
from gpu_steps.calls import looped
from gpu_steps.packages import CARRIED
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "kit"
    command = [sys.executable, str(BENCHMARKS / "gpu_kit.py"), str(folder), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def rehearse(kit: Path, folder: Path, steps: str) -> tuple[int, list[gpu_first.Fact], str]:
    report = folder / "report.jsonl"
    command = [sys.executable, str(BENCHMARKS / "gpu_first.py"), "--kit", str(kit), "--device", "emulated", "--small"]
    command += ["--report", str(report), "--only", steps, "--patience", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, cwd=folder)
    return done.returncode, [*read_report(report)], done.stdout + done.stderr


def test_every_step_finds_all_well(kit: Path, tmp_path: Path) -> None:
    steps = [step.name for step in gpu_first.STEPS if step.name != "probe"]
    code, facts, said = rehearse(kit, tmp_path, ",".join(steps))
    assert code == 0, said
    assert [fact["step"] for fact in facts if fact["what"] == "done"] == steps
    found = {(fact["step"], fact["what"]): fact for fact in facts}
    assert found["kernels", "transformer, SwiGLU"]["said"] == "as expected"
    assert found["networks", "tiny v6, graph with our kernels"]["ok"]
    assert found["networks", "tiny v4.3, served"]["bases_agree"] > 0.99
    assert found["networks", "tiny v4.3, served"]["rows"] == 16
    assert found["aligner", "map-ont, records"]["same"] > 0.99
    assert 0 < found["calls", "tiny v4.3, 2 workers"]["rows_filled"] <= 1
    assert found["bases", "simulated"]["agreement"] > 0.99
    assert "0 of " in (tmp_path / "report.md").read_text()


def test_what_differs_from_the_kit_is_named(kit: Path, tmp_path: Path) -> None:
    """As it would if this machine computed something else."""
    path = next((kit / "kernels").glob("transformer-norm*"))
    right = path.read_bytes()
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file}
        arrays["out 0"][0, 0, :3] += np.float16(1)
        np.savez_compressed(path, **arrays)
        code, facts, _ = rehearse(kit, tmp_path, "kernels")
    finally:
        path.write_bytes(right)
    assert code == 1
    (bad,) = [fact for fact in facts if fact.get("ok") is False]
    assert bad["what"] == "transformer, norm"
    assert bad["said"].startswith("array 0: 3 of ")


@pytest.fixture
def odd_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps that crash, hang with a child of their own, print what is no JSON, and one that is well."""
    package = tmp_path / "odd_steps"
    package.mkdir()
    started = "from gpu_steps.common import say\nimport os, signal, subprocess, sys, time\nsay('begun')\n"
    for name, text in {
        "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
        "raises": "raise MemoryError('of the GPU')",
        "hangs": "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)",
        "chats": "print('a library says hello')\nprint('[1]')\nprint('{}')\n"
        "say('odd', ok='no')\nsys.stdout.buffer.write(b'\\xff\\n')",
        "works": "say('one', ok=True, figure=3)",
    }.items():
        (package / f"{name}.py").write_text(f"{started}{text}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_nothing_that_a_step_does_stops_the_next(odd_steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = odd_steps / "report.jsonl"
    options = argparse.Namespace(kit=odd_steps, work=odd_steps, device="emulated", data=None, small=True, patience=1.0)
    with path.open("w") as report:
        well = {
            name: run_step(Step(name, limit_s, "odd_steps"), options, report)
            for name, limit_s in (("crashes", 60), ("raises", 60), ("hangs", 3), ("chats", 60), ("works", 60))
        }
        last = {fact["step"]: fact for fact in read_report(path)}  # there, although the file is still open
    assert well == {"crashes": False, "raises": False, "hangs": False, "chats": True, "works": True}
    assert (last["crashes"]["what"], last["crashes"]["said"]) == ("crashed", "ended by SIGSEGV")
    assert last["raises"]["said"] == "exit code 1"
    assert last["raises"]["stderr"][-1] == "MemoryError: of the GPU"
    assert (last["hangs"]["what"], last["hangs"]["said"]) == ("stopped", "it took longer than 3 s")
    facts = [*read_report(path)]
    assert [fact["what"] for fact in facts].count("begun") == 5
    assert {"a library says hello"} <= {str(fact.get("said")) for fact in facts if fact["step"] == "chats"}
    assert "BAD crashes" in capsys.readouterr().out
    text = table(facts)
    assert text.startswith("3 of 4 checks are not as they should be.")
    assert "| works | one | yes | figure 3 |" in text


def test_a_report_that_was_cut_off_has_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.jsonl"
    path.write_text(json.dumps({"step": "probe", "at_s": 1.0, "what": "a|b", "said": ["x", "y"]}) + '\n{"step": "ker')
    assert gpu_first.main(["--table", str(path)]) == 0
    assert "| probe | a\\|b |  | said x; y |" in capsys.readouterr().out


def test_without_a_kit_it_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_first.main(["--kit", str(tmp_path)]) == 2
    assert "`make gpu-kit`" in capsys.readouterr().err


def test_a_folder_that_is_no_kit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    (tmp_path / "README.txt").write_text("of the thesis")
    monkeypatch.setattr(sys, "argv", ["gpu_kit.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not empty and is not a kit"):
        gpu_kit.main()
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_all_that_the_package_requires_is_assumed_or_carried() -> None:
    """But what comes with an assumed package, and what pod5 requires only for other formats and its tables."""
    assumed = {"torch", "numpy", "pyarrow", "numba", "llvmlite", "grpcio", "protobuf"}
    not_imported = {"polars", "h5py", "vbz-h5py-plugin"}
    required, waiting = set(), {"porestream"}
    while waiting:
        name = waiting.pop()
        required.add(name)
        needs = [Requirement(text) for text in metadata.requires(name) or []]
        found = {
            canonicalize_name(one.name) for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})
        }
        waiting |= found - required - assumed - not_imported
    assert required == {canonicalize_name(name) for name in CARRIED}


def test_a_looped_run_has_new_ids(kit: Path, tmp_path: Path) -> None:
    import pod5

    samples = looped(kit / "run.pod5", tmp_path / "run.pod5", 300_000)
    with pod5.Reader(tmp_path / "run.pod5") as reader:
        reads = [*reader.reads()]
        assert sum(read.num_samples for read in reads) == samples >= 300_000
    assert len({read.read_id for read in reads}) == len(reads)
