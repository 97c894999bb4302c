"""Unpack the kit's wheels, those whose module is not here, into a folder that all later steps import from.

A wheel is a zip file laid out as what is imported, so that this needs neither pip nor permission to install anything.
"""

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from gpu_steps.common import arguments, say
from gpu_steps.packages import CARRIED

WHOLE = ("porestream.server.start.app", "porestream.cli.main", "pod5", "pysam", "mappy", "edlib")
"""What must then be importable, with whatever it imports itself."""


def is_here(module: str) -> bool:
    """Whether a module is found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def unpack(wheels: Path, site: Path) -> None:
    """Unpack what is missing."""
    site.mkdir(parents=True, exist_ok=True)
    found = {re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower(): wheel for wheel in wheels.glob("*.whl")}
    for name, module in CARRIED.items():
        if is_here(module):
            continue
        if name not in found:
            say(name, ok=False, said=f"not here, and no wheel in {wheels}")
            continue
        with zipfile.ZipFile(found[name]) as archive:
            archive.extractall(site)
        say(name, said=f"unpacked from {found[name].name}")


def main() -> None:
    options = arguments()
    unpack(options.kit / "wheels", options.work / "site")
    for module in WHOLE:
        command = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        say(f"import {module}", ok=done.returncode == 0, said=last if done.returncode else "works")


if __name__ == "__main__":
    main()
