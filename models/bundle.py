"""Model directories: `config.toml` and weights, checked when loaded.

Two containers of the same keys are read: dorado's (one TorchScript file a tensor, `4.rnn.weight_ih_l0.tensor`) and our
own (`model.safetensors`). Nothing in either is executed.
"""

import hashlib
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
    return ModelBundle(directory.name, config, _chemistry(directory.name, values), tensors, digest.digest())


def _config(values: dict[str, Any], file: Path) -> ModelConfig:
    encoder = values.get("encoder")
    if not isinstance(encoder, dict):
        raise ModelError(f"{file}: no [encoder] table: not a basecalling model")
    if "sublayers" in encoder:
        kinds = sorted({str(layer.get("type")) for layer in encoder["sublayers"]})
        raise ModelError(f"{file}: layers listed one by one ({', '.join(kinds)}; v4 and later) are not supported yet")
    if "transformer_encoder" in values.get("model", {}).get("encoder", {}):
        raise ModelError(f"{file}: transformer models (v5 sup) are not supported yet")
    for key, only in (("rnn_type", "lstm"), ("activation", "swish")):
        if encoder.get(key, only) != only:
            raise ModelError(f"{file}: [encoder] {key} = {encoder[key]!r} is not supported; only {only!r} is")
    scaling = values.get("scaling", {}).get("strategy", _V3_SCALING)
    if scaling not in STRATEGIES:
        raise ModelError(f"{file}: [scaling] strategy = {scaling!r} is not supported; {', '.join(STRATEGIES)} are")
    if "normalisation" in values or "standardisation" in values:
        raise ModelError(f"{file}: [normalisation] and [standardisation] are not supported yet")
    decoder = values.get("decoder", {})
    basecaller, qscore = values.get("basecaller", {}), values.get("qscore", {})
    try:
        config = ModelConfig(
            stride=int(encoder["stride"]),
            winlen=int(encoder["winlen"]),
            features=int(encoder["features"]),
            first_conv_size=int(encoder.get("first_conv_size", 4)),
            score_scale=float(encoder.get("scale", 5.0)),
            stay_score=float(decoder.get("stay_score", encoder.get("blank_score", 2.0) + _V3_STAY_CORRECTION)),
            state_len=int(values["global_norm"]["state_len"]),
            chunk_size=int(basecaller.get("chunksize", 10_000)),
            overlap=int(basecaller.get("overlap", 500)),
            quality_scale=float(qscore.get("scale", 1.0)),
            quality_bias=float(qscore.get("bias", 0.0)),
            scaling=scaling,
        )
    except KeyError as error:
        raise ModelError(f"{file}: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file}: {error}") from error
    if not (1 <= config.state_len <= 5 and config.stride >= 1 and config.features >= 1 and config.winlen % 2 == 1):
        raise ModelError(f"{file}: out of range: {config}")
    if not 0 <= config.overlap < config.chunk_size or config.chunk_size < 4 * config.stride:
        raise ModelError(f"{file}: chunksize {config.chunk_size} and overlap {config.overlap} do not fit together")
    return config


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


def _chemistry(name: str, values: dict[str, Any]) -> Chemistry:
    match = _NAME.match(name)
    if match is None:
        return Chemistry()
    rate = values.get("run_info", {}).get("sample_rate")
    if rate is None and match["pore"].startswith("r9."):
        rate = 4000  # every R9.4.1 run
    speed = int(match["speed"] or (450 if match["pore"].startswith("r9.") and match["molecule"] == "dna" else 0))
    return Chemistry(match["molecule"], match["pore"], speed, (int(rate),) if rate else ())
