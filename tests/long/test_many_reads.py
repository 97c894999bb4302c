"""A thousand open streams, and reads of ten million samples: nothing is lost, and memory stays in its budget."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from servers import Server

from porestream.client.client import SyncBasecallClient
from porestream.client.reads import ReadInfo, ReadResult, ReadStatus, RunInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

STREAMS = 1000
CHANNELS = 4
SHORT_SAMPLES = 1000
LONG_SAMPLES = 10_000_000
BUDGET_BYTES = 512 << 20
RUN = RunInfo(run_id="run", sample_rate_hz=4000)

Call = grpc.aio.StreamStreamCall[pb.StreamReadsRequest, pb.StreamReadsResponse]


def signal_read(number: int, samples: int) -> SignalRead:
    """A read with steps as real signal has."""
    rng = np.random.default_rng(number)
    levels_S = rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples]
    signal_S: npt.NDArray[np.int16] = (levels_S + rng.normal(0, 12, samples).astype(np.float32)).astype(np.int16)
    return SignalRead(
        ReadInfo(read_id=UUID(int=number), run=RUN, offset_adc=10.0, scale_pa_per_adc=0.2, channel=number % 512 + 1),
        signal_S,
    )


async def open_stream(channel: grpc.aio.Channel, number: int) -> tuple[Call, int]:
    """An open stream of a run of its own, and its first credit in samples."""
    call = pb_grpc.BasecallServiceStub(channel).StreamReads()
    opening = pb.OpenStream(run=pb.RunInfo(run_id=f"run-{number}", sample_rate_hz=4000))
    await call.write(pb.StreamReadsRequest(open=opening))
    response = await call.read()
    assert response.WhichOneof("message") == "opened"
    return call, response.opened.credit.max_total_samples


async def call_one(call: Call, credit: int, read: SignalRead) -> pb.ReadResult:
    """Send one read within the credit, take its result, leave; the stream must end with OK."""
    chunks = list(encode_read(read).chunks)
    used = seq = 0
    results: list[pb.ReadResult] = []
    while True:
        while chunks and used + max(chunks[0].sample_count, 1024) <= credit:
            used += max(chunks[0].sample_count, 1024)
            seq += 1
            await call.write(pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=seq, chunks=[chunks.pop(0)])))
        response = await call.read()
        if response is grpc.aio.EOF:
            break
        kind = response.WhichOneof("message")
        if kind == "credit":
            credit = response.credit.max_total_samples
        elif kind == "results":
            results += response.results.results
            await call.write(pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=len(results))))
            await call.write(pb.StreamReadsRequest(half_close=pb.HalfClose()))
        else:
            await call.write(pb.StreamReadsRequest(heartbeat=pb.Heartbeat()))
    assert await call.code() is grpc.StatusCode.OK
    assert len(results) == 1
    assert results[0].read_id == read.info.read_id.bytes
    return results[0]


def test_a_thousand_streams_at_once_get_a_result_each(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server(max_streams=STREAMS, max_streams_per_peer=STREAMS, memory_budget=4 << 30)
    budget = server.engine.budget
    reads = [signal_read(number, SHORT_SAMPLES) for number in range(STREAMS)]
    long_read = signal_read(STREAMS, LONG_SAMPLES // 4)

    async def talk() -> list[pb.ReadResult]:
        async with AsyncExitStack() as stack:
            return await talk_over(
                [
                    await stack.enter_async_context(
                        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
                    )
                    for _ in range(CHANNELS)
                ]
            )

    async def talk_over(channels: list[grpc.aio.Channel]) -> list[pb.ReadResult]:
        streams = await asyncio.gather(*(open_stream(channels[number % CHANNELS], number) for number in range(STREAMS)))
        assert server.service.stream_count == STREAMS
        assert budget.charged_bytes() <= budget.signal_bytes // 2, "idle streams took what busy ones may borrow"
        results = [await call_one(*streams.pop(), long_read)]  # while all others are idle
        results += await asyncio.gather(
            *(call_one(*stream, read) for stream, read in zip(streams, reads, strict=False))
        )
        return results

    results = asyncio.run(talk())
    assert len(results) == STREAMS
    assert {result.status for result in results} == {pb.READ_STATUS_CALLED}
    books = server.engine.ledger.server
    assert (books.received, books.called, books.open) == (STREAMS, STREAMS, 0)
    assert budget.charged_bytes() == 0
    assert server.engine.scheduler.queued_samples() == 0


@pytest.fixture
def server(tmp_path: Path, tiny_model: Path) -> Iterator[Server]:
    with Server(tmp_path, "--model", tiny_model, "--memory-budget", BUDGET_BYTES, "--threads", 2) as running:
        running.start()
        yield running


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_read_of_ten_million_samples_takes_no_more_than_the_budget(server: Server) -> None:
    def call(reads: Sequence[SignalRead]) -> list[ReadResult]:
        with SyncBasecallClient(server.address) as client:
            return list(client.call(reads))

    (short,) = call([signal_read(1, SHORT_SAMPLES)])
    before_bytes = server.peak_bytes()
    long, other = sorted(
        call([signal_read(2, LONG_SAMPLES), signal_read(3, SHORT_SAMPLES)]), key=lambda result: result.info.read_id.int
    )
    assert {result.status for result in (short, long, other)} == {ReadStatus.CALLED}
    (part,) = long.parts
    assert long.signal_samples == LONG_SAMPLES
    assert len(part.sequence) == len(part.qualities) > LONG_SAMPLES // 100
    assert server.peak_bytes() - before_bytes < BUDGET_BYTES
