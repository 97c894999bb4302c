"""The client's streams against servers that go away, die, and come back, and consumers that dawdle."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from fake_server import FakeServer, batch, serving
from structlog.testing import capture_logs

from porestream.client.client import BasecallClient, SyncBasecallClient
from porestream.client.opening import StreamOptions
from porestream.client.reads import ReadInfo, ReadResult, ReadStatus, RunInfo, SignalRead
from porestream.client.stream import _next_response
from porestream.server.reads import Chunk
from porestream.server.streams.results import ResultsSession
from porestream.v1 import porestream_pb2 as pb


def reads(count: int, runs: int = 1, samples: int = 3000) -> list[SignalRead]:
    rng = np.random.default_rng(count)
    return [
        SignalRead(
            ReadInfo(
                read_id=UUID(int=number),
                run=RunInfo(run_id=f"run-{number % runs}", sample_rate_hz=4000),
                offset_adc=10.0,
                scale_pa_per_adc=0.2,
            ),
            rng.integers(300, 700, samples).astype(np.int16),
        )
        for number in range(count)
    ]


def check(results: list[ReadResult], count: int) -> None:
    assert sorted(result.info.read_id.int for result in results) == list(range(count))
    assert {result.status for result in results} == {ReadStatus.CALLED}


def test_a_drained_server_hands_over_to_the_next(start_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = start_server(listen=f"unix:{tmp_path / 'socket'}", threads=1)
    servers = [first]

    client = BasecallClient(first.address, StreamOptions(window_samples=30_000, heartbeat_s=1.0))

    async def call() -> list[ReadResult]:
        results = []
        async for result in client.call(reads(60)):
            results.append(result)
            if len(results) == 20:
                await asyncio.to_thread(first.leave)
                servers.append(await asyncio.to_thread(start_server, listen=first.address, threads=1))
        assert client.reconnects
        return results

    check(asyncio.run(call()), 60)
    assert all(server.engine.ledger.server.open == 0 for server in servers)
    assert servers[1].engine.ledger.server.called >= 30
    assert sum(server.engine.ledger.server.received for server in servers) == 60 + client.resent


def test_a_server_that_leaves_after_the_last_result_is_not_missed(start_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """All is called and stored before the server's last word comes: no other server is needed."""
    server = start_server(listen=f"unix:{tmp_path / 'socket'}", threads=1)

    async def call() -> list[ReadResult]:
        client = BasecallClient(server.address, StreamOptions(heartbeat_s=1.0, give_up_s=5.0))
        results = []
        async for result in client.call(reads(10)):
            results.append(result)
            if len(results) == 10:
                leaving = asyncio.create_task(asyncio.to_thread(server.leave))
                await asyncio.sleep(0.3)
        await leaving
        return results

    check(asyncio.run(call()), 10)
    assert server.engine.ledger.server.called == 10


def test_a_consumer_that_dawdles_keeps_its_stream(start_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Heartbeats go on while results come in and none is stored for longer than the server's patience."""
    server = start_server(listen=f"unix:{tmp_path / 'socket'}", threads=1)

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


def test_more_runs_than_streams_at_once(start_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(listen=f"unix:{tmp_path / 'socket'}", threads=1)

    async def call(order: list[SignalRead]) -> list[ReadResult]:
        return [result async for result in BasecallClient(server.address).call(order)]

    interleaved = reads(40, runs=9)
    check(asyncio.run(call(interleaved)), 40)
    by_run = sorted(interleaved, key=lambda read: read.info.run.run_id)
    check(asyncio.run(call(by_run)), 40)
    assert server.service.stream_count == 0


def test_a_cancellation_that_comes_with_a_message_is_not_lost() -> None:
    """Python 3.11's asyncio.wait_for returned the message then, and Ctrl-C was forgotten: the command hung."""

    async def cancel(turns: int) -> None:
        message: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        class Call:
            async def read(self) -> str:
                return await message

        task = asyncio.create_task(_next_response(Call(), 10.0))
        await asyncio.sleep(0)
        message.set_result("credit")
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    for turns in range(4):
        asyncio.run(cancel(turns))


def test_a_server_that_only_beats_is_waited_for_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reads outstanding, nothing said; then since when, every so often; a result begins it anew."""
    monkeypatch.setattr("porestream.client.stream._FIRST_WARNING_S", 0.4)
    monkeypatch.setattr("porestream.client.stream._WARNING_EVERY_S", 1.0)

    def answer(result: pb.ReadResult, seq: int) -> Iterator[pb.StreamReadsResponse | bytes]:
        for _ in range(20 if seq == 1 else 1):
            time.sleep(0.1)
            yield pb.StreamReadsResponse(heartbeat=pb.Heartbeat())
        yield batch(seq, result)

    def source() -> Iterator[SignalRead]:
        first, *others = reads(4)
        yield first
        time.sleep(2.6)  # until after its result
        yield from others

    began = datetime.now().replace(microsecond=0)
    with serving(FakeServer(answer=answer)) as target, capture_logs() as said, SyncBasecallClient(target) as client:
        assert len(list(client.call(source()))) == 4
    assert [line["reads_without_result"] for line in said] == [1, 1]
    assert {line["waiting_for"] for line in said} == {"results"}
    assert said[0]["event"].startswith("the server is up but delivers nothing")
    assert timedelta(0) <= datetime.fromisoformat(said[0]["since"]) - began < timedelta(seconds=3)


def test_a_read_that_is_sent_back_comes_again(start_server, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Twice while it is being sent: nothing is lost, doubled or called otherwise, and the books balance."""
    monkeypatch.setattr("porestream.client.stream._SENT_BACK_PAUSE_S", 0.05)
    address = (server := start_server()).address
    rng = np.random.default_rng(1)
    sent = [
        SignalRead(
            ReadInfo(
                read_id=UUID(int=1 + n),
                run=RunInfo(run_id="run", sample_rate_hz=4000),
                offset_adc=10.0,
                scale_pa_per_adc=0.2,
            ),
            rng.integers(300, 700, size, np.int16),
        )
        for n, size in enumerate((200_000, 5_000, 150_000))
    ]
    with SyncBasecallClient(address) as client:
        expected = {result.info.read_id: result.parts for result in client.call(sent)}
    take, sent_back = ResultsSession._take, Counter[bytes]()

    def take_and_send_back(session: ResultsSession, chunk: Chunk) -> None:
        take(session, chunk)
        if chunk.first_sample == 0 and chunk.read_id in session._open and sent_back[chunk.read_id] < 2:
            sent_back[chunk.read_id] += 1
            session._send_back(session._open[chunk.read_id], "others", "for the test")

    monkeypatch.setattr(ResultsSession, "_take", take_and_send_back)
    with SyncBasecallClient(address) as client:
        results = list(client.call(sent))
    assert {result.info.read_id: result.parts for result in results} == expected
    assert len(results) == 3
    assert set(sent_back.values()) == {2}
    books = server.engine.ledger.server
    assert (books.called, books.abandoned, books.open) == (6, 4, 0)
