"""The README's example runs as it stands there, and its client is well-behaved when the loop is left early."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from porestream.client import Pod5Source, ServerRefused, SignalRead, StreamOptions, SyncBasecallClient

README = Path(__file__).resolve().parents[2] / "README.md"
ADDRESS, FILE = "localhost:50051", "run.pod5"


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory, write_pod5: Callable[..., Path]) -> Path:
    generator = np.random.default_rng(4)
    signals = [generator.normal(500, 60, length).astype(np.int16) for length in (4000, 6000, 0, 5000)]
    return write_pod5(tmp_path_factory.mktemp("reads") / "four.pod5", signals)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]) -> Iterator[str]:
    """A server with one model and the reference ref.fasta."""
    folder = tmp_path_factory.mktemp("server")
    bases = "".join(np.random.default_rng(5).choice(list("ACGT"), 5000))
    (folder / "ref.fasta").write_text(f">chr1\n{bases}\n")
    listen = f"unix:{folder / 'socket'}"
    command = [sys.executable, "-m", "porestream.cli.main", "serve", "--listen", listen, "-t", "1"]
    command += ["--model", str(make_bundle(folder / "tiny@v3")), "--reference", str(folder / "ref.fasta")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            deadline_s = time.monotonic() + 60
            while not (folder / "socket").exists():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline_s, "the server does not start"
                time.sleep(0.05)
            yield listen
        finally:
            process.kill()
            process.wait()


def first_python_block(markdown: str) -> str | None:
    match = re.search(r"^```python\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    return match[1] if match else None


def test_the_example_of_the_readme_runs(address: str, reads: Path, tmp_path: Path) -> None:
    block = first_python_block(README.read_text()) if README.is_file() else None
    if block is None:
        pytest.fail("README.md has no ```python block: it must begin with an example of the client library")
    for needed in (f'SyncBasecallClient("{ADDRESS}"', "Pod5Source", f'"{FILE}"'):
        assert needed in block, f"the first ```python block of README.md has no {needed}"
    assert len(block.splitlines()) <= 20, "the example should stay short"
    script = tmp_path / "example.py"
    script.write_text(block.replace(ADDRESS, address).replace(FILE, str(reads)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for number in (1, 2, 3, 4):
        name = f"00000000-0000-0000-0000-{number:012}"
        assert sum(name in line for line in lines) == 1, f"no line, or several, for read {name}:\n{done.stdout}"


def test_each_read_is_delivered_once(address: str, reads: Path) -> None:
    with SyncBasecallClient(address, StreamOptions(reference="ref.fasta")) as client:
        assert list(client.server_info().models) == ["tiny@v3"]
        for _ in range(2):  # a client can be used again
            found = [result.info.read_id.int for result in client.call(Pod5Source([reads]))]
            assert sorted(found) == [1, 2, 3, 4]
        assert list(client.call([])) == []


@pytest.mark.parametrize("how", ["break", "exception", "kept"])
def test_a_loop_that_is_left_early(address: str, reads: Path, how: str) -> None:
    with SyncBasecallClient(address) as client:
        results = client.call(Pod5Source([reads]))
        first = next(results)
        if how == "break":
            for _ in client.call(Pod5Source([reads])):
                break
        elif how == "exception":
            with pytest.raises(ZeroDivisionError):
                [1 / 0 for _ in client.call(Pod5Source([reads]))]
        if how != "kept":
            results.close()
    assert first.info.read_id.int in (1, 2, 3, 4)
    if how == "kept":
        with pytest.raises(RuntimeError, match="only inside its `with`"):
            next(results)


def test_ctrl_c_ends_the_loop_with_nothing_else(address: str, reads: Path) -> None:
    let_go = threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it

    def slow() -> Iterator[SignalRead]:
        yield next(iter(Pod5Source([reads])))
        threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        let_go.wait(10)

    with SyncBasecallClient(address) as client:
        with pytest.raises(KeyboardInterrupt):
            list(client.call(slow()))
        let_go.set()
        assert len(list(client.call(Pod5Source([reads])))) == 4


def test_outside_its_with_the_client_says_so(reads: Path) -> None:
    client = SyncBasecallClient("localhost:1")
    with pytest.raises(RuntimeError, match="only inside its `with`"):
        client.server_info()
    with pytest.raises(RuntimeError, match="only inside its `with`"):
        list(client.call(Pod5Source([reads])))


def test_a_refusal_is_an_exception_in_the_loop(address: str, reads: Path) -> None:
    with SyncBasecallClient(address, StreamOptions(model="none")) as client:
        with pytest.raises(ServerRefused, match="this server has no model 'none'; choose from tiny@v3"):
            list(client.call(Pod5Source([reads])))
        assert client.server_info().device == "cpu"
