"""Makes the learning curve: losses from the trainer's logs, identities from evaluations of its snapshots."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_LOSSES = ("loss", "valid_sim", "valid_real")
COLUMNS = ("samples_seen", *_LOSSES, "reads", "median_identity")


class NoPlots(RuntimeError):
    """matplotlib, which draws the plot, is not installed."""


def curve_rows(logs: Iterable[Path], evaluations: Iterable[Path]) -> list[dict[str, Any]]:
    """Return rows of COLUMNS, sorted by samples seen: one for each validation in the logs and for each evaluation.

    Parameters
    ----------
    logs
        Logs of the trainer, JSON lines; rows without a validation are left out.
    evaluations
        JSON files from `evaluate`, for models whose config says how many samples they have seen.

    Raises
    ------
    ValueError
        A file is not a log of the trainer, or not an evaluation.
    """
    rows = []
    for path in logs:
        try:
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                if entry.get("valid_sim") is not None:
                    rows.append({"samples_seen": entry["seen"], **{key: entry.get(key) for key in _LOSSES}})
        except (KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a log of the trainer: {error}") from error
    for path in evaluations:
        try:
            report = json.loads(path.read_text())
            rows.append(
                {
                    "samples_seen": report["samples_seen"],
                    "reads": report["name"],
                    "median_identity": report["median_identity"],
                }
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not an evaluation: {error}") from error
    return sorted(rows, key=lambda row: int(row["samples_seen"]))


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, or as TSV if the name ends in .tsv; missing values are left empty."""
    with path.open("w", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Plot losses and identities against samples seen, as a PNG.

    Raises
    ------
    NoPlots
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise NoPlots("pictures need matplotlib: pip install 'porestream[train]'; or leave --png out") from error

    def points(key: str, reads: str | None = None) -> tuple[list[float], list[float]]:
        some = [row for row in rows if row.get(key) is not None and row.get("reads") == reads]
        return [row["samples_seen"] / 1e6 for row in some], [row[key] for row in some]

    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, identities = figure.subplots(1, 2)
    for key, label in zip(_LOSSES, ("training", "simulated validation", "real validation"), strict=True):
        losses.plot(*points(key), marker=".", label=label)
    losses.set(xlabel="samples seen (millions)", ylabel="loss a base (nats)", yscale="log")
    for reads in sorted({row["reads"] for row in rows if row.get("reads")}):
        identities.plot(*points("median_identity", reads), marker="o", label=reads)
    identities.set(xlabel="samples seen (millions)", ylabel="median identity")
    for axes in (losses, identities):
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend()
    figure.savefig(path, dpi=110)
