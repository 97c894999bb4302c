"""The client, for asyncio, and a synchronous wrapper."""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar

import grpc

from porestream.client.channel import open_channel, service, way_to
from porestream.client.opening import (
    FINAL,
    ServerLost,
    ServerRefused,
    StreamOptions,
    resolve_caller,
    run_fault,
)
from porestream.client.reads import CallerIdentity, ReadInfo, ReadResult, ReadStatus, RunInfo, ServerInfo, SignalRead
from porestream.client.stream import Delivery, RunStream, read_fault
from porestream.client.wire import CHUNK_SAMPLES, EncodedRead, decode_identity, decode_server_info, encode_read
from porestream.v1 import porestream_pb2 as pb
from porestream.v1 import porestream_pb2_grpc as pb_grpc

_T = TypeVar("_T")
_INTERRUPT_TIMEOUT_S = 5.0
_LAST_READ_S = 1.0  # for a read that is still being taken at the end

_MAX_LIVE_STREAMS = 4
_PAUSE_S = 0.3
_AHEAD_READS, _AHEAD_SAMPLES = 64, 1_000_000
_SILENT = {  # what gRPC's errors say, and what to tell the user
    "Handshake read failed": "something listens there, but without TLS: leave out --tls, --tls-ca and --token-file",
    "Socket closed": "something listens there, but not in plaintext: does it need TLS (--tls)?",
    "Hostname Verification": "its certificate is not for this host name",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not signed by a trusted authority; name yours with --tls-ca",
    "handshake failed": "something listens there, but without TLS: leave out --tls, --tls-ca and --token-file",
}
_UNKNOWN_RUN = RunInfo(run_id="", sample_rate_hz=0)
FIRST_CONTACT_S = 10.0
"""How long to wait for a server's first answer: a wrong address should not cost minutes."""


async def _why_silent(stub: pb_grpc.BasecallServiceStub) -> str:
    """Ask again without waiting for the connection: only then does gRPC say why it fails."""
    try:
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=2.0)
    except grpc.aio.AioRpcError as error:
        said = " ".join(str(error.details()).split())
        meaning = next((meaning for words, meaning in _SILENT.items() if words.lower() in said.lower()), "")
        return f"{meaning or 'is it running?'} ({error.code().name}: {said})"
    return "is it running?"


