"""Which model a run gets, and what is said where there is none."""

from pathlib import Path

import pytest

from porestream.models.files.bundle import load_bundle
from porestream.models.files.catalog import (
    BUNDLED,
    Kind,
    NoModel,
    choose_model,
    companion_of,
    default_models_directory,
    find_model,
    kind_of,
    model_among,
    models_to_serve,
)
from porestream.models.files.chemistry import Chemistry, chemistry_of_model, chemistry_of_run, parse_model_name
from porestream.models.files.config import ModelConfig, load_config


def chemistry(molecule: str, pore: str, bases_per_second: int, *rates_hz: int) -> Chemistry:
    return Chemistry(molecule=molecule, pore=pore, bases_per_second=bases_per_second, sample_rates_hz=rates_hz)


R1041 = chemistry("dna", "r10.4.1", 400, 5000)


def add_model(folder: Path, name: str, sample_rate_hz: int = 0, config: str = "") -> Path:
    """Its config.toml alone: the choice reads no weights."""
    (folder / name).mkdir(parents=True)
    text = f"[run_info]\nsample_rate = {sample_rate_hz}\n" if sample_rate_hz else ""
    text += "[encoder]\nstride = 6\nwinlen = 19\nfeatures = 96\n[global_norm]\nstate_len = 3\n"
    (folder / name / "config.toml").write_text(config or text)
    return folder / name


def chosen(runs: list[Chemistry], folder: Path, kind: str = "") -> Path:
    model, passed_over = choose_model(runs, folder, kind_of(kind))
    assert passed_over == []
    return model


@pytest.mark.parametrize(
    ("product", "kit", "expected"),
    [
        ("FLO-MIN114", "SQK-LSK114", ("dna", "r10.4.1", 400)),
        ("FLO-PRO114M", "sqk-lsk114", ("dna", "r10.4.1", 400)),
        ("FLO-PRO114HD", "SQK-NBD114-24", ("dna", "r10.4.1", 400)),
        ("", "sqk-rbk114-96", ("dna", "r10.4.1", 400)),
        ("FLO-MIN106", "", ("dna", "r9.4.1", 450)),
        ("FLO-MIN106D", "SQK-LSK109", ("dna", "r9.4.1", 450)),
        ("FLO-PRO002", "sqk-lsk109", ("dna", "r9.4.1", 450)),
        ("FLO-FLG001", "SQK-LSK109", ("dna", "r9.4.1", 450)),
        ("FLO-MIN112", "SQK-LSK112", ("dna", "r10.4", 0)),
        ("FLO-MIN114", "SQK-LSK114-260", ("dna", "r10.4.1", 260)),
        ("FLO-MIN106", "SQK-RNA002", ("rna002", "", 70)),
        ("FLO-MIN004RA", "SQK-RNA004", ("rna004", "", 130)),
        ("FLO-PRO004RA", "", ("rna004", "", 130)),
        ("", "", ("", "", 0)),
        ("FLO-NEW999", "SQK-LSK999", ("", "", 0)),
        ("nonsense", "", ("", "", 0)),
    ],
)
def test_flow_cell_and_kit_name_the_chemistry(product: str, kit: str, expected: tuple[str, str, int]) -> None:
    assert chemistry_of_run(product, kit, 5000) == chemistry(*expected, 5000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "dna_r10.4.1_e8.2_400bps_hac@v4.3.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_fast@v4.1.0",
            chemistry("dna", "r10.4.1", 400, 4000),
        ),
        (
            "dna_r10.4.1_e8.2_260bps_fast@v4.1.0",
            chemistry("dna", "r10.4.1", 260, 4000),
        ),
        ("dna_r10.4.1_e8.2_400bps_hac@v4.2.0_5mCG_5hmCG@v2", Chemistry()),
        (
            "dna_r10.4.1_e8.2_260bps_hac@v4.1.0",
            chemistry("dna", "r10.4.1", 260, 4000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_sup@v4.2.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_sup@v4.1.0",
            chemistry("dna", "r10.4.1", 400, 4000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_hac@v5.0.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_hac@v5.2.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_400bps_hac@v6.0.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_5khz_400bps_sup@v4.2.0",
            chemistry("dna", "r10.4.1", 400, 5000),
        ),
        (
            "dna_r10.4.1_e8.2_4khz_400bps_sup@v4.2.0",
            chemistry("dna", "r10.4.1", 400, 4000),
        ),
        (
            "dna_r10.4.1_e8.2_apk_sup@v5.0.0",
            Chemistry(molecule="dna", pore="r10.4.1", bases_per_second=0, sample_rates_hz=(5000,), kit="apk"),
        ),
        (
            "dna_r9.4.1_e8.1_fast@v3.4",
            chemistry("dna", "r9.4.1", 450, 4000),
        ),
        (
            "dna_r9.4.1_e8_fast@v3.4",
            chemistry("dna", "r9.4.1", 450, 4000),
        ),
        (
            "dna_r9.4.1_e8_hac@v3.3",
            chemistry("dna", "r9.4.1", 450, 4000),
        ),
        ("rna002_70bps_hac@v3", Chemistry(molecule="rna002", pore="", bases_per_second=70)),
        ("rna004_130bps_sup@v5.0.0", Chemistry(molecule="rna004", pore="", bases_per_second=130)),
        ("rna004_sup@v6.0.0", Chemistry(molecule="rna004", pore="", bases_per_second=130)),
        ("porestream_dna_r10.4.1_400bps_fast@v1", Chemistry(molecule="dna", pore="r10.4.1", bases_per_second=400)),
        ("my_model", Chemistry()),
        ("my_hac@v5.0.0", Chemistry()),
    ],
)
def test_model_names_tell_their_chemistry(name: str, expected: Chemistry) -> None:
    assert chemistry_of_model(name) == expected


