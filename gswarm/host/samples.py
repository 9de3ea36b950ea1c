"""The last ten minutes of metric samples of every node, and whoever wants to hear them as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gswarm.host.ring import Ring
from gswarm.v1 import profiler_pb2

KEPT_US = 600_000_000
NODE_LIMIT_BYTES = 32 << 20
"""Ten minutes of 8 GPUs at 10 Hz are 20 MB as they come."""
Listener = Callable[[str, bytes, bytes | None], None]
"""Called with node, serialised SampleTick (may be empty) and, when it is new, the serialised MetricSchema."""
Follower = Callable[[profiler_pb2.SampleTick], None]
"""Called with a tick that is the newest of its node; what comes late, after a cut, is history."""


@dataclass(slots=True)
class _Node:
    """Schemas and the newest tick as they came, for parsed they take three times as much, and few ask for them."""

    ring: Ring
    """By the node's own clock, which need not be ours."""
    schemas: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """The columns, which nodes of a kind share, and the rest of each: joined they are the schema."""
    absent: dict[int, dict[int, tuple[str, bool]]] = field(default_factory=dict)
    """Why values of the newest schema are NA, and whether it holds for every column, as told last, by device and column;
    some may have come since. No part of the ticks that told it, for each would keep its whole tick.
    """
    newest: bytes = b""
    schema_id: int = 0
    """Of the newest tick, as are `seq`, `time_us` and `received`."""
    seq: int = 0
    time_us: int = 0
    received: float = 0.0


class SampleHub:
    """Takes ticks from agents, keeps them serialised, and hands the same bytes to every listener."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes: dict[str, _Node] = {}
        self._columns: dict[bytes, bytes] = {}
        """Every layout that a node has told of, by itself: one for all nodes of a kind."""
        self._listeners: tuple[Listener, ...] = ()
        self._followers: tuple[Follower, ...] = ()
        self._clock = clock
        self.ticks = 0
        """Ticks taken since the host started."""

    def _node(self, name: str) -> _Node:
        if (known := self._nodes.get(name)) is None:
            ring = Ring(KEPT_US, NODE_LIMIT_BYTES, len(self._nodes))
            known = self._nodes[name] = _Node(ring)
        return known

    def add_schema(self, schema: profiler_pb2.MetricSchema) -> None:
        """A node's column layout; must come before the first tick that uses it."""
        columns = profiler_pb2.MetricSchema(columns=schema.columns).SerializeToString()
        columns = self._columns.setdefault(columns, columns)
        rest = profiler_pb2.MetricSchema()
        rest.CopyFrom(schema)
        rest.ClearField("columns")
        parts = self._node(schema.node).schemas[schema.id] = columns, rest.SerializeToString()
        wire = b"".join(parts)
        for listener in self._listeners:
            listener(schema.node, b"", wire)

    def add(self, tick: profiler_pb2.SampleTick) -> None:
        """One tick of a node. Told twice is taken once; older than the newest (after a cut) it is not the newest."""
        name, at, seq, wire = tick.node, tick.time_unix_us, tick.seq, tick.SerializeToString()
        node = self._node(name)
        if not node.ring.add(at, wire):
            return
        self.ticks += 1
        # A higher number is newer also when the node's clock was set back.
        is_newest = not node.newest or at > node.time_us or seq > node.seq
        if is_newest:
            _remember_reasons(node, tick)
            node.newest, node.time_us, node.seq, node.received = wire, at, seq, self._clock()
        for listener in self._listeners:
            listener(name, wire, None)
        if is_newest:
            for follower in self._followers:
                follower(tick)

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
        for number, parts in known.schemas.items():
            told = [
                profiler_pb2.Absent(device=device, column=column, reason=reason, every_column=every)
                for device, row in (known.absent.items() if number == known.schema_id else ())
                for column, (reason, every) in row.items()
            ]
            # Protobuf messages are merged by joining their bytes.
            found.append(b"".join((*parts, profiler_pb2.MetricSchema(absent=told).SerializeToString())))
        return found

    def schema(self, node: str, schema_id: int) -> profiler_pb2.MetricSchema | None:
        """One schema, parsed anew."""
        parts = known.schemas.get(schema_id) if (known := self._nodes.get(node)) else None
        return profiler_pb2.MetricSchema.FromString(b"".join(parts)) if parts is not None else None

    def newest(self, node: str) -> tuple[bytes, bytes] | None:
        """The newest tick of a node and its schema, empty while that is unknown: both serialised, the schema first."""
        known = self._nodes.get(node)
        if known is None or not known.newest:
            return None
        return b"".join(known.schemas.get(known.schema_id, ())), known.newest

    def age_s(self, node: str) -> float | None:
        """Seconds since the newest tick arrived; None when there is none."""
        known = self._nodes.get(node)
        return self._clock() - known.received if known and known.newest else None

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
        self._listeners += (listener,)

        def end() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

        return end

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Call `follower` with each tick that is the newest of its node, parsed; the returned function ends it."""
        self._followers += (follower,)

        def end() -> None:
            self._followers = tuple(other for other in self._followers if other is not follower)

        return end


def _remember_reasons(node: _Node, tick: profiler_pb2.SampleTick) -> None:
    if tick.schema_id != node.schema_id:
        node.absent.clear()
        node.schema_id = tick.schema_id
    for absent in tick.absent:
        row = node.absent.setdefault(absent.device, {})
        if absent.every_column or any(every for _, every in row.values()):
            row.clear()
        row[absent.column] = sys.intern(absent.reason), absent.every_column
