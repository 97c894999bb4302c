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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY

from porestream.kernels.device import Device
from porestream.models.call.basecaller import Basecaller
from porestream.models.call.card import Card
from porestream.models.call.cuda_runner import CudaRunner
from porestream.models.files.bundle import load_bundle
from porestream.models.files.catalog import models_to_serve
from porestream.models.private_folder import default_cache_dir, private_cache_dir
from porestream.server.calling.device_use import DeviceUse
from porestream.server.calling.pipeline import Pipeline
from porestream.server.calling.scheduler import Scheduler
from porestream.server.edge.front import Front, Limits, connection_limit
from porestream.server.edge.guard import CallGuard, CallLimit
from porestream.server.edge.messages import parse_request
from porestream.server.edge.rpc import MAX_MESSAGE_BYTES, BasecallService
from porestream.server.edge.security import Certificate, Tokens
from porestream.server.engine import Engine
from porestream.server.settings import Settings, SettingsError
from porestream.server.start.devices import (
    CARD_BATCHES,
    batch_decoder,
    keep_device_code,
    kernel_devices,
    network_passes,
    open_card,
)
from porestream.server.start.references import load_references, plan_references
from porestream.server.streams.books import Ledger
from porestream.server.streams.budget import MemoryBudget
from porestream.server.vbz import compile_decoder
from porestream.server.watch.collector import ServerCollector
from porestream.server.watch.energy import find_meters
from porestream.server.watch.monitor import Monitor
from porestream.server.watch.status_page.page import StatusServer
from porestream.server.watch.status_page.page import start as start_status_page
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

log = structlog.get_logger()

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_UNOPENED_STREAMS = 64  # calls about to be opened as streams, or refused
_MAX_METADATA_BYTES = 8 << 10
_LIVENESS = "liveness"
_HEALTHY = health_pb2.HealthCheckResponse.SERVING
_UNHEALTHY = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE = pb.DESCRIPTOR.services_by_name["BasecallService"].full_name


