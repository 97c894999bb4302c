"""benchmarks/gpu_check.py where there is no card: what it refuses, and the same steps with the CPU."""

import re
from pathlib import Path

import gpu_check
import numpy as np
import pytest
import torch


def test_without_a_card_it_says_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "report.md"
    assert gpu_check.main(["--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("device cuda: PyTorch ")
    assert "On a GPU this runs tests/gpu, compares the kernels with the emulator and the bases of real" in said
    assert not output.exists()


def test_on_the_cpu_it_goes_the_same_way(tmp_path: Path, simulated_run: Path) -> None:
    output = tmp_path / "report.md"
    run = ["--run", str(simulated_run / "run_35.pod5"), "--data", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert gpu_check.main(["--device", "cpu", "--quick", "--threads", "2", "--output", str(output), *run]) == 0
    finally:
        torch.set_num_threads(threads)
    report = output.read_text()
    assert "The results are the same." in report
    assert re.search(r"\| extend, band 500 \| \d+\.\d{3} \| GCUPS in band \|", report)
    assert re.search(r"\| simulated \| 1 \| \d,\d{3} \| (9\d|100)\.\d{3}% \| \d of 1 \|", report)
    for shape in (name for name in gpu_check.SHAPES if name.startswith("tiny")):
        assert re.search(rf"\| {shape} \| 16 \| 1,\d+ \| \d+\.\d\d \| \d+\.\d\d \|", report), shape


def test_agreement_is_of_the_longer_sequence() -> None:
    rng = np.random.default_rng(1)
    bases = "".join(rng.choice([*"ACGT"], 1000))
    assert gpu_check.agreement(bases, bases) == 1.0
    assert gpu_check.agreement(bases, bases[:500]) == pytest.approx(0.5, abs=0.02)
    assert gpu_check.agreement(bases, bases[:500] + "A" + bases[501:]) >= 0.999
    assert gpu_check.agreement(bases, "".join(rng.choice([*"ACGT"], 1000))) < 0.1
    assert gpu_check.agreement("", bases) == 0.0
