"""Writes a trained state as a model directory: weights, config.toml and a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from porestream.models.train.card import model_card
from porestream.models.train.crf_loss import SCORE_LIMIT, STAY_SCORE
from porestream.models.train.network import CONVOLUTIONS, LAYERS, STRIDE, WINLEN, TrainableNetwork, published_name
from porestream.models.train.signal import (
    MODEL_RATE_HZ,
    QUANTILE_A,
    QUANTILE_B,
    SCALE_MULTIPLIER,
    SHIFT_MULTIPLIER,
)
from porestream.models.train.state import TrainingState

RESAMPLED_RATES_HZ = (4000,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """Settings of a model directory other than the weights; see the options of the `export` command."""

    date: str
    quality_scale: float = 1.0
    quality_bias: float = 0.0
    chunk_samples: int = 6000
    overlap_samples: int = 600
    half: bool = False
    data: Sequence[str] = ()


def export_model(
    state: TrainingState, directory: Path, settings: ExportSettings, evaluations: Sequence[Mapping[str, object]] = ()
) -> None:
    """Write model.safetensors (the running mean of the weights, ONT's layer names), config.toml and README.md.

    Parameters
    ----------
    state
        The trainer's state.
    directory
        Created if necessary; its name becomes the model's name.
    settings
        See ExportSettings.
    evaluations
        Reports from `evaluate`, for the card.
    """
    network = TrainableNetwork.of_weights(state.mean)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if settings.half else torch.float32
    weights = {published_name(key): weight.to(dtype).contiguous() for key, weight in network.state_dict().items()}
    (directory / "model.safetensors").write_bytes(save(weights))  # save_file's file would be private to its owner
    training = _training(state, settings)
    (directory / "config.toml").write_text(_config(network, settings, training))
    parameters = sum(weight.numel() for weight in weights.values())
    (directory / "README.md").write_text(model_card(directory.resolve().name, parameters, training, evaluations))


def _training(state: TrainingState, settings: ExportSettings) -> dict[str, object]:
    return {
        "initialisation": "random",
        "date": settings.date,
        "samples_seen": state.progress.seen,
        "training_seconds": round(state.progress.seconds),
        "recipe": "porestream.models.train: banded CRF loss, Muon; the running mean of the weights",
        "data": list(settings.data or state.inputs),
    }


def _config(network: TrainableNetwork, settings: ExportSettings, training: Mapping[str, object]) -> str:
    width = network.width
    tables: list[tuple[str, dict[str, object]]] = [
        ("[model]", {"package": "porestream"}),
        ("[labels]", {"labels": ["N", "A", "C", "G", "T"]}),
        ("[input]", {"features": 1, "resample_from": list(RESAMPLED_RATES_HZ)}),
        ("[global_norm]", {"state_len": network.state_len}),
        ("[run_info]", {"sample_type": "dna", "sample_rate": int(MODEL_RATE_HZ)}),
        ("[scaling]", {"strategy": "quantile"}),
        (
            "[normalisation]",
            {
                "quantile_a": QUANTILE_A,
                "quantile_b": QUANTILE_B,
                "shift_multiplier": SHIFT_MULTIPLIER,
                "scale_multiplier": SCALE_MULTIPLIER,
            },
        ),
        ("[basecaller]", {"chunksize": settings.chunk_samples, "overlap": settings.overlap_samples}),
        ("[qscore]", {"scale": settings.quality_scale, "bias": settings.quality_bias}),
        ("[encoder]", {"type": "serial"}),
    ]
    layer = "[[encoder.sublayers]]"
    ins = 1
    for size, winlen, stride in (*CONVOLUTIONS, (width, WINLEN, STRIDE)):
        sizes = {"insize": ins, "size": size, "bias": True, "winlen": winlen, "stride": stride, "padding": winlen // 2}
        tables.append((layer, {"type": "convolution", **sizes, "activation": "swish"}))
        ins = size
    tables.append((layer, {"type": "permute", "dims": [2, 0, 1]}))
    for index in range(LAYERS):
        tables.append(
            (layer, {"type": "lstm", "size": width, "insize": width, "bias": True, "reverse": index % 2 == 0})
        )
    crf = {"insize": width, "n_base": 4, "state_len": network.state_len, "bias": False, "blank_score": STAY_SCORE}
    tables.append((layer, {"type": "linearcrfencoder", **crf, "expand_blanks": True}))
    tables.append((layer, {"type": "clamp", "min": -SCORE_LIMIT, "max": SCORE_LIMIT}))
    tables.append(("[training]", dict(training)))
    # JSON strings, numbers, booleans and arrays of these are valid TOML, too.
    texts = ["\n".join([name, *(f"{key} = {json.dumps(value)}" for key, value in t.items())]) for name, t in tables]
    return "\n\n".join(texts) + "\n"
