"""The last ten minutes of metric samples of every node, and whoever wants to hear them as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gswarm.host.ring import Ring
from gswarm.v1 import profiler_pb2

KEPT_S = 600.0
NODE_LIMIT_BYTES = 32 << 20
"""Ten minutes of 8 GPUs at 10 Hz are 20 MB as they come."""
Listener = Callable[[str, bytes, bytes | None], None]
"""Called with node, serialised SampleTick (may be empty) and, when it is new, the serialised MetricSchema."""

SLOTS = {
    profiler_pb2.COLUMN_TYPE_GAUGE_F32: ("f32", "<f4"),
    profiler_pb2.COLUMN_TYPE_GAUGE_I32: ("i32", "<i4"),
    profiler_pb2.COLUMN_TYPE_COUNTER_U64: ("u64", "<u8"),
    profiler_pb2.COLUMN_TYPE_MASK_U64: ("u64", "<u8"),
    profiler_pb2.COLUMN_TYPE_GAUGE_U64: ("u64", "<u8"),
}
NA_I32 = -(1 << 31)
NA_U64 = (1 << 64) - 1


@dataclass(slots=True)
class _Node:
    schemas: dict[int, profiler_pb2.MetricSchema] = field(default_factory=dict)
    absent: dict[int, dict[int, profiler_pb2.Absent]] = field(default_factory=dict)
    """Why values of the newest schema are NA, as told last, by device and column; some may have come since."""
    absent_schema: int = 0
    ring: Ring = field(default_factory=lambda: Ring(int(KEPT_S * 1e6), NODE_LIMIT_BYTES))
    """By the node's own clock, which need not be ours."""
    latest: profiler_pb2.SampleTick | None = None
    received: float = 0.0


class SampleHub:
    """Takes ticks from agents, keeps them serialised, and hands the same bytes to every listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes: dict[str, _Node] = {}
        self._listeners: list[Listener] = []
        self._clock = clock
        self.ticks = 0
        """Ticks taken since the host started."""

    def add_schema(self, schema: profiler_pb2.MetricSchema) -> None:
        """A node's column layout; must come before the first tick that uses it."""
        node = self._nodes.setdefault(schema.node, _Node())
        node.schemas[schema.id] = schema
        wire = schema.SerializeToString()
        for listener in tuple(self._listeners):
            listener(schema.node, b"", wire)

    def add(self, tick: profiler_pb2.SampleTick) -> None:
        """One tick of a node. Told twice is taken once; older than the newest (after a cut) is no `latest`."""
        node = self._nodes.setdefault(tick.node, _Node())
        at, wire = tick.time_unix_us, tick.SerializeToString()
        if not node.ring.add(at, wire):
            return
        # A higher number is newer also when the node's clock was set back.
        if node.latest is None or at > node.latest.time_unix_us or tick.seq > node.latest.seq:
            node.latest, node.received = tick, self._clock()
            _remember_reasons(node, tick)
        self.ticks += 1
        for listener in tuple(self._listeners):
            listener(tick.node, wire, None)

    def forget(self, node: str) -> None:
        """Drop what is held of a node that left for good."""
        self._nodes.pop(node, None)

    def nodes(self) -> list[str]:
        """Nodes that have sent anything."""
        return list(self._nodes)

    def schemas(self, node: str) -> list[bytes]:
        """Serialised schemas of a node, the newest with the reasons that hold: ticks tell only those that change."""
        known = self._nodes.get(node)
        if known is None:
            return []
        found = []
        for schema in known.schemas.values():
            rows = known.absent.values() if schema.id == known.absent_schema else ()
            told = [absent for row in rows for absent in row.values()]
            found.append(
                schema.SerializeToString() + profiler_pb2.MetricSchema(absent=told).SerializeToString()
            )  # protobuf messages are merged by joining their bytes
        return found

    def schema(self, node: str, schema_id: int) -> profiler_pb2.MetricSchema | None:
        """One schema, parsed."""
        known = self._nodes.get(node)
        return known.schemas.get(schema_id) if known else None

    def latest(self, node: str) -> profiler_pb2.SampleTick | None:
        """The newest tick of a node."""
        known = self._nodes.get(node)
        return known.latest if known else None

    def age_s(self, node: str) -> float | None:
        """Seconds since the newest tick arrived; None when there is none."""
        known = self._nodes.get(node)
        return self._clock() - known.received if known and known.latest else None

    def history(self, node: str, seconds: float) -> list[bytes]:
        """Serialised ticks of the last `seconds`, oldest first; always at least the newest."""
        known = self._nodes.get(node)
        return known.ring.last(seconds * 1e6) if known else []

    def at(self, node: str, time_us: int) -> bytes | None:
        """The serialised tick that was the newest at a moment of the node's clock; None when none is held from then."""
        known = self._nodes.get(node)
        return known.ring.at(time_us) if known else None

    @property
    def held_bytes(self) -> int:
        """What the ticks of all nodes take as they are held."""
        return sum(node.ring.held for node in self._nodes.values())

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with everything that comes; the returned function ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def value(self, device_id: str, metric: str) -> float | int | None:
        """The newest value of one metric of one device; None when it is NA or unknown."""
        for node in self._nodes.values():
            tick = node.latest
            schema = node.schemas.get(tick.schema_id) if tick else None
            if tick and schema and device_id in schema.device_ids:
                return dict(values(schema, tick, list(schema.device_ids).index(device_id))).get(metric)
        return None