class BasecallClient:
    """Send reads to a server and yield their results.

    Parameters
    ----------
    target
        HOST:PORT or unix:PATH.
    options
        What to ask of the server.

    Attributes
    ----------
    reconnects, resent, unsent
        Totals over all finished calls: see `RunStream`. Reads that cannot be encoded count as unsent, too.

    Examples
    --------
    >>> client = BasecallClient("localhost:50051")
    >>> async for result in client.call(Pod5Source([Path("run.pod5")])):
    ...     store(result)  # acknowledged when the loop comes back for the next
    """

    def __init__(self, target: str, options: StreamOptions | None = None) -> None:
        self.target = target
        self.options = options or StreamOptions()
        self.reconnects = self.resent = self.unsent = 0
        self._callers: dict[RunInfo, pb.CallerIdentity] = {}

    async def server_info(self, timeout_s: float = FIRST_CONTACT_S) -> ServerInfo:
        """Ask the server what it has.

        Raises
        ------
        ServerLost
            The server does not answer within `timeout_s`.
        ServerRefused
            It answers, but not as a porestream server.
        """
        return await _persist(lambda: self._ask_server_info(timeout_s), timeout_s)

    async def _ask_server_info(self, timeout_s: float) -> ServerInfo:
        where = way_to(self.target, self.options.credentials)
        async with open_channel(self.target, self.options.credentials) as channel:
            stub = service(channel)
            try:
                info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout_s, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    why = await _why_silent(stub)
                    raise ServerLost(f"{where} did not answer within {timeout_s:g} s; {why}") from error
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise ServerRefused(f"{where}: {error.details()}") from error
                if error.code() in FINAL:
                    reason = f"{error.code().name}: {error.details()}"
                    raise ServerRefused(
                        f"{where} is not a porestream server, or runs an incompatible version: {reason}"
                    ) from error
                raise ServerLost(f"{where} does not answer: {error.code().name}: {error.details()}") from error
        try:
            if info is None:
                raise ValueError("it sent an invalid message")
            return decode_server_info(info)
        except ValueError as error:
            raise ServerRefused(f"{where} is not a porestream server, or is broken: {error}") from error

    async def identify(self, run: RunInfo = _UNKNOWN_RUN) -> CallerIdentity:
        """Ask which caller (model, reference, precision...) this server chooses for a run, and pin it.

        Without a run, ask about one that nothing is known about.

        Raises
        ------
        ServerRefused, ServerLost
            The server does not have what the options ask for, or does not answer.
        """
        if run not in self._callers:
            ask = partial(resolve_caller, self.target, self.options, run)
            self._callers[run] = await _persist(ask, FIRST_CONTACT_S)
        return self.caller_of(run)

    def caller_of(self, run: RunInfo) -> CallerIdentity:
        """Return this run's caller, as learned by `identify` or when the run's stream was opened.

        Raises
        ------
        KeyError
            Neither has happened yet.
        """
        return decode_identity(self._callers[run])

    async def call(self, reads: Iterable[SignalRead]) -> AsyncGenerator[ReadResult, None]:
        """Call reads; yield each read's result once, in the order in which they are ready.

        Store each result before asking for the next: asking acknowledges it. Each run gets a stream of its own. When a
        connection breaks, the client reconnects and sends the reads without a result again. It iterates over `reads` in
        a thread, a little ahead of sending.

        Raises
        ------
        ServerRefused
            The server cannot do this: it lacks the model or reference, or a different caller answers after a break.
        ServerLost
            No server answered within 10 s at the start, or for `options.give_up_s` later on.
        """
        async with aclosing(self._deliveries(reads)) as batches:
            async for batch in batches:
                for result, stored in batch:
                    if result is not None:
                        yield result
                    stored()

    async def call_batches(self, reads: Iterable[SignalRead]) -> AsyncGenerator[list[ReadResult], None]:
        """Like `call`, but yield all results that are ready, at least one: cheaper for short reads."""
        async with aclosing(self._deliveries(reads)) as batches:
            async for batch in batches:
                if results := [result for result, _ in batch if result is not None]:
                    yield results
                for _, stored in batch:
                    stored()

    async def _deliveries(self, reads: Iterable[SignalRead]) -> AsyncGenerator[list[Delivery], None]:
        info = await self.server_info(min(FIRST_CONTACT_S, self.options.give_up_s))
        deliveries: asyncio.Queue[Delivery | None] = asyncio.Queue()  # bounded by the streams' windows
        live: OrderedDict[RunInfo, tuple[RunStream, asyncio.Task[None]]] = OrderedDict()
        streams: list[RunStream] = []
        refused: dict[RunInfo, str] = {}  # why no stream can be opened for a run; empty: one can
        sequences = info.references.get(self.options.reference)
        lengths = {sequence.name: sequence.length for sequence in sequences or ()}
        source = _ReadAhead(reads, min(CHUNK_SAMPLES, info.max_chunk_samples or CHUNK_SAMPLES), info.max_message_bytes)

        async def feed(tasks: asyncio.TaskGroup) -> None:
            async for read in source:
                if not isinstance(read, ReadResult) and read.info.run not in refused:
                    fault = run_fault(read.info.run, self.options, info.max_message_bytes)
                    refused[read.info.run] = fault
                if isinstance(read, EncodedRead) and (reason := refused[read.info.run]):
                    read = _rejected(read.info, reason, read.samples)
                if isinstance(read, ReadResult):  # it cannot be sent
                    self.unsent += 1
                    deliveries.put_nowait((read, lambda: None))
                    continue
                run = read.info.run
                if run not in live:
                    if len(live) >= _MAX_LIVE_STREAMS:  # finish the run that has gone longest without a read
                        _, (oldest, task) = live.popitem(last=False)
                        oldest.end()
                        await task
                    stream = RunStream(
                        self.target,
                        run,
                        self.options,
                        deliveries.put_nowait,
                        info.min_chunk_credit_samples,
                        info.window_samples,
                        self._callers.get(run),
                        info.max_message_bytes,
                        lengths,
                        partial(self._callers.setdefault, run),
                    )
                    streams.append(stream)
                    live[run] = stream, tasks.create_task(stream.run())
                live.move_to_end(run)
                await live[run][0].put(read)
            for stream, _ in live.values():
                stream.end()

        async def work() -> None:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(feed(tasks))
            finally:
                deliveries.put_nowait(None)

        worker = asyncio.create_task(work())
        try:
            delivery = await deliveries.get()
            while delivery is not None:
                batch = [delivery]
                while not deliveries.empty() and (delivery := deliveries.get_nowait()) is not None:
                    batch.append(delivery)
                yield batch
                if delivery is not None:
                    delivery = await deliveries.get()
            await worker
        except BaseExceptionGroup as group:
            raise _first_error(group) from group
        finally:
            self.reconnects += sum(stream.reconnects for stream in streams)
            self.resent += sum(stream.resent for stream in streams)
            self.unsent += sum(stream.unsent for stream in streams)
            worker.cancel()
            await asyncio.gather(worker, source.stop(), return_exceptions=True)


