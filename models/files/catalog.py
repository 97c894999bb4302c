"""Finds models, bundled or in the user's folder, and picks one for a run.

This module reads only names and config.toml; `bundle.load_bundle` reads the weights.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from porestream.models.files.chemistry import Chemistry, ModelName, parse_model_name, release_of
from porestream.models.files.config import ModelError, load_config

BUNDLED = Path(__file__).parent.parent / "data" / "porestream_dna_r10.4.1_400bps_fast@v1"
"""The model that ships with porestream."""

KINDS = ("fast", "hac", "sup")
"""Kinds of model, cheapest first. Relative cost on a CPU: 1, 15, 100."""

_KIND = re.compile(rf"^(?P<kind>{'|'.join(KINDS)})(@(latest|v(?P<release>\d+(\.\d+)*)))?$")
# Companion models that ONT offers for a basecalling model: the full model name, then the purpose.
_COMPANION = re.compile(r"^(?P<base>.+@v\d+(\.\d+)*)_(?P<what>[^@]+)(@v[\d.]+)?$")
_MODIFIED_BASES = re.compile(r"^(\d?m\d?[ACGTU]|\d?hm\dC|\dOme|pseU|inosine)")  # 5mCG_5hmCG, m6A_DRACH, 2OmeG


class NoModel(ValueError):
    """No model fits, or none has that name; the message lists the available models and says what to do."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model, requested in place of a model's name; an empty `release` means the newest."""

    name: str
    release: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}@v{'.'.join(map(str, self.release))}" if self.release else self.name

    def includes(self, model: ModelName) -> bool:
        """Return whether a model is of this kind and release; as in dorado, `@v5` means `@v5.0.0`."""
        return model.kind == self.name and (not self.release or padded(model.release) == padded(self.release))


def kind_of(text: str) -> Kind | None:
    """Parse `hac`, `hac@latest` or `hac@v5.0.0`; return None for a model name or a path.

    Raises
    ------
    NoModel
        The text names several models, as dorado allows for modified bases: `hac,5mCG_5hmCG`.
    """
    base, comma, others = text.partition(",")
    if comma and not Path(text).exists():
        raise NoModel(
            f"{text}: porestream does not call modified bases yet, so {others} cannot be used; give --model {base} to "
            "call the canonical bases"
        )
    match = _KIND.match(text)
    if match is None:
        return None
    return Kind(match["kind"], release_of(match["release"]) if match["release"] else ())


def companion_of(name: str) -> tuple[str, str]:
    """Return what a companion model is for, and the basecalling model it belongs to; both empty for other names.

    For `dna_r10.4.1_e8.2_400bps_hac@v5.0.0_5mCG_5hmCG@v3` the purpose is "modified bases".
    """
    match = _COMPANION.match(name)
    if match is None or parse_model_name(match["base"]) is None:
        return "", ""
    if _MODIFIED_BASES.match(match["what"]):
        return "modified bases", match["base"]
    for word, purpose in (("polish", "polishing"), ("variant", "variants"), ("smallvar", "variants")):
        if match["what"].startswith(word):
            return purpose, match["base"]
    return "", ""


def default_models_directory() -> Path:
    """Return `$XDG_DATA_HOME/porestream/models` or `~/.local/share/porestream/models`."""
    home = os.environ.get("XDG_DATA_HOME", "")  # the XDG Base Directory Specification says to ignore relative paths
    return Path(home if os.path.isabs(home) else os.path.expanduser("~/.local/share")) / "porestream" / "models"


def models_in(folder: Path) -> list[Path]:
    """Return the model directories in a folder (those with a config.toml), sorted by name."""
    return sorted(file.parent for file in folder.glob("*/config.toml")) if folder.is_dir() else []


def known_models(models_directory: Path | None = None) -> list[Path]:
    """Return the model directories in the user's folder, followed by the bundled model."""
    return [*models_in(models_directory or default_models_directory()), BUNDLED]


def find_model(name: str, models_directory: Path | None = None) -> Path:
    """Find a model directory by path, or by name in the user's folder or among the bundled models.

    Raises
    ------
    NoModel
        There is no such path or name; the message suggests close matches and lists all models and the folder.
    """
    path = Path(name)
    if (path / "config.toml").is_file():
        return path
    known = known_models(models_directory)
    for directory in known:
        if directory.name == name:
            return directory
    if path.is_dir():
        return path  # load_config says what is missing
    names = [directory.name for directory in known]
    close = difflib.get_close_matches(path.name, [*names, "auto", *KINDS], n=3, cutoff=0.8)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    folder = models_directory or default_models_directory()
    missing = "" if folder.is_dir() else " (which does not exist)"
    raise NoModel(
        f"{name}: no such model directory, and no model of that name in {folder}{missing}; "
        f"{meant}available models: {', '.join(names)}"
    )


class Choice(NamedTuple):
    """The model chosen for some runs, and the reasons why other matching models were skipped."""

    model: Path
    passed_over: list[str]


