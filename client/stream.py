"""One run's stream: it sends reads within the server's credit, takes results, and survives broken connections.

The client owns each read until its result is stored; after a break it resends every read without a result. The first
connection pins everything that determines the bytes: another server must have an equal caller.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import grpc
import structlog

from porestream.client.channel import open_channel, service, way_to
from porestream.client.opening import (
    FINAL,
    AnotherCaller,
    ServerLost,
    ServerRefused,
    StreamOptions,
    breach,
    check_asked,
    check_caller,
    open_message,
)
from porestream.client.reads import ReadResult, ReadStatus, RunInfo
from porestream.client.text import counted
from porestream.client.wire import EncodedRead, chunk_bytes, decode_result
from porestream.v1 import porestream_pb2 as pb

log = structlog.get_logger()

_MESSAGE_BYTES = 256 << 10
_BATCH_BYTES = 64  # of a message, without its chunks
_LEAST_WINDOW_SAMPLES = 8_000_000  # unless the options say otherwise
_MIN_WINDOW_SAMPLES = 1024  # a read uses at least this much of the window, so the number of reads is bounded, too
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 5.0
_FIRST_WARNING_S, _WARNING_EVERY_S = 60.0, 300.0  # about a server that is up but delivers nothing
_SENT_BACK_PAUSE_S, _MAX_SENT_BACK_PAUSE_S = 1.0, 120.0
_FINAL_HERE = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
"""Statuses that are not final once the stream has been open: another server may have the model that this one lacks."""


def read_fault(read: EncodedRead, max_message_bytes: int) -> str:
    """Say why a chunk of this read does not fit in any message; empty if all fit."""
    size = _BATCH_BYTES + max(map(chunk_bytes, read.chunks))
    if not 0 < max_message_bytes < size:
        return ""
    return f"too large to send: {size:,} bytes with its metadata; the server accepts at most {max_message_bytes:,}"


async def _next_response(call: grpc.aio.StreamStreamCall, patience_s: float) -> Any:
    """Return the server's next message, or EOF; raise TimeoutError if it is silent."""
    async with asyncio.timeout(patience_s):
        return await call.read()


