"""What commands share: the flags that go to a server, and other tools' flags, which are refused by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from porestream.client.channel import Credentials

_F = TypeVar("_F", bound=Callable[..., Any])

DEVICES = "auto|cpu|cuda|cuda:N|emulated"

_NOT_HERE = "is not part of porestream yet"
REFUSED = {
    # Flags of other tools, and what is said to them.
    "-x": "is the device in dorado and the preset in minimap2: say --device or --preset",
    "-v": "has no meaning here: porestream serve --log-format text shows a server's log",
    "-c": "is not to be chosen: a model brings its chunk size",
    "--chunksize": "is not to be chosen: a model brings its chunk size",
    "--overlap": "is not to be chosen: a model brings its overlap",
    "--mm2-opts": "is not taken: --preset map-ont or lr:hq",
    "--trim": "is said as --no-trim here: adapters are trimmed unless it is given",
    "--skip-model-compatibility-check": "is --allow-chemistry-mismatch here",
    "--output_dir": "is --output-dir",
    **dict.fromkeys(
        (
            "--kit-name",
            "--barcode-both-ends",
            "--barcode-arrangement",
            "--barcode-sequences",
            "--sample-sheet",
            "--no-classify",
        ),
        f"is about barcodes, which {_NOT_HERE}: dorado demux takes our BAM, called with --no-trim",
    ),
    **dict.fromkeys(
        (
            "--modified-bases",
            "--modified-bases-models",
            "--modified-bases-threshold",
            "--modified-bases-batchsize",
        ),
        f"is about modified bases: calling them {_NOT_HERE}",
    ),
    **dict.fromkeys(("--estimate-poly-a", "--poly-a-config"), f"is about poly(A) tails: measuring them {_NOT_HERE}"),
    **dict.fromkeys(("--disable-read-splitting",), f"is about splitting reads, which {_NOT_HERE}: no read is split"),
    **dict.fromkeys(("--pairs", "--duplex"), f"is about duplex reads: calling them {_NOT_HERE}"),
    "--primer-sequences": f"is about primers: trimming them {_NOT_HERE}; standard adapters are trimmed",
    "--bed-file": f"is about counting hits in regions, which {_NOT_HERE}: samtools view -L takes our BAM",
    "--rna-adapters": "is not needed: RNA's adapter is trimmed on the signal",
}


class CallCommand(click.Command):
    """A command that knows dorado's and minimap2's flags, and says what to do instead."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if argument == "--":
                break
            flag = argument.split("=", 1)[0]
            if flag in REFUSED:
                raise click.UsageError(f"{flag} {REFUSED[flag]}", ctx)
        return super().parse_args(ctx, args)


def server_options(command: _F) -> _F:
    """The flags that say how a server calls: those of `serve`, and of `call` for the server that it starts."""
    for option in reversed(_SERVER_OPTIONS):
        command = option(command)
    return command


def connection_options(command: _F) -> _F:
    """The flags that say how a server is met; `credentials_of` takes them."""
    for option in reversed(_CONNECTION_OPTIONS):
        command = option(command)
    return command


def credentials_of(
    server: str, tls: bool, tls_ca: Path | None, token_file: Path | None, proxy: str | None
) -> "Credentials":
    """What `connection_options` say, and whether the server's address is one.

    Raises
    ------
    click.UsageError
        A file is not there, or the address is none.
    """
    from porestream.client.channel import Credentials
    from porestream.server.edge.address import wrong_address

    if server and (problem := wrong_address(server)):
        raise click.UsageError(f"--server {problem}")

    for flag, path in (("--tls-ca", tls_ca), ("--token-file", token_file)):
        if path is not None and not path.is_file():
            raise click.UsageError(f"{flag} {path}: no such file")
    return Credentials(
        tls=tls or tls_ca is not None or token_file is not None,
        authority_file=tls_ca,
        token_file=token_file,
        proxy=proxy or "",
    )


_CONNECTION_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--tls",
        is_flag=True,
        help="Meet the server with TLS: its certificate must be for the HOST of --server. Default: without encryption, "
        "unless --tls-ca or --token-file is given.",
    ),
    click.option(
        "--tls-ca",
        type=click.Path(path_type=Path),
        metavar="PEM",
        help="TLS, with the certificate of the authority that signed the server's. Default: public authorities.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TLS, and the token in FILE is shown to the server. Default: none.",
    ),
    click.option(
        "--proxy",
        metavar="http://HOST:PORT",
        help="HTTP proxy on the way to the server. Default: $grpc_proxy, $https_proxy or $http_proxy. None is taken "
        "for servers that $no_proxy or $NO_PROXY exempts, for this machine itself, and for Unix sockets.",
    ),
)

_SERVER_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--device",
        metavar=DEVICES,
        help="Where the network runs and scores are decoded. Default: auto (the first CUDA card where PyTorch finds "
        "one, else the CPU). emulated: the network on the CPU, the card's kernels on an emulator: for a few short "
        "reads, to learn how they work; needs g++.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["auto", "gpu", "cpu"]),
        help="What makes bases of scores: the device, or the CPU. Default: auto (gpu, where the device is not the "
        "CPU).",
    ),
    click.option(
        "--aligner",
        type=click.Choice(["auto", "gpu", "mappy"]),
        help="What aligns: the device, many reads at a time, or mappy (minimap2) on the CPU, which takes what the "
        "device cannot. gpu builds the index that it needs; `porestream index` does beforehand. Default: auto (a card "
        "where there is an index for it, else mappy).",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        help="Of the network. Default: auto (fp16 on a card; on a CPU bf16 where the processor computes it).",
    ),
    click.option(
        "-b",
        "--batch-size",
        "--batchsize",
        "batch_size",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Chunks that a worker calls at a time. Default: 16 on a CPU, where it does not change any base; on a card "
        "as many as fit into its memory.",
    ),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="Workers, one core each. Default: one for every core.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where compiled code and indexes are kept. Default: $XDG_CACHE_HOME/porestream or ~/.cache/porestream.",
    ),
)


def _names(options: Sequence[Callable[[Any], Any]]) -> tuple[str, ...]:
    """The parameters that these options become."""

    def command() -> None:
        pass

    for option in reversed(options):
        option(command)
    return tuple(parameter.name for parameter in reversed(command.__click_params__))  # type: ignore[attr-defined]


CONNECTION_OPTIONS, SERVER_OPTIONS = _names(_CONNECTION_OPTIONS), _names(_SERVER_OPTIONS)


def models_directory_option(**attributes: Any) -> Callable[[_F], _F]:
    """--models-dir."""
    return click.option(
        "--models-dir",
        "--models-directory",
        "models_dir",
        metavar="DIR",
        help="Folder of your models. Default: $PORESTREAM_MODELS or ~/.local/share/porestream/models.",
        **attributes,
    )
