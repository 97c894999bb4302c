"""Metrics read at scrape time: books, queues, streams, memory, devices, versions."""

import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

import structlog
import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from porestream.kernels.align.device_aligner import DeviceAligner
from porestream.kernels.align.hits import Failure
from porestream.models.call.host import host_memory_bytes
from porestream.server import metrics
from porestream.server.engine import Engine
from porestream.server.metrics import Definition
from porestream.server.reads import Priority, Reason, Stage
from porestream.server.streams.books import ENDS
from porestream.server.watch.energy import Meter, Reading
from porestream.server.watch.monitor import Monitor

log = structlog.get_logger()

_STREAM_ENDS = (
    "OK",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
)

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Pairs of label values and the value."""


class ServerCollector(Collector):
    """Collects all `pulled` metrics.

    Parameters
    ----------
    engine
        The engine being served.
    monitor
        Provides the latest state of the streams.
    meters
        The available meters of the GPU and the CPU, by device.
    certificate_expiry_s
        Returns when the certificate expires, in Unix time; None without TLS.
    """

    def __init__(
        self,
        engine: Engine,
        monitor: Monitor,
        meters: Mapping[str, Meter],
        certificate_expiry_s: Callable[[], float | None],
    ) -> None:
        self._engine, self._monitor, self._meters = engine, monitor, meters
        self._certificate_expiry_s = certificate_expiry_s
        for model in engine.basecallers:
            for priority in Priority:
                engine.ledger.group(model, priority)  # so that counters are 0, not absent, before the first read
        _expect_labels(list(engine.basecallers))

    def collect(self) -> Iterator[Metric]:
        """Yield every pulled metric."""
        yield from self._books()
        yield from self._load()
        yield from self._memory()
        yield from self._devices()
        yield from self._running()

    def _books(self) -> Iterator[Metric]:
        groups = {(model, _label(priority)): books for (model, priority), books in self._engine.ledger.groups().items()}
        for definition, field in (
            (metrics.READS_RECEIVED, "received"),
            (metrics.SAMPLES_RECEIVED, "samples"),
            (metrics.SAMPLES_FINISHED, "samples_finished"),
            (metrics.BASES_CALLED, "bases"),
            (metrics.READS_OPEN, "open"),
        ):
            yield _family(definition, ((group, getattr(books, field)) for group, books in groups.items()))
        yield _family(
            metrics.READS, (((*group, end), getattr(books, end)) for group, books in groups.items() for end in ENDS)
        )
        for definition, field in ((metrics.READS_TO_ALIGN, "to_align"), (metrics.READS_ALIGNED, "aligned")):
            counts = dict.fromkeys((model for model, _ in groups), 0)
            for (model, _), books in groups.items():
                counts[model] += getattr(books, field)
            yield _family(definition, (((model,), count) for model, count in counts.items()))

    def _load(self) -> Iterator[Metric]:
        load, streams, stalls = self._engine.scheduler.load(), self._monitor.streams, self._engine.ledger.stalls
        yield _family(metrics.BACKLOG, _by_priority(load.oldest_s))
        yield _family(metrics.QUEUED_SAMPLES, _by_priority(load.queued_samples))
        yield _family(metrics.STREAMS, _by_priority(streams.count))
        yield _family(metrics.STREAMS_STALLED, _by_priority({key: clock.active for key, clock in stalls.items()}))
        yield _family(
            metrics.CREDIT_STALL_SECONDS, _by_priority({key: clock.seconds() for key, clock in stalls.items()})
        )
        yield _family(
            metrics.STAGE_QUEUE,
            (
                (("prepare",), load.reads_waiting),
                (("basecall",), load.chunks_waiting),
                (("align",), sum(map(len, self._engine.pipeline.align_queues.values()))),
                (("deliver",), streams.unsent_results),
                (("acknowledge",), streams.unacknowledged_results),
            ),
        )
        fallbacks: Counter[Failure] = Counter()
        for aligner in self._engine.aligners.values():
            if isinstance(aligner, DeviceAligner):
                fallbacks.update(aligner.fallbacks)
        yield _family(
            metrics.ALIGNMENT_FALLBACKS, (((reason.name.lower(),), fallbacks[reason]) for reason in Failure if reason)
        )
        yield _family(metrics.BOOKS_IMBALANCE, [((), streams.imbalance)])
        yield _family(metrics.DRAINING, [((), float(streams.draining))])

    def _memory(self) -> Iterator[Metric]:
        budget = self._engine.budget
        yield _family(metrics.MEMORY_BUDGET, [((), budget.total_bytes)])
        yield _family(metrics.MEMORY_FOR_SIGNAL, [((), budget.signal_bytes)])
        yield _family(metrics.MEMORY_CHARGED, [((), budget.charged_bytes())])
        yield _family(metrics.MEMORY_LIMIT, [((), host_memory_bytes())])
        yield _family(metrics.MAX_STREAMS, [((), self._engine.max_streams)])

    def _devices(self) -> Iterator[Metric]:
        devices = self._engine.pipeline.devices
        yield _family(metrics.WORKERS, [((), devices[0].slots)])
        yield _family(metrics.DEVICE_BUSY_SECONDS, (((use.name,), use.clock.seconds()) for use in devices))
        yield _family(metrics.DEVICE_SLOTS, (((use.name,), use.slots) for use in devices))
        network = self._engine.pipeline.network_device
        yield _family(metrics.DEVICE_UP, [((network.name,), float(network.is_up))])
        readings = {device: reading for device, meter in self._meters.items() if (reading := _read(meter))}
        for definition, field in (
            (metrics.DEVICE_ENERGY_JOULES, "energy_joules"),
            (metrics.DEVICE_MEMORY_USED, "memory_used_bytes"),
            (metrics.DEVICE_MEMORY_TOTAL, "memory_total_bytes"),
            (metrics.DEVICE_UTILIZATION, "utilization_ratio"),
            (metrics.DEVICE_TEMPERATURE, "temperature_celsius"),
        ):
            values = {device: getattr(reading, field) for device, reading in readings.items()}
            yield _family(definition, (((device,), value) for device, value in values.items() if value is not None))

    def _running(self) -> Iterator[Metric]:
        engine = self._engine
        versions = (version("porestream"), platform.python_version(), str(torch.__version__))
        yield _family(metrics.BUILD_INFO, [(versions, 1)])
        yield _family(
            metrics.MODEL_INFO,
            (
                ((name, caller.bundle.sha256.hex(), caller.precision, caller.runner.device_class), 1)
                for name, caller in engine.basecallers.items()
            ),
        )
        yield _family(
            metrics.REFERENCE_INFO,
            (((name, preset, aligner.reference.sha256), 1) for (name, preset), aligner in engine.aligners.items()),
        )
        name = next(iter(engine.basecallers.values())).runner.device_name
        yield _family(metrics.DEVICE_INFO, [((engine.pipeline.network_device.name, name), 1)])
        expiry_s = self._certificate_expiry_s()
        yield _family(metrics.CERTIFICATE_EXPIRY, [((), expiry_s)] if expiry_s is not None else [])


def _expect_labels(models: list[str]) -> None:
    """Start the counters at 0, so that the first rejected read shows as an increase."""
    for reason in Reason:
        metrics.READS_REJECTED.labels(reason.value)
    for stage in Stage:
        metrics.READS_FAILED.labels(stage.value)
        metrics.STAGE_SECONDS.labels(stage.value)
    for waits in ("prepare", "basecall", "align", "deliver"):
        metrics.STAGE_WAIT_SECONDS.labels(waits)
    for status in _STREAM_ENDS:
        metrics.STREAMS_ENDED.labels(status)
    for priority in Priority:
        for metric in (metrics.STREAMS_OPENED, metrics.STREAMS_RECONNECTED, metrics.READ_LATENCY_SECONDS):
            metric.labels(_label(priority))
    for model in models:
        for by_model in (
            metrics.BATCHES_RETRIED,
            metrics.BATCH_FILL,
            metrics.BATCH_STREAMS,
            metrics.READ_MEAN_QSCORE,
            metrics.READ_LENGTH_BASES,
            metrics.ALIGNMENT_IDENTITY,
        ):
            by_model.labels(model)
        for row in metrics.Row:
            metrics.ROW_SAMPLES.labels(model, row.value)


def _label(priority: Priority) -> str:
    return priority.name.lower()


def _by_priority(values: Mapping[Priority, float]) -> Samples:
    return (((_label(priority),), value) for priority, value in values.items())


def _family(definition: Definition, samples: Samples) -> Metric:
    make = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = make(definition.name, definition.help, labels=definition.labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


_told: set[str] = set()
_telling = threading.Lock()


def _read(meter: Meter) -> Reading | None:
    """Read the meter; None if that fails, so that the scrape goes on without it."""
    try:
        return meter.read()
    except (OSError, ValueError) as error:
        with _telling:
            if str(error) not in _told:
                _told.add(str(error))
                log.warning("cannot read a device's meter", reason=str(error))
        return None
