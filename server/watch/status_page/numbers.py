"""The numbers of `/status.json`, from the metrics' current values and their history.

Keys are stable, with units in their names; null means unknown, such as the mean of no reads. `last_minute`, `last_hour`
(or as much of it as the server has run) and `since_start` share their throughput keys.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from porestream.server.metrics import Row
from porestream.server.reads import Priority
from porestream.server.watch.status_page.history import History, Snapshot, increase

Json = dict[str, Any]

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0
_BEHIND_S = 60.0
_BEHIND_SHARE = 0.2
"""If live reads wait longer, or live streams are stalled more of the time, the server isn't keeping up. Other streams
may come from files, which are read faster than they can be called. (deploy/prometheus/alerts.yml uses the same.)"""
_CERTIFICATE_DAYS = 14
_THROUGHPUT = {
    "samples_received_total": "samples_received_per_second",
    "samples_finished_total": "samples_finished_per_second",
    "bases_called_total": "bases_per_second",
}


class Values:
    """Metric values by name, without `porestream_`."""

    def __init__(self, values: Snapshot) -> None:
        self._by_name: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for (name, labels), value in values.items():
            self._by_name[name.removeprefix("porestream_")].append((dict(labels), value))

    def samples(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and values of the samples that have these labels, and maybe others."""
        return [(found, value) for found, value in self._by_name.get(name, ()) if found.items() >= labels.items()]

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of an _info metric, sorted."""
        return sorted((labels for labels, _ in self.samples(name)), key=lambda labels: sorted(labels.items()))

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum over all other labels; None if the metric is absent."""
        found = [value for _, value in self.samples(name, **labels)]
        return sum(found) if found else None


class Span(Values):
    """The growth of each counter over `seconds`."""

    def __init__(self, seconds: float, grew: Snapshot) -> None:
        super().__init__(grew)
        self.seconds = seconds

    def count(self, name: str, **labels: str) -> float:
        """Return a counter's growth, summed over all other labels."""
        return self.total(name, **labels) or 0.0

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Return a counter's growth for each value of one label."""
        counts: defaultdict[str, float] = defaultdict(float)
        for found, value in self.samples(name, **labels):
            counts[found.get(label, "")] += value
        return dict(counts)

    def per_second(self, name: str, **labels: str) -> float | None:
        """Return a counter's growth per second."""
        return _ratio(self.count(name, **labels), self.seconds)

    def mean(self, name: str, **labels: str) -> float | None:
        """Return the mean of a histogram's observations."""
        return _ratio(self.count(f"{name}_sum", **labels), self.count(f"{name}_count", **labels))


