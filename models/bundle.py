"""Model directories: `config.toml` and weights, checked when loaded.

Two containers of the same keys are read: dorado's (one TorchScript file a tensor, `4.rnn.weight_ih_l0.tensor`) and our
own (`model.safetensors`). Nothing in either is executed.
"""

import hashlib
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from porestream.models.scale import STRATEGIES
from porestream.models.torchscript import read_tensor

_NAME = re.compile(r"^(?P<molecule>dna|rna\d*)_(?P<pore>r[\d.]+)(_e[\d.]+)?(_(?P<speed>\d+)bps)?_(?P<kind>[a-z]+)@v")
_LSTM_LAYERS = 5
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# What v3 directories leave open; docs/decisions/0002 has the measurements. dorado takes "quantile" and no correction:
# `[scaling] strategy = "quantile"` and `[decoder] stay_score = 2.0` in config.toml give its choice.
_V3_SCALING = "med_mad"
_V3_STAY_CORRECTION = -0.5


class ModelError(ValueError):
    """A model directory cannot be used; the message names it, and why."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What `config.toml` says of a v3 LSTM-CRF model. Sizes in samples unless named otherwise."""

    stride: int
    winlen: int
    features: int
    first_conv_size: int
    score_scale: float
    stay_score: float
    state_len: int
    chunk_size: int
    overlap: int
    quality_scale: float
    quality_bias: float
    scaling: str

    @property
    def score_count(self) -> int:
        """Scores a time step: a new state times the base that it drops."""
        return int(4 ** (self.state_len + 1))


@dataclass(frozen=True, slots=True)
class Chemistry:
    """What a model was trained for, as far as its name and config tell; empty or 0: unknown."""

    molecule: str = ""
    pore: str = ""
    bases_per_second: int = 0
    sample_rates_hz: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelBundle:
    """A checked model: its name, configuration, float32 tensors and digest."""

    name: str
    config: ModelConfig
    chemistry: Chemistry
    tensors: dict[str, torch.Tensor] = field(repr=False)
    sha256: bytes


def load_bundle(directory: Path) -> ModelBundle:
    """Read and check a model directory.

    The digest covers config.toml and every tensor's name, shape and float32 bytes, so the same model has the same
    digest in either container.

    Raises
    ------
    ModelError
        Missing, unknown or unsafe files, an unsupported layer, a wrong shape, or weights that are not finite.
    """
    directory = Path(directory).resolve()
    config_file = directory / "config.toml"
    if not config_file.is_file():
        raise ModelError(f"{directory}: not a model directory: it has no config.toml")
    raw = config_file.read_bytes()
    try:
        values = tomllib.loads(raw.decode())
    except ValueError as error:
        raise ModelError(f"{config_file}: {error}") from error
    config = _config(values, config_file)
    tensors = _tensors(directory)
    _check_tensors(tensors, config, directory)
    digest = hashlib.sha256(raw)
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{list(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].numpy().tobytes())
    return ModelBundle(
        directory.name, config, _chemistry(directory.name, values, config_file), tensors, digest.digest()
    )


