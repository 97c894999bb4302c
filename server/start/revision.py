"""The number that tells callers apart whose results differ."""

CALLING_REVISION = 2
"""Raised by every commit that changes a byte of any result: bases, qualities, moves, scaling, trimming, alignments.

A run is called by one revision from its first read to its last, and versions of one revision are one caller: that is
what a rollout in the midst of runs needs. tests/server/test_revision.py fails where bytes changed and this did not.

1
    All versions before there was this number.
2
    A move table ends with the last whole step, and the base of a partial one is not called.
"""
