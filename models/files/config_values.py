"""Values of config.toml, checked one by one: whole and finite numbers within limits."""

import math
from typing import Any

LIMITS = {
    "first_conv_size": (1, 8192),
    "features": (1, 8192),
    "insize": (1, 8192),
    "size": (1, 8192),
    "in_features": (1, 8192),
    "out_features": (1, 8192),
    "d_model": (1, 8192),
    "dim_feedforward": (1, 65_536),
    "winlen": (1, 1001),
    "padding": (0, 500),
    "stride": (1, 1000),
    "num_layers": (1, 64),
    "depth": (1, 256),
    "nhead": (1, 256),
    "attn_window": (0, 65_536),
    "max_seq_len": (1, 10_000_000),
    "scale_factor": (1, 64),
    "state_len": (1, 6),
    "n_base": (4, 4),
    "chunksize": (1, 200_000),
    "overlap": (0, 200_000),
    "mean_qscore_start_pos": (0, 1_000_000),
    "sample_rate": (0, 1_000_000),
    "resample_from": (1, 1_000_000),
}
"""Least and most of every whole number in config.toml. Published models use up to an eighth of each width, 18 layers,
windows of 31 and chunks of some 12,000 samples."""

_MOST = 1e12  # of a number that is not whole, with either sign


class Unsupported(ValueError):
    """A layer, or a property of one, that does not run here."""


def whole(table: dict[str, Any], key: str, default: int | None = None) -> int:
    """A table's whole number (TOML's true is none), within `LIMITS`.

    Raises
    ------
    KeyError
        It is missing, and there is no default.
    ValueError
        It is something else, or out of range; the message names key, value and range.
    """
    return within_limits(key, table[key] if default is None else table.get(key, default))


def within_limits(key: str, value: object) -> int:
    """The value if it is a whole number within the `LIMITS` of `key`; else a ValueError says what it is."""
    least, most = LIMITS[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} = {value!r} is not a whole number")
    if not least <= value <= most:
        raise ValueError(f"{key} = {value} is out of range: {least:,} to {most:,}")
    return value


def finite(table: dict[str, Any], key: str, default: float | None = None) -> float:
    """A table's number as a float, finite and of a sane size; errors as of `whole`."""
    value = table[key] if default is None else table.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key} = {value!r} is not a finite number")
    if abs(value) > _MOST:
        raise ValueError(f"{key} = {value:g} is out of range: {-_MOST:g} to {_MOST:g}")
    return float(value)
