"""Handles client connections before gRPC gets them: TLS, connection limits, and timeouts for silent clients.

gRPC's own server has no limit per peer, crashes if certificates change while many clients connect (grpc/grpc#36693),
and keeps memory for useless frames. So it listens on a Unix socket in a folder that only this user can enter, and gets
only what passes the checks here. They run in a separate thread with its own event loop: docs/inside/decisions/0009.
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

from porestream.server.address import short_folder
from porestream.server.edge.http2 import Allowance, FrameMeter, Unwanted
from porestream.server.metrics import CONNECTIONS, CONNECTIONS_REFUSED, Closed
from porestream.server.settings import SettingsError

log = structlog.get_logger()

_PREFACE_TIMEOUT_S = 10.0  # with the TLS handshake
_FIRST_CALL_TIMEOUT_S = 30.0
_BUFFER_BYTES = 256 << 10
_BACKLOG = 512
_LAST_BYTES_S = 2.0
_LONGEST_HOLD_S = 1.0  # for too many bytes, so that a stream whose client is sending never looks silent for longer
_HANDSHAKES_PER_S, _HANDSHAKES_AT_ONCE = 50.0, 200.0
_LEFT_OWING_HANDSHAKES = 100.0  # charged if a connection ends while it is held, so that reconnecting doesn't help
# How much a peer may send while others are connected: useless bytes cost the server as much as signal does. Signal
# within its credit earns a peer more bytes than it used.
_BYTES_PER_S, _BYTES_AT_ONCE, _BYTES_PER_SAMPLE = 2e6, 16e6, 2.5
_TLS_BUFFER_BYTES = 32 << 10  # per connection; asyncio's default of 256 KiB adds up with many silent connections
_DESCRIPTORS_A_CONNECTION = 3  # two here, one in gRPC
_OTHER_DESCRIPTORS = 192
_MAX_CONNECTIONS = 4096


class Limits:
    """Limits the number of connections, in total and per peer."""

    def __init__(self, total: int) -> None:
        self.total, self.of_a_peer = total, max(1, total * 3 // 4)
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, peer: str) -> Closed | None:
        """Count one more connection. Returns None, or the reason if a limit is reached."""
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
        """Number of peers that have connections."""
        return len(self._open)

    def leave(self, peer: str) -> None:
        """Count one connection fewer."""
        with self._lock:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
        CONNECTIONS.dec()


def connection_limit() -> int:
    """Raise the file descriptor limit as far as allowed, and return how many connections fit into it."""
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
    """One port that clients connect to.

    Parameters
    ----------
    listen
        HOST:PORT; port 0: any free port.
    limits
        This port's limits.
    context
        Returns the TLS context for a new connection; None: no encryption.

    Attributes
    ----------
    address
        HOST:PORT, with the actual port.
    inside
        Address that gRPC must listen on.

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
        """Start accepting connections; gRPC must be listening."""
        self._thread.start()

    def close(self) -> None:
        """Stop accepting connections, and end the open ones."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop)
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        self._folder.cleanup()

    async def _leave(self) -> None:
        """Wait for the last bytes to be sent, now that gRPC has stopped; cut off clients that don't take them."""
        for task in self._accepting:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=_LAST_BYTES_S)
        self._loop.stop()

    def peer_of(self, name: str) -> str | None:
        """Return the peer behind the connection that gRPC knows by this name; None: unknown."""
        return self._peers.get(name.removeprefix("unix-abstract:"))

    def took(self, peer: str, samples: int) -> None:
        """Note signal that this peer sent within its credit; negative: it was rejected. Call it from any thread."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._loop.call_soon_threadsafe(self._allow_bytes, peer, -samples * _BYTES_PER_SAMPLE)

    def _allow_bytes(self, peer: str, count: float) -> float:
        """Deduct the bytes from what this peer may send; return for how many seconds to stop reading from it."""
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
            except OSError as error:  # no descriptor left, or the client has gone
                log.warning("could not accept a connection", reason=str(error))
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
        """Handle one connection from accept to close."""
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
        except (OSError, EOFError):  # includes TLS errors
            if outside.transport is None:
                _refuse(Closed.HANDSHAKE)
        except Exception:  # a bug of ours must end only this connection
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
        """Wait for the peer's turn (a handshake takes a millisecond), and return the TLS context; None: no TLS."""
        await asyncio.sleep(self._handshakes_of(peer).take())
        return self._context() if self._context else None

    def _handshakes_of(self, peer: str) -> Allowance:
        return _of(self._handshakes, peer, _HANDSHAKES_PER_S, _HANDSHAKES_AT_ONCE)

    async def _connect(self, name: str) -> socket.socket:
        """Connect to gRPC under this name."""
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
    """One end of a connection. It forwards data to the other end, no faster than the other end can take it."""

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
        """Stop reading until `release` was called as often as `hold`."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self) -> None:
        """Undo one `hold`; reading resumes after the last."""
        self._holds -= 1
        if self._holds == 0 and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self) -> None:
        """Close after sending what is buffered; a peer that hasn't taken it within ten seconds is cut off."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.close()
            asyncio.get_running_loop().call_later(_PREFACE_TIMEOUT_S, transport.abort)


class _Outside(_End):
    """The client's end. It checks the frames, and keeps the first ones until gRPC's end is connected."""

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
            self.hold()  # until gRPC's end is connected

    @property
    def is_held_for_frames(self) -> bool:
        """Whether the client has exceeded its frame rate and must wait."""
        return time.monotonic() < self._held_until_s

    def join(self, inside: _End) -> None:
        """Connect gRPC's end: send it what was kept, and forward from now on."""
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
    """Return the peer's name for the limits: its IPv4 address, or the /64 network of its IPv6 address."""
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
            names = ("127.0.0.1", "::1") if host == "localhost" else (host,)  # always both, whatever /etc/hosts says
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
                    if family == socket.AF_INET6 and len(found) > 1:  # the name resolves, but there is no IPv6 here
                        continue
                    raise
    except OSError as error:
        for one in bound:
            one.close()
        raise SettingsError(f"cannot listen on {listen}: {error.strerror}; choose another address or port") from error
    for one in bound:
        one.setblocking(False)
    return bound
