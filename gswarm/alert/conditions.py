"""Rules on states and events: which devices and nodes are in trouble, since when, and what has just happened to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta

from gswarm.alert.rules import Rule, State, When
from gswarm.alert.turns import Change, Turn
from gswarm.v1 import cluster_pb2, common_pb2

Key = tuple[str, str]
"""(rule's name, device id or node's name)"""


class States:
    """Rules on states. Told of each device and node that changes; asked once a second what is due.

    `age_s` gives the age of a node's newest sample, `stale_s` the age at which that is too old, which is never under
    `fresh_s`; all in seconds.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        age_s: Callable[[str], float | None],
        stale_s: Callable[[str], float],
        fresh_s: float = 0.0,
    ) -> None:
        self._rules = {state: [r for r in rules if r.when is When.STATE and r.of == state.value] for state in State}
        self._age_s, self._stale_s, self._fresh_s = age_s, stale_s, fresh_s
        self._since: dict[Key, tuple[datetime, str]] = {}
        """Since when, and why, of each rule and subject whose state holds."""
        self._rule_of = {rule.name: rule for members in self._rules.values() for rule in members}
        self._firing: set[Key] = set()

    def restore(self, firing: Iterable[Key]) -> None:
        """Take over what fired when the host ended; `see` says then what still holds."""
        self._firing = {key for key in firing if key[0] in self._rule_of}

    def see_device(self, device: cluster_pb2.Device, now: datetime) -> None:
        """A device as it is now."""
        why = device.detail or "lost" if device.phase == cluster_pb2.DEVICE_PHASE_LOST else None
        for rule in self._rules[State.DEVICE_LOST]:
            if rule.on.takes(alias=device.alias, device_id=device.id, node=device.node, model=device.name):
                self._hold(rule, device.id, why, now)

    def see_node(self, node: cluster_pb2.Node, now: datetime) -> None:
        """A node as it is now."""
        is_ready = node.phase == cluster_pb2.NODE_PHASE_READY
        age = self._age_s(node.name)
        if is_ready and not self._since and age is not None and age <= self._fresh_s:
            return  # as nearly always: nothing holds, and nothing begins to
        unreachable = node.phase == cluster_pb2.NODE_PHASE_UNREACHABLE
        for rule in self._rules[State.NODE_UNREACHABLE]:
            if rule.on.takes_node(node.name):
                self._hold(rule, node.name, (node.detail or "unreachable") if unreachable else None, now)
        if not self._rules[State.NODE_STALE]:
            return
        # A node that has sent nothing yet counts from when this host first saw it.
        is_stale = is_ready and (age is None or (age > self._fresh_s and age > self._stale_s(node.name)))
        began = now - timedelta(seconds=age or 0.0) if is_stale else now
        for rule in self._rules[State.NODE_STALE]:
            if rule.on.takes_node(node.name):
                self._hold(rule, node.name, "attached, but sends no samples" if is_stale else None, began)

    def forget(self, subject: str) -> None:
        """A device or node has left for good."""
        for key in [key for key in self._since if key[1] == subject]:
            del self._since[key]
        self._firing = {key for key in self._firing if key[1] != subject}

    def _hold(self, rule: Rule, subject: str, why: str | None, now: datetime) -> None:
        key = (rule.name, subject)
        if why is None:
            self._since.pop(key, None)
        elif key not in self._since:
            self._since[key] = (now, why)

    def due(self, now: datetime) -> Iterator[Change]:
        """What has held for long enough, and what holds no more."""
        for key in [key for key in self._firing if key not in self._since]:
            self._firing.discard(key)
            yield Change(self._rule_of[key[0]], key[1], Turn.RESOLVED, now)
        for key, (since, why) in self._since.items():
            rule = self._rule_of[key[0]]
            if key not in self._firing and (now - since).total_seconds() >= rule.for_s:
                self._firing.add(key)
                yield Change(rule, key[1], Turn.FIRED, now, since=since, why=why)


class Happenings:
    """Rules on events: each fires when it happens and for a while after the last time."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            if rule.when is When.EVENT:
                self._rules.setdefault(rule.of, []).append(rule)
        self._last: dict[Key, datetime] = {}
        self._by_name = {rule.name: rule for members in self._rules.values() for rule in members}

    def restore(self, firing: Mapping[Key, datetime]) -> None:
        """Take over what fired when the host ended, with the last time that it happened."""
        self._last = {key: at for key, at in firing.items() if key[0] in self._by_name}

    def concerns(self, event: common_pb2.Event) -> bool:
        """Whether any rule is on events of this type."""
        return event.type in self._rules

    @property
    def names(self) -> AbstractSet[str]:
        """Of all rules on events."""
        return self._by_name.keys()

    def see(
        self, event: common_pb2.Event, device: cluster_pb2.Device | None, node: str, rules: AbstractSet[str]
    ) -> Iterator[Change]:
        """An event, the device or node that it is about, and the names of the rules that it is news to."""
        for rule in self._rules.get(event.type, ()):
            if rule.name not in rules:
                continue
            if device is not None:
                meant = rule.on.takes(alias=device.alias, device_id=device.id, node=device.node, model=device.name)
            else:
                meant = rule.on.takes_node(node) and not rule.on.device and not rule.on.model
            if meant:
                key, at = (rule.name, event.subject), event.time.ToDatetime(UTC)
                turn = Turn.AGAIN if key in self._last else Turn.FIRED
                self._last[key] = at
                yield Change(rule, event.subject, turn, at, why=event.message)

    def forget(self, subject: str) -> None:
        """A device or node has left for good."""
        for key in [key for key in self._last if key[1] == subject]:
            del self._last[key]

    def due(self, now: datetime) -> Iterator[Change]:
        """What has not happened for as long as its rule holds."""
        for key, last in list(self._last.items()):
            rule = self._by_name[key[0]]
            if (now - last).total_seconds() >= rule.hold_s:
                del self._last[key]
                yield Change(rule, key[1], Turn.RESOLVED, now, why="it has not happened again")