def status(values: Snapshot, history: History, unix_s: float | None = None) -> Json:
    """Return the content of /status.json, ready for JSON.

    Parameters
    ----------
    values
        The registry's current values.
    history
        Earlier values.
    unix_s
        Unix time in seconds; None: now.
    """
    unix_s = time.time() if unix_s is None else unix_s
    now = Values(values)
    started_s = now.total("process_start_time_seconds")  # absent where there is no /proc
    minute, hour = (_since(values, history, window_s) for window_s in (_MINUTE_S, _HOUR_S))
    start = Span(unix_s - started_s if started_s else 0.0, values)
    build = next(iter(now.labels("build_info")), {})
    expiry_s = now.total("tls_certificate_expiry_timestamp_seconds")
    return {
        "unix_s": unix_s,
        "started_unix_s": started_s,
        "uptime_seconds": start.seconds if started_s else None,
        "version": build.get("version"),
        "python": build.get("python"),
        "torch": build.get("torch"),
        "conditions": list(_conditions(now, minute, unix_s)),
        "draining": bool(now.total("draining")),
        "tls_certificate_expiry_unix_s": expiry_s,
        "reads_open": now.total("reads_open"),
        "books_imbalance_reads": now.total("books_imbalance"),
        "backlog_seconds": max((value for _, value in now.samples("backlog_seconds")), default=None),
        "last_minute": _work(minute),
        "last_hour": _work(hour) | _errors(hour),
        "since_start": _work(start) | _errors(start),
        "models": [
            dict(labels)
            | {
                "reads_open": now.total("reads_open", model=labels["model"]),
                "last_minute": _work(minute, model=labels["model"]),
                "last_hour": _work(hour, model=labels["model"]),
                "since_start": _work(start, model=labels["model"]),
            }
            for labels in now.labels("model_info")
        ],
        "references": _references(now),
        "devices": [_device(name, now, minute, hour) for name in _devices(now)],
        "priorities": [_priority(priority.name.lower(), now, hour) for priority in Priority],
        "max_streams": now.total("max_streams"),
        "memory": {
            "budget_bytes": now.total("memory_budget_bytes"),
            "for_signal_bytes": now.total("memory_for_signal_bytes"),
            "charged_bytes": now.total("memory_charged_bytes"),
            "limit_bytes": now.total("memory_limit_bytes"),
            "process_bytes": now.total("process_resident_memory_bytes"),
        },
        "queues": {labels.get("stage", ""): value for labels, value in now.samples("stage_queue")},
        "series": _series(history, unix_s),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _since(values: Snapshot, history: History, window_s: float) -> Span:
    found = history.before(window_s)
    return Span(found[0], increase(values, found[1])) if found else Span(0.0, {})


def _conditions(now: Values, minute: Span, unix_s: float) -> Iterator[Json]:
    """Yield the problems an operator should see at once; none: healthy."""
    if not now.labels("model_info"):
        yield {"name": "loading", "text": "Loading models and references: not serving yet"}
    for labels, up in now.samples("device_up"):
        if not up:
            yield {"name": "device_down", "text": f"Device {labels['device']} is down: its last batches all failed"}
    imbalance = now.total("books_imbalance")
    if imbalance:
        yield {
            "name": "books_out_of_balance",
            "text": f"Books out of balance ({imbalance:+.0f} reads): this is a bug in the server, please report it",
        }
    waiting_s = now.total("backlog_seconds", priority="live") or 0.0
    streams = now.total("streams", priority="live") or 0.0
    stalled = (minute.per_second("credit_stall_seconds_total", priority="live") or 0.0) / max(1.0, streams)
    if waiting_s > _BEHIND_S:
        yield {"name": "falling_behind", "text": f"Falling behind the sequencer by {waiting_s:.0f} s"}
    elif stalled > _BEHIND_SHARE:
        text = f"Falling behind: live streams could not send for {stalled:.0%} of the last minute"
        yield {"name": "falling_behind", "text": text}
    if now.total("draining"):
        yield {"name": "draining", "text": "Draining: the server is about to stop and is sending its streams elsewhere"}
    expiry_s = now.total("tls_certificate_expiry_timestamp_seconds")
    if expiry_s is not None and expiry_s < unix_s + _CERTIFICATE_DAYS * _DAY_S:
        left = "has expired" if expiry_s < unix_s else f"expires in {(expiry_s - unix_s) / _DAY_S:.0f} days"
        yield {"name": "certificate_ends", "text": f"The TLS certificate {left}"}


def _work(span: Span, **labels: str) -> Json:
    to_align = span.count("reads_to_align_total", **labels)
    return {
        "seconds": span.seconds,
        **{key: span.per_second(name, **labels) for name, key in _THROUGHPUT.items()},
        "samples_received": span.count("samples_received_total", **labels),
        "samples_finished": span.count("samples_finished_total", **labels),
        "bases": span.count("bases_called_total", **labels),
        "reads_received": span.count("reads_received_total", **labels),
        "reads": span.by("status", "reads_total", **labels),
        "mean_qscore": span.mean("read_mean_qscore", **labels),
        "mean_read_length_bases": span.mean("read_length_bases", **labels),
        "mean_identity_ratio": span.mean("alignment_identity_ratio", **labels),
        "aligned_ratio": _ratio(span.count("reads_aligned_total", **labels), to_align),
    }


def _errors(span: Span) -> Json:
    return {
        "reads_rejected": span.by("reason", "reads_rejected_total"),
        "reads_failed": span.by("stage", "reads_failed_total"),
        "batches_retried": span.count("batches_retried_total"),
        "streams_opened": span.count("streams_opened_total"),
        "streams_reconnected": span.count("streams_reconnected_total"),
        "streams_ended": span.by("status", "streams_ended_total"),
    }


def _references(now: Values) -> list[Json]:
    presets: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for labels in now.labels("reference_info"):
        presets[labels["reference"], labels["sha256"]].append(labels["preset"])
    return [{"reference": name, "sha256": digest, "presets": found} for (name, digest), found in presets.items()]


def _devices(now: Values) -> list[str]:
    names = ("device_busy_seconds_total", "device_info", "device_energy_joules_total")
    return sorted({labels["device"] for name in names for labels in now.labels(name)})


def _useful_rows(span: Span) -> float | None:
    """Return the share of what networks computed that was chunks, not padding; they run on the GPU if there is one."""
    chunks, padding = (span.count("row_samples_total", row=row.value) for row in (Row.CHUNK, Row.PADDING))
    return _ratio(chunks, chunks + padding)


def _device(device: str, now: Values, minute: Span, hour: Span) -> Json:
    up = now.total("device_up", device=device)
    slots = now.total("device_slots", device=device) or 0.0
    energy_joules = now.total("device_energy_joules_total", device=device)
    joules_in_hour = hour.count("device_energy_joules_total", device=device)
    bases_in_hour = hour.count("bases_called_total")
    busy = {
        f"busy_ratio_{name}": _ratio(
            span.count("device_busy_seconds_total", device=device),
            slots * span.seconds,
        )
        for name, span in (("last_minute", minute), ("last_hour", hour))
    }
    return {
        "device": device,
        "name": next((labels["name"] for labels, _ in now.samples("device_info", device=device)), None),
        "up": None if up is None else bool(up),
        "slots": slots,
        **{name: None if ratio is None else min(1.0, ratio) for name, ratio in busy.items()},
        "useful_rows_ratio_last_minute": _useful_rows(minute) if device == _devices(now)[-1] else None,
        "memory_used_bytes": now.total("device_memory_used_bytes", device=device),
        "memory_total_bytes": now.total("device_memory_total_bytes", device=device),
        "utilization_ratio": now.total("device_utilization_ratio", device=device),
        "temperature_celsius": now.total("device_temperature_celsius", device=device),
        "energy_joules": energy_joules,
        "power_watts": None
        if energy_joules is None
        else minute.per_second("device_energy_joules_total", device=device),
        "joules_per_gigabase_last_hour": None if energy_joules is None else _ratio(joules_in_hour, bases_in_hour / 1e9),
    }


def _priority(priority: str, now: Values, hour: Span) -> Json:
    latencies = [
        (float(labels["le"]), count) for labels, count in hour.samples("read_latency_seconds_bucket", priority=priority)
    ]
    return {
        "priority": priority,
        "streams": now.total("streams", priority=priority),
        "streams_stalled": now.total("streams_stalled", priority=priority),
        "reads_open": now.total("reads_open", priority=priority),
        "queued_samples": now.total("queued_samples", priority=priority),
        "backlog_seconds": now.total("backlog_seconds", priority=priority),
        "latency_p50_seconds_last_hour": quantile(latencies, 0.5),
        "latency_p99_seconds_last_hour": quantile(latencies, 0.99),
    }


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float | None:
    """Estimate a histogram's quantile as Prometheus' histogram_quantile does; None if nothing was observed.

    `buckets` are upper bounds with cumulative counts. Observations are assumed to be spread evenly within a bucket. A
    quantile above the highest finite bound is reported as that bound.
    """
    lower, below = 0.0, 0.0
    ordered = sorted(buckets)
    rank = share * ordered[-1][1] if ordered else 0.0
    if not rank:
        return None
    for upper, count in ordered:
        if count >= rank:
            return lower if upper == float("inf") else lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower


def _series(history: History, unix_s: float) -> Json:
    counters = [f"porestream_{name}" for name in _THROUGHPUT]
    found = history.series(counters, ["porestream_backlog_seconds"])
    return {
        "unix_s": [round(unix_s - age_s) for age_s in found["age_s"]],
        **{key: _short(found[f"porestream_{name}"]) for name, key in _THROUGHPUT.items()},
        "backlog_seconds": _short(found["porestream_backlog_seconds"]),
    }


def _short(values: Iterable[float]) -> list[float]:
    return [round(value, 1) for value in values]
