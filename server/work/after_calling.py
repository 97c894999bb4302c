"""What becomes of a read's bases between the network and the aligner, step by step.

A step takes the parts that the read has so far and gives those that go on: trimmed, cut in two, or none. To add one,
write it here and name it in STEPS.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from porestream.models.call.adapters import trim_adapters
from porestream.models.call.basecaller import CalledRead
from porestream.models.call.quality import mean_qscore
from porestream.models.files.config import ModelConfig
from porestream.server.streams.reads import CallSettings, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One sequence of a read on its way; at first the whole read.

    Attributes
    ----------
    called
        Its bases, qualities and moves.
    read_id
        Its own, 16 bytes; empty: the read's.
    first_sample
        Of the read's signal, where the part begins.
    """

    called: CalledRead
    read_id: bytes = b""
    first_sample: int = 0


Step = Callable[[list[Part], CallSettings, ModelConfig], list[Part]]


def trim(parts: list[Part], settings: CallSettings, config: ModelConfig) -> list[Part]:
    """Without sequencing adapters, unless they are to stay; RNA's was trimmed off the signal."""
    if settings.no_trim or config.is_rna:
        return parts
    return [replace(part, called=trim_adapters(part.called, settings.sequencing_kit)) for part in parts]


STEPS: tuple[Step, ...] = (trim,)


def after_calling(called: CalledRead, settings: CallSettings, config: ModelConfig) -> list[Part]:
    """The parts of a read that are aligned and delivered."""
    parts = [Part(called=called)]
    for step in STEPS:
        parts = step(parts, settings, config)
    return parts


def rate(part: Part, settings: CallSettings, config: ModelConfig) -> tuple[float, Status, str]:
    """A part's mean quality (Phred), and whether it is called or filtered, and why."""
    quality = mean_qscore(part.called.qualities_B, config.mean_qscore_start)
    if quality < settings.min_mean_qscore:
        return quality, Status.FILTERED, f"mean Q {quality:.2f} is below {settings.min_mean_qscore:g}"
    return quality, Status.CALLED, ""