def test_what_the_config_says_of_the_rate_goes_before_the_name() -> None:
    assert chemistry_of_model("dna_r10.4.1_e8.2_5khz_400bps_sup@v4.2.0", (6000,)).sample_rates_hz == (6000,)


@pytest.mark.parametrize(
    ("name", "kind", "release"),
    [
        ("dna_r10.4.1_e8.2_apk_sup@v5.0.0", "sup", (5, 0, 0)),
        ("rna002_70bps_hac@v3", "hac", (3,)),
        ("dna_r10.4.1_e8.2_5khz_stereo@v1.5", "stereo", (1, 5)),
    ],
)
def test_model_names_tell_kind_and_release(name: str, kind: str, release: tuple[int, ...]) -> None:
    parsed = parse_model_name(name)
    assert parsed is not None
    assert (parsed.kind, parsed.release) == (kind, release)


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_5mCG_5hmCG@v3", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_4mC_5mC@v3", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_6mA@v3", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_m6A_DRACH@v1", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_pseU_2OmeU@v1", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_inosine_m6A@v1", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_2OmeG@v1", "modified bases"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_polish_rl_mv", "polishing"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_variant_mv@v1.0", "variants"),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0_my_copy", ""),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0", ""),
        ("my_model@v1_5mC@v1", ""),
    ],
)
def test_downloads_beside_a_basecaller_are_told_by_their_names(name: str, purpose: str) -> None:
    assert companion_of(name) == (purpose, "dna_r10.4.1_e8.2_400bps_hac@v5.0.0" if purpose else "")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hac", Kind("hac")),
        ("sup@latest", Kind("sup")),
        ("fast@v4.3.0", Kind("fast", (4, 3, 0))),
        ("hac@v5", Kind("hac", (5,))),
        ("hac@5", None),
        ("hac@v", None),
        ("./hac", None),
        ("auto", None),
        ("dna_r10.4.1_e8.2_400bps_hac@v5.0.0", None),
    ],
)
def test_kinds_are_told_from_names_and_paths(text: str, kind: Kind | None) -> None:
    assert kind_of(text) == kind


def test_the_bundled_model_is_what_its_name_says() -> None:
    bundle = load_bundle(BUNDLED)
    assert bundle.chemistry == chemistry("dna", "r10.4.1", 400, 5000, 4000)
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 3_000_000
    card = " ".join((BUNDLED / "README.md").read_text().split())
    for said in ("MIT", "ONT's models call better", "basecalls", "4 kHz"):
        assert said in card
    assert "not evaluated yet" not in card


