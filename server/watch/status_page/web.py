"""The web server under the status page: read-only, in one thread, and bounded: who asks slows down no call.

Why by so much: a browser opens up to six connections and asks every 5 s, Prometheus opens one, every 15 s.
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
"""Connections at a time, of all and from one address. More are answered 503, at once."""
_A_SECOND, _AT_ONCE = 50.0, 32.0
"""Connections are taken at this pace, after so many at once. Others wait in the kernel's queue."""
_REQUEST_S = 5.0
_ANSWER_S = 10.0
_STUCK_S = 1.0
"""A request must have come after the first, all together; its answer must have been taken after the second. One that
has not come after the third makes room where there is none."""
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
    """A GET or a HEAD; `headers` have lower-case names."""

    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer; of `more` headers beside those that all have."""

    code: int
    content_type: str
    body: bytes
    more: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """A request that is not looked at further."""

    def __init__(self, code: int, text: str, *more: tuple[str, str]) -> None:
        super().__init__(text)
        self.response = Response(code=code, content_type=_TEXT, body=text.encode() + b"\n", more=more)


def host_of(header: str) -> str:
    """The name in a Host header: without port, brackets and a last dot, in lower case."""
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def is_allowed(host: str, allowed_hosts: Collection[str]) -> bool:
    """Whether a page that was asked for by this name may be given.

    A browser on a machine that can reach this one may have been sent here by a web page of anybody's, whose name its
    owner has made to mean this machine's address (DNS rebinding); that page could then read what is here. So names that
    anybody can have in the public DNS are refused, and these are taken: addresses; names without a dot; names under
    localhost, local (mDNS, cluster.local), internal and svc (Kubernetes), which the public DNS does not have; and
    `allowed_hosts`: names, `*.DOMAIN` for all below it, `*` for all.
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
        """Whether it may be cut off for another: nothing is to be done for it, or it does not say what."""
        return self.is_answered or (not self.has_asked and time.monotonic() - self.since_s > _STUCK_S)


class WebServer:
    """Answers requests in a thread of its own, until `close`.

    Parameters
    ----------
    listener
        A socket that is bound.
    answer
        Makes the response to a GET; called in that thread, so one at a time.
    allowed_hosts
        Names under which it may be asked, beside those that `is_allowed` takes and this machine's own.
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
        # Where there is no network the look-up hangs.
        threading.Thread(target=self._add_own_name, name="own name", daemon=True).start()

    def close(self) -> None:
        """End it: the port is free then."""
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(_ANSWER_S)  # longer, if a meter hangs that is just being read

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
            for connection in left:  # of a task that had not begun
                connection.socket.close()

    async def _accept(self) -> None:
        next_s = 0.0
        while True:
            try:
                await self._somebody_comes()
                accepted, address = self._listener.accept()
                self._admit(_Connection(socket=accepted, peer=str(address[0])))
            except (BlockingIOError, ConnectionAbortedError):  # who came has left
                continue
            except OSError as error:  # the process has too many files open, say
                log.warning("the status page cannot be asked for", error=str(error))
                await asyncio.sleep(1.0)
            now_s = time.monotonic()
            next_s = max(next_s, now_s - _AT_ONCE / _A_SECOND) + 1 / _A_SECOND
            await asyncio.sleep(max(0.0, next_s - now_s))  # in any case those that were taken shall be served

    async def _somebody_comes(self) -> None:
        # loop.sock_accept loses, and leaves open, a connection that comes just when it is cancelled.
        comes = asyncio.Event()
        self._loop.add_reader(self._listener, comes.set)
        try:
            await comes.wait()
        finally:
            self._loop.remove_reader(self._listener)

    def _admit(self, connection: _Connection) -> None:
        """Serve it, if there is room, or can be made."""
        connection.socket.setblocking(False)
        of_peer = [other for other in self._open if other.peer == connection.peer]
        if len(of_peer) >= MOST_OF_A_PEER or len(self._open) >= MOST_CONNECTIONS:
            crowd = of_peer if len(of_peer) >= MOST_OF_A_PEER else list(self._open)
            oldest = next((other for other in crowd if other.gives_way()), None)
            if oldest is None or oldest.task is None:
                with connection.socket, suppress(OSError):
                    connection.socket.send(
                        _bytes(
                            Response(code=503, content_type=_TEXT, body=b"too many ask at a time; ask again later\n")
                        )
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
            async with asyncio.timeout(_STUCK_S):  # what was not read would have the kernel take back the answer
                for _ in range(16):
                    if not await self._loop.sock_recv(connection.socket, _HEAD_BYTES):
                        break
        except OSError:
            pass  # clients that left or are stuck (TimeoutError) are no errors of the server
        finally:
            self._open.pop(connection, None)
            connection.socket.close()

    async def _head(self, connection: socket.socket) -> bytes:
        """The request's line and headers, as far as they go."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= _HEAD_BYTES:
            got = await self._loop.sock_recv(connection, _HEAD_BYTES)
            if not got:
                raise ConnectionResetError("left before it had asked")
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
            return _bytes(Response(code=500, content_type=_TEXT, body=b"this failed; the server's log says why\n"))

    def _request(self, line: str, lines: list[str]) -> Request:
        parts = line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise _Refused(400, "this is no request of HTTP/1.1")
        method, target, _ = parts
        if any(character < " " and character != "\t" for one in (line, *lines) for character in one):
            raise _Refused(400, "there are control characters in it")  # they could begin lines of the answer
        if len(target) > _TARGET_BYTES:
            raise _Refused(414, "the address is too long")
        fields = [(name.strip().lower(), value.strip()) for name, _, value in (one.partition(":") for one in lines)]
        headers = dict(fields)
        if sum(name == "host" for name, _ in fields) > 1:
            raise _Refused(400, "there are two Host headers")
        # Every browser sends it; without it somebody asks who is none.
        if "host" in headers and not is_allowed(host := host_of(headers["host"]), self._allowed):
            self._tell(host)
            raise _Refused(
                421,
                "the page is not given to who asks by this name, which could be anybody's. If it is this server's, add "
                "it to PORESTREAM_METRICS_ALLOWED_HOSTS (--metrics-allowed-hosts); or ask by address",
            )
        if method not in ("GET", "HEAD"):
            raise _Refused(405, "read-only: GET and HEAD", ("Allow", "GET, HEAD"))
        return Request(target.partition("?")[0], headers)

    def _tell(self, host: str) -> None:
        """Log names that were refused: a few, for anybody can make them up."""
        if host not in self._told and len(self._told) < _NAMES_TOLD:
            self._told.add(host)
            log.warning(
                "the status page was asked for by a name that is not known",
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
