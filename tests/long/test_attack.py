"""Two seconds of some of what `make attack` does for longer: nobody is hurt, and an attack is one.

How much of its speed the honest stream keeps is for quiet machines; that all its reads are called is for all.
"""

import sys
from pathlib import Path

import attack
import pytest

CHOSEN = ["700 silent connections", "protobuf bomb", "rejected reads"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and the whole of 127.0.0.0/8")
def test_an_honest_stream_goes_on_beside_attacks(tiny_model: Path, tmp_path: Path) -> None:
    field = attack.Field(tmp_path, str(tiny_model), log="full pipe")
    found = [field.attack(name, 2.0) for name in CHOSEN]
    assert field.close() == 0
    for outcome in found:
        assert outcome.alive, outcome
        assert not outcome.failed_checks, outcome
        assert not outcome.lost_reads, outcome
        assert outcome.memory_bytes < attack.MOST_MEMORY * attack.BUDGET_BYTES, outcome
        assert "failed" not in outcome.did
        assert any(digit in "123456789" for digit in outcome.did), f"it did nothing: {outcome}"
