"""Rules on metrics, evaluated on packed ticks as they come: a few array operations a tick, Python only where one turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gswarm.alert.rules import Rule, When
from gswarm.alert.turns import Change, Turn
from gswarm.profiler.ticks import NA_I32, NA_U64
from gswarm.v1 import cluster_pb2, profiler_pb2

GAP_US = 120_000_000
"""A rule that waits starts again after a silence longer than two of the slowest sampling intervals, microseconds."""
_LAST_US = 4_102_444_800_000_000  # the year 2100
_NO_LIMIT = np.empty((0, 0))
Key = tuple[str, str]
"""(rule's name, device id)"""
_SLOTS = {
    profiler_pb2.COLUMN_TYPE_GAUGE_F32: ("f32", "<f4", None),
    profiler_pb2.COLUMN_TYPE_GAUGE_I32: ("i32", "<i4", np.int32(NA_I32)),
    profiler_pb2.COLUMN_TYPE_COUNTER_U64: ("u64", "<u8", np.uint64(NA_U64)),
    profiler_pb2.COLUMN_TYPE_GAUGE_U64: ("u64", "<u8", np.uint64(NA_U64)),
    profiler_pb2.COLUMN_TYPE_MASK_U64: ("u64", "<u8", np.uint64(NA_U64)),
}


@dataclass(slots=True)
class _Columns:
    """The ruled columns of one wire type, for the devices of one node."""

    slot: str
    dtype: str
    na: Any
    width: int
    devices: tuple[str, ...]
    rules: tuple[Rule, ...]
    """One a column of the arrays below; a metric with two rules has two."""
    at: NDArray[np.intp]
    """Place in the tick of each device and rule."""
    sign: NDArray[np.float64]
    limit: NDArray[np.float64]
    """A cell turns when value * sign > limit; a cell that is not meant never does. A rise has none."""
    scale: NDArray[np.float64]
    last: bytes = b""
    """Bytes of the counters at the last tick; for rises."""

    def values(self, tick: profiler_pb2.SampleTick) -> NDArray[Any] | None:
        """Raw values, devices by rules; None for a tick that does not fit the schema."""
        raw: bytes = getattr(tick, self.slot)
        if len(raw) != len(self.devices) * self.width * int(self.dtype[2]):
            return None
        return np.frombuffer(raw, self.dtype).take(self.at)

    def set_cell(self, row: int, column: int, *, firing: bool) -> None:
        """Wait for the value to pass the limit, or to come back."""
        rule, scale = self.rules[column], self.scale[column]
        upward = (rule.when is When.ABOVE) is not firing
        self.sign[row, column] = scale if upward else -scale
        level = rule.clear if firing else rule.limit
        signed = level if upward else -level
        # Passing a limit is strict, coming back to the level is enough.
        self.limit[row, column] = np.nextafter(signed, -np.inf) if firing else signed


@dataclass(slots=True)
class _Node:
    schema_id: int
    thresholds: tuple[_Columns, ...]
    rises: tuple[_Columns, ...]
    pending: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """(group, row, column) of what holds and has not fired, to the sample time from which on, microseconds."""
    last_us: int = 0


class Thresholds:
    """All rules on metrics. `device` gives what the cluster knows of a device id, `schema` a node's schema of an id."""

    def __init__(
        self,
        rules: Iterable[Rule],
        device: Callable[[str], cluster_pb2.Device | None],
        schema: Callable[[str, int], profiler_pb2.MetricSchema | None],
    ) -> None:
        self.rules = tuple(rule for rule in rules if rule.metric)
        self._device, self._schema = device, schema
        self._nodes: dict[str, _Node] = {}
        self._firing: set[Key] = set()
        self._last_rise: dict[Key, int] = {}
        self._counted: dict[str, dict[str, int]] = {rule.name: {} for rule in self.rules}
        """By rule and device id the value of a counter from which a rise is one."""

    def restore(self, firing: Mapping[Key, datetime], counted: Mapping[Key, int]) -> None:
        """Take over what fired and what was counted when the host ended; `firing` tells when it happened last."""
        by_name = {rule.name: rule for rule in self.rules}
        self._firing = {key for key in firing if key[0] in by_name}
        self._last_rise = {
            k: _us(at) for k, at in firing.items() if k[0] in by_name and by_name[k[0]].when is When.RISES
        }
        for (rule, device), value in counted.items():
            self._counted.setdefault(rule, {})[device] = value

    def forget_layout(self, node: str) -> None:
        """The node's devices are others now: look at them anew with its next tick."""
        self._nodes.pop(node, None)

    def forget(self, device_id: str) -> None:
        """A device has left for good."""
        for counted in self._counted.values():
            counted.pop(device_id, None)
        for key in [key for key in self._last_rise if key[1] == device_id]:
            del self._last_rise[key]
        self._firing = {key for key in self._firing if key[1] != device_id}

    def look(self, tick: profiler_pb2.SampleTick) -> list[Change]:
        """What a node's newest tick changes. Absent values change nothing: they neither fire nor resolve."""
        node = self._nodes.get(tick.node)
        if node is None or node.schema_id != tick.schema_id:
            if (schema := self._schema(tick.node, tick.schema_id)) is None:
                return []
            node = self._nodes[tick.node] = self._layout(schema, tick.schema_id)
        if not node.thresholds and not node.rises:
            return []
        now = tick.time_unix_us
        if node.pending and not 0 <= now - node.last_us <= GAP_US:
            node.pending.clear()
        node.last_us = now
        changes: list[Change] = []
        for group, columns in enumerate(node.thresholds):
            found = columns.values(tick)
            if found is None:
                continue
            turning = found * columns.sign > columns.limit
            if columns.na is not None:
                turning &= found != columns.na
            if 1 in turning.tobytes() or node.pending:
                changes += self._turn(node, group, found, turning, now)
        for columns in node.rises:
            changes += self._rise(columns, tick, now)
        return changes

    def _turn(
        self, node: _Node, group: int, found: NDArray[Any], turning: NDArray[np.bool_], now: int
    ) -> Iterator[Change]:
        columns, waiting = node.thresholds[group], node.pending
        for place in [p for p in waiting if p[0] == group and not turning[p[1], p[2]]]:
            del waiting[place]
        for row, column in zip(*(index.tolist() for index in np.nonzero(turning)), strict=True):
            rule, device = columns.rules[column], columns.devices[row]
            key = (rule.name, device)
            value = float(found[row, column] * columns.scale[column])
            if key in self._firing:
                self._firing.discard(key)
                columns.set_cell(row, column, firing=False)
                yield Change(rule, device, Turn.RESOLVED, _time(now), value=value)
                continue
            since = waiting.setdefault((group, row, column), now)
            if now - since >= rule.for_s * 1e6:
                del waiting[group, row, column]
                self._firing.add(key)
                columns.set_cell(row, column, firing=True)
                yield Change(rule, device, Turn.FIRED, _time(now), since=_time(since), value=value)

    def _rise(self, columns: _Columns, tick: profiler_pb2.SampleTick, now: int) -> Iterator[Change]:
        found = columns.values(tick)
        if found is None:
            return
        raw = found.tobytes()
        if raw != columns.last:
            columns.last = raw
            for row, device in enumerate(columns.devices):
                for column, rule in enumerate(columns.rules):
                    value = found[row, column]
                    is_there = value != columns.na and value == value  # NaN is not itself
                    if columns.sign[row, column] and is_there:
                        yield from self._count(rule, device, int(value), now)
        if self._last_rise:
            for device in columns.devices:
                for rule in columns.rules:
                    key = (rule.name, device)
                    if key in self._last_rise and now - self._last_rise[key] >= rule.hold_s * 1e6:
                        del self._last_rise[key]
                        self._firing.discard(key)
                        yield Change(rule, device, Turn.RESOLVED, _time(now), why="it rises no more")

    def _count(self, rule: Rule, device: str, value: int, now: int) -> Iterator[Change]:
        key, counted = (rule.name, device), self._counted[rule.name]
        before, counted[device] = counted.get(device), value
        if before is None or value < before:
            yield Change(rule, device, Turn.COUNTED, _time(now), value=value)
        elif value > before:
            turn = Turn.AGAIN if key in self._firing else Turn.FIRED
            self._firing.add(key)
            self._last_rise[key] = now
            yield Change(rule, device, turn, _time(now), value=value)

    def _layout(self, schema: profiler_pb2.MetricSchema, schema_id: int) -> _Node:
        thresholds: list[_Columns] = []
        rises: list[_Columns] = []
        widths: dict[str, int] = {}
        places: dict[str, list[tuple[int, profiler_pb2.MetricColumn]]] = {}
        for column in schema.columns:
            if column.type not in _SLOTS:
                continue  # of a newer agent
            slot = _SLOTS[column.type][0]
            places.setdefault(slot, []).append((widths.get(slot, 0), column))
            widths[slot] = widths.get(slot, 0) + 1
        for slot, members in places.items():
            _, dtype, na = _SLOTS[members[0][1].type]
            for groups, is_rising in ((thresholds, False), (rises, True)):
                chosen = [
                    (place, column, rule)
                    for place, column in members
                    for rule in self.rules
                    if rule.metric == column.name and (rule.when is When.RISES) is is_rising
                ]
                if chosen:
                    rows, shape = len(schema.device_ids), (len(schema.device_ids), len(chosen))
                    made = _Columns(
                        slot, dtype, na, widths[slot], tuple(schema.device_ids), tuple(rule for _, _, rule in chosen),
                        _at(rows, widths[slot], tuple(place for place, _, _ in chosen)), np.zeros(shape),
                        _NO_LIMIT if is_rising else np.full(shape, np.inf),
                        _scale(tuple(column.scale for _, column, _ in chosen)),
                    )  # fmt: skip
                    self._aim(made, schema.node)
                    groups.append(made)
        return _Node(schema_id, tuple(thresholds), tuple(rises))

    def _aim(self, columns: _Columns, node: str) -> None:
        """Set the cells of those devices that each rule is for."""
        for row, device_id in enumerate(columns.devices):
            known = self._device(device_id) or cluster_pb2.Device(id=device_id, node=node)
            for column, rule in enumerate(columns.rules):
                if not rule.on.takes(alias=known.alias, device_id=device_id, node=known.node, model=known.name):
                    continue
                if rule.when is When.RISES:
                    columns.sign[row, column] = 1.0
                else:
                    columns.set_cell(row, column, firing=(rule.name, device_id) in self._firing)


# Nodes of a kind share these, which no one changes.


@functools.lru_cache(maxsize=64)
def _at(rows: int, width: int, places: tuple[int, ...]) -> NDArray[np.intp]:
    return np.add.outer(np.arange(rows) * width, places)


@functools.lru_cache(maxsize=64)
def _scale(powers: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array([10.0**-power for power in powers])


def _us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def _time(time_us: int) -> datetime:
    # A peer's clock may say anything.
    return datetime.fromtimestamp(max(0, min(time_us, _LAST_US)) / 1e6, UTC)
