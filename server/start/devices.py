"""What connects models and kernels, which do not know each other: kernels in a card's stream and memory."""

import os
from pathlib import Path

import structlog

from porestream.kernels.decode.crf import MAX_STATE_LEN, CrfDecoder
from porestream.kernels.device import CardTooOld, Device, find_kernel_device
from porestream.models.call.basecaller import decode_settings
from porestream.models.call.card import Card, find_device
from porestream.models.files.config import ModelConfig
from porestream.models.files.private_folder import private_cache_dir, private_subfolder
from porestream.server.start.settings import Settings, SettingsError

log = structlog.get_logger()


def keep_device_code(cache_dir: Path) -> None:
    """Have CuPy and the driver keep what they compile where nobody else can put code: both load it without a look.

    That is in the cache directory, or where CUPY_CACHE_DIR and CUDA_CACHE_PATH say, as far as that is private. To be
    called before either is used.

    Raises
    ------
    UnsafeCacheError
        What is there may be somebody else's.
    """
    for variable, name in (("CUPY_CACHE_DIR", "cupy"), ("CUDA_CACHE_PATH", "cuda")):
        if given := os.environ.get(variable):
            folder = private_cache_dir(Path(given), f"have {variable} name a folder of your own")
        else:
            folder = private_subfolder(cache_dir, name) or cache_dir / name  # who writes finds out
        os.environ[variable] = str(folder)


def open_card(settings: Settings) -> Card | None:
    """The card that the settings mean; None: networks run on the CPU.

    Raises
    ------
    ModelError
        There is no such card.
    """
    device = find_device("cpu" if settings.device == "emulated" else settings.device)
    return Card(device, settings.worker_count) if device.type == "cuda" else None


def kernel_device(device: str, card: Card | None) -> Device | None:
    """Where kernels run; None: nowhere, for there is no card.

    Parameters
    ----------
    device
        The setting.
    card
        The card of the networks: kernels go into its stream, and their arrays are from PyTorch's pool.

    Raises
    ------
    DeviceError
        CuPy is not installed, or finds no card.
    """
    if device == "emulated":
        return find_kernel_device("emulated")
    if card is None:
        return None
    stream = {"stream": card.stream.cuda_stream, "allocate": card.allocate, "free": card.free}
    return find_kernel_device(f"cuda:{card.device.index or 0}", **stream)


def kernel_devices(settings: Settings, card: Card | None) -> tuple[Device | None, Device | None]:
    """Where kernels decode, and where they may align; None: the CPU does.

    They align in a stream and in memory of their own, so that a batch of alignments runs beside those of networks.

    Raises
    ------
    DeviceError
        CuPy is not installed, or finds no card; or kernels are asked for on a card that is too old for them.
    SettingsError
        Kernels are asked for where there is no card.
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
            raise SettingsError(f"{name} gpu: device {settings.device} is a CPU here; choose --device cuda or emulated")
    aligns = None
    if device is not None and settings.aligner != "mappy" and settings.reference:
        aligns = device if card is None else find_kernel_device(device.name, stream=card.another_stream())
    return device if settings.decoder != "cpu" else None, aligns


def batch_decoder(device: Device | None, config: ModelConfig) -> CrfDecoder | None:
    """A model's decoder on a device; None where the CPU decodes, as it does where there are too many states."""
    if device is None:
        return None
    if config.state_len > MAX_STATE_LEN:
        log.warning("decoding on the CPU: too many states for the kernels", states=4**config.state_len)
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
