"""Messages that no honest client sends: they end as a rejected read or as their stream's status, and hurt nobody else.

Dimensions: S samples.
"""

import asyncio
import gc
import mmap
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import structlog
import zstandard
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis.strategies import binary
from pod5.signal_tools import vbz_compress_signal

from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.server.calling.scheduler import Job
from porestream.server.edge.messages import parse_request
from porestream.server.reads import OpenRead
from porestream.server.streams.budget import MAX_CHUNK_SAMPLES, MIN_CHUNK_CREDIT_SAMPLES
from porestream.server.streams.session import Session
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

MODEL = "tiny_fast@v1"
STRIDE = 6  # of the tiny model
SERVICE = "/porestream.v1.BasecallService/"
BAD, GOOD = UUID(int=0xBAD).bytes, UUID(int=0x600D).bytes
PATIENCE_S = 60.0

INT16, VBZ = pb.SIGNAL_ENCODING_INT16_LE, pb.SIGNAL_ENCODING_VBZ
CALLED, REJECTED, FAILED = pb.READ_STATUS_CALLED, pb.READ_STATUS_REJECTED, pb.READ_STATUS_FAILED


def steps(samples: int, seed: int = 0) -> npt.NDArray[np.int16]:
    """Signal with steps as real signal has."""
    rng = np.random.default_rng(seed)
    levels_S = rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples]
    return (levels_S + rng.normal(0, 12, samples)).astype(np.int16)


GOOD_S = steps(2500, 1)


def chunks_of(read_id: bytes, signal_S: npt.NDArray[np.int16], chunk_samples: int = 65_536) -> list[pb.ReadChunk]:
    """What an honest client sends of a read."""
    info = ReadInfo(
        read_id=UUID(bytes=read_id),
        run=RunInfo(run_id="run", sample_rate_hz=4000),
        offset_adc=10.0,
        scale_pa_per_adc=0.2,
        channel=1,
    )
    return list(encode_read(SignalRead(info, signal_S), chunk_samples).chunks)


def bad(samples: int = 1000, **fields: object) -> list[pb.ReadChunk]:
    """A read of one chunk that has other fields than it should."""
    (chunk,) = chunks_of(BAD, steps(samples))
    for name, value in fields.items():
        setattr(chunk, name, value)
    return [chunk]


def calibrated(**fields: float) -> list[pb.ReadChunk]:
    (chunk,) = bad()
    for name, value in fields.items():
        setattr(chunk.calibration, name, value)
    return [chunk]


def uncalibrated() -> list[pb.ReadChunk]:
    (chunk,) = bad()
    chunk.ClearField("calibration")
    return [chunk]


def moved(first_sample: int) -> list[pb.ReadChunk]:
    """A read of two chunks, the second of which claims to begin elsewhere than at sample 1000."""
    chunks = chunks_of(BAD, steps(2000), 1000)
    chunks[1].first_sample = first_sample
    return chunks


