"""Runs CUDA kernels on the CPU: the same ``.cu`` text, compiled by g++, with one fiber per CUDA thread."""

from porestream.kernels.emulator.emulator import EmulatorError, RawModule, Schedule, scheduled

__all__ = ["EmulatorError", "RawModule", "Schedule", "scheduled"]
