"""What a network consists of: the three ways in which config.toml lists layers, read into one description.

v3 names sizes only, v4 and later list every layer of an LSTM network, and the v5 sup models name the parts of a
transformer. What else a config lists is refused by name.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from porestream.models.files.config_values import Unsupported, finite, whole
from porestream.models.files.encoder import Encoder
from porestream.models.files.lstm import Lstms
from porestream.models.files.transformer import Transformer

_ACTIVATIONS = ("swish", "tanh")

LISTED = {"lstm": Lstms.listed}
"""Encoders that v4 and later list layer by layer: of a layer's type, what makes one of such layers and their width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution over time, zero-padded by half its window, then its activation, then a clamp where it has one.

    `activation` is "swish" (SiLU) or "tanh"; `limits` are the clamp's.
    """

    ins: int
    outs: int
    winlen: int
    stride: int = 1
    activation: str = "swish"
    limits: tuple[float, float] | None = None
    batch_norm: bool = False
    """Whether it was trained with one; dorado's directories have it fused into the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A network's layers, first to last: convolutions; LSTMs or a transformer; linear layers of CRF scores.

    Attributes
    ----------
    encoder
        The LSTMs, or the transformer.
    bottleneck, bottleneck_bias
        Width of a linear layer before the last one (0: none), and whether it has a bias.
    linear_bias
        Whether the last layer has one.
    score_tanh, score_scale, score_limit
        Scores are the last layer's, or their tanh; times the scale; clamped to +-limit (inf: not).
    """

    convolutions: tuple[Convolution, ...]
    encoder: Encoder
    bottleneck: int = 0
    bottleneck_bias: bool = False
    linear_bias: bool = False
    score_tanh: bool = False
    score_scale: float = 1.0
    score_limit: float = math.inf
    stay_score: float = 2.0
    state_len: int | None = None
    is_v3: bool = False

    @property
    def coarse_stride(self) -> int:
        """Samples a time step of the encoder, before any upsampling."""
        return math.prod(layer.stride for layer in self.convolutions)

    @property
    def stride(self) -> int:
        """Samples a time step of the scores."""
        return self.coarse_stride // self.encoder.upsampling


def v3_layers(encoder: dict[str, Any]) -> Layers:
    """[encoder] of v3: sizes only."""
    for key, only in (("rnn_type", "lstm"), ("activation", "swish"), ("norm", None)):
        if encoder.get(key, only) != only:
            raise Unsupported(f"[encoder] {key} = {encoder[key]!r} is not supported; only {only!r} is")
    first, count = whole(encoder, "first_conv_size", 4), whole(encoder, "num_layers", 5)
    return Layers(
        convolutions=(
            Convolution(ins=1, outs=first, winlen=5),
            Convolution(ins=first, outs=16, winlen=5),
            Convolution(
                ins=16,
                outs=whole(encoder, "features"),
                winlen=whole(encoder, "winlen"),
                stride=whole(encoder, "stride"),
            ),
        ),
        encoder=Lstms(whole(encoder, "features"), tuple((count - index) % 2 == 1 for index in range(count))),
        linear_bias=True,
        score_tanh=True,
        score_scale=finite(encoder, "scale", 5.0),
        stay_score=finite(encoder, "blank_score", 2.0),
        is_v3=True,
    )


def listed_layers(tables: Any) -> Layers:
    """[[encoder.sublayers]] of v4 and later: convolutions, permute, LSTMs, linear layers, with clamps between."""
    left = _sublayers(tables)
    convolutions = _convolutions(left)
    _one(left, "permute")
    width, kind = convolutions[-1].outs, left[0]["type"] if left else ""
    if kind not in LISTED:
        raise Unsupported(f"no {' or '.join(LISTED)} layers where they must be, but {left[0] if left else 'the end'}")
    layers = []
    while left and left[0]["type"] == kind:
        layers.append(left.pop(0))
    encoder = LISTED[kind](layers, width)
    bottleneck, bottleneck_bias = 0, False
    if left and left[0]["type"] == "linear":
        layer = left.pop(0)
        if whole(layer, "in_features") != width:
            raise Unsupported(f"a linear layer that does not follow {width} features: {layer}")
        bottleneck = whole(layer, "out_features")
        bottleneck_bias = bool(layer.get("bias", width > 128))  # dorado's rule
    crf = _one(left, "linearcrfencoder")
    limit = math.inf
    if left and left[0]["type"] == "clamp":
        low, high = _limits(left.pop(0))
        if low != -high:
            raise Unsupported(f"scores clamped to {low:g} and {high:g}: not supported; only +-max is")
        limit = high
    if left:
        raise Unsupported(f"a layer in a place where it is not supported: {left[0]}")
    return Layers(
        convolutions=convolutions,
        encoder=encoder,
        bottleneck=bottleneck,
        bottleneck_bias=bottleneck_bias,
        score_limit=limit,
        **_crf(crf, bottleneck or width) | {"state_len": None},  # [global_norm] says it, as in dorado
    )


def transformer_layers(encoder: dict[str, Any]) -> Layers:
    """[model.encoder] of v5 sup: conv, transformer_encoder, upsample, crf."""
    if unknown := sorted(encoder.keys() - {"type", "conv", "transformer_encoder", "upsample", "crf"}):
        raise Unsupported(f"[model.encoder] {unknown[0]} is not known")
    left = _sublayers(encoder["conv"]["sublayers"])
    convolutions = _convolutions(left)
    if left and left[0]["type"] == "permute":
        left.pop(0)
    if left:
        raise Unsupported(f"a layer in a place where it is not supported: {left[0]}")
    crf = encoder["crf"]
    width, stride = convolutions[-1].outs, math.prod(layer.stride for layer in convolutions)
    transformer = Transformer.of_config(encoder["transformer_encoder"], encoder["upsample"], width, stride)
    if crf.get("type", "linearcrfencoder") != "linearcrfencoder":
        raise Unsupported(f"not a linearcrfencoder of {width} features: {crf}")
    if "state_len" not in crf:
        raise KeyError("state_len")
    return Layers(convolutions=convolutions, encoder=transformer, **_crf(crf, width))


def _sublayers(tables: Any) -> list[dict[str, Any]]:
    """The listed layers, each of a known type."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) and "type" in table for table in tables):
        raise Unsupported(f"sublayers = {tables!r} is not a list of tables with a type each")
    known = ("convolution", "clamp", "permute", *LISTED, "linear", "linearcrfencoder")
    for table in tables:
        if table["type"] == "flstm":
            raise Unsupported("layers of type flstm (factorised LSTMs) only run in dorado's own closed library")
        if table["type"] not in known:
            raise Unsupported(f"layers of type {table['type']!r} are not supported; {', '.join(known)} are")
    return list(tables)