def choose_model(runs: Iterable[Chemistry], models_directory: Path | None = None, kind: Kind | None = None) -> Choice:
    """Choose the model for these runs: the newest of the user's models that fits, or else the bundled one.

    If no kind is given, the fastest available kind is used, because hac costs 15 times as much as fast on a CPU. The
    bundled model is of kind fast. Models that cannot be loaded are skipped.

    Raises
    ------
    NoModel
        The runs' chemistry is unknown, the runs differ in chemistry, or no model fits. If a kind was given, the message
        says why each model of that kind does not fit.
    """
    wanted = sorted(set(runs), key=str)
    folder = models_directory or default_models_directory()
    way_out = f"give --model DIR, or put the model directory into {folder}"
    if not wanted and kind is None:
        return Choice(BUNDLED, [])
    if len({(run.molecule, run.pore) for run in wanted}) > 1:
        raise NoModel(f"the runs differ in chemistry ({'; '.join(map(str, wanted))}); call each one separately")
    if wanted and not wanted[0].known:
        raise NoModel(
            "cannot choose a model: the runs' flow cell and kit are missing or unknown; "
            f"{way_out}; for R10.4.1 DNA use --model {BUNDLED.name}"
        )
    passed_over, unfit = [], []
    for model, name in _candidates(models_directory, kind):
        if not all(name.chemistry.fits(_without_rate(run)) for run in wanted):
            unfit.append(f"{model.name} is for {name.chemistry}")
            continue
        try:
            rates_hz = load_config(model).sample_rates_hz
        except (ModelError, OSError) as error:
            passed_over.append(str(error))
            continue
        chemistry = _chemistry(model, rates_hz)
        if all(chemistry.fits(run) for run in wanted):
            return Choice(model, passed_over)
        unfit.append(f"{model.name} is for {chemistry}")
    runs_are = f" for {'; '.join(map(str, wanted))}" if wanted else ""
    if kind is None:
        tried = f"; skipped: {'; '.join(passed_over)}" if passed_over else ""
        raise NoModel(f"found no model{runs_are}; {way_out}{tried}")
    tried = "; ".join([*passed_over, *unfit]) or _none_of_kind(kind, models_directory)
    raise NoModel(f"no {kind} model{runs_are} in {folder}: {tried}; {way_out}")


def model_among(names: Iterable[str], runs: Iterable[Chemistry], kind: Kind | None = None) -> str:
    """Return the one of a server's models that fits these runs, judging by name; empty if none or several do.

    If a kind is given, the newest of that kind wins. Sample rates are those that ONT's names stand for.
    """
    parsed = ((name, parse_model_name(name)) for name in names)
    wanted = set(runs)
    fitting = [
        (model.release, name)
        for name, model in parsed
        if model and (kind is None or kind.includes(model)) and all(model.chemistry.fits(run) for run in wanted)
    ]
    if not wanted or not fitting or (kind is None and len(fitting) > 1):
        return ""
    return max(fitting)[1]


def models_to_serve(names: Sequence[str], models_directory: Path | None = None) -> tuple[list[Path], list[str]]:
    """Return the models that a server should load, in order and without duplicates, and why others were skipped.

    "auto" is the bundled model. A kind ("hac") stands for the newest usable model of that kind for each chemistry and
    sample rate in the folder: the server has seen no run yet, and a stream that names no model gets the one that fits
    its run.

    Raises
    ------
    NoModel
        A name does not exist, or no model of a kind can be used.
    """
    found: list[Path] = []
    passed_over: list[str] = []
    for name in names:
        kind = kind_of(name)
        if name == "auto":
            found.append(BUNDLED)
        elif kind is None:
            found.append(find_model(name, models_directory))
        else:
            models, reasons = _newest_of_each_chemistry(kind, models_directory)
            if not models:
                folder = models_directory or default_models_directory()
                why = "; ".join(reasons) or _none_of_kind(kind, models_directory)
                raise NoModel(f"no {kind} model in {folder}: {why}; give --model DIR, or put the model directory there")
            found += models
            passed_over += reasons
    return list(dict.fromkeys(found)), passed_over


def _newest_of_each_chemistry(kind: Kind, models_directory: Path | None) -> tuple[list[Path], list[str]]:
    taken: dict[Path, Chemistry] = {}
    passed_over = []
    for model, _ in _candidates(models_directory, kind):
        try:
            chemistry = _chemistry(model, load_config(model).sample_rates_hz)
        except (ModelError, OSError) as error:
            passed_over.append(str(error))
            continue
        runs = [replace(chemistry, sample_rates_hz=(rate_hz,)) for rate_hz in chemistry.sample_rates_hz] or [chemistry]
        if not any(other.fits(run) for other in taken.values() for run in runs):
            taken[model] = chemistry
    return list(taken), passed_over


def _candidates(models_directory: Path | None, kind: Kind | None) -> Iterator[tuple[Path, ModelName]]:
    """Yield basecalling models with parseable names, fastest kind first, then newest; the bundled model comes last."""
    named = ((model, parse_model_name(model.name)) for model in known_models(models_directory))
    models = [(model, name) for model, name in named if name and name.kind != "stereo"]
    for model, name in sorted(models, key=_rank):
        if kind is None or kind.includes(name):
            yield model, name


def _rank(named: tuple[Path, ModelName]) -> tuple[bool, int, list[int]]:
    model, name = named
    cost = KINDS.index(name.kind) if name.kind in KINDS else len(KINDS)
    return model == BUNDLED, cost, [-part for part in padded(name.release)]


def _chemistry(model: Path, sample_rates_hz: tuple[int, ...]) -> Chemistry:
    name = parse_model_name(model.name, sample_rates_hz)
    return name.chemistry if name else Chemistry()


def _none_of_kind(kind: Kind, models_directory: Path | None) -> str:
    others = [model for model, _ in _candidates(models_directory, Kind(kind.name))] or known_models(models_directory)
    return f"no model of that kind, only {', '.join(model.name for model in others)}"


def _without_rate(run: Chemistry) -> Chemistry:
    return replace(run, sample_rates_hz=())


def padded(release: tuple[int, ...]) -> tuple[int, ...]:
    """Pad a release with zeros: (5,) becomes (5, 0, 0)."""
    return release + (0,) * (3 - len(release))
