"""Build, start and drain a server."""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY, start_http_server

from porestream.kernels.aligner import Aligner, load_reference, preset_for_model
from porestream.kernels.base_level import BaseLevelAligner
from porestream.kernels.device import Device
from porestream.models.basecaller import Basecaller
from porestream.models.bundle import load_bundle
from porestream.models.catalog import models_to_serve
from porestream.models.compiled import default_cache_dir
from porestream.models.runner import Card
from porestream.server.budget import MemoryBudget
from porestream.server.devices import batch_decoder, kernel_devices, open_card
from porestream.server.metrics import Ledger, ServerCollector
from porestream.server.pipeline import Pipeline
from porestream.server.rpc import MAX_MESSAGE_BYTES, BasecallService, DecodeGuard, Engine
from porestream.server.scheduler import Scheduler
from porestream.server.settings import Settings, SettingsError
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

log = structlog.get_logger()

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_OTHER_RPCS = 64  # beside streams of reads: statistics, health, and streams about to be turned away
_SERVICE = pb.DESCRIPTOR.services_by_name["BasecallService"].full_name


def build_engine(settings: Settings) -> Engine:
    """Load models and references, compile, warm up, and start the workers.

    Raises
    ------
    ValueError
        A model, reference or setting cannot be used; the message names it.
    """
    torch.set_num_threads(1)
    tune_allocator()
    cache_dir = settings.cache_dir or default_cache_dir()
    budget = MemoryBudget(settings.memory_budget, settings.max_streams)
    card = open_card(settings)
    decodes, aligns = kernel_devices(settings, card)
    basecallers = load_models(settings, cache_dir, card, decodes)
    aligners = _load_references(settings, list(basecallers), cache_dir, aligns)
    batch_rows = {name: settings.batch_size or caller.rows for name, caller in basecallers.items()}
    scheduler = Scheduler(batch_rows, settings.batch_delay_s, budget.decoded_bytes)
    pipeline = Pipeline(basecallers, aligners, scheduler, settings.worker_count)
    pipeline.start()
    gc.collect()
    gc.freeze()  # a full collection over all that torch loads would stop every worker for a while
    return Engine(
        basecallers,
        aligners,
        pipeline,
        budget,
        Ledger(),
        max_streams=settings.max_streams,
        max_read_samples=min(settings.max_read_samples, budget.decoded_bytes // 4),
        queued_samples=scheduler.queued_samples,
    )


def load_models(
    settings: Settings, cache_dir: Path, card: Card | None, kernels: Device | None
) -> dict[str, Basecaller]:
    """The models by name, decoded by `kernels` if given.

    On a card each may take an equal part of what is free for it and those after it.
    """
    basecallers: dict[str, Basecaller] = {}
    directories, passed_over = models_to_serve(settings.model, settings.models_directory)
    for reason in passed_over:
        log.warning("model passed over", reason=reason)
    for index, directory in enumerate(directories):
        started_s = time.monotonic()
        bundle = load_bundle(directory)
        if bundle.name in basecallers:
            raise SettingsError(f"two models are called {bundle.name!r}: streams could not tell them apart")
        share = 1 / (len(directories) - index)
        decoder = batch_decoder(kernels, bundle.config)
        caller = Basecaller(bundle, settings.precision, cache_dir, card, settings.batch_size, share, decoder)
        basecallers[bundle.name] = caller
        log.info(
            "model loaded",
            model=bundle.name,
            device=str(card.device) if card else "cpu",
            decoder=decoder.device.name if decoder else "cpu",
            precision=caller.precision,
            rows=caller.rows,
            sha256=bundle.sha256.hex(),
            seconds=round(time.monotonic() - started_s, 2),
        )
    return basecallers


def _load_references(
    settings: Settings, models: list[str], cache_dir: Path, kernels: Device | None
) -> dict[tuple[str, str], Aligner]:
    presets = settings.preset or sorted({preset_for_model(model) for model in models})
    aligners: dict[tuple[str, str], Aligner] = {}
    for path in settings.reference:
        for preset in presets:
            started_s = time.monotonic()
            minimap2 = load_reference(path, preset=preset, cache_dir=cache_dir, threads=settings.worker_count)
            aligner: Aligner = BaseLevelAligner(minimap2, kernels) if kernels else minimap2
            key = (aligner.reference.name, preset)
            if key in aligners:
                raise SettingsError(f"two references are called {key[0]!r}: streams could not tell them apart")
            aligners[key] = aligner
            log.info(
                "reference loaded",
                reference=key[0],
                preset=preset,
                sequences=len(aligner.reference.sequences),
                seconds=round(time.monotonic() - started_s, 2),
            )
    return aligners


def build_server(
    engine: Engine, listen: str
) -> tuple[grpc.aio.Server, BasecallService, health.aio.HealthServicer, str]:
    """The gRPC server on an engine, not yet started: with it its services and the address that it is bound to.

    Raises
    ------
    SettingsError
        The address cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=[DecodeGuard()],
        maximum_concurrent_rpcs=engine.max_streams + _OTHER_RPCS,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )
    service = BasecallService(engine)
    pb_grpc.add_BasecallServiceServicer_to_server(service, server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {listen}: is it taken, or not an address here?") from error
    address = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
    return server, service, health_service, address


async def serve(settings: Settings, ready: Callable[[str], None], *, until_stdin_closes: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Parameters
    ----------
    settings
        What to serve.
    ready
        Called with the bound address once streams are accepted.
    until_stdin_closes
        Also end, at once, when standard input closes: the server belongs to the process that holds the other end.
    """
    engine = build_engine(settings)
    server, service, health_service, address = build_server(engine, settings.listen)
    collector = _start_metrics(settings, engine, service)
    await server.start()
    for name in ("", _SERVICE):
        await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    orphaned = asyncio.Event()
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), lambda: _end_of_stdin(loop, stop, orphaned))
    log.info("serving", address=address, workers=settings.worker_count, version=version("porestream"))
    ready(address)

    await stop.wait()
    grace_s = 0.0 if orphaned.is_set() else settings.grace_s
    log.info("draining", streams=service.stream_count, grace_s=grace_s)
    await health_service.enter_graceful_shutdown()
    await service.drain(grace_s)
    await server.stop(grace=0.5)
    await asyncio.to_thread(engine.pipeline.close)
    if collector is not None:
        REGISTRY.unregister(collector)
    log.info("stopped", reads_received=engine.ledger.server.received, reads_called=engine.ledger.server.called)