def test_runs_get_the_bundled_model_where_the_user_has_none(tmp_path: Path) -> None:
    assert chosen([R1041], tmp_path / "none") == BUNDLED
    assert chosen([R1041, chemistry("dna", "r10.4.1", 400, 4000)], tmp_path) == BUNDLED
    assert chosen([], tmp_path) == BUNDLED


def test_the_users_own_model_goes_before_the_bundled_one(tmp_path: Path) -> None:
    add_model(tmp_path, "dna_r9.4.1_e8.1_fast@v3.4")
    assert chosen([R1041], tmp_path) == BUNDLED
    hac = add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_hac@v4.3.0", 5000)
    assert chosen([R1041], tmp_path) == hac
    for release in ("4.2.0", "4.10.0", "4.3.0"):
        add_model(tmp_path, f"dna_r10.4.1_e8.2_400bps_fast@v{release}", 5000)
    assert chosen([R1041], tmp_path).name == "dna_r10.4.1_e8.2_400bps_fast@v4.10.0"
    slow = chemistry("dna", "r10.4.1", 400, 4000)
    assert chosen([slow], tmp_path) == BUNDLED  # all others are for 5 kHz
    assert chosen([R1041, slow], tmp_path) == BUNDLED


def test_a_model_for_another_speed_or_rate_is_not_taken(tmp_path: Path) -> None:
    slow = chemistry("dna", "r10.4.1", 400, 4000)
    add_model(tmp_path, "dna_r10.4.1_e8.2_260bps_fast@v4.1.0")
    assert chosen([slow], tmp_path) == BUNDLED
    old = add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_fast@v4.1.0")  # says no rate: 4 kHz then
    assert chosen([slow], tmp_path) == old
    assert chosen([R1041], tmp_path) == BUNDLED


def test_a_kind_is_its_newest_that_fits(tmp_path: Path) -> None:
    for release in ("4.1.0", "4.3.0", "5.0.0", "5.2.0"):
        for kind in ("fast", "hac"):
            add_model(tmp_path, f"dna_r10.4.1_e8.2_400bps_{kind}@v{release}")
    for name in ("dna_r9.4.1_e8_hac@v3.3", "dna_r10.4.1_e8.2_260bps_hac@v6.0.0", "dna_r10.4.1_e8.2_400bps_stereo@v9"):
        add_model(tmp_path, name)
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_hac@v5.2.0_5mCG_5hmCG@v2")
    apk = add_model(tmp_path, "dna_r10.4.1_e8.2_apk_sup@v5.0.0")
    slow, old = (
        chemistry("dna", "r10.4.1", 400, 4000),
        chemistry("dna", "r9.4.1", 450, 4000),
    )
    for kind, run, expected in (
        ("hac", R1041, "dna_r10.4.1_e8.2_400bps_hac@v5.2.0"),
        ("hac@latest", R1041, "dna_r10.4.1_e8.2_400bps_hac@v5.2.0"),
        ("hac@v5", R1041, "dna_r10.4.1_e8.2_400bps_hac@v5.0.0"),  # v5.0.0, as in dorado
        ("hac@v4.3.0", R1041, "dna_r10.4.1_e8.2_400bps_hac@v4.3.0"),
        ("hac", slow, "dna_r10.4.1_e8.2_400bps_hac@v4.1.0"),
        ("hac", old, "dna_r9.4.1_e8_hac@v3.3"),
        ("fast", R1041, "dna_r10.4.1_e8.2_400bps_fast@v5.2.0"),
        ("fast@v1", R1041, BUNDLED.name),
    ):
        assert chosen([run], tmp_path, kind).name == expected, (kind, run)
    assert chosen([chemistry_of_run("FLO-MIN114", "SQK-APK114", 5000)], tmp_path, "sup") == apk
    with pytest.raises(NoModel, match=r"no sup model for R10\.4\.1 DNA .*_apk_sup@v5\.0\.0 is for .* of kit APK"):
        choose_model([R1041], tmp_path, Kind("sup"))


