"""A part of a recording as its journal holds it: state from seek point to seek point, and samples by time."""

from __future__ import annotations

import json
import mmap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gswarm.profiler.clocks import NOT_RUNNING, host_offset
from gswarm.profiler.journal import Record, scan
from gswarm.v1 import cluster_pb2, common_pb2, profiler_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gswarm.profiler.columns import Layout, Packed, Rows


SLICE_ROWS, SLICE_TICKS = 24_000, 64
"""A slice is read whole to show one moment of it: small enough for that, large enough to be stored well."""


@dataclass(frozen=True, slots=True)
class Item:
    """One record of the state: a list, changes, a schema, reasons or a gap."""

    time_us: int
    kind: Record
    payload: bytes


class Segment(Protocol):
    """What a recording needs of one of its parts, sealed or not."""

    number: int
    start_us: int
    end_us: int
    ticks: int
    """Node ticks."""
    changes: int
    damage: list[str]
    """What cannot be read, in sentences; samples that turn out to be damaged add theirs when they are read."""

    @property
    def points(self) -> Sequence[int]:
        """Times of the seek points, microseconds since the epoch."""

    @property
    def is_whole(self) -> bool:
        """Whether the first seek point starts with a full list."""

    def items(self, point: int) -> list[Item]:
        """The state's records from a seek point to the next."""

    def schemas(self) -> Mapping[str, profiler_pb2.MetricColumn]:
        """Every metric it holds."""

    def latest(self, until_us: int, since_us: int) -> Rows:
        """The newest row of each device between two moments, the later one included."""

    def rows(self, metrics: Sequence[str] | None, start_us: int, end_us: int) -> Rows:
        """Every sample between two moments, both included; None: of all metrics."""

    def reasons(self, until_us: int) -> Mapping[str, Mapping[str, str]]:
        """Device to metric to why its value is, or was last, NA."""

    def slices(self) -> Iterator[Rows]:
        """Every sample, a slice of time after another, so that it need not be held at once."""

    def moments(self) -> NDArray[np.int64]:
        """When something was sampled or changed, ascending."""

    def events(self) -> list[common_pb2.Event]:
        """The event log of this part."""

    def close(self) -> None:
        """Give files back."""


@dataclass(frozen=True, slots=True)
class Group:
    """Ticks of one node with one schema, by time."""

    node: str
    layout: Layout
    times_us: NDArray[np.int64]
    ticks: Sequence[Packed]


@dataclass(frozen=True, slots=True)
class Sampled:
    """All ticks of a journal on one time axis."""

    groups: tuple[Group, ...]
    reasons: tuple[Item, ...]
    """Each time one changes: device to metric to why it is NA."""
    offsets: Mapping[str, tuple[tuple[int, int], ...]]
    """Node to (arrival, what was added to its clock from then on), microseconds."""
    unread: int
    """Ticks that no schema describes."""

    def slices(self) -> Iterator[tuple[int, int]]:
        """(first, last) times of slices that hold about SLICE_ROWS rows, and SLICE_TICKS of a device at least."""
        import numpy as np

        if not self.groups:
            return
        times = np.concatenate([group.times_us for group in self.groups])
        weights = np.concatenate([np.full(len(g.times_us), len(g.layout.device_ids)) for g in self.groups])
        order = np.argsort(times, kind="stable")
        times, weights = times[order], np.cumsum(weights[order])
        devices = len({device for group in self.groups for device in group.layout.device_ids})
        number = weights // max(SLICE_ROWS, SLICE_TICKS * devices)
        # The last slice would often be a small rest: it stays with the one before.
        number = np.minimum(number, max(0, int(number[-1]) - 1))
        firsts = times[np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))]
        firsts = np.unique(firsts)
        for first, end in zip(firsts, [*(firsts[1:] - 1), times[-1]], strict=True):
            yield int(first), int(end)


