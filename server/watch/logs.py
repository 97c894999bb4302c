"""Structured logs on stderr that can neither block the server nor fill a disk.

A separate thread writes the lines, so logging never waits and never fails, even if the disk or the pipe is full or the
reader is gone. Dropped lines are counted.
"""

import atexit
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from porestream.server.metrics import LOG_LINES_DROPPED, Dropped

_QUEUED_LINES = 10_000
_MAX_LINE_BYTES = 32 << 10
_LAST_LINES_S = 2.0
_BURST_LINES, _LINES_PER_S = 100, 1.0
_UNTOLD = ("read_id",)


def configure_logging(log_format: str, *, read_ids: bool = False) -> "LineWriter":
    """Log JSON lines or plain text to stderr. Returns the writer; close it before writing anything else to stderr.

    Tracebacks leave out local variables, which may hold secrets. Read ids are left out unless `read_ids` is set. Of
    lines with the same event, the first hundred are written, then one per second, which says how many were dropped.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):  # sys.stderr was replaced by something that is not a file
        descriptor = 2
    writer = LineWriter(descriptor)
    atexit.register(writer.close)
    structlog.configure(
        processors=[
            RepeatLimit(),
            *([] if read_ids else [_without_read_ids]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.set_exc_info if as_text else structlog.processors.ExceptionRenderer(traceback),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if as_text
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(writer),  # type: ignore[arg-type]
    )
    return writer


def _without_read_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in _UNTOLD:
        event.pop(name, None)
    return event


class RepeatLimit:
    """A structlog processor that limits how often one event is logged. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, tuple[float, float, int]] = {}  # lines allowed, since when, lines dropped

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return the event or raise DropEvent; `left_out` is how many lines of the same event were dropped before."""
        name, now_s = str(event.get("event", "")), self._clock()
        with self._lock:
            allowed, since_s, left_out = self._states.get(name, (float(_BURST_LINES), now_s, 0))
            allowed = min(_BURST_LINES, allowed + (now_s - since_s) * _LINES_PER_S)
            if allowed < 1:
                self._states[name] = allowed, now_s, left_out + 1
                LOG_LINES_DROPPED.labels(Dropped.REPEATED).inc()
                raise structlog.DropEvent
            self._states[name] = allowed - 1, now_s, 0
        if left_out:
            event["left_out"] = left_out
        return event


class LineWriter:
    """A file-like object for loggers. A thread writes the lines to the descriptor; `write` never blocks or raises."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(_QUEUED_LINES)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        """Queue the text for writing; if the queue is full, count it as dropped."""
        line = text.encode(errors="backslashreplace")
        if len(line) > _MAX_LINE_BYTES:
            line = line[:_MAX_LINE_BYTES] + b"...\n"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            LOG_LINES_DROPPED.labels(Dropped.QUEUE_FULL).inc()

    def flush(self) -> None:
        """Do nothing: the thread writes soon."""

    def close(self) -> None:
        """Write what is left, for two seconds at most."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_LAST_LINES_S)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._put(line)
            except (OSError, ValueError):  # full disk, reader gone: the next line may get through
                LOG_LINES_DROPPED.labels(Dropped.UNWRITABLE).inc()

    def _put(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # another process made the terminal or pipe non-blocking
                select.select([], [self._descriptor], [])
