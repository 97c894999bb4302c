"""Reads a network's layers from config.toml, which has three formats, into one description.

v3 gives sizes only, v4 and later list every layer of an LSTM network, and the v5 sup models name the parts of a
transformer. Any other layer is refused by name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from porestream.models.networks.config_values import Unsupported, finite, whole
from porestream.models.networks.encoder import Encoder
from porestream.models.networks.flstm import SOFT_OUTPUT, LowRankLstms
from porestream.models.networks.lstm import Lstms
from porestream.models.networks.transformer import Transformer

_ACTIVATIONS = ("swish", "tanh")

LISTED: dict[str, Callable[[list[dict[str, Any]], int], Encoder]] = {
    "lstm": Lstms.listed,
    "flstm": LowRankLstms.listed,
    SOFT_OUTPUT: LowRankLstms.listed,
}
"""Encoders that v4 and later list layer by layer: maps a layer type to a function of those layers and their width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """A convolution over time, zero-padded by half its window, followed by an activation and an optional clamp.

    `activation` is "swish" (SiLU) or "tanh"; `limits` are those of the clamp.
    """

    ins: int
    outs: int
    winlen: int
    stride: int = 1
    activation: str = "swish"
    limits: tuple[float, float] | None = None
    batch_norm: bool = False
    """Whether the layer was trained with batch norm; dorado's directories have it fused into the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """A network's layers, first to last: convolutions; LSTMs or a transformer; linear layers that give CRF scores.

    Attributes
    ----------
    encoder
        The LSTMs or the transformer.
    bottleneck, bottleneck_bias
        Width of the linear layer before the last one (0: none), and whether it has a bias.
    linear_bias
        Whether the last layer has a bias.
    score_tanh, score_scale, score_limit
        Scores are the last layer's output, or its tanh, times the scale, clamped to +-limit (inf: no clamp).
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
        """Samples per time step of the encoder, before any upsampling."""
        return math.prod(layer.stride for layer in self.convolutions)

    @property
    def stride(self) -> int:
        """Samples per time step of the scores."""
        return self.coarse_stride // self.encoder.upsampling


def v3_layers(encoder: dict[str, Any]) -> Layers:
    """Read the [encoder] table of a v3 model, which gives sizes only."""
    for key, only in (("rnn_type", "lstm"), ("activation", "swish"), ("norm", None)):
        if encoder.get(key, only) != only:
            raise Unsupported(f"[encoder] {key} = {encoder[key]!r} is not supported, only {only!r}")
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
    """Read [[encoder.sublayers]] of v4 and later: convolutions, permute, LSTMs, linear layers, clamps in between."""
    left = _sublayers(tables)
    convolutions = _convolutions(left)
    _one(left, "permute")
    width, kind = convolutions[-1].outs, left[0]["type"] if left else ""
    if kind not in LISTED:
        raise Unsupported(f"expected {' or '.join(LISTED)} layers, found {left[0] if left else 'the end of the list'}")
    layers = []
    while left and left[0]["type"] == kind:
        layers.append(left.pop(0))
    if left and left[0]["type"] in LISTED:
        raise Unsupported(f"{kind} and {left[0]['type']} layers cannot be mixed")
    encoder = LISTED[kind](layers, width)
    bottleneck, bottleneck_bias = 0, False
    if left and left[0]["type"] == "linear":
        layer = left.pop(0)
        if whole(layer, "in_features") != width:
            raise Unsupported(f"the linear layer's in_features must be {width}, the encoder's width: {layer}")
        bottleneck = whole(layer, "out_features")
        bottleneck_bias = bool(layer.get("bias", width > 128))  # dorado's rule
    crf = _one(left, "linearcrfencoder")
    limit = math.inf
    if left and left[0]["type"] == "clamp":
        low, high = _limits(left.pop(0))
        if low != -high:
            raise Unsupported(f"the clamp of the scores must be symmetric, not {low:g} to {high:g}")
        limit = high
    if left:
        raise Unsupported(f"a layer is not supported at this position: {left[0]}")
    return Layers(
        convolutions=convolutions,
        encoder=encoder,
        bottleneck=bottleneck,
        bottleneck_bias=bottleneck_bias,
        score_limit=limit,
        **_crf(crf, bottleneck or width) | {"state_len": None},  # as in dorado, it comes from [global_norm]
    )


