"""Cases for adaptive sampling, made up from a seed, and what our engine answers; compare_readfish.py asks readfish.

A case is JSON: the regions of a readfish TOML, a flow cell, flags, and evaluations of reads one after another. An
answer has, for each evaluation, the action, the rule, the action before on the channel, whether the condition was
overridden, and what the instrument is told.
"""

import random
from typing import Any

from porestream.client.experiment import ACTIONS, DECISIONS, Experiment, parse_experiment
from porestream.server.adaptive.engine import Action, Condition, Decider, Hit, Rule
from porestream.server.adaptive.targets import WHOLE, Interval, Targets

Case = dict[str, Any]
Answer = list[list[Any]]
CONTIGS = ("chr1", "chr2", "plasmid")


def made_up(seed: int) -> Case:
    """Make a case up: few channels and coordinates, so that everything that can meet does meet."""
    rng = random.Random(seed)
    cells = [(126, (1, 2, 5, 10)), (512, (1, 2, 4, 8)), (3000, (1, 5))]
    ((channels, parts),) = rng.choices(cells, (66, 33, 1))  # readfish takes long to lay out 3,000 channels
    count = rng.choice(parts)
    axis = 0 if channels != 512 else rng.choice([0, 1])
    used = [rng.randint(1, channels) for _ in range(rng.randint(1, 3))]
    evaluations = []
    for _ in range(rng.randint(1, 12)):
        hits = [
            [rng.choice(CONTIGS), start := rng.randint(0, 60), start + rng.randint(1, 30), rng.choice([1, -1])]
            for _ in range(rng.choice([0, 0, 1, 1, 1, 2, 3]))
        ]
        bases = rng.randint(1, 400) if hits else rng.choice([0, 150])
        evaluations.append([rng.choice(used), f"read-{rng.randint(0, 2)}", bases, hits])
    return {
        "toml": {"split_axis": axis, "regions": [_region(rng, number) for number in range(count)]},
        "channels": channels,
        "padding": rng.choice([0, 0, 3, 10]),
        "dry_run": rng.random() < 0.2,
        "joined_midway": rng.random() < 0.4,
        "duplex": rng.random() < 0.3,
        "evaluations": evaluations,
    }


def _region(rng: random.Random, number: int) -> dict[str, Any]:
    region: dict[str, Any] = {"name": f"region {number}"} | {key: rng.choice(ACTIONS) for key in DECISIONS}
    region["targets"] = [_target(rng) for _ in range(rng.randint(0, 5))]
    for key, values in (
        ("control", [True, False, False, False]),
        ("min_chunks", [0, 1, 2, 3]),
        ("max_chunks", [0, 1, 2, 4]),
        ("below_min_chunks", ACTIONS),
        ("above_max_chunks", ACTIONS),
    ):
        if rng.random() < 0.6:
            region[key] = rng.choice(values)
    return region


def _target(rng: random.Random) -> str:
    contig, start = rng.choice(CONTIGS), rng.randint(0, 70)
    return contig if rng.random() < 0.1 else f"{contig},{start},{start + rng.randint(0, 20)},{rng.choice('+-.')}"


def conditions(experiment: Experiment, padding: int = 0) -> dict[int, Condition]:
    """Return each channel's condition."""
    found: dict[int, Condition] = {}
    for region in experiment.regions:
        intervals = [
            Interval(target.contig, target.start, WHOLE if target.end is None else target.end, target.strand)
            for target in region.targets
        ]
        condition = Condition(
            name=region.name,
            actions={Rule(key): Action(action) for key, action in region.actions.items()},
            targets=Targets(intervals, padding),
            control=region.control,
            min_chunks=region.min_chunks,
            max_chunks=region.max_chunks,
            below_min_chunks=Action(region.below_min_chunks),
            above_max_chunks=Action(region.above_max_chunks),
        )
        found |= dict.fromkeys(region.channels, condition)
    return found


def our_answer(case: Case) -> Answer:
    """Return what our engine answers."""
    experiment = parse_experiment(case["toml"], case["channels"])
    decider = Decider(
        conditions(experiment, case["padding"]),
        joined_midway=case["joined_midway"],
        dry_run=case["dry_run"],
        duplex=case["duplex"],
    )
    answer = []
    for channel, read_id, bases, hits in case["evaluations"]:
        found = decider.decide(channel, read_id.encode(), bases, [Hit(*hit) for hit in hits])
        previous = found.previous_action.value if found.previous_action else None
        told = None if found.send is Action.PROCEED else found.send.value
        answer.append([found.action.value, found.rule.value, found.condition, previous, found.is_overridden, told])
    return answer