def test_the_bundled_model_is_of_kind_fast(tmp_path: Path) -> None:
    assert chosen([R1041], tmp_path, "fast") == BUNDLED
    with pytest.raises(NoModel, match=f"no hac model .* in {tmp_path}: no model of that kind, only {BUNDLED.name}"):
        choose_model([R1041], tmp_path, Kind("hac"))


def test_where_no_model_of_a_kind_fits_each_ones_reason_is_given(tmp_path: Path) -> None:
    add_model(tmp_path, "dna_r9.4.1_e8_hac@v3.3")
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_hac@v4.1.0", 4000)
    broken = add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_hac@v5.0.0", config="not TOML")
    with pytest.raises(NoModel) as refused:
        choose_model([R1041], tmp_path, Kind("hac"))
    for words in (
        "no hac model for R10.4.1 DNA (400 bases/s) at 5 kHz",
        "dna_r9.4.1_e8_hac@v3.3 is for R9.4.1 DNA (450 bases/s) at 4 kHz",
        "dna_r10.4.1_e8.2_400bps_hac@v4.1.0 is for R10.4.1 DNA (400 bases/s) at 4 kHz",
        f"{broken}/config.toml: ",
        "give --model DIR",
    ):
        assert words in str(refused.value)


def test_a_server_gets_the_newest_of_a_kind_for_each_chemistry(tmp_path: Path) -> None:
    names = [
        "dna_r10.4.1_e8.2_400bps_hac@v5.0.0",
        "dna_r10.4.1_e8.2_400bps_hac@v4.1.0",
        "dna_r9.4.1_e8_hac@v3.3",
        "rna002_70bps_hac@v3",
    ]
    for name in (*names, "dna_r10.4.1_e8.2_400bps_hac@v4.3.0", "dna_r10.4.1_e8.2_400bps_sup@v5.0.0"):
        add_model(tmp_path, name)
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_hac@v5.2.0", config="not TOML")
    models, passed_over = models_to_serve(["hac"], tmp_path)
    assert [model.name for model in models] == names
    assert ["v5.2.0" in reason for reason in passed_over] == [True]
    named = models_to_serve(["auto", "hac@v5.0.0", "fast", names[0]], tmp_path)[0]
    assert named == [BUNDLED, tmp_path / names[0]]
    with pytest.raises(NoModel, match=r"no sup@v4 model in .*: no model of that kind, only dna_"):
        models_to_serve(["sup@v4"], tmp_path)


@pytest.mark.parametrize(
    ("runs", "kind", "expected"),
    [
        ([R1041], "hac", "dna_r10.4.1_e8.2_400bps_hac@v5.0.0"),
        ([R1041], "hac@v4.3", "dna_r10.4.1_e8.2_400bps_hac@v4.3.0"),
        ([R1041], "", ""),  # three would do
        ([R1041], "sup", ""),
        (
            [chemistry("dna", "r10.4.1", 400, 4000)],
            "hac",
            "dna_r10.4.1_e8.2_400bps_hac@v4.1.0",
        ),
        (
            [chemistry("dna", "r9.4.1", 450, 4000)],
            "",
            "dna_r9.4.1_e8_hac@v3.3",
        ),
        ([R1041, chemistry("dna", "r9.4.1", 450, 4000)], "hac", ""),
        ([Chemistry()], "", ""),
        ([], "", ""),
    ],
)
def test_the_one_of_a_servers_models_that_fits(runs: list[Chemistry], kind: str, expected: str) -> None:
    names = ["tiny", BUNDLED.name, "dna_r9.4.1_e8_hac@v3.3"]
    names += [f"dna_r10.4.1_e8.2_400bps_hac@v{release}" for release in ("4.1.0", "5.0.0", "4.3.0")]
    assert model_among(names, runs, kind_of(kind)) == expected


