"""Describes this machine: its memory and its processor."""

import os
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def host_memory_bytes() -> int:
    """Return the memory of this machine, or the container's limit if that is lower."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return machine if limit == "max" else min(machine, int(limit))


def processor_has_bf16() -> bool:
    """Return whether this processor has bf16 instructions, rather than emulating them."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def bf16_is_faster() -> bool:
    """Return whether this processor multiplies matrices faster in bf16 than in float32.

    Of Intel's only those with AMX do. Without it (older ones, and virtual machines that hide it) we measured half the
    rate of float32 (benchmarks/RESULTS.md, "Recurrences on a CPU").
    """
    if not processor_has_bf16():
        return False
    is_intel = _CPUINFO.is_file() and "GenuineIntel" in _CPUINFO.read_text()
    return not is_intel or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def processor_class(precision: str) -> str:
    """Return this processor's kind, e.g. "cpu-avx512", "cpu-avx512-amx"."""
    capabilities = torch.cpu.get_capabilities()
    name = f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"
    if precision == "bf16":
        name += "-amx" if capabilities.get("amx_bf16") else "-bf16" if processor_has_bf16() else "-emulated"
    return name
