"""Reads and checks a model directory's `config.toml`. Reads no weights and does not need torch.

models/networks/layers.py reads the network's layers; this module reads everything else.
"""

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from porestream.models.networks.config_values import finite, whole, within_limits
from porestream.models.networks.layers import Layers, listed_layers, transformer_layers, v3_layers
from porestream.models.scale import STRATEGIES, QuantileRule, Standardisation

# For fast v3 models, the only v3 models we measured: docs/inside/decisions/0002. dorado scales every v3 model by
# "quantile" and uses its blank_score unchanged; `[scaling] strategy = "quantile"` and `[decoder] stay_score = 2.0` do
# the same.
_FAST_V3_SCALING, _FAST_V3_STAY_CORRECTION, _FAST_STATE_LEN = "med_mad", -0.5, 3

_ALPHABET = ["N", "A", "C", "G", "T"]
_MAX_CHARACTERS, _MAX_LINE = 64 << 10, 2000  # per config; published configs have about 5,000 characters
_MAX_RESAMPLING = 10


class ModelError(ValueError):
    """A model directory cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A CRF model's `config.toml`. Sizes are in samples unless the name says otherwise.

    Attributes
    ----------
    layers
        The network.
    chunk_size, overlap
        As in the config; they are rounded down to multiples of `chunk_unit` and `coarse_stride` for computing.
    scaling, quantiles, standardisation
        How reads are normalised: models/scale.py.
    molecule
        "dna", "rna002" or "rna004". RNA enters the pore 3' end first, so its bases are called in that order.
    mean_qscore_start
        First base that counts towards a read's mean quality.
    sample_rate_hz
        Sample rate of the training signal; 0 if unknown.
    resample_from_hz
        Other sample rates that the model accepts; such signal is interpolated to `sample_rate_hz`.
    """

    layers: Layers
    stay_score: float
    state_len: int
    chunk_size: int
    overlap: int
    quality_scale: float
    quality_bias: float
    mean_qscore_start: int
    scaling: str
    quantiles: QuantileRule
    standardisation: Standardisation
    molecule: str
    sample_rate_hz: int
    resample_from_hz: tuple[int, ...]

    @property
    def is_rna(self) -> bool:
        """Whether bases are called starting from the 3' end."""
        return self.molecule.startswith("rna")

    @property
    def sample_rates_hz(self) -> tuple[int, ...]:
        """Sample rates that the model accepts, its own first; empty if unknown."""
        return (self.sample_rate_hz, *self.resample_from_hz) if self.sample_rate_hz else ()

    @property
    def stride(self) -> int:
        """Samples per time step of the scores."""
        return self.layers.stride

    @property
    def coarse_stride(self) -> int:
        """Samples per time step before any upsampling; overlaps are multiples of this."""
        return self.layers.coarse_stride

    @property
    def chunk_unit(self) -> int:
        """Samples that every chunk length is a multiple of."""
        return self.coarse_stride * self.layers.encoder.chunk_steps

    @property
    def score_count(self) -> int:
        """Scores per time step: new states times the bases each can drop."""
        return int(4 ** (self.state_len + 1))


