"""Servers in processes of their own, without the seconds that importing PyTorch takes: some are started often."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["porestream.cli.main", "porestream.cli.commands.serve", "porestream.server.start.app"])


def _run(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    from porestream.cli.main import main

    main(arguments)


def _start(log: Path, *arguments: object) -> BaseProcess:
    """`porestream` with these arguments, its output appended to `log`; a fork of a process that has imported it."""
    process = _context.Process(target=_run, args=([str(one) for one in arguments], str(log)), daemon=True)
    process.start()
    return process


def serving(*flags: object, **options: Any) -> subprocess.Popen[str]:
    """`porestream serve` as a user starts it, once it serves; what more it logs is to be read from its `stderr`."""
    command = [str(Path(sys.executable).with_name("porestream")), "serve", "--threads", "1", "--log-format", "json"]
    process = subprocess.Popen([*command, *map(str, flags)], stderr=subprocess.PIPE, text=True, **options)
    assert process.stderr is not None
    for line in process.stderr:
        if '"serving"' in line:
            break
    return process


class Server:
    """`porestream serve` on a Unix socket; it is killed in the end."""

    def __init__(self, folder: Path, *flags: object) -> None:
        self._socket, self._log = folder / "socket", folder / "log"
        self.address = f"unix:{self._socket}"
        self._arguments = ["serve", "--listen", self.address, *flags]
        self.process: BaseProcess

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self.process = _start(self._log, *self._arguments)
        deadline = time.monotonic() + 60
        while not self._socket.exists():
            assert self.process.is_alive(), self._log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def stop(self) -> int | None:
        """SIGTERM; returns the exit code, None if it goes on."""
        self.process.terminate()
        self.process.join(30)
        return self.process.exitcode

    def peak_bytes(self) -> int:
        """The most that it had in memory since its start, or since `reset_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match
        return int(match[1]) << 10

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
