"""`porestream models`."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from porestream.cli.text import escaped

if TYPE_CHECKING:
    from porestream.models.files.chemistry import Chemistry

_HOW_TO_GET_THEM = "docs/use/models/directories.md says how to get ONT's"


@click.command(short_help="List the models you have, and which of them run.")
@click.argument(
    "directory",
    required=False,
    envvar="PORESTREAM_MODELS",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="[DIR]",
)
@click.option("--json", "as_json", is_flag=True, help="Write a JSON list, one object per model, with full digests.")
@click.option("--no-digest", is_flag=True, help="Do not read the weights: quicker, but without digests and checks.")
def models(directory: Path | None, as_json: bool, no_digest: bool) -> None:
    """List the models in a folder and the bundled one: what each is for, and whether it runs here.

    \b
    porestream models
    porestream models /data/dorado_models
    porestream models /data/dorado_models/dna_r10.4.1_e8.2_400bps_hac@v5.0.0 --json

    DIR is a folder of model directories, or a single one. Default: $PORESTREAM_MODELS or
    ~/.local/share/porestream/models. Pass a name from the first column to --model of `call` and `serve`, with
    --models-dir DIR if DIR is not the default. --model fast, hac or sup takes the newest of that kind that fits the
    run. Models are listed by molecule, pore and kind, newest first.

    All weights are read and checked. The digest covers them and config.toml: the same model has the same digest in
    dorado's files as in model.safetensors.
    """
    from porestream.models.files.catalog import BUNDLED, default_models_directory, models_in

    folder = directory or default_models_directory()
    if (folder / "config.toml").is_file():
        found = [folder]
    else:
        own = models_in(folder)
        if not own:
            what = "no models in it (directories with a config.toml)" if folder.is_dir() else "no such folder"
            click.echo(f"{escaped(str(folder))}: {what}; {_HOW_TO_GET_THEM}", err=True)
        found = [*own, BUNDLED]
    rows = _listed(found, not no_digest)
    if as_json:
        click.echo(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        click.echo(_table([row.cells() for row in rows]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A model directory. `kind`, `release` and `chemistry` come from its name, or its basecaller's for a companion."""

    directory: Path
    chemistry: "Chemistry"
    kind: str
    release: tuple[int, ...]
    network: str
    weights_bytes: int
    sha256: str
    problem: str

    @property
    def name(self) -> str:
        return self.directory.absolute().name

    def order(self) -> tuple[bool, str, list[int], str, int, str, list[int], str]:
        """Sort key: molecule, pore, kind, release; names that do not say go last."""
        from porestream.models.files.catalog import KINDS, padded

        chemistry = self.chemistry
        pore = [int(number) for number in re.findall(r"\d+", chemistry.pore)]
        cost = KINDS.index(self.kind) if self.kind in KINDS else len(KINDS)
        newest_first = [-part for part in padded(self.release)]
        unknown = not chemistry.molecule
        return unknown, chemistry.molecule, pore, chemistry.kit, cost, self.kind, newest_first, self.name

    def cells(self) -> list[str]:
        chemistry = self.chemistry
        runs = f"no: {' '.join(self.problem.split())}" if self.problem else "yes"
        cells = [
            self.name,
            chemistry.molecule,
            chemistry.pore,
            f"{chemistry.bases_per_second or ''}",
            ", ".join(map(str, chemistry.sample_rates_hz)),
            self.network,
            f"{self.weights_bytes / 1e6:.1f}" if self.weights_bytes else "",
            self.sha256[:12],
            runs if self.sha256 or self.problem else "yes (weights not read)",
        ]
        return [escaped(cell) or "-" for cell in cells]

    def as_json(self) -> dict[str, object]:
        chemistry = self.chemistry
        return {
            "name": self.name,
            "directory": str(self.directory),
            "molecule": chemistry.molecule or None,
            "pore": chemistry.pore or None,
            "bases_per_second": chemistry.bases_per_second or None,
            "sample_rates_hz": list(chemistry.sample_rates_hz),
            "kind": self.kind or None,
            "release": ".".join(map(str, self.release)) or None,
            "network": self.network or None,
            "weights_bytes": self.weights_bytes,
            "sha256": self.sha256 or None,
            "runs": not self.problem,
            "reason": self.problem or None,
        }


_TITLES = ["name", "molecule", "pore", "bases/s", "Hz", "network", "MB", "sha256", "runs"]
_NUMBERS = {"bases/s", "MB"}


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    lines = []
    for row in [_TITLES, *rows]:
        cells = zip(_TITLES, row, widths, strict=True)
        lines.append(
            "  ".join(cell.rjust(width) if title in _NUMBERS else cell.ljust(width) for title, cell, width in cells)
        )
    return "\n".join(line.rstrip() for line in lines)


def _listed(directories: Iterable[Path], digest: bool) -> list[_Row]:
    from tqdm import tqdm

    bar = tqdm(list(directories), unit="model", leave=False, disable=not (digest and sys.stderr.isatty()))
    return sorted((_row(directory, digest) for directory in bar), key=_Row.order)


def _row(directory: Path, digest: bool) -> _Row:
    """Make a directory's row; it says what is wrong instead of raising."""
    from porestream.models.files.bundle import load_bundle, weights_bytes
    from porestream.models.files.catalog import companion_of
    from porestream.models.files.chemistry import Chemistry, ModelName, parse_model_name
    from porestream.models.files.config import load_config

    network = sha256 = problem = ""
    rates_hz: tuple[int, ...] = ()
    size_bytes = 0
    purpose, base = companion_of(directory.absolute().name)
    try:
        size_bytes = weights_bytes(directory)
        config = load_config(directory)
        network, rates_hz = config.layers.encoder.kind, config.sample_rates_hz
        if digest and not purpose:
            sha256 = load_bundle(directory).sha256.hex()
        elif not size_bytes:
            problem = "no weights"
    except Exception as error:  # noqa: BLE001 - one broken directory must not hide the others
        problem = _reason(error, directory)
    if purpose:
        problem = f"{purpose}, not a basecaller"
    name = parse_model_name(base or directory.absolute().name, rates_hz)
    name = name or ModelName(Chemistry(sample_rates_hz=rates_hz), "", ())
    return _Row(
        directory=directory,
        chemistry=name.chemistry,
        kind=name.kind,
        release=name.release,
        network=network,
        weights_bytes=size_bytes,
        sha256=sha256,
        problem=problem,
    )


def _reason(error: Exception, directory: Path) -> str:
    """Return an error's message without the directory at its beginning, which the row already names."""
    text = str(error) or type(error).__name__
    for path in {str(directory), str(directory.resolve())}:
        text = text.removeprefix(f"{path}/config.toml: ").removeprefix(f"{path}: ").removeprefix(f"{path}/")
    return text
