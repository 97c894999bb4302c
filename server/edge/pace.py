"""Limits how fast one client's messages are read while other clients have streams too.

All streams share one event loop, and the amount of signal says little about the loop time it costs: a thousand garbage
reads take as long as hours of real signal. So a client's messages may take a tenth of the loop's time, plus an
allowance for the signal in them, unless it is rejected. Beyond that the server reads more slowly, as if the connection
were slow. A client that is alone may use all of the time.
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable

from porestream.server.edge.http2 import Allowance

_SHARE, _AT_ONCE_S = 0.1, 0.2
_MESSAGE_S = 0.0002  # gRPC's own time for one message, both ways
_SAMPLE_S = 10e-9  # allowance per sample: 50 us for a second at 5 kHz, about what its chunk and its result take
_LONGEST_S = 1.0  # so that a stream whose client is sending never looks silent for longer


class Pace:
    """Paces all streams of a server. Not thread-safe.

    Parameters
    ----------
    clock
        Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._streams: Counter[Hashable] = Counter()
        self._allowances: dict[Hashable, Allowance] = {}

    def enter(self, client: Hashable) -> None:
        """Count one more stream of this client."""
        self._streams[client] += 1
        if client not in self._allowances:
            self._allowances[client] = Allowance(_SHARE, _AT_ONCE_S, self._clock)

    def leave(self, client: Hashable) -> None:
        """Count one stream of this client fewer."""
        self._streams[client] -= 1
        if not self._streams[client]:
            del self._streams[client], self._allowances[client]

    def wait_s(self, client: Hashable, handled_s: float, samples: int = 0) -> float:
        """Return how many seconds to stop reading a stream, after a message that took `handled_s` to handle."""
        wait_s = self._allowances[client].take(handled_s + _MESSAGE_S - samples * _SAMPLE_S)
        return min(wait_s, _LONGEST_S) if len(self._streams) > 1 else 0.0

    def answered(self, client: Hashable, made_s: float, rejected_samples: int) -> None:
        """Charge the client for a response that took `made_s` to make, and for the samples it rejects."""
        self._allowances[client].take(made_s + rejected_samples * _SAMPLE_S)
