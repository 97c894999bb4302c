import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignalEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNAL_ENCODING_UNSPECIFIED: _ClassVar[SignalEncoding]
    SIGNAL_ENCODING_INT16_LE: _ClassVar[SignalEncoding]
    SIGNAL_ENCODING_VBZ: _ClassVar[SignalEncoding]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LIVE: _ClassVar[Priority]
    PRIORITY_STANDARD: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]

class DecisionAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_ACTION_UNSPECIFIED: _ClassVar[DecisionAction]
    DECISION_ACTION_PROCEED: _ClassVar[DecisionAction]
    DECISION_ACTION_STOP_RECEIVING: _ClassVar[DecisionAction]
    DECISION_ACTION_UNBLOCK: _ClassVar[DecisionAction]

class ReadStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    READ_STATUS_UNSPECIFIED: _ClassVar[ReadStatus]
    READ_STATUS_CALLED: _ClassVar[ReadStatus]
    READ_STATUS_FILTERED: _ClassVar[ReadStatus]
    READ_STATUS_REJECTED: _ClassVar[ReadStatus]
    READ_STATUS_FAILED: _ClassVar[ReadStatus]
    READ_STATUS_TRY_AGAIN: _ClassVar[ReadStatus]

class StreamPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_PURPOSE_UNSPECIFIED: _ClassVar[StreamPurpose]
    STREAM_PURPOSE_RESULTS: _ClassVar[StreamPurpose]
    STREAM_PURPOSE_DECISIONS: _ClassVar[StreamPurpose]
SIGNAL_ENCODING_UNSPECIFIED: SignalEncoding
SIGNAL_ENCODING_INT16_LE: SignalEncoding
SIGNAL_ENCODING_VBZ: SignalEncoding
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LIVE: Priority
PRIORITY_STANDARD: Priority
PRIORITY_BULK: Priority
DECISION_ACTION_UNSPECIFIED: DecisionAction
DECISION_ACTION_PROCEED: DecisionAction
DECISION_ACTION_STOP_RECEIVING: DecisionAction
DECISION_ACTION_UNBLOCK: DecisionAction
READ_STATUS_UNSPECIFIED: ReadStatus
READ_STATUS_CALLED: ReadStatus
READ_STATUS_FILTERED: ReadStatus
READ_STATUS_REJECTED: ReadStatus
READ_STATUS_FAILED: ReadStatus
READ_STATUS_TRY_AGAIN: ReadStatus
STREAM_PURPOSE_UNSPECIFIED: StreamPurpose
STREAM_PURPOSE_RESULTS: StreamPurpose
STREAM_PURPOSE_DECISIONS: StreamPurpose

