"""Write model directories of every supported format with random weights, in the published models' sizes and tiny ones.

For tests and benchmarks: `write_shape("hac v4.3", folder / "hac", seed=1)`. The configs are generated from the sizes
here. The weights are chosen so that scores vary over their range (with a deviation of about 2) without saturating.

Dimensions of tensors: O outputs, I inputs, K kernel.
"""

import json
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[np.float32]]
CONTAINERS = ("safetensors", "dorado", "bonito")
BASES = 4
_NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Format and sizes of a network; `depth`, `heads` and `window` apply to a transformer.

    Attributes
    ----------
    release
        The format: "v3" (sizes only), "v4" (each layer listed), "v4.2" (clamps after the convolutions), "v4.3" (tanh
        after the last convolution, signal in pA), "v6" (low-rank LSTMs, scores by tanh) or "v5" (a transformer).
    features
        Width of the LSTMs or the transformer.
    stride
        Samples per time step of the LSTMs; a transformer's convolutions always have 12.
    bottleneck
        Width of the linear layer before the last one; 0: none.
    lstms, inner
        How many LSTMs; inner width of low-rank ones, 0: ordinary.
    """

    release: str
    features: int
    state_len: int
    stride: int = 6
    winlen: int = 19
    bottleneck: int = 0
    lstms: int = 5
    inner: int = 0
    depth: int = 18
    heads: int = 8
    window: tuple[int, int] = (127, 128)
    chunk_size: int = 12_000
    overlap: int = 600


SHAPES = {
    "fast v3": Shape(release="v3", features=96, state_len=3, stride=5),
    "hac v3": Shape(release="v3", features=384, state_len=4, stride=5),
    "fast v4": Shape(release="v4", features=96, state_len=3, stride=5),
    "hac v4": Shape(release="v4", features=384, state_len=4, stride=5),
    "fast v4.2": Shape(release="v4.2", features=96, state_len=3),
    "hac v4.2": Shape(release="v4.2", features=384, state_len=4),
    "fast v4.3": Shape(release="v4.3", features=96, state_len=3),
    "hac v4.3": Shape(release="v4.3", features=384, state_len=4),
    "sup v4": Shape(release="v4.2", features=1024, state_len=5, stride=5, bottleneck=256),
    "sup v5": Shape(release="v5", features=512, state_len=5),
    "hac v6": Shape(release="v6", features=1024, state_len=4, bottleneck=128, lstms=7, inner=128),
    "tiny v3": Shape(release="v3", features=16, state_len=2, stride=5, chunk_size=1200, overlap=120),
    "tiny v4": Shape(release="v4", features=16, state_len=3, stride=5, winlen=9, chunk_size=1200, overlap=120),
    "tiny v4.2": Shape(release="v4.2", features=24, state_len=2, chunk_size=1200, overlap=120),
    "tiny v4.3": Shape(release="v4.3", features=16, state_len=2, chunk_size=1200, overlap=120),
    "tiny sup v4": Shape(release="v4.2", features=16, state_len=2, bottleneck=8, chunk_size=1200, overlap=120),
    "tiny v6": Shape(
        release="v6", features=32, state_len=2, bottleneck=8, lstms=3, inner=8, chunk_size=1200, overlap=120
    ),
    "tiny sup v5": Shape(
        release="v5", features=32, state_len=2, depth=2, heads=4, window=(7, 8), chunk_size=1920, overlap=192
    ),
}


def shape_config(shape: Shape) -> dict[str, Any]:
    """Return the tables of the shape's config.toml."""
    config: dict[str, Any] = {"model": {"package": "bonito.crf"}, "input": {"features": 1}}
    config["labels"] = {"labels": ["N", "A", "C", "G", "T"]}
    if shape.release == "v3":
        config["global_norm"] = {"state_len": shape.state_len}
        config["encoder"] = {"stride": shape.stride, "winlen": shape.winlen, "scale": 5.0, "features": shape.features}
        config["encoder"] |= {"rnn_type": "lstm", "activation": "swish", "blank_score": 2.0, "first_conv_size": 4}
    elif shape.release == "v5":
        alphabet = config.pop("labels")["labels"]
        config["model"] = {"package": "bonito.transformer", "type": "seqdistmodel"}
        config["model"]["seqdist"] = {"state_len": shape.state_len, "alphabet": alphabet}
        config["model"]["encoder"] = _transformer(shape)
    else:
        config["global_norm"] = {"state_len": shape.state_len}
        config["encoder"] = {"type": "serial", "sublayers": _listed(shape)}
    if shape.release in ("v4.3", "v5", "v6"):
        config["scaling"] = {"strategy": "pa"}
        config["standardisation"] = {"standardise": 1, "mean": 93.7, "stdev": 23.5}
        config["run_info"] = {"sample_rate": 5000}
    config["basecaller"] = {"chunksize": shape.chunk_size, "overlap": shape.overlap}
    return config


