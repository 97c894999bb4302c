"""Tensor files: what dorado writes is read, everything else is refused, and nothing in a file is ever run.

The hostile files are written by hand, instruction by instruction: no library would write them. Each that runs code, if
it is let, makes a marker file.
"""

import pickle
import resource
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from porestream.models.files.bundle import ModelError, load_bundle
from porestream.models.files.torchscript import UnsafeWeights, read_tensor

MODULE = b"c__torch__.torch.nn.modules.module\nModule\n)\x81"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"
VALUES = struct.pack("<12f", *range(12))
CODE = """class Module(Module):
  __parameters__ = ["0", ]
  __buffers__ = []
  __annotations__ = []
  __annotations__["0"] = Tensor
  training : bool
"""


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def storage(kind: str = "storage", dtype: bytes = FLOATS, key: bytes | None = None, length: int = 12) -> bytes:
    return group(text(kind), dtype, text("0") if key is None else key, text("cpu"), whole(length)) + b"Q"


def tensor(
    size: tuple[int, ...] = (3, 4), stride: tuple[int, ...] = (4, 1), offset: int = 0, of: bytes | None = None
) -> bytes:
    sizes, strides = (group(*map(whole, numbers)) for numbers in (size, stride))
    of = storage() if of is None else of
    return REBUILD + group(of, whole(offset), sizes, strides, b"\x89", b"ccollections\nOrderedDict\n)R") + b"R"


def module(parameter: bytes | None = None, before: bytes = b"") -> bytes:
    parameter = tensor() if parameter is None else parameter
    return b"\x80\x02" + before + MODULE + b"}(" + text("0") + parameter + text("training") + b"\x88ub."


def write(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    found = {"data.pkl": pickled, "data/0": VALUES, "code/__torch__/torch/nn/modules/module.py": CODE.encode()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (found | {"constants.pkl": b"\x80\x02).", "version": b"3\n"} | (records or {})).items():
            archive.writestr(f"weights/{name}", data)
    return path


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.tensor"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def save(holder: torch.nn.Module, file: Path) -> Path:
    torch.jit.script(holder).save(str(file))
    return file


def plain(value: torch.Tensor) -> torch.nn.Module:
    holder = torch.nn.Module()
    holder.register_parameter("0", torch.nn.Parameter(value, requires_grad=False))
    return holder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (300, 7), (2, 3, 5), (1, 1, 70000)])
