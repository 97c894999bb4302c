"""Checkpoints of bonito's training runs: which one is read, how its tensors find their places, and what is refused."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from porestream.models.files.bundle import load_bundle
from porestream.models.files.config import ModelError

MakeBundle = Callable[..., Path]
State = dict[str, torch.Tensor]


@pytest.fixture
def plain(make_bundle: MakeBundle, tmp_path: Path) -> State:
    """Tensors of a tiny model whose config.toml lies in the folder `training`."""
    directory = make_bundle(tmp_path / "model", layers="listed", container="safetensors")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.toml").write_bytes((directory / "config.toml").read_bytes())
    tensors = load_file(directory / "model.safetensors")
    # A state dictionary has the order of the network, and safetensors the alphabet's.
    order = ("weight", "bias", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    places = {name: (int(name.split(".")[0]), order.index(name.split(".")[2])) for name in tensors}
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: places[name])}


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_last_epoch_is_read_whatever_its_tensors_are_called(plain: State, tmp_path: Path) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    for epoch, state in ((2, other), (9, other), (10, plain)):
        named = {f"module.encoder.{number}": tensor for number, tensor in enumerate(state.values())}
        torch.save(named, tmp_path / "training" / f"weights_{epoch}.tar")
    bundle = load_bundle(tmp_path / "training")
    assert same(bundle.tensors, plain)
    torch.save(plain, tmp_path / "training" / "weights_11.tar")
    assert load_bundle(tmp_path / "training").sha256 == bundle.sha256


def test_tensors_of_one_shape_keep_their_order(plain: State, tmp_path: Path) -> None:
    names = list(plain)
    first, second = names.index("5.rnn.weight_ih_l0"), names.index("7.rnn.weight_ih_l0")
    names[first], names[second] = names[second], names[first]
    torch.save({name: plain[name] for name in names}, tmp_path / "training" / "weights_1.tar")
    found = load_bundle(tmp_path / "training").tensors
    assert torch.equal(found["5.rnn.weight_ih_l0"], plain["7.rnn.weight_ih_l0"])
    assert torch.equal(found["7.rnn.weight_ih_l0"], plain["5.rnn.weight_ih_l0"])


@pytest.mark.parametrize("change", ["missing", "shape", "more"])
def test_a_checkpoint_of_another_network_is_refused(plain: State, tmp_path: Path, change: str) -> None:
    match change:
        case "missing":
            del plain["5.rnn.bias_ih_l0"]
        case "shape":
            plain["5.rnn.bias_ih_l0"] = torch.zeros(7)
        case "more":
            plain["more"] = torch.zeros(3)
    torch.save(plain, tmp_path / "training" / "weights_1.tar")
    with pytest.raises(ModelError, match=r"weights_1\.tar: does not fit config\.toml"):
        load_bundle(tmp_path / "training")


class Harmful:
    """Unpickles to a call."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


def archive(pickled: bytes) -> bytes:
    """What torch.save writes, around another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as folder:
        folder.writestr("weights/data.pkl", pickled)
        folder.writestr("weights/version", "3\n")
        folder.writestr("weights/byteorder", "little")
    return file.getvalue()


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("call", ["system", "eval", "load"])
def test_nothing_in_a_hostile_checkpoint_runs(plain: State, tmp_path: Path, call: str, wrapped: bool) -> None:
    witness = tmp_path / "witness"
    inner = pickle.dumps(Harmful(os.mkdir, str(witness)))
    harm = {
        "system": Harmful(os.mkdir, str(witness)),
        "eval": Harmful(eval, f"__import__('os').mkdir({str(witness)!r})"),
        "load": Harmful(pickle.loads, inner),
    }[call]
    pickled = pickle.dumps({"0.conv.weight": harm}, protocol=2)
    (tmp_path / "training" / "weights_1.tar").write_bytes(archive(pickled) if wrapped else pickled)
    with pytest.raises(ModelError, match=r"weights_1\.tar: refused: not a state dictionary of plain tensors"):
        load_bundle(tmp_path / "training")
    assert not witness.exists()
    pickle.loads(pickled)  # the harm is real: a reader that trusts the file does it
    assert witness.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"a": [torch.zeros(2)]}])
def test_what_holds_no_tensors_is_refused(plain: State, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "training" / "weights_1.tar")
    with pytest.raises(ModelError, match="not a state dictionary of plain tensors"):
        load_bundle(tmp_path / "training")


def test_weights_that_are_not_finite_are_refused(plain: State, tmp_path: Path) -> None:
    plain["5.rnn.bias_ih_l0"][3] = float("nan")
    torch.save(plain, tmp_path / "training" / "weights_1.tar")
    with pytest.raises(ModelError, match=r"5\.rnn\.bias_ih_l0 holds NaN or infinite values"):
        load_bundle(tmp_path / "training")
