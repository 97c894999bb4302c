"""Everything that a server's streams share."""

from dataclasses import dataclass

from porestream.kernels.align.aligner import Aligner
from porestream.models.call.basecaller import Basecaller
from porestream.server.calling.pipeline import Pipeline
from porestream.server.calling.scheduler import Scheduler
from porestream.server.streams.books import Ledger
from porestream.server.streams.budget import MemoryBudget


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Everything that all streams share."""

    basecallers: dict[str, Basecaller]
    aligners: dict[tuple[str, str], Aligner]
    pipeline: Pipeline
    budget: MemoryBudget
    ledger: Ledger
    max_streams: int
    max_read_samples: int
    window_samples: int  # of reads without a result, with which one stream can keep the device busy
    scheduler: Scheduler
    max_streams_per_peer: int = 1 << 30
