"""References to align to: where each is aligned, what that takes of a card, and loading them.

On a device an index of ours is needed beside minimap2's: `porestream index` makes it, or --aligner gpu does.
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
from porestream.kernels.align.device_aligner import BATCH_BASES, BYTES_A_BASE, MEMORY_BYTES, DeviceAligner
from porestream.kernels.align.fasta import ReferenceFileError, first_bytes, read_fasta
from porestream.kernels.align.index import Index, build_index, index_beside, index_name, load_index
from porestream.kernels.align.mmi import MAGIC as MMI_MAGIC
from porestream.kernels.device import CudaDevice, Device
from porestream.models.call.card import Card
from porestream.server.start.settings import Settings, SettingsError

log = structlog.get_logger()

_LEAST_BATCH_BASES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One reference with one preset; `index`: it is aligned on the device, in batches of so many bases."""

    path: Path
    preset: str
    index: Index | None
    batch_bases: int = BATCH_BASES

    @property
    def device_bytes(self) -> int:
        """What it takes of the device."""
        index_bytes = self.index.device_bytes if self.index else 0
        return index_bytes + MEMORY_BYTES + self.batch_bases * BYTES_A_BASE


def plan_references(
    settings: Settings, models: Sequence[str], cache_dir: Path, device: Device | None, card: Card | None
) -> list[Plan]:
    """Which references are aligned where; a card keeps the memory for them free.

    Parameters
    ----------
    settings
        References, presets, and what shall align.
    models
        Names of the models, of which presets follow.
    cache_dir
        Where indexes are.
    device
        Where kernels may align; None: nowhere.
    card
        The card of the networks, if that is where.

    Raises
    ------
    SettingsError
        The indexes do not fit into the card's memory, or one cannot be built of what is given.
    ReferenceFileError
        A reference or an index cannot be used.
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
    fixed = index_bytes + MEMORY_BYTES * len(indexes)
    bases = min(BATCH_BASES, (free - fixed) // 4 // BYTES_A_BASE // len(indexes))
    if bases < _LEAST_BATCH_BASES:
        raise SettingsError(
            f"{card.device} has {free:,} bytes free, and indexes and alignment need {fixed:,} and more: fewer "
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
    return [Plan(path=plan.path, preset=plan.preset, index=plan.index, batch_bases=bases) for plan in plans]


def _index(path: Path, preset: str, settings: Settings, cache_dir: Path) -> Index | None:
    """The device's index of a reference: found, built where kernels are asked for, or None."""
    is_mmi = first_bytes(path, len(MMI_MAGIC)) == MMI_MAGIC
    if is_mmi:
        if settings.aligner == "gpu":
            raise SettingsError(f"reference {path}: an index for minimap2 is none for a card; give its FASTA")
        log.info("aligning with minimap2: a .mmi is given, and no FASTA", reference=path.name)
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
                log.warning("a cached index is damaged and is made again", reason=str(error))
                place.unlink()
                continue
            if index.reference.sha256 != reference.sha256 or index.preset != PRESETS[preset]:
                raise ReferenceFileError(place, f"it is not of {path.name} with {preset}", "build it again")
            return index
    if settings.aligner != "gpu":
        log.warning(
            "aligning with minimap2: there is no index for the device",
            reference=path.name,
            preset=preset,
            make_one=f"porestream index {path} --preset {preset}",
        )
        return None
    cache_dir.mkdir(parents=True, exist_ok=True)
    log.info("building an index for the device", reference=path.name, preset=preset)
    build_index(path, reference, PRESETS[preset], cache_dir / name)
    return load_index(cache_dir / name)


def _check_trust(index: Path, fasta: Path) -> None:
    """Where reads align is up to the index: nobody may write it who cannot write the FASTA, in /tmp say."""
    about, of_fasta = index.stat(), fasta.stat()
    everybody = about.st_mode & ~of_fasta.st_mode & stat.S_IWOTH
    if everybody or about.st_uid not in (0, os.geteuid(), of_fasta.st_uid):
        mode = f"mode {stat.S_IMODE(about.st_mode):04o}"
        problem = f"it belongs to the user {about.st_uid} ({mode}), {fasta.name} to {of_fasta.st_uid}"
        raise ReferenceFileError(index, problem, "remove it, or chown it and chmod go-w")


def load_references(
    settings: Settings, plans: Sequence[Plan], cache_dir: Path, device: Device | None
) -> dict[tuple[str, str], Aligner]:
    """The aligners by the reference's name and preset.

    Raises
    ------
    SettingsError
        Two references have one name.
    ReferenceFileError
        A reference cannot be used.
    """
    aligners: dict[tuple[str, str], Aligner] = {}
    for plan in plans:
        started_s = time.monotonic()
        minimap2 = _load_minimap2(settings, plan, cache_dir)
        aligner: Aligner = minimap2
        if plan.index is not None and device is not None:
            on = replace(device, limit_bytes=plan.device_bytes) if isinstance(device, CudaDevice) else device
            aligner = DeviceAligner(on, plan.index, minimap2, plan.batch_bases)
            aligner.warm_up()
        key = (aligner.reference.name, plan.preset)
        if key in aligners:
            raise SettingsError(f"two references are called {key[0]!r}: streams could not tell them apart")
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
    """minimap2's own; beside a device it looks at every anchor in reach, as kernels do."""
    return load_reference(
        plan.path,
        preset=plan.preset,
        cache_dir=cache_dir,
        threads=settings.worker_count,
        all_anchors=plan.index is not None,
    )
