"""Decides what to do with a read from what its beginning maps to, with the rules of readfish 2024.3.0, in its order.

Of each channel it remembers how often the read was evaluated, and what was last decided for good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from porestream.server.adaptive.targets import Targets


class Action(Enum):
    """What is to be done with a read."""

    UNBLOCK = "unblock"
    STOP_RECEIVING = "stop_receiving"  # sequence it to its end
    PROCEED = "proceed"  # look at more of it


class Rule(Enum):
    """Why: what the read is, or the rule that went before that."""

    SINGLE_ON = "single_on"
    SINGLE_OFF = "single_off"
    MULTI_ON = "multi_on"
    MULTI_OFF = "multi_off"
    NO_MAP = "no_map"
    NO_SEQ = "no_seq"
    ABOVE_MAX_CHUNKS = "above_max_chunks"
    BELOW_MIN_CHUNKS = "below_min_chunks"
    DUPLEX_OVERRIDE = "duplex_override"
    FIRST_READ_OVERRIDE = "first_read_override"


_OVERRIDES = (Rule.FIRST_READ_OVERRIDE, Rule.DUPLEX_OVERRIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What to do on some channels.

    Attributes
    ----------
    actions
        For each of the six rules that say what a read is.
    control
        Keep every read.
    min_chunks, max_chunks
        Before and after so many evaluations `below_min_chunks` and `above_max_chunks` go before the action: the one
        instead of a final action, the other instead of PROCEED.
    """

    name: str
    actions: Mapping[Rule, Action]
    targets: Targets = field(default_factory=Targets)
    control: bool = False
    min_chunks: int = 1
    max_chunks: int = 2
    below_min_chunks: Action = Action.PROCEED
    above_max_chunks: Action = Action.UNBLOCK


@dataclass(frozen=True, slots=True)
class Hit:
    """An alignment of the read's beginning; `start` and `end` are 0-based and half-open, `strand` is +1 or -1."""

    contig: str
    start: int
    end: int
    strand: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A decision.

    Attributes
    ----------
    action
        What was decided.
    send
        What to tell the instrument: in a dry run STOP_RECEIVING instead of UNBLOCK.
    evaluations
        How often the read has been evaluated, this time included.
    previous_action
        The last final action on the channel, of this read or an earlier one; None: there was none.
    is_overridden
        Whether something else than the condition decided: the first read's or duplex's rule, or the dry run.
    """

    action: Action
    send: Action
    rule: Rule
    condition: str
    evaluations: int
    previous_action: Action | None
    is_overridden: bool


@dataclass(slots=True)
class _Channel:
    read_id: bytes = b""
    evaluations: int = 0
    last_action: Action | None = None
    last_rule: Rule | None = None


class Decider:
    """Decides for the channels of one flow cell.

    Parameters
    ----------
    conditions
        The condition of each channel.
    joined_midway
        Whether sequencing had begun before: then a channel's first evaluation keeps the read, for nobody knows how long
        it is.
    dry_run
        Eject nothing.
    duplex
        Keep a read that would be ejected if the one before it on the channel was kept: it may be its other strand.
        (readfish's `duplex_simple`; its `duplex`, which compares what they map to, raises a TypeError in 2024.3.0.)
    """

    def __init__(
        self,
        conditions: Mapping[int, Condition],
        *,
        joined_midway: bool = True,
        dry_run: bool = False,
        duplex: bool = False,
    ) -> None:
        self.conditions = conditions
        self.dry_run = dry_run
        self._joined_midway, self._duplex = joined_midway, duplex
        self._channels: dict[int, _Channel] = {}

    def decide(self, channel: int, read_id: bytes, bases: int, hits: Sequence[Hit]) -> Decided:
        """Decide about a read.

        Parameters
        ----------
        bases
            How many bases of it are called.
        hits
            All alignments of these, secondary ones included.

        Raises
        ------
        KeyError
            The channel has no condition.
        """
        condition = self.conditions[channel]
        state = self._channels.setdefault(channel, _Channel())
        if state.read_id != read_id:
            state.read_id, state.evaluations = read_id, 0
        state.evaluations += 1
        rule = rule_of(condition.targets, bases, hits)
        action = condition.actions[rule]
        if condition.control:
            action = Action.STOP_RECEIVING
        else:
            if state.evaluations > condition.max_chunks and action is Action.PROCEED:
                action, rule = condition.above_max_chunks, Rule.ABOVE_MAX_CHUNKS
            if state.evaluations < condition.min_chunks and action is not Action.PROCEED:
                action, rule = condition.below_min_chunks, Rule.BELOW_MIN_CHUNKS
        previous = state.last_action
        is_overridden = False
        if action is Action.UNBLOCK and self._may_be_duplex(state):
            action, rule, is_overridden = Action.STOP_RECEIVING, Rule.DUPLEX_OVERRIDE, True
        if previous is None and self._joined_midway:
            action, rule, is_overridden = Action.STOP_RECEIVING, Rule.FIRST_READ_OVERRIDE, True
        if action is not Action.PROCEED:
            state.last_action, state.last_rule = action, rule
        is_dry = self.dry_run and action is Action.UNBLOCK
        return Decided(
            action=action,
            send=Action.STOP_RECEIVING if is_dry else action,
            rule=rule,
            condition=condition.name,
            evaluations=state.evaluations,
            previous_action=previous,
            is_overridden=is_overridden or is_dry,
        )

    def _may_be_duplex(self, state: _Channel) -> bool:
        return self._duplex and state.last_action is Action.STOP_RECEIVING and state.last_rule not in _OVERRIDES


def rule_of(targets: Targets, bases: int, hits: Sequence[Hit]) -> Rule:
    """Return what a read is. It is on target if any of its alignments ends in one, in the direction of reading."""
    if not hits:
        return Rule.NO_MAP if bases else Rule.NO_SEQ
    is_on = any(targets.has(hit.contig, hit.strand, hit.end if hit.strand > 0 else hit.start) for hit in hits)
    if len(hits) == 1:
        return Rule.SINGLE_ON if is_on else Rule.SINGLE_OFF
    return Rule.MULTI_ON if is_on else Rule.MULTI_OFF