class JournalSegment:
    """Reads a journal, whole or torn, while it is written or after. Scans it once on opening."""

    def __init__(self, path: Path, number: int) -> None:
        self.number, self._path = number, path
        self._data: Any = b""
        if path.stat().st_size:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.frames, lost = scan(self._data)
        self.damage = [f"{lost} bytes of {path.name} belong to no whole record and were left out"] if lost else []
        # The order in the file is the order in which things happened, whatever the clock said.
        self.times: list[int] = []
        for found in self.frames:
            self.times.append(max(found.time_us, self.times[-1] if self.times else 0))
        self.start_us, self.end_us = (self.times[0], self.times[-1]) if self.times else (0, 0)
        kinds = [found.kind for found in self.frames]
        self.ticks, self.changes = kinds.count(Record.TICK), kinds.count(Record.BATCH)
        self._state = [i for i, kind in enumerate(kinds) if kind is not Record.TICK]
        lists = [i for i, at in enumerate(self._state) if kinds[at] is Record.LIST]
        self._is_whole = bool(lists) and lists[0] == 0
        self._edges = [*([] if self._is_whole or not self._state else [0]), *lists, len(self._state)]
        self._points = [self.times[self._state[edge]] for edge in self._edges[:-1]]

    @property
    def points(self) -> Sequence[int]:
        """See Segment."""
        return self._points

    @property
    def is_whole(self) -> bool:
        """See Segment."""
        return self._is_whole

    def close(self) -> None:
        """Unmap the journal."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def payload(self, index: int) -> bytes:
        """What a record holds."""
        found = self.frames[index]
        return bytes(self._data[found.offset : found.offset + found.size])

    def items(self, point: int) -> list[Item]:
        """See Segment."""
        inside = self._state[self._edges[point] : self._edges[point + 1]]
        return [Item(self.times[i], self.frames[i].kind, self.payload(i)) for i in inside]

    @cached_property
    def sampled(self) -> Sampled:
        """Every tick, parsed and put on the host's time axis."""
        import numpy as np

        from gswarm.profiler.clocks import offsets
        from gswarm.profiler.columns import Layout, Packed

        layouts: dict[tuple[str, int], Layout] = {}
        later = self._announced()
        arrived: dict[str, list[tuple[int, int, int, Layout, Packed]]] = defaultdict(list)
        """Arrival, number, the node's time, layout and values."""
        reasons = ReasonChanges()
        unread = 0
        for index, found in enumerate(self.frames):
            if found.kind is Record.SCHEMA:
                schema = profiler_pb2.MetricSchema.FromString(self.payload(index))
                known = layouts.get((schema.node, schema.id))
                if (
                    known is None
                    or known.schema.columns != schema.columns
                    or known.schema.device_ids != schema.device_ids
                ):
                    layouts[schema.node, schema.id] = known = Layout(schema)
                reasons.take(self.times[index], known, getattr(schema, "absent", ()))
            elif found.kind is Record.TICK:
                tick = profiler_pb2.SampleTick.FromString(self.payload(index))
                key = (tick.node, tick.schema_id)
                # Its announcement may be damaged: the same id is the same layout, and each is announced again.
                layout = layouts.get(key) or later.get(key)
                if layout is None or not layout.fits(tick):
                    unread += 1
                    continue
                values = Packed(tick.f32, tick.i32, tick.u64)
                arrived[tick.node].append((self.times[index], tick.seq, tick.time_unix_us, layout, values))
                reasons.take(self.times[index], layout, tick.absent)
        groups: list[Group] = []
        shifts: dict[str, tuple[tuple[int, int], ...]] = {}
        for node, ticks in arrived.items():
            node_us = np.array([tick[2] for tick in ticks], np.int64)
            arrivals = np.array([tick[0] for tick in ticks], np.int64)
            offset, shifts[node] = offsets([tick[1] for tick in ticks], node_us, arrivals)
            times = node_us + offset
            by_layout: dict[int, list[int]] = defaultdict(list)
            for i, told in enumerate(ticks):
                by_layout[id(told[3])].append(i)
            for members in by_layout.values():
                order = np.array(members)[np.argsort(times[members], kind="stable")]
                groups.append(Group(node, ticks[order[0]][3], times[order], [ticks[i][4] for i in order]))
        return Sampled(tuple(groups), tuple(reasons.items), shifts, unread)

    def _announced(self) -> dict[tuple[str, int], Layout]:
        """The first that is known of each node's schemas."""
        from gswarm.profiler.columns import Layout

        found: dict[tuple[str, int], Layout] = {}
        for index in self._state:
            if self.frames[index].kind is Record.SCHEMA:
                schema = profiler_pb2.MetricSchema.FromString(self.payload(index))
                found.setdefault((schema.node, schema.id), Layout(schema))
        return found

    def schemas(self) -> Mapping[str, profiler_pb2.MetricColumn]:
        """See Segment."""
        found: dict[str, profiler_pb2.MetricColumn] = {}
        for group in self.sampled.groups:
            for column in group.layout.schema.columns:
                found.setdefault(column.name, column)
        return found

    def latest(self, until_us: int, since_us: int) -> Rows:
        """See Segment."""
        import numpy as np

        from gswarm.profiler.columns import gather

        parts = []
        for group in self.sampled.groups:
            at = int(np.searchsorted(group.times_us, until_us, side="right")) - 1
            if at >= 0 and group.times_us[at] >= since_us:
                parts.append(
                    (group.node, group.layout, group.times_us[at : at + 1], group.layout.unpack([group.ticks[at]]))
                )
        rows = gather(parts)
        return rows.chosen(rows.latest(until_us))

    def rows(self, metrics: Sequence[str] | None, start_us: int, end_us: int) -> Rows:
        """See Segment."""
        import numpy as np

        from gswarm.profiler.columns import gather

        parts = []
        for group in self.sampled.groups:
            first = int(np.searchsorted(group.times_us, start_us))
            end = int(np.searchsorted(group.times_us, end_us, side="right"))
            if first < end:
                columns = group.layout.unpack(group.ticks[first:end], metrics)
                parts.append((group.node, group.layout, group.times_us[first:end], columns))
        return gather(parts)

    def reasons(self, until_us: int) -> Mapping[str, Mapping[str, str]]:
        """See Segment."""
        return folded(self.sampled.reasons, until_us)

    def slices(self) -> Iterator[Rows]:
        """See Segment."""
        for start_us, end_us in self.sampled.slices():
            yield self.rows(None, start_us, end_us)

    def events(self) -> list[common_pb2.Event]:
        """See Segment."""
        return [event for _, event in self.event_rows()]

    def event_rows(self) -> list[tuple[int, common_pb2.Event]]:
        """See `event_rows_of`."""
        every = (item for point in range(len(self._points)) for item in self.items(point))
        return event_rows_of(every, self.start_us)

    def moments(self) -> NDArray[np.int64]:
        """See Segment."""
        import numpy as np

        changed = [self.times[i] for i, found in enumerate(self.frames) if found.kind is Record.BATCH]
        return np.unique(np.concatenate([np.array(changed, np.int64), *(g.times_us for g in self.sampled.groups)]))


