"""Plan and load references: where each is aligned, and how much GPU memory that takes.

Aligning on a GPU needs our own index as well as minimap2's: `porestream index` builds it, or --aligner gpu does.
"""

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from porestream.kernels.align.aligner import PRESETS, Aligner, MappyAligner, load_reference, preset_for_model
from porestream.kernels.align.device_aligner import (
    BATCH_BASES,
    BYTES_A_BASE,
    LEAST_TASK_BYTES,
    MOST_TASK_BYTES,
    DeviceAligner,
)
from porestream.kernels.align.fasta import ReferenceFileError, first_bytes, read_fasta
from porestream.kernels.align.index import Index, build_index, index_beside, index_name, load_index
from porestream.kernels.align.mmi import MAGIC as MMI_MAGIC
from porestream.kernels.device import CudaDevice, Device
from porestream.models.call.card import Card
from porestream.server.settings import Settings, SettingsError

log = structlog.get_logger()

_TASK_SHARE = 32  # of the free memory
_LEAST_BATCH_BASES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One reference with one preset. With an `index` it is aligned on the GPU, in batches of `batch_bases`."""

    path: Path
    preset: str
    index: Index | None
    batch_bases: int = BATCH_BASES
    task_bytes: int = LEAST_TASK_BYTES

    @property
    def device_bytes(self) -> int:
        """Device memory needed, in bytes."""
        index_bytes = self.index.device_bytes if self.index else 0
        return index_bytes + self.task_bytes + self.batch_bases * BYTES_A_BASE


def plan_references(
    settings: Settings, models: Sequence[str], cache_dir: Path, device: Device | None, card: Card | None
) -> list[Plan]:
    """Decide where each reference is aligned, and reserve the GPU memory for it.

    Parameters
    ----------
    settings
        References, presets and the aligner.
    models
        Names of the models; they determine the default presets.
    cache_dir
        Folder with the indexes.
    device
        Device that kernels may align on; None: minimap2 aligns everything.
    card
        The networks' GPU, if that is the device.

    Raises
    ------
    SettingsError
        The indexes do not fit into GPU memory, or one cannot be built from the given file.
    ReferenceFileError
        A reference or an index is unusable.
    """
    presets = settings.preset or sorted({preset_for_model(model) for model in models})
    plans = [
        Plan(path=path, preset=preset, index=_index(path, preset, settings, cache_dir) if device else None)
        for path in settings.reference
        for preset in presets
    ]
    indexes = [plan.index for plan in plans if plan.index]
    if card is None or not indexes:
        return plans
    free = int(torch.cuda.mem_get_info(card.device)[0])
    index_bytes = sum(index.device_bytes for index in indexes)
    task_bytes = min(max(LEAST_TASK_BYTES, free // _TASK_SHARE // len(indexes)), MOST_TASK_BYTES)
    fixed = index_bytes + task_bytes * len(indexes)
    bases = min(BATCH_BASES, (free - fixed) // 4 // BYTES_A_BASE // len(indexes))
    if bases < _LEAST_BATCH_BASES:
        raise SettingsError(
            f"{card.device} has {free:,} bytes free, but indexes and alignment need more than {fixed:,}; use fewer "
            "references or presets, or --aligner mappy"
        )
    card.reserved_bytes = fixed + bases * BYTES_A_BASE * len(indexes)
    log.info(
        "card planned",
        free_bytes=free,
        index_bytes=index_bytes,
        alignment_bytes=card.reserved_bytes - index_bytes,
        models_bytes=free - card.reserved_bytes,
        batch_bases=bases,
    )
    return [replace(plan, batch_bases=bases, task_bytes=task_bytes) for plan in plans]


def _index(path: Path, preset: str, settings: Settings, cache_dir: Path) -> Index | None:
    """Find a reference's index for the GPU, or build it if --aligner gpu is set; None: align with minimap2."""
    is_mmi = first_bytes(path, len(MMI_MAGIC)) == MMI_MAGIC
    if is_mmi:
        if settings.aligner == "gpu":
            raise SettingsError(f"reference {path}: a .mmi cannot be used on a GPU; pass the FASTA")
        log.info("aligning with minimap2: the reference is a .mmi, and a GPU needs the FASTA", reference=path.name)
        return None
    reference = read_fasta(path)
    name = index_name(reference, PRESETS[preset])
    for place in (index_beside(path, preset), cache_dir / name):
        if place.exists():
            if place.parent != cache_dir:
                _check_trust(place, path)
            try:
                index = load_index(place)
            except ReferenceFileError as error:
                if place.parent != cache_dir:
                    raise
                log.warning("rebuilding a damaged cached index", reason=str(error))
                place.unlink()
                continue
            if index.reference.sha256 != reference.sha256 or index.preset != PRESETS[preset]:
                raise ReferenceFileError(place, f"it was not built from {path.name} with {preset}", "build it again")
            return index
    if settings.aligner != "gpu":
        log.warning(
            "aligning with minimap2: the reference has no index for the GPU",
            reference=path.name,
            preset=preset,
            make_one=f"porestream index {path} --preset {preset}",
        )
        return None
    cache_dir.mkdir(parents=True, exist_ok=True)
    log.info("building an index for the GPU", reference=path.name, preset=preset)
    build_index(path, reference, PRESETS[preset], cache_dir / name)
    return load_index(cache_dir / name)


