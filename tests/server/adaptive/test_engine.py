"""Decisions about reads: readfish's recorded answers, and what it has none to compare with."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readfish_cases import made_up, our_answer

from porestream.server.adaptive.engine import Action, Condition, Decider, Hit, Rule, rule_of
from porestream.server.adaptive.targets import WHOLE, Interval, Targets, unknown_contigs

RECORDED = Path(__file__).with_name("readfish_2024_3_0.json.gz")
KEEP, EJECT, MORE = Action.STOP_RECEIVING, Action.UNBLOCK, Action.PROCEED
ENRICH = Condition(
    name="enrich",
    actions={
        Rule.SINGLE_ON: KEEP,
        Rule.MULTI_ON: KEEP,
        Rule.SINGLE_OFF: EJECT,
        Rule.MULTI_OFF: EJECT,
        Rule.NO_MAP: MORE,
        Rule.NO_SEQ: MORE,
    },
    targets=Targets([Interval("chr1", 1000, 2000, 1)]),
)
ON, OFF = Hit("chr1", 900, 1200, 1), Hit("chr1", 5000, 5400, 1)


def test_a_thousand_answers_are_readfishs() -> None:
    with gzip.open(RECORDED, "rt") as file:
        answers = json.load(file)
    assert len(answers) == 1000
    assert [seed for seed, theirs in enumerate(answers) if our_answer(made_up(seed)) != theirs] == []
    said = {(action, rule) for answer in answers for action, rule, *_ in answer}
    assert {rule for _, rule in said} == {rule.value for rule in Rule}
    assert {action for action, _ in said} == {action.value for action in Action}


def test_an_enrichment_read_by_read() -> None:
    decider = Decider(dict.fromkeys((7, 8), ENRICH), joined_midway=False)
    assert decider.decide(7, b"a", 0, []).action is MORE
    found = decider.decide(7, b"a", 400, [ON])
    assert (found.action, found.rule, found.evaluations, found.previous_action) == (KEEP, Rule.SINGLE_ON, 2, None)
    found = decider.decide(7, b"b", 400, [OFF])
    assert (found.action, found.send, found.evaluations, found.previous_action) == (EJECT, EJECT, 1, KEEP)
    for expected in (MORE, MORE):
        assert decider.decide(8, b"c", 400, []).action is expected
    found = decider.decide(8, b"c", 400, [])  # more often than max_chunks
    assert (found.action, found.rule) == (EJECT, Rule.ABOVE_MAX_CHUNKS)


def test_a_dry_run_ejects_nothing_and_says_what_it_would() -> None:
    decider = Decider({1: ENRICH}, joined_midway=False, dry_run=True)
    found = decider.decide(1, b"a", 400, [OFF])
    assert (found.action, found.send, found.is_overridden) == (EJECT, KEEP, True)


def test_control_channels_keep_everything() -> None:
    decider = Decider({1: replace(ENRICH, control=True)}, joined_midway=False)
    assert decider.decide(1, b"a", 400, [OFF]).action is KEEP


def test_a_channel_without_a_condition_is_named() -> None:
    with pytest.raises(KeyError, match="9"):
        Decider({1: ENRICH}).decide(9, b"a", 1, [])


INTERVALS = st.lists(
    st.builds(
        lambda contig, start, size, strand: Interval(contig, start, WHOLE if size > 28 else start + size, strand),
        st.sampled_from(["a", "b"]),
        st.integers(0, 60),
        st.integers(0, 30),
        st.sampled_from([1, -1]),
    ),
    max_size=12,
)


@given(INTERVALS, st.integers(0, 12), st.sampled_from(["a", "b", "c"]), st.sampled_from([1, -1]), st.integers(-3, 110))
def test_a_coordinate_is_in_a_target_if_it_is_in_any_interval(
    intervals: list[Interval], padding: int, contig: str, strand: int, coordinate: int
) -> None:
    expected = any(
        one.contig == contig
        and one.strand == strand
        and one.start - padding * (strand > 0) <= coordinate <= one.end + padding * (strand < 0)
        for one in intervals
    )
    assert Targets(intervals, padding).has(contig, strand, coordinate) == expected


def test_a_million_targets_are_merged_and_found() -> None:
    starts = np.random.default_rng(1).integers(0, 3_000_000_000, 1_000_000)
    targets = Targets(Interval("chr1", int(start), int(start) + 120, 1) for start in starts)
    assert 900_000 < len(targets) < 1_000_000
    assert all(targets.has("chr1", 1, int(start) + 60) for start in starts[:1000])
    assert unknown_contigs(targets, ["chr2"]) == ["chr1"]


@pytest.mark.parametrize(("strand", "coordinate", "is_on"), [(1, 1000, True), (1, 999, False), (-1, 1000, False)])
def test_where_a_read_ends_decides(strand: int, coordinate: int, is_on: bool) -> None:
    """The end of + alignments, the start of - ones, of the target's strand."""
    hit = Hit("chr1", coordinate - 300, coordinate, 1) if strand > 0 else Hit("chr1", coordinate, coordinate + 300, -1)
    assert rule_of(ENRICH.targets, 300, [hit]) is (Rule.SINGLE_ON if is_on else Rule.SINGLE_OFF)
    assert rule_of(ENRICH.targets, 300, [hit, OFF]) is (Rule.MULTI_ON if is_on else Rule.MULTI_OFF)
