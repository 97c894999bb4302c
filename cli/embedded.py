"""Run a private server for one command, as a process on a Unix socket in a folder that only this user can enter."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import click
import structlog

from porestream.server.address import short_folder

log = structlog.get_logger()

_MAX_RESTARTS = 3
_STOP_TIMEOUT_S = 10.0


@asynccontextmanager
async def embedded_server(flags: Sequence[str]) -> AsyncIterator[str]:
    """Start `porestream serve` with these flags; yield its address once it serves, and stop it at the end.

    If it dies, restart it, at most three times (the client sends its reads again). The server watches its standard
    input, so it ends with this process, however that ends.

    Raises
    ------
    click.ClickException
        The server does not start, with its message; or it keeps dying.
    """
    with tempfile.TemporaryDirectory(prefix="porestream-", dir=short_folder()) as folder:
        socket = Path(folder) / "socket"
        log_file = Path(folder) / "log"
        command = [
            sys.executable,
            "-P",  # keeps Python from importing modules from the working folder
            "-m",
            "porestream.cli.main",
            "serve",
            "--until-stdin-closes",
            "--listen",
            f"unix:{socket}",
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PORESTREAM_")}

        async def start() -> asyncio.subprocess.Process:
            with log_file.open("ab") as sink:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *flags,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=sink,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which stops the server when it is done
                )
            assert process.stdout is not None
            if not await process.stdout.readline():
                await process.wait()
                raise click.ClickException(_last_words(log_file))
            return process

        process = await start()

        main = asyncio.current_task()
        failure: click.ClickException | None = None

        async def supervise() -> None:
            nonlocal process, failure
            for _ in range(_MAX_RESTARTS):
                code = await process.wait()
                log.warning("the embedded server died, restarting it", exit_code=code)
                socket.unlink(missing_ok=True)
                try:
                    process = await start()
                except click.ClickException as error:
                    failure = error
                    break
            else:
                code = await process.wait()
                failure = click.ClickException(f"the embedded server keeps dying, last with exit code {code}")
            if main is not None:
                main.cancel()

        supervisor = asyncio.create_task(supervise())
        try:
            yield f"unix:{socket}"
        except asyncio.CancelledError:
            if failure:
                raise failure from None
            raise
        finally:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _last_words(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").strip().splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else "the embedded server did not start:\n" + "\n".join(lines[-15:])
