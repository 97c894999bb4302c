"""`porestream health`."""

import os
import sys
from pathlib import Path

import click

from porestream.cli.options import connection_options, credentials_of
from porestream.cli.text import escaped

_DEFAULT = "127.0.0.1:50051"


@click.command(short_help="Ask a server whether it is ready; for scripts and containers.")
@click.option(
    "--server",
    metavar="HOST:PORT|unix:PATH",
    help="Server to ask. Default: where a server with this environment listens: $PORESTREAM_HEALTH_LISTEN, "
    f"$PORESTREAM_LISTEN or {_DEFAULT}.",
)
@click.option(
    "--service",
    default="",
    metavar="NAME",
    help="What to ask about: liveness (does it work at all?), or a gRPC service. Default: is it ready?",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    metavar="S",
    help="Seconds to wait for the answer. Default: 5.",
)
@connection_options
def health(
    server: str | None,
    service: str,
    timeout_s: float,
    tls: bool,
    tls_ca: Path | None,
    token_file: Path | None,
    proxy: str | None,
) -> None:
    """Ask a server, with gRPC's health protocol, whether it is ready for streams.

    Exit codes: 0 it is ready; 1 it is not, or does not answer.
    """
    import asyncio

    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from porestream.client.channel import open_channel, way_to

    address = server or _reachable(
        os.environ.get("PORESTREAM_HEALTH_LISTEN") or os.environ.get("PORESTREAM_LISTEN") or _DEFAULT
    )
    credentials = credentials_of(address, tls, tls_ca, token_file, proxy)

    async def ask() -> str:
        async with open_channel(address, credentials) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    try:
        status = asyncio.run(ask())
    except grpc.aio.AioRpcError as error:
        click.echo(escaped(f"{way_to(address, credentials)}: {error.code().name}: {error.details()}"), err=True)
        sys.exit(1)
    except (OSError, ValueError) as error:  # a credentials file, or the proxy's URL
        click.echo(str(error), err=True)
        sys.exit(1)
    click.echo(status)
    sys.exit(0 if status == "SERVING" else 1)


def _reachable(listen: str) -> str:
    """Return an address to connect to, even if the server listens on all addresses."""
    host, colon, port = listen.rpartition(":")
    return f"127.0.0.1{colon}{port}" if host in ("0.0.0.0", "[::]") else listen
