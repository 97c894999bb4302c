"""Steps between basecalling and alignment, such as trimming.

A step takes the read's parts so far and returns the parts that go on: trimmed, split in two, or none. To add one, write
it here and add it to STEPS.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from porestream.models.call.adapters import trim_adapters
from porestream.models.call.basecaller import CalledRead
from porestream.models.call.quality import mean_qscore
from porestream.models.files.config import ModelConfig
from porestream.server.reads import CallSettings, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One sequence of a read; at first the whole read.

    Attributes
    ----------
    called
        Bases, qualities and moves.
    read_id
        The part's own id, 16 bytes; empty: the read's id.
    first_sample
        Where the part begins in the read's signal.
    """

    called: CalledRead
    read_id: bytes = b""
    first_sample: int = 0


Step = Callable[[list[Part], CallSettings, ModelConfig], list[Part]]


def trim(parts: list[Part], settings: CallSettings, config: ModelConfig) -> list[Part]:
    """Trim sequencing adapters, unless `no_trim` is set. RNA adapters were already trimmed off the signal."""
    if settings.no_trim or config.is_rna:
        return parts
    return [replace(part, called=trim_adapters(part.called, settings.sequencing_kit)) for part in parts]


STEPS: tuple[Step, ...] = (trim,)


def after_calling(called: CalledRead, settings: CallSettings, config: ModelConfig) -> list[Part]:
    """Return the parts of a read to align and deliver."""
    parts = [Part(called=called)]
    for step in STEPS:
        parts = step(parts, settings, config)
    return parts


def rate(part: Part, settings: CallSettings, config: ModelConfig) -> tuple[float, Status, str]:
    """Return a part's mean quality (Phred), CALLED or FILTERED, and why it was filtered."""
    quality = mean_qscore(part.called.qualities_B, config.mean_qscore_start)
    if quality < settings.min_mean_qscore:
        return quality, Status.FILTERED, f"mean Q {quality:.2f} is below {settings.min_mean_qscore:g}"
    return quality, Status.CALLED, ""
