"""Alert rules as config.yaml gives them: parsed and checked whole, each field with its file and line; the default rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from gswarm.cluster.types import Severity
from gswarm.errors import InvalidError
from gswarm.names import check_name, near

HYSTERESIS = 0.05
"""Share of the limit that a value must come back by, when a rule names no level to clear at."""
HOLD_S = 600.0
"""How long a rule on an event or a rising counter fires after the last time it happened."""
LONGEST_S = 86_400.0


class When(Enum):
    """What a rule looks at; the word is its key in config.yaml."""

    ABOVE = "above"
    BELOW = "below"
    RISES = "rises"
    EVENT = "event"
    STATE = "state"


class State(Enum):
    """States that a rule can be about."""

    DEVICE_LOST = "device.lost"
    NODE_UNREACHABLE = "node.unreachable"
    NODE_STALE = "node.stale"  # Attached, and no sample comes.

    @property
    def is_of_node(self) -> bool:
        """Whether its subjects are nodes."""
        return self.value.startswith("node.")


@dataclass(frozen=True, slots=True)
class Selector:
    """Which subjects a rule is for: shell patterns, any of each given kind must match; none given matches all."""

    device: tuple[str, ...] = ()
    """Alias such as n1:gpu0, its part after the colon, or the device's id."""
    node: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    """The device's product name, such as "NVIDIA H100*"."""

    def takes(self, *, alias: str, device_id: str, node: str, model: str) -> bool:
        """Whether a device is meant."""
        names = (alias, alias.partition(":")[2], device_id)
        return (
            (not self.device or any(fnmatchcase(name, pattern) for name in names for pattern in self.device))
            and self.takes_node(node)
            and (not self.model or any(fnmatchcase(model, pattern) for pattern in self.model))
        )

    def takes_node(self, node: str) -> bool:
        """Whether a node, or what is on it, is meant as far as its name says."""
        return not self.node or any(fnmatchcase(node, pattern) for pattern in self.node)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, whole and checked."""

    name: str
    when: When
    of: str
    """Metric, event type or state."""
    limit: float = 0.0
    """Of above and below, in the unit of the metric's name."""
    clear: float = 0.0
    """The value at which a firing rule is over: at or below it for above, at or above it for below."""
    for_s: float = 0.0
    """How long it must hold before it fires, seconds."""
    hold_s: float = HOLD_S
    """How long it fires after the last time, for rises and event, seconds."""
    severity: Severity = Severity.WARNING
    on: Selector = Selector()
    is_on: bool = True
    """False: a default rule that config.yaml switches off."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Field to "file:line"."""

    @property
    def metric(self) -> str:
        """The metric it reads, else empty."""
        return self.of if self.when in (When.ABOVE, When.BELOW, When.RISES) else ""