class Stream:
    """A stream that keeps within its credit and acknowledges what it gets."""

    def __init__(self, call: Any) -> None:
        self._call, self._credit, self._used, self._batches = call, 0, 0, 0
        self._acknowledged = 0
        self._results: list[pb.ReadResult] = []  # not yet asked for

    async def write(self, request: pb.StreamReadsRequest) -> None:
        await self._call.write(request.SerializeToString())

    async def send(self, *chunks: pb.ReadChunk) -> None:
        """Send chunks as one message, once the credit is enough; of more than a chunk may have only the least."""
        cost = sum(max(chunk.sample_count % (MAX_CHUNK_SAMPLES + 1), MIN_CHUNK_CREDIT_SAMPLES) for chunk in chunks)
        while self._used + cost > self._credit:
            await self.read()
        self._used, self._batches = self._used + cost, self._batches + 1
        await self.write(pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=self._batches, chunks=chunks)))

    async def read(self) -> bool:
        """Take the next message; False: the stream has ended."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._call.read()
        if raw is grpc.aio.EOF:
            return False
        response = pb.StreamReadsResponse.FromString(raw)
        self._credit = max(self._credit, response.opened.credit.max_total_samples, response.credit.max_total_samples)
        if results := response.results.results:
            self._results += results
            self._acknowledged += len(results)
            await self.write(pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=self._acknowledged)))
        return True

    async def results(self, count: int) -> list[pb.ReadResult]:
        """The next results, which must be that many."""
        while len(self._results) < count:
            assert await self.read(), await self._call.code()
        found, self._results = self._results, []
        assert len(found) == count
        return found

    async def call(self, read_id: bytes, signal_S: npt.NDArray[np.int16]) -> tuple[str, bytes]:
        """Send one read; its bases and qualities."""
        for chunk in chunks_of(read_id, signal_S):
            await self.send(chunk)
        (result,) = await self.results(1)
        assert result.read_id == read_id
        return bases(result)

    async def close(self) -> None:
        """Half-close; the stream must end with OK, and without another result."""
        await self.write(pb.StreamReadsRequest(half_close=pb.HalfClose()))
        while await self.read():
            pass
        assert not self._results
        assert await self._call.code() is grpc.StatusCode.OK


def bases(result: pb.ReadResult) -> tuple[str, bytes]:
    assert result.status == CALLED, result.detail
    return result.parts[0].sequence, result.parts[0].qualities


async def open_stream(channel: grpc.aio.Channel, run_id: str) -> Stream:
    stream = Stream(channel.stream_stream(SERVICE + "StreamReads")())
    await stream.write(pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id=run_id))))
    assert await stream.read()
    return stream


def called_alone(server: Any, signal_S: npt.NDArray[np.int16]) -> tuple[str, bytes]:
    """What a read says, called without the server's help."""
    (basecaller,) = server.engine.basecallers.values()
    read = basecaller.call_read(signal_S)
    return read.sequence, read.qualities_B.tobytes()


@asynccontextmanager
async def company(address: str, expected: tuple[str, bytes]) -> AsyncIterator[list[int]]:
    """An honest stream that has read after read called, each of which must be right; the reads that it got back.

    It calls one before, and one after.
    """
    done: list[int] = []
    leaving = False
    first = asyncio.Event()

    async def call() -> None:
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stream = await open_stream(channel, "company")
            last = False
            while not last:
                last = leaving
                assert await stream.call(UUID(int=len(done) + 1).bytes, GOOD_S) == expected
                done.append(len(done))
                first.set()
            await stream.close()

    task = asyncio.create_task(call())
    task.add_done_callback(lambda _: first.set())  # it may have failed
    await first.wait()
    try:
        yield done
    finally:
        leaving = True
        await task


def check_idle(server: Any) -> None:
    """Nothing of any stream is left, and the books balance."""
    engine, books = server.engine, server.engine.ledger.server
    deadline_s = time.monotonic() + PATIENCE_S
    while server.service.stream_count and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert server.service.stream_count == 0
    assert books.open == 0
    assert books.received == books.called + books.filtered + books.rejected + books.failed + books.abandoned
    assert engine.budget.charged_bytes() == 0
    assert engine.scheduler.queued_samples() == 0


# What becomes of reads


@dataclass
class Case:
    """Chunks of one bad read, or more, and what its results must be: the status and words of the detail."""

    chunks: list[pb.ReadChunk]
    results: list[tuple[int, str]]
    settings: dict[str, object] = field(default_factory=dict)


def rejected(chunks: list[pb.ReadChunk], words: str, **settings: object) -> Case:
    return Case(chunks, [(REJECTED, words)], settings)


def full(samples: int, value: int) -> list[pb.ReadChunk]:
    return chunks_of(BAD, np.full(samples, value, np.int16))


