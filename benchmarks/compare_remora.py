"""Check that Remora's own reader accepts our move tables: `python benchmarks/compare_remora.py [--data DIR]`.

Remora has its own environment, `.remora-venv`, which this script creates if needed; remora_side.py runs in it. The
script calls a simulated run at 5 kHz and one at 4 kHz, and with `--data` also the real sets. Prints Markdown. The exit
code is 1 if Remora refuses a record.

`--record` updates Remora's answers for the made-up tables in tests/client/remora_cases.json. CI, which has no Remora,
checks our records against those answers (tests/client/test_remora.py).
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from porestream.models.simulate.sequence import decode, random_bases

ROOT = Path(__file__).resolve().parent.parent
REMORA = "ont-remora==3.3.0"
CASES = ROOT / "tests/client/remora_cases.json"
V3 = "models/dna_r9.4.1_e8.1_fast@v3.4"
REAL = {
    "sarscov2_r941": ["--model", V3],
    "human_r941": ["--model", V3],
    "klebsiella_r94": ["--model", V3],
    "human_r1041_4khz": [],
}
"""Folders in `--data`, and the flags to call them with."""


def ensure_environment(folder: Path = ROOT / ".remora-venv") -> Path:
    """Return the Python of Remora's environment, creating it if needed."""
    python = folder / "bin/python"
    if not (folder / ".ready").exists():
        subprocess.run([os.environ.get("PYTHON", sys.executable), "-m", "venv", folder], check=True)
        torch = f"torch=={os.environ['TORCH_VERSION']}+cpu"
        index = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
        pip = [str(python), "-m", "pip", "install", "-q"]
        if subprocess.run([*pip, torch], stderr=subprocess.DEVNULL, check=False).returncode:
            subprocess.run([*pip, "--extra-index-url", index, torch], check=True)
        subprocess.run([*pip, REMORA], check=True)
        (folder / ".ready").touch()
    return python


def runs(folder: Path, data: Path | None) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield the name, POD5 and flags of each set."""
    reference = folder / "reference.fasta"
    reference.write_text(f">made_up\n{decode(random_bases(50_000, np.random.default_rng(3)))}\n")
    for rate_hz in (5000, 4000):
        run = folder / f"run_{rate_hz}.pod5"
        simulate = ["simulate", reference, "-o", run, "--reads", "60", "--sample-rate", str(rate_hz)]
        porestream(*simulate)
        yield f"simulated, {rate_hz} Hz", run, []
    if data is None:
        return
    for name, flags in REAL.items():
        yield name, data / name / "reads.pod5", [str(data / flag) if flag == V3 else flag for flag in flags]


def porestream(*arguments: object) -> None:
    """Run a porestream command."""
    command = [sys.executable, "-P", "-m", "porestream.cli.main", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def main() -> int:
    """Run the comparison described in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with real reads")
    parser.add_argument("--record", action="store_true", help="record Remora's answers for CI")
    arguments = parser.parse_args()
    python, side = ensure_environment(), Path(__file__).with_name("remora_side.py")
    if arguments.record:
        subprocess.run([python, side, "--cases", CASES], check=True)
    refused = 0
    data = arguments.data if arguments.data and arguments.data.is_dir() else None
    print(f"| reads ({REMORA}) | adapters | records | refused |\n| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, run, flags in runs(folder, data):
            for trim in ("trimmed", "left"):
                bam, result = folder / "calls.bam", folder / "result.json"
                trimming = ["--no-trim"] if trim == "left" else []
                porestream("call", run, *flags, *trimming, "--emit-moves", "-o", bam)
                subprocess.run([python, side, run, bam, result], check=True)
                verdicts = json.loads(result.read_text())
                reasons = collections.Counter(filter(None, verdicts.values()))
                refused += reasons.total()
                why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
                print(f"| {name} | {trim} | {len(verdicts)} | {reasons.total()}{why} |", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