DEFAULTS: tuple[Rule, ...] = (
    Rule("xid", When.EVENT, "device.xid", severity=Severity.ERROR),
    Rule("ecc-uncorrected", When.RISES, "ecc_uncorrected_volatile", severity=Severity.ERROR),
    Rule("device-lost", When.STATE, State.DEVICE_LOST.value, severity=Severity.ERROR),
    Rule("node-unreachable", When.STATE, State.NODE_UNREACHABLE.value, severity=Severity.ERROR),
    Rule("node-stale", When.STATE, State.NODE_STALE.value, for_s=30.0),
)
_BY_NAME = MappingProxyType({rule.name: rule for rule in DEFAULTS})
_FIELDS = (
    "name",
    "metric",
    "above",
    "below",
    "rises",
    "clear",
    "event",
    "state",
    "for",
    "hold",
    "on",
    "severity",
    "enabled",
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def in_force(given: Iterable[Rule], *, defaults: bool) -> tuple[Rule, ...]:
    """The rules of a host: config.yaml's, and the default ones that it neither replaces nor switches off."""
    ours = {rule.name: rule for rule in given}
    standard = [rule for rule in DEFAULTS if defaults and rule.name not in ours]
    return tuple(rule for rule in (*standard, *ours.values()) if rule.is_on)


def check_metrics(rules: Iterable[Rule], known: Mapping[str, bool]) -> None:
    """Whether each rule's metric exists; `known` says of each whether it is a counter. Raises InvalidError.

    Apart from parsing, for the metric table is nothing that every command should import.
    """
    for rule in rules:
        if not rule.metric or not rule.is_on:
            continue
        where = rule.origins.get("metric", "alerts")
        if rule.metric not in known:
            raise InvalidError(
                f"{where}: alert {rule.name} is on {rule.metric!r}, which is no metric",
                next=near(rule.metric, known) or "all are listed in docs/reference.md",
                field="metric",
            )
        if rule.when is When.RISES and not known[rule.metric]:
            raise InvalidError(
                f"{where}: alert {rule.name} waits for {rule.metric} to rise, which is no counter",
                next="use above",
                field="rises",
            )


def parse(body: Any, path: object) -> tuple[Rule, ...]:
    """The rules of the YAML node below `alerts:`. Raises InvalidError naming file, line and field; all or none."""
    if body.tag.endswith(":null"):
        return ()
    if body.id != "sequence":
        raise InvalidError(f"{path}:{body.start_mark.line + 1}: alerts is a list of rules", field="alerts")
    rules: dict[str, Rule] = {}
    for item in body.value:
        rule = _Item(item, path).rule()
        if rule.name in rules:
            raise InvalidError(f"{rule.origins['name']}: there are two alerts named {rule.name}", field="name")
        rules[rule.name] = rule
    return tuple(rules.values())


class _Item:
    """One rule on its way from YAML."""

    def __init__(self, node: Any, path: object) -> None:
        import yaml

        self.line = f"{path}:{node.start_mark.line + 1}"
        if node.id != "mapping":
            raise InvalidError(f"{self.line}: an alert is written as keys and values", field="alerts")
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        for key, value in node.value:
            # By its text: YAML takes a bare `on` for true.
            name, where = key.value, f"{path}:{key.start_mark.line + 1}"
            if name not in _FIELDS:
                raise InvalidError(f"{where}: unknown key {name!r} of an alert", next=near(name, _FIELDS), field=name)
            if name in self.values:
                raise InvalidError(f"{where}: {name} is given twice", field=name)
            self.values[name] = yaml.SafeLoader("").construct_object(value, deep=True)
            self.origins[name] = where

    def rule(self) -> Rule:
        """The rule, checked."""
        name = self._text("name")
        if not name:
            raise InvalidError(f"{self.line}: an alert needs a name", field="name")
        try:
            check_name(name, "name of an alert")
        except InvalidError as error:
            raise InvalidError(f"{self.origins['name']}: {error.what}", why=error.why, field="name") from None
        severity, is_on = self._severity(), self._flag("enabled", True)
        if set(self.values) <= {"name", "enabled"}:
            return self._switch(name, is_on=is_on)
        when, of = self._when()
        limit = self._number(when.value) if when in (When.ABOVE, When.BELOW) else 0.0
        self._only("clear", when in (When.ABOVE, When.BELOW))
        self._only("hold", when in (When.RISES, When.EVENT))
        self._only("for", when not in (When.RISES, When.EVENT))
        return Rule(
            name=name,
            when=when,
            of=of,
            limit=limit,
            clear=self._clear(when, limit),
            for_s=self._seconds("for", 0.0),
            hold_s=self._seconds("hold", HOLD_S),
            severity=severity,
            on=self._selector(when, of),
            is_on=is_on,
            origins=self.origins,
        )

    def _refuse(self, name: str, why: str, next: str = "") -> InvalidError:
        return InvalidError(f"{self.origins.get(name, self.line)}: {name} {why}", next=next, field=name)

    def _only(self, name: str, fits: bool) -> None:
        if name in self.values and not fits:
            raise self._refuse(name, "says nothing about a rule of this kind", "leave it out")

    def _text(self, name: str) -> str:
        value = self.values.get(name, "")
        if not isinstance(value, str):
            raise self._refuse(name, f"is {value!r}, text is expected")
        return value

    def _flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, f"is {value!r}, true or false is expected")
        return value

    def _number(self, name: str) -> float:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._refuse(name, f"is {value!r}, a number is expected")
        return float(value)

    def _seconds(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if match is not None:
            value = float(match[1]) * _UNIT_S[match[2] or "s"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
            raise self._refuse(name, f"is {value!r}", "write seconds, or 30s, 5m, 1h; at most a day")
        return float(value)

    def _severity(self) -> Severity:
        word = self._text("severity") or Severity.WARNING.value
        words = [one.value for one in Severity if one is not Severity.UNKNOWN]
        if word not in words:
            raise self._refuse("severity", f"is {word!r}", f"one of {', '.join(words)}")
        return Severity(word)

    def _switch(self, name: str, *, is_on: bool) -> Rule:
        if "enabled" not in self.values or name not in _BY_NAME:
            if "enabled" in self.values:
                raise self._refuse("name", f"is {name!r}, which is no default alert", near(name, _BY_NAME))
            raise InvalidError(f"{self.line}: alert {name} has no metric, event or state", field="metric")
        standard = _BY_NAME[name]
        return Rule(
            name, standard.when, standard.of, for_s=standard.for_s, hold_s=standard.hold_s,
            severity=standard.severity, is_on=is_on, origins=self.origins,
        )  # fmt: skip

    def _when(self) -> tuple[When, str]:
        kinds = [key for key in ("metric", "event", "state") if key in self.values]
        if len(kinds) != 1:
            what = "and ".join(f"{key} " for key in kinds) or "none "
            raise InvalidError(f"{self.line}: one of metric, event and state is needed; {what}is given", field="metric")
        kind = kinds[0]
        of = self._text(kind)
        given = [when for when in (When.ABOVE, When.BELOW, When.RISES) if when.value in self.values]
        if kind == "metric":
            if len(given) != 1:
                raise self._refuse("metric", "needs one of above, below and rises")
            if given[0] is When.RISES and not self._flag("rises", True):
                raise self._refuse("rises", "is false", "leave the rule out")
            return given[0], of
        if given:
            raise self._refuse(given[0].value, f"says nothing about {kind}", "leave it out")
        if kind == "event":
            if not re.fullmatch(r"[a-z0-9_.-]{1,64}", of) or of.startswith("alert."):
                raise self._refuse("event", f"is {of!r}", "write the type of an event, such as device.xid")
            return When.EVENT, of
        states = [state.value for state in State]
        if of not in states:
            raise self._refuse("state", f"is {of!r}", f"one of {', '.join(states)}")
        return When.STATE, of

    def _clear(self, when: When, limit: float) -> float:
        back = abs(limit) * HYSTERESIS
        if "clear" not in self.values:
            return limit - back if when is When.ABOVE else limit + back
        clear = self._number("clear")
        if (when is When.ABOVE and clear > limit) or (when is When.BELOW and clear < limit):
            raise self._refuse("clear", f"is {clear:g}, on the wrong side of {when.value} {limit:g}")
        return clear

    def _selector(self, when: When, of: str) -> Selector:
        given = self.values.get("on", {})
        if isinstance(given, str | list):
            given = {"device": given}
        if not isinstance(given, dict):
            raise self._refuse("on", f"is {given!r}", "write a device, or keys device, node and model")
        found: dict[str, tuple[str, ...]] = {}
        for key, value in given.items():
            if key not in ("device", "node", "model"):
                raise self._refuse("on", f"has an unknown key {key!r}", "there are: device, node, model")
            patterns = [value] if isinstance(value, str) else value
            if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
                raise self._refuse("on", f"has {value!r} as {key}", "write a name or a list of names; * matches any")
            found[key] = tuple(patterns)
        if when is When.STATE and State(of).is_of_node and set(found) - {"node"}:
            raise self._refuse("on", f"names devices, and {of} is about nodes", "use node")
        return Selector(**found)
