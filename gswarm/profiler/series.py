"""A recording's samples as numpy columns, one set a device: what analysis, pictures and exports read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gswarm.errors import InvalidError
from gswarm.host.samples import NA_I32, NA_U64, SLOTS
from gswarm.names import near
from gswarm.profiler.metrics import BY_NAME, is_counter
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from gswarm.profiler.recording import Recording

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]

HOLDS = 3.0
"""A sample stands for the time to the next one, but for no more than this many of its neighbours' intervals."""
LATE = 1.5
"""A sample that comes later than this share of its interval has some missing before it."""
_NA: dict[str, Any] = {"f32": np.float32("nan"), "i32": np.int32(NA_I32), "u64": np.uint64(NA_U64)}


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One metric of one device: values in their own type, and which of them are known; the others are NA."""

    values: npt.NDArray[Any]
    known: Flags
    unit: str = ""
    is_counter: bool = False
    is_mask: bool = False

    def numbers(self) -> Floats:
        """As float64, NA as NaN."""
        return np.where(self.known, self.values, np.nan).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One device: sample times in microseconds since the epoch, growing, and a column for each metric."""

    node: str
    device: str
    times_us: Times
    columns: Mapping[str, Column]

    def numbers(self, metric: str) -> Floats:
        """A metric as float64; all NaN when it was not recorded."""
        column = self.columns.get(metric)
        return np.full(len(self.times_us), np.nan) if column is None else column.numbers()

    def has(self, metric: str) -> bool:
        """Whether there is any value of it."""
        return metric in self.columns and bool(self.columns[metric].known.any())

    def holds_s(self, interval_s: float = 1.0, slowest_s: float = 0.0) -> Floats:
        """Seconds that each sample stands for.

        That is the time to the next one: sampling may be adaptive, and a plain mean would count fast times more often.
        A gap in the samples stands for nothing: an interval counts up to HOLDS times the longer of those beside it, and in
        an adaptive session, where work may come and go within one pause, up to LATE times the longest pause.
        The last sample, and the only one, stand for the interval before, and for `interval_s`.
        """
        count = len(self.times_us)
        if count < 2:
            return np.full(count, interval_s)
        steps = np.diff(self.times_us) / 1e6
        if len(steps) > 1:
            before = np.concatenate(([0.0], steps[:-1]))
            after = np.concatenate((steps[1:], [0.0]))
            longest = HOLDS * np.maximum(before, after)
        else:
            longest = np.array([HOLDS * interval_s])
        steps = np.minimum(steps, np.maximum(longest, LATE * slowest_s))
        return np.concatenate((steps, steps[-1:]))


def read(recording: Recording) -> tuple[Series, ...]:
    """Every device's samples, by node and in its own order. The one place that knows how a recording holds them."""
    blocks: dict[bytes, _Block] = {}
    current: dict[tuple[str, int], tuple[profiler_pb2.MetricSchema, _Block]] = {}
    for schema, tick in recording.ticks():
        held = current.get((schema.node, schema.id))
        if held is None or held[0] is not schema:
            # Announced again every minute; an agent that started anew may mean something else by the same number.
            wire = schema.SerializeToString(deterministic=True)
            held = current[schema.node, schema.id] = (schema, blocks.setdefault(wire, _Block(schema)))
        held[1].add(tick)
    parts: dict[tuple[str, str], list[Series]] = {}
    for block in blocks.values():
        for series in block.series():
            parts.setdefault((series.node, series.device), []).append(series)
    nodes = sorted({node for node, _ in parts})
    return tuple(_joined(found) for node in nodes for (owner, _), found in parts.items() if owner == node)


@dataclass(slots=True)
class _Block:
    """Ticks of one layout, as the bytes they came in."""

    schema: profiler_pb2.MetricSchema
    times: list[int] = field(default_factory=list)
    packed: dict[str, list[bytes]] = field(default_factory=lambda: {slot: [] for slot in _NA})

    def add(self, tick: profiler_pb2.SampleTick) -> None:
        self.times.append(tick.time_unix_us)
        for slot, parts in self.packed.items():
            parts.append(getattr(tick, slot))

    def series(self) -> Iterator[Series]:
        devices = len(self.schema.device_ids)
        known_types = [c for c in self.schema.columns if c.type in SLOTS]  # others are of a newer agent
        width = {slot: sum(SLOTS[c.type][0] == slot for c in known_types) for slot in _NA}
        arrays = {slot: _unpacked(self.packed[slot], slot, devices, width[slot]) for slot in _NA}
        times = np.array(self.times, np.int64)
        place = dict.fromkeys(_NA, 0)
        columns: list[tuple[str, profiler_pb2.MetricColumn, npt.NDArray[Any], npt.NDArray[np.bool_]]] = []
        for column in known_types:
            slot = SLOTS[column.type][0]
            values = arrays[slot][:, :, place[slot]]
            place[slot] += 1
            known = ~np.isnan(values) if slot == "f32" else values != _NA[slot]
            if column.scale:
                values = values / 10.0**column.scale
            columns.append((column.name, column, values, known))
        for row, device in enumerate(self.schema.device_ids):
            yield Series(
                self.schema.node,
                device,
                times,
                {
                    name: Column(
                        values[:, row],
                        known[:, row],
                        column.unit,
                        _counts(column),
                        _is_mask(column),
                    )
                    for name, column, values, known in columns
                },
            )


def _is_mask(column: profiler_pb2.MetricColumn) -> bool:
    return column.type == profiler_pb2.COLUMN_TYPE_MASK_U64 or column.name.endswith("_reasons")


def _counts(column: profiler_pb2.MetricColumn) -> bool:
    if column.type != profiler_pb2.COLUMN_TYPE_COUNTER_U64 or _is_mask(column):
        return False
    # Bytes held travel as u64 too; what this version does not know of goes by its unit.
    return is_counter(column.name) if column.name in BY_NAME else not column.name.endswith("_bytes")


def _unpacked(parts: list[bytes], slot: str, devices: int, width: int) -> npt.NDArray[Any]:
    """(tick, device, column); a tick of another length than its schema says is NA."""
    dtype = np.asarray(_NA[slot]).dtype.newbyteorder("<")
    absent = np.full(devices * width, _NA[slot], dtype).tobytes()
    data = b"".join(part if len(part) == len(absent) else absent for part in parts)
    return np.frombuffer(data, dtype).reshape(len(parts), devices, width)


def _joined(parts: list[Series]) -> Series:
    """One device's samples of several layouts, in order of time and each moment once."""
    first = parts[0]
    times, order = np.unique(np.concatenate([part.times_us for part in parts]), return_index=True)
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        like = next(part.columns[name] for part in parts if name in part.columns)
        found = [part.columns.get(name) or _absent(len(part.times_us), like) for part in parts]
        columns[name] = Column(
            np.concatenate([column.values for column in found])[order],
            np.concatenate([column.known for column in found])[order],
            like.unit,
            like.is_counter,
            like.is_mask,
        )
    return Series(first.node, first.device, times, columns)


def _absent(count: int, like: Column) -> Column:
    return Column(np.zeros(count, like.values.dtype), np.zeros(count, np.bool_))


def check_metrics(wanted: Iterable[str], series: Iterable[Series]) -> None:
    """Raises InvalidError for a metric that was not recorded, with the near names."""
    known = list(dict.fromkeys(name for one in series for name in one.columns))
    for name in wanted:
        if name not in known:
            raise InvalidError(
                f"there is no metric {name!r} in this recording",
                next=near(name, known) or f"there are: {', '.join(known)}",
                field="metric",
            )
