"""What a model directory's `config.toml` says, checked. No weights are read here, and torch is not needed.

Two ways of listing layers are read: v3's sizes, and v4's layers one by one.
"""

import math
import tomllib
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from porestream.models.scale import STRATEGIES, QuantileRule

# What v3 directories leave open; docs/decisions/0002 has the measurements. dorado takes "quantile" and no correction:
# `[scaling] strategy = "quantile"` and `[decoder] stay_score = 2.0` in config.toml give its choice.
_V3_SCALING = "med_mad"
_V3_STAY_CORRECTION = -0.5


class ModelError(ValueError):
    """A model directory cannot be used; the message names it, and why."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution over time, zero-padded by half its window, then SiLU ("swish")."""

    ins: int
    outs: int
    winlen: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What `config.toml` says of an LSTM-CRF model. Sizes in samples unless named otherwise.

    Attributes
    ----------
    convolutions
        The first layers; only the last has a stride.
    reverse
        Of each LSTM, whether it runs against time.
    linear_bias
        Whether the last layer has one.
    score_limit
        Scores lie within +-score_limit...
    score_tanh
        ... by tanh times it (v3) or by clamping (v4).
    sample_rate_hz
        Of the signal that the model was trained on; 0: unknown.
    resample_from_hz
        Sample rates of runs whose signal is interpolated to it.
    scaling, quantiles
        How reads are normalised: models/scale.py.
    """

    convolutions: tuple[Convolution, ...]
    reverse: tuple[bool, ...]
    linear_bias: bool
    score_limit: float
    score_tanh: bool
    stay_score: float
    state_len: int
    chunk_size: int
    overlap: int
    quality_scale: float
    quality_bias: float
    scaling: str
    quantiles: QuantileRule
    sample_rate_hz: int
    resample_from_hz: tuple[int, ...]

    @property
    def sample_rates_hz(self) -> tuple[int, ...]:
        """Of the runs that it takes, its own first; empty: unknown."""
        return (self.sample_rate_hz, *self.resample_from_hz) if self.sample_rate_hz else ()

    @property
    def stride(self) -> int:
        """Samples a time step."""
        return self.convolutions[-1].stride

    @property
    def features(self) -> int:
        """Width of the LSTMs."""
        return self.convolutions[-1].outs

    @property
    def score_count(self) -> int:
        """Scores a time step: a new state times the base that it drops."""
        return int(4 ** (self.state_len + 1))


def load_config(directory: Path) -> ModelConfig:
    """Read and check a model directory's config.toml.

    Raises
    ------
    ModelError
        It is missing, is not TOML, or describes what is not supported.
    """
    file = directory / "config.toml"
    if not file.is_file():
        raise ModelError(f"{directory}: not a model directory: it has no config.toml")
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: {error}") from error
    return _config(values, file)


def _config(values: dict[str, Any], file: Path) -> ModelConfig:
    if "transformer_encoder" in _table(_table(values, "model", file), "encoder", file):
        raise ModelError(f"{file}: transformer models (v5 sup) are not supported yet")
    encoder = _table(values, "encoder", file)
    if not encoder:
        raise ModelError(f"{file}: no [encoder] table: not a basecalling model")
    layers = _listed_layers if "sublayers" in encoder else _v3_layers
    basecaller, qscore = _table(values, "basecaller", file), _table(values, "qscore", file)
    decoder = _table(values, "decoder", file)
    try:
        found = layers(encoder, file)
        config = ModelConfig(
            convolutions=found.convolutions,
            reverse=found.reverse,
            linear_bias=found.linear_bias,
            score_limit=found.score_limit,
            score_tanh=found.score_tanh,
            stay_score=_finite(decoder.get("stay_score", found.stay_score)),
            state_len=_whole(_table(values, "global_norm", file)["state_len"]),
            chunk_size=_whole(basecaller.get("chunksize", 10_000)),
            overlap=_whole(basecaller.get("overlap", 500)),
            quality_scale=_finite(qscore.get("scale", 1.0)),
            quality_bias=_finite(qscore.get("bias", 0.0)),
            scaling=_scaling(values, found.scaling, file),
            quantiles=_quantiles(_table(values, "normalisation", file)),
            sample_rate_hz=_whole(_table(values, "run_info", file).get("sample_rate", 0)),
            resample_from_hz=tuple(_whole(rate) for rate in _table(values, "input", file).get("resample_from", [])),
        )
    except KeyError as error:
        raise ModelError(f"{file}: {error} is missing") from error
    except (ValueError, OverflowError, TypeError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{file}: {error}") from error
    _check_ranges(config, file)
    return config


def _check_ranges(config: ModelConfig, file: Path) -> None:
    sizes = [size for layer in config.convolutions for size in (layer.ins, layer.outs, layer.stride)]
    odd = all(layer.winlen % 2 == 1 and layer.winlen > 0 for layer in config.convolutions)
    if not (1 <= config.state_len <= 5 and min(sizes) >= 1 and odd and config.score_limit > 0):
        raise ModelError(f"{file}: out of range: {config}")
    rule = config.quantiles
    if not (0 <= rule.quantile_a < rule.quantile_b <= 1 and rule.scale_multiplier > 0):
        raise ModelError(f"{file}: [normalisation] out of range: {rule}")
    if config.sample_rate_hz < 0 or any(rate <= 0 for rate in config.resample_from_hz):
        raise ModelError(f"{file}: not a sample rate: {[config.sample_rate_hz, *config.resample_from_hz]}")
    if config.resample_from_hz and not config.sample_rate_hz:
        raise ModelError(f"{file}: [input] resample_from needs [run_info] sample_rate, the rate to resample to")
    steps, overlap_steps = config.chunk_size // config.stride, config.overlap // config.stride
    if not 0 <= overlap_steps < steps or steps < 4:
        raise ModelError(f"{file}: chunksize {config.chunk_size} and overlap {config.overlap} do not fit together")


class _Layers(NamedTuple):
    """What the two ways of listing layers have in common; `scaling` is what the format leaves open, or None."""

    convolutions: tuple[Convolution, ...]
    reverse: tuple[bool, ...]
    linear_bias: bool
    score_limit: float
    score_tanh: bool
    stay_score: float
    scaling: str


def _v3_layers(encoder: dict[str, Any], file: Path) -> _Layers:
    """[encoder] of v3: sizes only, the layers are always the same."""
    for key, only in (("rnn_type", "lstm"), ("activation", "swish")):
        if encoder.get(key, only) != only:
            raise ModelError(f"{file}: [encoder] {key} = {encoder[key]!r} is not supported; only {only!r} is")
    first = _whole(encoder.get("first_conv_size", 4))
    return _Layers(
        convolutions=(
            Convolution(1, first, 5),
            Convolution(first, 16, 5),
            Convolution(16, _whole(encoder["features"]), _whole(encoder["winlen"]), _whole(encoder["stride"])),
        ),
        reverse=(True, False, True, False, True),
        linear_bias=True,
        score_limit=_finite(encoder.get("scale", 5.0)),
        score_tanh=True,
        stay_score=_finite(encoder.get("blank_score", 2.0)) + _V3_STAY_CORRECTION,
        scaling=_V3_SCALING,
    )


_LISTED = ("convolution", "convolution", "convolution", "permute", *["lstm"] * 5, "linearcrfencoder", "clamp")


def _listed_layers(encoder: dict[str, Any], file: Path) -> _Layers:
    """[[encoder.sublayers]] of v4: every layer by itself. One order of them is supported so far."""
    layers = encoder["sublayers"]
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ModelError(f"{file}: [encoder] sublayers = {layers!r} is not a list of tables")
    kinds = [layer.get("type") for layer in layers]
    if tuple(kinds) != _LISTED:
        raise ModelError(f"{file}: these layers are not supported yet: {kinds}; only {', '.join(_LISTED)} are")
    convolutions, lstms, linear, clamp = layers[:3], layers[4:9], layers[9], layers[10]
    for layer in convolutions:
        if layer.get("activation") != "swish" or layer.get("padding") != _whole(layer["winlen"]) // 2:
            raise ModelError(
                f"{file}: not supported yet: {layer}; a convolution must have swish and half-window padding"
            )
    for before, layer in pairwise(convolutions):
        if _whole(layer["insize"]) != _whole(before["size"]) or _whole(before.get("stride", 1)) != 1:
            raise ModelError(f"{file}: convolutions do not fit together: {before}, {layer}")
    width = _whole(convolutions[-1]["size"])
    if any(_whole(layer[key]) != width for layer in lstms for key in ("size", "insize")) or linear["insize"] != width:
        raise ModelError(f"{file}: all LSTMs and the linear layer must be {width} wide, as the last convolution is")
    if linear.get("activation") or linear.get("scale") not in (None, 1.0) or _finite(clamp["min"]) != -clamp["max"]:
        raise ModelError(f"{file}: not supported yet: {linear}, {clamp}; scores must be linear, clamped to +-max")
    return _Layers(
        convolutions=tuple(
            Convolution(*(_whole(layer[key]) for key in ("insize", "size", "winlen", "stride")))
            for layer in convolutions
        ),
        reverse=tuple(bool(layer.get("reverse")) for layer in lstms),
        linear_bias=bool(linear.get("bias", False)),
        score_limit=_finite(clamp["max"]),
        score_tanh=False,
        stay_score=_finite(linear["blank_score"]),
        scaling="quantile",
    )


def _quantiles(normalisation: dict[str, Any]) -> QuantileRule:
    known = [field.name for field in fields(QuantileRule)]
    if unknown := sorted(normalisation.keys() - set(known)):
        raise ValueError(f"[normalisation] {unknown[0]} is not known; {', '.join(known)} are")
    return QuantileRule(**{key: _finite(value) for key, value in normalisation.items()})


def _scaling(values: dict[str, Any], default: str, file: Path) -> str:
    strategy = _table(values, "scaling", file).get("strategy", default)
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ModelError(f"{file}: [scaling] strategy = {strategy!r} is not supported; {', '.join(STRATEGIES)} are")
    if _table(values, "standardisation", file).get("standardise", 1 if "standardisation" in values else 0):
        raise ModelError(f"{file}: signal standardised in pA ([standardisation] standardise = 1) is not supported yet")
    if "normalisation" in values and strategy != "quantile":
        raise ModelError(f"{file}: [normalisation] goes with [scaling] strategy = 'quantile', not {strategy!r}")
    return strategy


def _table(values: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise ModelError(f"{file}: {key} = {table!r} is not a table")
    return table


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _finite(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