def load_config(directory: Path) -> ModelConfig:
    """Read and check a model directory's config.toml.

    Raises
    ------
    ModelError
        The file is missing, is not valid TOML, or describes something unsupported.
    """
    file = directory / "config.toml"
    try:
        if not file.is_file():
            raise ModelError("not a model directory: the file does not exist")
        values = tomllib.loads(_text(file))
        config = _config(values, os.path.basename(os.path.abspath(directory)))
        _check_ranges(config, values)
    except KeyError as error:
        raise ModelError(f"{file}: {error} is missing") from error
    except RecursionError as error:
        raise ModelError(f"{file}: nested too deeply ({error})") from error
    except (ValueError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        raise ModelError(f"{file}: {error}") from error
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from error
    return config


def _text(file: Path) -> str:
    """Return the file's text, or refuse it if it is too long for a model config."""
    with file.open(encoding="utf-8") as opened:
        text = opened.read(_MAX_CHARACTERS + 1)
    if len(text) > _MAX_CHARACTERS:
        raise ModelError(f"longer than {_MAX_CHARACTERS:,} characters, too long for a model's config")
    if max(map(len, text.split("\n"))) > _MAX_LINE:  # tomllib takes minutes for a key of 10,000 parts: a.b.c...
        raise ModelError(f"a line is longer than {_MAX_LINE:,} characters, too long for a model's config")
    return text


def _config(values: dict[str, Any], name: str) -> ModelConfig:
    layers = _layers(values)
    state_len = layers.state_len
    if state_len is None:
        state_len = whole(_table(values, "global_norm"), "state_len")
    is_fast_v3 = layers.is_v3 and state_len <= _FAST_STATE_LEN
    stay_score = layers.stay_score + (_FAST_V3_STAY_CORRECTION if is_fast_v3 else 0.0)
    basecaller, qscore, run_info = (_table(values, key) for key in ("basecaller", "qscore", "run_info"))
    scaling = _scaling(values, _FAST_V3_SCALING if is_fast_v3 else "quantile")
    return ModelConfig(
        layers=layers,
        stay_score=finite(_table(values, "decoder"), "stay_score", stay_score),
        state_len=state_len,
        chunk_size=whole(basecaller, "chunksize", 10_000),
        overlap=whole(basecaller, "overlap", 500),
        quality_scale=finite(qscore, "scale", 1.0),
        quality_bias=finite(qscore, "bias", 0.0),
        mean_qscore_start=whole(qscore, "mean_qscore_start_pos", 60),
        scaling=scaling,
        quantiles=_quantiles(_table(values, "normalisation")),
        standardisation=_standardisation(_table(values, "standardisation"), scaling),
        molecule=_molecule(run_info, name),
        sample_rate_hz=whole(run_info, "sample_rate", 0),
        resample_from_hz=_resampled_rates(values),
    )


def _layers(values: dict[str, Any]) -> Layers:
    model = _table(values, "model")
    nested = _table(model, "encoder")
    if "transformer_encoder" in nested:
        return transformer_layers(nested)
    encoder = _table(values, "encoder")
    if not encoder:
        raise ModelError("not a basecalling model: there is no [encoder] table")
    features = _table(values, "input").get("features", 1)
    if features != 1:
        raise ModelError(f"[input] features = {features}: duplex models are not supported")
    if "sublayers" in encoder:
        return listed_layers(encoder["sublayers"])
    return v3_layers(encoder)


def _resampled_rates(values: dict[str, Any]) -> tuple[int, ...]:
    return tuple(within_limits("resample_from", rate) for rate in _table(values, "input").get("resample_from", []))


def _check_ranges(config: ModelConfig, values: dict[str, Any]) -> None:
    layers = config.layers
    odd = all(layer.winlen % 2 == 1 for layer in layers.convolutions)
    if not (odd and layers.score_limit > 0 and layers.score_scale > 0):
        raise ModelError(f"out of range: {config}")
    alphabet = _table(values, "labels").get("labels") or _table(_table(values, "model"), "seqdist").get("alphabet")
    if alphabet not in (None, _ALPHABET):
        raise ModelError(f"the alphabet {alphabet} is not supported, only {_ALPHABET}")
    rule = config.quantiles
    if not (0 <= rule.quantile_a < rule.quantile_b <= 1 and rule.scale_multiplier > 0):
        raise ModelError(f"[normalisation] out of range: {rule}")
    if config.resample_from_hz and not config.sample_rate_hz:
        raise ModelError("[input] resample_from also needs [run_info] sample_rate, the rate to resample to")
    for rate_hz in config.resample_from_hz:
        if not config.sample_rate_hz / _MAX_RESAMPLING <= rate_hz <= config.sample_rate_hz * _MAX_RESAMPLING:
            raise ModelError(
                f"[input] resample_from = {rate_hz} is out of range: it must be 1/{_MAX_RESAMPLING} to "
                f"{_MAX_RESAMPLING} times the model's own rate, {config.sample_rate_hz}"
            )
    steps, overlap_steps = config.chunk_size // config.chunk_unit, config.overlap // config.chunk_unit
    if not 0 <= overlap_steps < steps or config.chunk_size < 4 * config.stride:
        raise ModelError(
            f"chunksize {config.chunk_size} is too small for overlap {config.overlap} and stride {config.stride}"
        )
    if layers.encoder.max_steps is not None:
        most = layers.encoder.max_steps * config.coarse_stride
        if config.chunk_size > most:
            raise ModelError(f"chunksize {config.chunk_size} is longer than max_seq_len allows ({most} samples)")


def _quantiles(normalisation: dict[str, Any]) -> QuantileRule:
    known = [field.name for field in fields(QuantileRule)]
    if unknown := sorted(normalisation.keys() - set(known)):
        raise ModelError(f"unknown key {unknown[0]} in [normalisation]; the keys are {', '.join(known)}")
    return QuantileRule(**{key: finite(normalisation, key) for key in normalisation})


def _scaling(values: dict[str, Any], default: str) -> str:
    strategy = _table(values, "scaling").get("strategy", default)
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ModelError(f"[scaling] strategy = {strategy!r} is not supported; use one of {', '.join(STRATEGIES)}")
    if "normalisation" in values and strategy != "quantile":
        raise ModelError(f"[normalisation] only works with [scaling] strategy = 'quantile', not {strategy!r}")
    return strategy


def _standardisation(table: dict[str, Any], scaling: str) -> Standardisation:
    if not table or not table.get("standardise", 1):
        return Standardisation()
    if scaling != "pa":
        raise ModelError(f"[standardisation] only works with [scaling] strategy = 'pa', not {scaling!r}")
    found = Standardisation(finite(table, "mean"), finite(table, "stdev"), True)
    if found.stdev_pa <= 0:
        raise ModelError(f"[standardisation] stdev = {found.stdev_pa:g} must be greater than 0")
    return found


def _molecule(run_info: dict[str, Any], name: str) -> str:
    """Return the config's sample_type, or else the molecule at the start of the model's name."""
    said = run_info.get("sample_type")
    if said is not None and str(said).lower() not in ("dna", "rna002", "rna004"):
        raise ModelError(f"[run_info] sample_type = {said!r} is unknown; use dna, rna002 or rna004")
    if said is not None:
        return str(said).lower()
    return next((kind for kind in ("rna002", "rna004") if name.startswith(kind)), "dna")


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise ModelError(f"{key} = {table!r} is not a table")
    return table