def _one(left: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    if not left or left[0]["type"] != kind:
        raise Unsupported(f"no {kind} layer where one must be, but {left[0] if left else 'the end'}")
    return left.pop(0)


def _convolutions(left: list[dict[str, Any]]) -> tuple[Convolution, ...]:
    """The first layers, taken off the list."""
    found: list[Convolution] = []
    while left and left[0]["type"] == "convolution":
        layer = left.pop(0)
        winlen, activation, norm = whole(layer, "winlen"), layer.get("activation"), layer.get("norm")
        if activation not in _ACTIVATIONS or whole(layer, "padding", 0) != winlen // 2 or winlen % 2 != 1:
            raise Unsupported(
                f"{layer} is not supported; a convolution must have {' or '.join(_ACTIVATIONS)}, an odd winlen and "
                "half of it as padding"
            )
        if norm not in (None, "batchnorm") or not layer.get("bias", True):
            raise Unsupported(f"{layer} is not supported; a convolution must have a bias, and batchnorm or no norm")
        limits = _limits(left.pop(0)) if left and left[0]["type"] == "clamp" else None
        ins, outs, stride = whole(layer, "insize"), whole(layer, "size"), whole(layer, "stride", 1)
        found.append(
            Convolution(
                ins=ins,
                outs=outs,
                winlen=winlen,
                stride=stride,
                activation=activation,
                limits=limits,
                batch_norm=norm is not None,
            )
        )
    if not found:
        raise Unsupported("no convolutions")
    if found[0].ins != 1:
        raise Unsupported(f"an input of {found[0].ins} features: duplex models are not supported")
    for before, after in pairwise(found):
        if after.ins != before.outs:
            raise Unsupported(f"convolutions do not fit together: {before}, {after}")
    return tuple(found)


def _limits(clamp: dict[str, Any]) -> tuple[float, float]:
    low, high = finite(clamp, "min"), finite(clamp, "max")
    if not low < high:
        raise Unsupported(f"a clamp from {low:g} to {high:g}")
    return low, high


def _crf(layer: dict[str, Any], width: int) -> dict[str, Any]:
    """The fields of `Layers` that the layer of scores decides."""
    if whole(layer, "insize") != width or whole(layer, "n_base", 4) != 4:
        raise Unsupported(f"a layer of scores that is not of four bases and {width} features: {layer}")
    if layer.get("activation") not in (None, "tanh"):
        raise Unsupported(f"scores of activation {layer['activation']!r} are not supported; tanh, or none, is")
    if layer.get("blank_score") is None:
        raise Unsupported("a network that puts out the score of staying (no blank_score) is not supported")
    return {
        "linear_bias": bool(layer.get("bias", False)),
        "score_tanh": layer.get("activation") == "tanh",
        "score_scale": 1.0 if layer.get("scale") is None else finite(layer, "scale"),
        "stay_score": finite(layer, "blank_score"),
        "state_len": whole(layer, "state_len") if "state_len" in layer else None,
    }
