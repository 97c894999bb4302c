"""`porestream serve`."""

import asyncio
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from porestream.cli.options import CallCommand, models_directory_option, server_options


@click.command(cls=CallCommand, short_help="Serve basecalling and alignment over gRPC.")
@click.option(
    "--model",
    multiple=True,
    metavar="auto|fast|hac|sup|NAME|DIR",
    help="Model directory, or the name of a model in the models folder (`porestream models` lists them); fast, hac or "
    "sup: the newest of that kind for every chemistry and sample rate in the folder. Repeat for several. Streams name "
    "one by its directory's name, or get the one that fits their run. Default: auto: the one that ships (R10.4.1 DNA; "
    "ONT's models call better).",
)
@models_directory_option(type=click.Path(path_type=Path))
@click.option(
    "--reference",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FASTA|MMI",
    help="Reference to align to; repeat for several. Streams name one by its file's name.",
)
@click.option(
    "--preset",
    multiple=True,
    metavar="PRESET",
    help="Alignment preset: map-ont or lr:hq. Default: what suits each model (fast: map-ont, others: lr:hq).",
)
@click.option("--listen", metavar="HOST:PORT|unix:PATH", help="Where to serve gRPC. Default: 127.0.0.1:50051.")
@click.option(
    "--tls-certificate",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Serve with TLS: the certificate, and those of its authorities after it. It is read again when it changes. "
    "Default: none, without encryption.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="PEM", help="The certificate's key. Default: none.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve only clients that have one of the tokens in FILE, one a line; it is read again when it changes. Needs "
    "TLS. After a token may stand name=NAME (for log and metrics), role=watcher (no reads called, default: caller) and "
    "priorities=standard,bulk (default: all). Default: serve everyone.",
)
@click.option(
    "--token-file-lost",
    metavar="keep|refuse",
    help="Where the token file is gone or unusable: keep the tokens of before, or refuse everyone. Default: keep.",
)
@click.option(
    "--health-listen",
    metavar="HOST:PORT",
    help="A second port without TLS and tokens, with gRPC's health service only, for whoever watches over the server. "
    "Default: none.",
)
@click.option(
    "--metrics-port",
    type=int,
    metavar="P",
    help="Port of Prometheus' /metrics, and of a page for people at /. Default: none.",
)
@click.option("--metrics-host", metavar="HOST", help="Address that the metrics port is bound to. Default: 127.0.0.1.")
@click.option(
    "--metrics-allowed-hosts",
    multiple=True,
    metavar="NAME",
    help="Name by which browsers and Prometheus ask the metrics port, as a proxy's; *.DOMAIN and * are patterns. "
    "Repeat for several. Addresses, this machine's names and a cluster's are always taken. Default: no others.",
)
@click.option(
    "--memory-budget",
    metavar="BYTES",
    help="What all streams' signal and results may take beside the idle server: bytes, or like 512M, 2G. Default: 1G.",
)
@click.option("--max-streams", type=int, metavar="N", help="Streams served at once; more are turned away. Default: 64.")
@click.option(
    "--max-streams-per-peer",
    type=int,
    metavar="N",
    help="Streams that one address may have (or one named token, from wherever). Behind a proxy all clients have one "
    "address: set it to --max-streams there. Default: three quarters of --max-streams.",
)
@click.option(
    "--live-share",
    type=float,
    metavar="X",
    help="Of the samples called while other streams wait: the share, from 0 to 1, that live streams get first. Raise "
    "it on a server for instruments. Default: 0.3.",
)
@click.option(
    "--live-rate",
    type=float,
    metavar="N",
    help="Samples a second that one live stream may send as such; what is beyond waits as standard. Default: "
    "16,000,000 (3,000 channels of 5 kHz, a PromethION flow cell).",
)
@click.option("--max-read-samples", type=int, metavar="N", help="Longer reads are rejected. Default: 50,000,000.")
@server_options
@click.option(
    "--batch-delay-s",
    type=float,
    metavar="S",
    help="Longest time in seconds that a chunk waits for its batch to fill. Default: 0.02.",
)
@click.option(
    "--grace-s", type=float, metavar="S", help="Seconds that streams have to finish after SIGTERM. Default: 30."
)
@click.option(
    "--log-format",
    metavar="auto|json|text",
    help="Of the log on stderr. Default: auto (text on a terminal, else JSON lines).",
)
@click.option(
    "--log-read-ids/--no-log-read-ids",
    default=None,
    help="Name reads in the log where one is rejected or fails. Default: no.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="TOML",
    help="File of settings: the flags' names with underscores.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="End with the process that started it.")
def serve(config: Path | None, until_stdin_closes: bool, **flags: Any) -> None:
    """Serve basecalling and alignment over gRPC (porestream.v1), with health and reflection.

    Every flag may also be an environment variable (--max-streams: PORESTREAM_MAX_STREAMS; --models-dir:
    PORESTREAM_MODELS; of those that repeat, a list with commas) or stand in the TOML file of
    --config (max_streams = 64); a flag goes before the environment, that before the file. Unknown settings are refused.
    SIGTERM drains: streams are told to go elsewhere, complete reads are finished, and the exit code is 0.
    """
    from porestream.server.start.settings import SettingsError, load_settings

    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if value not in (None, ())
    }
    try:
        settings = load_settings(given, config)
        from porestream.server.start.app import serve
        from porestream.server.watch.logs import configure_logging

        with closing(configure_logging(settings.log_format, read_ids=settings.log_read_ids)):  # an error comes last
            asyncio.run(
                serve(settings, _announce if until_stdin_closes else _ignore, until_stdin_closes=until_stdin_closes)
            )
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except ValueError as error:  # a model or reference that cannot be used
        raise click.ClickException(str(error)) from error


def _announce(address: str) -> None:
    """Tell the process that started this server, in one line on stdout, where it listens."""
    print(address, file=sys.stdout, flush=True)


def _ignore(_address: str) -> None:
    pass