def _remember_reasons(node: _Node, tick: profiler_pb2.SampleTick) -> None:
    if tick.schema_id != node.absent_schema:
        node.absent.clear()
        node.absent_schema = tick.schema_id
    for absent in tick.absent:
        row = node.absent.setdefault(absent.device, {})
        if absent.every_column or any(known.every_column for known in row.values()):
            row.clear()
        row[absent.column] = absent


def table(schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick) -> list[dict[str, float | int]]:
    """What each device of a tick gives, by metric; what is NA is left out. Several times as fast as `values` for each."""
    import numpy as np

    slots: dict[str, list[tuple[str, int]]] = {"f32": [], "i32": [], "u64": []}
    for column in schema.columns:
        slots[SLOTS[column.type][0]].append((column.name, column.scale))
    found: list[dict[str, float | int]] = [{} for _ in schema.device_ids]
    for slot, dtype in set(SLOTS.values()):
        names, raw = [name for name, _ in slots[slot]], getattr(tick, slot)
        if not names:
            continue
        packed = np.frombuffer(raw[: len(raw) - len(raw) % np.dtype(dtype).itemsize], dtype)
        whole = min(len(packed) // len(names), len(found))
        scales = [(name, 10**scale) for name, scale in slots[slot] if scale and slot != "f32"]
        missing = {"i32": NA_I32, "u64": NA_U64}.get(slot)
        for given, row in zip(found, packed[: whole * len(names)].reshape(whole, len(names)).tolist(), strict=False):
            # NaN, the NA of floats, is the one value that differs from itself.
            mine = {name: v for name, v in zip(names, row, strict=True) if v != missing and v == v}
            given.update(mine)
            given.update((name, mine[name] / factor) for name, factor in scales if name in mine)
    return found


def values(
    schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick, device: int
) -> Iterator[tuple[str, float | int | None]]:
    """(metric, value) of one device row; None is NA. Scaled integers come as what they stand for."""
    import numpy as np

    counts = {"f32": 0, "i32": 0, "u64": 0}
    for column in schema.columns:
        counts[SLOTS[column.type][0]] += 1
    rows: dict[str, np.ndarray] = {}
    for slot, dtype in set(SLOTS.values()):
        raw: bytes = getattr(tick, slot)
        packed = np.frombuffer(raw[: len(raw) - len(raw) % np.dtype(dtype).itemsize], dtype)
        width = counts[slot]
        if width and len(packed) >= (device + 1) * width:
            rows[slot] = packed[device * width : (device + 1) * width]
    at = {"f32": 0, "i32": 0, "u64": 0}
    for column in schema.columns:
        slot = SLOTS[column.type][0]
        row = rows.get(slot)
        value = row[at[slot]] if row is not None else None
        at[slot] += 1
        yield column.name, _plain(value, slot, column.scale)


def columns(
    schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick
) -> Iterator[tuple[profiler_pb2.MetricColumn, list[float | int | None]]]:
    """(column, its values in the order of the devices) of a whole tick; None is NA. For many devices at once.

    A column that does not fit the tick is NA for all.
    """
    import numpy as np

    rows = len(schema.device_ids)
    known = [column for column in schema.columns if column.type in SLOTS]
    widths = {slot: sum(SLOTS[column.type][0] == slot for column in known) for slot, _ in SLOTS.values()}
    tables: dict[str, list[list[Any]]] = {}
    for slot, dtype in set(SLOTS.values()):
        raw: bytes = getattr(tick, slot)
        if widths[slot] and len(raw) == rows * widths[slot] * np.dtype(dtype).itemsize:
            tables[slot] = np.frombuffer(raw, dtype).reshape(rows, widths[slot]).T.tolist()
    at = dict.fromkeys(widths, 0)
    for column in known:
        slot = SLOTS[column.type][0]
        found = tables[slot][at[slot]] if slot in tables else [None] * rows
        at[slot] += 1
        yield column, [_plain(value, slot, column.scale) for value in found]


def _plain(value: Any, slot: str, scale: int) -> float | int | None:
    if value is None:
        return None
    if slot == "f32":
        number = float(value)
        return None if number != number else number
    whole = int(value)
    if whole == (NA_I32 if slot == "i32" else NA_U64):
        return None
    return float(whole / 10**scale) if scale else whole
