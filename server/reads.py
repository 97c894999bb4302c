"""The values passed through the server: chunks in, results out. Independent of protobuf, models and transport."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple
from uuid import UUID

import google_crc32c
import numpy as np
import numpy.typing as npt
import zstandard

from porestream.kernels.align.aligner import Alignment
from porestream.server.vbz import decode_vbz

# Far beyond any instrument's values, but small enough that everything computed from them is finite.
_MAX_OFFSET_ADC = _MAX_OPEN_PORE_PA = 1e6
_MIN_SCALE_PA, _MAX_SCALE_PA = 1e-6, 1e6


class Encoding(Enum):
    """How a chunk's samples are encoded."""

    INT16_LE = 1
    VBZ = 2


class Status(Enum):
    """What became of a read."""

    CALLED = "called"
    FILTERED = "filtered"
    REJECTED = "rejected"
    FAILED = "failed"
    TRY_AGAIN = "abandoned"  # no result: the client sends the read again, and the books count an abandoned attempt


class Priority(Enum):
    """Scheduling class; the value is the head start that others have over it, in samples of service.

    LIVE has its own lane (server/calling/scheduler.py), where the value doesn't apply.
    """

    LIVE = 0
    STANDARD = 1_000_000
    BULK = 3_000_000


class Reason(Enum):
    """Why a read is REJECTED; also a metric label."""

    INCOMPLETE = "incomplete"
    GAP = "gap"
    OVERLAP = "overlap"
    EMPTY = "empty"
    TOO_LONG = "too_long"
    CHUNK_SIZE = "chunk_size"
    UNDECODABLE = "undecodable"
    CHECKSUM = "checksum"
    CALIBRATION = "calibration"
    SIGNAL = "signal"  # the model cannot call it, for example because it is too short for one step
    MEMORY = "memory"


class Stage(Enum):
    """A stage of calling a complete read; a FAILED read names the stage that failed."""

    PREPARE = "prepare"
    BASECALL = "basecall"
    STITCH = "stitch"
    ALIGN = "align"


class StreamFault(Exception):
    """Raised to end the stream with this status (a name of grpc.StatusCode) and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InputFault(Exception):
    """Raised for bad input: the read is REJECTED with this message, and the stream goes on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Calibration(NamedTuple):
    """current_pa = (adc + offset_adc) * scale_pa_per_adc; an open-pore level of 0 means unknown."""

    offset_adc: float
    scale_pa_per_adc: float
    open_pore_level_pa: float = 0.0


class SignalPiece(NamedTuple):
    """Consecutive samples of a read as received, still encoded."""

    encoding: Encoding
    signal: bytes
    sample_count: int
    crc32c: int  # 0: absent

    def decode(self) -> npt.NDArray[np.int16]:
        """Decode the samples to int16.

        Raises
        ------
        InputFault
            The signal cannot be decoded, or its length or checksum differs from what the chunk says.
        """
        if self.encoding is Encoding.VBZ:
            samples = _decode_vbz(self.signal, self.sample_count)
        elif len(self.signal) != 2 * self.sample_count:
            raise InputFault(
                Reason.UNDECODABLE,
                f"{len(self.signal)} bytes of int16 signal cannot be {self.sample_count} samples; a sample is 2 bytes",
            )
        else:
            samples = np.frombuffer(self.signal, dtype="<i2")
        if self.crc32c and (actual := google_crc32c.value(samples.tobytes())) != self.crc32c:
            raise InputFault(
                Reason.CHECKSUM,
                f"checksum mismatch: signal has CRC-32C {actual:08x}, the chunk says {self.crc32c:08x}",
            )
        return samples


def _decode_vbz(signal: bytes, sample_count: int) -> npt.NDArray[np.int16]:
    if sample_count == 0:
        return np.empty(0, np.int16)
    try:
        # The decoder allocates the size that the frame claims, so check the claim first.
        if not 0 < zstandard.frame_content_size(signal) <= max_encoded_bytes(sample_count):
            raise InputFault(
                Reason.UNDECODABLE, f"undecodable VBZ: the frame's size does not fit {sample_count} samples"
            )
        return decode_vbz(signal, sample_count)
    except (zstandard.ZstdError, RuntimeError, ValueError) as error:
        raise InputFault(Reason.UNDECODABLE, f"undecodable VBZ: {error}") from error


def max_encoded_bytes(sample_count: int) -> int:
    """Return the most bytes that any encoding needs (VBZ: 2 bytes and a control bit per sample, and a frame)."""
    return 2 * sample_count + sample_count // 8 + 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The part of a read that came in one message."""

    read_id: bytes
    channel: int
    first_sample: int
    piece: SignalPiece
    calibration: Calibration | None
    end_of_read: bool