def huge_frame(size: int) -> bytes:
    """The start of a zstd frame that claims to hold `size` bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + bytes(50)


SAMPLES_1000 = vbz_compress_signal(steps(1000)).tobytes()
FLIPPED = bytearray(SAMPLES_1000)
FLIPPED[len(FLIPPED) // 2] ^= 4

CASES = {
    "an empty read": rejected(chunks_of(BAD, steps(0)), "empty: the read has no samples"),
    "a read of empty chunks": rejected(
        [pb.ReadChunk(read_id=BAD, encoding=VBZ)] * 3 + bad(0), "empty: the read has no samples"
    ),
    "one sample": rejected(chunks_of(BAD, steps(1)), f"too short: 1 sample, the model's stride is {STRIDE}"),
    "a sample less than a stride": rejected(chunks_of(BAD, steps(STRIDE - 1)), f"too short: {STRIDE - 1} samples"),
    "a stride, half of it leader": rejected(chunks_of(BAD, steps(STRIDE)), f"too short: {STRIDE} samples, 3 of them"),
    "a stride after the leader": Case(chunks_of(BAD, steps(2 * STRIDE)), [(CALLED, "")]),
    "ten million samples, one million allowed": rejected(
        full(10_000_000, 500), "too long: more than 1000000 samples", max_read_samples=1_000_000
    ),
    "ten million samples": Case(full(10_000_000, 500), [(CALLED, "")]),
    "a constant signal": Case(full(5000, 500), [(CALLED, "")]),
    "a signal of zeros": Case(full(5000, 0), [(CALLED, "")]),
    "a signal saturated above": Case(full(5000, 32_767), [(CALLED, "")]),
    "a signal saturated below": Case(full(5000, -32_768), [(CALLED, "")]),
    "a signal between the extremes": Case(
        chunks_of(BAD, np.tile(np.array([-32_768, 32_767], np.int16), 2500)), [(CALLED, "")]
    ),
    "no calibration": rejected(uncalibrated(), "calibration missing"),
    "a scale of 0": rejected(calibrated(scale_pa_per_adc=0.0), "calibration unusable: offset 10, scale 0 pA"),
    "a scale of NaN": rejected(calibrated(scale_pa_per_adc=np.nan), "scale nan pA"),
    "an infinite scale": rejected(calibrated(scale_pa_per_adc=np.inf), "scale inf pA"),
    "a negative scale": rejected(calibrated(scale_pa_per_adc=-0.2), "scale -0.2 pA"),
    "an enormous scale": rejected(calibrated(scale_pa_per_adc=1e38), "scale 1e+38 pA"),
    "a tiny scale": rejected(calibrated(scale_pa_per_adc=1e-44), "calibration unusable"),
    "an offset of NaN": rejected(calibrated(offset_adc=np.nan), "offset nan"),
    "an infinite offset": rejected(calibrated(offset_adc=-np.inf), "offset -inf"),
    "an enormous offset": rejected(calibrated(offset_adc=1e38), "offset 1e+38"),
    "an enormous open-pore level": rejected(calibrated(open_pore_level_pa=1e38), "open-pore level 1e+38 pA"),
    "an open-pore level of NaN": Case(calibrated(open_pore_level_pa=np.nan), [(CALLED, "")]),
    "a wrong checksum": rejected(bad(signal_crc32c=1), "checksum mismatch"),
    "a wrong checksum in the second chunk": rejected(
        [*chunks_of(BAD, steps(2000), 1000)[:1], *bad(signal_crc32c=1, first_sample=1000)], "the chunk says 00000001"
    ),
    "a gap": rejected(moved(1001), "gap: a chunk begins at sample 1001, but 1000 samples were received"),
    "a gap of 2^64 samples": rejected(moved(2**64 - 1), f"gap: a chunk begins at sample {2**64 - 1}"),
    "an overlap": rejected(moved(999), "overlap: a chunk begins at sample 999, but 1000 samples were received"),
    "a repeated chunk": rejected(moved(0), "overlap: a chunk begins at sample 0, but 1000 samples were received"),
    "chunks that came in another order": rejected(
        [chunks_of(BAD, steps(3000), 1000)[place] for place in (1, 0, 2)],
        "gap: a chunk begins at sample 1000, but 0 samples were",
    ),
    "a read that begins in its middle": rejected(
        bad(first_sample=5), "gap: a chunk begins at sample 5, but 0 samples were"
    ),
    "signal that is no VBZ": rejected(bad(signal=bytes(100)), "undecodable VBZ"),
    "no signal": rejected(bad(signal=b""), "undecodable VBZ"),
    "VBZ with a bit flipped": rejected(bad(signal=bytes(FLIPPED)), ""),
    "VBZ cut short": rejected(bad(signal=SAMPLES_1000[:-1]), "undecodable VBZ"),
    "VBZ of fewer samples": rejected(bad(signal=SAMPLES_1000, sample_count=1001), ""),
    "VBZ of more samples": rejected(bad(signal=SAMPLES_1000, sample_count=999), ""),
    "a frame of noise": rejected(
        bad(signal=zstandard.compress(np.random.default_rng(3).bytes(1500))), "undecodable VBZ"
    ),
    "a frame of too little": rejected(bad(signal=zstandard.compress(b"\xff" * 125)), "undecodable VBZ"),
    "a frame of 4 GB": rejected(bad(signal=huge_frame(2**32 - 1)), "the frame's size does not fit 1000 samples"),
    "a frame of 2^63 bytes": rejected(bad(signal=huge_frame(2**63)), "undecodable VBZ"),
    "a bomb": rejected(bad(signal=zstandard.compress(bytes(1 << 26))), "the frame's size does not fit 1000 samples"),
    "int16 of half a sample": rejected(bad(encoding=INT16, signal=bytes(1999)), "1999 bytes of int16 signal"),
    "int16 of too little": rejected(bad(encoding=INT16, signal=b""), "0 bytes of int16 signal"),
    "more bytes than any encoding needs": rejected(bad(signal=bytes(100_000)), "has 100000 bytes of signal"),
    "2^32 - 1 samples of VBZ": rejected(bad(sample_count=2**32 - 1), f"a chunk claims {2**32 - 1} samples"),
    "2^32 - 1 samples of int16": rejected(
        bad(sample_count=2**32 - 1, encoding=INT16), f"a chunk claims {2**32 - 1} samples"
    ),
    "a sample more than a chunk may have": rejected(
        bad(sample_count=MAX_CHUNK_SAMPLES + 1), f"a chunk may have at most {MAX_CHUNK_SAMPLES}"
    ),
    "impossible facts": Case(
        bad(channel=2**32 - 1, well=2**32 - 1, read_number=2**32 - 1, start_sample=2**64 - 1, end_reason="\0\n\u1234"),
        [(CALLED, "")],
    ),
    "an id that is open already": rejected(
        [*chunks_of(BAD, steps(2000), 1000)[:1], *bad()],
        "overlap: a chunk begins at sample 0, but 1000 samples were received",
    ),
    "an id whose read is being called": Case(bad() + bad(), [(CALLED, ""), (CALLED, "")]),
    "an id whose read was rejected": Case(bad(signal_crc32c=1) + bad(), [(REJECTED, "checksum"), (CALLED, "")]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_read_gets_its_status_and_all_else_goes_on(start_server, name) -> None:  # type: ignore[no-untyped-def]
    """A good read on the same stream, in the same message where it fits, and a stream beside it are called as ever."""
    case = CASES[name]
    server = start_server(batch_delay_s=0.001, **case.settings)
    expected = called_alone(server, GOOD_S)

    async def talk() -> list[pb.ReadResult]:
        async with company(server.address, expected), grpc.aio.insecure_channel(server.address) as channel:
            stream = await open_stream(channel, "bad")
            good = chunks_of(GOOD, GOOD_S)
            if len(case.chunks) > 10:
                for chunk in case.chunks:
                    await stream.send(chunk)
                await stream.send(*good)
            else:
                await stream.send(*case.chunks, *good)
            results = await stream.results(len(case.results) + 1)
            assert await stream.call(BAD, GOOD_S) == expected, "its id could not be used again"
            await stream.close()
            return results

    results = asyncio.run(talk())
    assert [bases(result) for result in results if result.read_id == GOOD] == [expected]
    found = sorted((result.status, result.detail) for result in results if result.read_id == BAD)
    for (status, words), (found_status, detail) in zip(sorted(case.results), found, strict=True):
        assert found_status == status, detail
        assert words in detail
    check_idle(server)
    books = server.engine.ledger.server
    assert books.rejected == sum(status == REJECTED for status, _ in case.results)
    assert (books.failed, books.abandoned) == (0, 0)


# Mutated messages


MESSAGES = 10_000
A_STREAM = 20
"""Mutated messages that a stream is sent at most; most end it sooner."""
UNARY = {"GetServerInfo": pb.GetServerInfoRequest, "WatchStats": pb.WatchStatsRequest}
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,  # purpose DECISIONS
    grpc.StatusCode.CANCELLED,  # the client learned by writing that it had ended
}
"""What a stream may end with: never INTERNAL or UNKNOWN, which are a defect of the server."""
OPEN = pb.StreamReadsRequest(
    open=pb.OpenStream(
        run=pb.RunInfo(run_id="mutated", flow_cell_id="FAB1", sample_rate_hz=4000, sample_id="s"),
        options=pb.CallOptions(model=MODEL, min_mean_qscore=3, emit_moves=True),
        purpose=pb.STREAM_PURPOSE_RESULTS,
    )
)
SEEDS = [
    pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=1, chunks=bad(400))),
    pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=1, chunks=chunks_of(BAD, steps(900), 300))),
    pb.StreamReadsRequest(
        signal=pb.SignalBatch(
            batch_seq=1, chunks=bad(200, encoding=INT16, signal=steps(200).tobytes(), signal_crc32c=0)
        )
    ),
    pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=1)),
    pb.StreamReadsRequest(half_close=pb.HalfClose()),
    pb.StreamReadsRequest(heartbeat=pb.Heartbeat()),
    OPEN,
]
EXTREMES: dict[int, list[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: [0, -1, 2**31 - 1, -(2**31)],
    FieldDescriptor.CPPTYPE_INT64: [0, -1, 2**63 - 1, -(2**63)],
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 65_535, 65_537, 2**31, 2**32 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**32, 2**63, 2**64 - 1],
    FieldDescriptor.CPPTYPE_FLOAT: [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 3e38],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, np.nan, np.inf, 1e308],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 99, -1, 2**31 - 1],
    FieldDescriptor.CPPTYPE_STRING: ["", "x" * 100_000, "\0\n\u1234", "../../etc/passwd", MODEL, "tiny"],
}
BLOBS = [b"", b"\0" * 15, b"\xff" * 16, b"\0" * 17, bytes(200_000), huge_frame(2**62), SAMPLES_1000]


def mutated(message: Message, rng: random.Random) -> bytes:
    """A message with some fields at their extremes, or some of its bytes changed, or both; or what is no message."""
    message = type(message).FromString(message.SerializeToString())
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        change_field(message, rng)
    raw = bytearray(message.SerializeToString())
    for _ in range(rng.choice((0, 0, 1, 2, 8))):
        place = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0 if place < len(raw):
                raw[place] ^= 1 << rng.randrange(8)
            case 1:
                del raw[place:]
            case 2:
                raw[place:place] = rng.randbytes(rng.randrange(1, 20))
            case 3:
                raw += raw[place : place + rng.randrange(1, 50)]  # fields that come twice, or parts of them
            case 4:
                del raw[place : place + rng.randrange(1, 10)]
    return bytes(raw)


def change_field(message: Message, rng: random.Random) -> None:
    """Set a field, here or in a message within, to something that may be too much for someone."""
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        if field.is_repeated:
            items = getattr(message, field.name)
            if items and rng.random() < 0.9:
                change_field(rng.choice(items), rng)
            else:
                items.add()
        else:
            within = getattr(message, field.name)
            within.SetInParent()
            change_field(within, rng)
    elif field.is_repeated or rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_BYTES:
        setattr(message, field.name, rng.choice(BLOBS))
    else:
        setattr(message, field.name, rng.choice(EXTREMES[field.cpp_type]))


async def send_mutated(channel: grpc.aio.Channel, rng: random.Random) -> tuple[grpc.StatusCode, int]:
    """One stream, well opened or not, and mutated messages on it; how it ended, and how many there were."""
    call = channel.stream_stream(SERVICE + "StreamReads")()
    sent = 0
    try:
        if rng.random() < 0.9:
            await call.write(OPEN.SerializeToString())
        for _ in range(rng.randrange(1, A_STREAM)):
            sent += 1
            await call.write(mutated(rng.choice(SEEDS), rng))
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # it has ended
    async with asyncio.timeout(PATIENCE_S):
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        if await call.details() == "Internal error from Core":  # the client library's, of a write after the end
            return grpc.StatusCode.CANCELLED, sent
        return await call.code(), sent


async def ask_mutated(channel: grpc.aio.Channel, rng: random.Random) -> grpc.StatusCode:
    name = rng.choice(list(UNARY))
    raw = mutated(UNARY[name](), rng)
    async with asyncio.timeout(PATIENCE_S):
        if name == "GetServerInfo":
            try:
                await channel.unary_unary(SERVICE + name)(raw)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK
        call = channel.unary_stream(SERVICE + name)(raw)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        call.cancel()
        return grpc.StatusCode.OK


def test_ten_thousand_mutated_messages(start_server) -> None:  # type: ignore[no-untyped-def]
    """No crash, no defect's status, no leak; a stream beside them gets the right bases all the while."""
    server = start_server(batch_delay_s=0.001, max_streams=8)
    expected = called_alone(server, GOOD_S)
    seed = 6
    statuses: Counter[grpc.StatusCode] = Counter()

    async def mutate(number: int, share: int) -> None:
        rng, sent = random.Random(seed * 100 + number), 0
        async with grpc.aio.insecure_channel(server.address) as channel:
            while sent < share:
                status, messages = await send_mutated(channel, rng)
                sent += messages
                statuses[status] += 1
                if rng.random() < 0.2:
                    sent += 1
                    statuses[await ask_mutated(channel, rng)] += 1

    async def talk() -> int:
        async with company(server.address, expected) as done:
            await asyncio.gather(*(mutate(number, MESSAGES // 4) for number in range(4)))
            before = len(done)
        async with grpc.aio.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        return before

    with structlog.testing.capture_logs() as logs:
        reads_beside = asyncio.run(talk())
    assert reads_beside > 50
    assert set(statuses) <= EXPECTED, f"seed {seed}: {statuses}"
    assert statuses[grpc.StatusCode.INVALID_ARGUMENT] > 500
    assert not [entry for entry in logs if entry["log_level"] in ("error", "critical") or "exc_info" in entry], seed
    check_idle(server)
    check_nothing_is_left(server)
    assert server.engine.ledger.server.failed == 0


def check_nothing_is_left(server: Any) -> None:
    """No session, read or job is held by anything, and no task goes on but those that the server always has."""
    kinds, deadline_s = (Session, Job, OpenRead), time.monotonic() + PATIENCE_S
    while True:  # a worker may still be at a read whose stream has ended
        gc.collect()
        left = Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))
        if not left:
            break
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)

    async def names() -> list[str]:
        return [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]

    tasks = asyncio.run_coroutine_threadsafe(names(), server.loop).result(PATIENCE_S)
    assert not [name for name in tasks if "Session" in name or "_receive" in name], tasks