class ReasonChanges:
    """Collects why values are NA, each time a reason becomes another one."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._last: dict[tuple[str, str], str] = {}

    def take(self, time_us: int, layout: Layout, told: Iterable[profiler_pb2.Absent]) -> None:
        """The reasons of a schema or a tick."""
        changed: dict[str, dict[str, str]] = {}
        columns, devices = layout.schema.columns, layout.device_ids
        for absent in told:
            if absent.device >= len(devices) or absent.column >= len(columns):
                continue
            device = devices[absent.device]
            # One reason for the whole device, as newer agents tell it.
            chosen = columns if getattr(absent, "every_column", False) else columns[absent.column : absent.column + 1]
            for column in chosen:
                if self._last.get((device, column.name)) != absent.reason:
                    self._last[device, column.name] = absent.reason
                    changed.setdefault(device, {})[column.name] = absent.reason
        if changed:
            self.items.append(Item(time_us, Record.REASONS, json.dumps(changed).encode()))


def event_rows_of(items: Iterable[Item], start_us: int) -> list[tuple[int, common_pb2.Event]]:
    """Each entry of the event log since a moment, once, in order, with the revision it came with.

    Their times are the recording's, also when the host's clock was set while it recorded.
    """
    found: dict[str, tuple[int, common_pb2.Event]] = {}
    offset = 0
    for item in items:
        if item.kind is Record.GAP and item.payload == NOT_RUNNING:
            offset = 0
        if item.kind not in (Record.LIST, Record.BATCH):
            continue
        response = cluster_pb2.WatchResponse.FromString(item.payload)
        if item.kind is Record.BATCH and response.HasField("time"):  # a list is as old as the last change
            offset = host_offset(item.time_us, response.time.ToMicroseconds())
        for obj in response.objects:
            if obj.HasField("event") and (at := obj.event.time.ToMicroseconds() + offset) >= start_us:
                if offset:
                    obj.event.time.FromMicroseconds(at)
                found.setdefault(obj.key, (obj.revision, obj.event))
    return sorted(found.values(), key=lambda row: int(row[1].id))


def folded(items: Iterable[Item], until_us: int) -> dict[str, dict[str, str]]:
    """The reasons that hold at a moment."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        if item.time_us > until_us:
            break
        if item.kind is Record.REASONS:
            for device, changed in json.loads(item.payload).items():
                found.setdefault(device, {}).update(changed)
    return found