def build_engine(settings: Settings) -> Engine:
    """Load models and references, compile, warm up, and start the workers.

    Raises
    ------
    ValueError
        A model, reference or setting is unusable; the message names it.
    """
    torch.set_num_threads(1)
    tune_allocator()
    cache_dir = private_cache_dir(settings.cache_dir or default_cache_dir())
    budget = MemoryBudget(settings.memory_budget, settings.max_streams)
    if settings.device != "cpu":
        keep_device_code(cache_dir)
    card = open_card(settings)
    if card is not None:
        compile_decoder(cache_dir)
    decodes, aligns = kernel_devices(settings, card)
    names = [directory.name for directory in models_to_serve(settings.model, settings.models_dir)[0]]
    plans = plan_references(settings, names, cache_dir, aligns, card)  # first: models get the GPU memory that is left
    basecallers = load_models(settings, cache_dir, card, decodes)
    aligners = load_references(settings, plans, cache_dir, aligns)
    batch_rows = {name: settings.batch_size or caller.rows for name, caller in basecallers.items()}
    scheduler = Scheduler(
        batch_rows,
        settings.batch_delay_s,
        budget.decoded_bytes,
        settings.live_share,
        settings.live_rate,
        row_groups={name: caller.runner.row_group for name, caller in basecallers.items()},
        workers=1 if card else settings.worker_count,
        card_batches=CARD_BATCHES if card else None,
    )
    largest_batch = max(caller.rows * max(caller.chunker.lengths) for caller in basecallers.values())
    card_use = DeviceUse(str(card.device), 1) if card else None
    pipeline = Pipeline(basecallers, aligners, scheduler, settings.worker_count, card_use, CARD_BATCHES if card else 0)
    pipeline.start()
    gc.collect()
    gc.freeze()  # a full collection over everything torch loads would stop every worker for a while
    return Engine(
        basecallers=basecallers,
        aligners=aligners,
        pipeline=pipeline,
        budget=budget,
        ledger=Ledger(),
        max_streams=settings.max_streams,
        max_read_samples=min(settings.max_read_samples, budget.decoded_bytes // 4),
        window_samples=budget.window_samples(largest_batch if card else 0),
        scheduler=scheduler,
        max_streams_per_peer=settings.max_streams_per_peer or -(-3 * settings.max_streams // 4),
    )


def load_models(
    settings: Settings, cache_dir: Path, card: Card | None, kernels: Device | None
) -> dict[str, Basecaller]:
    """Load the models and return them by name; `kernels`, if given, decode them.

    On a GPU, each model may take an equal share of the memory that is free for it and the models still to be loaded.
    """
    basecallers: dict[str, Basecaller] = {}
    directories, passed_over = models_to_serve(settings.model, settings.models_dir)
    for reason in passed_over:
        log.warning("model skipped", reason=reason)
    for index, directory in enumerate(directories):
        started_s = time.monotonic()
        bundle = load_bundle(directory)
        if bundle.name in basecallers:
            raise SettingsError(
                f"two models are named {bundle.name!r}, and streams choose models by name; rename one of the folders"
            )
        share = 1 / (len(directories) - index)
        decoder = batch_decoder(kernels, bundle.config)
        passes = network_passes(kernels, bundle.config)
        caller = Basecaller(bundle, settings.precision, cache_dir, card, settings.batch_size, share, decoder, passes)
        basecallers[bundle.name] = caller
        log.info(
            "model loaded",
            model=bundle.name,
            device=str(card.device) if card else "cpu",
            decoder=decoder.device.name if decoder else "cpu",
            precision=caller.precision,
            rows=caller.rows,
            **({"card_bytes": caller.runner.planned_bytes} if isinstance(caller.runner, CudaRunner) else {}),
            sha256=bundle.sha256.hex(),
            seconds=round(time.monotonic() - started_s, 2),
        )
    return basecallers


@dataclass(kw_only=True)
class Serving:
    """A gRPC server for an engine with its ports and health service; `start` starts it."""

    server: grpc.aio.Server
    service: BasecallService
    health: health.aio.HealthServicer
    health_server: grpc.aio.Server | None
    address: str
    health_address: str
    fronts: list[Front]

    async def start(self) -> None:
        """Start accepting streams."""
        await self.server.start()
        await self.health.set(_LIVENESS, _HEALTHY)
        await self.set_ready(True)
        if self.health_server is not None:
            await self.health_server.start()
        for front in self.fronts:
            front.start()

    async def set_ready(self, ready: bool) -> None:
        """Tell load balancers whether to send streams here."""
        for name in ("", _SERVICE):
            await self.health.set(name, _HEALTHY if ready else _UNHEALTHY)

    async def device_changed(self, is_up: bool) -> None:
        """Report that the networks' device failed or recovered: without it the server cannot call anything."""
        log.log(logging.INFO if is_up else logging.ERROR, "device works again" if is_up else "device failed")
        await self.health.set(_LIVENESS, _HEALTHY if is_up else _UNHEALTHY)
        await self.set_ready(is_up and not self.service.is_draining)

    async def stop(self) -> None:
        """Close the ports and end the streams that are left."""
        await self.server.stop(grace=0.5)
        if self.health_server is not None:
            await self.health_server.stop(grace=0.5)
        for front in self.fronts:
            await asyncio.to_thread(front.close)


def build_server(
    engine: Engine,
    listen: str,
    certificate: Certificate | None = None,
    tokens: Tokens | None = None,
    health_listen: str = "",
) -> Serving:
    """Build the gRPC server for an engine, with health and reflection.

    Raises
    ------
    SettingsError
        An address cannot be bound.
    """
    connections = connection_limit()
    for_health = max(4, connections // 8) if health_listen else 0  # reserved: health checks must always get in
    fronts: list[Front] = []
    address, inside = _place(listen, Limits(connections - for_health), certificate, fronts)
    health_address, health_inside = "", ""
    if health_listen:
        health_address, health_inside = _place(health_listen, Limits(for_health), None, fronts)

    def peer_of(name: str) -> str | None:
        return next((peer for front in fronts if (peer := front.peer_of(name))), None)

    streams = engine.max_streams + _UNOPENED_STREAMS
    calls = {
        f"/{_SERVICE}/StreamReads": CallLimit(streams, engine.max_streams_per_peer + _UNOPENED_STREAMS // 2),
        f"/{_SERVICE}/WatchStats": CallLimit(64, 16),
        f"/{health.SERVICE_NAME}/Watch": CallLimit(64, 16),
        f"/{health.SERVICE_NAME}/": CallLimit(512, 128),
        "": CallLimit(512, 128),  # calls answered at once
    }
    parsers = {f"/{_SERVICE}/StreamReads": parse_request}
    server = _server(CallGuard(calls, peer_of, tokens, parsers), 2 * streams)

    def took(peer: str, samples: int) -> None:
        for front in fronts:
            front.took(peer, samples)

    service = BasecallService(engine, took)
    pb_grpc.add_BasecallServiceServicer_to_server(service, server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    _bind(server, inside)
    health_server = None
    if health_listen:
        health_server = _server(CallGuard(calls, peer_of), 2 * streams)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, health_server)
        _bind(health_server, health_inside)
    return Serving(
        server=server,
        service=service,
        health=health_service,
        health_server=health_server,
        address=address,
        health_address=health_address,
        fronts=fronts,
    )


def _place(listen: str, limits: Limits, certificate: Certificate | None, fronts: list[Front]) -> tuple[str, str]:
    """Return the address for clients and the one gRPC listens on: behind a new front, except for a Unix socket."""
    if listen.startswith("unix:"):
        return listen, listen
    front = Front(listen, limits, certificate.context if certificate else None)
    fronts.append(front)
    return front.address, front.inside


def _server(guard: CallGuard, max_calls_a_connection: int) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[guard],
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", max_calls_a_connection),
            ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
            ("grpc.http2.hpack_table_size.decoder", 0),  # or a byte of headers could stand for 4 KB
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )


def _bind(server: grpc.aio.Server, inside: str) -> None:
    try:
        server.add_insecure_port(inside)
    except RuntimeError as error:
        raise SettingsError(
            f"cannot listen on {inside}: it is already in use, or not an address of this machine; choose another"
        ) from error


async def serve(settings: Settings, ready: Callable[[str], None], *, until_stdin_closes: bool = False) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP (unless nohup makes it ignored), then drain.

    Parameters
    ----------
    settings
        What to serve.
    ready
        Called with the bound address once the server accepts streams.
    until_stdin_closes
        Also stop, immediately, when standard input closes: the server belongs to the process at the other end.
    """
    # Before loading models, which takes a while: Prometheus must not think that a loading server is down.
    certificate, tokens = open_secrets(settings)
    page = _start_page(settings)
    engine = build_engine(settings)
    serving = build_server(engine, settings.listen, certificate, tokens, settings.health_listen)
    service = serving.service
    monitor = Monitor(engine, service, serving.device_changed)
    if page is not None:
        _describe(engine, monitor, certificate)
    await serving.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    orphaned = asyncio.Event()
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), lambda: _end_of_stdin(loop, stop, orphaned))
    watching = asyncio.create_task(monitor.run())
    revoking = asyncio.create_task(service.end_revoked(tokens)) if tokens else None
    log.info(
        "serving",
        address=serving.address,
        tls=certificate is not None,
        tokens=tokens is not None,
        workers=settings.worker_count,
        version=version("porestream"),
    )
    ready(serving.address)

    await stop.wait()
    grace_s = 0.0 if orphaned.is_set() else settings.grace_s
    log.info("draining", streams=service.stream_count, grace_s=grace_s)
    await serving.set_ready(False)  # still alive, though, so that nobody kills it before it has drained
    await service.drain(grace_s)
    await serving.stop()
    tasks = [watching, *([revoking] if revoking else [])]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(engine.pipeline.close)
    if page is not None:
        page.close()
    books = engine.ledger.server
    log.info("stopped", reads_received=books.received, reads_called=books.called)


def _end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, orphaned: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        orphaned.set()
        stop.set()


def open_secrets(settings: Settings) -> tuple[Certificate | None, Tokens | None]:
    """Read the certificate and the tokens that the settings name.

    Raises
    ------
    SettingsError
        One of the files is unusable.
    """
    certificate = None
    if settings.tls_certificate and settings.tls_key:
        certificate = Certificate(settings.tls_certificate, settings.tls_key)
    return certificate, (
        Tokens(settings.token_file, fail_closed=settings.token_file_lost == "refuse") if settings.token_file else None
    )


def _start_page(settings: Settings) -> StatusServer | None:
    if not settings.metrics_port:
        return None
    try:
        return start_status_page(
            REGISTRY, settings.metrics_port, settings.metrics_host, allowed_hosts=settings.metrics_allowed_hosts
        )
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise SettingsError(
            f"cannot serve metrics on {where}: {error.strerror}; check --metrics-host and --metrics-port"
        ) from error


def _describe(engine: Engine, monitor: Monitor, certificate: Certificate | None) -> None:
    """Add the server's own metrics to those that the status page and Prometheus read."""
    network = engine.pipeline.network_device.name
    meters = find_meters(int(network.partition(":")[2] or 0) if network.startswith("cuda") else None)
    REGISTRY.register(ServerCollector(engine, monitor, meters, certificate.expiry_s if certificate else lambda: None))


def tune_allocator() -> None:
    """Keep freed batch memory for the next batch: glibc would return large arrays to the kernel and fault them back in.

    With a threshold of 8 MB an fp32 server uses 90 MB less and is 4% slower (benchmarks/RESULTS.md). One arena only,
    because a thread's own arena ends at 64 MB. Huge pages are requested when the process starts, in cli/main.py.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)