def _config(values: dict[str, Any], file: Path) -> ModelConfig:
    if "transformer_encoder" in _table(_table(values, "model", file), "encoder", file):
        raise ModelError(f"{file}: transformer models (v5 sup) are not supported yet")
    encoder = _table(values, "encoder", file)
    if not encoder:
        raise ModelError(f"{file}: no [encoder] table: not a basecalling model")
    if "sublayers" in encoder:
        raise ModelError(f"{file}: layers listed one by one ([encoder.sublayers]; v4 and later) are not supported yet")
    for key, only in (("rnn_type", "lstm"), ("activation", "swish")):
        if encoder.get(key, only) != only:
            raise ModelError(f"{file}: [encoder] {key} = {encoder[key]!r} is not supported; only {only!r} is")
    scaling = _table(values, "scaling", file).get("strategy", _V3_SCALING)
    if not isinstance(scaling, str) or scaling not in STRATEGIES:
        raise ModelError(f"{file}: [scaling] strategy = {scaling!r} is not supported; {', '.join(STRATEGIES)} are")
    if "normalisation" in values or "standardisation" in values:
        raise ModelError(f"{file}: [normalisation] and [standardisation] are not supported yet")
    decoder, basecaller = _table(values, "decoder", file), _table(values, "basecaller", file)
    qscore = _table(values, "qscore", file)
    try:
        config = ModelConfig(
            stride=_whole(encoder["stride"]),
            winlen=_whole(encoder["winlen"]),
            features=_whole(encoder["features"]),
            first_conv_size=_whole(encoder.get("first_conv_size", 4)),
            score_scale=_finite(encoder.get("scale", 5.0)),
            stay_score=_finite(
                decoder.get("stay_score", _finite(encoder.get("blank_score", 2.0)) + _V3_STAY_CORRECTION)
            ),
            state_len=_whole(_table(values, "global_norm", file)["state_len"]),
            chunk_size=_whole(basecaller.get("chunksize", 10_000)),
            overlap=_whole(basecaller.get("overlap", 500)),
            quality_scale=_finite(qscore.get("scale", 1.0)),
            quality_bias=_finite(qscore.get("bias", 0.0)),
            scaling=scaling,
        )
    except KeyError as error:
        raise ModelError(f"{file}: {error} is missing") from error
    except (ValueError, OverflowError) as error:
        raise ModelError(f"{file}: {error}") from error
    sizes = (config.stride, config.features, config.first_conv_size)
    if not (1 <= config.state_len <= 5 and min(sizes) >= 1 and config.winlen % 2 == 1 and config.score_scale > 0):
        raise ModelError(f"{file}: out of range: {config}")
    steps, overlap_steps = config.chunk_size // config.stride, config.overlap // config.stride
    if not 0 <= overlap_steps < steps or steps < 4:
        raise ModelError(f"{file}: chunksize {config.chunk_size} and overlap {config.overlap} do not fit together")
    return config


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


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    bundle = directory / "model.safetensors"
    try:
        if bundle.is_file():
            tensors = safetensors.torch.load_file(bundle)
        else:
            tensors = {file.name.removesuffix(".tensor"): read_tensor(file) for file in directory.glob("*.tensor")}
    except Exception as error:
        raise ModelError(f"{directory}: {error}") from error
    if not tensors:
        raise ModelError(f"{directory}: no weights: neither model.safetensors nor *.tensor files")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ModelError(f"{directory}: {name} holds {tensor.dtype}, not floating point numbers")
    return {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}


def _check_tensors(tensors: dict[str, torch.Tensor], config: ModelConfig, directory: Path) -> None:
    width, first = config.features, config.first_conv_size
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (ins, outs, winlen) in enumerate(((1, first, 5), (first, 16, 5), (16, width, config.winlen))):
        shapes |= {f"{layer}.conv.weight": (outs, ins, winlen), f"{layer}.conv.bias": (outs,)}
    for layer in range(4, 4 + _LSTM_LAYERS):  # 3 is the permutation
        shapes |= {f"{layer}.rnn.{kind}_{part}_l0": (4 * width,) for kind in ("bias",) for part in ("ih", "hh")}
        shapes |= {f"{layer}.rnn.weight_{part}_l0": (4 * width, width) for part in ("ih", "hh")}
    shapes |= {"9.linear.weight": (config.score_count, width), "9.linear.bias": (config.score_count,)}
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise ModelError(f"{directory}: tensors missing: {', '.join(missing)}")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ModelError(f"{directory}: unknown tensors: {', '.join(unknown)}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{directory}: {name} has shape {tuple(tensors[name].shape)}, config.toml says {shape}")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{directory}: {name} has values that are not finite")


def _chemistry(name: str, values: dict[str, Any], file: Path) -> Chemistry:
    match = _NAME.match(name)
    if match is None:
        return Chemistry()
    rate = _table(values, "run_info", file).get("sample_rate")
    if rate is None and match["pore"].startswith("r9."):
        rate = 4000  # every R9.4.1 run
    speed = int(match["speed"] or (450 if match["pore"].startswith("r9.") and match["molecule"] == "dna" else 0))
    if rate is not None and (not isinstance(rate, int) or rate <= 0):
        raise ModelError(f"{file}: [run_info] sample_rate = {rate!r} is not a rate")
    return Chemistry(match["molecule"], match["pore"], speed, (rate,) if rate else ())
