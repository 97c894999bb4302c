"""Where references are aligned, and what that takes of a card."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from porestream.kernels.align.aligner import PRESETS, MappyAligner, load_reference
from porestream.kernels.align.device_aligner import (
    BATCH_BASES,
    BYTES_A_BASE,
    LEAST_TASK_BYTES,
    MOST_TASK_BYTES,
    DeviceAligner,
)
from porestream.kernels.align.fasta import ReferenceFileError, read_fasta
from porestream.kernels.align.index import build_index
from porestream.kernels.device import EmulatedDevice
from porestream.server.settings import Settings, SettingsError
from porestream.server.start.references import load_references, plan_references

DEVICE = EmulatedDevice()
MODELS = ["dna_r10.4.1_e8.2_400bps_hac@v5.0.0"]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "r.fa"
    path.write_text(">c\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    return path


def settings(fasta: Path, aligner: str = "auto", **more: Any) -> Settings:
    return Settings(reference=[fasta], aligner=aligner, **more)  # type: ignore[arg-type]


def test_without_a_device_nothing_is_looked_for(fasta: Path, tmp_path: Path) -> None:
    (plan,) = plan_references(settings(fasta), MODELS, tmp_path / "cache", None, None)
    assert (plan.preset, plan.index) == ("lr:hq", None)


def test_auto_takes_minimap2_where_there_is_no_index_and_says_how_to_get_one(fasta: Path, tmp_path: Path) -> None:
    with capture_logs() as said:
        (plan,) = plan_references(settings(fasta), MODELS, tmp_path / "cache", DEVICE, None)
    assert plan.index is None
    assert said[0]["log_level"] == "warning"
    assert said[0]["make_one"] == f"porestream index {fasta} --preset lr:hq"
    aligners = load_references(settings(fasta), [plan], tmp_path / "cache", DEVICE)
    assert isinstance(aligners["r.fa", "lr:hq"], MappyAligner)


def test_auto_takes_an_index_that_lies_beside_the_reference(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(fasta, read_fasta(fasta), PRESETS["lr:hq"], tmp_path / "r.fa.lr-hq.psindex")
    plans = plan_references(settings(fasta, preset=["lr:hq", "map-ont"]), MODELS, tmp_path / "cache", DEVICE, None)
    assert [plan.index is not None for plan in plans] == [True, False]  # of map-ont there is none
    warmed: list[str] = []
    monkeypatch.setattr(DeviceAligner, "warm_up", lambda self: warmed.append(self.preset))
    aligners = load_references(settings(fasta), plans, tmp_path / "cache", DEVICE)
    assert isinstance(aligners["r.fa", "lr:hq"], DeviceAligner)
    assert warmed == ["lr:hq"]  # compiled before the first read comes
    assert isinstance(aligners["r.fa", "map-ont"], MappyAligner)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_an_index_of_somebody_who_has_no_say_in_the_fasta_is_refused(fasta: Path, tmp_path: Path) -> None:
    """As in /tmp, where everybody can put a file beside the FASTA; in a lab's folder both are the keeper's."""
    index = tmp_path / "r.fa.lr-hq.psindex"
    build_index(fasta, read_fasta(fasta), PRESETS["lr:hq"], index)
    os.chown(index, 12345, 12345)
    with pytest.raises(ReferenceFileError, match=rf"{index}: it belongs to user 12345 \(mode .*\), but r.fa bel"):
        plan_references(settings(fasta), MODELS, tmp_path / "cache", DEVICE, None)
    os.chown(fasta, 12345, 12345)
    assert plan_references(settings(fasta), MODELS, tmp_path / "cache", DEVICE, None)[0].index is not None
    index.chmod(0o666)
    with pytest.raises(ReferenceFileError, match="mode 0666"):
        plan_references(settings(fasta), MODELS, tmp_path / "cache", DEVICE, None)


def test_gpu_builds_an_index_once(fasta: Path, tmp_path: Path) -> None:
    for _ in range(2):
        (plan,) = plan_references(settings(fasta, "gpu"), MODELS, tmp_path / "cache", DEVICE, None)
        assert plan.index is not None
        (built,) = (tmp_path / "cache").glob("*.psindex")
        first_s = built.stat().st_mtime_ns
    assert built.stat().st_mtime_ns == first_s


def test_an_index_of_another_reference_is_refused(fasta: Path, tmp_path: Path) -> None:
    build_index(fasta, read_fasta(fasta), PRESETS["lr:hq"], tmp_path / "r.fa.lr-hq.psindex")
    fasta.write_text(">c\n" + "ACGGT" * 100 + "\n")
    with pytest.raises(ReferenceFileError, match=r"it was not built from r\.fa with lr:hq; build it again"):
        plan_references(settings(fasta), MODELS, tmp_path / "cache", DEVICE, None)


def test_a_mmi_is_no_index_for_a_card(fasta: Path, tmp_path: Path) -> None:
    load_reference(fasta, preset="lr:hq", cache_dir=tmp_path / "cache", threads=1)
    (mmi,) = (tmp_path / "cache").glob("*.mmi")
    (plan,) = plan_references(settings(mmi), MODELS, tmp_path / "cache", DEVICE, None)
    assert plan.index is None
    with pytest.raises(SettingsError, match="pass the FASTA"):
        plan_references(settings(mmi, "gpu"), MODELS, tmp_path / "cache", DEVICE, None)


@pytest.mark.parametrize(
    ("free", "bases", "task_bytes"), [(80 << 30, BATCH_BASES, MOST_TASK_BYTES), (2 << 30, 7_340_000, LEAST_TASK_BYTES)]
)
def test_a_card_keeps_room_for_the_index_and_a_batch(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, bases: int, task_bytes: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    card: Any = SimpleNamespace(device="cuda:0", stream=object(), reserved_bytes=0)
    with capture_logs() as said:
        (plan,) = plan_references(settings(fasta, "gpu"), MODELS, tmp_path / "cache", DEVICE, card)
    assert plan.index is not None
    assert plan.batch_bases == pytest.approx(bases, rel=0.01)
    assert card.reserved_bytes == plan.index.device_bytes + task_bytes + plan.batch_bases * BYTES_A_BASE
    (planned,) = [one for one in said if one["event"] == "card planned"]
    assert planned["free_bytes"] == free
    assert planned["models_bytes"] == free - planned["index_bytes"] - planned["alignment_bytes"]
    assert planned["index_bytes"] == plan.index.device_bytes


def test_what_does_not_fit_a_card_is_refused(fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (300 << 20, 1 << 30))
    card: Any = SimpleNamespace(device="cuda:0", stream=object(), reserved_bytes=0)
    with pytest.raises(SettingsError, match=r"cuda:0 has 314,572,800 bytes free, but indexes .* more than 268,"):
        plan_references(settings(fasta, "gpu"), MODELS, tmp_path / "cache", DEVICE, card)
