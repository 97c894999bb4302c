"""Connections from outside, before gRPC has them: TLS, how many there may be, how long one may be silent.

gRPC's own server knows no limit by peer, crashes where certificates change while many connect (grpc/grpc#36693), and
keeps memory for frames that nobody needs. So it listens on a Unix socket in a folder that only this user enters, and
gets only what has been looked at here, in a thread with an event loop of its own: docs/decisions/0009.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import resource
import secrets
import socket
import sys
import tempfile
import threading
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Callable
from ssl import SSLContext

import structlog

from porestream.server.edge.address import short_folder
from porestream.server.edge.http2 import Allowance, FrameMeter, Unwanted
from porestream.server.start.settings import SettingsError
from porestream.server.watch.metrics import CONNECTIONS, CONNECTIONS_REFUSED, Closed

log = structlog.get_logger()

_PREFACE_TIMEOUT_S = 10.0  # with the TLS handshake
_FIRST_CALL_TIMEOUT_S = 30.0
_BUFFER_BYTES = 256 << 10
_BACKLOG = 512
_LAST_BYTES_S = 2.0
_LONGEST_HOLD_S = 1.0  # for bytes: a stream whose client speaks is never silent for longer
_HANDSHAKES_PER_S, _HANDSHAKES_AT_ONCE = 50.0, 200.0
_LEFT_OWING_HANDSHAKES = 100.0  # of a connection that ends while it is made to wait: the next one waits in its place
# What a peer may send beside others: bytes of no use cost as much of the machine as those of signal. Signal within its
# credit earns it more than it took.
_BYTES_PER_S, _BYTES_AT_ONCE, _BYTES_PER_SAMPLE = 2e6, 16e6, 2.5
_TLS_BUFFER_BYTES = 32 << 10  # of each connection; asyncio's own are 256 KiB, which as many silent ones would fill
_DESCRIPTORS_A_CONNECTION = 3  # here two, in gRPC one
_OTHER_DESCRIPTORS = 192
_MAX_CONNECTIONS = 4096


class Limits:
    """How many connections there may be, in all and of one peer."""

    def __init__(self, total: int) -> None:
        self.total, self.of_a_peer = total, max(1, total * 3 // 4)
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, peer: str) -> Closed | None:
        """Count one more; returns why there may not be one."""
        with self._lock:
            if self._open.total() >= self.total:
                return Closed.TOTAL
            if self._open[peer] >= self.of_a_peer:
                return Closed.PEER
            self._open[peer] += 1
        CONNECTIONS.inc()
        return None

    @property
    def peers(self) -> int:
        """How many have connections."""
        return len(self._open)

    def leave(self, peer: str) -> None:
        """One less."""
        with self._lock:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
        CONNECTIONS.dec()


def connection_limit() -> int:
    """The connections that the limit of descriptors has room for, after that is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_CONNECTIONS * _DESCRIPTORS_A_CONNECTION + _OTHER_DESCRIPTORS
    if hard == resource.RLIM_INFINITY or hard > soft:
        soft = min(max(soft, wanted), hard) if hard != resource.RLIM_INFINITY else max(soft, wanted)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(_MAX_CONNECTIONS, (soft - _OTHER_DESCRIPTORS) // _DESCRIPTORS_A_CONNECTION))


class Front:
    """One port.

    Parameters
    ----------
    listen
        HOST:PORT; port 0 is a free one.
    limits
        Of this port.
    context
        What a new connection's TLS begins with; None: in the clear.

    Attributes
    ----------
    address
        HOST:PORT, with the port that was free.
    inside
        Where gRPC has to listen.

    Raises
    ------
    SettingsError
        The address cannot be bound.
    """

    def __init__(self, listen: str, limits: Limits, context: Callable[[], SSLContext] | None = None) -> None:
        self._limits, self._context = limits, context
        self._listeners = _bind(listen)
        self.address = f"{listen.rpartition(':')[0]}:{self._listeners[0].getsockname()[1]}"
        self._folder = tempfile.TemporaryDirectory(prefix="porestream-", dir=short_folder())
        self._socket = f"{self._folder.name}/grpc"
        self.inside = f"unix:{self._socket}"
        self._handshakes: dict[str, Allowance] = {}
        self._bytes: dict[str, Allowance] = {}
        if hasattr(SSLProtocol, "max_size"):
            SSLProtocol.max_size = _TLS_BUFFER_BYTES
        self._peers: dict[str, str] = {}  # by the name of our end of the connection to gRPC
        self._names = (f"porestream-{secrets.token_hex(8)}-{number}" for number in itertools.count())
        self._loop = asyncio.new_event_loop()
        self._accepting: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)

    def start(self) -> None:
        """Take connections; gRPC must listen."""
        self._thread.start()

    def close(self) -> None:
        """Take no more, and end those there are."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop)
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        self._folder.cleanup()

    async def _leave(self) -> None:
        """gRPC has stopped, so each connection ends when its last bytes are gone; who does not take them is cut off."""
        for task in self._accepting:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=_LAST_BYTES_S)
        self._loop.stop()

    def peer_of(self, name: str) -> str | None:
        """Who is behind the connection that gRPC calls so; None: not known."""
        return self._peers.get(name.removeprefix("unix-abstract:"))

    def took(self, peer: str, samples: int) -> None:
        """So much signal came from this peer, within its credit; less than 0: it was rejected. From any thread."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._loop.call_soon_threadsafe(self._allow_bytes, peer, -samples * _BYTES_PER_SAMPLE)

    def _allow_bytes(self, peer: str, count: float) -> float:
        """Take so many bytes off what this peer may send; for how many seconds to read nothing more of it."""
        wait_s = _of(self._bytes, peer, _BYTES_PER_S, _BYTES_AT_ONCE).take(count)
        return min(wait_s, _LONGEST_HOLD_S) if self._limits.peers > 1 else 0.0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = [self._loop.create_task(self._accept(listener)) for listener in self._listeners]
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, address = await self._loop.sock_accept(listener)
            except OSError as error:  # no descriptor left, or the client is gone already
                log.warning("a connection could not be taken", reason=str(error))
                await asyncio.sleep(0.05)
                continue
            peer = peer_name(address[0])
            if reason := self._limits.enter(peer):
                _refuse(reason)
                plain.close()
                continue
            task = self._loop.create_task(self._serve(plain, peer))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, plain: socket.socket, peer: str) -> None:
        """One connection's life."""
        outside = _Outside(lambda count: self._allow_bytes(peer, count))
        name = ""
        try:
            plain.setblocking(False)
            if plain.family != socket.AF_UNIX:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(_PREFACE_TIMEOUT_S):
                context = await self._turn(peer)
                await self._loop.connect_accepted_socket(
                    lambda: outside, plain, ssl=context, ssl_handshake_timeout=_PREFACE_TIMEOUT_S if context else None
                )
                await outside.has_spoken.wait()
            if outside.ended.is_set():
                return
            inside = _End(outside)
            name = next(self._names)
            self._peers[name] = peer
            await self._loop.create_connection(lambda: inside, sock=await self._connect(name))
            outside.join(inside)
            try:
                async with asyncio.timeout(_FIRST_CALL_TIMEOUT_S):
                    await outside.has_called.wait()
            except TimeoutError:
                _refuse(Closed.SILENT)
                return
            await outside.ended.wait()
        except TimeoutError:
            _refuse(Closed.SILENT)
        except (OSError, EOFError):  # of TLS, too
            if outside.transport is None:
                _refuse(Closed.HANDSHAKE)
        except Exception:  # a defect of ours ends this connection only
            log.exception("connection failed")
        finally:
            outside.close()
            if outside.is_held_for_frames:
                self._handshakes_of(peer).take(_LEFT_OWING_HANDSHAKES)
            if outside.transport is None:
                plain.close()
            self._peers.pop(name, None)
            self._limits.leave(peer)

    async def _turn(self, peer: str) -> SSLContext | None:
        """What TLS begins with, None: in the clear; when it is the peer's turn: a handshake takes a millisecond."""
        await asyncio.sleep(self._handshakes_of(peer).take())
        return self._context() if self._context else None

    def _handshakes_of(self, peer: str) -> Allowance:
        return _of(self._handshakes, peer, _HANDSHAKES_PER_S, _HANDSHAKES_AT_ONCE)

    async def _connect(self, name: str) -> socket.socket:
        """A connection to gRPC, which is told its name."""
        plain = socket.socket(socket.AF_UNIX)
        plain.setblocking(False)
        if sys.platform == "linux":
            plain.bind(f"\0{name}")
        try:
            await self._loop.sock_connect(plain, self._socket)
        except BaseException:
            plain.close()
            raise
        return plain


