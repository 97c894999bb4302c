"""Move tables as Remora's own reader wants them; `make compare-remora` has Remora itself read ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from porestream.server.reads import CalledPart

CASES = json.loads(Path(__file__).with_name("remora_cases.json").read_text())["cases"]


def fits(steps: int, samples: int, trimmed_samples: int, stride: int) -> bool:
    """What test_records.py, test_trim.py and the real reads' tests ask of every record."""
    return steps == (samples - trimmed_samples) // stride


def test_remora_takes_tables_of_whole_steps_and_no_others() -> None:
    assert {case["taken"] for case in CASES} == {True, False}
    for case in CASES:
        asked = fits(case["steps"], case["samples"], case["trimmed_samples"], case["stride"])
        assert asked is case["taken"], case


@pytest.mark.parametrize("case", [case for case in CASES if case["taken"]], ids=str)
def test_the_samples_of_a_part_are_those_that_remora_takes(case: dict[str, int]) -> None:
    """Bases that are cut off at the end take samples with them; a partial step there does not."""
    steps, stride = case["steps"], case["stride"]
    part = CalledPart(
        sequence="",
        qualities_B=np.empty(0, np.uint8),
        moves_T=np.zeros(steps, np.uint8),
        mean_qscore=0.0,
        trimmed_samples=case["trimmed_samples"],
        stride=stride,
        alignments=[],
    )
    assert fits(steps, part.samples_of(case["signal_samples"]), case["trimmed_samples"], stride)
