"""The number that distinguishes versions with different results."""

CALLING_REVISION = 3
"""Increased by every commit that changes a byte of any result: bases, qualities, moves, tags, scaling, trimming,
alignments.

One revision calls a run from its first read to its last. Versions with the same revision count as the same caller,
which allows a rollout during runs. tests/server/test_revision.py fails if results change and this number doesn't.

1
    All versions from before this number existed.
2
    A move table ends with the last whole step, and the base of a partial step is not called.
3
    LSTMs on x86 CPUs run in code of our own (models/networks/recurrence.py), and Intel's processors without AMX compute
    in float32 rather than bf16. Chunks have more lengths.
"""