def test_requests_that_would_take_a_hundred_times_their_size() -> None:
    empty = b"\x1a\x00" * 500_000  # chunks, 130 bytes each in memory
    size = len(empty)
    varint = bytes((size >> shift & 127) | 128 * (shift < 14) for shift in (0, 7, 14))
    hidden = b"\x12" + varint + empty + pb.StreamReadsRequest(open=pb.OpenStream()).SerializeToString()
    assert pb.StreamReadsRequest.FromString(hidden).WhichOneof("message") == "open"
    with pytest.raises(DecodeError, match="more than 4096 chunks"):
        parse_request(hidden)
    with pytest.raises(DecodeError, match="one message"):
        parse_request((b"\x0a\x00\x12\x00") * 100_000)
    fair = pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=1, chunks=bad() * 1000))
    assert parse_request(fair.SerializeToString()) == fair


@given(binary(max_size=200))
def test_no_bytes_are_taken_that_protobuf_refuses(data: bytes) -> None:
    try:
        expected = pb.StreamReadsRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_request(data)
        return
    try:
        assert parse_request(data) == expected
    except DecodeError as error:
        assert "groups" in str(error) or "too many fields" in str(error)  # noqa: PT017


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_nothing_of_a_message_stays_when_it_is_handled(start_server) -> None:  # type: ignore[no-untyped-def]
    """Streams that open with a message of a megabyte and say nothing more: gRPC's iterator kept it for each of them."""
    server = start_server(max_streams=80)

    async def talk() -> int:
        async with grpc.aio.insecure_channel(server.address) as channel:
            calls = []
            before = 0
            for number in range(50):
                if number == 10:  # what is made once is there
                    before = resident_bytes()
                call = pb_grpc.BasecallServiceStub(channel).StreamReads()
                calls.append(call)
                opening = pb.OpenStream(run=pb.RunInfo(run_id=f"run {number}", sample_id="x" * 1_000_000))
                await call.write(pb.StreamReadsRequest(open=opening))
                assert (await call.read()).WhichOneof("message") == "opened"
            gc.collect()
            return resident_bytes() - before

    assert asyncio.run(talk()) < 20_000_000
