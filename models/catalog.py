"""Which model: the one that ships, those in the user's folder, and the choice between them for a run.

Only names and config.toml are read here; `bundle.load_bundle` reads the weights.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from porestream.models.chemistry import Chemistry, chemistry_of_model, release_of
from porestream.models.config import ModelError, load_config

BUNDLED = Path(__file__).parent / "data" / "porestream_dna_r10.4.1_400bps_fast@v1"
"""The project's own model."""

_KINDS = ("fast", "hac", "sup")  # in the order of their cost on a CPU: 1, 15, 100


class NoModel(ValueError):
    """No model fits, or none is called so; the message says what there is, and the way out."""


def default_models_directory() -> Path:
    """`$XDG_DATA_HOME/porestream/models` or `~/.local/share/porestream/models`."""
    home = os.environ.get("XDG_DATA_HOME", "")  # relative paths are to be ignored: XDG Base Directory Specification
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.local/share")) / "porestream" / "models"


def known_models(models_directory: Path | None = None) -> list[Path]:
    """Model directories in the user's folder, and the bundled one last."""
    folder = models_directory or default_models_directory()
    found = sorted(file.parent for file in folder.glob("*/config.toml")) if folder.is_dir() else []
    return [*found, BUNDLED]


def find_model(name: str, models_directory: Path | None = None) -> Path:
    """A model directory by its path, or by its name in the user's folder or among the bundled ones.

    Raises
    ------
    NoModel
        There is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    known = known_models(models_directory)
    for directory in known:
        if directory.name == name:
            return directory
    names = ", ".join(directory.name for directory in known)
    raise NoModel(f"{name}: no such model directory, and no model of that name; there are: {names}")


class Choice(NamedTuple):
    """A model for some runs, and why others that are for them too were passed over."""

    model: Path
    passed_over: list[str]


def choose_model(runs: Iterable[Chemistry], models_directory: Path | None = None) -> Choice:
    """The model for these runs: of the user's own that fit, the fastest kind's newest, else the bundled one.

    The fastest kind, for hac costs a CPU 15 times as much as fast; name a model for another. Models that cannot be used
    yet are passed over.

    Raises
    ------
    NoModel
        The runs' chemistry is unknown, or is not the same, or nothing fits it.
    """
    wanted = sorted(set(runs), key=str)
    folder = models_directory or default_models_directory()
    way_out = f"give --model DIR (or put the model's directory into {folder})"
    if not wanted:
        return Choice(BUNDLED, [])
    if len({(run.molecule, run.pore) for run in wanted}) > 1:
        raise NoModel(f"runs of several chemistries ({'; '.join(map(str, wanted))}): call each by itself")
    if not wanted[0].known:
        raise NoModel(
            "the runs' flow cell and kit, missing or not known here, do not tell which model is for them: "
            f"{way_out}; for R10.4.1 DNA --model {BUNDLED.name} is there"
        )
    passed_over = []
    for model in sorted(known_models(models_directory), key=_rank):
        try:
            if not all(chemistry_of_model(model.name).fits(_without_rate(run)) for run in wanted):
                continue
            rates_hz = load_config(model).sample_rates_hz
        except ModelError as error:
            passed_over.append(str(error))
            continue
        if all(chemistry_of_model(model.name, rates_hz).fits(run) for run in wanted):
            return Choice(model, passed_over)
    tried = f"; passed over: {'; '.join(passed_over)}" if passed_over else ""
    raise NoModel(f"no model for {'; '.join(map(str, wanted))} here: {way_out}{tried}")


def _without_rate(run: Chemistry) -> Chemistry:
    return replace(run, sample_rates_hz=())


def _rank(model: Path) -> tuple[bool, int, list[int]]:
    """The bundled one last; the fastest kind first, of each kind the newest."""
    match = re.search(r"_(?P<kind>[a-z]+)@v(?P<release>\d+(\.\d+)*)$", model.name)
    if match is None:
        return model == BUNDLED, len(_KINDS), []
    kind = _KINDS.index(match["kind"]) if match["kind"] in _KINDS else len(_KINDS)
    return model == BUNDLED, kind, [-part for part in release_of(match["release"])]
