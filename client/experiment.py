"""Reads an experiment of adaptive sampling: readfish's TOML as it is, and its targets in BED, CSV or the TOML itself.

Everything is checked before anything is sequenced; an ExperimentError has all that is wrong, each with its place.
"""

import csv
import io
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porestream.client.flow_cell import divide

ACTIONS = ("unblock", "stop_receiving", "proceed")
DECISIONS = ("single_on", "single_off", "multi_on", "multi_off", "no_map", "no_seq")
MOST_INTERVALS = 1_000_000
MOST_COORDINATE = 1 << 40
_TOP = {"split_axis", "caller_settings", "mapper_settings", "regions", "barcodes"}
_CHUNKS = {"min_chunks": 1, "max_chunks": 2}
_BEYOND = {"below_min_chunks": "proceed", "above_max_chunks": "unblock"}
_REGION = {"name", "control", "targets", *DECISIONS, *_CHUNKS, *_BEYOND}
_STRANDS = {"+": (1,), "-": (-1,), ".": (1, -1)}
_BED_HEADERS = ("#", "track", "browser")


class ExperimentError(ValueError):
    """The experiment cannot be run as it is written; a line for each reason."""


@dataclass(frozen=True, slots=True)
class Target:
    """An interval, both ends included; `end` None: to the end of the contig. `strand` is +1 or -1."""

    contig: str
    start: int
    end: int | None
    strand: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What to do on some channels.

    Attributes
    ----------
    actions
        The action by decision (DECISIONS).
    channels
        From 1.
    """

    name: str
    actions: Mapping[str, str]
    channels: tuple[int, ...]
    targets: tuple[Target, ...] = ()
    control: bool = False
    min_chunks: int = 1
    max_chunks: int = 2
    below_min_chunks: str = "proceed"
    above_max_chunks: str = "unblock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A whole flow cell's regions.

    Attributes
    ----------
    reference
        What mapper_settings name as the index (`fn_idx_in`); empty: nothing.
    warnings
        What is allowed, but seldom meant.
    """

    regions: tuple[Region, ...]
    reference: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reading:
    """What is wrong so far, and what is odd."""

    folder: Path
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load_experiment(path: Path, channels: int) -> Experiment:
    """Read an experiment for a flow cell with so many channels.

    Raises
    ------
    ExperimentError
        The file cannot be read, or something in it or in its targets is wrong.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path} is not TOML: {error}") from error
    return parse_experiment(table, channels, str(path), path.parent)


def parse_experiment(
    table: Mapping[str, Any], channels: int, name: str = "the TOML", folder: Path = Path()
) -> Experiment:
    """Read an experiment from a parsed TOML; paths of targets that don't exist where they are named are in `folder`.

    Raises
    ------
    ExperimentError
        Something is wrong.
    """
    reading = _Reading(folder)
    for key in sorted(table.keys() - _TOP):
        why = "the flow cell says how many there are" if key == "channels" else f"known are {', '.join(sorted(_TOP))}"
        reading.errors.append(f"{name}: unknown key {key!r}; {why}")
    if table.get("barcodes"):
        reading.errors.append(f"{name}: [barcodes] cannot be used yet: reads are not demultiplexed while they are open")
    tables = table.get("regions", [])
    if not (isinstance(tables, list) and tables and all(isinstance(one, dict) for one in tables)):
        reading.errors.append(f"{name}: no [[regions]]; there must be at least one")
        tables = []
    try:
        parts = divide(channels, len(tables) or 1, table.get("split_axis", 1))
    except ValueError as error:
        reading.errors.append(f"{name}: {error}")
        parts = [[] for _ in tables]
    regions = [
        _region(one, tuple(part), f"{name}, region {number} ({one.get('name', 'no name')})", reading)
        for number, (one, part) in enumerate(zip(tables, parts, strict=False), 1)
    ]
    if reading.errors:
        raise ExperimentError("\n".join(reading.errors))
    return Experiment(
        regions=tuple(one for one in regions if one is not None),
        reference=_reference(table.get("mapper_settings")),
        warnings=tuple(reading.warnings),
    )


def _region(table: Mapping[str, Any], channels: tuple[int, ...], place: str, reading: _Reading) -> Region | None:
    errors = [f"unknown key {key!r}; known are {', '.join(sorted(_REGION))}" for key in sorted(table.keys() - _REGION)]
    errors += [f"{key} is missing" for key in ("name", *DECISIONS) if key not in table]
    actions = {key: table.get(key, default) for key, default in (*dict.fromkeys(DECISIONS).items(), *_BEYOND.items())}
    for key, action in actions.items():
        if key in table and action not in ACTIONS:
            errors.append(f"{key} is {action!r}; it must be one of {', '.join(ACTIONS)}")
    counts = {key: table.get(key, default) for key, default in _CHUNKS.items()}
    for key, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            errors.append(f"{key} is {count!r}; it must be a number of chunks")
    control = table.get("control", False)
    if not isinstance(control, bool):
        errors.append(f"control is {control!r}; it must be true or false")
    targets = _targets(table.get("targets", []), errors, reading.folder)
    reading.errors += [f"{place}: {error}" for error in errors]
    if errors:
        return None
    region = Region(
        name=str(table["name"]),
        actions={key: actions[key] for key in DECISIONS},
        channels=channels,
        targets=tuple(targets),
        control=control,
        below_min_chunks=actions["below_min_chunks"],
        above_max_chunks=actions["above_max_chunks"],
        **counts,
    )
    reading.warnings += [f"{place}: {warning}" for warning in _odd(region)]
    return region


def _odd(region: Region) -> list[str]:
    """Return what is allowed, but seldom meant."""
    found = []
    if not region.control and not region.targets:
        found.append("there are no targets, so every read is off target")
    ejects = {key for key in ("no_map", "no_seq") if region.actions[key] == "unblock"}
    proceeds = {key for key in ("no_map", "no_seq") if region.actions[key] == "proceed"}
    if not region.control and region.actions["single_on"] == "unblock":
        if ejects:
            found.append(
                f"it depletes targets, but {' and '.join(sorted(ejects))} = unblock ejects what is unknown too"
            )
        elif proceeds and region.above_max_chunks == "unblock":
            found.append(
                "it depletes targets, but above_max_chunks = unblock (the default) ejects all that is still unknown "
                f"after {region.max_chunks} chunks; above_max_chunks = stop_receiving keeps it"
            )
    if region.min_chunks > region.max_chunks:
        found.append(f"min_chunks ({region.min_chunks}) is more than max_chunks ({region.max_chunks})")
    return found


def _targets(value: object, errors: list[str], folder: Path) -> list[Target]:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        rows = csv.reader(io.StringIO("\n".join(value), newline=""))
        return _parsed(((number, row) for number, row in enumerate(rows, 1)), False, "targets, number", errors)
    if not isinstance(value, str):
        errors.append(f"targets are {value!r}; they must be a list of texts or the path of a BED or CSV file")
        return []
    try:
        path = Path(value) if Path(value).is_file() else folder / value
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        errors.append(f"cannot read the targets {value[:200]!r}: {error}")
        return []
    is_bed = ".bed" in [suffix.lower() for suffix in path.suffixes]
    if is_bed:
        lines = ((number, line.rstrip("\r").split("\t")) for number, line in enumerate(text.split("\n"), 1))
        return _parsed((one for one in lines if not one[1][0].startswith(_BED_HEADERS)), True, f"{path}, line", errors)
    return _parsed(enumerate(csv.reader(io.StringIO(text, newline="")), 1), False, f"{path}, line", errors)


def _parsed(rows: Iterable[tuple[int, list[str]]], is_bed: bool, place: str, errors: list[str]) -> list[Target]:
    """Parse rows: contig, or contig, start, end and strand; in BED there are name and score before the strand."""
    found: list[Target] = []
    number = 0
    try:
        for number, row in rows:
            if not row or row == [""]:
                continue
            try:
                found += _target(row, is_bed)
            except ValueError as error:
                errors.append(f"{place} {number}: {error}")
            if len(found) > MOST_INTERVALS:
                errors.append(f"{place} {number}: there are more than {MOST_INTERVALS:,} targets")
                return []
    except csv.Error as error:
        errors.append(f"{place} {number + 1}: {error}")
    return found


def _target(row: list[str], is_bed: bool) -> list[Target]:
    contig = row[0]
    if not contig:
        raise ValueError("no contig")
    if not is_bed and len(row) == 1:
        return [Target(contig, 0, None, strand) for strand in (1, -1)]
    needed = 6 if is_bed else 4
    if len(row) < needed:
        columns = "contig, start, end, name, score, strand" if is_bed else "contig, or contig, start, end, strand"
        raise ValueError(f"{len(row)} column(s) of {needed}: {columns}")
    try:
        start, end = int(row[1]), int(row[2])
    except ValueError as error:
        raise ValueError(f"start {row[1]!r} and end {row[2]!r} must be numbers") from error
    strand = row[needed - 1]
    if strand not in _STRANDS:
        raise ValueError(f"strand {strand!r} must be +, - or .")
    if start > end:
        raise ValueError(f"start {start:,} is after end {end:,}")
    if start < 0 or end > MOST_COORDINATE:
        raise ValueError(f"{start:,} to {end:,} is on no contig")
    return [Target(contig, start, end, one) for one in _STRANDS[strand]]


def _reference(mapper_settings: object) -> str:
    """Return the index that the one table in mapper_settings names."""
    tables = [*mapper_settings.values()] if isinstance(mapper_settings, dict) else []
    return str(tables[0].get("fn_idx_in", "")) if tables and isinstance(tables[0], dict) else ""