@dataclass(slots=True, eq=False, kw_only=True)
class OpenRead:
    """A read whose signal is still arriving."""

    read_id: bytes
    channel: int
    calibration: Calibration | None
    pieces: list[SignalPiece] = field(default_factory=list)
    samples: int = 0
    held_bytes: int = 0
    grown_s: float = 0.0  # when its last chunk came

    @property
    def name(self) -> str:
        """The read id as text."""
        return str(UUID(bytes=self.read_id))

    def append(self, chunk: Chunk) -> None:
        """Append the next chunk.

        Raises
        ------
        InputFault
            The chunk does not start where the samples so far end.
        """
        if chunk.first_sample != self.samples:
            reason = Reason.GAP if chunk.first_sample > self.samples else Reason.OVERLAP
            raise InputFault(
                reason,
                f"{reason.value}: a chunk begins at sample {chunk.first_sample}, but {self.samples} samples were "
                "received before it",
            )
        self.pieces.append(chunk.piece)
        self.samples += chunk.piece.sample_count

    def take_signal(self) -> npt.NDArray[np.int16]:
        """Decode and return the signal, freeing the received pieces one by one.

        Raises
        ------
        InputFault
            A piece cannot be decoded.
        """
        signal_S = np.empty(self.samples, np.int16)
        first = 0
        self.pieces.reverse()
        while self.pieces:
            piece = self.pieces.pop()
            signal_S[first : first + piece.sample_count] = piece.decode()
            first += piece.sample_count
        return signal_S

    def check_complete(self) -> None:
        """Raise InputFault unless the read can be called."""
        if self.samples == 0:
            raise InputFault(Reason.EMPTY, "empty: the read has no samples")
        if self.calibration is None:
            raise InputFault(Reason.CALIBRATION, "calibration missing: a read's first chunk must include it")
        offset, scale, open_pore_pa = self.calibration
        if not (abs(offset) <= _MAX_OFFSET_ADC and _MIN_SCALE_PA <= scale <= _MAX_SCALE_PA):
            raise InputFault(Reason.CALIBRATION, f"calibration unusable: offset {offset:g}, scale {scale:g} pA")
        if abs(open_pore_pa) > _MAX_OPEN_PORE_PA:  # NaN is an unknown level, as in POD5
            raise InputFault(Reason.CALIBRATION, f"calibration unusable: open-pore level {open_pore_pa:g} pA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a read's time went, in seconds."""

    queue_s: float = 0.0
    basecall_s: float = 0.0
    align_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledPart:
    """One called sequence; B bases, T time steps."""

    sequence: str
    qualities_B: npt.NDArray[np.uint8]
    moves_T: npt.NDArray[np.uint8]
    mean_qscore: float
    trimmed_samples: int
    stride: int
    alignments: list[Alignment]
    status: Status = Status.CALLED
    read_id: bytes = b""
    first_sample: int = 0

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        cigars = sum(alignment.cigar.nbytes + len(alignment.md) + 256 for alignment in self.alignments)
        return 2 * len(self.sequence) + self.moves_T.nbytes + cigars

    def samples_of(self, signal_samples: int) -> int:
        """Return the number of samples up to the part's end (tag ns): all, unless bases were trimmed off the end.

        In that case the moves end at least one stride before the signal. Always moves == (ns - ts) // stride.
        """
        end_sample = self.trimmed_samples + self.moves_T.size * self.stride
        return signal_samples if signal_samples - end_sample < self.stride else end_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """The complete result for one read."""

    read_id: bytes
    channel: int
    status: Status
    detail: str
    signal_samples: int
    scaling_midpoint_pa: float = 0.0
    scaling_dispersion_pa: float = 0.0
    scaling_strategy: str = ""
    parts: tuple[CalledPart, ...] = ()
    timings: Timings = Timings()
    cause: Reason | Stage | None = None  # why it was REJECTED, or where it FAILED

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory."""
        return 512 + sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """A stream's options, resolved to this server's models and references.

    Fields have the same names and meanings as in the protocol's CallOptions and RunInfo.
    """

    model: str
    reference: str = ""
    preset: str = ""
    priority: Priority = Priority.STANDARD
    min_mean_qscore: float = 0.0
    emit_moves: bool = False
    emit_md: bool = False
    no_trim: bool = False
    sample_rate_hz: int = 0
    flow_cell_product_code: str = ""
    sequencing_kit: str = ""
