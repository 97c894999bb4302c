"""Energy, memory, load and temperature of the GPU (from NVML), and energy of the CPU (from the kernel's powercap).

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
    """One reading of a device; None: the device does not report that value."""

    energy_joules: float | None = None  # since the meter was created
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None


class Meter(Protocol):
    """Reads one device."""

    def read(self) -> Reading:
        """Return the current values."""


def find_meters(card_index: int | None) -> dict[str, Meter]:
    """Return the available meters by device ("cpu", "cuda:N"). `card_index` is the CUDA index of the GPU in use."""
    meters: dict[str, Meter] = {}
    packages = readable_packages(_POWERCAP)
    if packages:
        meters["cpu"] = CpuMeter(packages)
    if card_index is not None:
        try:
            import pynvml
        except ImportError:
            log.warning("no GPU energy and memory metrics: nvidia-ml-py is not installed")
            return meters
        try:
            meters[f"cuda:{card_index}"] = open_card_meter(pynvml, card_index)
        except pynvml.NVMLError as error:  # the GPU works without its meter
            log.warning("no GPU energy and memory metrics: NVML failed", reason=str(error))
    return meters


def readable_packages(powercap: Path) -> list[Path]:
    """Return the folders of the CPU packages whose energy this user may read (on Linux only root, by default)."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD too; "a:b" without a second colon is a package
        if folder.name.count(":") != 1:
            continue
        try:
            (folder / "energy_uj").read_text()
            name = (folder / "name").read_text()
        except OSError:
            continue
        if name.startswith("package-"):  # "psys" is the whole platform, including the packages
            found.append(folder)
    return found


class CpuMeter:
    """Reads the energy of the CPU packages. Thread-safe."""

    def __init__(self, packages: list[Path]) -> None:
        self._lock = threading.Lock()
        self._packages = packages
        self._ranges_uj = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self._last_uj = [self._read(package) for package in packages]
        self._total_uj = 0

    def read(self) -> Reading:
        """Return the energy since the start. Call it at least once per counter wrap (minutes at full load)."""
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
    """Open the meter of a GPU by CUDA index. It is found by UUID because NVML numbers GPUs in another order."""
    nvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(card_index).uuid)  # without NVML's prefix
    return CardMeter(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))


class CardMeter:
    """Reads a GPU through NVML.

    Parameters
    ----------
    nvml
        The module `pynvml`.
    handle
        The GPU's NVML handle.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._first_mj = self._ask(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def read(self) -> Reading:
        """Return what the GPU reports: some lack energy, some temperature."""
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
