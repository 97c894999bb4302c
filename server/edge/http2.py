"""Limits the rate of a client's HTTP/2 frames, looking only at their headers (RFC 9113, section 4.1).

Flow control limits data. Nothing limits the other frames, and gRPC keeps memory for some of them. So each kind has a
maximum rate, and a connection that exceeds it is read more slowly. Nothing is decoded.
"""

import time
from collections.abc import Callable

from porestream.server.metrics import Closed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER_BYTES = 9
_MAX_HEADER_BLOCK_BYTES = 16 << 10
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GO_AWAY, _WINDOW_UPDATE, _CONTINUATION = range(10)
_END_HEADERS = 0x4
_SMALL_BYTES = 32
_HEADERS_BYTES = 512  # size of a call's headers, with a token

# Frames per second in the long run, and in a burst. A stream of reads sends a few HEADERS in its lifetime, a
# WINDOW_UPDATE or two per 16 KiB of results, and at most ten PINGs or replies per second.
_CALLS = (100.0, 400.0)
_RATES = {
    _HEADERS: _CALLS,
    _PRIORITY: _CALLS,
    _RESET: _CALLS,
    _CONTINUATION: _CALLS,
    _SETTINGS: (1.0, 20.0),
    _PING: (100.0, 200.0),
    _WINDOW_UPDATE: (4000.0, 8000.0),
    _DATA: (2000.0, 4000.0),  # small frames only
}
_OTHERS = (10.0, 20.0)


class Unwanted(Exception):
    """Raised if the connection must be closed."""

    def __init__(self, reason: Closed) -> None:
        super().__init__(reason)
        self.reason = reason


class Allowance:
    """A token bucket: `per_s` per second, with bursts of up to `at_once`."""

    def __init__(self, per_s: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._at_once, self._clock = per_s, at_once, clock
        self._left, self._since_s = at_once, clock()

    def take(self, count: float = 1) -> float:
        """Take `count`; returns how many seconds to wait before taking more."""
        now_s = self._clock()
        self._left = min(self._at_once, self._left + (now_s - self._since_s) * self._per_s) - count
        self._since_s = now_s
        return max(0.0, -self._left / self._per_s)


class FrameMeter:
    """Follows the frames of one connection.

    Attributes
    ----------
    has_preface, has_headers
        Whether the client has sent the HTTP/2 preface, and started a call.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected = PREFACE
        self._header = bytearray()
        self._skip = 0  # bytes of the frame still to come
        self._block_bytes = 0  # size of the unfinished header block so far
        self._allowances: dict[int, Allowance] = {}
        self.has_preface = self.has_headers = False

    def feed(self, data: bytes) -> float:
        """Inspect received data; returns how many seconds to stop reading.

        Raises
        ------
        Unwanted
            The data is not HTTP/2, or headers are far too large.
        """
        position = wait_s = 0.0
        position = 0
        if self._expected:
            position = min(len(self._expected), len(data))
            if data[:position] != self._expected[:position]:
                raise Unwanted(Closed.PREFACE)
            self._expected = self._expected[position:]
            self.has_preface = not self._expected
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            piece = data[position : position + _FRAME_HEADER_BYTES - len(self._header)]
            self._header += piece
            position += len(piece)
            if len(self._header) == _FRAME_HEADER_BYTES:
                self._skip = int.from_bytes(self._header[:3], "big")
                wait_s = max(wait_s, self._frame(self._header[3], self._header[4], self._skip))
                self._header.clear()
        return wait_s

    def _frame(self, kind: int, flags: int, size: int) -> float:
        if kind in (_HEADERS, _CONTINUATION):
            self.has_headers = True
            self._block_bytes += size
            if self._block_bytes > _MAX_HEADER_BLOCK_BYTES:
                raise Unwanted(Closed.HEADERS)
            if flags & _END_HEADERS:
                self._block_bytes = 0
        if kind == _DATA and size > _SMALL_BYTES:
            return 0.0
        if kind not in self._allowances:
            self._allowances[kind] = Allowance(*_RATES.get(kind, _OTHERS), self._clock)
        # Headers also count by size: compressed headers expand to many times their size.
        return self._allowances[kind].take(max(1, size // _HEADERS_BYTES) if kind in (_HEADERS, _CONTINUATION) else 1)