def shape_tensors(shape: Shape, seed: int) -> Tensors:
    """Make random weights under dorado's names, with fused batch norms, float32."""
    rng = np.random.default_rng(seed)

    def normal(gain: float, *size: int) -> npt.NDArray[np.float32]:
        return (rng.standard_normal(size) * gain / math.sqrt(math.prod(size[1:]))).astype(np.float32)

    prefix = "conv." if shape.release == "v5" else ""
    tensors: Tensors = {}
    for index, (ins, outs, winlen, _) in enumerate(_convolution_sizes(shape)):
        tensors[f"{prefix}{index}.conv.weight"] = normal(1.8, outs, ins, winlen)
        tensors[f"{prefix}{index}.conv.bias"] = normal(0.2, outs)
    F, scores = shape.features, BASES ** (shape.state_len + 1)
    if shape.release == "v5":
        for index in range(shape.depth):
            name = f"transformer_encoder.{index}"
            tensors[f"{name}.self_attn.Wqkv.weight"] = normal(1.5, 3 * F, F)
            tensors[f"{name}.self_attn.out_proj.weight"] = normal(1.0, F, F)
            tensors[f"{name}.self_attn.out_proj.bias"] = normal(0.2, F)
            tensors[f"{name}.ff.fc1.weight"] = normal(1.4, 8 * F, F)
            tensors[f"{name}.ff.fc2.weight"] = normal(1.4, F, 4 * F)
            for norm in ("norm1", "norm2"):
                tensors[f"{name}.{norm}.weight"] = 1 + normal(0.2, F)
        tensors["upsample.linear.weight"] = normal(1.0, 2 * F, F)
        tensors["upsample.linear.bias"] = normal(0.2, 2 * F)
        tensors["crf.linear.weight"] = normal(0.4, scores, F)
        return tensors
    for index in range(4, 4 + shape.lstms):
        for part, gain in (("ih", 3.0 if index == 4 or shape.inner else 4.0), ("hh", 1.0)):
            name = f"{index}.rnn"
            if shape.inner:
                tensors[f"{name}.dn_weight_{part}"] = normal(1.0, shape.inner, F)
                tensors[f"{name}.up_weight_{part}"] = normal(gain, 4 * F, shape.inner)
                tensors[f"{name}.up_bias_{part}"] = normal(0.2, 4 * F)
            else:
                tensors[f"{name}.weight_{part}_l0"] = normal(gain, 4 * F, F)
                tensors[f"{name}.bias_{part}_l0"] = normal(0.2, 4 * F)
    last = 4 + shape.lstms
    if shape.bottleneck:
        tensors[f"{last}.linear.weight"] = normal(2.0, shape.bottleneck, F)
        if shape.release != "v6":
            tensors[f"{last}.linear.bias"] = normal(0.2, shape.bottleneck)
        last += 1
    ins = shape.bottleneck or F
    gain = {"v3": 1.3, "v6": 0.9}.get(shape.release, 2.5 if ins < F else 5.0)  # tanh and scale come after the first two
    tensors[f"{last}.linear.weight"] = normal(gain, scores, ins)
    if shape.release == "v3":
        tensors[f"{last}.linear.bias"] = normal(0.1, scores)
    return tensors


def write_shape(shape: Shape | str, directory: Path, seed: int = 1, container: str = "safetensors") -> Path:
    """Write a model directory.

    Parameters
    ----------
    shape
        The name of one of SHAPES, or any other shape.
    container
        "safetensors": model.safetensors; "dorado": a TorchScript file per tensor; "bonito": weights_1.tar, with
        bonito's names and with separate batch norms, which the others have fused.

    Returns
    -------
    Path
        `directory`.
    """
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    directory.mkdir(parents=True, exist_ok=True)
    config, tensors = shape_config(shape), shape_tensors(shape, seed)
    (directory / "config.toml").write_text("\n".join(_toml(config, "")) + "\n")
    if container == "safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, directory / "model.safetensors")
    elif container == "dorado":
        for name, tensor in tensors.items():
            write_torchscript(directory / f"{name}.tensor", tensor)
    elif container == "bonito":
        import torch  # imported here and below, because it takes a second that configs don't need

        state = {name: torch.as_tensor(tensor) for name, tensor in _bonito_state(shape, tensors, seed).items()}
        torch.save(state, directory / "weights_1.tar")
    else:
        raise ValueError(f"container {container!r} is not one of {', '.join(CONTAINERS)}")
    return directory


def write_torchscript(file: Path, tensor: npt.NDArray[np.float32]) -> None:
    """Write a tensor as in dorado's directories: as the only parameter of a scripted module."""
    import torch

    module = torch.nn.Module()
    module.register_parameter("0", torch.nn.Parameter(torch.from_numpy(tensor), requires_grad=False))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.jit.script(module).save(str(file))  # type: ignore[no-untyped-call]


