"""The distribution holds what the tree holds, and the stubs are the contract's."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("server", "kernels", "models", "client", "cli")


def test_every_folder_of_code_is_a_package() -> None:
    """One without an __init__.py would be found in a clone, and be missing from the wheel."""
    folders = {file.parent for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_packages_are_links_to_the_folders() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "src/porestream").iterdir() if path.is_symlink()}
    assert links == {name: ROOT / name for name in FOLDERS} | {"v1": ROOT / "proto/porestream/v1"}


def test_stubs_are_current(tmp_path: Path) -> None:
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, "porestream/v1/porestream.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    fresh = sorted((tmp_path / "porestream/v1").iterdir())
    assert len(fresh) == 3
    for file in fresh:
        assert file.read_text() == (ROOT / "proto/porestream/v1" / file.name).read_text(), f"make stubs: {file.name}"


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (*FOLDERS, "proto", "src"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    # The wheel is built from the source distribution, where the links have become folders.
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    expected = {f"porestream/{file.relative_to(ROOT)}" for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert expected <= names
    assert {"porestream/v1/porestream.proto", "porestream/v1/porestream_pb2.pyi", "porestream/client/py.typed"} <= names
    model = "porestream/models/data/porestream_dna_r10.4.1_400bps_fast@v1"
    assert {f"{model}/{file}" for file in ("config.toml", "model.safetensors", "README.md")} <= names
    assert "porestream/models/simulate/r10.4.1_400bps.npz" in names
    kernels = {str(file.relative_to(ROOT)) for file in (ROOT / "kernels").rglob("*.cu*")}
    assert kernels >= {"kernels/decode/crf.cu", "kernels/decode/numbers.cuh", "kernels/align/dual_affine.cuh"}
    assert {f"porestream/{file}" for file in kernels} <= names
    assert {f"porestream/kernels/emulator/{file}" for file in ("emu.h", "emulator.py", "sanitize.py")} <= names
    assert not [name for name in names if name.endswith(".pt")]  # the training's state is not for users
    assert not [name for name in names if not name.startswith("porestream")]


def test_the_runtime_does_not_need_grpcio_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [
        name for name in project["dependencies"] if name.startswith(("grpcio-tools", "cupy", "ray", "nvidia", "cuda"))
    ]
