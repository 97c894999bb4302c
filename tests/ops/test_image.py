"""The image, as far as it can be tried without building it: its Dockerfile, and the wheel that it installs."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
from live import PORESTREAM, ROOT, free_port, wait_for

from porestream.server.settings import environment_names

TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {
    link.name: link.resolve().relative_to(ROOT) for link in (ROOT / "src/porestream").iterdir() if link.is_symlink()
}


def instructions() -> dict[str, list[tuple[str, str]]]:
    """Of each stage, without comments and with continued lines joined."""
    stages: dict[str, list[tuple[str, str]]] = {}
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = [("FROM", base)]
        else:
            stages[list(stages)[-1]].append((word, rest))
    return stages


STAGES = instructions()


def values(stage: str, word: str) -> list[str]:
    return [rest for found, rest in STAGES[stage] if found == word]


def environment(stage: str) -> dict[str, str]:
    pairs = (pair.partition("=") for rest in values(stage, "ENV") for pair in shlex.split(rest))
    return {name: value for name, _, value in pairs}


def tracked(*paths: str) -> list[Path]:
    """Files that git has, of what is at these paths: no caches, nothing that lies about."""
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, check=True, capture_output=True, text=True)
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_hadolint_finds_no_fault() -> None:
    made = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"],
        cwd=ROOT,  # its configuration is there
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_are_confined_and_labelled(target: str) -> None:
    assert values(target, "FROM") == ["runtime"]
    assert STAGES[target][-1] == ("USER", "10001:10001")
    assert f"COPY --from=build-{target} /opt/porestream /opt/porestream" in TEXT
    (labels,) = values(target, "LABEL")
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert ("NVIDIA_VISIBLE_DEVICES" in environment(target)) is (target == "gpu")


def test_cpu_is_what_is_built_without_a_target() -> None:
    assert list(STAGES)[-1] == "cpu"


def test_settings_are_the_servers() -> None:
    found = environment("runtime")
    settings = {name: value for name, value in found.items() if name.startswith("PORESTREAM_")}
    assert settings.keys() <= set(environment_names().values())
    ports = [settings[f"PORESTREAM_{name}"].rpartition(":")[2] for name in ("LISTEN", "HEALTH_LISTEN", "METRICS_PORT")]
    assert values("runtime", "EXPOSE") == [" ".join(ports)]
    (volumes,) = values("runtime", "VOLUME")
    assert json.loads(volumes) == ["/models", "/references", "/cache"]
    assert settings["PORESTREAM_CACHE_DIR"] == found["HOME"] == "/cache"


def test_programs_are_started_without_a_shell() -> None:
    """Else SIGTERM would meet the shell, and no stream would be drained."""
    (health,) = values("runtime", "HEALTHCHECK")
    for command in (*values("runtime", "ENTRYPOINT"), *values("runtime", "CMD"), health.partition(" CMD ")[2]):
        assert json.loads(command)
    assert values("runtime", "STOPSIGNAL") == ["SIGTERM"]


def test_every_version_is_the_locks() -> None:
    assert environment("build")["PIP_CONSTRAINT"] == "/build/requirements.lock"
    installs = re.findall(r"pip install ((?:[^&]|\n)*?)(?:&&|\n\S)", TEXT)
    assert len(installs) >= 6
    for each in installs:
        assert "requirements.lock" in each or "/wheels/*.whl" in each, each
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^torch==\S+$", lock, re.MULTILINE)
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"gpu12", "gpu13"} <= set(extras)
    # Nothing that is only for developing and testing is in an image.
    assert "[dev]" not in TEXT
    assert "-r dev.txt" not in TEXT


def copied() -> list[str]:
    """What the stages copy of the repository."""
    return [
        source
        for stage in STAGES
        for rest in values(stage, "COPY")
        if not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]


def test_what_is_copied_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    offered = {line[1:] for line in rules if line.startswith("!")}
    assert set(copied()) == offered
    for source in copied():
        assert tracked(source), source
    assert all(any(folder.is_relative_to(each) for each in copied()) for folder in PACKAGES.values())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel has, unpacked; built from what the Dockerfile copies, and nothing else."""
    folder = tmp_path_factory.mktemp("image")
    for path in tracked(*copied()):
        target = folder / "build" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_symlink():
            target.symlink_to((ROOT / path).readlink())
        else:
            target.write_bytes((ROOT / path).read_bytes())
    (command,) = [rest for rest in values("wheel", "RUN") if rest.startswith("pip wheel")]
    arguments = shlex.split(command.replace("/wheels", str(folder / "wheels")))[1:]
    subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=folder / "build", check=True, capture_output=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_every_file_of_the_packages(installed: Path) -> None:
    wanted = {Path("porestream", name) for name in ("__init__.py", "py.typed")}
    for package, folder in PACKAGES.items():
        wanted |= {Path("porestream", package) / path.relative_to(folder) for path in tracked(str(folder))}
    found = {path.relative_to(installed) for path in (installed / "porestream").rglob("*") if path.is_file()}
    # States of training are for those who train on, from a clone.
    missing = {path for path in wanted - found if "states" not in path.parts and path.suffix != ".md"}
    assert not missing
    assert not found - wanted


def test_what_is_installed_serves(installed: Path, tmp_path: Path) -> None:
    """From files that cannot be written, as in an image whose root file system is read-only."""
    health_port, metrics_port = free_port(), free_port()
    for path in sorted(installed.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    settings = {
        "PYTHONPATH": str(installed),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tmp_path),
        "PORESTREAM_CACHE_DIR": str(tmp_path / "cache"),
        "PORESTREAM_LISTEN": f"127.0.0.1:{free_port()}",
        "PORESTREAM_HEALTH_LISTEN": f"127.0.0.1:{health_port}",
        "PORESTREAM_METRICS_PORT": str(metrics_port),
        "PATH": os.environ["PATH"],
    }
    where = [sys.executable, "-c", "import porestream.server as s; print(s.__file__)"]
    printed = subprocess.run(where, env=settings, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert Path(printed.strip()).is_relative_to(installed)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*PORESTREAM, "serve"], env=settings, cwd=tmp_path, stdout=log, stderr=log)
    try:
        health = [*PORESTREAM, "health"]

        def is_ready() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            return subprocess.run(health, env=settings, cwd=tmp_path, capture_output=True, check=False).returncode == 0

        wait_for("the server", is_ready)
        assert b"</html>" in urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/", timeout=10).read()
    finally:
        server.terminate()
        assert server.wait(60) == 0, (tmp_path / "log").read_text()