class _End(asyncio.Protocol):
    """One end of a connection: what comes goes to the other end, no faster than that takes it."""

    def __init__(self, other: "_End | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._holds = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None:
            self.other.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.hold()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.release()

    def hold(self) -> None:
        """Read nothing more until as many releases."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self) -> None:
        """Read again, if nobody else holds."""
        self._holds -= 1
        if self._holds == 0 and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self) -> None:
        """End it when what is written has gone; a peer that takes nothing for ten seconds is cut off."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.close()
            asyncio.get_running_loop().call_later(_PREFACE_TIMEOUT_S, transport.abort)


class _Outside(_End):
    """The client's end: its frames are looked at, and the first are kept until gRPC's end is there."""

    def __init__(self, allow_bytes: Callable[[int], float]) -> None:
        super().__init__()
        self._allow_bytes, self._meter = allow_bytes, FrameMeter()
        self._held_until_s = 0.0
        self._first = bytearray()
        self.has_spoken, self.has_called, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def data_received(self, data: bytes) -> None:
        try:
            wait_s = self._meter.feed(data)
        except Unwanted as unwanted:
            _refuse(unwanted.reason)
            self.has_spoken.set()
            self.ended.set()
            if self.transport is not None:
                self.transport.abort()
            return
        self._held_until_s = max(self._held_until_s, time.monotonic() + wait_s if wait_s else 0.0)
        if wait_s := max(wait_s, self._allow_bytes(len(data))):
            self.hold()
            asyncio.get_running_loop().call_later(wait_s, self.release)
        if self._meter.has_headers:
            self.has_called.set()
        if self.other is not None:
            super().data_received(data)
            return
        self._first += data
        if self._meter.has_preface and not self.has_spoken.is_set():
            self.has_spoken.set()
            self.hold()  # until gRPC's end is there

    @property
    def is_held_for_frames(self) -> bool:
        """Whether it has sent more frames than it may by now."""
        return time.monotonic() < self._held_until_s

    def join(self, inside: _End) -> None:
        """Have gRPC's end from now on."""
        self.other = inside
        if inside.transport is not None:
            inside.transport.write(bytes(self._first))
        self._first.clear()
        self.release()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for event in (self.has_spoken, self.has_called, self.ended):
            event.set()


def _of(allowances: dict[str, Allowance], peer: str, per_s: float, at_once: float) -> Allowance:
    if len(allowances) > 10_000:
        allowances.clear()
    return allowances.setdefault(peer, Allowance(per_s, at_once))


def peer_name(host: str) -> str:
    """Who it is, as limits count: an IPv4 address, or the 64 bits of an IPv6 one that a site is given."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _refuse(reason: Closed) -> None:
    CONNECTIONS_REFUSED.labels(reason).inc()


def _bind(listen: str) -> list[socket.socket]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    bound: list[socket.socket] = []
    try:
        if host in ("0.0.0.0", "::") and socket.has_dualstack_ipv6():
            bound.append(
                socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
            )
        else:
            names = ("127.0.0.1", "::1") if host == "localhost" else (host,)  # both, whatever /etc/hosts says
            found = [
                one
                for name in names
                for one in socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            ]
            for family, *_, address in dict.fromkeys(found):
                place = (address[0], bound[0].getsockname()[1], *address[2:]) if bound else address
                try:
                    bound.append(socket.create_server(place, family=family, backlog=_BACKLOG))
                except OSError:
                    if family == socket.AF_INET6 and len(found) > 1:  # a machine without it, which knows the name
                        continue
                    raise
    except OSError as error:
        for one in bound:
            one.close()
        raise SettingsError(
            f"cannot listen on {listen}: is it taken, or not an address here? ({error.strerror})"
        ) from error
    for one in bound:
        one.setblocking(False)
    return bound
