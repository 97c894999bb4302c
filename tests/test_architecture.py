"""ARCHITECTURE.md names every file of the road, once, and no file that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROAD = TEXT[TEXT.index("## The road of a read") : TEXT.index("`porestream call` (")]
FOLDERS = (
    "client",
    "client/sources",
    "client/outputs",
    "server/edge",
    "server/streams",
    "server/calling",
    "models/call",
    "kernels/align",
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_road_names_each_file(folder: str) -> None:
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    named = re.findall(r"`(?:[\w/]*/)?(\w+\.py)`", ROAD)
    assert files <= set(named), f"not in ARCHITECTURE.md: {sorted(files - set(named))}"


def test_the_files_are_there() -> None:
    for path in re.findall(r"`((?:client|server|models|kernels|cli)/[\w/]+\.py)`", TEXT):
        assert (ROOT / path).is_file(), path
    every = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert set(re.findall(r"`(\w+\.py)`", TEXT)) <= every


@pytest.mark.parametrize("program", ["road.py", "imports.py"])
def test_the_pictures_are_up_to_date(program: str) -> None:
    drawn = subprocess.run([sys.executable, ROOT / "docs/images" / program, "--check"], check=False)
    assert drawn.returncode == 0, "make docs"