def _check_trust(index: Path, fasta: Path) -> None:
    """Refuse an index that others than the FASTA's writers can write, say in /tmp: it decides where reads align."""
    about, of_fasta = index.stat(), fasta.stat()
    everybody = about.st_mode & ~of_fasta.st_mode & stat.S_IWOTH
    if everybody or about.st_uid not in (0, os.geteuid(), of_fasta.st_uid):
        mode = f"mode {stat.S_IMODE(about.st_mode):04o}"
        problem = f"it belongs to user {about.st_uid} ({mode}), but {fasta.name} belongs to user {of_fasta.st_uid}"
        raise ReferenceFileError(index, problem, "remove it, or chown it and chmod go-w")


def load_references(
    settings: Settings, plans: Sequence[Plan], cache_dir: Path, device: Device | None
) -> dict[tuple[str, str], Aligner]:
    """Load the aligners and return them by reference name and preset.

    Raises
    ------
    SettingsError
        Two references have the same name.
    ReferenceFileError
        A reference is unusable.
    """
    aligners: dict[tuple[str, str], Aligner] = {}
    for plan in plans:
        started_s = time.monotonic()
        minimap2 = _load_minimap2(settings, plan, cache_dir)
        aligner: Aligner = minimap2
        if plan.index is not None and device is not None:
            on = replace(device, limit_bytes=plan.device_bytes) if isinstance(device, CudaDevice) else device
            aligner = DeviceAligner(on, plan.index, minimap2, plan.batch_bases, plan.task_bytes)
            aligner.warm_up()
        key = (aligner.reference.name, plan.preset)
        if key in aligners:
            raise SettingsError(
                f"two references are named {key[0]!r}, and streams choose references by name; rename one of the files"
            )
        aligners[key] = aligner
        log.info(
            "reference loaded",
            reference=key[0],
            preset=plan.preset,
            aligner="mappy" if aligner is minimap2 else f"gpu ({device.name if device else ''})",
            sequences=len(aligner.reference.sequences),
            seconds=round(time.monotonic() - started_s, 2),
        )
    return aligners


def _load_minimap2(settings: Settings, plan: Plan, cache_dir: Path) -> MappyAligner:
    """Load minimap2's aligner. Alongside a GPU it considers every anchor in reach, as the kernels do."""
    return load_reference(
        plan.path,
        preset=plan.preset,
        cache_dir=cache_dir,
        threads=settings.worker_count,
        all_anchors=plan.index is not None,
    )
