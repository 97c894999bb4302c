"""What a model directory's `config.toml` says, checked. No weights are read here, and torch is not needed.

models/files/layers.py reads what it says of the network; here is the rest.
"""

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from porestream.models.call.scale import STRATEGIES, QuantileRule, Standardisation
from porestream.models.files.config_values import finite, whole, within_limits
from porestream.models.files.layers import Layers, listed_layers, transformer_layers, v3_layers

# Of fast v3 models, the only ones that were measured: docs/decisions/0002. dorado scales every v3 model by "quantile"
# and takes its blank_score as it is; `[scaling] strategy = "quantile"` and `[decoder] stay_score = 2.0` do the same.
_FAST_V3_SCALING, _FAST_V3_STAY_CORRECTION, _FAST_STATE_LEN = "med_mad", -0.5, 3

_ALPHABET = ["N", "A", "C", "G", "T"]
_MAX_CHARACTERS, _MAX_LINE = 64 << 10, 2000  # of a config; published ones have 5,000
_MAX_RESAMPLING = 10


class ModelError(ValueError):
    """A model directory cannot be used; the message names it, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What `config.toml` says of a CRF model. Sizes in samples unless named otherwise.

    Attributes
    ----------
    layers
        The network.
    chunk_size, overlap
        As the config says; multiples of `chunk_unit` and `coarse_stride` that do not exceed them are computed.
    scaling, quantiles, standardisation
        How reads are normalised: models/call/scale.py.
    molecule
        "dna", "rna002" or "rna004". RNA goes through the pore from its 3' end: its bases are called in that order.
    mean_qscore_start
        First base that counts for a read's mean quality.
    sample_rate_hz
        Of the signal that the model was trained on; 0: unknown.
    resample_from_hz
        Sample rates of runs whose signal is interpolated to it.
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
        """Whether bases are called from the 3' end on."""
        return self.molecule.startswith("rna")

    @property
    def sample_rates_hz(self) -> tuple[int, ...]:
        """Of the runs that it takes, its own first; empty: unknown."""
        return (self.sample_rate_hz, *self.resample_from_hz) if self.sample_rate_hz else ()

    @property
    def stride(self) -> int:
        """Samples a time step of the scores."""
        return self.layers.stride

    @property
    def coarse_stride(self) -> int:
        """Samples a time step before any upsampling: what overlaps are multiples of."""
        return self.layers.coarse_stride

    @property
    def chunk_unit(self) -> int:
        """Samples that the lengths of chunks are multiples of."""
        return self.coarse_stride * self.layers.encoder.chunk_steps

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
    try:
        if not file.is_file():
            raise ModelError("not a model directory: there is no such file")
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
    """What the file says, if that is no more than a config can be."""
    with file.open(encoding="utf-8") as opened:
        text = opened.read(_MAX_CHARACTERS + 1)
    if len(text) > _MAX_CHARACTERS:
        raise ModelError(f"has more than {_MAX_CHARACTERS:,} characters: no model's config")
    if max(map(len, text.split("\n"))) > _MAX_LINE:  # for tomllib takes minutes for a key of 10,000 parts: a.b.c...
        raise ModelError(f"has a line of more than {_MAX_LINE:,} characters: no model's config")
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
        raise ModelError("no [encoder] table: not a basecalling model")
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
        raise ModelError(f"an alphabet of {alphabet} is not supported; {_ALPHABET} is")
    rule = config.quantiles
    if not (0 <= rule.quantile_a < rule.quantile_b <= 1 and rule.scale_multiplier > 0):
        raise ModelError(f"[normalisation] out of range: {rule}")
    if config.resample_from_hz and not config.sample_rate_hz:
        raise ModelError("[input] resample_from needs [run_info] sample_rate, the rate to resample to")
    for rate_hz in config.resample_from_hz:
        if not config.sample_rate_hz / _MAX_RESAMPLING <= rate_hz <= config.sample_rate_hz * _MAX_RESAMPLING:
            raise ModelError(
                f"[input] resample_from = {rate_hz} is out of range: a {_MAX_RESAMPLING}th to {_MAX_RESAMPLING} times "
                f"the model's own rate, {config.sample_rate_hz}"
            )
    steps, overlap_steps = config.chunk_size // config.chunk_unit, config.overlap // config.chunk_unit
    if not 0 <= overlap_steps < steps or config.chunk_size < 4 * config.stride:
        raise ModelError(f"chunksize {config.chunk_size} and overlap {config.overlap} do not fit together")
    if layers.encoder.max_steps is not None:
        most = layers.encoder.max_steps * config.coarse_stride
        if config.chunk_size > most:
            raise ModelError(f"chunksize {config.chunk_size} is longer than max_seq_len allows ({most} samples)")


def _quantiles(normalisation: dict[str, Any]) -> QuantileRule:
    known = [field.name for field in fields(QuantileRule)]
    if unknown := sorted(normalisation.keys() - set(known)):
        raise ModelError(f"[normalisation] {unknown[0]} is not known; {', '.join(known)} are")
    return QuantileRule(**{key: finite(normalisation, key) for key in normalisation})


def _scaling(values: dict[str, Any], default: str) -> str:
    strategy = _table(values, "scaling").get("strategy", default)
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ModelError(f"[scaling] strategy = {strategy!r} is not supported; {', '.join(STRATEGIES)} are")
    if "normalisation" in values and strategy != "quantile":
        raise ModelError(f"[normalisation] goes with [scaling] strategy = 'quantile', not {strategy!r}")
    return strategy


def _standardisation(table: dict[str, Any], scaling: str) -> Standardisation:
    if not table or not table.get("standardise", 1):
        return Standardisation()
    if scaling != "pa":
        raise ModelError(f"[standardisation] goes with [scaling] strategy = 'pa', not {scaling!r}")
    found = Standardisation(finite(table, "mean"), finite(table, "stdev"), True)
    if found.stdev_pa <= 0:
        raise ModelError(f"[standardisation] stdev = {found.stdev_pa:g} is not a standard deviation")
    return found


def _molecule(run_info: dict[str, Any], name: str) -> str:
    """What the config says, else what the model's name begins with."""
    said = run_info.get("sample_type")
    if said is not None and str(said).lower() not in ("dna", "rna002", "rna004"):
        raise ModelError(f"[run_info] sample_type = {said!r} is not known; dna, rna002 and rna004 are")
    if said is not None:
        return str(said).lower()
    return next((kind for kind in ("rna002", "rna004") if name.startswith(kind)), "dna")


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise ModelError(f"{key} = {table!r} is not a table")
    return table
