"""Every metric of the server, defined once: Prometheus' objects, and docs/metrics.md (`make docs`).

To add one: define it here, and use it where the thing happens. `counter`, `gauge` and `histogram` make an object to
count with; `pulled` ones are asked for when Prometheus asks (collector.py). Labels are from closed sets: no run,
read, sample or tenant ever becomes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics


class Closed(StrEnum):
    """Why a connection was closed from here."""

    TOTAL = "total"
    PEER = "peer"
    SILENT = "silent"
    HANDSHAKE = "handshake"
    HEADERS = "headers"
    PREFACE = "preface"


class Refused(StrEnum):
    """Why a call was turned away."""

    TOKEN = "token"  # not one
    LIMIT = "limit"


class Deferred(StrEnum):
    """Why an open read was sent back, to come again."""

    IDLE = "idle"
    OTHERS = "others"


class Dropped(StrEnum):
    """Why a line of the log was left out."""

    REPEATED = "repeated"
    QUEUE_FULL = "queue_full"
    UNWRITABLE = "unwritable"


class Question(Enum):
    """What an operator asks."""

    KEEPING_UP = "Is it keeping up?"
    LIMIT = "Which stage limits?"
    LATE = "How late is it?"
    LOST = "Is anything lost?"
    GOOD = "Are the calls good?"
    COST = "What does it cost?"
    RUNNING = "What runs?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One metric, as docs/metrics.md shows it; `kind` is "counter", "gauge" or "histogram"."""

    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    question: Question
    help: str


LABELS = {
    "model": "a model that is served, by its directory's name",
    "priority": "live, standard, bulk",
    "status": "of reads: called, filtered, rejected, failed, abandoned; of streams: gRPC's status codes",
    "reason": "incomplete, gap, overlap, empty, too_long, chunk_size, undecodable, checksum, calibration, "
    "signal, memory; of alignments: size, drops, work, memory; of log lines: repeated, queue_full, "
    "unwritable; of calls: token, limit; of deferred reads: idle, others; "
    "of connections: total, peer, silent, handshake, headers, preface",
    "token": "the name that the token file gives a client's token, empty where it gives none",
    "stage": "prepare, basecall, stitch, align; where reads wait also deliver, acknowledge",
    "device": "cpu, cuda:N",
    "preset": "map-ont, lr:hq",
    "reference": "a reference that is served, by its file's name",
}
"""What each label's values are. Those of _info metrics are facts of the one server."""

DEFINITIONS: list[Definition] = []

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

disable_created_metrics()  # type: ignore[no-untyped-call]


def pulled(kind: str, name: str, unit: str, question: Question, text: str, labels: Sequence[str] = ()) -> Definition:
    """A metric whose value is asked for when Prometheus asks."""
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
    """A counter; its name ends in _total. With `reasons`, its label is the reason.

    Each reason is there from the beginning, for rate() does not see a counter that begins at 1.
    """
    definition = pulled("counter", name, unit, question, text, ["reason"] if reasons else labels)
    made = Counter(definition.name, text, definition.labels)
    for reason in reasons or ():
        made.labels(reason)
    return made


