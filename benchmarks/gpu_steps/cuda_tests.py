"""tests/gpu, where pytest is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from gpu_steps.common import say

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    if importlib.util.find_spec("pytest") is None:
        say("tests/gpu", said="pytest is not here")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    say("tests/gpu", ok=done.returncode == 0, said=done.stdout.strip().splitlines()[-12:])


if __name__ == "__main__":
    main()
