"""Model directories: both containers give the same model, and what is not one is refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from porestream.models.files.bundle import ModelBundle, load_bundle
from porestream.models.files.chemistry import Chemistry
from porestream.models.files.config import ModelError
from porestream.models.networks.lstm import Lstms
from porestream.models.scale import QuantileRule

MakeBundle = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

FAST = "dna_r9.4.1_e8.1_fast@v3.4"


@pytest.fixture
def tiny(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


def edit_config(directory: Path, old: str, new: str) -> Path:
    file = directory / "config.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return directory


def assert_same(left: ModelBundle, right: ModelBundle) -> None:
    assert left.sha256 == right.sha256
    assert left.tensors.keys() == right.tensors.keys()
    assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


def test_both_containers_hold_the_same_model(make_bundle: MakeBundle, tmp_path: Path) -> None:
    dorado = load_bundle(make_bundle(tmp_path / "dorado", seed=3))
    own = load_bundle(make_bundle(tmp_path / "own", seed=3, container="safetensors"))
    assert_same(dorado, own)
    assert dorado.name == "dorado"
    assert own.name == "own"
    assert dorado.config == own.config
    assert (dorado.config.score_count, dorado.config.chunk_size, dorado.config.overlap) == (64, 1200, 120)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in dorado.tensors.values())


def test_the_real_directory_survives_conversion(shared_data: Path, tmp_path: Path) -> None:
    directory = shared_data / "models" / FAST
    real = load_bundle(directory)
    by_torch = {
        file.name.removesuffix(".tensor"): next(iter(torch.jit.load(file).parameters())).detach()
        for file in directory.glob("*.tensor")
    }
    assert by_torch.keys() == real.tensors.keys()
    assert all(torch.equal(by_torch[name], real.tensors[name]) for name in by_torch)
    converted = tmp_path / FAST
    converted.mkdir()
    shutil.copy(directory / "config.toml", converted)
    save_file(by_torch, converted / "model.safetensors")
    assert_same(load_bundle(converted), real)
    assert (real.config.layers.encoder.width, real.config.stride, real.config.state_len) == (128, 6, 3)
    assert real.chemistry == Chemistry(molecule="dna", pore="r9.4.1", bases_per_second=450, sample_rates_hz=(4000,))


def test_the_digest_tells_models_apart(make_bundle: MakeBundle, tmp_path: Path) -> None:
    digests = {
        load_bundle(make_bundle(tmp_path / str(number), **options)).sha256
        for number, options in enumerate(
            [{}, {"seed": 1}, {"basecaller__overlap": 60}, {"tensors": {"9.linear.bias": torch.zeros(64)}}]
        )
    }
    assert len(digests) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["dorado", "safetensors"])
def test_other_floating_point_weights_become_float32(
    make_bundle: MakeBundle, tmp_path: Path, dtype: torch.dtype, container: str
) -> None:
    weights = torch.linspace(-1, 1, 64, dtype=dtype)
    bundle = load_bundle(make_bundle(tmp_path / "model", container=container, tensors={"9.linear.bias": weights}))
    torch.testing.assert_close(bundle.tensors["9.linear.bias"], weights.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "config", "chemistry"),
    [
        (
            "dna_r9.4.1_e8_hac@v3.3",
            {},
            Chemistry(molecule="dna", pore="r9.4.1", bases_per_second=450, sample_rates_hz=(4000,)),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_fast@v3.5.2",
            {},
            Chemistry(molecule="dna", pore="r10.4.1", bases_per_second=400, sample_rates_hz=(4000,)),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_fast@v3.5.2",
            {"run_info__sample_rate": 5000},
            Chemistry(molecule="dna", pore="r10.4.1", bases_per_second=400, sample_rates_hz=(5000,)),
        ),
        ("my model", {"run_info__sample_rate": 5000}, Chemistry()),
    ],
)
def test_the_chemistry_is_read_from_the_name(
    make_bundle: MakeBundle, tmp_path: Path, name: str, config: dict[str, int], chemistry: Chemistry
) -> None:
    assert load_bundle(make_bundle(tmp_path / name, **config)).chemistry == chemistry


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match="not a model directory: the file does not exist"):
            load_bundle(directory)


@pytest.mark.parametrize("text", ["[encoder", "a = ", "\x00", "stride = 6\nstride = 5"])
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ModelError, match=r"config\.toml: "):
        load_bundle(tmp_path)


def test_a_config_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ModelError, match=r"config\.toml: .*decode"):
        load_bundle(tmp_path)


V4 = """
[encoder]
type = "serial"
[[encoder.sublayers]]
type = "convolution"
[[encoder.sublayers]]
type = "gru"
"""
V5 = """
[model]
package = "bonito.transformer"
[model.encoder]
type = "namedserial"
[model.encoder.transformer_encoder]
type = "stack"
depth = 18
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[basecaller]\nchunksize = 5\n", r"no \[encoder\] table"),
        ("encoder = 3\n", "encoder = 3 is not a table"),
        (V4, "layers of type 'gru' are not supported; known types: .*, lstm, flstm, flstm_softout, linear"),
        ("[encoder]\nsublayers = 7\n", "sublayers must be a list of tables, each with a type, not 7"),
        (V5, "'conv' is missing"),
        ("model = 'x'\n[encoder]\nstride = 6\n", "model = 'x' is not a table"),
    ],
)
def test_other_kinds_of_models_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ModelError, match=reason):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"encoder__rnn_type": "gru"}, "rnn_type = 'gru' is not supported, only 'lstm'"),
        ({"encoder__activation": "relu"}, "activation = 'relu' is not supported, only 'swish'"),
        (
            {"scaling__strategy": "picoampere"},
            "strategy = 'picoampere' is not supported; use one of quantile, med_mad, pa",
        ),
        ({"scaling__strategy": ["quantile"]}, r"strategy = \['quantile'\] is not supported"),
        ({"standardisation__mean": 90.0}, r"\[standardisation\] only works with .* 'pa', not 'med_mad'"),
        ({"scaling__strategy": "pa", "standardisation__mean": 90.0}, "'stdev' is missing"),
        (
            {"scaling__strategy": "pa", "standardisation__mean": 90.0, "standardisation__stdev": 0.0},
            "stdev = 0 must be greater than 0",
        ),
        ({"labels__labels": ["N", "T", "G", "C", "A"]}, "the alphabet .* is not supported"),
        ({"input__features": 13}, "features = 13: duplex models are not supported"),
        ({"run_info__sample_type": "protein"}, "sample_type = 'protein' is unknown"),
        ({"normalisation__quantile_a": 0.2}, r"\[normalisation\] only works with .* 'quantile', not 'med_mad'"),
        ({"scaling__strategy": "quantile", "normalisation__quantile_a": 0.95}, r"\[normalisation\] out of range"),
        (
            {"scaling__strategy": "quantile", "normalisation__quantile": 0.2},
            "unknown key quantile in .*; the keys are ",
        ),
        ({"run_info__sample_rate": -1}, "sample_rate = -1 is out of range: 0 to 1,000,000"),
        ({"input__resample_from": [4000]}, r"resample_from also needs \[run_info\] sample_rate"),
        ({"encoder__stride": None}, "'stride' is missing"),
        ({"encoder__stride": 0}, "out of range"),
        ({"encoder__stride": -6}, "out of range"),
        ({"encoder__stride": 6.5}, r"6\.5 is not a whole number"),
        ({"encoder__stride": True}, "True is not a whole number"),
        ({"encoder__stride": float("inf")}, "inf is not a whole number"),
        ({"basecaller__chunksize": "1200"}, "'1200' is not a whole number"),
        ({"encoder__first_conv_size": 0}, "out of range"),
        ({"encoder__scale": float("nan")}, "nan is not a finite number"),
        ({"encoder__scale": 0.0}, "out of range"),
        ({"encoder__scale": 10**400}, "too large"),
        ({"encoder__blank_score": float("inf")}, "inf is not a finite number"),
        ({"decoder__stay_score": "2"}, "'2' is not a finite number"),
        ({"qscore__bias": float("-inf")}, "-inf is not a finite number"),
        ({"basecaller__chunksize": 0}, "chunksize = 0 is out of range"),
        ({"basecaller__chunksize": 23, "basecaller__overlap": 0}, "chunksize 23 is too small for overlap 0"),
        ({"basecaller__overlap": 1200}, "too small for overlap 1200"),
        ({"basecaller__overlap": 5000}, "too small for overlap 5000"),
        ({"basecaller__overlap": -6}, "overlap = -6 is out of range"),
        # Of different lengths, but of the same number of time steps: every chunk would begin where the last one did.
        ({"basecaller__chunksize": 1199, "basecaller__overlap": 1195}, "chunksize 1199 is too small for overlap 1195"),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    make_bundle: MakeBundle, tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as refused:
        load_bundle(make_bundle(tmp_path / "model", **config))
    assert str(tmp_path / "model") in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("winlen = 19", "winlen = 18", "out of range"),
        ("winlen = 19", "winlen = 17", r"2\.conv\.weight has shape \(16, 16, 19\), config.toml says \(16, 16, 17\)"),
        ("features = 16", "features = 0", "out of range"),
        ("features = 16", "features = 32", r"2\.conv\.weight has shape .*config.toml says \(32, 16, 19\)"),
        ("state_len = 2", "state_len = 0", "out of range"),
        ("state_len = 2", "state_len = 7", "out of range"),
        ("state_len = 2", "state_len = 3", r"9\.linear\.weight has shape \(64, 16\), config.toml says \(256, 16\)"),
        ("[global_norm]", "[other]", "'state_len' is missing"),
        ("[basecaller]", "[[basecaller]]", "is not a table"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(tiny: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        load_bundle(edit_config(tiny, old, new))


@pytest.mark.parametrize("container", ["dorado", "safetensors"])
@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("4.rnn.bias_hh_l0", None, r"missing tensors: 4\.rnn\.bias_hh_l0$"),
        ("9.linear.extra", torch.zeros(3), r"unknown tensors: 9\.linear\.extra$"),
        ("0.conv.weight", torch.zeros(4, 5), r"0\.conv\.weight has shape \(4, 5\), config.toml says \(4, 1, 5\)"),
        ("1.conv.bias", torch.zeros(()), r"1\.conv\.bias has shape \(\), config.toml says \(16,\)"),
        ("9.linear.bias", torch.full((64,), torch.nan), r"9\.linear\.bias holds NaN or infinite values"),
        ("9.linear.bias", torch.full((64,), -torch.inf), r"9\.linear\.bias holds NaN or infinite values"),
        ("9.linear.bias", torch.full((64,), 1e300, dtype=torch.float64), "holds NaN or infinite values"),
    ],
)
def test_wrong_weights_are_refused(
    make_bundle: MakeBundle, tmp_path: Path, container: str, name: str, tensor: torch.Tensor | None, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        load_bundle(make_bundle(tmp_path / "model", container=container, tensors={name: tensor}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("container", ["dorado", "safetensors"])
def test_weights_that_are_not_floating_point_are_refused(
    make_bundle: MakeBundle, tmp_path: Path, container: str, dtype: torch.dtype
) -> None:
    tensors = {"9.linear.bias": torch.zeros(64, dtype=dtype)}
    with pytest.raises(ModelError, match=r"holds torch\.|the pickle refers to torch\."):
        load_bundle(make_bundle(tmp_path / "model", container=container, tensors=tensors))


def test_a_directory_without_weights_is_refused(tiny: Path) -> None:
    for file in tiny.glob("*.tensor"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no weights found; looked for model\.safetensors, \*\.tensor"):
        load_bundle(tiny)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_safetensors_file_is_refused(make_bundle: MakeBundle, tmp_path: Path, size: int) -> None:
    directory = make_bundle(tmp_path / "model", container="safetensors")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelError, match=str(directory)):
        load_bundle(directory)


def test_an_unsafe_tensor_file_is_refused_by_name(tiny: Path) -> None:
    (tiny / "9.linear.bias.tensor").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelError, match=r"9\.linear\.bias\.tensor"):
        load_bundle(tiny)


def test_layers_listed_one_by_one_are_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = load_bundle(
        make_bundle(
            tmp_path / "dna_r10.4.1_e8.2_400bps_fast@v4.0",
            layers="listed",
            container="safetensors",
            scaling__strategy="quantile",
            normalisation__shift_multiplier=0.5,
            run_info__sample_rate=5000,
            input__resample_from=[4000],
        )
    )
    config = bundle.config
    assert [(layer.ins, layer.outs, layer.winlen, layer.stride) for layer in config.layers.convolutions] == [
        (1, 4, 5, 1),
        (4, 16, 5, 1),
        (16, 16, 19, 6),
    ]
    assert isinstance(config.layers.encoder, Lstms)
    assert config.layers.encoder.reverse == (True, False, True, False, True)
    layers = config.layers
    assert (layers.linear_bias, layers.score_tanh, layers.score_limit, config.stay_score) == (False, False, 5.0, 2.0)
    assert (config.scaling, config.quantiles) == ("quantile", QuantileRule(shift_multiplier=0.5))
    assert bundle.chemistry == Chemistry(
        molecule="dna", pore="r10.4.1", bases_per_second=400, sample_rates_hz=(5000, 4000)
    )


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('activation = "swish"', 'activation = "relu"', "'relu'.*must be swish or tanh"),
        ("padding = 9", "padding = 0", "padding winlen // 2"),
        ("insize = 4\n", "insize = 8\n", "convolutions do not fit together"),
        ('type = "lstm"\nsize = 16', 'type = "lstm"\nsize = 24', "an LSTM must be 16 wide"),
        ('type = "permute"', 'type = "linear"', "expected a permute layer, found"),
        ("min = -5.0", "min = -4.0", r"the clamp of the scores must be symmetric, not -4 to 5"),
        ("blank_score = 2.0", "blank_score = nan", "nan is not a finite number"),
        ("blank_score = 2.0", "", "no blank_score"),
        ('type = "lstm"', 'type = "flstm"', "inner_dim"),
        ('type = "lstm"', 'type = "gru"', "layers of type 'gru' are not supported"),
    ],
)
def test_listed_layers_that_are_not_supported_are_refused(
    make_bundle: MakeBundle, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    directory = make_bundle(tmp_path / "model", layers="listed")
    with pytest.raises(ModelError, match=reason):
        load_bundle(edit_config(directory, old, new))


def test_a_link_to_a_directory_is_called_as_it_is(make_bundle: MakeBundle, tmp_path: Path) -> None:
    directory = make_bundle(tmp_path / "store" / "abc123", container="safetensors")
    link = tmp_path / "rna004_130bps_hac@v5.0.0"
    link.symlink_to(directory)
    bundle = load_bundle(link)
    assert (bundle.name, bundle.chemistry.molecule, bundle.config.is_rna) == (link.name, "rna004", True)
    assert bundle.sha256 == load_bundle(directory).sha256


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("x = " + "[\n" * 20_000)
    with pytest.raises(ModelError, match=r"config\.toml: .*recursion"):
        load_bundle(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").symlink_to(tmp_path / "config.toml")
    with pytest.raises(ModelError, match=r"config\.toml"):
        load_bundle(tmp_path)
