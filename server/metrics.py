"""Every server metric, defined once. `make docs` generates docs/operate/metrics.md from here.

To add one, define it here and use it where the thing happens. `counter`, `gauge` and `histogram` return an object to
count with; `pulled` metrics are read when Prometheus scrapes (collector.py). Label values come from closed sets: never
a run, read, sample or tenant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics


class Closed(StrEnum):
    """Why the server closed a connection."""

    TOTAL = "total"
    PEER = "peer"
    SILENT = "silent"
    HANDSHAKE = "handshake"
    HEADERS = "headers"
    PREFACE = "preface"


class Refused(StrEnum):
    """Why the server refused a call."""

    TOKEN = "token"  # missing or invalid
    LIMIT = "limit"


class Deferred(StrEnum):
    """Why the server sent an open read back to the client to be resent later."""

    IDLE = "idle"
    OTHERS = "others"


class Dropped(StrEnum):
    """Why a log line was dropped."""

    REPEATED = "repeated"
    QUEUE_FULL = "queue_full"
    UNWRITABLE = "unwritable"


class Row(StrEnum):
    """What a row of a batch was computed for."""

    CHUNK = "chunk"
    PADDING = "padding"


class Question(Enum):
    """The operator's question that a metric helps to answer."""

    KEEPING_UP = "Is it keeping up?"
    LIMIT = "Which stage is the bottleneck?"
    LATE = "How late is it?"
    LOST = "Is anything lost?"
    GOOD = "Are the calls good?"
    COST = "What does it cost?"
    RUNNING = "What is running?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One metric as shown in docs/operate/metrics.md; `kind` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    question: Question
    help: str


LABELS = {
    "model": "directory name of a served model",
    "priority": "live, standard, bulk",
    "status": "reads: called, filtered, rejected, failed, abandoned; streams: gRPC status codes",
    "reason": "rejected reads: incomplete, gap, overlap, empty, too_long, chunk_size, undecodable, checksum, "
    "calibration, signal, memory; alignments: size, drops, work, memory; log lines: repeated, queue_full, "
    "unwritable; calls: token, limit; deferred reads: idle, others; "
    "connections: total, peer, silent, handshake, headers, preface",
    "token": "the token's name in the token file; empty if it has none",
    "stage": "prepare, basecall, stitch, align; for queues also deliver, acknowledge",
    "row": "chunk, padding",
    "device": "cpu, cuda:N",
    "preset": "map-ont, lr:hq",
    "reference": "file name of a served reference",
}
"""The values each label can have. Labels that only _info metrics have describe this one server."""

DEFINITIONS: list[Definition] = []

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

disable_created_metrics()  # type: ignore[no-untyped-call]


def pulled(kind: str, name: str, unit: str, question: Question, text: str, labels: Sequence[str] = ()) -> Definition:
    """Define a metric that is read when Prometheus scrapes."""
    definition = Definition(
        name=f"porestream_{name}", kind=kind, unit=unit, labels=tuple(labels), question=question, help=text
    )
    DEFINITIONS.append(definition)
    return definition


def counter(
    name: str,
    unit: str,
    question: Question,
    text: str,
    labels: Sequence[str] = (),
    reasons: type[StrEnum] | None = None,
) -> Counter:
    """Define a counter, whose name ends in _total. With `reasons`, its only label is the reason.

    Every reason starts at 0: rate() misses the first increase of a counter that first appears with 1.
    """
    definition = pulled("counter", name, unit, question, text, ["reason"] if reasons else labels)
    made = Counter(definition.name, text, definition.labels)
    for reason in reasons or ():
        made.labels(reason)
    return made


def gauge(name: str, unit: str, question: Question, text: str, labels: Sequence[str] = ()) -> Gauge:
    """Define a gauge."""
    definition = pulled("gauge", name, unit, question, text, labels)
    return Gauge(definition.name, text, definition.labels)


def histogram(
    name: str, unit: str, question: Question, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = _SECONDS
) -> Histogram:
    """Define a histogram; buckets are upper bounds."""
    definition = pulled("histogram", name, unit, question, text, labels)
    return Histogram(definition.name, text, definition.labels, buckets=buckets)


# Is it keeping up?

