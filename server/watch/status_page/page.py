"""The status page: `/`, `/status.json`, `/metrics`. Read-only; it shows no run, read or sample."""

import gzip
import json
import re
import socket
import time
from collections.abc import Callable, Collection, Iterator
from importlib.resources import files

import structlog
from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from porestream.server.watch.status_page.history import History, snapshot
from porestream.server.watch.status_page.numbers import status
from porestream.server.watch.status_page.web import Request, Response, WebServer

log = structlog.get_logger()

_KEPT_S = 1.0
_VERSIONS = {"0.0.1", "0.0.4", "1.0.0"}
"""Prometheus format versions that its client library knows. It would also accept any made-up version."""
_MOST_MADE = 6
"""Most responses cached at a time: the JSON, and Prometheus formats with and without compression."""


class _Moment(Collector):
    """One collection of the metrics and the responses made from it, reused for every request within a second."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry
        self._families: list[Metric] | None = None
        self._made: dict[str, bytes | None] = {}
        self._until_s = time.monotonic() + _KEPT_S

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._until_s

    def collect(self) -> Iterator[Metric]:
        if self._families is None:
            self._families = list(self._registry.collect())
            self._until_s = time.monotonic() + _KEPT_S
        return iter(self._families)

    def has(self, key: str) -> bool:
        """Whether this response was made already."""
        return key in self._made

    def get(self, key: str, make: Callable[["_Moment"], bytes]) -> bytes | None:
        """Return the response for this key, making it if needed; None if that failed, which is logged once."""
        if key not in self._made:
            try:
                self._made[key] = make(self)
            except Exception:
                log.exception("the status page failed", what=key)
                self._made[key] = None
        return self._made[key]

    def __len__(self) -> int:
        return len(self._made)


class Page:
    """Serves `/`, its script and style, `/status.json` and `/metrics`.

    The last two are made at most once a second, from one collection. Not thread-safe.
    """

    def __init__(self, registry: Collector, history: History) -> None:
        folder = files(__package__ or "")
        self._registry, self._history = registry, history
        self._moment = _Moment(registry)
        self._assets = {
            path: Response(code=200, content_type=content_type, body=folder.joinpath(name).read_bytes())
            for path, name, content_type in (
                ("/", "index.html", "text/html; charset=utf-8"),
                ("/page.js", "page.js", "text/javascript; charset=utf-8"),
                ("/style.css", "style.css", "text/css; charset=utf-8"),
            )
        }

    def __call__(self, request: Request) -> Response:
        """Return the response to a request."""
        if request.path in self._assets:
            return self._assets[request.path]
        if request.path == "/favicon.ico":  # browsers ask for it by themselves
            return Response(code=204, content_type="image/x-icon", body=b"")
        if request.path not in ("/status.json", "/metrics"):
            return Response(
                code=404,
                content_type="text/plain; charset=utf-8",
                body=b"not found; try /, /status.json or /metrics\n",
            )
        if self._moment.is_over:
            self._moment = _Moment(self._registry)
        return self._status() if request.path == "/status.json" else self._metrics(request.headers)

    def _status(self) -> Response:
        def make(moment: _Moment) -> bytes:
            return json.dumps(status(snapshot(moment), self._history), allow_nan=False).encode()

        return _made("application/json", self._moment.get("/status.json", make))

    def _metrics(self, headers: dict[str, str]) -> Response:
        """Return the metrics in the format that Prometheus asks for, compressed if it accepts that."""
        accept = headers.get("accept", "")
        versions = set(re.findall(r"version=([^;,\s]*)", accept))
        encode, content_type = choose_encoder(accept if versions <= _VERSIONS else "")
        if not self._moment.has(content_type) and len(self._moment) >= _MOST_MADE:
            encode, content_type = choose_encoder("")  # every client accepts this one, too
        text = self._moment.get(content_type, encode)
        if text is None or not gzip_accepted(headers.get("accept-encoding", "")):
            return _made(content_type, text)
        packed = self._moment.get(f"{content_type}, gzip", lambda _: gzip.compress(text, 6))
        return _made(content_type, packed, ("Content-Encoding", "gzip"))


def _made(content_type: str, body: bytes | None, *more: tuple[str, str]) -> Response:
    if body is None:
        return Response(
            code=500, content_type="text/plain; charset=utf-8", body=b"internal error; see the server's log\n"
        )
    return Response(code=200, content_type=content_type, body=body, more=more)


class StatusServer:
    """Serves the status page on `port` until `close`."""

    def __init__(self, listener: socket.socket, page: Page, history: History, allowed_hosts: Collection[str]) -> None:
        self.port: int = listener.getsockname()[1]
        self._history = history
        self._server = WebServer(listener, page, allowed_hosts)

    def close(self) -> None:
        """Stop serving; the port is free afterwards."""
        self._server.close()
        self._history.close()


def start(
    registry: Collector,
    port: int,
    host: str,
    history: History | None = None,
    allowed_hosts: Collection[str] = (),
) -> StatusServer:
    """Serve the page in a thread, and start recording the last hour.

    Parameters
    ----------
    registry
        The metrics to show.
    port, host
        Address to listen on; port 0: any free port.
    history
        A history that the caller ticks; None: create one.
    allowed_hosts
        Host names that requests may use, beyond those that nobody else can own (`web.is_allowed`).

    Raises
    ------
    OSError
        The address cannot be bound.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # two sockets may bind the port, but only one may listen
    except OSError:
        listener.close()
        raise
    own = History(registry) if history is None else history
    if history is None:
        own.start()
    return StatusServer(listener, Page(registry, own), own, allowed_hosts)
