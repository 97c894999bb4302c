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
    help="Model directory, or the name of a model in the models folder (`porestream models` lists them). fast, hac or "
    "sup serves the newest model of that kind for every chemistry and sample rate in the folder. Repeat for several. A "
    "stream names a model by its directory name, or gets the one that fits its run. Default: auto, the model that "
    "ships with porestream (R10.4.1 DNA; ONT's models are more accurate).",
)
@models_directory_option(type=click.Path(path_type=Path))
@click.option(
    "--reference",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FASTA|MMI",
    help="Reference to align to; repeat for several. Streams name a reference by its file name.",
)
@click.option(
    "--preset",
    multiple=True,
    metavar="PRESET",
    help="Alignment preset: map-ont or lr:hq. Default: map-ont for fast models, lr:hq for others.",
)
@click.option("--listen", metavar="HOST:PORT|unix:PATH", help="Address to serve gRPC on. Default: 127.0.0.1:50051.")
@click.option(
    "--tls-certificate",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Certificate to serve TLS with, followed by its CA chain. Reloaded when the file changes. Default: none, no "
    "encryption.",
)
@click.option(
    "--tls-key",
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="Private key of the certificate, unencrypted. Default: none.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve only clients that send one of the tokens in FILE, one per line. Needs TLS. Reloaded when the file "
    "changes. After a token you can add name=NAME (shown in logs and metrics), role=watcher (may not have reads "
    "called; default: caller) and priorities=standard,bulk (default: all). Default: serve everyone.",
)
@click.option(
    "--token-file-lost",
    metavar="keep|refuse",
    help="What to do if the token file disappears or becomes unusable: keep the last tokens, or refuse everyone. "
    "Default: keep.",
)
@click.option(
    "--health-listen",
    metavar="HOST:PORT",
    help="Second port with only the gRPC health service, without TLS or tokens, for health checks. Default: none.",
)
@click.option(
    "--metrics-port",
    type=int,
    metavar="P",
    help="Port for Prometheus metrics (/metrics) and the status page (/). Default: none.",
)
@click.option("--metrics-host", metavar="HOST", help="Address to bind the metrics port to. Default: 127.0.0.1.")
@click.option(
    "--metrics-allowed-hosts",
    multiple=True,
    metavar="NAME",
    help="Extra host name that browsers and Prometheus may use for the metrics port, such as a proxy's; *.DOMAIN and * "
    "are patterns. Repeat for several. IP addresses, this machine's names and cluster-internal names are always "
    "allowed. Default: no others.",
)
@click.option(
    "--memory-budget",
    metavar="BYTES",
    help="Memory for the signal and results of all streams, on top of what the idle server uses: in bytes, or e.g. "
    "512M, 2G. Default: 1G.",
)
@click.option("--max-streams", type=int, metavar="N", help="Streams served at once; more are refused. Default: 64.")
@click.option(
    "--max-streams-per-peer",
    type=int,
    metavar="N",
    help="Streams that one address may open (or one named token, from any address). Behind a proxy all clients share "
    "one address, so set it to the value of --max-streams. Default: three quarters of --max-streams.",
)
@click.option(
    "--live-share",
    type=float,
    metavar="X",
    help="Share of calling, from 0 to 1, that live streams get first while other streams wait, in samples. Raise it on "
    "a server for instruments. Default: 0.3.",
)
@click.option(
    "--live-rate",
    type=float,
    metavar="N",
    help="Samples per second that one live stream gets live priority for; the rest is scheduled as standard. Default: "
    "16,000,000 (3,000 channels at 5 kHz, a PromethION flow cell).",
)
@click.option("--max-read-samples", type=int, metavar="N", help="Longer reads are rejected. Default: 50,000,000.")
@server_options
@click.option(
    "--batch-delay-s",
    type=float,
    metavar="S",
    help="Longest time, in seconds, that a chunk waits for its batch to fill. Default: 0.02.",
)
@click.option(
    "--grace-s", type=float, metavar="S", help="Seconds that streams get to finish after SIGTERM. Default: 30."
)
@click.option(
    "--log-format",
    metavar="auto|json|text",
    help="Format of the log on stderr. Default: auto (text on a terminal, otherwise JSON lines).",
)
@click.option(
    "--log-read-ids/--no-log-read-ids",
    default=None,
    help="Log the ids of reads that are rejected or fail. Default: no.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="TOML",
    help="Settings file; settings are named like the flags, with underscores.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="Stop when the parent process ends.")
def serve(config: Path | None, until_stdin_closes: bool, **flags: Any) -> None:
    """Serve basecalling and alignment over gRPC (porestream.v1), with health and reflection.

    Every flag can also be set as an environment variable (--max-streams: PORESTREAM_MAX_STREAMS; --models-dir:
    PORESTREAM_MODELS; repeatable flags: a comma-separated list) or in the TOML file given with --config
    (max_streams = 64). Flags override the environment, which overrides the file. Unknown settings are refused. On
    SIGTERM the server drains: it sends streams to another server, finishes complete reads, and exits with code 0.
    """
    from porestream.server.settings import SettingsError, load_settings

    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if value not in (None, ())
    }
    try:
        settings = load_settings(given, config)
        from porestream.server.start.app import serve
        from porestream.server.watch.logs import configure_logging

        with closing(configure_logging(settings.log_format, read_ids=settings.log_read_ids)):  # flush before any error
            asyncio.run(
                serve(settings, _announce if until_stdin_closes else _ignore, until_stdin_closes=until_stdin_closes)
            )
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except ValueError as error:  # an unusable model or reference
        raise click.ClickException(str(error)) from error


def _announce(address: str) -> None:
    """Print the server's address on stdout, for the process that started it."""
    print(address, file=sys.stdout, flush=True)


def _ignore(_address: str) -> None:
    pass
