"""What goes in and what comes out: reads with their signal, and what became of them."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

import numpy as np
import numpy.typing as npt

from porestream.client.text import printable
from porestream.models.files.chemistry import Chemistry, chemistry_of_run


class ReadStatus(Enum):
    """What became of a read. FILTERED is called, but below the least mean Q; REJECTED is the input's fault."""

    CALLED = "called"
    FILTERED = "filtered"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One acquisition, as POD5 describes it.

    `run_id` is the acquisition's id; `distinction` tells a run from others of the same id, as SAM can hold it, and is
    empty where there are none (`client/sources/runs.py`).
    """

    run_id: str
    sample_rate_hz: int
    flow_cell_id: str = ""
    flow_cell_product_code: str = ""
    sequencing_kit: str = ""
    position: str = ""
    sample_id: str = ""
    experiment_id: str = ""
    acquisition_start_time: datetime | None = None
    protocol_run_id: str = ""
    distinction: str = ""

    @property
    def key(self) -> str:
        """What tells this run from all others of a call; the first part of its read group's id, and so printable."""
        run_id = printable(self.run_id)
        return f"{run_id}-{self.distinction}" if self.distinction else run_id

    @property
    def chemistry(self) -> Chemistry:
        """What its flow cell, kit and sample rate say."""
        return chemistry_of_run(self.flow_cell_product_code, self.sequencing_kit, self.sample_rate_hz)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadInfo:
    """One read without its signal.

    current_pa = (adc + offset_adc) * scale_pa_per_adc; start_sample counts from the run's start; an open-pore level of
    0 is unknown.
    """

    read_id: UUID
    run: RunInfo
    offset_adc: float
    scale_pa_per_adc: float
    channel: int = 0
    well: int = 0
    read_number: int = 0
    start_sample: int = 0
    end_reason: str = ""
    file_name: str = ""
    open_pore_level_pa: float = 0.0
    pore_type: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SignalRead:
    """A complete read: its facts and its signal_S, int16 ADC counts."""

    info: ReadInfo
    signal_S: npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """One alignment: the fields of a SAM record. `cigar` in BAM's encoding (length << 4 | operation)."""

    flag: int
    reference_name: str
    reference_start: int
    reference_end: int
    mapping_quality: int
    cigar: tuple[int, ...]
    score: int
    edit_distance: int
    md: str
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledPart:
    """One called sequence.

    Attributes
    ----------
    qualities
        Phred, one byte a base, without +33.
    moves
        One byte a time step (0 or 1); empty unless asked for.
    alignments
        Primary first; empty: unmapped, or no reference.
    status
        CALLED or FILTERED; of a read that was split parts may differ.
    """

    read_id: UUID
    sequence: str
    qualities: bytes
    mean_qscore: float
    samples: int
    trimmed_samples: int
    stride_samples: int
    moves: bytes
    alignments: tuple[Alignment, ...]
    status: ReadStatus = ReadStatus.CALLED


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """Everything that became of one read. `parts` is empty where it was rejected or failed; `detail` says why."""

    info: ReadInfo
    status: ReadStatus
    detail: str
    signal_samples: int
    scaling_midpoint_pa: float
    scaling_dispersion_pa: float
    scaling_strategy: str
    parts: tuple[CalledPart, ...]

    @property
    def is_aligned(self) -> bool:
        """Whether any part has an alignment."""
        return any(part.alignments for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIdentity:
    """What decides a read's bytes: equal identities give equal results, whatever the version."""

    model: str
    model_sha256: str
    reference: str
    reference_sha256: str
    preset: str
    precision: str
    device_class: str
    version: str
    calling_revision: int = 0


@dataclass(frozen=True, slots=True)
class ReferenceSequence:
    """One sequence of a reference; md5 as SAM's @SQ M5, empty where unknown."""

    name: str
    length: int
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server has; `models` by name, with what they are for."""

    version: str
    device: str
    models: dict[str, Chemistry]
    references: dict[str, tuple[ReferenceSequence, ...]]
    max_chunk_samples: int
    max_message_bytes: int
    min_chunk_credit_samples: int
