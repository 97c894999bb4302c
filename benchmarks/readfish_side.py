"""Answer cases (readfish_cases.py) with readfish itself, in its own environment: a JSON line in, one out."""

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

from readfish._cli_args import Chemistry
from readfish._config import Conf, make_decision
from readfish._utils import ChunkTracker, generate_flowcell
from readfish.entry_points import targets
from readfish.plugins.utils import DuplexTracker, PreviouslySentActionTracker, Result


def answer(case: dict[str, Any]) -> list[list[Any]]:
    """Do what readfish's main loop does with each read."""
    table = dict(case["toml"], caller_settings={"no_op": {}}, mapper_settings={"no_op": {}})
    conf = Conf.from_dict(table, case["channels"])
    for region in conf.regions:
        region.targets.padding = case["padding"]
    self = SimpleNamespace(
        chemistry=Chemistry.DUPLEX_SIMPLE if case["duplex"] else Chemistry.SIMPLEX,
        dry_run=case["dry_run"],
        readfish_started_during_sequencing=case["joined_midway"],
        previous_action_tracker=PreviouslySentActionTracker(),
        duplex_tracker=DuplexTracker(),
        logger=logging.getLogger("readfish"),
    )
    tracker = ChunkTracker(case["channels"])
    found = []
    for channel, read_id, bases, hits in case["evaluations"]:
        alignments = [SimpleNamespace(ctg=c, r_st=start, r_en=end, strand=strand) for c, start, end, strand in hits]
        result = Result(channel, read_id, "A" * bases, alignment_data=alignments)
        control, condition = conf.get_conditions(channel, None)
        result.decision = make_decision(conf, result)
        seen = tracker.seen(channel, read_id)
        stop: list[object] = []
        unblock: list[object] = []
        action, previous, overridden, _ = targets.Analysis.check_override_action(
            self, control, condition.get_action(result.decision), result, seen, condition, stop, unblock
        )
        told = "stop_receiving" if stop else "unblock" if unblock else None
        before = previous.name if previous is not None else None
        found.append([action.name, result.decision.name, condition.name, before, overridden, told])
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(generate_flowcell(*asked["divide"]) if "divide" in asked else answer(asked)))
