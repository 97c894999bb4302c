"""What the machine code of every kernel has to keep to."""

import cubin
from cubin import Configuration

MOST_INSTRUCTIONS_A_CELL = 3.0
"""That a warp takes for a cell of each of its lanes' alignments."""


def check_limits(configuration: Configuration, arch: int) -> None:
    """Fail if a kernel spills registers, cannot be launched, or takes too many instructions."""
    found = configuration.report(configuration.compile(arch))
    assert not found.spills, found
    assert found.max_threads is None or configuration.block_threads <= found.max_threads
    shared_bytes = found.static_shared_bytes + configuration.dynamic_shared_bytes
    assert cubin.occupancy(arch, found.registers, configuration.block_threads, shared_bytes).blocks > 0
    if configuration.unit == "cell" and configuration.units is not None:
        assert found.instructions_per(configuration.units) < MOST_INSTRUCTIONS_A_CELL
