"""Model directories made to exhaust memory or time: each is refused by name, before anything is unpacked or built."""

import io
import json
import random
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from shapes import SHAPES, Shape, write_shape
from torch import nn

from porestream.models.call.cpu_runner import CpuRunner
from porestream.models.files.bundle import load_bundle
from porestream.models.files.config import ModelError, load_config
from porestream.models.files.pickled import FLOATING, UnsafeWeights, described
from porestream.models.networks.config_values import LIMITS
from porestream.models.networks.transformer import Transformer

TINY = Shape(release="v4", features=16, state_len=2, stride=5, winlen=9, chunk_size=1200, overlap=120)


def edit(directory: Path, old: str, new: str) -> Path:
    config = directory / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    return directory


def refused(directory: Path, reason: str) -> None:
    """Quickly, and in little memory."""
    before_kib, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelError, match=reason) as error:
        load_bundle(directory)
    assert str(directory) in str(error.value)
    assert time.monotonic() - began_s < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 << 10


def repacked(file: Path, compression: int, more: dict[str, int]) -> None:
    """The archive again, with records of so many zeros."""
    data = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(data, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        folder = old.namelist()[0].partition("/")[0]
        for name, size in more.items():
            with new.open(f"{folder}/{name}", "w", force_zip64=True) as record:
                for _ in range(size >> 20):
                    record.write(bytes(1 << 20))
    file.write_bytes(data.getvalue())


def test_a_checkpoint_that_inflates_is_refused(tmp_path: Path) -> None:
    directory = write_shape(TINY, tmp_path / "model", container="bonito")
    weights = directory / "weights_1.tar"
    plain = weights.read_bytes()
    repacked(weights, zipfile.ZIP_DEFLATED, {"data/999": 400 << 20})
    assert weights.stat().st_size < 1 << 20
    refused(directory, r"weights_1\.tar: refused: .*the records would unpack to 419,\d{3},\d{3} bytes, but")
    weights.write_bytes(plain)
    repacked(weights, zipfile.ZIP_DEFLATED, {})
    refused(directory, r"weights_1\.tar: refused: .* is compressed, but torch never compresses data")
    weights.write_bytes(plain)
    repacked(weights, zipfile.ZIP_STORED, {"data/999": 4 << 20})
    refused(directory, r"the weights have 4,.* bytes, but the network in config\.toml needs at most")


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many entries of the directory that lead to one record: each may be as large as the file."""
    directory = write_shape(TINY, tmp_path / "model", container="bonito")
    weights = directory / "weights_1.tar"
    with zipfile.ZipFile(weights, "a") as archive:
        archive.writestr("weights_1/data/99", bytes(500_000))
        info = archive.getinfo("weights_1/data/99")
        for number in range(100, 500):
            copy = zipfile.ZipInfo(f"weights_1/data/{number}")
            copy.header_offset, copy.CRC = info.header_offset, info.CRC
            copy.file_size = copy.compress_size = info.file_size
            archive.filelist.append(copy)
    refused(directory, "the records would unpack to")


@pytest.mark.parametrize("size", [(600_000_000,), (1 << 62,), (-3,), ("x",), ((1, 2),)])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path, size: tuple[object, ...]) -> None:
    directory = write_shape(TINY, tmp_path / "model", container="bonito")
    weights = directory / "weights_1.tar"
    state = torch.load(weights)

    class Liar:
        def __reduce__(self) -> tuple[object, ...]:
            storage = torch.zeros(12).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, 0, size, (1,), False, {})

    state[next(iter(state))] = Liar()
    torch.save(state, weights)
    refused(directory, r"weights_1\.tar: (does not fit|refused)")


def test_a_state_dictionary_as_modules_have_it_is_read(tmp_path: Path) -> None:
    """With versions of its layers as state, and several tensors in one storage, as cuDNN's LSTMs have them."""
    directory = write_shape(TINY, tmp_path / "model", container="bonito")
    weights = directory / "weights_1.tar"
    expected = load_bundle(directory)
    state = torch.load(weights)
    together = torch.cat([tensor.flatten() for tensor in state.values() if tensor.dtype == torch.float32])
    holder, first = nn.Module(), 0
    for number, tensor in enumerate(state.values()):
        view = tensor
        if tensor.dtype == torch.float32:
            view = together[first : first + tensor.numel()].view(tensor.shape)
            first += tensor.numel()
        holder.register_buffer(f"t{number}", view)
    torch.save(holder.state_dict(), weights)
    assert hasattr(holder.state_dict(), "_metadata")
    assert load_bundle(directory).sha256 == expected.sha256
    torch.save(state, weights, _use_new_zipfile_serialization=False)
    refused(directory, "not a ZIP archive; if PyTorch older than 1.6 wrote it")


STORAGE = b"X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\x0c"


def tuples(depth: int) -> bytes:
    """A tuple of twice the tuple of twice the tuple..."""
    return b")" + b"".join(b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86" for number in range(depth))


@pytest.mark.parametrize(
    "pickled",
    [
        b"}" + tuples(60) + b"Ns",  # as a key: its hash takes 2**60 steps
        b"(" + tuples(60) + b"NNNNtQ",  # as a kind of storage, and what follows as size: so does its text
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + STORAGE + b"tQK\0" + tuples(60) + tuples(60) + b"tR",
        b"c__builtin__\nbytearray\n(\x8a\x05\x00\x00\x00\x00\x02tR",
    ],
)
def test_a_pickle_that_grows_is_refused(pickled: bytes) -> None:
    began_s = time.monotonic()
    with pytest.raises(UnsafeWeights):
        described(b"\x80\x02" + pickled + b".", FLOATING)
    assert time.monotonic() - began_s < 1


def test_a_safetensors_header_that_is_too_large_is_refused(tmp_path: Path) -> None:
    directory = write_shape(TINY, tmp_path / "model")
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    header |= {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_000)}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(directory, r"model\.safetensors: the header has 1,\d+,\d+ bytes; the limit is")
    file.write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
    refused(directory, "the header has")
    file.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    refused(directory, "recursion")


@pytest.mark.parametrize(
    ("shape", "old", "key", "value", "limits"),
    [
        ("tiny v3", "[encoder]\n", "num_layers", 10**9, "1 to 64"),
        ("tiny v3", "features = 16\n", "features", 10**6, "1 to 8,192"),
        ("tiny v3", "winlen = 19\n", "winlen", 10**7 + 1, "1 to 1,001"),
        ("tiny v3", "stride = 5\n", "stride", 10**8, "1 to 1,000"),
        ("tiny v3", "chunksize = 1200\n", "chunksize", 10**10, "1 to 200,000"),
        ("tiny v3", "overlap = 120\n", "overlap", 10**10, "0 to 200,000"),
        ("tiny v4", "insize = 1\n", "insize", 2**40, "1 to 8,192"),
        ("tiny v4", "state_len = 3\n", "state_len", 30, "1 to 6"),
        ("tiny sup v4", "out_features = 8\n", "out_features", 2**31, "1 to 8,192"),
        ("tiny sup v5", "depth = 2\n", "depth", 10**9, "1 to 256"),
        ("tiny sup v5", "d_model = 32\n", "d_model", 2**20, "1 to 8,192"),
        ("tiny sup v5", "nhead = 4\n", "nhead", 2**20, "1 to 256"),
        ("tiny sup v5", "dim_feedforward = 128\n", "dim_feedforward", 2**40, "1 to 65,536"),
        ("tiny sup v5", "attn_window = [7, 8]\n", "attn_window", [7, 2**40], "0 to 65,536"),
        ("tiny sup v5", "scale_factor = 2\n", "scale_factor", 2**40, "1 to 64"),
    ],
)
def test_numbers_beyond_any_model_are_refused(
    tmp_path: Path, shape: str, old: str, key: str, value: object, limits: str
) -> None:
    keep = old if old.startswith("[") else ""
    directory = edit(write_shape(shape, tmp_path / "model"), old, f"{keep}{key} = {value}\n")
    shown = value[1] if isinstance(value, list) else value
    refused(directory, rf"config\.toml: {key} = {shown} is out of range: {limits}")


@pytest.mark.parametrize("name", SHAPES)
def test_published_models_are_far_from_the_limits(tmp_path: Path, name: str) -> None:
    config = load_config(write_config(SHAPES[name], tmp_path))
    layers = config.layers
    assert layers.encoder.width * 8 <= LIMITS["features"][1]
    assert config.chunk_size * 8 <= LIMITS["chunksize"][1]
    assert max(layer.winlen for layer in layers.convolutions) * 8 <= LIMITS["winlen"][1]
    if isinstance(layers.encoder, Transformer):
        assert layers.encoder.depth * 8 <= LIMITS["depth"][1]
        assert layers.encoder.hidden * 8 <= LIMITS["dim_feedforward"][1]


def write_config(shape: Shape, directory: Path) -> Path:
    from shapes import _toml, shape_config

    (directory / "config.toml").write_text("\n".join(_toml(shape_config(shape), "")) + "\n")
    return directory


def test_a_network_larger_than_its_weights_is_refused(tmp_path: Path) -> None:
    directory = edit(
        write_shape("tiny v3", tmp_path / "model"), "features = 16\n", "features = 8192\nnum_layers = 64\n"
    )
    refused(directory, r"the weights have \d+,\d+ bytes, but config\.toml describes 34,\d+,\d+,\d+ parameters")


@pytest.mark.parametrize(
    "text",
    [
        "a." * 150_000 + "b = 1",
        "a." * 15_000 + "b = 1",
        "\n".join(["a." * 999 + "b = 1"] * 2),
        "x = " + "[\n" * 30_000,
        "x = " + "\n".join(["{a=" * 600] * 30),
        "#" + "\n" * 70_000,
        "x = 0x" + "f" * 1_900,
        "x = " + "9" * 1_900,
        'x = """\n' + "\\\n" * 30_000,
    ],
)
def test_a_config_of_absurd_size_or_nesting_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    refused(tmp_path, r"config\.toml: ")


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.toml").open("w") as file:
        file.truncate(20 << 30)
    refused(tmp_path, "longer than 65,536 characters")


def test_a_batch_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = edit(write_shape("tiny v3", tmp_path / "model"), "chunksize = 1200\n", "chunksize = 200000\n")
    bundle = load_bundle(directory)
    monkeypatch.setattr("porestream.models.call.cpu_runner.host_memory_bytes", lambda: 100 << 20)
    with pytest.raises(ModelError, match=r"chunksize = 200000 is too long: .* bytes, more than half of"):
        CpuRunner(bundle, "fp32")


@pytest.mark.parametrize("container", ["bonito", "safetensors", "dorado"])
def test_damaged_weights_are_read_or_refused(tmp_path: Path, container: str) -> None:
    """Bytes that are flipped, and files that end too soon: a model, or a `ModelError`, in little memory."""
    directory = write_shape(TINY, tmp_path / "model", container=container)
    pattern = {"bonito": "weights_1.tar", "safetensors": "model.safetensors", "dorado": "9.linear.weight.tensor"}
    file = directory / pattern[container]
    whole = file.read_bytes()
    rng = random.Random(18)
    load_bundle(directory)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = {"read": 0, "refused": 0}
    structure = [place for place, byte in enumerate(whole) if place < 4000 or place > len(whole) - 6000]
    for trial in range(120 if container != "dorado" else 40):
        data = bytearray(whole)
        if trial % 4 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randint(0 if trial % 4 == 0 else 1, 4)):
            place = rng.choice(structure) if rng.random() < 0.8 else rng.randrange(len(whole))
            if place < len(data):
                data[place] = rng.choice((data[place] ^ 1 << rng.randrange(8), 0, 255))
        file.write_bytes(data)
        try:
            bundle = load_bundle(directory)
            assert all(np.isfinite(tensor.numpy()).all() for tensor in bundle.tensors.values())
            ends["read"] += 1
        except ModelError:
            ends["refused"] += 1
    assert min(ends.values()) > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 << 10


def test_damaged_configs_are_read_or_refused(tmp_path: Path) -> None:
    """Numbers and words of a config that are replaced by others: a config, or a `ModelError`."""
    rng = random.Random(18)
    odd = ["0", "-1", "1e300", "nan", "inf", "9" * 30, "true", '"x"', "[]", "{}", "[[]]", "1.5", "2", "3", "1979-05-27"]
    for name in ("tiny v3", "tiny sup v4", "tiny sup v5"):
        lines = (write_shape(name, tmp_path / name) / "config.toml").read_text().splitlines()
        for _ in range(150):
            changed = list(lines)
            for _ in range(rng.randint(1, 2)):
                place = rng.randrange(len(changed))
                key, equals, _ = changed[place].partition(" = ")
                changed[place] = f"{key} = {rng.choice(odd)}" if equals and rng.random() < 0.9 else ""
            (tmp_path / name / "config.toml").write_text("\n".join(changed))
            try:
                load_bundle(tmp_path / name)
            except ModelError:
                continue
