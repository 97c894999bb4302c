"""TLS and tokens. Certificate, key and tokens are read again when their files change, as secrets are rotated."""

import hmac
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from porestream.server.metrics import STREAMS_ENDED
from porestream.server.settings import SettingsError

log = structlog.get_logger()

_MIN_TOKEN_LENGTH = 16
_OPEN_TO_ALL = ("/grpc.health.v1.Health/",)
_T = TypeVar("_T")


class _Watched(Generic[_T]):
    """What files say, read again when one of them changes; what they said before, where that cannot be used."""

    def __init__(self, paths: list[Path], read: Callable[[], _T]) -> None:
        self._paths, self._read = paths, read
        self._lock = threading.Lock()
        self._state = self._look()
        self._value = read()

    def get(self) -> _T:
        """What they say now."""
        with self._lock:
            state = self._look()
            if state != self._state:
                try:
                    self._value = self._read()
                    log.info("read again", files=[str(path) for path in self._paths])
                except SettingsError as error:  # also while only one of two files was replaced
                    log.warning("the old secrets stay in use", reason=str(error))
                self._state = state
            return self._value

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._paths:
            try:
                status = os.stat(path)
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                found.append((0, 0, 0))
        return found


class Certificate:
    """The server's certificate and key.

    Raises
    ------
    SettingsError
        They cannot be read, or do not fit together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._pair = _Watched([certificate, key], self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: each new connection gets the certificate of that time.

        gRPC is given a configuration when there is another one, and only then: one for every connection meets a
        use-after-free of its own as soon as many connect at once (grpc/grpc#36693).
        """
        given = key, chain, _ = self._pair.get()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            now = key, chain, _ = self._pair.get()
            if now is given:
                return None
            given = now
            return grpc.ssl_server_certificate_configuration([(key, chain)])

        return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([(key, chain)]), fetch)

    def expiry_s(self) -> float:
        """When the certificate ends, in Unix time."""
        return self._pair.get()[2]

    def _read(self) -> tuple[bytes, bytes, float]:
        chain, key = (_read_file(path) for path in (self._certificate, self._key))
        try:
            certificate = x509.load_pem_x509_certificates(chain)[0]
        except ValueError as error:
            raise SettingsError(f"{self._certificate}: not a certificate in PEM form") from error
        try:
            public = load_pem_private_key(key, None).public_key()
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{self._key}: not an unencrypted private key in PEM form") from error
        if public != certificate.public_key():
            raise SettingsError(f"{self._key} is not the key of {self._certificate}")
        return key, chain, certificate.not_valid_after_utc.timestamp()


class Tokens:
    """The tokens that clients may have.

    Raises
    ------
    SettingsError
        The file cannot be read, holds none, or one that is too short to be safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens = _Watched([path], self._read)

    def accept(self, metadata: Any) -> bool:
        """Whether a call's metadata hold one of them, as `authorization: Bearer TOKEN`."""
        given = next((value for key, value in metadata or () if key == "authorization"), "")
        scheme, _, token = given.partition(" ") if isinstance(given, str) else ("", "", "")
        found = [hmac.compare_digest(token.strip().encode(), known) for known in self._tokens.get()]
        return scheme.lower() == "bearer" and any(found)

    def _read(self) -> list[bytes]:
        tokens = (
            _read_file(self._path).removeprefix(b"\xef\xbb\xbf").split()
        )  # an editor of Windows may put a mark first
        if not tokens:
            raise SettingsError(f"{self._path}: no token in it; `openssl rand -hex 32` makes one")
        if min(map(len, tokens)) < _MIN_TOKEN_LENGTH:
            raise SettingsError(
                f"{self._path}: a token of fewer than {_MIN_TOKEN_LENGTH} characters; `openssl rand -hex 32` makes one"
            )
        return tokens


class TokenGuard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Turns away calls without a token, but for the health service's."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The handler, or one that refuses in its place."""
        handler = await continuation(handler_call_details)
        if (
            handler is None
            or handler_call_details.method.startswith(_OPEN_TO_ALL)
            or self._tokens.accept(handler_call_details.invocation_metadata)
        ):
            return handler
        return _refuse_like(handler, handler_call_details.method)


def _refuse_like(handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
    async def refuse(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if method.endswith("/StreamReads"):
            STREAMS_ENDED.labels("UNAUTHENTICATED").inc()
        log.info("call refused: no valid token", method=method)
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED, "no valid token: send `authorization: Bearer TOKEN` (--token-file)"
        )

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    return make(refuse, handler.request_deserializer, handler.response_serializer)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