class StreamReadsRequest(_message.Message):
    __slots__ = ("open", "signal", "result_ack", "half_close", "heartbeat")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    RESULT_ACK_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    open: OpenStream
    signal: SignalBatch
    result_ack: ResultAck
    half_close: HalfClose
    heartbeat: Heartbeat
    def __init__(self, open: _Optional[_Union[OpenStream, _Mapping]] = ..., signal: _Optional[_Union[SignalBatch, _Mapping]] = ..., result_ack: _Optional[_Union[ResultAck, _Mapping]] = ..., half_close: _Optional[_Union[HalfClose, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class StreamReadsResponse(_message.Message):
    __slots__ = ("opened", "credit", "results", "decisions", "go_away", "heartbeat")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    opened: StreamOpened
    credit: Credit
    results: ResultBatch
    decisions: DecisionBatch
    go_away: GoAway
    heartbeat: Heartbeat
    def __init__(self, opened: _Optional[_Union[StreamOpened, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., results: _Optional[_Union[ResultBatch, _Mapping]] = ..., decisions: _Optional[_Union[DecisionBatch, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class OpenStream(_message.Message):
    __slots__ = ("run", "purpose", "options", "expected", "heartbeat_interval", "reconnects")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    RECONNECTS_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    purpose: StreamPurpose
    options: CallOptions
    expected: CallerIdentity
    heartbeat_interval: _duration_pb2.Duration
    reconnects: int
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., purpose: _Optional[_Union[StreamPurpose, str]] = ..., options: _Optional[_Union[CallOptions, _Mapping]] = ..., expected: _Optional[_Union[CallerIdentity, _Mapping]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reconnects: _Optional[int] = ...) -> None: ...

class StreamOpened(_message.Message):
    __slots__ = ("caller", "credit")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    caller: CallerIdentity
    credit: Credit
    def __init__(self, caller: _Optional[_Union[CallerIdentity, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ...) -> None: ...

class CallerIdentity(_message.Message):
    __slots__ = ("model", "model_sha256", "reference", "reference_sha256", "precision", "device_class", "version", "preset", "calling_revision")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SHA256_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    CALLING_REVISION_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_sha256: bytes
    reference: str
    reference_sha256: bytes
    precision: str
    device_class: str
    version: str
    preset: str
    calling_revision: int
    def __init__(self, model: _Optional[str] = ..., model_sha256: _Optional[bytes] = ..., reference: _Optional[str] = ..., reference_sha256: _Optional[bytes] = ..., precision: _Optional[str] = ..., device_class: _Optional[str] = ..., version: _Optional[str] = ..., preset: _Optional[str] = ..., calling_revision: _Optional[int] = ...) -> None: ...

class RunInfo(_message.Message):
    __slots__ = ("run_id", "flow_cell_id", "flow_cell_product_code", "sequencing_kit", "position", "sample_id", "experiment_id", "sample_rate_hz", "acquisition_start_time")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_CELL_ID_FIELD_NUMBER: _ClassVar[int]
    FLOW_CELL_PRODUCT_CODE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCING_KIT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    ACQUISITION_START_TIME_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    flow_cell_id: str
    flow_cell_product_code: str
    sequencing_kit: str
    position: str
    sample_id: str
    experiment_id: str
    sample_rate_hz: int
    acquisition_start_time: _timestamp_pb2.Timestamp
    def __init__(self, run_id: _Optional[str] = ..., flow_cell_id: _Optional[str] = ..., flow_cell_product_code: _Optional[str] = ..., sequencing_kit: _Optional[str] = ..., position: _Optional[str] = ..., sample_id: _Optional[str] = ..., experiment_id: _Optional[str] = ..., sample_rate_hz: _Optional[int] = ..., acquisition_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CallOptions(_message.Message):
    __slots__ = ("model", "reference", "preset", "priority", "min_mean_qscore", "emit_moves", "emit_md", "allow_chemistry_mismatch", "adaptive", "no_trim")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MIN_MEAN_QSCORE_FIELD_NUMBER: _ClassVar[int]
    EMIT_MOVES_FIELD_NUMBER: _ClassVar[int]
    EMIT_MD_FIELD_NUMBER: _ClassVar[int]
    ALLOW_CHEMISTRY_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    ADAPTIVE_FIELD_NUMBER: _ClassVar[int]
    NO_TRIM_FIELD_NUMBER: _ClassVar[int]
    model: str
    reference: str
    preset: str
    priority: Priority
    min_mean_qscore: float
    emit_moves: bool
    emit_md: bool
    allow_chemistry_mismatch: bool
    adaptive: AdaptiveOptions
    no_trim: bool
    def __init__(self, model: _Optional[str] = ..., reference: _Optional[str] = ..., preset: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., min_mean_qscore: _Optional[float] = ..., emit_moves: bool = ..., emit_md: bool = ..., allow_chemistry_mismatch: bool = ..., adaptive: _Optional[_Union[AdaptiveOptions, _Mapping]] = ..., no_trim: bool = ...) -> None: ...

class AdaptiveOptions(_message.Message):
    __slots__ = ("mode", "target_set", "target_bed", "deadline", "min_samples", "max_samples", "no_map_action", "above_max_action")
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODE_UNSPECIFIED: _ClassVar[AdaptiveOptions.Mode]
        MODE_ENRICH: _ClassVar[AdaptiveOptions.Mode]
        MODE_DEPLETE: _ClassVar[AdaptiveOptions.Mode]
    MODE_UNSPECIFIED: AdaptiveOptions.Mode
    MODE_ENRICH: AdaptiveOptions.Mode
    MODE_DEPLETE: AdaptiveOptions.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SET_FIELD_NUMBER: _ClassVar[int]
    TARGET_BED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MIN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NO_MAP_ACTION_FIELD_NUMBER: _ClassVar[int]
    ABOVE_MAX_ACTION_FIELD_NUMBER: _ClassVar[int]
    mode: AdaptiveOptions.Mode
    target_set: str
    target_bed: str
    deadline: _duration_pb2.Duration
    min_samples: int
    max_samples: int
    no_map_action: DecisionAction
    above_max_action: DecisionAction
    def __init__(self, mode: _Optional[_Union[AdaptiveOptions.Mode, str]] = ..., target_set: _Optional[str] = ..., target_bed: _Optional[str] = ..., deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., min_samples: _Optional[int] = ..., max_samples: _Optional[int] = ..., no_map_action: _Optional[_Union[DecisionAction, str]] = ..., above_max_action: _Optional[_Union[DecisionAction, str]] = ...) -> None: ...

class SignalBatch(_message.Message):
    __slots__ = ("batch_seq", "sent_at", "chunks")
    BATCH_SEQ_FIELD_NUMBER: _ClassVar[int]
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    batch_seq: int
    sent_at: _timestamp_pb2.Timestamp
    chunks: _containers.RepeatedCompositeFieldContainer[ReadChunk]
    def __init__(self, batch_seq: _Optional[int] = ..., sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[ReadChunk, _Mapping]]] = ...) -> None: ...

class ReadChunk(_message.Message):
    __slots__ = ("read_id", "channel", "well", "read_number", "start_sample", "first_sample", "sample_count", "encoding", "signal", "signal_crc32c", "calibration", "end_of_read", "end_reason", "decision_final")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    WELL_FIELD_NUMBER: _ClassVar[int]
    READ_NUMBER_FIELD_NUMBER: _ClassVar[int]
    START_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_CRC32C_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    END_OF_READ_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    DECISION_FINAL_FIELD_NUMBER: _ClassVar[int]
    read_id: bytes
    channel: int
    well: int
    read_number: int
    start_sample: int
    first_sample: int
    sample_count: int
    encoding: SignalEncoding
    signal: bytes
    signal_crc32c: int
    calibration: Calibration
    end_of_read: bool
    end_reason: str
    decision_final: bool
    def __init__(self, read_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., well: _Optional[int] = ..., read_number: _Optional[int] = ..., start_sample: _Optional[int] = ..., first_sample: _Optional[int] = ..., sample_count: _Optional[int] = ..., encoding: _Optional[_Union[SignalEncoding, str]] = ..., signal: _Optional[bytes] = ..., signal_crc32c: _Optional[int] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., end_of_read: bool = ..., end_reason: _Optional[str] = ..., decision_final: bool = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("offset_adc", "scale_pa_per_adc", "open_pore_level_pa")
    OFFSET_ADC_FIELD_NUMBER: _ClassVar[int]
    SCALE_PA_PER_ADC_FIELD_NUMBER: _ClassVar[int]
    OPEN_PORE_LEVEL_PA_FIELD_NUMBER: _ClassVar[int]
    offset_adc: float
    scale_pa_per_adc: float
    open_pore_level_pa: float
    def __init__(self, offset_adc: _Optional[float] = ..., scale_pa_per_adc: _Optional[float] = ..., open_pore_level_pa: _Optional[float] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("max_total_samples",)
    MAX_TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    max_total_samples: int
    def __init__(self, max_total_samples: _Optional[int] = ...) -> None: ...

class ResultBatch(_message.Message):
    __slots__ = ("first_result_seq", "results")
    FIRST_RESULT_SEQ_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    first_result_seq: int
    results: _containers.RepeatedCompositeFieldContainer[ReadResult]
    def __init__(self, first_result_seq: _Optional[int] = ..., results: _Optional[_Iterable[_Union[ReadResult, _Mapping]]] = ...) -> None: ...

class ResultAck(_message.Message):
    __slots__ = ("result_seq",)
    RESULT_SEQ_FIELD_NUMBER: _ClassVar[int]
    result_seq: int
    def __init__(self, result_seq: _Optional[int] = ...) -> None: ...

class ReadResult(_message.Message):
    __slots__ = ("read_id", "channel", "status", "detail", "signal_samples", "scaling_midpoint", "scaling_dispersion", "parts", "timings", "scaling_strategy")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SCALING_MIDPOINT_FIELD_NUMBER: _ClassVar[int]
    SCALING_DISPERSION_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SCALING_STRATEGY_FIELD_NUMBER: _ClassVar[int]
    read_id: bytes
    channel: int
    status: ReadStatus
    detail: str
    signal_samples: int
    scaling_midpoint: float
    scaling_dispersion: float
    parts: _containers.RepeatedCompositeFieldContainer[CalledRead]
    timings: Timings
    scaling_strategy: str
    def __init__(self, read_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., status: _Optional[_Union[ReadStatus, str]] = ..., detail: _Optional[str] = ..., signal_samples: _Optional[int] = ..., scaling_midpoint: _Optional[float] = ..., scaling_dispersion: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[CalledRead, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., scaling_strategy: _Optional[str] = ...) -> None: ...

class CalledRead(_message.Message):
    __slots__ = ("read_id", "split_start_sample", "sequence", "qualities", "mean_qscore", "samples", "trimmed_samples", "model_stride", "moves", "alignments", "status")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    SPLIT_START_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUALITIES_FIELD_NUMBER: _ClassVar[int]
    MEAN_QSCORE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MODEL_STRIDE_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    read_id: bytes
    split_start_sample: int
    sequence: str
    qualities: bytes
    mean_qscore: float
    samples: int
    trimmed_samples: int
    model_stride: int
    moves: bytes
    alignments: _containers.RepeatedCompositeFieldContainer[Alignment]
    status: ReadStatus
    def __init__(self, read_id: _Optional[bytes] = ..., split_start_sample: _Optional[int] = ..., sequence: _Optional[str] = ..., qualities: _Optional[bytes] = ..., mean_qscore: _Optional[float] = ..., samples: _Optional[int] = ..., trimmed_samples: _Optional[int] = ..., model_stride: _Optional[int] = ..., moves: _Optional[bytes] = ..., alignments: _Optional[_Iterable[_Union[Alignment, _Mapping]]] = ..., status: _Optional[_Union[ReadStatus, str]] = ...) -> None: ...

class Alignment(_message.Message):
    __slots__ = ("flag", "reference_name", "reference_start", "reference_end", "mapping_quality", "cigar", "score", "edit_distance", "md", "divergence")
    FLAG_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_NAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_START_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_END_FIELD_NUMBER: _ClassVar[int]
    MAPPING_QUALITY_FIELD_NUMBER: _ClassVar[int]
    CIGAR_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EDIT_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    MD_FIELD_NUMBER: _ClassVar[int]
    DIVERGENCE_FIELD_NUMBER: _ClassVar[int]
    flag: int
    reference_name: str
    reference_start: int
    reference_end: int
    mapping_quality: int
    cigar: _containers.RepeatedScalarFieldContainer[int]
    score: int
    edit_distance: int
    md: str
    divergence: float
    def __init__(self, flag: _Optional[int] = ..., reference_name: _Optional[str] = ..., reference_start: _Optional[int] = ..., reference_end: _Optional[int] = ..., mapping_quality: _Optional[int] = ..., cigar: _Optional[_Iterable[int]] = ..., score: _Optional[int] = ..., edit_distance: _Optional[int] = ..., md: _Optional[str] = ..., divergence: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "basecall", "align", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    BASECALL_FIELD_NUMBER: _ClassVar[int]
    ALIGN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    basecall: _duration_pb2.Duration
    align: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., basecall: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., align: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class DecisionBatch(_message.Message):
    __slots__ = ("decisions",)
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    def __init__(self, decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("read_id", "channel", "action", "samples_used", "bases_called", "latency", "rule")
    READ_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_USED_FIELD_NUMBER: _ClassVar[int]
    BASES_CALLED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    read_id: bytes
    channel: int
    action: DecisionAction
    samples_used: int
    bases_called: int
    latency: _duration_pb2.Duration
    rule: str
    def __init__(self, read_id: _Optional[bytes] = ..., channel: _Optional[int] = ..., action: _Optional[_Union[DecisionAction, str]] = ..., samples_used: _Optional[int] = ..., bases_called: _Optional[int] = ..., latency: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., rule: _Optional[str] = ...) -> None: ...

class HalfClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("grace", "reason")
    GRACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    grace: _duration_pb2.Duration
    reason: str
    def __init__(self, grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent_at",)
    SENT_AT_FIELD_NUMBER: _ClassVar[int]
    sent_at: _timestamp_pb2.Timestamp
    def __init__(self, sent_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ResolveCallerRequest(_message.Message):
    __slots__ = ("run", "options")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    run: RunInfo
    options: CallOptions
    def __init__(self, run: _Optional[_Union[RunInfo, _Mapping]] = ..., options: _Optional[_Union[CallOptions, _Mapping]] = ...) -> None: ...

class ResolveCallerResponse(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: CallerIdentity
    def __init__(self, caller: _Optional[_Union[CallerIdentity, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "calling_revision", "device", "models", "references", "encodings", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CALLING_REVISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    calling_revision: int
    device: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    encodings: _containers.RepeatedScalarFieldContainer[SignalEncoding]
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., calling_revision: _Optional[int] = ..., device: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ..., encodings: _Optional[_Iterable[_Union[SignalEncoding, str]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "weights_sha256", "pore", "molecule", "bases_per_second", "sample_rates_hz", "stride_samples", "loaded")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    PORE_FIELD_NUMBER: _ClassVar[int]
    MOLECULE_FIELD_NUMBER: _ClassVar[int]
    BASES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATES_HZ_FIELD_NUMBER: _ClassVar[int]
    STRIDE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    name: str
    weights_sha256: bytes
    pore: str
    molecule: str
    bases_per_second: int
    sample_rates_hz: _containers.RepeatedScalarFieldContainer[int]
    stride_samples: int
    loaded: bool
    def __init__(self, name: _Optional[str] = ..., weights_sha256: _Optional[bytes] = ..., pore: _Optional[str] = ..., molecule: _Optional[str] = ..., bases_per_second: _Optional[int] = ..., sample_rates_hz: _Optional[_Iterable[int]] = ..., stride_samples: _Optional[int] = ..., loaded: bool = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("name", "sequences", "presets")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PRESETS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequences: _containers.RepeatedCompositeFieldContainer[ReferenceSequence]
    presets: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., sequences: _Optional[_Iterable[_Union[ReferenceSequence, _Mapping]]] = ..., presets: _Optional[_Iterable[str]] = ...) -> None: ...

class ReferenceSequence(_message.Message):
    __slots__ = ("name", "length", "md5")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MD5_FIELD_NUMBER: _ClassVar[int]
    name: str
    length: int
    md5: str
    def __init__(self, name: _Optional[str] = ..., length: _Optional[int] = ..., md5: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_chunk_samples", "max_read_samples", "memory_budget_bytes", "max_streams", "max_open_reads", "min_chunk_credit_samples", "window_samples")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_READ_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_OPEN_READS_FIELD_NUMBER: _ClassVar[int]
    MIN_CHUNK_CREDIT_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_chunk_samples: int
    max_read_samples: int
    memory_budget_bytes: int
    max_streams: int
    max_open_reads: int
    min_chunk_credit_samples: int
    window_samples: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_chunk_samples: _Optional[int] = ..., max_read_samples: _Optional[int] = ..., memory_budget_bytes: _Optional[int] = ..., max_streams: _Optional[int] = ..., max_open_reads: _Optional[int] = ..., min_chunk_credit_samples: _Optional[int] = ..., window_samples: _Optional[int] = ...) -> None: ...

class WatchStatsRequest(_message.Message):
    __slots__ = ("run_id", "interval")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    interval: _duration_pb2.Duration
    def __init__(self, run_id: _Optional[str] = ..., interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchStatsResponse(_message.Message):
    __slots__ = ("as_of", "attempts_received", "attempts_called", "attempts_filtered", "attempts_rejected", "attempts_failed", "attempts_abandoned", "attempts_open", "reads_aligned", "samples_received", "bases_called", "samples_per_second", "bases_per_second", "backlog", "decision_latency_p50", "decision_latency_p99")
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_CALLED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FILTERED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_REJECTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FAILED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_ABANDONED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_OPEN_FIELD_NUMBER: _ClassVar[int]
    READS_ALIGNED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BASES_CALLED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BASES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    DECISION_LATENCY_P50_FIELD_NUMBER: _ClassVar[int]
    DECISION_LATENCY_P99_FIELD_NUMBER: _ClassVar[int]
    as_of: _timestamp_pb2.Timestamp
    attempts_received: int
    attempts_called: int
    attempts_filtered: int
    attempts_rejected: int
    attempts_failed: int
    attempts_abandoned: int
    attempts_open: int
    reads_aligned: int
    samples_received: int
    bases_called: int
    samples_per_second: float
    bases_per_second: float
    backlog: _duration_pb2.Duration
    decision_latency_p50: _duration_pb2.Duration
    decision_latency_p99: _duration_pb2.Duration
    def __init__(self, as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts_received: _Optional[int] = ..., attempts_called: _Optional[int] = ..., attempts_filtered: _Optional[int] = ..., attempts_rejected: _Optional[int] = ..., attempts_failed: _Optional[int] = ..., attempts_abandoned: _Optional[int] = ..., attempts_open: _Optional[int] = ..., reads_aligned: _Optional[int] = ..., samples_received: _Optional[int] = ..., bases_called: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., bases_per_second: _Optional[float] = ..., backlog: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decision_latency_p50: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decision_latency_p99: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
