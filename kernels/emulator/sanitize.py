"""Scripts under g++'s sanitizers: bad addresses and races of kernels, reported at their source lines."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

Kind = Literal["address", "thread"]
FOUND = 66
"""The exit status of a script in which a sanitizer has found something."""

_RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
_TRIES = 20


class SanitizerMissingError(RuntimeError):
    """A sanitizer's runtime library is not installed."""


def find_runtime(kind: Kind) -> Path:
    """The sanitizer's runtime library, which has to be in a process from its start."""
    file = _RUNTIMES[kind]
    try:
        run = subprocess.run(("g++", f"-print-file-name={file}"), capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SanitizerMissingError("sanitizers come with g++, which is not on PATH: apt-get install g++") from error
    path = Path(run.stdout.strip())
    if not path.is_absolute():  # g++ gives back the name of what it does not find
        raise SanitizerMissingError(f"g++ has no {file}: apt-get install libgcc-12-dev, or that of its version")
    return path.resolve()


def run_sanitized(kind: Kind, script: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own under a sanitizer; it builds ``RawModule(..., sanitize=kind)``.

    Returns
    -------
    CompletedProcess
        Its status is `FOUND` if the sanitizer has found something; the reports are in ``stderr``.

    Raises
    ------
    SanitizerMissingError
        The runtime library is not installed.
    """
    env = {
        **os.environ,
        "LD_PRELOAD": str(find_runtime(kind)),
        # Python leaks by design, and fibers are no stacks that the sanitizer knows.
        "ASAN_OPTIONS": f"exitcode={FOUND}:detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": f"exitcode={FOUND}:print_stacktrace=1",
        "TSAN_OPTIONS": f"exitcode={FOUND}",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = (*_without_randomised_addresses(), sys.executable, "-c", script)
    for _ in range(_TRIES):
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s)
        if "unexpected memory mapping" not in run.stderr:
            break
    return run


@functools.cache
def _without_randomised_addresses() -> tuple[str, ...]:
    """The command that keeps addresses where the thread sanitizer of g++ before 14 wants them.

    Kernels since 6.6 spread them wider (vm.mmap_rnd_bits). Containers may forbid the command: then chance has to help.
    """
    command = ("setarch", "--addr-no-randomize")
    try:
        works = subprocess.run((*command, "true"), capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else ()
