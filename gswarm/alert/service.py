"""The host's side of alerts: rules fed from the sample stream and the state, what fires kept in the store, others told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc.aio

from gswarm.alert.conditions import Happenings, States
from gswarm.alert.courier import Courier, post
from gswarm.alert.rules import Rule, State, When, check_metrics, in_force
from gswarm.alert.sinks import sinks
from gswarm.alert.thresholds import Thresholds
from gswarm.alert.turns import Change, Turn, words
from gswarm.cluster.types import Severity
from gswarm.config import Config
from gswarm.errors import ExhaustedError
from gswarm.profiler.metrics import METRICS, is_counter
from gswarm.v1 import common_pb2
from gswarm.v1.alerts_pb2 import Alert
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.common_pb2 import Event
from gswarm.v1.profiler_pb2 import SampleTick

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.state import Batch
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
LOOK_S = 1.0
STALE_S, STALE_TICKS = 10.0, 3
"""An attached node is stale when nothing has come for so long, or for so many of its sampling intervals."""
_COUNTED = "alert.counted."
_SEEN, _KNOWN = "alert.events_seen", "alert.event_rules"
_SEVERITIES = {
    Severity.INFO: common_pb2.SEVERITY_INFO,
    Severity.WARNING: common_pb2.SEVERITY_WARNING,
    Severity.ERROR: common_pb2.SEVERITY_ERROR,
}


def check(config: Config) -> None:
    """Whether the rules and those who are to be told can be. Raises InvalidError."""
    check_metrics(config.alerts, {metric.name: is_counter(metric.name) for metric in METRICS})
    sinks(config.alerting)


class AlertService:
    """Rules, what fires, and its delivery. All that must outlive the host is in the store, with the alert itself."""

    def __init__(self, host: HostContext) -> None:
        config = host.config
        self.store, self.hub, self._desired = host.store, host.hub, host.nodes.desired
        self.rules = in_force(config.alerts, defaults=config.alerting.defaults)
        self._couriers = [
            Courier(host.store, sink, attempts=config.alerting.attempts) for sink in sinks(config.alerting)
        ]
        self._thresholds = Thresholds(self.rules, lambda key: self.store.state.get(Device, key), host.hub.schema)
        self._states = States(self.rules, host.hub.age_s, self._stale_s, STALE_S)
        self._happenings = Happenings(self.rules)
        self._changes: list[Change] = []
        self._gone: list[str] = []
        self._marks = {f"{rule.name} {rule.of}": rule.name for rule in self.rules if rule.when is When.EVENT}
        """What tells a rule on events from those of earlier starts, and its name."""
        self._seen_event = 0
        self._kept = b"", b""
        """What of `_seen` is in the store."""
        self._new: set[str] = set()
        """Rules on events that no earlier host had: what happened before them is no news."""
        self._wake = asyncio.Event()

    def _stale_s(self, node: str) -> float:
        return max(STALE_S, STALE_TICKS * self._desired.longest_s(node))

    def register(self, server: grpc.aio.Server) -> None:
        """Alerts are read through Watch."""

    async def run(self) -> None:
        """Watch and tell until cancelled."""
        await self._restore()
        # Subscribed and looked over without a pause between: nothing is missed.
        unsubscribe = [self.store.subscribe(self._on_batch), self.hub.follow(self._on_tick)]
        self._look_over()
        try:
            async with asyncio.TaskGroup() as group:
                for courier in self._couriers:
                    group.create_task(courier.run(), name=f"alerts-{courier.sink.name}")
                await self._follow()
        finally:
            for end in unsubscribe:
                end()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + LOOK_S
        while True:
            await self._settle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            self._wake.clear()
            # On its own clock: among many nodes something wakes us all the time.
            if loop.time() >= due:
                self._look_at_nodes()
                due = loop.time() + LOOK_S

    # What is seen

    def _on_tick(self, tick: SampleTick) -> None:
        if changes := self._thresholds.look(tick):
            self._changes += changes
            self._wake.set()

    def _on_batch(self, batch: Batch) -> None:
        for change in batch.changes:
            match change.new if change.new is not None else change.old:
                case Device() as device if change.new is None:
                    self._leave(device.id)
                case Node() as node if change.new is None:
                    self._thresholds.forget_layout(node.name)
                    self._leave(node.name)
                case Device() as device:
                    if not isinstance(change.old, Device) or _aimed(change.old) != _aimed(device):
                        self._thresholds.forget_layout(device.node)
                    self._states.see_device(device, batch.time)
                    self._wake.set()
                case Node() as node:
                    self._states.see_node(node, batch.time)
                    self._wake.set()
                case Event() as event if change.new is not None and self._happenings.concerns(event):
                    self._happen(event, self._happenings.names)

    def _leave(self, subject: str) -> None:
        for part in (self._thresholds, self._states, self._happenings):
            part.forget(subject)
        self._gone.append(subject)
        self._wake.set()

    def _happen(self, event: Event, rules: AbstractSet[str]) -> None:
        self._seen_event = max(self._seen_event, int(event.id))
        device = self.store.state.get(Device, event.subject)
        node = event.subject if event.subject_kind == common_pb2.KIND_NODE else ""
        self._changes += self._happenings.see(event, device, device.node if device is not None else node, rules)
        self._wake.set()

    def _look_at_nodes(self) -> None:
        now = datetime.now(UTC)
        for node in self.store.state.list(Node):
            self._states.see_node(node, now)

    def _look_over(self) -> None:
        """All that the state says, and the events that no earlier host has looked at."""
        now = datetime.now(UTC)
        for device in self.store.state.list(Device):
            self._states.see_device(device, now)
        self._look_at_nodes()
        for event in self.store.state.list(Event):
            if int(event.id) > self._seen_event and self._happenings.concerns(event):
                self._happen(event, self._happenings.names - self._new)

    # What is kept

    async def _restore(self) -> None:
        def operation(tx: Transaction) -> tuple[list[tuple[str, bytes]], bytes, bytes | None]:
            seen, known = tx.get_value(_SEEN), tx.get_value(_KNOWN)
            if seen is None:
                # The first start with alerts: what is over is no news.
                seen = str(max((int(event.id) for event in tx.list(Event)), default=0)).encode()
                tx.put_value(_SEEN, seen)
            return list(tx.list_values(_COUNTED)), seen, known

        values, seen, known_marks = await self.store.insist(operation, method="alerts")
        self._seen_event, self._kept = int(seen), (seen, known_marks or b"")
        if known_marks is not None:
            old = set(known_marks.decode().split("\n"))
            self._new = {name for mark, name in self._marks.items() if mark not in old}
        counted = {_key(name.removeprefix(_COUNTED)): int(value) for name, value in values}
        firing: dict[tuple[str, str], datetime] = {}
        known = {rule.name: rule for rule in self.rules}
        for alert in list(self.store.state.list(Alert)):
            rule = known.get(alert.rule)
            if rule is None or not self._is_meant(rule, alert):
                await self._drop(alert, "the rule is gone" if rule is None else "the rule is for others now")
            else:
                firing[rule.name, alert.subject] = alert.last_at.ToDatetime(UTC)
        self._thresholds.restore(firing, counted)
        self._states.restore(firing)
        self._happenings.restore(firing)

    def _is_meant(self, rule: Rule, alert: Alert) -> bool:
        if rule.metric != alert.metric:
            return False
        device = self.store.state.get(Device, alert.subject)
        if device is not None:
            return rule.on.takes(alias=device.alias, device_id=device.id, node=device.node, model=device.name)
        is_there = alert.subject_kind != common_pb2.KIND_DEVICE
        return is_there and rule.on.takes_node(alert.node)

    async def _drop(self, alert: Alert, why: str) -> None:
        def operation(tx: Transaction) -> None:
            tx.delete(Alert, alert.id)
            tx.event("alert.resolved", f"{alert.name}: {alert.rule} is over: {why}", subject=_subject(alert))

        await self.store.insist(operation, method="alerts")

    async def _settle(self) -> None:
        """Put what has changed into the store, and hand it to the couriers."""
        now = datetime.now(UTC)
        changes, self._changes = self._changes, []
        gone, self._gone = self._gone, []
        changes += [*self._states.due(now), *self._happenings.due(now)]
        # Both at once: a rule is no longer new only when what happened before it counts as seen.
        seen, marks = keep = self._seen()
        if not changes and not gone and keep == self._kept:
            return

        def operation(tx: Transaction) -> dict[str, dict[str, bytes]]:
            posted: dict[str, dict[str, bytes]] = {courier.sink.name: {} for courier in self._couriers}
            bodies = [self._apply(tx, change) for change in changes]
            for alert in list(tx.list(Alert)) if gone else []:
                if alert.subject in gone:
                    tx.delete(Alert, alert.id)
                    text = f"{alert.name}: {alert.rule} is over: it is gone"
                    tx.event("alert.resolved", text, subject=_subject(alert))
                    bodies.append(_body(alert, Turn.RESOLVED, text, tx.now))
            for body in bodies:
                for sink, mine in posted.items():
                    if body is not None:
                        mine[post(tx, sink, body)] = body
            for name, _ in list(tx.list_values(_COUNTED)) if gone else []:
                if _key(name.removeprefix(_COUNTED))[1] in gone:
                    tx.put_value(name, None)
            tx.put_value(_SEEN, seen)
            tx.put_value(_KNOWN, marks)
            return posted

        try:
            posted = await self.store.apply(operation, actor="host", method="alerts")
        except ExhaustedError as error:
            log.warning("alerts cannot be kept: %s", error)
            self._changes[:0], self._gone[:0] = changes, gone
            return
        self._kept = keep
        for courier in self._couriers:
            courier.take(posted[courier.sink.name])

    def _seen(self) -> tuple[bytes, bytes]:
        """The last event that was looked at, and the rules that it was shown to."""
        return str(self._seen_event).encode(), "\n".join(sorted(self._marks)).encode()

    def _apply(self, tx: Transaction, change: Change) -> bytes | None:
        """One change in the transaction; what is to be told of it, if anything."""
        rule = change.rule
        if rule.when is When.RISES and change.value is not None:
            tx.put_value(f"{_COUNTED}{rule.name}/{change.subject}", str(int(change.value)).encode())
        alert = tx.edit(Alert, f"{rule.name}/{change.subject}")
        match change.turn:
            case Turn.FIRED if alert is None:
                alert = self._alert(tx, change)
                tx.put(alert)
                tx.event("alert.firing", alert.message, subject=_subject(alert), severity=alert.severity)
                return _body(alert, change.turn, alert.message, tx.now)
            case Turn.AGAIN if alert is not None:
                alert.count += 1
                alert.last_at.FromDatetime(change.at)
                alert.message = words(change, alert.name)
                if change.value is not None:
                    alert.value = change.value
                tx.put(alert)
            case Turn.RESOLVED if alert is not None:
                tx.delete(Alert, alert.id)
                text = words(change, alert.name)
                tx.event("alert.resolved", text, subject=_subject(alert))
                return _body(alert, change.turn, text, tx.now)
        return None

    @staticmethod
    def _alert(tx: Transaction, change: Change) -> Alert:
        rule, subject = change.rule, change.subject
        is_of_node = rule.when is When.STATE and State(rule.of).is_of_node
        device = None if is_of_node else tx.get(Device, subject)
        if device is not None:
            kind, name, node = common_pb2.KIND_DEVICE, device.alias or subject, device.node
        elif is_of_node or tx.get(Node, subject) is not None:
            kind, name, node = common_pb2.KIND_NODE, subject, subject
        else:
            kind, name, node = common_pb2.KIND_UNKNOWN, subject or "the cluster", ""
        alert = Alert(
            id=f"{rule.name}/{subject}",
            rule=rule.name,
            severity=_SEVERITIES[rule.severity],
            subject_kind=kind,
            subject=subject,
            name=name,
            node=node,
            metric=rule.metric,
            value=change.value,
            message=words(change, name),
            count=1 if rule.when in (When.RISES, When.EVENT) else 0,
        )
        alert.since.FromDatetime(change.since or change.at)
        alert.fired_at.CopyFrom(tx.stamp)
        alert.last_at.FromDatetime(change.at)
        return alert


def _aimed(device: Device) -> tuple[str, str, str]:
    """What rules choose a device by."""
    return device.alias, device.node, device.name


def _key(text: str) -> tuple[str, str]:
    rule, _, subject = text.partition("/")
    return rule, subject


def _subject(alert: Alert) -> Device | Node | None:
    if alert.subject_kind == common_pb2.KIND_DEVICE:
        return Device(id=alert.subject)
    return Node(name=alert.subject) if alert.subject_kind == common_pb2.KIND_NODE else None


def _body(alert: Alert, turn: Turn, text: str, now: datetime) -> bytes:
    """What others are told, as JSON; the fields are in docs/alerts.md."""
    told = {
        "version": 1,
        "status": turn.value,
        "id": alert.id,
        "rule": alert.rule,
        "severity": _word(alert.severity),
        "subject": alert.subject,
        "name": alert.name,
        "node": alert.node,
        "metric": alert.metric or None,
        "value": alert.value if alert.HasField("value") else None,
        "message": text,
        "since": _iso(alert.since.ToDatetime(UTC)),
        "fired_at": _iso(alert.fired_at.ToDatetime(UTC)),
        "at": _iso(now),
    }
    return json.dumps(told).encode()


def _word(severity: int) -> str:
    return next((ours.value for ours, theirs in _SEVERITIES.items() if theirs == severity), "unknown")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
