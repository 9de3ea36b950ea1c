"""What rules make of what they see: turns, each one rule's change for one subject."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from gswarm import units
from gswarm.alert.rules import Rule, When


class Turn(Enum):
    """What happened to a rule and its subject."""

    FIRED = "firing"
    AGAIN = "again"  # It fires, and happened once more.
    RESOLVED = "resolved"
    COUNTED = "counted"  # Nothing: the counter's value from which rises are seen, to be remembered.


@dataclass(frozen=True, slots=True)
class Change:
    """One turn. `subject` is a device id or a node's name."""

    rule: Rule
    subject: str
    turn: Turn
    at: datetime
    """The node's clock for metrics, the host's for all else."""
    since: datetime | None = None
    """From when on the rule held; None: from `at`."""
    value: float | None = None
    why: str = ""
    """More words, for events, states, and what is over for another reason than its value."""


def words(change: Change, name: str) -> str:
    """The sentence of a turn about a subject that people call `name`."""
    rule, told = change.rule, quantity(change.rule.metric, change.value)
    if change.turn is Turn.RESOLVED:
        return f"{name}: {rule.name} is over{f': {change.why or told}' if change.why or told else ''}"
    match rule.when:
        case When.ABOVE | When.BELOW:
            length = f" for {units.duration(rule.for_s)}" if rule.for_s else ""
            return f"{name}: {told}, {rule.when.value} {rule.limit:g}{length}"
        case When.RISES:
            return f"{name}: {rule.of} rose to {change.value:.0f}"
        case _:
            text = change.why or rule.of
            return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def quantity(metric: str, value: float | None) -> str:
    """ "temperature_c 91"; empty without a value."""
    if value is None:
        return ""
    return f"{metric} {value:.0f}" if float(value).is_integer() else f"{metric} {value:.6g}"
