"""The distribution holds what the tree holds, and the stubs are the contract's."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("server", "kernels", "models", "client", "cli")


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "porestream." + ".".join(init.parent.relative_to(ROOT).parts)
        for top in FOLDERS
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found | {"porestream.v1", "porestream.emulator"}


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
    for name in (*FOLDERS, "proto", "tests/emulator"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    expected = {f"porestream/{file.relative_to(ROOT)}" for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert expected <= names
    assert {"porestream/v1/porestream.proto", "porestream/v1/porestream_pb2.pyi", "porestream/client/py.typed"} <= names
    model = "porestream/models/data/porestream_dna_r10.4.1_400bps_fast@v1"
    assert {f"{model}/{file}" for file in ("config.toml", "model.safetensors", "README.md")} <= names
    assert "porestream/models/simulate/r10.4.1_400bps.npz" in names
    kernels = {file.name for file in (ROOT / "kernels").iterdir() if file.suffix in (".cu", ".cuh")}
    assert kernels >= {"crf.cu", "dual_affine.cuh"}
    assert {f"porestream/kernels/{file}" for file in kernels} <= names
    assert {f"porestream/emulator/{file}" for file in ("emu.h", "emulator.py", "sanitize.py")} <= names
    assert not [name for name in names if name.endswith(".pt")]  # the training's state is not for users
    assert not [name for name in names if not name.startswith("porestream")]


def test_the_runtime_does_not_need_grpcio_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [
        name for name in project["dependencies"] if name.startswith(("grpcio-tools", "cupy", "ray", "nvidia", "cuda"))
    ]