def _convolution_sizes(shape: Shape) -> list[tuple[int, int, int, int]]:
    """Return the inputs, outputs, window and stride of each convolution."""
    F = shape.features
    if shape.release == "v5":
        widths, winlens, strides = [1, F // 8, F // 8, F // 4, F // 4, F], [5, 5, 9, 9, 5], [1, 1, 3, 2, 2]
    else:
        first = 4 if shape.release == "v3" else 16
        widths, winlens, strides = [1, first, 16, F], [5, 5, shape.winlen], [1, 1, shape.stride]
    pairs = zip(pairwise(widths), winlens, strides, strict=True)
    return [(ins, outs, winlen, stride) for (ins, outs), winlen, stride in pairs]


def _convolutions(shape: Shape) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = []
    sizes = _convolution_sizes(shape)
    for ins, outs, winlen, stride in sizes:
        layers.append({"type": "convolution", "insize": ins, "size": outs, "bias": True, "winlen": winlen})
        layers[-1] |= {"stride": stride, "padding": winlen // 2, "activation": "swish", "norm": "batchnorm"}
        if shape.release == "v4.2":
            layers.append({"type": "clamp", "min": -0.5, "max": 3.5})
    if shape.release in ("v4.3", "v6"):
        layers[-1]["activation"] = "tanh"
    return layers


def _listed(shape: Shape) -> list[dict[str, Any]]:
    F, layers = shape.features, _convolutions(shape)
    layers.append({"type": "permute", "dims": [2, 0, 1]})
    for index in range(shape.lstms):
        layers.append({"type": "lstm", "size": F, "insize": F, "bias": True, "reverse": 1 - index % 2})
        if shape.inner:
            layers[-1] |= {"type": "flstm_softout", "inner_dim": shape.inner}
    if shape.bottleneck:
        layers.append({"type": "linear", "in_features": F, "out_features": shape.bottleneck})
        layers[-1] |= {"bias": shape.release != "v6"}
    layers.append({"type": "linearcrfencoder", "insize": shape.bottleneck or F, "n_base": BASES})
    layers[-1] |= {"state_len": shape.state_len, "bias": False, "blank_score": 2.0}
    if shape.release == "v6":
        layers[-1] |= {"activation": "tanh", "scale": 5.0}
    else:
        layers.append({"type": "clamp", "min": -5.0, "max": 5.0})
    return layers


def _transformer(shape: Shape) -> dict[str, Any]:
    F = shape.features
    layer = {"type": "transformerencoderlayer", "d_model": F, "nhead": shape.heads, "dim_feedforward": 4 * F}
    layer |= {"deepnorm_alpha": 2.4494897, "deepnorm_beta": 0.2886751, "attn_window": list(shape.window)}
    crf = {"type": "linearcrfencoder", "insize": F, "n_base": BASES, "state_len": shape.state_len, "bias": False}
    return {
        "type": "namedserial",
        "conv": {"type": "serial", "sublayers": [*_convolutions(shape), {"type": "permute", "dims": [0, 2, 1]}]},
        "transformer_encoder": {"type": "stack", "depth": shape.depth, "layer": layer},
        "upsample": {"type": "linearupsample", "d_model": F, "scale_factor": 2},
        "crf": crf | {"scale": 5.0, "blank_score": 2.0, "expand_blanks": True, "permute": [1, 0, 2]},
    }


def _bonito_state(shape: Shape, tensors: Tensors, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return the same network as bonito's state dictionary, with random batch norms.

    The convolutions are such that fusing the batch norms into them gives ours. In formats that list the layers, a
    layer's number is its place in the list, including clamps.
    """
    if shape.release == "v3":
        return {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    rng = np.random.default_rng(seed + 1)
    places: dict[str, str] = {}
    if shape.release != "v5":
        kinds = [layer["type"] for layer in _listed(shape)]
        ours = [place for place, kind in enumerate(kinds) if kind != "clamp"]
        places = {str(number): str(place) for number, place in enumerate(ours)}
    state: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        theirs = f"encoder.{places.get(number, number)}.{rest}"
        if name.endswith("self_attn.Wqkv.weight"):
            state[theirs.replace("self_attn.Wqkv.weight", "deepnorm_alpha")] = np.array(2.4494897, np.float32)
        state[theirs] = tensor
        if name.endswith(".conv.bias"):
            norm, weight = theirs.removesuffix("conv.bias") + "norm.bn", theirs.removesuffix("bias") + "weight"
            gain_O, variance_O = (rng.uniform(0.5, 2.0, tensor.shape).astype(np.float32) for _ in range(2))
            shift_O, mean_O = (rng.normal(0, 0.5, tensor.shape).astype(np.float32) for _ in range(2))
            factor_O = np.sqrt(variance_O.astype(np.float64) + _NORM_EPSILON) / gain_O
            state[weight] = (state[weight] * factor_O[:, None, None]).astype(np.float32)
            state[theirs] = ((tensor - shift_O) * factor_O + mean_O).astype(np.float32)
            state |= {f"{norm}.weight": gain_O, f"{norm}.bias": shift_O}
            state |= {f"{norm}.running_mean": mean_O, f"{norm}.running_var": variance_O}
            state[f"{norm}.num_batches_tracked"] = np.array(1000, np.int64)
    return state


def _toml(table: dict[str, Any], path: str) -> list[str]:
    """Return the lines of a table: values first, then tables and arrays of tables."""
    lines, below = [], []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            below += [f"\n[{name}]", *_toml(value, name)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            below += [line for item in value for line in (f"\n[[{name}]]", *_toml(item, name))]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return lines + below