class SyncBasecallClient:
    """`BasecallClient` for code without asyncio; a context manager.

    Examples
    --------
    >>> with SyncBasecallClient("localhost:50051") as client:
    ...     for result in client.call(Pod5Source([Path("run.pod5")])):
    ...         store(result)
    """

    def __init__(self, target: str, options: StreamOptions | None = None) -> None:
        self._client = BasecallClient(target, options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="porestream-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._loop.shutdown_asyncgens())  # calls whose loop was left early
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def server_info(self) -> ServerInfo:
        """See `BasecallClient.server_info`."""
        return self._run(self._client.server_info())

    def call(self, reads: Iterable[SignalRead]) -> Iterator[ReadResult]:
        """See `BasecallClient.call`."""
        results = self._client.call(reads)

        async def next_result() -> ReadResult | None:
            return await anext(results, None)

        try:
            while (result := self._run(next_result())) is not None:
                yield result
        finally:
            if self._thread.is_alive():
                self._run(_close(results))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if not self._thread.is_alive():
            work.close()
            raise RuntimeError("a SyncBasecallClient works only inside its `with`")
        ended = threading.Event()

        async def mark() -> _T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(mark(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait(_INTERRUPT_TIMEOUT_S)  # the next call may need what this one held
            raise


async def _close(results: AsyncGenerator[ReadResult, None]) -> None:
    await results.aclose()


async def _persist(ask: Callable[[], Awaitable[_T]], seconds: float) -> _T:
    """Ask again if the server is lost: it may be starting, or being replaced."""
    deadline_s = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except ServerLost:
            if time.monotonic() >= deadline_s:
                raise
        await asyncio.sleep(_PAUSE_S)


class _ReadAhead:
    """Encode reads in a thread, a little ahead of sending; iterate over it once.

    A round trip to the event loop for each read would cost more than encoding a short read.
    """

    def __init__(self, reads: Iterable[SignalRead], chunk_samples: int, max_message_bytes: int) -> None:
        self._reads, self._chunk_samples, self._max_message_bytes = reads, chunk_samples, max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._ready: deque[EncodedRead | ReadResult] = deque()
        self._ready_samples = 0
        self._has_news = asyncio.Event()
        self._is_told = self._is_stopped = self._is_over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="porestream-reads", daemon=True)

    async def __aiter__(self) -> AsyncGenerator[EncodedRead | ReadResult, None]:
        self._thread.start()
        while True:
            with self._changed:
                reads = list(self._ready)
                self._ready.clear()
                self._ready_samples = 0
                is_over = self._is_over
                self._is_told = False
                self._has_news.clear()
                self._changed.notify()
            for read in reads:
                yield read
            if is_over:
                if self._error:
                    raise self._error
                return
            await self._has_news.wait()

    async def stop(self) -> None:
        """Take no more reads. Wait for the thread to end, but not for a source that is stuck."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _LAST_READ_S)

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for read in self._reads:
                encoded = _encoded(read, self._chunk_samples, self._max_message_bytes)
                with self._changed:
                    self._ready.append(encoded)
                    self._ready_samples += read.signal_S.size
                    self._tell()
                    while not self._is_stopped and self._is_far_ahead():
                        self._changed.wait()
                    if self._is_stopped:
                        return
        except BaseException as caught:  # noqa: BLE001 - raised again for whoever iterates
            error = caught
        with self._changed:
            self._error, self._is_over = error, True
            self._tell()

    def _is_far_ahead(self) -> bool:
        return len(self._ready) >= _AHEAD_READS or self._ready_samples >= _AHEAD_SAMPLES

    def _tell(self) -> None:
        if not self._is_told and not self._is_stopped:
            self._is_told = True
            self._loop.call_soon_threadsafe(self._has_news.set)


def _encoded(read: SignalRead, chunk_samples: int, max_message_bytes: int) -> EncodedRead | ReadResult:
    """Encode a read, or reject it if a value is out of range: one strange read must not end a run."""
    try:
        encoded = encode_read(read, chunk_samples)
        reason = read_fault(encoded, max_message_bytes)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = f"not sendable: {type(error).__name__}: {error}"
    return _rejected(read.info, reason, int(read.signal_S.size)) if reason else encoded


def _rejected(info: ReadInfo, reason: str, samples: int) -> ReadResult:
    return ReadResult(
        info=info,
        status=ReadStatus.REJECTED,
        detail=reason,
        signal_samples=samples,
    )


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
