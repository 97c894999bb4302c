"""Runs scripts under g++'s sanitizers, which report kernels' bad addresses and races with source lines."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

Kind = Literal["address", "thread"]
FOUND = 66
"""Exit status of a script in which a sanitizer found something."""

_RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
_TRIES = 20


class SanitizerMissingError(RuntimeError):
    """A sanitizer's runtime library is not installed."""


def find_runtime(kind: Kind) -> Path:
    """Find the sanitizer's runtime library, which must be loaded when a process starts."""
    file = _RUNTIMES[kind]
    try:
        run = subprocess.run(("g++", f"-print-file-name={file}"), capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SanitizerMissingError("the sanitizers need g++, but it is not on PATH: apt-get install g++") from error
    path = Path(run.stdout.strip())
    if not path.is_absolute():  # g++ returns the bare name of a file that it does not find
        raise SanitizerMissingError(f"g++ has no {file}: apt-get install libgcc-12-dev, or the one for your version")
    return path.resolve()


def run_sanitized(kind: Kind, script: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Python code that builds ``RawModule(..., sanitize=kind)`` in a new process under a sanitizer.

    Returns
    -------
    CompletedProcess
        The exit status is `FOUND` if the sanitizer found something; the reports are in ``stderr``.

    Raises
    ------
    SanitizerMissingError
        The runtime library is not installed.
    """
    env = {
        **os.environ,
        "LD_PRELOAD": str(find_runtime(kind)),
        # Python leaks by design, and the sanitizer does not know fibers' stacks.
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
    """Return the command that turns off address randomisation, for the thread sanitizer of g++ before 14.

    Since 6.6, Linux spreads addresses more widely than it can handle (vm.mmap_rnd_bits). Containers may forbid the
    command; then only retrying helps.
    """
    command = ("setarch", "--addr-no-randomize")
    try:
        works = subprocess.run((*command, "true"), capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else ()
