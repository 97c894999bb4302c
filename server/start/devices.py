"""Connect models and kernels, which don't know each other: kernels run in the GPU's stream and memory."""

import os
from pathlib import Path

import structlog

from porestream.kernels.decode.crf import MAX_STATE_LEN, CrfDecoder
from porestream.kernels.device import CardTooOld, Device, find_kernel_device
from porestream.kernels.network.passes import NetworkPasses
from porestream.models.call.basecaller import decode_settings
from porestream.models.call.card import Card, find_device
from porestream.models.files.config import ModelConfig
from porestream.models.networks.flstm import LowRankLstms
from porestream.models.networks.transformer import Transformer
from porestream.models.private_folder import private_cache_dir, private_subfolder
from porestream.server.settings import Settings, SettingsError

log = structlog.get_logger()

CARD_BATCHES = 2
"""Batches that a GPU may have at a time: one is computed, one waits in the stream or is being copied to it."""


def keep_device_code(cache_dir: Path) -> None:
    """Make CuPy and the driver cache compiled code where nobody else can put any: both load it unchecked.

    That is the cache directory, or CUPY_CACHE_DIR and CUDA_CACHE_PATH if they name private folders. Call this before
    using either.

    Raises
    ------
    UnsafeCacheError
        Somebody else may have put files there.
    """
    for variable, name in (("CUPY_CACHE_DIR", "cupy"), ("CUDA_CACHE_PATH", "cuda")):
        if given := os.environ.get(variable):
            folder = private_cache_dir(Path(given), f"set {variable} to a folder of your own")
        else:
            folder = private_subfolder(cache_dir, name) or cache_dir / name  # writing there will fail and say why
        os.environ[variable] = str(folder)


def open_card(settings: Settings) -> Card | None:
    """Open the GPU that the settings name; None: networks run on the CPU.

    Raises
    ------
    ModelError
        There is no such GPU.
    """
    device = find_device("cpu" if settings.device == "emulated" else settings.device)
    return Card(device, settings.worker_count + CARD_BATCHES) if device.type == "cuda" else None


def kernel_device(device: str, card: Card | None) -> Device | None:
    """Return the device that kernels run on; None if there is no GPU.

    Parameters
    ----------
    device
        The `device` setting.
    card
        The networks' GPU: kernels run in its stream, and their arrays come from PyTorch's pool.

    Raises
    ------
    DeviceError
        CuPy is not installed or finds no GPU.
    """
    if device == "emulated":
        return find_kernel_device("emulated")
    if card is None:
        return None
    stream = {"stream": card.stream.cuda_stream, "allocate": card.allocate, "free": card.free}
    return find_kernel_device(f"cuda:{card.device.index or 0}", **stream)


def kernel_devices(settings: Settings, card: Card | None) -> tuple[Device | None, Device | None]:
    """Return the devices that decode and align; None: the CPU does.

    Alignment has its own stream and memory, so that a batch of alignments runs alongside the networks' batches.

    Raises
    ------
    DeviceError
        CuPy is not installed or finds no GPU, or kernels are requested on a GPU that is too old for them.
    SettingsError
        Kernels are requested where there is no GPU.
    """
    asked = "gpu" in (settings.decoder, settings.aligner)
    device = None
    if settings.decoder != "cpu" or settings.aligner != "mappy":
        try:
            device = kernel_device(settings.device, card)
        except CardTooOld as error:
            if asked:
                raise
            log.warning("decoding on the CPU", reason=str(error))
    for name, value in (("decoder", settings.decoder), ("aligner", settings.aligner)):
        if value == "gpu" and device is None:
            raise SettingsError(
                f"--{name} gpu needs a GPU, but --device {settings.device} is a CPU here; "
                "choose --device cuda or --device emulated"
            )
    aligns = None
    if device is not None and settings.aligner != "mappy" and settings.reference:
        aligns = device if card is None else find_kernel_device(device.name, stream=card.another_stream())
    return device if settings.decoder != "cpu" else None, aligns


def batch_decoder(device: Device | None, config: ModelConfig) -> CrfDecoder | None:
    """Return a model's decoder on a device; None if the CPU decodes, as it does when there are too many states."""
    if device is None:
        return None
    if config.state_len > MAX_STATE_LEN:
        log.warning("decoding on the CPU: the model has too many states for the kernels", states=4**config.state_len)
        return None
    settings = decode_settings(config)
    return CrfDecoder(
        device,
        config.state_len,
        settings.stay_score,
        settings.quality_scale,
        settings.quality_bias,
        settings.beam_width,
        settings.beam_cut,
    )


def network_passes(device: Device | None, config: ModelConfig) -> NetworkPasses | None:
    """Return what computes a network's passes between matrix products on a device; None: torch does."""
    match config.layers.encoder:
        case LowRankLstms(width=width):
            fits = NetworkPasses.fits_lstm(width)
        case Transformer(width=width, heads=heads, hidden=hidden):
            fits = NetworkPasses.fits_transformer(width, heads, hidden)
        case _:
            fits = False
    return NetworkPasses(device) if device is not None and fits else None
