"""The reads that go in, with their signal, and the results that come out."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

import numpy as np
import numpy.typing as npt

from porestream.client.text import printable
from porestream.models.files.chemistry import Chemistry, chemistry_of_run


class ReadStatus(Enum):
    """A read's outcome. FILTERED: called, but below the minimum mean Q. REJECTED: the input's fault."""

    CALLED = "called"
    FILTERED = "filtered"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One acquisition, as POD5 describes it.

    `run_id` is the acquisition's id. `distinction` tells runs with the same id (as SAM can hold it) apart; it is empty
    if there are no others (`client/sources/runs.py`).
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
        """Unique among the runs of a call; printable, as it is the first part of the read group's id."""
        run_id = printable(self.run_id)
        return f"{run_id}-{self.distinction}" if self.distinction else run_id

    @property
    def chemistry(self) -> Chemistry:
        """The chemistry, from flow cell, kit and sample rate."""
        return chemistry_of_run(self.flow_cell_product_code, self.sequencing_kit, self.sample_rate_hz)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadInfo:
    """One read without its signal.

    current_pa = (adc + offset_adc) * scale_pa_per_adc. `start_sample` counts from the run's start. An open-pore level
    of 0 means unknown.
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
    """A complete read: its metadata and its signal_S, int16 ADC counts."""

    info: ReadInfo
    signal_S: npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """One alignment: the fields of a SAM record. `cigar` has BAM's encoding (length << 4 | operation)."""

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
        Phred, one byte per base, without +33.
    moves
        One byte per time step (0 or 1); empty unless requested.
    alignments
        Primary first; empty if unmapped, or without a reference.
    status
        CALLED or FILTERED; the parts of a split read may differ.
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
    """The result of one read. `parts` is empty if it was rejected or failed; `detail` says why."""

    info: ReadInfo
    status: ReadStatus
    detail: str = ""
    signal_samples: int
    scaling_midpoint_pa: float = 0.0
    scaling_dispersion_pa: float = 0.0
    scaling_strategy: str = ""
    parts: tuple[CalledPart, ...] = ()

    @property
    def is_aligned(self) -> bool:
        """Whether any part has an alignment."""
        return any(part.alignments for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIdentity:
    """What determines a read's bytes: equal identities give equal results, whatever the version."""

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
    """One sequence of a reference; `md5` as in SAM's @SQ M5, empty if unknown."""

    name: str
    length: int
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server has; `models` by name, with their chemistry. `window_samples` of signal keep it busy."""

    version: str
    device: str
    models: dict[str, Chemistry]
    references: dict[str, tuple[ReferenceSequence, ...]]
    max_chunk_samples: int
    max_message_bytes: int
    min_chunk_credit_samples: int
    window_samples: int
