"""Choose the model for each run, and check that they fit."""

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
    """A run does not fit the model; the message names both, and models that would fit."""


def resolve_model(
    name: str, runs: Iterable[RunInfo], models_directory: Path | None, say: Callable[[str], None]
) -> Path:
    """Return the model directory for --model and the runs; tell the user if we chose it.

    Raises
    ------
    NoModel
        No model fits; the message says what to do.
    """
    kind = kind_of(name)
    if name != "auto" and kind is None:
        return find_model(name, models_directory)
    model, passed_over = choose_model([run.chemistry for run in runs], models_directory, kind)
    for reason in passed_over:
        say(f"model skipped: {reason}")
    if model == BUNDLED:
        folder = models_directory or default_models_directory()
        say(f"model: {model.name}, {ABOUT_BUNDLED}: put one into {folder}, or give --model DIR.")
    else:
        say(f"model: {model}")
    return model


def model_on_server(name: str, runs: Iterable[RunInfo], models: Mapping[str, Chemistry], server: str) -> str:
    """Return the model to ask the server for; empty if it has only one, or if only it can say what is wrong.

    Raises
    ------
    NoModel
        The server has no model of this kind for these runs.
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
        raise NoModel(f"no {kind} model for {described} on {server}; it has: {shown(', '.join(models), 500)}")
    return model


class ChemistryCheck:
    """Check whether a model fits a run, once for each run.

    Parameters
    ----------
    model
        The model that calls; empty: the server's model for the run.
    models
        The server's models, and what they are for.
    others
        Models that could be used instead, and what they are for.
    allowed
        Whether to call runs in spite of a mismatch.
    """

    def __init__(
        self, model: str, models: Mapping[str, Chemistry], others: Mapping[str, Chemistry], *, allowed: bool
    ) -> None:
        self._model = model or (next(iter(models)) if len(models) == 1 else "")
        self._models, self._others, self._allowed = models, others, allowed
        self._known: dict[str, str] = {}

    def mismatch(self, run: RunInfo) -> str:
        """Say why this run should not be called with this model; empty if it may be."""
        if run.key not in self._known:
            self._known[run.key] = "" if self._allowed else self._compare(run)
        return self._known[run.key]

    def warnings(self, run: RunInfo) -> list[str]:
        """Return warnings about a run that can be called."""
        warnings = []
        model, made_for = self._model_for(run)
        if made_for is None:
            return []
        if self._allowed and (reason := self._compare(run)):
            warnings.append(f"{reason.split('; for such a run')[0]}: called anyway, as requested")
        if not run.chemistry.known and made_for.known:
            warnings.append(f"run {shown(run.key)} names no flow cell or kit, so {model} may not be the right model")
        if different := enzyme_warning(model, shown(run.sequencing_kit)):
            warnings.append(f"run {shown(run.key)}: {different}")
        return warnings

    def _model_for(self, run: RunInfo) -> tuple[str, Chemistry | None]:
        """Return the model that calls a run, and what it is for; None if only the server knows."""
        model = self._model or model_among(self._models, [run.chemistry], None)
        return model, self._models.get(model)

    def _compare(self, run: RunInfo) -> str:
        chemistry = run.chemistry
        model, made_for = self._model_for(run)
        if made_for is None or not made_for.disagrees(chemistry):
            return ""
        fitting = [name for name, made_for in self._others.items() if made_for.known and made_for.fits(chemistry)]
        names = shown(", ".join(fitting), 500)
        there_is = f"use {names}" if fitting else "there is no model here (`porestream models`)"
        said = ", ".join(shown(name) for name in (run.flow_cell_product_code, run.sequencing_kit) if name)
        facts = said or "flow cell and kit unknown"
        return (
            f"run {shown(run.key)} ({facts}) is {chemistry}, but {model} is for {made_for}; "
            f"for such a run {there_is}; {_MISMATCH_FLAG} calls it anyway"
        )


def local_models(models_directory: Path | None) -> dict[str, Chemistry]:
    """Return the models here and what they are for, without those that cannot be read."""
    return {model.name: chemistry for model in known_models(models_directory) if (chemistry := chemistry_of(model))}


def chemistry_of(model: Path) -> Chemistry | None:
    """Return what a model is for; None if its config cannot be read."""
    try:
        return chemistry_of_model(model.name, load_config(model).sample_rates_hz)
    except (ModelError, OSError):
        return None


def last_part(path: str) -> str:
    """Return the server's name for a model or reference: the last part of its path."""
    return os.path.basename(os.path.abspath(path)) if path else ""