_UP = Question.KEEPING_UP
READS_RECEIVED = pulled(
    "counter",
    "reads_received_total",
    "reads",
    _UP,
    "Read attempts started. A read sent again after its stream broke counts as a new attempt",
    ["model", "priority"],
)
SAMPLES_RECEIVED = pulled(
    "counter", "samples_received_total", "samples", _UP, "Samples of signal received", ["model", "priority"]
)
TOKEN_SAMPLES_RECEIVED = counter(
    "token_samples_received_total", "samples", _UP, "Samples of signal received, by token name", ["token"]
)
TOKEN_STREAMS = gauge("token_streams", "streams", _UP, "Open streams, by token name", ["token"])
SAMPLES_FINISHED = pulled(
    "counter", "samples_finished_total", "samples", _UP, "Samples of reads that have a result", ["model", "priority"]
)
BASES_CALLED = pulled("counter", "bases_called_total", "bases", _UP, "Bases called", ["model", "priority"])
BACKLOG = pulled(
    "gauge",
    "backlog_seconds",
    "seconds of sequencing",
    _UP,
    "Age of the oldest complete read that has no result yet. Credit limits it: signal beyond about 8 M samples per "
    "stream waits at the client and shows up as stalls",
    ["priority"],
)
QUEUED_SAMPLES = pulled(
    "gauge", "queued_samples", "samples", _UP, "Samples of complete reads waiting or being called", ["priority"]
)
STREAMS = pulled("gauge", "streams", "streams", _UP, "Open streams", ["priority"])
STREAMS_STALLED = pulled(
    "gauge",
    "streams_stalled",
    "streams",
    _UP,
    "Streams that cannot send because their credit is used up and the server cannot extend it. Normal for files, "
    "which are read faster than they are called; for live streams it means that signal waits at the sequencer",
    ["priority"],
)
CREDIT_STALL_SECONDS = pulled(
    "counter", "credit_stall_seconds_total", "stream-seconds", _UP, "Time streams spent stalled", ["priority"]
)

# Which stage is the bottleneck?

_LIMIT = Question.LIMIT
STAGE_SECONDS = histogram(
    "stage_seconds",
    "seconds",
    _LIMIT,
    "Time for one unit of work: a read in prepare, stitch and align, a batch in basecall",
    ["stage"],
)
STAGE_WAIT_SECONDS = histogram(
    "stage_wait_seconds",
    "seconds",
    _LIMIT,
    "Time spent waiting for a stage: a complete read for prepare, a batch's oldest chunk for basecall, a called read "
    "for alignment on the GPU, a result for delivery to the network",
    ["stage"],
)
STAGE_QUEUE = pulled(
    "gauge",
    "stage_queue",
    "reads or chunks",
    _LIMIT,
    "Items waiting for a stage: reads (prepare, align on the GPU, deliver, acknowledge) or chunks (basecall). "
    "acknowledge: results sent that the client has not stored yet",
    ["stage"],
)
WORKERS = pulled("gauge", "workers", "threads", _LIMIT, "Threads that prepare, call and align")
BATCH_FILL = histogram(
    "batch_fill_ratio",
    "ratio",
    _LIMIT,
    "Chunks in a batch, as a share of its capacity",
    ["model"],
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 1),
)
ROW_SAMPLES = counter(
    "row_samples_total",
    "samples",
    _LIMIT,
    "Samples of the rows that batches were computed with: of chunks, or padding of batches that were not full",
    ["model", "row"],
)
BATCH_STREAMS = histogram(
    "batch_streams", "streams", _LIMIT, "Streams whose chunks share a batch", ["model"], (1, 2, 3, 4, 8, 16, 32, 64)
)
EVENT_LOOP_LAG_SECONDS = histogram(
    "event_loop_lag_seconds",
    "seconds",
    _LIMIT,
    "How late the event loop's timers fire; every stream waits at least this long",
    (),
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)

# How late is it?