def gauge(name: str, unit: str, question: Question, text: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge."""
    definition = pulled("gauge", name, unit, question, text, labels)
    return Gauge(definition.name, text, definition.labels)


def histogram(
    name: str, unit: str, question: Question, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = _SECONDS
) -> Histogram:
    """A histogram; buckets are upper bounds."""
    definition = pulled("histogram", name, unit, question, text, labels)
    return Histogram(definition.name, text, definition.labels, buckets=buckets)


# Is it keeping up?

_UP = Question.KEEPING_UP
READS_RECEIVED = pulled(
    "counter",
    "reads_received_total",
    "reads",
    _UP,
    "Attempts at reads begun: a read that is sent again after a break is another attempt",
    ["model", "priority"],
)
SAMPLES_RECEIVED = pulled(
    "counter", "samples_received_total", "samples", _UP, "Samples of signal received", ["model", "priority"]
)
TOKEN_SAMPLES_RECEIVED = counter(
    "token_samples_received_total", "samples", _UP, "Samples of signal received, by the name of the token", ["token"]
)
TOKEN_STREAMS = gauge("token_streams", "streams", _UP, "Streams being served, by the name of the token", ["token"])
SAMPLES_FINISHED = pulled(
    "counter", "samples_finished_total", "samples", _UP, "Samples of reads that got a result", ["model", "priority"]
)
BASES_CALLED = pulled("counter", "bases_called_total", "bases", _UP, "Bases called", ["model", "priority"])
BACKLOG = pulled(
    "gauge",
    "backlog_seconds",
    "seconds of sequencing",
    _UP,
    "Age of the oldest complete read without a result. Credit bounds it: what a stream has beyond some 8 M samples "
    "waits at the client, and shows as stalls",
    ["priority"],
)
QUEUED_SAMPLES = pulled(
    "gauge", "queued_samples", "samples", _UP, "Samples of complete reads that wait or are called", ["priority"]
)
STREAMS = pulled("gauge", "streams", "streams", _UP, "Streams being served", ["priority"])
STREAMS_STALLED = pulled(
    "gauge",
    "streams_stalled",
    "streams",
    _UP,
    "Streams that must wait before they may send: their credit is used up, and the server cannot extend it. "
    "Usual for files, which are read faster than called; of live streams signal waits at the sequencer",
    ["priority"],
)
CREDIT_STALL_SECONDS = pulled(
    "counter", "credit_stall_seconds_total", "stream-seconds", _UP, "Time that streams were stalled", ["priority"]
)

# Which stage limits?

_LIMIT = Question.LIMIT
STAGE_SECONDS = histogram(
    "stage_seconds",
    "seconds",
    _LIMIT,
    "Time of one piece of work: prepare, stitch and align of a read, basecall of a batch",
    ["stage"],
)
STAGE_WAIT_SECONDS = histogram(
    "stage_wait_seconds",
    "seconds",
    _LIMIT,
    "How long work waited before a stage: a complete read before prepare, a batch's oldest chunk before basecall, a "
    "called read before a device aligns it, a result before it is delivered to the network",
    ["stage"],
)
STAGE_QUEUE = pulled(
    "gauge",
    "stage_queue",
    "reads or chunks",
    _LIMIT,
    "What waits before a stage: reads (prepare, align on a device, deliver, acknowledge: results that the client has "
    "not stored yet) or chunks (basecall)",
    ["stage"],
)
WORKERS = pulled("gauge", "workers", "threads", _LIMIT, "Threads that prepare, call and align")
BATCH_FILL = histogram(
    "batch_fill_ratio",
    "ratio",
    _LIMIT,
    "Chunks in a batch, of those that it has room for",
    ["model"],
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 1),
)
BATCH_STREAMS = histogram(
    "batch_streams", "streams", _LIMIT, "Streams whose chunks share a batch", ["model"], (1, 2, 3, 4, 8, 16, 32, 64)
)
EVENT_LOOP_LAG_SECONDS = histogram(
    "event_loop_lag_seconds",
    "seconds",
    _LIMIT,
    "How late a timer of the event loop is: all streams wait as long",
    (),
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)

# How late is it?

READ_LATENCY_SECONDS = histogram(
    "read_latency_seconds",
    "seconds",
    Question.LATE,
    "From a read's last sample received to its result handed to the network",
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
    "Attempts at reads that ended: their result was acknowledged, or their stream broke (abandoned: the client sends "
    "the read again)",
    ["model", "priority", "status"],
)
READS_OPEN = pulled(
    "gauge", "reads_open", "reads", _LOST, "Attempts whose result is not acknowledged yet", ["model", "priority"]
)
BOOKS_IMBALANCE = pulled(
    "gauge",
    "books_imbalance",
    "reads",
    _LOST,
    "Attempts received, less those that ended, less those that streams hold: anything but 0 is a defect",
)
READS_REJECTED = counter(
    "reads_rejected_total", "reads", _LOST, "Results that say the input is at fault, by reason", ["reason"]
)
READS_FAILED = counter(
    "reads_failed_total", "reads", _LOST, "Results that say the server is at fault, by the stage that failed", ["stage"]
)
BATCHES_RETRIED = counter(
    "batches_retried_total", "batches", _LOST, "Batches that failed and were tried again chunk by chunk", ["model"]
)
STREAMS_OPENED = counter("streams_opened_total", "streams", _LOST, "Streams accepted", ["priority"])
STREAMS_RECONNECTED = counter(
    "streams_reconnected_total",
    "streams",
    _LOST,
    "Streams accepted whose client says that an earlier connection broke",
    ["priority"],
)
STREAMS_ENDED = counter(
    "streams_ended_total", "streams", _LOST, "Streams that ended or were turned away, by gRPC status", ["status"]
)

READS_DEFERRED = counter(
    "reads_deferred_total",
    "reads",
    _LOST,
    "Open reads that were sent back to their clients, to come again, for their memory was needed: nothing had come of "
    "them for long (idle), or their client borrowed most (others)",
    reasons=Deferred,
)
CALLS_REFUSED = counter(
    "calls_refused_total",
    "calls",
    _LOST,
    "Calls that were turned away before they were served: without a valid token, or beyond what a peer may have open",
    reasons=Refused,
)
CONNECTIONS = gauge("connections", "connections", _LOST, "Connections from outside, on all ports of gRPC")
CONNECTIONS_REFUSED = counter(
    "connections_refused_total",
    "connections",
    _LOST,
    "Connections that were closed from here: all are taken, or all that a peer may have; silent for too long; no TLS "
    "or HTTP/2 spoken; headers beyond all measure",
    reasons=Closed,
)
SECRETS_STALE = gauge(
    "secrets_stale",
    "files",
    _LOST,
    "Files of secrets (certificate, tokens) that cannot be used as they are now: what they said before is in use",
)
LOG_LINES_DROPPED = counter(
    "log_lines_dropped_total",
    "lines",
    _LOST,
    "Lines of the log that were left out: too many that say the same, or the disk is full, the reader gone or too slow",
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
    "Of an aligned read's primary alignment: 1 - NM / columns, with insertions and deletions among the columns",
    ["model"],
    (0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995),
)
READS_TO_ALIGN = pulled(
    "counter", "reads_to_align_total", "reads", _GOOD, "Acknowledged reads of streams with a reference", ["model"]
)
ALIGNMENT_FALLBACKS = pulled(
    "counter",
    "alignment_fallbacks_total",
    "reads",
    Question.LIMIT,
    "Reads that minimap2 aligned on the CPU, as the device that aligns cannot take them: a piece between two anchors "
    "is too large (size), the score falls too far there (drops), too many anchors (work), no room even alone (memory)",
    ["reason"],
)
READS_ALIGNED = pulled("counter", "reads_aligned_total", "reads", _GOOD, "Those of them with an alignment", ["model"])

# What does it cost?

_COST = Question.COST
DEVICE_BUSY_SECONDS = pulled(
    "counter",
    "device_busy_seconds_total",
    "slot-seconds",
    _COST,
    "Time that the device worked: of the CPU each worker's, of a card the time with a batch on it",
    ["device"],
)
DEVICE_SLOTS = pulled(
    "gauge", "device_slots", "slots", _COST, "What can be busy at once: workers of the CPU; 1 of a card", ["device"]
)
DEVICE_ENERGY_JOULES = pulled(
    "counter",
    "device_energy_joules_total",
    "joules",
    _COST,
    "Energy of the whole device since it was first read, whoever used it: NVML of a card, the kernel's powercap (RAPL "
    "packages) of the CPU. Absent where neither tells",
    ["device"],
)
DEVICE_MEMORY_USED = pulled(
    "gauge", "device_memory_used_bytes", "bytes", _COST, "Of a card's memory, by all processes (NVML)", ["device"]
)
DEVICE_MEMORY_TOTAL = pulled("gauge", "device_memory_total_bytes", "bytes", _COST, "A card's memory (NVML)", ["device"])
DEVICE_UTILIZATION = pulled(
    "gauge",
    "device_utilization_ratio",
    "ratio",
    _COST,
    "Share of NVML's last sampling period in which a kernel ran",
    ["device"],
)
DEVICE_TEMPERATURE = pulled(
    "gauge", "device_temperature_celsius", "degrees Celsius", _COST, "A card's temperature (NVML)", ["device"]
)

# What runs?

_RUNNING = Question.RUNNING
BUILD_INFO = pulled(
    "gauge", "build_info", "1", _RUNNING, "The server's version, Python and PyTorch", ["version", "python", "torch"]
)
MODEL_INFO = pulled(
    "gauge",
    "model_info",
    "1",
    _RUNNING,
    "A model that is served; what decides its bases",
    ["model", "sha256", "precision", "device_class"],
)
REFERENCE_INFO = pulled(
    "gauge", "reference_info", "1", _RUNNING, "A reference that is served", ["reference", "preset", "sha256"]
)
DEVICE_INFO = pulled("gauge", "device_info", "1", _RUNNING, "The device that networks run on", ["device", "name"])
DEVICE_UP = pulled(
    "gauge", "device_up", "0 or 1", _RUNNING, "0: the device's last three batches failed altogether", ["device"]
)
MEMORY_BUDGET = pulled("gauge", "memory_budget_bytes", "bytes", _RUNNING, "What streams may take: --memory-budget")
MEMORY_FOR_SIGNAL = pulled(
    "gauge",
    "memory_for_signal_bytes",
    "bytes",
    _RUNNING,
    "Of the budget what signal, results and unused credit may take: half",
)
MEMORY_CHARGED = pulled(
    "gauge", "memory_charged_bytes", "bytes", _RUNNING, "Signal, results and unused credit charged to streams"
)
MEMORY_LIMIT = pulled("gauge", "memory_limit_bytes", "bytes", _RUNNING, "The container's memory, or the machine's")
MAX_STREAMS = pulled("gauge", "max_streams", "streams", _RUNNING, "Most streams at once: --max-streams")
DRAINING = pulled("gauge", "draining", "0 or 1", _RUNNING, "1: the server sends its streams away")
CERTIFICATE_EXPIRY = pulled(
    "gauge",
    "tls_certificate_expiry_timestamp_seconds",
    "Unix time in seconds",
    _RUNNING,
    "When the certificate that is served ends. Absent without TLS",
)


def reference_page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "`porestream serve --metrics-port P` gives them at `/metrics`, and at `/` a page for people. `make docs` makes",
        "this reference from `server/watch/metrics.py`, where each is defined once.",
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
        "No run, read, sample or tenant is ever a label. Histograms have `_bucket`, `_sum` and `_count`. Beside these",
        "there are the Python client's own: `process_resident_memory_bytes`, `process_cpu_seconds_total` and others.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
