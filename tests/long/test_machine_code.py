"""The machine code of every kernel for every kind of GPU; tests/kernels/test_cubin.py has the H100's."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from cubin import ARCHITECTURES, KERNELS, Configuration
from machine_code import check_limits

OTHERS = [arch for arch in ARCHITECTURES if arch != 90]


@pytest.fixture(scope="module")
def checks() -> Iterator[dict[tuple[str, int], Future[None]]]:
    """All checks, on all cores: NVRTC and the tools run beside Python."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {(one.name, arch): pool.submit(check_limits, one, arch) for one in KERNELS for arch in OTHERS}


@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize("configuration", KERNELS, ids=lambda configuration: configuration.name)
def test_kernels_keep_to_the_limits(
    configuration: Configuration, arch: int, checks: dict[tuple[str, int], Future[None]]
) -> None:
    checks[configuration.name, arch].result()
