"""Code of earlier processes is run only where nobody else can have put it."""

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from porestream.models import private_folder
from porestream.models.call.compiled import compile_cached, compile_kept
from porestream.models.private_folder import (
    UnsafeCacheError,
    default_cache_dir,
    private_cache_dir,
    private_subfolder,
)

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
SOMEBODY = 12345


def twice(x: int) -> int:
    return 2 * x


def compile_in(cache: Path) -> Callable[..., Any]:
    return compile_cached(twice, "i8(i8)", cache)


class Evil:
    """Run when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder that others can write to, with code by somebody else where numba looks for it."""
    compile_in(tmp_path / "honest")
    (index,) = (tmp_path / "honest").rglob("*.nbi")
    cache = tmp_path / "cache"
    for folder in (cache / index.parent.name, cache / "numba" / index.parent.name):
        folder.mkdir(parents=True)
        (folder / index.name).write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    for folder in (cache, *(found for found in cache.rglob("*") if found.is_dir())):
        folder.chmod(0o777)
    return cache


@pytest.fixture(autouse=True)
def marker(tmp_path: Path) -> Iterator[Path]:
    """Is there when somebody else's code has run."""
    yield tmp_path / "evil"
    assert not (tmp_path / "evil").exists()


def test_a_folder_that_others_can_write_to_is_not_trusted(cache: Path) -> None:
    assert compile_in(cache)(21) == 42
    own = cache / f"user-{os.geteuid()}"
    assert stat.S_IMODE(own.stat().st_mode) & 0o077 == 0
    assert list((own / "numba").rglob("*.nbc"))
    private = private_cache_dir(cache)
    assert private.samefile(own)
    own.rename(cache / "elsewhere")  # as others can do there
    (cache / own.name).mkdir()
    assert private.samefile(cache / "elsewhere")


def test_a_folder_of_kubernetes(cache: Path) -> None:
    cache.chmod(0o2777)
    assert compile_in(cache)(21) == 42
    assert compile_in(private_cache_dir(cache))(21) == 42


@AS_ROOT
def test_a_folder_of_another_user_is_refused(cache: Path) -> None:
    for mode in (0o777, 0o755):
        cache.chmod(mode)
        os.chown(cache, SOMEBODY, SOMEBODY)
        for refused in (compile_in, private_cache_dir):
            with pytest.raises(
                UnsafeCacheError, match=rf"{cache} belongs to user {SOMEBODY} \(mode 07[57][57]\).* --cache-dir"
            ):
                refused(cache)


@AS_ROOT
def test_a_folder_that_somebody_made_in_our_name_is_refused(cache: Path) -> None:
    own = cache / f"user-{os.geteuid()}"
    own.mkdir()
    os.chown(own, SOMEBODY, SOMEBODY)
    for refused in (compile_in, private_cache_dir):
        with pytest.raises(UnsafeCacheError, match=rf"{own} belongs to user {SOMEBODY}"):
            refused(cache)


def test_what_was_planted_where_our_folder_should_be_is_refused(cache: Path, tmp_path: Path) -> None:
    own = cache / f"user-{os.geteuid()}"
    own.symlink_to(tmp_path / "honest")
    with pytest.raises(UnsafeCacheError, match=rf"{own} is a link or a file"):
        compile_in(cache)
    own.unlink()
    own.mkdir()
    own.chmod(0o755)
    with pytest.raises(UnsafeCacheError, match=rf"{own} is accessible to other users"):
        compile_in(cache)


def test_folders_in_an_own_folder_are_looked_at_too(cache: Path) -> None:
    """The folder was made writable by all, and put right when it was too late."""
    cache.chmod(0o755)
    with pytest.raises(UnsafeCacheError, match=rf"{cache}/numba is accessible to other users"):
        compile_in(cache)


def test_an_own_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = private_cache_dir(tmp_path / "a" / "b")
    assert made.samefile(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "a" / "b").chmod(0o755)
    assert private_cache_dir(tmp_path / "a" / "b").samefile(tmp_path / "a" / "b")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    compile_cached(twice, "i8(i8)")
    assert stat.S_IMODE((tmp_path / "xdg" / "porestream").stat().st_mode) == 0o700
    assert list((default_cache_dir() / "numba").rglob("*.nbc"))


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "nothing"])
def test_the_trainings_code_is_kept_where_the_decoders_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Not beside the source, nor where the environment says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(cache) if variable == "NUMBA_CACHE_DIR" else "")
    before = numba.config.CACHE_DIR
    assert compile_kept(twice, nogil=True)(21) == 42
    assert before == numba.config.CACHE_DIR
    assert len(list((tmp_path / "xdg/porestream/numba").rglob("*.nbc"))) == 1
    (tmp_path / "xdg/porestream/numba").chmod(0o755)
    with pytest.raises(UnsafeCacheError, match=r"numba is accessible to other users \(mode 0755\)"):
        compile_kept(twice)


def test_a_folder_for_one_kind_of_code(cache: Path, tmp_path: Path) -> None:
    own = private_subfolder(cache, "cupy")
    assert own is not None
    assert own.samefile(cache / f"user-{os.geteuid()}" / "cupy")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    own.chmod(0o770)
    with pytest.raises(UnsafeCacheError, match=r"cupy is accessible to other users \(mode 0770\).* the way out"):
        private_subfolder(cache, "cupy", "the way out")
    (tmp_path / "file").touch()
    assert private_subfolder(tmp_path / "file" / "cache", "cupy") is None


def test_a_path_is_a_name_where_nobody_else_can_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_folder, "_others_may_rename_in", lambda folder: folder == tmp_path)
    assert private_cache_dir(tmp_path) == tmp_path
    assert str(private_cache_dir(tmp_path / "below")).startswith("/proc/self/fd/")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert private_cache_dir(tmp_path / "file" / "cache") == tmp_path / "file" / "cache"
    before = numba.config.CACHE_DIR
    assert compile_in(tmp_path / "file" / "cache")(21) == 42
    assert before == numba.config.CACHE_DIR


def test_the_server_says_so(cache: Path) -> None:
    (cache / f"user-{os.geteuid()}").symlink_to(cache)
    command = [
        sys.executable,
        "-m",
        "porestream.cli.main",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--cache-dir",
        str(cache),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 1
    assert f"Error: {cache}/user-{os.geteuid()} is a link or a file" in found.stderr
    assert "Traceback" not in found.stderr