def test_what_torch_saves_is_read(file: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    read = read_tensor(save(plain(value), file))
    assert read.dtype == dtype
    assert torch.equal(read, value)


def test_views_are_read_contiguous(file: Path) -> None:
    whole_tensor = torch.arange(60.0).reshape(3, 4, 5)
    for view in (whole_tensor.permute(2, 0, 1), whole_tensor[1:, :, 2], whole_tensor[2, ::2]):
        read = read_tensor(save(plain(view), file))
        assert read.is_contiguous()
        assert torch.equal(read, view)


def test_what_these_tests_write_by_hand_is_read(file: Path) -> None:
    expected = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(read_tensor(write(file, module())), expected)
    assert torch.equal(next(iter(torch.jit.load(write(file, module())).parameters())), expected)


class Scripted(torch.nn.Module):
    """A scripted module with a method, as a whole network is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


def test_a_scripted_network_is_refused(file: Path) -> None:
    with pytest.raises(UnsafeWeights, match="defines functions"):
        read_tensor(save(Scripted(), file))


class WritesWhenLoaded(torch.nn.Module):
    """TorchScript runs `__setstate__` while it loads a file, and TorchScript can write files."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight = state[0]
        self.path = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


def test_code_in_the_archive_never_runs(file: Path, marker: Path) -> None:
    save(WritesWhenLoaded(str(marker)), file)
    with pytest.raises(UnsafeWeights, match="defines functions"):
        read_tensor(file)
    with zipfile.ZipFile(file) as archive:  # the same in the guise of a plain module
        code = archive.read(next(name for name in archive.namelist() if name.endswith(".py")))
    write(file, module(), {"code/__torch__/torch/nn/modules/module.py": code})
    with pytest.raises(UnsafeWeights, match="defines functions"):
        read_tensor(file)
    assert not marker.exists()
    torch.jit.load(save(WritesWhenLoaded(str(marker)), file))
    assert marker.exists()  # the file is as hostile as it claims


class Gadget:
    """Unpickled as the call of a function, as `pickle` and `torch.load` would do it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def gadgets(marker: Path) -> dict[str, bytes]:
    """Pickles that make the marker when they are loaded by Python's own unpickler, by the function they name."""
    touch = text(f"touch {marker}")
    make = text(f"open({str(marker)!r}, 'w').close()")
    calls = {
        "posix.system": b"cposix\nsystem\n" + group(touch) + b"R",
        "os.system": b"cos\nsystem\n" + group(touch) + b"R",
        "builtins.exec": b"cbuiltins\nexec\n" + group(make) + b"R",
        "__builtin__.eval": b"c__builtin__\neval\n" + group(make) + b"R",
        "subprocess.call": b"csubprocess\ncall\n"
        + group(b"]" + text("touch") + b"a" + text(str(marker)) + b"a")
        + b"R",
        "pathlib.Path": b"cpathlib\nPath\n" + group(text(str(marker))) + b"R",
        "builtins.getattr": b"cbuiltins\ngetattr\n" + group(REBUILD, text("__globals__")) + b"R",
        "torch.load": b"ctorch\nload\n" + group(text(str(marker))) + b"R",
        "torch.serialization.load": b"ctorch.serialization\nload\n" + group(text(str(marker))) + b"R",
        "torch.hub.load": b"ctorch.hub\nload\n" + group(text(str(marker))) + b"R",
        "torch._utils._rebuild_parameter": b"ctorch._utils\n_rebuild_parameter\n" + group(tensor()) + b"R",
        "torch.jit._pickle.build_intlist": b"ctorch.jit._pickle\nbuild_intlist\n" + group(b"]") + b"R",
        "__torch__.os.system": b"c__torch__.os\nsystem\n" + group(touch) + b"R",
        "torch.FloatStorage.__init__": b"ctorch\nFloatStorage.__init__\n" + group() + b"R",
        "collections.OrderedDict.fromkeys": b"ccollections\nOrderedDict.fromkeys\n" + group(b"]") + b"R",
    }
    return calls


@pytest.mark.parametrize("name", gadgets(Path("marker")))
@pytest.mark.parametrize("place", ["parameter", "first", "storage", "alone"])
def test_nothing_that_a_pickle_names_is_called(file: Path, marker: Path, name: str, place: str) -> None:
    call = gadgets(marker)[name]
    pickled = {
        "parameter": module(call),
        "first": module(before=call + b"0"),  # 0: drop the result
        "storage": module(tensor(of=call)),
        "alone": b"\x80\x02" + call + b".",
    }[place]
    with pytest.raises(UnsafeWeights, match=r"refers to |instruction POP") as refused:
        read_tensor(write(file, pickled))
    assert str(file) in str(refused.value)
    assert not marker.exists()


def test_the_gadgets_would_work(marker: Path) -> None:
    """The proof that no marker means something: Python's own unpickler falls to them."""
    for name in ("posix.system", "builtins.exec", "subprocess.call"):
        pickle.loads(b"\x80\x02" + gadgets(marker)[name] + b".")
        marker.unlink()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_any_protocol_are_refused(file: Path, marker: Path, protocol: int) -> None:
    pickled = pickle.dumps(Gadget(exec, f"open({str(marker)!r}, 'w').close()"), protocol)
    with pytest.raises(UnsafeWeights, match=r"refers to |instruction "):
        read_tensor(write(file, pickled))
    assert not marker.exists()


def test_a_file_of_torch_save_is_refused(file: Path, marker: Path) -> None:
    torch.save(Gadget(exec, f"open({str(marker)!r}, 'w').close()"), file)
    with pytest.raises(UnsafeWeights, match="refers to "):
        read_tensor(file)
    torch.save({"0": torch.ones(3)}, file)
    with pytest.raises(UnsafeWeights, match="no tensor named '0'"):
        read_tensor(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (module(b"cos.path\njoin\n"), r"refers to os\.path\.join"),
        (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "instruction SHORT_BINUNICODE"),
        (b"\x80\x02(" + MODULE[:-2] + b"o.", "instruction OBJ"),
        (b"\x80\x02P0\n.", "instruction PERSID"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "bytearray8|instruction"),
    ],
)
def test_instructions_that_torchscript_does_not_write_are_refused(file: Path, pickled: bytes, reason: str) -> None:
    with pytest.raises(UnsafeWeights, match=reason):
        read_tensor(write(file, pickled))


