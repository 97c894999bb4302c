"""The trainer's state file: everything that a run needs to continue."""

import os
import pickle
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from porestream.models.train.data import Place

Weights = dict[str, torch.Tensor]

DATA = (
    "Simulated reads: porestream's simulator; its 9-mer levels are those of uncalled4 4.1.0 (MIT)",
    "Real reads: test data of hiruna72/squigualiser (MIT), R10.4.1 LSK114 at 4 kHz, human. Their labels are the "
    "basecalls that were published with them, which a vendor's basecaller made; no vendor's weights were used",
)
"""What this project's own model learned from; assumed for older states, which do not record it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has got.

    Attributes
    ----------
    seen
        Samples of signal that the network has learned from.
    seconds
        Time that this took.
    steps
        Number of weight updates.
    """

    seen: int = 0
    seconds: float = 0.0
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """A training between two steps.

    Attributes
    ----------
    net, mean
        The weights, and their running mean (the model to export), with TrainableNetwork's names.
    opt
        Muon's state.
    progress
        Progress of the whole training, over all its runs.
    begun
        Progress at which the current run's schedule began. None if no run is under way, because the last one finished
        or because another program wrote the state. The next run then starts its own schedule.
    loss
        Running mean of the loss.
    places
        Where each worker is in its stream of simulated chunks.
    inputs
        What the network learned from over all runs, one line each, for the model card.
    """

    net: Weights
    mean: Weights
    opt: dict[str, Any]
    progress: Progress
    begun: Progress | None = None
    loss: float | None = None
    places: list[Place] = field(default_factory=list)
    inputs: tuple[str, ...] = DATA

    def save(self, path: Path) -> None:
        """Write the whole file or nothing: if the process is killed, the previous file stays."""
        values = {"net": self.net, "mean": self.mean, "opt": self.opt, **asdict(self.progress)}
        values["begun"] = None if self.begun is None else asdict(self.begun)
        values |= {"loss": self.loss, "places": [asdict(place) for place in self.places], "inputs": list(self.inputs)}
        unfinished = path.with_name(f"{path.name}.new")
        torch.save(values, unfinished)
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: Path) -> "TrainingState":
        """Read a state. It must have `net`, `mean`, `opt`, `seen` and `seconds`; nothing in it is executed.

        Raises
        ------
        ValueError
            The file is not a state file.
        """
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            progress = Progress(int(values["seen"]), float(values["seconds"]), int(values.get("steps", 0)))
            begun = values.get("begun")
            return cls(
                net=values["net"],
                mean=values["mean"],
                opt=values["opt"],
                progress=progress,
                begun=None if begun is None else Progress(**begun),
                loss=values.get("loss"),
                places=[Place(**place) for place in values.get("places", [])],
                inputs=tuple(values.get("inputs", DATA)),
            )
        except (KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path}: not a state file of the trainer: {error}") from error

    def ended(self) -> "TrainingState":
        """Return the same state with its run's schedule finished."""
        return replace(self, begun=None)
