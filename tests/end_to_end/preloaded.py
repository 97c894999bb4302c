"""`porestream` in processes of its own, without what Python takes to import PyTorch: servers that are started often."""

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["porestream.cli.main", "porestream.cli.serve", "porestream.server.app"])


def _run(arguments: list[str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    from porestream.cli.main import main

    main(arguments)


def start(log: Path, *arguments: object) -> BaseProcess:
    """`porestream` with these arguments, its output appended to `log`; a fork of a process that has imported it."""
    process = _context.Process(target=_run, args=([str(one) for one in arguments], str(log)), daemon=True)
    process.start()
    return process
