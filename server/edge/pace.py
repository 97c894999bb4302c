"""How fast the messages of one client are taken while others have streams too.

All streams share one event loop, and its time is not shared by signal: a thousand reads of garbage take as much of it
as hours of honest signal do. So a client's messages may take a tenth of the loop's time, and what the signal in them is
worth, unless it is rejected; what is beyond is read later, as from a slow connection. Who is alone may have it all.
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable

from porestream.server.edge.http2 import Allowance

_SHARE, _AT_ONCE_S = 0.1, 0.2
_MESSAGE_S = 0.0002  # gRPC's own work for one message, both ways
_SAMPLE_S = 10e-9  # what signal is worth: a second of 5 kHz 50 us, about what its chunk and its result take
_LONGEST_S = 1.0  # a stream whose client speaks is never silent for longer


class Pace:
    """Of all streams of a server. Not thread-safe.

    Parameters
    ----------
    clock
        Monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._streams: Counter[Hashable] = Counter()
        self._allowances: dict[Hashable, Allowance] = {}

    def enter(self, client: Hashable) -> None:
        """A stream of this client begins."""
        self._streams[client] += 1
        if client not in self._allowances:
            self._allowances[client] = Allowance(_SHARE, _AT_ONCE_S, self._clock)

    def leave(self, client: Hashable) -> None:
        """It has ended."""
        self._streams[client] -= 1
        if not self._streams[client]:
            del self._streams[client], self._allowances[client]

    def wait_s(self, client: Hashable, handled_s: float, samples: int = 0) -> float:
        """For how many seconds to read nothing more of a stream, whose message took so long and had so much signal."""
        wait_s = self._allowances[client].take(handled_s + _MESSAGE_S - samples * _SAMPLE_S)
        return min(wait_s, _LONGEST_S) if len(self._streams) > 1 else 0.0

    def answered(self, client: Hashable, made_s: float, rejected_samples: int) -> None:
        """An answer took so long to make, and says that so much signal was worth nothing."""
        self._allowances[client].take(made_s + rejected_samples * _SAMPLE_S)
