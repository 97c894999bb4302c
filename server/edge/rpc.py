"""The gRPC service: opens streams and refuses invalid requests. messages.py decodes and encodes."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from importlib.metadata import version

import grpc
import structlog
from google.protobuf.message import DecodeError

from porestream.kernels.align.aligner import preset_for_model
from porestream.models.files.chemistry import chemistry_of_run
from porestream.server import reads
from porestream.server.calling.revision import CALLING_REVISION
from porestream.server.edge.guard import FIRST_REQUEST_TIMEOUT_S, Caller, caller
from porestream.server.edge.messages import (
    ENCODINGS,
    PRIORITIES,
    decode_chunk,
    encode_model,
    encode_output,
    encode_stats,
    seconds,
)
from porestream.server.edge.pace import Pace
from porestream.server.edge.security import Tokens
from porestream.server.engine import Engine
from porestream.server.metrics import STREAMS_ENDED, STREAMS_OPENED, STREAMS_RECONNECTED, TOKEN_STREAMS
from porestream.server.reads import StreamFault
from porestream.server.streams.books import StreamBooks
from porestream.server.streams.budget import MAX_CHUNK_SAMPLES, MIN_CHUNK_CREDIT_SAMPLES
from porestream.server.streams.results import MAX_OPEN_READS, ResultsSession, rejected_samples
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 1 << 20
_WRITE_TIMEOUT_S = 60.0
_REVOKED_CHECK_S, _REVOKED_GRACE_S = 5.0, 20.0  # less than a minute in all, with ten seconds for an emptied file
MAX_RUN_ID_LENGTH = 256
_SETTINGS = {field.name for field in fields(reads.CallSettings)}
_TELL_SAMPLES = 100_000  # report a stream's samples to the front, which counts its bytes, after so many
_MAX_DETAIL_BYTES = 2000  # takes three times that if not ASCII; a client accepts 8 KiB of status and headers
_DEFAULT_HEARTBEAT_S = 5.0
_DEFAULT_STATS_INTERVAL_S = 5.0


class BasecallService(pb_grpc.BasecallServiceServicer):
    """Implements porestream.v1.BasecallService; calls `took` with the number of samples each peer's streams sent."""

    def __init__(self, engine: Engine, took: Callable[[str, int], None]) -> None:
        self._engine, self._took = engine, took
        self._sessions: dict[ResultsSession, Caller] = {}
        self._pace = Pace()
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    async def drain(self, grace_s: float) -> None:
        """Tell every stream to go elsewhere; returns when they are gone, or after `grace_s`."""
        self._draining = True
        for session in self._sessions:
            session.drain(grace_s)
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("streams cut off after the grace period", streams=len(self._sessions), grace_s=grace_s)

    async def end_revoked(self, tokens: Tokens) -> None:
        """End streams whose token was revoked, after a grace period for delivering their results."""
        loop = asyncio.get_running_loop()
        leaving: set[ResultsSession] = set()
        while True:
            valid = {token.secret for token in tokens.valid()}
            leaving &= self._sessions.keys()
            for session, who in self._sessions.items():
                if who.token and who.token.secret not in valid and session not in leaving:
                    leaving.add(session)
                    log.warning("a stream's token was revoked", token=who.token_name)
                    session.drain(_REVOKED_GRACE_S)
                    fault = StreamFault("UNAUTHENTICATED", "its token was revoked")
                    loop.call_later(_REVOKED_GRACE_S, session.fail, fault)
            await asyncio.sleep(_REVOKED_CHECK_S)

    @property
    def sessions(self) -> list[ResultsSession]:
        """The open streams."""
        return list(self._sessions)

    @property
    def is_draining(self) -> bool:
        """Whether the server is sending its streams elsewhere."""
        return self._draining

    @property
    def stream_count(self) -> int:
        """Number of open streams."""
        return len(self._sessions)

    # StreamReads

    async def StreamReads(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.StreamReadsRequest],
        context: grpc.aio.ServicerContext[pb.StreamReadsRequest, pb.StreamReadsResponse],
    ) -> None:
        """Serve one stream."""
        status, reason = "CANCELLED", ""
        try:
            await self._serve(request_iterator, context)
            status = "OK"
        except StreamFault as fault:
            status, reason = fault.code, _cut(str(fault))
        except DecodeError as error:
            status, reason = "INVALID_ARGUMENT", str(error)
        except TimeoutError:
            status, reason = (
                "DEADLINE_EXCEEDED",
                "timed out: the client did not send `open`, or stopped reading responses",
            )
        except Exception as error:
            if not context.cancelled() and not _is_stopped(error):  # otherwise gRPC only reports that the client left
                log.exception("stream failed")
                status, reason = "INTERNAL", _cut(f"{type(error).__name__}: {error}")
        finally:
            STREAMS_ENDED.labels(status).inc()
        if reason:
            log.info("stream ended", status=status, reason=reason, token=caller.get().token_name)
            await context.abort(grpc.StatusCode[status], reason)

    async def _serve(
        self,
        request_iterator: AsyncIterator[pb.StreamReadsRequest],
        context: grpc.aio.ServicerContext[pb.StreamReadsRequest, pb.StreamReadsResponse],
    ) -> None:
        session: ResultsSession | None = None
        receiver: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(FIRST_REQUEST_TIMEOUT_S):
                first = await anext(aiter(request_iterator), None)
            if first is None:
                raise StreamFault("INVALID_ARGUMENT", "the stream ended before its first message; send `open` first")
            session, opened = self._open(first)
            self._sessions[session] = caller.get()  # from here on it is always closed below
            self._pace.enter(session.client)
            TOKEN_STREAMS.labels(caller.get().token_name).inc()
            self._empty.clear()
            self._note_opened(first.open, session)
            del first  # otherwise the message stays in memory as long as the stream
            receiver = asyncio.create_task(self._receive(session, request_iterator))
            opened.credit.max_total_samples = session.first_credit()
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await context.write(pb.StreamReadsResponse(opened=opened))
            async for output in session.outputs():
                began_s = time.perf_counter()
                response = encode_output(output, session.settings)
                rejected = rejected_samples(output)
                self._pace.answered(session.client, time.perf_counter() - began_s, rejected)
                if rejected and (peer := caller.get().peer):
                    self._took(peer, -rejected)
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await context.write(response)
        finally:
            if receiver is not None:
                receiver.cancel()
            if session is not None:
                session.close()
                if gone := self._sessions.pop(session, None):
                    self._pace.leave(session.client)
                    TOKEN_STREAMS.labels(gone.token_name).dec()
                if not self._sessions:
                    self._empty.set()

    def _open(self, request: pb.StreamReadsRequest) -> tuple[ResultsSession, pb.StreamOpened]:
        if request.WhichOneof("message") != "open":
            raise StreamFault("INVALID_ARGUMENT", "the first message of a stream must be `open`")
        opening = request.open
        if self._draining:
            raise StreamFault("UNAVAILABLE", "the server is shutting down; use another one")
        if len(self._sessions) >= self._engine.max_streams:
            raise StreamFault(
                "RESOURCE_EXHAUSTED",
                f"the server already has {self._engine.max_streams} streams open, its limit (--max-streams)",
            )
        who, most = caller.get().identity, self._engine.max_streams_per_peer
        if who and sum(other.identity == who for other in self._sessions.values()) >= most:
            raise StreamFault(
                "RESOURCE_EXHAUSTED",
                f"this client already has {most} streams open, the limit per client (--max-streams-per-peer)",
            )
        if opening.purpose == pb.STREAM_PURPOSE_DECISIONS:
            raise StreamFault("UNIMPLEMENTED", "purpose DECISIONS is not supported yet")
        if opening.purpose not in (pb.STREAM_PURPOSE_UNSPECIFIED, pb.STREAM_PURPOSE_RESULTS):
            raise StreamFault("INVALID_ARGUMENT", f"unknown purpose {opening.purpose}")
        if not opening.run.run_id:
            raise StreamFault("INVALID_ARGUMENT", "open.run.run_id is empty; it is needed to identify results")
        if len(opening.run.run_id) > MAX_RUN_ID_LENGTH:
            raise StreamFault("INVALID_ARGUMENT", f"open.run.run_id is longer than {MAX_RUN_ID_LENGTH} characters")
        settings, identity = self._resolve(opening.run, opening.options)
        _check_expected(opening.expected, identity)
        heartbeat_s = seconds(opening.heartbeat_interval) or _DEFAULT_HEARTBEAT_S
        if not 1 <= heartbeat_s <= 30:
            raise StreamFault("INVALID_ARGUMENT", f"heartbeat_interval is {heartbeat_s:g} s; it must be 1-30 s")
        session = ResultsSession(
            settings,
            self._engine.scheduler,
            self._engine.budget,
            StreamBooks(
                self._engine.ledger, opening.run.run_id, settings.model, settings.priority, caller.get().token_name
            ),
            max_read_samples=self._engine.max_read_samples,
            window_samples=self._engine.window_samples,
            heartbeat_s=heartbeat_s,
            client=caller.get().identity,
        )
        return session, pb.StreamOpened(caller=identity)

    def _note_opened(self, opening: pb.OpenStream, session: ResultsSession) -> None:
        settings = session.settings
        STREAMS_OPENED.labels(settings.priority.name.lower()).inc()
        if opening.reconnects:
            STREAMS_RECONNECTED.labels(settings.priority.name.lower()).inc()
        log.info(
            "stream opened",
            model=settings.model,
            reference=settings.reference,
            preset=settings.preset,
            token=caller.get().token_name,
        )

    def _resolve(self, run: pb.RunInfo, options: pb.CallOptions) -> tuple[reads.CallSettings, pb.CallerIdentity]:
        """Return the settings for calling a run with these options, and the caller's identity."""
        engine, model = self._engine, options.model
        if model in ("", "auto"):
            model = self._model_for(run, options.allow_chemistry_mismatch)
        if model not in engine.basecallers:
            raise StreamFault(
                "NOT_FOUND", f"this server has no model {model!r}; choose from {', '.join(engine.basecallers)}"
            )
        if not options.allow_chemistry_mismatch:
            self._check_chemistry(model, run)
        preset = ""
        if options.reference:
            presets = [preset for name, preset in engine.aligners if name == options.reference]
            if not presets:
                known = ", ".join(sorted({name for name, _ in engine.aligners})) or "none"
                raise StreamFault("NOT_FOUND", f"this server has no reference {options.reference!r}; it has: {known}")
            preset = options.preset or preset_for_model(model)
            if not options.preset and preset not in presets:
                preset = presets[0]
            if preset not in presets:
                raise StreamFault(
                    "NOT_FOUND",
                    f"reference {options.reference!r} is not available with preset {preset!r}; "
                    f"choose from: {', '.join(presets)}",
                )
        if options.priority not in PRIORITIES:
            raise StreamFault("INVALID_ARGUMENT", f"unknown priority {options.priority}")
        token = caller.get().token
        if token and PRIORITIES[options.priority] not in token.priorities:
            allowed = ", ".join(sorted(priority.name.lower() for priority in token.priorities))
            asked = PRIORITIES[options.priority].name.lower()
            raise StreamFault("PERMISSION_DENIED", f"this token does not allow priority {asked}; it allows {allowed}")
        if not math.isfinite(options.min_mean_qscore):
            raise StreamFault(
                "INVALID_ARGUMENT", f"min_mean_qscore is {options.min_mean_qscore}; it must be a finite number"
            )
        said = {
            name: getattr(message, name)
            for message in (options, run)
            for name in _SETTINGS.intersection(message.DESCRIPTOR.fields_by_name)
        }
        resolved = {"model": model, "preset": preset, "priority": PRIORITIES[options.priority]}
        settings = reads.CallSettings(**said | resolved)
        return settings, self._identity(settings)

    def _model_for(self, run: pb.RunInfo, any_chemistry: bool) -> str:
        """Choose the model for a stream that names none: the only one, or the only one for the run's chemistry."""
        models = {name: caller.bundle.chemistry for name, caller in self._engine.basecallers.items()}
        chemistry = chemistry_of_run(run.flow_cell_product_code, run.sequencing_kit, run.sample_rate_hz)
        if chemistry.known and not any_chemistry:
            fitting = [name for name, made_for in models.items() if not made_for.known or made_for.fits(chemistry)]
            if not fitting:
                raise StreamFault(
                    "FAILED_PRECONDITION",
                    f"the run is {chemistry}, but none of this server's models is for that: "
                    + ", ".join(f"{name} ({made_for})" for name, made_for in models.items())
                    + "; to use one anyway, name it and set allow_chemistry_mismatch",
                )
            models = {name: models[name] for name in fitting}
        if len(models) > 1:
            raise StreamFault("INVALID_ARGUMENT", f"several models fit this run; name one of {', '.join(models)}")
        return next(iter(models))

    def _check_chemistry(self, model: str, run: pb.RunInfo) -> None:
        chemistry = chemistry_of_run(run.flow_cell_product_code, run.sequencing_kit, run.sample_rate_hz)
        made_for = {name: caller.bundle.chemistry for name, caller in self._engine.basecallers.items()}
        if not made_for[model].disagrees(chemistry):
            return
        fitting = ", ".join(name for name, chemistries in made_for.items() if chemistries.fits(chemistry))
        raise StreamFault(
            "FAILED_PRECONDITION",
            f"the run is {chemistry}, but {model} is for {made_for[model]}; this server's models for the run: "
            f"{fitting or 'none'}; set allow_chemistry_mismatch to call it anyway",
        )

    def _identity(self, settings: reads.CallSettings) -> pb.CallerIdentity:
        basecaller = self._engine.basecallers[settings.model]
        aligner = self._engine.aligners.get((settings.reference, settings.preset))
        return pb.CallerIdentity(
            model=settings.model,
            model_sha256=basecaller.bundle.sha256,
            reference=settings.reference,
            reference_sha256=bytes.fromhex(aligner.reference.sha256) if aligner else b"",
            precision=basecaller.precision,
            device_class=basecaller.runner.device_class + (aligner.device_class if aligner else ""),
            version=version("porestream"),
            preset=settings.preset,
            calling_revision=CALLING_REVISION,
        )

    async def _receive(self, session: ResultsSession, requests: AsyncIterator[pb.StreamReadsRequest]) -> None:
        """Pass the client's messages to the session until there are no more. An error ends the stream with a status."""
        next_batch, used, told, peer = 1, 0, 0, caller.get().peer
        try:
            async for request in requests:
                began_s = time.perf_counter()
                session.heard()
                kind = request.WhichOneof("message")
                if kind == "signal":
                    if request.signal.batch_seq != next_batch:
                        raise StreamFault(
                            "INVALID_ARGUMENT", f"batch_seq is {request.signal.batch_seq}; expected {next_batch}"
                        )
                    next_batch += 1
                    _take_signal(session, request.signal)
                elif kind == "result_ack":
                    session.acknowledge(request.result_ack.result_seq)
                elif kind == "half_close":
                    session.half_close()
                elif kind == "open":
                    raise StreamFault("INVALID_ARGUMENT", "`open` may only be a stream's first message")
                elif kind is None:
                    raise StreamFault(
                        "INVALID_ARGUMENT", "unknown kind of message; is the client newer than the server?"
                    )
                del request  # don't keep it in memory until the next one comes
                wait_s = self._pace.wait_s(session.client, time.perf_counter() - began_s, session.taken_samples - used)
                used = session.taken_samples
                if peer and used - told >= _TELL_SAMPLES:
                    self._took(peer, used - told)
                    told = used
                if wait_s:
                    await asyncio.sleep(wait_s)
            session.requests_ended()
        except StreamFault as fault:
            session.fail(fault)
        except DecodeError as error:
            session.fail(StreamFault("INVALID_ARGUMENT", str(error)))
        except Exception as error:  # the stream must end, not hang
            if _is_stopped(error):
                session.fail(StreamFault("UNAVAILABLE", "the server has stopped; use another one"))
                return
            log.exception("stream failed")
            session.fail(StreamFault("INTERNAL", f"{type(error).__name__}: {error}"))

    # ResolveCaller, GetServerInfo, WatchStats

    async def ResolveCaller(  # noqa: N802
        self,
        request: pb.ResolveCallerRequest,
        context: grpc.aio.ServicerContext[pb.ResolveCallerRequest, pb.ResolveCallerResponse],
    ) -> pb.ResolveCallerResponse:
        """Return the identity that would call this run."""
        try:
            return pb.ResolveCallerResponse(caller=self._resolve(request.run, request.options)[1])
        except StreamFault as fault:
            await context.abort(grpc.StatusCode[fault.code], _cut(str(fault)))
            raise AssertionError("abort does not return") from fault

    async def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,
        context: grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.GetServerInfoResponse],
    ) -> pb.GetServerInfoResponse:
        """Return this server's models, references and limits."""
        engine = self._engine
        references: dict[str, pb.Reference] = {}
        for (name, preset), aligner in engine.aligners.items():
            reference = references.setdefault(name, pb.Reference(name=name))
            reference.presets.append(preset)
            if not reference.sequences:
                reference.sequences.extend(
                    pb.ReferenceSequence(name=sequence.name, length=sequence.length, md5=sequence.md5 or "")
                    for sequence in aligner.reference.sequences
                )
        return pb.GetServerInfoResponse(
            version=version("porestream"),
            calling_revision=CALLING_REVISION,
            device=next(iter(engine.basecallers.values())).runner.device_name,
            models=[encode_model(name, basecaller) for name, basecaller in engine.basecallers.items()],
            references=list(references.values()),
            encodings=list(ENCODINGS),
            limits=pb.Limits(
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_chunk_samples=MAX_CHUNK_SAMPLES,
                max_read_samples=engine.max_read_samples,
                memory_budget_bytes=engine.budget.total_bytes,
                max_streams=engine.max_streams,
                max_open_reads=MAX_OPEN_READS,
                min_chunk_credit_samples=MIN_CHUNK_CREDIT_SAMPLES,
                window_samples=engine.window_samples,
            ),
        )

    async def WatchStats(  # noqa: N802
        self,
        request: pb.WatchStatsRequest,
        context: grpc.aio.ServicerContext[pb.WatchStatsRequest, pb.WatchStatsResponse],
    ) -> None:
        """Send throughput until the client leaves or the server drains."""
        interval_s = seconds(request.interval) or _DEFAULT_STATS_INTERVAL_S
        if not 1 <= interval_s <= 60:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"interval is {interval_s:g} s; it must be 1-60 s")
        samples = bases = 0
        before_s = 0.0
        while not self._draining:
            books = self._engine.ledger.find_run(request.run_id) if request.run_id else self._engine.ledger.server
            if books is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, _cut(f"this server has not seen run {request.run_id!r}"))
                return
            now_s = time.monotonic()
            elapsed_s = now_s - before_s if before_s else math.inf
            response = encode_stats(books)
            response.samples_per_second = (books.samples - samples) / elapsed_s
            response.bases_per_second = (books.bases - bases) / elapsed_s
            response.backlog.FromNanoseconds(int(self._backlog_s() * 1e9))
            await context.write(response)
            samples, bases, before_s = books.samples, books.bases, now_s
            await asyncio.sleep(interval_s)

    def _backlog_s(self) -> float:
        return max(self._engine.scheduler.load().oldest_s.values())