READ_LATENCY_SECONDS = histogram(
    "read_latency_seconds",
    "seconds",
    Question.LATE,
    "Time from receiving a read's last sample to handing its result to the network",
    ["priority"],
    (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)

# Is anything lost?

_LOST = Question.LOST
READS = pulled(
    "counter",
    "reads_total",
    "reads",
    _LOST,
    "Read attempts that ended: the result was acknowledged, or the stream broke (abandoned: the client sends the read "
    "again)",
    ["model", "priority", "status"],
)
READS_OPEN = pulled(
    "gauge", "reads_open", "reads", _LOST, "Read attempts whose result isn't acknowledged yet", ["model", "priority"]
)
BOOKS_IMBALANCE = pulled(
    "gauge",
    "books_imbalance",
    "reads",
    _LOST,
    "Read attempts received, minus those ended, minus those open in streams. Anything but 0 is a bug",
)
READS_REJECTED = counter(
    "reads_rejected_total", "reads", _LOST, "Reads rejected because of bad input, by reason", ["reason"]
)
READS_FAILED = counter(
    "reads_failed_total", "reads", _LOST, "Reads that failed through the server's fault, by stage", ["stage"]
)
BATCHES_RETRIED = counter(
    "batches_retried_total", "batches", _LOST, "Batches that failed and were retried chunk by chunk", ["model"]
)
STREAMS_OPENED = counter("streams_opened_total", "streams", _LOST, "Streams accepted", ["priority"])
STREAMS_RECONNECTED = counter(
    "streams_reconnected_total",
    "streams",
    _LOST,
    "Streams accepted from clients that reconnected after a break",
    ["priority"],
)
STREAMS_ENDED = counter(
    "streams_ended_total", "streams", _LOST, "Streams that ended or were refused, by gRPC status", ["status"]
)

READS_DEFERRED = counter(
    "reads_deferred_total",
    "reads",
    _LOST,
    "Open reads sent back to the client, to be resent later, because their memory was needed: they had received no "
    "signal for a while (idle), or their client was borrowing the most memory (others)",
    reasons=Deferred,
)
CALLS_REFUSED = counter(
    "calls_refused_total",
    "calls",
    _LOST,
    "Calls refused before they started: no token that allows them (token), or too many calls open in total or from "
    "one peer (limit)",
    reasons=Refused,
)
CONNECTIONS = gauge("connections", "connections", _LOST, "Open client connections, on all gRPC ports")
CONNECTIONS_REFUSED = counter(
    "connections_refused_total",
    "connections",
    _LOST,
    "Connections the server closed: limit reached (total), one peer's limit reached (peer), silent for too long "
    "(silent), TLS handshake failed (handshake), not HTTP/2 (preface), headers far too large (headers)",
    reasons=Closed,
)
SECRETS_STALE = gauge(
    "secrets_stale",
    "files",
    _LOST,
    "Secrets files (certificate, tokens) that changed and can no longer be used; the server keeps the old contents",
)
LOG_LINES_DROPPED = counter(
    "log_lines_dropped_total",
    "lines",
    _LOST,
    "Log lines dropped: too many of the same kind (repeated), the reader is too slow (queue_full), or the disk is full "
    "or the reader gone (unwritable)",
    reasons=Dropped,
)

# Are the calls good?

_GOOD = Question.GOOD
READ_MEAN_QSCORE = histogram(
    "read_mean_qscore", "Phred", _GOOD, "Mean quality of a read", ["model"], (5, 7, 8, 9, 10, 12, 15, 18, 20, 25, 30)
)
READ_LENGTH_BASES = histogram(
    "read_length_bases",
    "bases",
    _GOOD,
    "Length of a called read",
    ["model"],
    (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
)
ALIGNMENT_IDENTITY = histogram(
    "alignment_identity_ratio",
    "ratio",
    _GOOD,
    "Identity of a read's primary alignment: 1 - NM / columns, where insertions and deletions count as columns",
    ["model"],
    (0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995),
)
READS_TO_ALIGN = pulled(
    "counter", "reads_to_align_total", "reads", _GOOD, "Acknowledged reads in streams with a reference", ["model"]
)
ALIGNMENT_FALLBACKS = pulled(
    "counter",
    "alignment_fallbacks_total",
    "reads",
    Question.LIMIT,
    "Reads aligned by minimap2 on the CPU because the GPU could not: the gap between two anchors is too large (size), "
    "the score drops too far in it (drops), too many anchors (work), too large for memory even alone (memory)",
    ["reason"],
)
READS_ALIGNED = pulled(
    "counter", "reads_aligned_total", "reads", _GOOD, "Reads in reads_to_align_total that aligned", ["model"]
)

# What does it cost?

_COST = Question.COST
DEVICE_BUSY_SECONDS = pulled(
    "counter",
    "device_busy_seconds_total",
    "slot-seconds",
    _COST,
    "Time the device was busy. CPU: summed over workers; GPU: time with a batch running",
    ["device"],
)
DEVICE_SLOTS = pulled(
    "gauge", "device_slots", "slots", _COST, "How much can be busy at once: CPU: its workers; GPU: 1", ["device"]
)
DEVICE_ENERGY_JOULES = pulled(
    "counter",
    "device_energy_joules_total",
    "joules",
    _COST,
    "Energy used by the whole device, by any process, since the first reading: from NVML (GPU) or the kernel's "
    "powercap (RAPL packages, CPU). Absent if neither is available",
    ["device"],
)
DEVICE_MEMORY_USED = pulled(
    "gauge", "device_memory_used_bytes", "bytes", _COST, "GPU memory used by all processes (NVML)", ["device"]
)
DEVICE_MEMORY_TOTAL = pulled("gauge", "device_memory_total_bytes", "bytes", _COST, "GPU memory (NVML)", ["device"])
DEVICE_UTILIZATION = pulled(
    "gauge",
    "device_utilization_ratio",
    "ratio",
    _COST,
    "Share of NVML's last sampling period during which a kernel ran",
    ["device"],
)
DEVICE_TEMPERATURE = pulled(
    "gauge", "device_temperature_celsius", "degrees Celsius", _COST, "GPU temperature (NVML)", ["device"]
)

# What is running?

_RUNNING = Question.RUNNING
BUILD_INFO = pulled(
    "gauge", "build_info", "1", _RUNNING, "Versions: server, Python, PyTorch", ["version", "python", "torch"]
)
MODEL_INFO = pulled(
    "gauge",
    "model_info",
    "1",
    _RUNNING,
    "A served model, and what determines the bases it calls",
    ["model", "sha256", "precision", "device_class"],
)
REFERENCE_INFO = pulled(
    "gauge", "reference_info", "1", _RUNNING, "A served reference", ["reference", "preset", "sha256"]
)
DEVICE_INFO = pulled("gauge", "device_info", "1", _RUNNING, "The device the networks run on", ["device", "name"])
DEVICE_UP = pulled(
    "gauge", "device_up", "0 or 1", _RUNNING, "0: every chunk failed in the device's last three batches", ["device"]
)
MEMORY_BUDGET = pulled("gauge", "memory_budget_bytes", "bytes", _RUNNING, "Memory budget for streams: --memory-budget")
MEMORY_FOR_SIGNAL = pulled(
    "gauge",
    "memory_for_signal_bytes",
    "bytes",
    _RUNNING,
    "Part of the memory budget for signal, results and unused credit: half",
)
MEMORY_CHARGED = pulled(
    "gauge", "memory_charged_bytes", "bytes", _RUNNING, "Signal, results and unused credit charged to streams"
)
MEMORY_LIMIT = pulled("gauge", "memory_limit_bytes", "bytes", _RUNNING, "Memory of the container, or of the machine")
MAX_STREAMS = pulled("gauge", "max_streams", "streams", _RUNNING, "Limit on open streams: --max-streams")
DRAINING = pulled("gauge", "draining", "0 or 1", _RUNNING, "1: the server is draining")
CERTIFICATE_EXPIRY = pulled(
    "gauge",
    "tls_certificate_expiry_timestamp_seconds",
    "Unix time in seconds",
    _RUNNING,
    "When the TLS certificate expires. Absent without TLS",
)


def reference_page() -> str:
    """Return docs/operate/metrics.md."""
    lines = [
        "# Metrics",
        "`porestream serve --metrics-port P` serves these metrics at `/metrics`, and a status page at `/`. `make docs`",
        "generates this page from `server/metrics.py`.",
    ]
    for question in Question:
        lines += ["", f"## {question.value}", "| Metric | Type | Unit | Labels | What it is |", "|---|---|---|---|---|"]
        lines += [
            f"| `{one.name}` | {one.kind} | {one.unit} | {', '.join(one.labels)} | {one.help} |"
            for one in DEFINITIONS
            if one.question is question
        ]
    lines += ["", "## Labels", "| Label | Values |", "|---|---|"]
    lines += [f"| {label} | {values} |" for label, values in LABELS.items()]
    lines += [
        "",
        "A run, read, sample or tenant is never a label. Histograms have `_bucket`, `_sum` and `_count`. The Python",
        "Prometheus client adds its own: `process_resident_memory_bytes`, `process_cpu_seconds_total` and others.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
