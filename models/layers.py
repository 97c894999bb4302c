"""What a network consists of: the three ways in which config.toml lists layers, read into one description.

v3 names sizes only, v4 and later list every layer of an LSTM network, and the v5 sup models name the parts of a
transformer. What else a config lists is refused by name.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_ACTIVATIONS = ("swish", "tanh")
_ROTARY_BASE, _MAX_SEQ_LEN = 10_000.0, 2048

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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Transformer:
    """The encoder of v5 sup models and the upsampling behind it.

    Attributes
    ----------
    depth, width, heads, hidden
        Layers; features; attention heads; features between the two linear layers of SwiGLU.
    alpha
        Of DeepNorm: x -> RMSNorm(f(x) + alpha x).
    window
        Steps back and ahead that a step attends to.
    rotary_base
        Of the rotary embedding's angles t base^(-2 i / D).
    upsampling
        Time steps that each one becomes.
    """

    depth: int
    width: int
    heads: int
    hidden: int
    alpha: float
    window: tuple[int, int]
    rotary_base: float
    upsampling: int


@dataclass(frozen=True, slots=True)
class Layers:
    """A network's layers, first to last: convolutions; LSTMs or a transformer; linear layers of CRF scores.

    Attributes
    ----------
    reverse
        Of each LSTM, whether it runs against time; empty for a transformer.
    bottleneck, bottleneck_bias
        Width of a linear layer before the last one (0: none), and whether it has a bias.
    linear_bias
        Whether the last layer has one.
    score_tanh, score_scale, score_limit
        Scores are the last layer's, or their tanh; times the scale; clamped to +-limit (inf: not).
    """

    convolutions: tuple[Convolution, ...]
    reverse: tuple[bool, ...] = ()
    transformer: Transformer | None = None
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
    def width(self) -> int:
        """Features of LSTMs or transformer."""
        return self.convolutions[-1].outs

    @property
    def coarse_stride(self) -> int:
        """Samples a time step of LSTMs or transformer, before any upsampling."""
        return math.prod(layer.stride for layer in self.convolutions)

    @property
    def stride(self) -> int:
        """Samples a time step of the scores."""
        return self.coarse_stride // (self.transformer.upsampling if self.transformer else 1)


def v3_layers(encoder: dict[str, Any]) -> Layers:
    """[encoder] of v3: sizes only."""
    for key, only in (("rnn_type", "lstm"), ("activation", "swish"), ("norm", None)):
        if encoder.get(key, only) != only:
            raise Unsupported(f"[encoder] {key} = {encoder[key]!r} is not supported; only {only!r} is")
    first, count = whole(encoder, "first_conv_size", 4), whole(encoder, "num_layers", 5)
    return Layers(
        convolutions=(
            Convolution(1, first, 5),
            Convolution(first, 16, 5),
            Convolution(16, whole(encoder, "features"), whole(encoder, "winlen"), whole(encoder, "stride")),
        ),
        reverse=tuple((count - index) % 2 == 1 for index in range(count)),
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
    reverse = []
    width = convolutions[-1].outs
    while left and left[0]["type"] == "lstm":
        layer = left.pop(0)
        if (whole(layer, "size"), whole(layer, "insize")) != (width, width) or not layer.get("bias", True):
            raise Unsupported(f"an LSTM that is not {width} wide, as the last convolution is, or has no bias: {layer}")
        reverse.append(bool(layer.get("reverse", False)))
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
    if not reverse:
        raise Unsupported("no LSTM layers")
    return Layers(
        convolutions=convolutions,
        reverse=tuple(reverse),
        bottleneck=bottleneck,
        bottleneck_bias=bottleneck_bias,
        score_limit=limit,
        **_crf(crf, bottleneck or width),
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
    stack, upsample, crf = encoder["transformer_encoder"], encoder["upsample"], encoder["crf"]
    layer = stack["layer"]
    width = whole(layer, "d_model")
    for table, kind, ins in ((upsample, "linearupsample", "d_model"), (crf, "linearcrfencoder", "insize")):
        if table.get("type", kind) != kind or whole(table, ins) != width:
            raise Unsupported(f"not a {kind} of {width} features: {table}")
    if convolutions[-1].outs != width or layer.get("type", "transformerencoderlayer") != "transformerencoderlayer":
        raise Unsupported(f"a transformer layer that does not fit {convolutions[-1].outs} features: {layer}")
    if "theta" in layer and "rotary_base" in layer:
        raise Unsupported("theta and rotary_base both stand in the transformer's layer: they are the same")
    back, ahead = layer["attn_window"]
    transformer = Transformer(
        depth=whole(stack, "depth"),
        width=width,
        heads=whole(layer, "nhead"),
        hidden=whole(layer, "dim_feedforward"),
        alpha=finite(layer, "deepnorm_alpha"),
        window=(within_limits("attn_window", back), within_limits("attn_window", ahead)),
        rotary_base=finite(layer, "theta" if "theta" in layer else "rotary_base", _ROTARY_BASE),
        upsampling=whole(upsample, "scale_factor"),
    )
    found = Layers(convolutions=convolutions, transformer=transformer, **_crf(crf, width))
    _check_transformer(transformer, found.coarse_stride)
    return found


def max_steps(encoder: dict[str, Any]) -> int:
    """Most time steps that a transformer's config says that it was made for."""
    return whole(encoder["transformer_encoder"]["layer"], "max_seq_len", _MAX_SEQ_LEN)


def _check_transformer(transformer: Transformer, coarse_stride: int) -> None:
    if transformer.rotary_base <= 0:
        raise Unsupported(f"out of range: {transformer}")
    if transformer.width % (2 * transformer.heads):
        raise Unsupported(f"{transformer.width} features do not divide into {transformer.heads} heads of even width")
    if coarse_stride % transformer.upsampling:
        raise Unsupported(f"a stride of {coarse_stride} is not divisible by scale_factor = {transformer.upsampling}")


def _sublayers(tables: Any) -> list[dict[str, Any]]:
    """The listed layers, each of a known type."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) and "type" in table for table in tables):
        raise Unsupported(f"sublayers = {tables!r} is not a list of tables with a type each")
    known = ("convolution", "clamp", "permute", "lstm", "linear", "linearcrfencoder")
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
        found.append(Convolution(ins, outs, winlen, stride, activation, limits, norm is not None))
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
