"""Options that commands share, and other tools' flags, which are refused by name."""

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
    # Other tools' flags, and the messages for them.
    "-x": "is the device in dorado and the preset in minimap2: use --device or --preset",
    "-v": "has no meaning here: use porestream serve --log-format text to see a server's log",
    "-c": "cannot be set: the model defines its chunk size",
    "--chunksize": "cannot be set: the model defines its chunk size",
    "--overlap": "cannot be set: the model defines its overlap",
    "--mm2-opts": "is not supported: use --preset map-ont or --preset lr:hq",
    "--trim": "is not needed: adapters are trimmed unless --no-trim is given",
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
        f"is about barcodes: demultiplexing {_NOT_HERE}; call with --no-trim and pass the BAM to dorado demux",
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
    **dict.fromkeys(("--disable-read-splitting",), f"is not needed: splitting reads {_NOT_HERE}"),
    **dict.fromkeys(("--pairs", "--duplex"), f"is about duplex reads: calling them {_NOT_HERE}"),
    "--primer-sequences": f"is about primers: trimming them {_NOT_HERE}; standard adapters are trimmed",
    "--bed-file": f"is about counting hits in regions: this {_NOT_HERE}; use samtools view -L on the BAM",
    "--rna-adapters": "is not needed: RNA's adapter is trimmed from the signal",
}


class CallCommand(click.Command):
    """A command that recognizes dorado's and minimap2's flags, and says what to do instead."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if argument == "--":
                break
            flag = argument.split("=", 1)[0]
            if flag in REFUSED:
                raise click.UsageError(f"{flag} {REFUSED[flag]}", ctx)
        return super().parse_args(ctx, args)


def server_options(command: _F) -> _F:
    """Add the flags that say how a server calls, for `serve`, and for the server that `call` starts."""
    for option in reversed(_SERVER_OPTIONS):
        command = option(command)
    return command


def connection_options(command: _F) -> _F:
    """Add the flags that say how to connect to a server; pass them to `credentials_of`."""
    for option in reversed(_CONNECTION_OPTIONS):
        command = option(command)
    return command


def credentials_of(
    server: str, tls: bool, tls_ca: Path | None, token_file: Path | None, proxy: str | None
) -> "Credentials":
    """Turn `connection_options` into credentials, and check the server's address.

    Raises
    ------
    click.UsageError
        A file does not exist, or the address is not valid.
    """
    from porestream.client.channel import Credentials
    from porestream.server.address import wrong_address

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
        help="Connect with TLS; the server's certificate must be for the HOST of --server. Default: no encryption, "
        "unless --tls-ca or --token-file is given.",
    ),
    click.option(
        "--tls-ca",
        type=click.Path(path_type=Path),
        metavar="PEM",
        help="Connect with TLS and trust this certificate authority (PEM). Default: public authorities.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Connect with TLS and send the token in FILE. Default: no token.",
    ),
    click.option(
        "--proxy",
        metavar="http://HOST:PORT",
        help="HTTP proxy for connecting to the server. Default: $grpc_proxy, $https_proxy or $http_proxy. Not used for "
        "servers in $no_proxy or $NO_PROXY, this machine, and Unix sockets.",
    ),
)

_SERVER_OPTIONS: Sequence[Callable[[Any], Any]] = (
    click.option(
        "--device",
        metavar=DEVICES,
        help="Where to run the network and decode scores. Default: auto (the first CUDA GPU that PyTorch finds, else "
        "the CPU). emulated: the network on the CPU and the GPU kernels on an emulator, to learn from a few short "
        "reads how they work; needs g++.",
    ),
    click.option(
        "--decoder",
        type=click.Choice(["auto", "gpu", "cpu"]),
        help="Where to decode scores into bases: on the device, or on the CPU. Default: auto (gpu, unless the device "
        "is the CPU).",
    ),
    click.option(
        "--aligner",
        type=click.Choice(["auto", "gpu", "mappy"]),
        help="gpu: align on the device, many reads at a time, and use mappy for reads that it cannot take. mappy: "
        "align with minimap2 on the CPU. gpu builds its index if needed; `porestream index` builds it beforehand. "
        "Default: auto (gpu if there is a GPU and an index, else mappy).",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        help="Precision of the network. Default: auto (fp16 on a GPU; on a CPU bf16 if that is faster, else fp32).",
    ),
    click.option(
        "-b",
        "--batch-size",
        "--batchsize",
        "batch_size",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Chunks that a worker calls at a time; on a CPU this changes no base. Default: 16 on a CPU (8 of sup, "
        "32 of hac v6, 1 of a transformer); on a GPU as many as fit into its memory.",
    ),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="Number of workers, one core each. Default: one per core.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder for compiled code and indexes. Default: $XDG_CACHE_HOME/porestream or ~/.cache/porestream.",
    ),
)


def _names(options: Sequence[Callable[[Any], Any]]) -> tuple[str, ...]:
    """Return the parameter names of these options."""

    def command() -> None:
        pass

    for option in reversed(options):
        option(command)
    return tuple(parameter.name for parameter in reversed(command.__click_params__))  # type: ignore[attr-defined]


CONNECTION_OPTIONS, SERVER_OPTIONS = _names(_CONNECTION_OPTIONS), _names(_SERVER_OPTIONS)


def models_directory_option(**attributes: Any) -> Callable[[_F], _F]:
    """Make the --models-dir option."""
    return click.option(
        "--models-dir",
        "--models-directory",
        "models_dir",
        metavar="DIR",
        help="Folder of your models. Default: $PORESTREAM_MODELS or ~/.local/share/porestream/models.",
        **attributes,
    )
