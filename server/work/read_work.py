"""What the pipeline has made of one read so far."""

from dataclasses import dataclass, field

from porestream.kernels.align.aligner import Alignment
from porestream.models.call.decode import Decoded
from porestream.models.call.prepare import PreparedRead
from porestream.server.work.after_calling import Part


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """Each stage adds its own.

    Attributes
    ----------
    started_s, stitched_s
        Monotonic times: taken up by a worker; all its bases there.
    prepared
        The scaled signal and its chunks.
    decoded
        Of each chunk, when it is called.
    parts, alignments
        After calling; of each part its alignments, when they are there.
    """

    started_s: float = 0.0
    stitched_s: float = 0.0
    prepared: PreparedRead | None = None
    decoded: list[Decoded | None] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    alignments: list[list[Alignment]] = field(default_factory=list)
