"""Lists a network's tensors: their published names, their shapes, and their names in our modules."""

from typing import NamedTuple

from porestream.models.files.config import ModelConfig


class TensorPlace(NamedTuple):
    """A tensor's shape, and its name in the module of models/call/network.py."""

    shape: tuple[int, ...]
    ours: str


def tensor_places(config: ModelConfig) -> dict[str, TensorPlace]:
    """Map the published name of every tensor of a model to its place, in the network's order."""
    layers, encoder, places = config.layers, config.layers.encoder, dict[str, TensorPlace]()
    for index, layer in enumerate(layers.convolutions):
        name = f"{encoder.convolution_name(index)}.conv"
        places[f"{name}.weight"] = TensorPlace((layer.outs, layer.ins, layer.winlen), f"convs.{index}.weight")
        places[f"{name}.bias"] = TensorPlace((layer.outs,), f"convs.{index}.bias")
    first = len(layers.convolutions) + 1  # after the permutation
    for name, (ours, shape) in encoder.tensors(first).items():
        places[name] = TensorPlace(shape, f"encoder.{ours}")
    number, width = first + encoder.layer_count, encoder.width
    if layers.bottleneck:
        places |= _linear(encoder.linear_name(number), "bottleneck", layers.bottleneck, width, layers.bottleneck_bias)
        number, width = number + 1, layers.bottleneck
    return places | _linear(encoder.linear_name(number), "linear", config.score_count, width, layers.linear_bias)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Map the published name of every tensor of a model to its shape, in the network's order."""
    return {name: place.shape for name, place in tensor_places(config).items()}


def _linear(name: str, ours: str, outs: int, ins: int, bias: bool) -> dict[str, TensorPlace]:
    places = {f"{name}.linear.weight": TensorPlace((outs, ins), f"{ours}.weight")}
    return places | ({f"{name}.linear.bias": TensorPlace((outs,), f"{ours}.bias")} if bias else {})
