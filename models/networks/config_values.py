"""Checks single values of config.toml: whole numbers and finite numbers, within limits."""

import math
from typing import Any

LIMITS = {
    "first_conv_size": (1, 8192),
    "features": (1, 8192),
    "insize": (1, 8192),
    "size": (1, 8192),
    "in_features": (1, 8192),
    "out_features": (1, 8192),
    "inner_dim": (1, 8192),
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
"""Range of every whole number in config.toml. Published models use up to an eighth of each width, 18 layers, windows
of 31 and chunks of about 12,000 samples."""

_MOST = 1e12  # largest magnitude of a number that need not be whole


class Unsupported(ValueError):
    """A layer, or one of its properties, is not supported."""


def whole(table: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number from a table (a boolean does not count), within `LIMITS`.

    Raises
    ------
    KeyError
        The key is missing and there is no default.
    ValueError
        The value is not a whole number, or is out of range; the message names key, value and range.
    """
    return within_limits(key, table[key] if default is None else table.get(key, default))


def within_limits(key: str, value: object) -> int:
    """Return the value if it is a whole number within the `LIMITS` of `key`, or raise ValueError."""
    least, most = LIMITS[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} = {value!r} is not a whole number")
    if not least <= value <= most:
        raise ValueError(f"{key} = {value} is out of range: {least:,} to {most:,}")
    return value


def finite(table: dict[str, Any], key: str, default: float | None = None) -> float:
    """Return a finite number of a sane size from a table; raises the same errors as `whole`."""
    value = table[key] if default is None else table.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key} = {value!r} is not a finite number")
    if abs(value) > _MOST:
        raise ValueError(f"{key} = {value:g} is out of range: {-_MOST:g} to {_MOST:g}")
    return float(value)
