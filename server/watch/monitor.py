"""Check once a second how late the event loop is, what its streams hold, and whether the books balance."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from porestream.server.edge.rpc import BasecallService
from porestream.server.engine import Engine
from porestream.server.metrics import EVENT_LOOP_LAG_SECONDS
from porestream.server.reads import Priority
from porestream.server.streams.books import Books

_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """State of all streams at one moment; `imbalance` is how many reads the books and the streams differ by."""

    count: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(Priority, 0))
    unsent_results: int = 0
    unacknowledged_results: int = 0
    imbalance: int = 0
    draining: bool = False


class Monitor:
    """Keeps the latest state in `streams`, for threads that must not touch sessions themselves.

    Parameters
    ----------
    engine, service
        What to monitor.
    device_changed
        Called when the networks' device fails or recovers.
    """

    def __init__(
        self, engine: Engine, service: BasecallService, device_changed: Callable[[bool], Awaitable[None]]
    ) -> None:
        self._engine, self._service, self._device_changed = engine, service, device_changed
        self._was_up = True
        self.streams = Streams()

    async def run(self) -> None:
        """Check once a second until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.look()
            is_up = self._engine.pipeline.network_device.is_up
            if is_up != self._was_up:
                self._was_up = is_up
                await self._device_changed(is_up)
            due_s = loop.time() + _INTERVAL_S
            await asyncio.sleep(_INTERVAL_S)
            EVENT_LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due_s))

    def look(self) -> None:
        """Update `streams`. Call this only on the event loop, where nothing changes meanwhile."""
        sessions = self._service.sessions
        count = dict.fromkeys(Priority, 0)
        for session in sessions:
            count[session.settings.priority] += 1
        self.streams = Streams(
            count=count,
            unsent_results=sum(session.unsent_results for session in sessions),
            unacknowledged_results=sum(session.unacknowledged_results for session in sessions),
            imbalance=imbalance(self._engine.ledger.server, sum(session.held_reads for session in sessions)),
            draining=self._service.is_draining,
        )


def imbalance(books: Books, held_reads: int) -> int:
    """Return read attempts received, minus those ended, minus those held by streams. Not 0: something was lost."""
    ended = books.called + books.filtered + books.rejected + books.failed + books.abandoned
    return books.received - ended - held_reads
