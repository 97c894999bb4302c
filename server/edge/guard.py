"""Checks every call before it is served: is its token valid, and does the peer have too many calls open?

Unary calls are handled as request streams, so that a call whose request never arrives times out and is counted like any
other.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from porestream.server.edge.security import Role, Token, Tokens
from porestream.server.metrics import CALLS_REFUSED, STREAMS_ENDED, Refused

log = structlog.get_logger()

FIRST_REQUEST_TIMEOUT_S = 10.0
_OPEN_TO_ALL = "/grpc.health.v1.Health/"
_STREAM = "/porestream.v1.BasecallService/StreamReads"


@dataclass(frozen=True, slots=True)
class CallLimit:
    """How many calls of a kind may be open, in total and per peer."""

    total: int
    of_a_peer: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: the token (None: not needed) and the peer (None: unknown)."""

    token: Token | None = None
    peer: str | None = None

    @property
    def token_name(self) -> str:
        """The token's name for the log."""
        return self.token.name if self.token else ""

    @property
    def identity(self) -> str | None:
        """What distinguishes clients: the name of the token, or the peer's address."""
        return f"token {self.token.name}" if self.token and self.token.name else self.peer


NOBODY = Caller()
caller: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""The caller of the call being served."""


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls beyond a limit, and calls without a valid token (except health checks).

    Parameters
    ----------
    limits
        Limits by the beginning of the method's full name; the first match counts, and "" matches all.
    peer_of
        Returns the peer behind gRPC's name for the connection; None: unknown, and no limit per peer applies.
    tokens
        The valid tokens; None: everyone is served.
    parsers
        Replacements for methods' own request parsers, by the method's full name.
    """

    def __init__(
        self,
        limits: Mapping[str, CallLimit],
        peer_of: Callable[[str], str | None],
        tokens: Tokens | None = None,
        parsers: Mapping[str, Callable[[bytes], Any]] | None = None,
    ) -> None:
        self._limits, self._peer_of, self._tokens, self._parsers = limits, peer_of, tokens, parsers or {}
        self._open: Counter[str] = Counter()
        self._open_of_peer: Counter[tuple[str, str]] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the handler with the checks added."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        kind = next(kind for kind in self._limits if method.startswith(kind))
        behaviour = (
            (handler.stream_stream if handler.response_streaming else handler.stream_unary)
            if handler.request_streaming
            else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
        )
        takes_one = not handler.request_streaming

        async def serve(_requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            token = await self._check_token(method, context)
            peer = self._peer_of(context.peer())
            if problem := self._no_room(kind, peer):
                CALLS_REFUSED.labels(Refused.LIMIT).inc()
                if method == _STREAM:
                    STREAMS_ENDED.labels("RESOURCE_EXHAUSTED").inc()
                log.info("call refused", method=method, reason=problem)
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
            with self._counted(kind, peer):
                caller.set(Caller(token, peer))
                requests = _Requests(context)
                given = await _only_request(requests, context) if takes_one else requests
                answer = behaviour(given, context)
                if inspect.isasyncgen(answer):
                    async for response in answer:
                        await context.write(response)
                    return None
                return await answer

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(serve, self._parsers.get(method, handler.request_deserializer), handler.response_serializer)

    async def _check_token(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Token | None:
        if self._tokens is None or method.startswith(_OPEN_TO_ALL):
            return None
        token = self._tokens.find(context.invocation_metadata())
        if token is not None and (method != _STREAM or token.role is Role.CALLER):
            return token
        CALLS_REFUSED.labels(Refused.TOKEN).inc()
        status = grpc.StatusCode.PERMISSION_DENIED if token else grpc.StatusCode.UNAUTHENTICATED
        if method == _STREAM:
            STREAMS_ENDED.labels(status.name).inc()
        log.info("call refused: no valid token", method=method, token=token.name if token else "")
        if token:
            await context.abort(
                status,
                f"token {token.name!r} has the role {token.role.value} and may not have reads called; "
                "use a token with the role caller",
            )
        await context.abort(status, "no valid token: send `authorization: Bearer TOKEN` (--token-file)")
        return None

    def _no_room(self, kind: str, peer: str | None) -> str:
        limit = self._limits[kind]
        if self._open[kind] >= limit.total:
            return f"{limit.total} calls of this kind are open, which is the server's limit; try again later"
        if peer and self._open_of_peer[kind, peer] >= limit.of_a_peer:
            return (
                f"{limit.of_a_peer} calls of this kind are open from your address, which is the limit per address; "
                "close some first"
            )
        return ""

    @contextmanager
    def _counted(self, kind: str, peer: str | None) -> Iterator[None]:
        self._open[kind] += 1
        if peer:
            self._open_of_peer[kind, peer] += 1
        try:
            yield
        finally:
            self._open[kind] -= 1
            if peer:
                self._open_of_peer[kind, peer] -= 1
                if not self._open_of_peer[kind, peer]:
                    del self._open_of_peer[kind, peer]


class _Requests:
    """Iterates over a call's requests. gRPC's own iterator keeps each one in memory until the next arrives."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await self._context.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request


async def _only_request(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    try:
        async with asyncio.timeout(FIRST_REQUEST_TIMEOUT_S):
            request = await anext(aiter(requests), None)
    except DecodeError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except TimeoutError:
        await context.abort(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"no request arrived within {FIRST_REQUEST_TIMEOUT_S:g} s"
        )
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
    return request