def _end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, orphaned: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        orphaned.set()
        stop.set()


def _start_metrics(settings: Settings, engine: Engine, service: BasecallService) -> ServerCollector | None:
    if not settings.metrics_port:
        return None
    collector = ServerCollector(
        engine.ledger,
        {
            "porestream_streams": ("Streams being served", lambda: service.stream_count),
            "porestream_queued_samples": ("Samples of reads that wait or are called", engine.queued_samples),
            "porestream_memory_budget_bytes": ("The memory budget", lambda: engine.budget.total_bytes),
            "porestream_memory_charged_bytes": (
                "Signal, results and unused credit charged to streams",
                engine.budget.charged_bytes,
            ),
        },
    )
    try:
        start_http_server(settings.metrics_port, settings.metrics_host)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise SettingsError(f"cannot serve metrics on {where}: {error.strerror}") from error
    REGISTRY.register(collector)
    return collector


def tune_allocator() -> None:
    """Keep freed batches for the next one: glibc would give each large array back to the kernel and fault it in again.

    One arena, for those of threads end at 64 MB. Huge pages are asked for where the process starts, cli/main.py.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def configure_logging(log_format: str) -> None:
    """Structured logs on stderr: JSON lines, or text for people."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks if not as_text else structlog.dev.set_exc_info,
            structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
