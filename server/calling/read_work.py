"""The pipeline's intermediate results for one read."""

from dataclasses import dataclass, field

from porestream.kernels.align.aligner import Alignment
from porestream.models.call.decode import Decoded
from porestream.models.call.prepare import PreparedRead
from porestream.server.calling.after_calling import Part


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """Each stage adds its results.

    Attributes
    ----------
    started_s, stitched_s
        Monotonic times when a worker started on the read, and when its sequence was complete.
    prepared
        The scaled signal and its chunks.
    decoded
        One entry per chunk; None until it is called.
    parts, alignments
        Parts after calling, and the alignments of each part.
    """

    started_s: float = 0.0
    stitched_s: float = 0.0
    prepared: PreparedRead | None = None
    decoded: list[Decoded | None] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    alignments: list[list[Alignment]] = field(default_factory=list)
