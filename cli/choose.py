"""Which model calls which run: the choice, and what does not agree."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from porestream.client.reads import RunInfo
from porestream.client.text import shown
from porestream.models.files.catalog import (
    BUNDLED,
    NoModel,
    choose_model,
    default_models_directory,
    find_model,
    kind_of,
    known_models,
    model_among,
)
from porestream.models.files.chemistry import Chemistry, chemistry_of_model, enzyme_warning
from porestream.models.files.config import ModelError, load_config

ABOUT_BUNDLED = "the project's own, trained on simulated and a few real reads. ONT's models call better"
_MISMATCH_FLAG = "--allow-chemistry-mismatch"


class ChemistryMismatch(ValueError):
    """A run and the model do not go together; the message names both, and what would."""


def resolve_model(
    name: str, runs: Iterable[RunInfo], models_directory: Path | None, say: Callable[[str], None]
) -> Path:
    """The model directory for --model and the runs; says so if the choice was ours.

    Raises
    ------
    NoModel
        There is none; the message says what to do.
    """
    kind = kind_of(name)
    if name != "auto" and kind is None:
        return find_model(name, models_directory)
    model, passed_over = choose_model([run.chemistry for run in runs], models_directory, kind)
    for reason in passed_over:
        say(f"model passed over: {reason}")
    if model == BUNDLED:
        folder = models_directory or default_models_directory()
        say(f"model: {model.name}, {ABOUT_BUNDLED}: put one's directory into {folder}, or give --model DIR.")
    else:
        say(f"model: {model}")
    return model


def model_on_server(name: str, runs: Iterable[RunInfo], models: Mapping[str, Chemistry], server: str) -> str:
    """What to name to the server; empty where it has one model, or where only it can say what is amiss.

    Raises
    ------
    NoModel
        The server has none of the kind for these runs.
    """
    kind = kind_of(name)
    if kind is None and name not in ("", "auto"):
        return last_part(name)
    if kind is None and len(models) == 1:
        return ""
    chemistries = [run.chemistry for run in runs]
    model = model_among(models, chemistries, kind)
    if kind and not model:
        described = "; ".join(sorted({str(chemistry) for chemistry in chemistries}))
        raise NoModel(f"no {kind} model for {described} on {server}; there are: {shown(', '.join(models), 500)}")
    return model


class ChemistryCheck:
    """Tells whether a model is for a run, once for each run.

    Parameters
    ----------
    model
        The model that calls; empty: of the server's the one that is for the run.
    models
        The server's, and what they are for.
    others
        Models that could be had instead, and what they are for.
    allowed
        Whether a mismatch is to be called all the same.
    """

    def __init__(
        self, model: str, models: Mapping[str, Chemistry], others: Mapping[str, Chemistry], *, allowed: bool
    ) -> None:
        self._model = model or (next(iter(models)) if len(models) == 1 else "")
        self._models, self._others, self._allowed = models, others, allowed
        self._known: dict[str, str] = {}

    def mismatch(self, run: RunInfo) -> str:
        """Why this run should not be called with this model; empty: it may."""
        if run.key not in self._known:
            self._known[run.key] = "" if self._allowed else self._compare(run)
        return self._known[run.key]

    def warnings(self, run: RunInfo) -> list[str]:
        """What the user should know, though the run can be called."""
        warnings = []
        model, made_for = self._model_for(run)
        if made_for is None:
            return []
        if self._allowed and (reason := self._compare(run)):
            warnings.append(f"{reason.split('; for such a run')[0]}: called all the same, as asked for")
        if not run.chemistry.known and made_for.known:
            warnings.append(
                f"run {shown(run.key)} does not say its flow cell or kit: whether {model} is for it is not known"
            )
        if different := enzyme_warning(model, shown(run.sequencing_kit)):
            warnings.append(f"run {shown(run.key)}: {different}")
        return warnings

    def _model_for(self, run: RunInfo) -> tuple[str, Chemistry | None]:
        """The model that calls a run, and what it is for; None: that is for the server to say."""
        model = self._model or model_among(self._models, [run.chemistry], None)
        return model, self._models.get(model)

    def _compare(self, run: RunInfo) -> str:
        chemistry = run.chemistry
        model, made_for = self._model_for(run)
        if made_for is None or not made_for.disagrees(chemistry):
            return ""
        fitting = [name for name, made_for in self._others.items() if made_for.known and made_for.fits(chemistry)]
        names = shown(", ".join(fitting), 500)
        there_is = f"there is {names}" if fitting else "there is no model here (`porestream models`)"
        said = ", ".join(shown(name) for name in (run.flow_cell_product_code, run.sequencing_kit) if name)
        facts = said or "no flow cell or kit named"
        return (
            f"run {shown(run.key)} ({facts}) is {chemistry}, but {model} is for {made_for}; "
            f"for such a run {there_is}; {_MISMATCH_FLAG} calls it all the same"
        )


def local_models(models_directory: Path | None) -> dict[str, Chemistry]:
    """The models here and what they are for; those that cannot be read are left out."""
    return {model.name: chemistry for model in known_models(models_directory) if (chemistry := chemistry_of(model))}


def chemistry_of(model: Path) -> Chemistry | None:
    """What a model directory is for; None where its config cannot be read."""
    try:
        return chemistry_of_model(model.name, load_config(model).sample_rates_hz)
    except (ModelError, OSError):
        return None


def last_part(path: str) -> str:
    """What the server calls a model or reference: the last part of its path."""
    return os.path.basename(os.path.abspath(path)) if path else ""
