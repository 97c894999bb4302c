"""Energy, memory, load and temperature of devices: a card's from NVML, the CPU's energy from the kernel's powercap.

NVML: https://docs.nvidia.com/deploy/nvml-api, nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was
loaded). Powercap: https://docs.kernel.org/power/powercap/powercap.html, energy_uj (wraps at max_energy_range_uj).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch

log = structlog.get_logger()

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a device says; None: it does not tell."""

    energy_joules: float | None = None  # since the meter was made
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None


class Meter(Protocol):
    """Reads one device."""

    def read(self) -> Reading:
        """Now."""


def find_meters(card_index: int | None) -> dict[str, Meter]:
    """The meters that there are, by device: "cpu", "cuda:N". `card_index` is CUDA's, of the card that is used."""
    meters: dict[str, Meter] = {}
    packages = readable_packages(_POWERCAP)
    if packages:
        meters["cpu"] = CpuMeter(packages)
    if card_index is not None:
        try:
            import pynvml
        except ImportError:
            log.warning("no energy and memory of the card in the metrics: nvidia-ml-py is not installed")
            return meters
        try:
            meters[f"cuda:{card_index}"] = open_card_meter(pynvml, card_index)
        except pynvml.NVMLError as error:  # a card works without its meter
            log.warning("no energy and memory of the card in the metrics", reason=str(error))
    return meters


def readable_packages(powercap: Path) -> list[Path]:
    """The folders of the processor's packages, whose energy this user may read (Linux: root, unless it is allowed)."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's, too; "a:b" without a second colon is a package
        if folder.name.count(":") != 1:
            continue
        try:
            (folder / "energy_uj").read_text()
            name = (folder / "name").read_text()
        except OSError:
            continue
        if name.startswith("package-"):  # "psys" is the whole platform, with the packages in it
            found.append(folder)
    return found


class CpuMeter:
    """Energy of the processor's packages. Thread-safe."""

    def __init__(self, packages: list[Path]) -> None:
        self._lock = threading.Lock()
        self._packages = packages
        self._ranges_uj = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self._last_uj = [self._read(package) for package in packages]
        self._total_uj = 0

    def read(self) -> Reading:
        """Energy since the start; to be read at least once before a counter goes round (minutes at full load)."""
        with self._lock:
            for index, package in enumerate(self._packages):
                now_uj = self._read(package)
                self._total_uj += (now_uj - self._last_uj[index]) % self._ranges_uj[index]
                self._last_uj[index] = now_uj
            return Reading(energy_joules=self._total_uj / 1e6)

    @staticmethod
    def _read(package: Path) -> int:
        return int((package / "energy_uj").read_text())


def open_card_meter(nvml: Any, card_index: int) -> "CardMeter":
    """The meter of CUDA's card of this number: found by its UUID, for NVML numbers cards in another order."""
    nvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(card_index).uuid)  # without NVML's prefix
    return CardMeter(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))


class CardMeter:
    """A card through NVML.

    Parameters
    ----------
    nvml
        The module `pynvml`.
    handle
        The card's.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._first_mj = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def read(self) -> Reading:
        """Whatever the card tells: some know no energy, some no temperature."""
        nvml, handle = self._nvml, self._handle
        energy_mj = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        return Reading(
            energy_joules=None if energy_mj is None or self._first_mj is None else (energy_mj - self._first_mj) / 1e3,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization_ratio=None if rates is None else rates.gpu / 100,
            temperature_celsius=self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return None
