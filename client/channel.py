"""Connect to a server, in plaintext or with TLS and a token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from porestream.client.proxy import proxy_for
from porestream.v1 import porestream_pb2_grpc as pb_grpc

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel inherits an old one's backoff
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to connect to a server. Files are read again for each connection, so they can be rotated.

    Attributes
    ----------
    tls
        Whether to encrypt the connection and verify the server's name.
    authority_file
        Certificates (PEM) of the authorities to trust; None: those built into gRPC.
    token_file
        File whose first word is sent as a bearer token; only with TLS.
    proxy
        URL of the HTTP proxy to use; empty: take it from the environment. See `proxy_for`.
    """

    tls: bool = False
    authority_file: Path | None = None
    token_file: Path | None = None
    proxy: str = ""

    def __post_init__(self) -> None:
        if not self.tls and (self.authority_file or self.token_file):
            raise ValueError("a token or an authority needs TLS, or the token would be sent in plaintext")


PLAINTEXT = Credentials()


def way_to(target: str, credentials: Credentials) -> str:
    """Return a server's address for messages, and the proxy if there is one."""
    proxy = proxy_for(target, credentials.proxy)
    return f"{target} through {proxy}" if proxy else target


def open_channel(target: str, credentials: Credentials) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT or unix:PATH.

    Raises
    ------
    OSError
        A credentials file cannot be read.
    ValueError
        The token file is empty.
    """
    proxy = proxy_for(target, credentials.proxy)
    options = [*_OPTIONS, ("grpc.http_proxy", proxy.url) if proxy else ("grpc.enable_http_proxy", 0)]
    if not credentials.tls:
        return grpc.aio.insecure_channel(target, options=options)
    authorities = credentials.authority_file.read_bytes() if credentials.authority_file else None
    channel = grpc.ssl_channel_credentials(authorities)
    if credentials.token_file:
        words = credentials.token_file.read_text("utf-8-sig").split()
        if not words:
            raise ValueError(f"{credentials.token_file}: the token file is empty")
        channel = grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(words[0]))
    return grpc.aio.secure_channel(target, channel, options=options)


def service(channel: grpc.aio.Channel) -> pb_grpc.BasecallServiceStub:
    """Return the service on a channel. A response that cannot be decoded is None."""
    return pb_grpc.BasecallServiceStub(_Wary(channel))


class _Wary:
    """A channel that returns None for responses it cannot decode, where gRPC would print a traceback."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        make = getattr(self._channel, kind)

        def made(method: str, *, response_deserializer: Callable[[bytes], Any], **others: Any) -> Any:
            return make(method, response_deserializer=_or_none(response_deserializer), **others)

        return made


def _or_none(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return None

    return decoded