def test_a_live_tensor_is_never_within_reach_of_the_pickle(file: Path) -> None:
    """BUILD calls `Tensor.__setstate__`, which may re-point a tensor at memory beyond its own."""
    beyond = group(tensor(), whole(0), group(whole(1 << 29)), group(whole(1)))
    for state in (beyond, group(b"\x88", b"N", b"N"), b"}" + text("data") + tensor() + b"s"):
        with pytest.raises(UnsafeWeights):
            read_tensor(write(file, module(tensor() + state + b"b")))


@pytest.mark.parametrize("target", [REBUILD, MODULE[:-2], b"ccollections\nOrderedDict\n", FLOATS])
def test_a_file_cannot_change_how_the_next_is_read(file: Path, target: bytes) -> None:
    """BUILD sets attributes, with the second of two states also those of classes and functions."""
    for name in ("__defaults__", "__setstate__", "dtype", "offset"):
        state = group(b"N", b"}" + text(name) + group(whole(1)) + b"s")
        with pytest.raises(UnsafeWeights):
            read_tensor(write(file, b"\x80\x02" + target + state + b"b."))
        assert torch.equal(read_tensor(write(file, module())), torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((13,), (1,), 0),
        ((12,), (1,), 1),
        ((3, 4), (5, 1), 0),
        ((3,), (1,), -4),
        ((3,), (-1,), 8),
        ((-3,), (1,), 0),
        ((2,), (1 << 62,), 0),
        ((1,), (1,), 1 << 63),
        ((1 << 40,), (0,), 0),  # twelve values may not become 4 TB
        ((1 << 20, 1 << 20), (0, 0), 0),
        ((3, 4), (1,), 0),
        ((3,), (4, 1), 0),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    file: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    with pytest.raises(UnsafeWeights, match=r"tensor .*(does not fit|impossible)"):
        read_tensor(write(file, module(tensor(size, stride, offset))))


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (storage(length=11), "12 values, but the pickle says 11"),
        (storage(length=1 << 60), "12 values, but the pickle says"),
        (storage(length=-1), "12 values, but the pickle says -1"),
        (storage(dtype=b"ctorch\nDoubleStorage\n"), "6 values, but the pickle says 12"),
        (storage(dtype=b"ctorch\nLongStorage\n"), r"refers to torch\.LongStorage"),
        (storage(dtype=text("float")), "refers to a 'storage'"),
        (storage(kind="module"), "refers to a 'module'"),
        (storage(key=text("1")), "no item named"),
        (storage(key=text("../../../../etc/passwd")), "no item named"),
        (storage(key=b"N"), "no item named"),
        (text("storage") + b"Q", "cannot be read"),
        (tensor(), "no storage"),
        (b"}", "no storage"),
        (b"N", "no storage"),
    ],
)
def test_a_storage_that_lies_is_refused(file: Path, of: bytes, reason: str) -> None:
    with pytest.raises(UnsafeWeights, match=reason):
        read_tensor(write(file, module(tensor(of=of))))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"\x80\x02N.",
        b"\x80\x02" + tensor() + b".",
        b"\x80\x02" + MODULE + b".",
        b"\x80\x02" + MODULE + b"Nb.",
        b"\x80\x02" + MODULE + tensor() + b"b.",
        module(b"K\x05"),
        module()[:-10],
        b"\x80\x02" + b"\x85" * 60_000 + b".",
        b"\x80\x02N" + b"\x85" * 60_000 + b".",  # a tuple in a tuple in a tuple...
        b"\x80\x02}(" + text("0") + tensor() + b"u.",
    ],
)
def test_pickles_of_anything_else_are_refused(file: Path, pickled: bytes) -> None:
    with pytest.raises(UnsafeWeights):
        read_tensor(write(file, pickled))


