"""The status page's web server: read-only, single-threaded and bounded, so that requests slow down no basecalling.

The limits allow for browsers, which open up to six connections and ask every 5 s, and Prometheus: one, every 15 s.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import responses

import structlog

log = structlog.get_logger()

MOST_CONNECTIONS = 32
MOST_OF_A_PEER = 8
"""Open connections, in total and from one address. Further ones get a 503 at once."""
_A_SECOND, _AT_ONCE = 50.0, 32.0
"""Connections are accepted at this rate, after an initial burst. Others wait in the kernel's queue."""
_REQUEST_S = 5.0
_ANSWER_S = 10.0
_STUCK_S = 1.0
"""Time limits: for the whole request to arrive, and for the client to take the response. A connection whose request
hasn't arrived after the third may be closed to make room."""
_HEAD_BYTES = 16 << 10
_TARGET_BYTES = 2048
_NAMES_TOLD = 10
_TEXT = "text/plain; charset=utf-8"
_RESERVED = (".localhost", ".local", ".internal", ".svc")
_HEADERS = (
    ("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """A GET or HEAD request; header names are lower-case."""

    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response; `more` are headers beyond those that every response has."""

    code: int
    content_type: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """Raised for a request that gets an error response."""

    def __init__(self, code: int, text: str, *more: tuple[str, str]) -> None:
        super().__init__(text)
        self.response = Response(code=code, content_type=_TEXT, body=text.encode() + b"\n", more=more)


def host_of(header: str) -> str:
    """Return the host name in a Host header: lower case, without port, brackets and trailing dot."""
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def is_allowed(host: str, allowed_hosts: Collection[str]) -> bool:
    """Return whether to answer a request for this host name.

    An attacker's web page could point its own domain at this machine's address (DNS rebinding) and then read the status
    page through a visitor's browser. So names that anybody can register in the public DNS are refused. Allowed are IP
    addresses; names without a dot; names under localhost, local (mDNS, cluster.local), internal and svc (Kubernetes),
    which don't exist in the public DNS; and `allowed_hosts`: names, `*.DOMAIN` for every name below it, `*` for all.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    if (host and "." not in host) or host.endswith(_RESERVED) or "*" in allowed_hosts:
        return True
    return any(
        host == name or (name.startswith("*.") and host.endswith(name[1:]))
        for name in (name.strip().lower().removesuffix(".") for name in allowed_hosts)
    )


@dataclass(eq=False, slots=True, kw_only=True)
class _Connection:
    socket: socket.socket
    peer: str
    since_s: float = field(default_factory=time.monotonic)
    has_asked: bool = False
    is_answered: bool = False
    task: "asyncio.Task[None] | None" = None

    def gives_way(self) -> bool:
        """Whether it may be closed to make room: it has its answer, or has sent no full request in time."""
        return self.is_answered or (not self.has_asked and time.monotonic() - self.since_s > _STUCK_S)


class WebServer:
    """Answers requests in its own thread, until `close`.

    Parameters
    ----------
    listener
        A bound socket.
    answer
        Makes the response to a GET; called in that thread, so one at a time.
    allowed_hosts
        Host names that requests may use, beyond those that `is_allowed` accepts and this machine's own.
    """

    def __init__(
        self, listener: socket.socket, answer: Callable[[Request], Response], allowed_hosts: Collection[str] = ()
    ) -> None:
        self._listener, self._answer = listener, answer
        self._allowed = {*allowed_hosts, socket.gethostname()}
        self._told: set[str] = set()
        self._open: dict[_Connection, None] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        listener.setblocking(False)
        listener.listen(2 * MOST_CONNECTIONS)
        self._serving = self._loop.create_task(self._serve_all())
        self._thread = threading.Thread(target=self._run, name="status page", daemon=True)
        self._thread.start()
        # In a thread: without a network the look-up hangs.
        threading.Thread(target=self._add_own_name, name="own name", daemon=True).start()

    def close(self) -> None:
        """Stop serving; the port is free afterwards."""
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(_ANSWER_S)  # don't wait longer: the thread may be stuck reading a meter

    def _add_own_name(self) -> None:
        name = socket.getfqdn()
        self._allowed = self._allowed | {name}

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.close()

    async def _serve_all(self) -> None:
        try:
            await self._accept()
        finally:
            self._listener.close()
            left = list(self._open)
            tasks = [connection.task for connection in left if connection.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for connection in left:  # in case its task had not started
                connection.socket.close()

    async def _accept(self) -> None:
        next_s = 0.0
        while True:
            try:
                await self._somebody_comes()
                accepted, address = self._listener.accept()
                self._admit(_Connection(socket=accepted, peer=str(address[0])))
            except (BlockingIOError, ConnectionAbortedError):  # the client has left again
                continue
            except OSError as error:  # for example too many open files
                log.warning("the status page cannot accept connections", error=str(error))
                await asyncio.sleep(1.0)
            now_s = time.monotonic()
            next_s = max(next_s, now_s - _AT_ONCE / _A_SECOND) + 1 / _A_SECOND
            await asyncio.sleep(max(0.0, next_s - now_s))  # even sleep(0) lets accepted connections be served

    async def _somebody_comes(self) -> None:
        # loop.sock_accept would leak a connection that arrives just as it is cancelled.
        comes = asyncio.Event()
        self._loop.add_reader(self._listener, comes.set)
        try:
            await comes.wait()
        finally:
            self._loop.remove_reader(self._listener)

    def _admit(self, connection: _Connection) -> None:
        """Serve the connection if there is room or room can be made."""
        connection.socket.setblocking(False)
        of_peer = [other for other in self._open if other.peer == connection.peer]
        if len(of_peer) >= MOST_OF_A_PEER or len(self._open) >= MOST_CONNECTIONS:
            crowd = of_peer if len(of_peer) >= MOST_OF_A_PEER else list(self._open)
            oldest = next((other for other in crowd if other.gives_way()), None)
            if oldest is None or oldest.task is None:
                with connection.socket, suppress(OSError):
                    connection.socket.send(
                        _bytes(Response(code=503, content_type=_TEXT, body=b"too many connections; try again later\n"))
                    )
                return
            oldest.task.cancel()
            self._open.pop(oldest, None)
        self._open[connection] = None
        connection.task = self._loop.create_task(self._serve(connection))

    async def _serve(self, connection: _Connection) -> None:
        try:
            async with asyncio.timeout(_REQUEST_S):
                head = await self._head(connection.socket)
            connection.has_asked = True
            async with asyncio.timeout(_ANSWER_S):
                await self._loop.sock_sendall(connection.socket, self._respond(head))
            connection.is_answered = True
            connection.socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_STUCK_S):  # drain: with unread input the kernel would reset and drop the answer
                for _ in range(16):
                    if not await self._loop.sock_recv(connection.socket, _HEAD_BYTES):
                        break
        except OSError:
            pass  # the client left or is stuck (TimeoutError), which is not the server's error
        finally:
            self._open.pop(connection, None)
            connection.socket.close()

    async def _head(self, connection: socket.socket) -> bytes:
        """Read the request line and headers, up to the size limit."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= _HEAD_BYTES:
            got = await self._loop.sock_recv(connection, _HEAD_BYTES)
            if not got:
                raise ConnectionResetError("the client left before sending a full request")
            head += got
        return head

    def _respond(self, head: bytes) -> bytes:
        text, end, _ = head.partition(b"\r\n\r\n")
        line, *lines = text.decode("latin-1").split("\r\n")
        method = line.partition(" ")[0]
        try:
            if not end:
                raise _Refused(431, "the request's headers are too long")
            return _bytes(self._answer(self._request(line, lines)), has_body=method != "HEAD")
        except _Refused as refused:
            return _bytes(refused.response, has_body=method != "HEAD")
        except Exception:
            log.exception("the status page failed")
            return _bytes(Response(code=500, content_type=_TEXT, body=b"internal error; see the server's log\n"))

    def _request(self, line: str, lines: list[str]) -> Request:
        parts = line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise _Refused(400, "not an HTTP/1.1 request")
        method, target, _ = parts
        if any(character < " " and character != "\t" for one in (line, *lines) for character in one):
            raise _Refused(400, "the request has control characters in it")  # they could inject response headers
        if len(target) > _TARGET_BYTES:
            raise _Refused(414, "the URL is too long")
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (one.partition(":") for one in lines)]
        headers = dict(fields)
        if sum(name == "host" for name, _ in fields) > 1:
            raise _Refused(400, "the request has more than one Host header")
        # Every browser sends Host; a request without it doesn't come from one, so rebinding is no concern.
        if "host" in headers and not is_allowed(host := host_of(headers["host"]), self._allowed):
            self._tell(host)
            raise _Refused(
                421,
                "this host name is not allowed, because anybody could own it. If it is this server's name, add it to "
                "PORESTREAM_METRICS_ALLOWED_HOSTS (--metrics-allowed-hosts), or use the IP address instead",
            )
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "read-only: only GET and HEAD are allowed", ("Allow", "GET, HEAD"))
        return Request(target.partition("?")[0], headers)

    def _tell(self, host: str) -> None:
        """Log refused names, but only a few, because anybody can make them up."""
        if host not in self._told and len(self._told) < _NAMES_TOLD:
            self._told.add(host)
            log.warning(
                "refused a status page request for an unknown host name",
                host=host[:253],
                if_it_is_right="add it to metrics_allowed_hosts",
            )


def _bytes(response: Response, has_body: bool = True) -> bytes:
    headers = (
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        *_HEADERS,
        *response.more,
    )
    lines = [f"HTTP/1.1 {response.code} {responses[response.code]}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (response.body if has_body else b"")
