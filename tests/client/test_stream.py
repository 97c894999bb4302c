"""The client's streams against servers that go away, die, and come back, and consumers that dawdle."""

import asyncio
import threading
import time
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from porestream.client.client import BasecallClient
from porestream.client.reads import ReadInfo, ReadResult, ReadStatus, RunInfo, SignalRead
from porestream.client.stream import StreamOptions
from porestream.server.app import build_engine, build_server
from porestream.server.settings import Settings


class Server:
    """A server on a thread of its own, on a given Unix socket."""

    def __init__(self, model: Path, socket: Path) -> None:
        self.address = f"unix:{socket}"
        self._settings = Settings(model=[model], listen=self.address, threads=1)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    async def _run(self) -> None:
        self.engine = build_engine(self._settings)
        server, self.service, _, _ = build_server(self.engine, self._settings.listen)
        await server.start()
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stop.wait()
        await self.service.drain(5.0)
        await server.stop(0)
        await asyncio.to_thread(self.engine.pipeline.close)

    def leave(self) -> None:
        """Drain, as on SIGTERM."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(20)


@pytest.fixture
def model(make_bundle, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    folder: Path = make_bundle(tmp_path / "tiny_fast@v1")
    return folder


def reads(count: int, runs: int = 1, samples: int = 3000) -> list[SignalRead]:
    rng = np.random.default_rng(count)
    return [
        SignalRead(
            ReadInfo(UUID(int=number), RunInfo(f"run-{number % runs}", 4000), 10.0, 0.2),
            rng.integers(300, 700, samples).astype(np.int16),
        )
        for number in range(count)
    ]


def check(results: list[ReadResult], count: int) -> None:
    assert sorted(result.info.read_id.int for result in results) == list(range(count))
    assert {result.status for result in results} == {ReadStatus.CALLED}


def test_a_drained_server_hands_over_to_the_next(model: Path, tmp_path: Path) -> None:
    first = Server(model, tmp_path / "socket")
    servers = [first]

    async def call() -> list[ReadResult]:
        client = BasecallClient(first.address, StreamOptions(window_samples=30_000, heartbeat_s=1.0))
        results = []
        async for result in client.call(reads(60)):
            results.append(result)
            if len(results) == 20:
                first.leave()
                await asyncio.to_thread(first.join)
                servers.append(await asyncio.to_thread(Server, model, tmp_path / "socket"))
        assert client.reconnects
        return results

    check(asyncio.run(call()), 60)
    assert all(server.engine.ledger.server.open == 0 for server in servers)
    assert servers[1].engine.ledger.server.called >= 30
    servers[1].leave()


def test_a_server_that_leaves_after_the_last_result_is_not_missed(model: Path, tmp_path: Path) -> None:
    """All is called and stored before the server's last word comes: no other server is needed."""
    server = Server(model, tmp_path / "socket")

    async def call() -> list[ReadResult]:
        client = BasecallClient(server.address, StreamOptions(heartbeat_s=1.0, give_up_s=5.0))
        results = []
        async for result in client.call(reads(10)):
            results.append(result)
            if len(results) == 10:
                server.leave()
                await asyncio.sleep(0.3)
        return results

    began = time.monotonic()
    check(asyncio.run(call()), 10)
    assert time.monotonic() - began < 20
    server.join()
    assert server.engine.ledger.server.called == 10


def test_a_consumer_that_dawdles_keeps_its_stream(model: Path, tmp_path: Path) -> None:
    """Heartbeats go on while results come in and none is stored for longer than the server's patience."""
    server = Server(model, tmp_path / "socket")

    async def call() -> list[ReadResult]:
        client = BasecallClient(server.address, StreamOptions(heartbeat_s=1.0))
        results = []
        async for result in client.call(reads(30)):
            results.append(result)
            if len(results) in (1, 15):
                await asyncio.sleep(5.0)
        assert client.reconnects == 0
        return results

    check(asyncio.run(call()), 30)
    assert server.engine.ledger.server.abandoned == 0
    server.leave()


def test_more_runs_than_streams_at_once(model: Path, tmp_path: Path) -> None:
    server = Server(model, tmp_path / "socket")

    async def call(order: list[SignalRead]) -> list[ReadResult]:
        return [result async for result in BasecallClient(server.address).call(order)]

    interleaved = reads(40, runs=9)
    check(asyncio.run(call(interleaved)), 40)
    by_run = sorted(interleaved, key=lambda read: read.info.run.run_id)
    check(asyncio.run(call(by_run)), 40)
    assert server.service.stream_count == 0
    server.leave()