def test_compressed_data_is_refused(file: Path) -> None:
    for records in ({"data/0": bytes(50 << 20)}, {}):
        with pytest.raises(UnsafeWeights, match="compressed"):
            read_tensor(write(file, module(), records, zipfile.ZIP_DEFLATED))


def test_compressed_code_is_read(file: Path) -> None:
    """TorchScript compresses code of more than 200 bytes."""
    for source, safe in ((CODE, True), (CODE + "  def f(self): pass\n", False)):
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in (("data.pkl", module()), ("data/0", VALUES)):
                archive.writestr(f"weights/{name}", data)
            archive.writestr("weights/code/__torch__/module.py", source + "  more : bool\n" * 20, zipfile.ZIP_DEFLATED)
        if safe:
            assert read_tensor(file).shape == (3, 4)
        else:
            with pytest.raises(UnsafeWeights, match="defines functions"):
                read_tensor(file)


def test_a_huge_pickle_is_refused(file: Path) -> None:
    pickled = module(before=(text("x" * 1000)) * 100)
    with pytest.raises(UnsafeWeights, match=r"data\.pkl is too large for a file with a single tensor"):
        read_tensor(write(file, pickled))


def test_an_expanding_code_record_is_refused(file: Path) -> None:
    with zipfile.ZipFile(write(file, module()), "a") as archive:
        archive.writestr("weights/code/__torch__/other.py", " " * (1 << 18), zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeWeights, match=r"other\.py is too large"):
        read_tensor(file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("weights/code/__torch__/another.py", " " * (20 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsafeWeights, match="the records would unpack to"):
        read_tensor(file)


def test_little_files_take_little_memory(file: Path) -> None:
    """The memo of Python's unpickler is an array of as many places as a pickle says, filled or not."""
    memo = module(before=b"Nr" + struct.pack("<I", (1 << 31) - 1))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        assert read_tensor(write(file, memo)).shape == (3, 4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 << 10


@pytest.mark.parametrize("keep", [0, 1, 30, 300, 500, -1, -30])
def test_a_truncated_archive_is_refused(file: Path, keep: int) -> None:
    data = write(file, module()).read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(UnsafeWeights, match="cannot be read"):
        read_tensor(file)


def test_a_damaged_record_is_refused(file: Path) -> None:
    data = bytearray(write(file, module()).read_bytes())
    data[data.index(VALUES) + 5] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(UnsafeWeights, match="CRC"):
        read_tensor(file)


def test_what_is_no_archive_is_refused(tmp_path: Path, file: Path) -> None:
    for data in (b"hello", VALUES * 100, pickle.dumps({"0": 1})):
        file.write_bytes(data)
        with pytest.raises(UnsafeWeights, match="cannot be read"):
            read_tensor(file)
    for path in (tmp_path, tmp_path / "absent.tensor"):
        with pytest.raises(UnsafeWeights, match="cannot be read"):
            read_tensor(path)


def test_an_archive_of_something_else_is_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnsafeWeights, match="not a TorchScript archive"):
        read_tensor(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", module())
        archive.writestr("b/data.pkl", module())
    with pytest.raises(UnsafeWeights, match="not a TorchScript archive"):
        read_tensor(file)


def test_big_endian_values_are_refused(file: Path) -> None:
    with pytest.raises(UnsafeWeights, match="not little-endian"):
        read_tensor(write(file, module(), {"byteorder": b"big"}))


def test_a_directory_with_one_hostile_file_is_no_model(
    make_bundle: Callable[..., Path], tmp_path: Path, marker: Path
) -> None:
    directory = make_bundle(tmp_path / "model")
    write(directory / "4.rnn.bias_hh_l0.tensor", module(gadgets(marker)["posix.system"]))
    with pytest.raises(ModelError, match=r"4\.rnn\.bias_hh_l0\.tensor: refused: the pickle refers to posix\.system"):
        load_bundle(directory)
    assert not marker.exists()