def test_what_cannot_be_used_is_passed_over_and_named(tmp_path: Path) -> None:
    usable = add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_fast@v4.2.0", 5000)
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_fast@v4.3.0", config="[encoder]\n[standardisation]\nstandardise = 1\n")
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_fast@v5.0.0", config="not TOML")
    add_model(tmp_path, "dna_r10.4.1_e8.2_400bps_fast@v4.2.0_5mCG_5hmCG@v2", config="[general]\n")
    model, passed_over = choose_model([R1041], tmp_path)
    assert model == usable
    assert ["v5.0.0" in reason or "v4.3.0" in reason for reason in passed_over] == [True, True]


def test_a_directory_that_may_not_be_read_blocks_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"dna_r10.4.1_e8.2_400bps_fast@v{release}" for release in ("4.2.0", "4.3.0")]
    usable, _ = (add_model(tmp_path, name) for name in names)

    def load(directory: Path) -> ModelConfig:
        if directory.name == names[1]:
            raise PermissionError(13, "Permission denied", str(directory))
        return load_config(directory)

    monkeypatch.setattr("porestream.models.files.catalog.load_config", load)
    for model, passed_over in (choose_model([R1041], tmp_path), choose_model([R1041], tmp_path, Kind("fast"))):
        assert model == usable
        assert [names[1] in reason for reason in passed_over] == [True]
    assert models_to_serve(["fast"], tmp_path)[0][0] == usable


def test_two_models_of_another_chemistry_are_both_seen(tmp_path: Path) -> None:
    for release in ("3.3", "3.4"):
        add_model(tmp_path, f"dna_r9.4.1_e8.1_fast@v{release}")
    assert chosen([chemistry("dna", "r9.4.1", 450, 4000)], tmp_path).name == "dna_r9.4.1_e8.1_fast@v3.4"


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (
            [chemistry("dna", "r9.4.1", 450, 4000)],
            ["no model for R9.4.1 DNA (450 bases/s) at 4 kHz", "--model DIR"],
        ),
        (
            [chemistry("dna", "r10.4.1", 400, 3012)],
            ["no model for R10.4.1 DNA (400 bases/s) at 3.012 kHz"],
        ),
        (
            [R1041, chemistry("dna", "r9.4.1", 450, 4000)],
            ["differ in chemistry", "call each one separately"],
        ),
        (
            [chemistry("", "", 0, 4000)],
            ["flow cell and kit", f"--model {BUNDLED.name}"],
        ),
        (
            [chemistry("rna004", "", 130, 4000)],
            ["no model for RNA004 (130 bases/s) at 4 kHz"],
        ),
    ],
)
def test_where_nothing_fits_the_way_out_is_named(tmp_path: Path, runs: list[Chemistry], words: list[str]) -> None:
    with pytest.raises(NoModel) as refused:
        choose_model(runs, tmp_path)
    for word in words:
        assert word in str(refused.value)


def test_models_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    own = add_model(tmp_path / "models", "own@v1")
    assert find_model(str(own)) == own
    assert find_model("own@v1", tmp_path / "models") == own
    assert find_model(BUNDLED.name, tmp_path / "models") == BUNDLED
    with pytest.raises(
        NoModel, match=f"other@v1: no such model directory.*{tmp_path}/models; .*own@v1, {BUNDLED.name}"
    ):
        find_model("other@v1", tmp_path / "models")
    with pytest.raises(NoModel, match=r"did you mean porestream_dna_r10\.4\.1_400bps_fast@v1\?"):
        find_model("porestream_dna_r10.4.1_400bps_fast", tmp_path / "models")
    with pytest.raises(NoModel, match=r"none \(which does not exist\); available models"):
        find_model("own@v1", tmp_path / "none")


def test_a_folder_that_is_called_like_a_model_does_not_hide_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = add_model(tmp_path / "models", "own@v1")
    (tmp_path / "own@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("own@v1", tmp_path / "models") == own
    assert find_model("own@v1", tmp_path / "none") == Path("own@v1")  # for want of another: config.toml is missed there


def test_the_models_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_models_directory() == tmp_path / "porestream" / "models"
    add_model(tmp_path / "porestream" / "models", "own@v1")
    assert find_model("own@v1").parent == tmp_path / "porestream" / "models"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_models_directory() == Path.home() / ".local" / "share" / "porestream" / "models"
