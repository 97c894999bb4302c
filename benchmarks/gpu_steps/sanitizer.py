"""compute-sanitizer's memcheck on small cases of the largest kernels; then, if there is time, its other tools."""

import shutil
import subprocess
import sys

from gpu_steps.common import arguments, say

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def main() -> None:
    options = arguments()
    program = shutil.which("compute-sanitizer")
    if program is None:
        say("compute-sanitizer", said="not on this machine")
        return
    check = [sys.executable, "-m", "kernel_check", "--device", options.device, "--small"]
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", "99", *check]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        words = (done.stdout + done.stderr).strip().splitlines()
        say(tool, ok=done.returncode == 0, said=words[-1] if done.returncode == 0 else words[-15:])


if __name__ == "__main__":
    main()