def _take_signal(session: ResultsSession, batch: pb.SignalBatch) -> None:
    """Pass on the chunks. A separate function, so that no chunk keeps its message in memory until the next one."""
    for chunk in batch.chunks:
        session.receive(decode_chunk(chunk))


def _is_stopped(error: Exception) -> bool:
    """Whether the error means that the server was stopped during a stream; gRPC has no public name for it."""
    return isinstance(error, grpc.aio.BaseError) and type(error).__name__ == "_ServerStoppedError"


def _cut(detail: str) -> str:
    """Shorten a status message, which may quote the client, so that it can be sent."""
    encoded = detail.encode()
    return detail if len(encoded) <= _MAX_DETAIL_BYTES else encoded[:_MAX_DETAIL_BYTES].decode(errors="ignore") + "..."


def _check_expected(expected: pb.CallerIdentity, actual: pb.CallerIdentity) -> None:
    """Compare the fields that the client set, except the version. A version without a revision means revision 0."""
    names = {field.name for field, _ in expected.ListFields()}
    if "version" in names:
        names = names - {"version"} | {"calling_revision"}
    for name in sorted(names):
        theirs, mine = getattr(expected, name), getattr(actual, name)
        if theirs != mine:
            shown = [v.hex() if isinstance(v, bytes) else v for v in (theirs, mine)]
            raise StreamFault(
                "FAILED_PRECONDITION",
                f"this server would call differently: expected {name} {shown[0]!r}, but it has {shown[1]!r}",
            )