def transformer_layers(encoder: dict[str, Any]) -> Layers:
    """Read [model.encoder] of a v5 sup model: conv, transformer_encoder, upsample, crf."""
    if unknown := sorted(encoder.keys() - {"type", "conv", "transformer_encoder", "upsample", "crf"}):
        raise Unsupported(f"unknown key {unknown[0]} in [model.encoder]")
    left = _sublayers(encoder["conv"]["sublayers"])
    convolutions = _convolutions(left)
    if left and left[0]["type"] == "permute":
        left.pop(0)
    if left:
        raise Unsupported(f"a layer is not supported at this position: {left[0]}")
    crf = encoder["crf"]
    width, stride = convolutions[-1].outs, math.prod(layer.stride for layer in convolutions)
    transformer = Transformer.of_config(encoder["transformer_encoder"], encoder["upsample"], width, stride)
    if crf.get("type", "linearcrfencoder") != "linearcrfencoder":
        raise Unsupported(f"[model.encoder.crf] must be of type linearcrfencoder: {crf}")
    if "state_len" not in crf:
        raise KeyError("state_len")
    return Layers(convolutions=convolutions, encoder=transformer, **_crf(crf, width))


def _sublayers(tables: Any) -> list[dict[str, Any]]:
    """Return the listed layers as a list, after checking that each has a known type."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) and "type" in table for table in tables):
        raise Unsupported(f"sublayers must be a list of tables, each with a type, not {tables!r}")
    known = ("convolution", "clamp", "permute", *LISTED, "linear", "linearcrfencoder")
    for table in tables:
        if table["type"] not in known:
            raise Unsupported(f"layers of type {table['type']!r} are not supported; known types: {', '.join(known)}")
    return list(tables)


def _one(left: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    if not left or left[0]["type"] != kind:
        raise Unsupported(f"expected a {kind} layer, found {left[0] if left else 'the end of the list'}")
    return left.pop(0)


def _convolutions(left: list[dict[str, Any]]) -> tuple[Convolution, ...]:
    """Take the convolutions off the front of the list."""
    found: list[Convolution] = []
    while left and left[0]["type"] == "convolution":
        layer = left.pop(0)
        winlen, activation, norm = whole(layer, "winlen"), layer.get("activation"), layer.get("norm")
        if activation not in _ACTIVATIONS or whole(layer, "padding", 0) != winlen // 2 or winlen % 2 != 1:
            raise Unsupported(
                f"unsupported convolution {layer}: the activation must be {' or '.join(_ACTIVATIONS)}, winlen odd, and "
                "padding winlen // 2"
            )
        if norm not in (None, "batchnorm") or not layer.get("bias", True):
            raise Unsupported(f"unsupported convolution {layer}: it must have a bias, and batchnorm or no norm")
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
        raise Unsupported("the network has no convolutions")
    if found[0].ins != 1:
        raise Unsupported(f"the input has {found[0].ins} features: duplex models are not supported")
    for before, after in pairwise(found):
        if after.ins != before.outs:
            raise Unsupported(f"convolutions do not fit together: {before.outs} outs, then {after.ins} ins")
    return tuple(found)


def _limits(clamp: dict[str, Any]) -> tuple[float, float]:
    low, high = finite(clamp, "min"), finite(clamp, "max")
    if not low < high:
        raise Unsupported(f"a clamp's min must be less than its max, not {low:g} and {high:g}")
    return low, high


def _crf(layer: dict[str, Any], width: int) -> dict[str, Any]:
    """Return the fields of `Layers` that the score layer determines."""
    if whole(layer, "insize") != width or whole(layer, "n_base", 4) != 4:
        raise Unsupported(f"the score layer must have n_base = 4 and insize = {width}: {layer}")
    if layer.get("activation") not in (None, "tanh"):
        raise Unsupported(f"the score layer's activation must be tanh or none, not {layer['activation']!r}")
    if layer.get("blank_score") is None:
        raise Unsupported("the score layer has no blank_score; networks that output the stay score are not supported")
    return {
        "linear_bias": bool(layer.get("bias", False)),
        "score_tanh": layer.get("activation") == "tanh",
        "score_scale": 1.0 if layer.get("scale") is None else finite(layer, "scale"),
        "stay_score": finite(layer, "blank_score"),
        "state_len": whole(layer, "state_len") if "state_len" in layer else None,
    }
