"""CUDA kernels on the CPU: the same ``.cu`` text, compiled by g++ and run with one fiber a CUDA thread."""

from porestream.kernels.emulator.emulator import EmulatorError, RawModule, Schedule, scheduled

__all__ = ["EmulatorError", "RawModule", "Schedule", "scheduled"]
