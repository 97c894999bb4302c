"""Tools for chaos.py and soak.py: a proxy that cuts connections, a server on a port, and its books from a scrape."""

import asyncio
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/end_to_end"))
from servers import Server, _start

UP, DOWN = "up", "down"
Link = tuple[asyncio.StreamWriter, asyncio.StreamWriter]
_RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER of 0 seconds makes a close a reset


class Proxy:
    """A TCP proxy on a local port. It can cut connections at any byte, and stop forwarding."""

    def __init__(self, upstream: int, rate_bytes_s: float | None = None) -> None:
        self.passed = {UP: 0, DOWN: 0}
        self.cuts = 0
        self._upstream, self._rate_bytes_s = upstream, rate_bytes_s
        self._left: dict[str, tuple[int, bool]] = {}
        self._links: set[Link] = set()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._running = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        self._running.wait()

    def cut_after(self, way: str, count: int, reset: bool) -> None:
        """Cut the connection that carries the `count`th byte from now on, by a reset or by closing it normally."""
        self._left[way] = count, reset

    def cut(self, reset: bool) -> None:
        """Cut all connections now."""
        self._left.clear()
        self._loop.call_soon_threadsafe(self._cut_all, reset)

    def freeze(self) -> None:
        """Forward nothing until `thaw`."""
        self._loop.call_soon_threadsafe(self._thawed.clear)

    def thaw(self) -> None:
        """Resume forwarding, starting with what was held back."""
        self._loop.call_soon_threadsafe(self._thawed.set)

    def close(self) -> None:
        """Cut all connections and accept no more."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._closing, self._thawed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._thawed.set()
        server = await asyncio.start_server(self._connected, sock=self._socket)
        self._running.set()
        await self._closing.wait()
        server.close()
        self._cut_all(reset=True)

    def _cut_all(self, reset: bool) -> None:
        for link in list(self._links):
            self._end(link, reset)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = writer, far_writer
        self._links.add(link)
        await asyncio.gather(self._pump(reader, UP, link), self._pump(far_reader, DOWN, link))
        for end in link:
            end.close()
        self._links.discard(link)

    async def _pump(self, reader: asyncio.StreamReader, way: str, link: Link) -> None:
        writer = link[way == UP]
        try:
            while data := await reader.read(4096):
                await self._thawed.wait()
                left, reset = self._left.get(way, (len(data) + 1, False))
                writer.write(data[:left])
                self.passed[way] += len(data[:left])
                await writer.drain()
                if left <= len(data):
                    del self._left[way]
                    self._end(link, reset)
                elif way in self._left:
                    self._left[way] = left - len(data), reset
                if self._rate_bytes_s:
                    await asyncio.sleep(len(data) / self._rate_bytes_s)
            writer.write_eof()
        except OSError:
            self._end(link, reset=True)

    def _end(self, link: Link, reset: bool) -> None:
        self.cuts += link in self._links
        self._links.discard(link)
        for writer in link:
            if writer.is_closing():
                continue
            if reset:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            else:
                writer.close()


def free_port() -> int:
    """Return a free port that no outgoing connection will take while the server on it is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class TcpServer(Server):
    """`porestream serve` on a port, with metrics. It can be started repeatedly."""

    def __init__(self, folder: Path, *flags: object) -> None:
        super().__init__(folder)
        self.port, metrics_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self._arguments = ["serve", "--listen", self.address, "--metrics-port", metrics_port, *flags]

    def start(self) -> None:
        self.process = _start(self._log, *self._arguments)
        deadline_s = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    return
            assert self.process.is_alive(), f"the server does not start: {self.log[-2000:]}"
            assert time.monotonic() < deadline_s, "the server does not start"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        assert self.process.pid
        os.kill(self.process.pid, number)

    @property
    def log(self) -> str:
        """The log of this server process and all earlier ones."""
        return self._log.read_text() if self._log.exists() else ""


class Scrape(NamedTuple):
    """What a scrape says about the books and about client connections."""

    unbalanced: dict[str, int]
    reads_open: int
    connections: int


_WANTED = ("porestream_reads_", "porestream_books_", "porestream_connections")


def scrape(url: str) -> Scrape | None:
    """Scrape the server; return None if it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            lines = answer.read().decode().splitlines(keepends=True)
    except OSError:
        return None
    books: Counter[str] = Counter()
    reads_open = connections = 0
    text = "".join(line for line in lines if line.startswith(_WANTED))  # the parser is slow
    for sample in itertools.chain.from_iterable(family.samples for family in text_string_to_metric_families(text)):
        group, count = f"{sample.labels.get('model')} {sample.labels.get('priority')}", int(sample.value)
        if sample.name == "porestream_reads_received_total":
            books[group] += count
        elif sample.name == "porestream_reads_total":
            books[group] -= count
        elif sample.name == "porestream_reads_open":
            books[group] -= count
            reads_open += count
        elif sample.name == "porestream_books_imbalance":
            books["streams"] += count
        elif sample.name == "porestream_connections":
            connections = count
    return Scrape({group: count for group, count in books.items() if count}, reads_open, connections)