@dataclass(slots=True, eq=False, kw_only=True)
class _Connection:
    """The state of the current connection."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    credit: int = 0
    used: int = 0
    batch_seq: int = 0
    stored_seq: int = 0
    acknowledged_seq: int = 0
    received_seq: int = 0
    is_open: bool = False
    draining: bool = False
    half_closed: bool = False
    to_send: deque[EncodedRead] = field(default_factory=deque)
    next_chunk: int = 0  # of the first read in `to_send`
    sent: dict[bytes, bool] = field(default_factory=dict)  # reads without a result: whether sent completely
    resting: int = 0  # reads that the server sent back, to be sent again after a pause


Delivery = tuple[ReadResult | None, Callable[[], None]]
"""A result (None: the server sent the read back), and a callback for when it is stored."""


class RunStream:
    """Stream one run's reads to a server until every one has a stored result.

    Parameters
    ----------
    target
        HOST:PORT or unix:PATH.
    run, options
        For the `open` message.
    deliver
        Takes each result, in order, with a callback for when it is stored. Must not block.
    min_chunk_credit_samples
        The least credit that a chunk uses (the server's Limits).
    window_samples
        How much signal keeps the server busy (its Limits); the options may say otherwise.
    expected
        The caller to require; None: the first one. If a reconnection finds a different one, the stream tries again.
    max_message_bytes
        The largest message that the server accepts (its Limits); 0: not known.
    lengths
        Length of each reference sequence, to check results against. None: not known.
    opened
        Called with the caller's identity, before the first result.

    Attributes
    ----------
    caller
        The caller; None until a stream has been opened.
    reconnects
        Connections after the first.
    resent
        How many times a read was sent again.
    unsent
        Reads rejected here because a read with the same id was already being called; no server saw them.
    """

    def __init__(
        self,
        target: str,
        run: RunInfo,
        options: StreamOptions,
        deliver: Callable[[Delivery], None],
        min_chunk_credit_samples: int,
        window_samples: int,
        expected: pb.CallerIdentity | None,
        max_message_bytes: int = 0,
        lengths: Mapping[str, int] | None = None,
        opened: Callable[[pb.CallerIdentity], object] = lambda _: None,
    ) -> None:
        self._target, self._run_info, self._options, self._deliver = target, run, options, deliver
        self._min_chunk_samples = min_chunk_credit_samples
        self._window_samples = options.window_samples or max(window_samples, _LEAST_WINDOW_SAMPLES)
        self.caller, self._opened = expected, opened
        self._max_message_bytes, self._lengths = max_message_bytes, lengths
        self._pending: OrderedDict[bytes, EncodedRead] = OrderedDict()  # without a result
        self._window_used = 0  # samples of reads without a stored result
        self._window_free = asyncio.Event()
        self._window_free.set()
        self._ended = False
        self._connection: _Connection | None = None
        self._results = 0
        self._sent_back: Counter[bytes] = Counter()  # by pending read id: how often
        self._waiting_since_s, self._warned_s = math.inf, math.inf  # for a result; last warning
        self._begun: set[bytes] = set()  # pending reads that a server may have seen
        self.reconnects = self.resent = self.unsent = 0

    async def put(self, read: EncodedRead) -> None:
        """Queue a read for calling; wait while too much is under way."""
        cost = _window_cost(read)
        while self._window_used and self._window_used + cost > self._window_samples:
            self._window_free.clear()
            await self._window_free.wait()
        if read.info.read_id.bytes in self._pending:
            self.unsent += 1
            self._deliver((_duplicate(read), lambda: None))
            return
        self._window_used += cost
        if not self._pending:
            self._waiting_since_s = self._warned_s = time.monotonic()
        self._pending[read.info.read_id.bytes] = read
        if self._connection:
            self._connection.to_send.append(read)
            self._connection.changed.set()

    def end(self) -> None:
        """Say that no more reads will come."""
        self._ended = True
        if self._connection:
            self._connection.changed.set()

    async def run(self) -> None:
        """Stream until every read has a stored result.

        Raises
        ------
        ServerRefused, ServerLost
            The stream cannot continue; `ServerLost` names reads without a result.
        """
        backoff_s = _FIRST_BACKOFF_S
        failing_since_s: float | None = None
        while not self._is_done():
            results, began_s = self._results, time.monotonic()
            reason = "the server is going away"
            try:
                await self._connect()
            except grpc.aio.AioRpcError as error:
                is_final = error.code() in FINAL and (self.caller is None or error.code() not in _FINAL_HERE)
                if is_final or _is_too_large(error):
                    raise ServerRefused(f"{error.code().name}: {error.details()}") from error
                reason = f"{error.code().name}: {error.details()}"
            except AnotherCaller as error:
                reason = str(error)
            except TimeoutError:
                reason = f"silent for {4 * self._options.heartbeat_s:g} s"
            if self._is_done():  # nothing is missing, whatever ended the connection
                return
            now_s = time.monotonic()
            self.reconnects += 1
            if self._results > results or now_s - began_s > self._options.give_up_s or failing_since_s is None:
                failing_since_s, backoff_s = now_s, _FIRST_BACKOFF_S
            if now_s - failing_since_s > self._options.give_up_s:
                where = way_to(self._target, self._options.credentials)
                raise ServerLost(f"{where}: {reason}; {self._name_pending()}")
            log.warning("connection lost, trying again", reason=reason, reads_without_result=len(self._pending))
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _is_done(self) -> bool:
        return self._ended and not self._pending

    async def _connect(self) -> None:
        """Open a connection and serve it until it ends."""
        async with open_channel(self._target, self._options.credentials) as channel:
            call = service(channel).StreamReads()
            connection = _Connection()
            await call.write(open_message(self._run_info, self._options, self.caller, self.reconnects))
            sender: asyncio.Task[None] | None = None
            patience_s = 4 * self._options.heartbeat_s
            try:
                while (response := await _next_response(call, patience_s)) is not grpc.aio.EOF:
                    if response is None:
                        raise breach(self._target, "it sent an invalid message")
                    if response.WhichOneof("message") == "opened":
                        self._open(response.opened, connection)
                        sender = asyncio.create_task(self._send(call, connection))
                    else:
                        self._take(response, connection)
                    self._tell_of_waiting(connection)
                    if sender is not None and sender.done():
                        sender.result()
            finally:
                self._connection = None
                call.cancel()
                if sender is not None:
                    sender.cancel()
                    await asyncio.gather(sender, return_exceptions=True)

    def _open(self, opened: pb.StreamOpened, connection: _Connection) -> None:
        if connection.is_open:
            raise breach(self._target, "it opened the stream twice")
        if self.caller is None:
            check_asked(self._target, opened.caller, self._options)
            self.caller = opened.caller
            self._opened(opened.caller)
        check_caller(opened.caller, self.caller)
        connection.is_open = True
        connection.credit = opened.credit.max_total_samples
        connection.to_send = deque(self._pending.values())
        self._connection = connection

    def _take(self, response: pb.StreamReadsResponse, connection: _Connection) -> None:
        kind = response.WhichOneof("message")
        if kind == "credit":
            connection.credit = max(connection.credit, response.credit.max_total_samples)
        elif kind == "results":
            for seq, message in enumerate(response.results.results, response.results.first_result_seq):
                self._take_result(seq, message, connection)
        elif kind == "go_away":
            connection.draining = True
        connection.changed.set()

    def _take_result(self, seq: int, message: pb.ReadResult, connection: _Connection) -> None:
        if seq != connection.received_seq + 1:
            raise breach(self._target, f"it sent result {seq} instead of {connection.received_seq + 1}")
        connection.received_seq = seq
        is_whole = connection.sent.pop(message.read_id, None)
        if is_whole is None:
            name = UUID(bytes=message.read_id) if len(message.read_id) == 16 else message.read_id[:20].hex()
            raise breach(self._target, f"it sent a result for read {name}, which is not waiting for one")
        if message.status == pb.READ_STATUS_TRY_AGAIN:
            self._send_again(seq, self._pending[message.read_id], connection)
            return
        read = self._pending.pop(message.read_id)
        self._sent_back.pop(message.read_id, None)
        self._begun.discard(message.read_id)
        result = decode_result(message, read.info, read.samples, self._lengths)
        if result.parts and not is_whole:
            detail = "the server called the read before it had received all of it"
            result = replace(result, status=ReadStatus.FAILED, detail=detail, parts=())
        self._results += 1
        self._waiting_since_s = self._warned_s = time.monotonic()

        def stored() -> None:
            self._window_used -= _window_cost(read)
            self._window_free.set()
            connection.stored_seq = seq
            connection.changed.set()

        self._deliver((result, stored))

    def _send_again(self, seq: int, read: EncodedRead, connection: _Connection) -> None:
        """Resend a read that the server sent back for lack of memory, after a pause and behind those that wait."""
        if connection.to_send and connection.to_send[0] is read and connection.next_chunk:
            connection.to_send.popleft()
            connection.next_chunk = 0
        connection.resting += 1

        def send() -> None:
            connection.resting -= 1
            connection.to_send.append(read)
            connection.changed.set()

        def noted() -> None:
            connection.stored_seq = seq
            connection.changed.set()

        read_id = read.info.read_id.bytes
        self._sent_back[read_id] += 1
        longest_s = min(_SENT_BACK_PAUSE_S * 2 ** self._sent_back[read_id], _MAX_SENT_BACK_PAUSE_S)
        pause_s = longest_s * random.uniform(0.2, 1.0)  # spreads out reads that are in each other's way
        asyncio.get_running_loop().call_later(pause_s, send)
        self._deliver((None, noted))  # acknowledged in order

    async def _send(self, call: grpc.aio.StreamStreamCall, connection: _Connection) -> None:
        sent_s = time.monotonic()
        while True:
            message = self._next_message(connection)
            if message is None:
                wait_s = sent_s + self._options.heartbeat_s - time.monotonic()
                if wait_s > 0:
                    connection.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await connection.changed.wait()
                    continue
                message = pb.StreamReadsRequest()
                message.heartbeat.sent_at.GetCurrentTime()
            try:
                await call.write(message)
            except asyncio.InvalidStateError:  # the call is over: the reader learns why
                return
            sent_s = time.monotonic()

    def _next_message(self, connection: _Connection) -> pb.StreamReadsRequest | None:
        if connection.stored_seq > connection.acknowledged_seq:
            connection.acknowledged_seq = connection.stored_seq
            return pb.StreamReadsRequest(result_ack=pb.ResultAck(result_seq=connection.stored_seq))
        if connection.half_closed:
            return None
        chunks = [] if connection.draining else self._next_chunks(connection)
        if chunks:
            connection.batch_seq += 1
            request = pb.StreamReadsRequest(signal=pb.SignalBatch(batch_seq=connection.batch_seq, chunks=chunks))
            request.signal.sent_at.GetCurrentTime()
            return request
        if connection.draining or (self._ended and not connection.to_send and not connection.resting):
            connection.half_closed = True
            return pb.StreamReadsRequest(half_close=pb.HalfClose())
        return None

    def _next_chunks(self, connection: _Connection) -> list[pb.ReadChunk]:
        """Take chunks that fit into one message and the credit."""
        chunks: list[pb.ReadChunk] = []
        size = 0
        most_bytes = (self._max_message_bytes or 2 * _MESSAGE_BYTES) - _BATCH_BYTES
        while connection.to_send and size < _MESSAGE_BYTES:
            read = connection.to_send[0]
            chunk = read.chunks[connection.next_chunk]
            cost = max(chunk.sample_count, self._min_chunk_samples)
            chunk_size = chunk_bytes(chunk)
            if connection.used + cost > connection.credit or (chunks and size + chunk_size > most_bytes):
                break
            if connection.next_chunk == 0:
                self.resent += chunk.read_id in self._begun
                self._begun.add(chunk.read_id)
            connection.used += cost
            chunks.append(chunk)
            size += chunk_size
            connection.next_chunk += 1
            connection.sent[chunk.read_id] = connection.next_chunk == len(read.chunks)
            if connection.sent[chunk.read_id]:
                connection.to_send.popleft()
                connection.next_chunk = 0
        return chunks

    def _tell_of_waiting(self, connection: _Connection) -> None:
        """Warn the user if the server delivers nothing: it may be busy for hours, and the user should decide."""
        now_s = time.monotonic()
        has_warned = self._warned_s > self._waiting_since_s
        if not self._pending or now_s - self._warned_s < (_WARNING_EVERY_S if has_warned else _FIRST_WARNING_S):
            return
        self._warned_s = now_s
        silent_s = now_s - self._waiting_since_s
        log.warning(
            "the server is up but delivers nothing: it may be busy with other streams, or stuck",
            server=self._target,
            since=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - silent_s)),
            seconds=round(silent_s),
            reads_without_result=len(self._pending),
            waiting_for="results" if connection.sent else "room for reads",
        )

    def _name_pending(self) -> str:
        names = [str(UUID(bytes=read_id)) for read_id in list(self._pending)[:20]]
        more = ", ..." if len(self._pending) > len(names) else ""
        return f"{counted(len(self._pending), 'read')} without a result ({', '.join(names)}{more})"


def _is_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether a message was too large: the status is the same as that of a server with no room right now."""
    return error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in str(error.details())


def _window_cost(read: EncodedRead) -> int:
    return max(read.samples, _MIN_WINDOW_SAMPLES)


def _duplicate(read: EncodedRead) -> ReadResult:
    reason = "duplicate: a read with this id is already being called"
    return ReadResult(
        info=read.info,
        status=ReadStatus.REJECTED,
        detail=reason,
        signal_samples=read.samples,
    )
