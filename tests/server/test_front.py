"""Connections from outside: how many, how long silent, what frames; and calls: how many of a peer."""

import asyncio
import resource
import socket
import struct
import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from porestream.client import BasecallClient
from porestream.server.edge import front as front_module
from porestream.server.edge import guard as guard_module
from porestream.server.edge.front import Front, Limits, connection_limit, peer_name
from porestream.server.edge.http2 import PREFACE, FrameMeter, Unwanted
from porestream.server.settings import SettingsError
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

SETTINGS = struct.pack(">I", 0)[1:] + bytes([4, 0]) + bytes(4)


def frame(kind: int, payload: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def connect(address: str, source: str = "127.0.0.1") -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))


def ended(connection: socket.socket) -> bool:
    """Whether the server closed it; waits for that."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def healthy(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


# frames


def test_frames_are_followed_however_they_are_cut() -> None:
    data = PREFACE + SETTINGS + frame(1, b"h" * 100, 4, 1) + frame(0, b"d" * 1000, 0, 1) + frame(8, bytes(4))
    for size in (1, 2, 7, 9, 50, len(data)):
        meter = FrameMeter(lambda: 0.0)
        waits = [meter.feed(data[at : at + size]) for at in range(0, len(data), size)]
        assert not any(waits)
        assert meter.has_preface
        assert meter.has_headers


def test_floods_are_read_slowly_and_data_is_not() -> None:
    for kind, payload in ((4, b""), (6, bytes(8)), (8, bytes(4)), (3, bytes(4)), (2, bytes(5)), (0, b""), (99, b"")):
        meter = FrameMeter(lambda: 0.0)
        assert meter.feed(PREFACE + frame(kind, payload) * 10_000) > 0.4
    meter = FrameMeter(lambda: 0.0)
    assert meter.feed(PREFACE + frame(1, bytes(16000), 4, 1) * 50) > 5, "headers of 800 KB at once"
    meter = FrameMeter(lambda: 0.0)
    assert meter.feed(PREFACE + frame(0, bytes(16384), 0, 1) * 1000) == 0.0


def test_what_is_no_http2() -> None:
    with pytest.raises(Unwanted, match="preface"):
        FrameMeter().feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(Unwanted, match="headers"):
        FrameMeter().feed(PREFACE + frame(1, bytes(16000)) + frame(9, bytes(1000)))


# connections


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "_PREFACE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(front_module, "_FIRST_CALL_TIMEOUT_S", 0.5)


@pytest.mark.usefixtures("short")
def test_silent_connections_are_closed(start_server) -> None:  # type: ignore[no-untyped-def]
    address = start_server().address
    silent, polite, rude = (connect(address) for _ in range(3))
    polite.sendall(PREFACE + SETTINGS)
    rude.sendall(b"\x16\x03\x01 a client that speaks TLS")
    assert ended(silent)
    assert ended(polite)
    assert ended(rude)
    assert healthy(address)


def test_a_peer_leaves_room_for_others(start_server, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("porestream.server.start.app.connection_limit", lambda: 8)
    server = start_server(health_listen="127.0.0.1:0")
    for address in (server.address, server.health_address):
        held = [connect(address, "127.0.0.2") for _ in range(20)]
        time.sleep(0.2)
        assert healthy(server.address)  # from 127.0.0.1
        assert healthy(server.health_address)
        for connection in held:
            connection.close()
        deadline_s = time.monotonic() + 10
        while server.serving.fronts[0]._limits._open and time.monotonic() < deadline_s:
            time.sleep(0.02)


@pytest.fixture
def front() -> Iterator[Front]:
    one = Front("127.0.0.1:0", Limits(100))
    one.start()
    yield one
    one.close()


def test_bytes_of_no_use_are_bounded_beside_others(front: Front) -> None:
    front._limits.enter("greedy")
    assert not any(front._allow_bytes("greedy", 10_000_000) for _ in range(20)), "it is alone"
    front._limits.enter("honest")
    assert front._allow_bytes("greedy", 10_000_000) == 1.0
    assert front._allow_bytes("honest", 10_000_000) == 0
    for _ in range(20):
        front.took("honest", 9_000_000)
        deadline_s = time.monotonic() + 10
        while front._bytes["honest"]._left < 8e6 and time.monotonic() < deadline_s:
            time.sleep(0.001)  # the front's thread has it
        assert front._allow_bytes("honest", 8_000_000) == 0, "signal earns more than it takes"


def test_who_floods_and_leaves_waits_at_the_door(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "_HANDSHAKES_AT_ONCE", 150.0)
    for _ in range(2):
        flooding = connect(front.address)
        flooding.sendall(PREFACE + SETTINGS * 10_000)
        flooding.close()
    patient = connect(front.address, "127.0.0.9")
    deadline_s = time.monotonic() + 10
    while front._handshakes_of("127.0.0.1")._left > 0 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert front._handshakes_of("127.0.0.1").take() > 0.5
    assert front._handshakes_of("127.0.0.9").take() == 0
    patient.close()


def test_who_a_peer_is() -> None:
    assert peer_name("192.0.2.7") == peer_name("::ffff:192.0.2.7") == "192.0.2.7"
    assert peer_name("2001:db8::1") == peer_name("2001:db8::ffff%eth0") == "2001:db8::/64"
    limits = Limits(4)
    assert [limits.enter("a") for _ in range(4)] == [None, None, None, "peer"]
    assert [limits.enter("b") for _ in range(2)] == [None, "total"]
    limits.leave("a")
    assert limits.enter("b") is None


def test_the_limit_of_descriptors_has_room_for_all() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = connection_limit()
    assert 16 <= limit <= 4096
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]


def test_an_address_that_is_taken_is_named(start_server) -> None:  # type: ignore[no-untyped-def]
    address = start_server().address
    with pytest.raises(SettingsError, match="already in use"):
        Front(address, Limits(4))


# calls


@pytest.fixture
def address(start_server, monkeypatch: pytest.MonkeyPatch) -> str:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(guard_module, "FIRST_REQUEST_TIMEOUT_S", 1.0)
    found: str = start_server(health_listen="127.0.0.1:0").address
    return found


def test_watchers_leave_room_for_checks_and_streams(address: str) -> None:
    refused = []

    async def watch(stub: health_pb2_grpc.HealthStub) -> None:
        try:
            async for _ in stub.Watch(health_pb2.HealthCheckRequest()):
                pass
        except grpc.aio.AioRpcError as error:
            refused.append(error)

    async def attack() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            tasks = [asyncio.create_task(watch(stub)) for _ in range(100)]
            stats = [pb_grpc.BasecallServiceStub(channel).WatchStats(pb.WatchStatsRequest()) for _ in range(100)]
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(healthy, address)
            await BasecallClient(address).identify()
            for task in (*tasks, *stats):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(attack())
    # gRPC itself refuses some of them on a busy machine.
    assert {error.code() for error in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    assert len(refused) == 84


def test_calls_whose_request_never_comes_end(address: str) -> None:
    """A call of one request, begun as a stream of requests: what the wire allows, and stubs do not."""

    async def attack() -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(address) as channel:
            silent = channel.stream_unary("/porestream.v1.BasecallService/GetServerInfo")
            calls = [silent() for _ in range(50)]
            assert await asyncio.to_thread(healthy, address)
            return [await call.code() for call in calls]

    assert set(asyncio.run(attack())) == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_streams_of_one_peer_leave_some_for_others(start_server) -> None:  # type: ignore[no-untyped-def]
    address = start_server(max_streams=4).address

    async def open_all() -> list[str]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.BasecallServiceStub(channel)
            found = []
            calls = []
            for _ in range(4):
                call = stub.StreamReads()
                calls.append(call)
                await call.write(pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id="run"))))
                try:
                    found.append((await call.read()).WhichOneof("message"))
                except grpc.aio.AioRpcError as error:
                    found.append(error.details())
            return found

    *opened, refused = asyncio.run(open_all())
    assert opened == ["opened"] * 3
    assert "--max-streams-per-peer" in refused
