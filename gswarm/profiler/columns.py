"""Samples as numpy columns: packed ticks taken apart many at a time, and rows by device and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gswarm.profiler.ticks import NA_I32, NA_U64, SLOTS
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples of some devices: the rows of device i are `starts[i]:starts[i + 1]`, in time order.

    `columns` holds each metric as it was measured, NA as its type's own mark (see `absent`).
    """

    device_ids: tuple[str, ...]
    nodes: tuple[str, ...]
    """Of each device."""
    starts: NDArray[np.int64]
    times_us: NDArray[np.int64]
    """Host time, microseconds since the epoch."""
    columns: Mapping[str, NDArray[Any]]

    def latest(self, until_us: int) -> NDArray[np.int64]:
        """For each device the row at or before a moment; -1: none."""
        found = np.full(len(self.device_ids), -1, np.int64)
        for index, (first, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            at = first + np.searchsorted(self.times_us[first:end], until_us, side="right") - 1
            found[index] = at if at >= first else -1
        return found

    def chosen(self, rows: NDArray[np.int64]) -> Rows:
        """One row of each device, by its number; a device with -1 is left out."""
        kept = np.flatnonzero(rows >= 0)
        at = rows[kept]
        return Rows(
            tuple(self.device_ids[i] for i in kept),
            tuple(self.nodes[i] for i in kept),
            np.arange(len(kept) + 1, dtype=np.int64),
            self.times_us[at],
            {name: values[at] for name, values in self.columns.items()},
        )

    def between(self, start_us: int, end_us: int) -> Rows:
        """Only the rows between two moments, both included."""
        keep = (self.times_us >= start_us) & (self.times_us <= end_us)
        upto = np.concatenate(([0], np.cumsum(keep)))
        return Rows(
            self.device_ids,
            self.nodes,
            upto[self.starts],
            self.times_us[keep],
            {name: values[keep] for name, values in self.columns.items()},
        )


def dtype_of(column: profiler_pb2.MetricColumn) -> np.dtype[Any]:
    """How a metric's values are held."""
    return np.dtype(np.float64 if column.scale else SLOTS[column.type][1])


def na_of(dtype: np.dtype[Any]) -> float | int:
    """The mark that stands for NA in a column of this type."""
    return {"f": float("nan"), "i": NA_I32, "u": NA_U64}[dtype.kind]


def absent(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a column is NA."""
    found: NDArray[np.bool_] = np.isnan(column) if column.dtype.kind == "f" else column == na_of(column.dtype)
    return found


def as_floats(column: NDArray[Any]) -> NDArray[np.float64]:
    """A column as float64 with NaN where it is NA; counters are exact up to 2^53."""
    found = column.astype(np.float64)
    if column.dtype.kind != "f":
        found[absent(column)] = np.nan
    return found


class Packed(NamedTuple):
    """The values of a tick as they came; without the rest of its message, which weighs ten times as much."""

    f32: bytes
    i32: bytes
    u64: bytes


class Layout:
    """Where the columns of a schema lie in a tick."""

    def __init__(self, schema: profiler_pb2.MetricSchema) -> None:
        self.schema = schema
        self.device_ids = tuple(schema.device_ids)
        self.widths = {"f32": 0, "i32": 0, "u64": 0}
        self.places: dict[str, tuple[str, str, int, int]] = {}
        """Name to slot, dtype, index within the slot and decimal digits."""
        for column in schema.columns:
            if column.type not in SLOTS:
                continue  # a type of a newer agent
            slot, dtype = SLOTS[column.type]
            self.places[column.name] = (slot, dtype, self.widths[slot], column.scale)
            self.widths[slot] += 1

    def fits(self, tick: Packed | profiler_pb2.SampleTick) -> bool:
        """Whether a tick has exactly this layout's values."""
        rows = len(self.device_ids)
        return all(
            len(getattr(tick, slot)) == rows * width * size
            for (slot, width), size in zip(self.widths.items(), (4, 4, 8), strict=True)
        )

    def unpack(self, ticks: Sequence[Packed], wanted: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """Each metric as (ticks, devices). The ticks must fit; scaled integers come as the numbers they stand for."""
        names = self.places if wanted is None else [name for name in wanted if name in self.places]
        raw: dict[str, NDArray[Any]] = {}
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            slot, dtype, index, scale = self.places[name]
            if slot not in raw:
                packed = np.frombuffer(b"".join(getattr(tick, slot) for tick in ticks), dtype)
                raw[slot] = packed.reshape(len(ticks), len(self.device_ids), self.widths[slot])
            values: NDArray[Any] = raw[slot][:, :, index]
            if scale:
                values = as_floats(values) / 10**scale
            found[name] = values
        return found


def gather(parts: Sequence[tuple[str, Layout, NDArray[np.int64], Mapping[str, NDArray[Any]]]]) -> Rows:
    """Rows of (node, layout, times, columns) parts, by device and time; what was told twice is there once."""
    names: dict[str, np.dtype[Any]] = {}
    where: dict[str, list[tuple[int, int]]] = {}
    node_of: dict[str, str] = {}
    for number, (node, layout, _, columns) in enumerate(parts):
        for name, values in columns.items():
            names.setdefault(name, values.dtype)
        for index, device in enumerate(layout.device_ids):
            where.setdefault(device, []).append((number, index))
            node_of[device] = node
    device_ids = tuple(sorted(where, key=lambda device: (node_of[device], _natural(device))))
    starts, times = [0], []
    values_of: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for device in device_ids:
        pieces = where[device]
        stamps = np.concatenate([parts[number][2] for number, _ in pieces])
        unique, order = np.unique(stamps, return_index=True)
        times.append(unique)
        starts.append(starts[-1] + len(unique))
        for name, dtype in names.items():
            column = [
                (
                    parts[number][3][name][:, index].astype(dtype, copy=False)
                    if name in parts[number][3]
                    else np.full(len(parts[number][2]), na_of(dtype), dtype)
                )
                for number, index in pieces
            ]
            values_of[name].append((column[0] if len(column) == 1 else np.concatenate(column))[order])
    return Rows(
        device_ids,
        tuple(node_of[device] for device in device_ids),
        np.array(starts, np.int64),
        np.concatenate(times) if times else np.zeros(0, np.int64),
        {name: np.concatenate(values) if values else np.zeros(0, names[name]) for name, values in values_of.items()},
    )


def merge(parts: Sequence[Rows]) -> Rows:
    """Several rows as one."""
    if len(parts) == 1:
        return parts[0]
    pieces = []
    for rows in parts:
        for index, (device, node) in enumerate(zip(rows.device_ids, rows.nodes, strict=True)):
            inside = slice(rows.starts[index], rows.starts[index + 1])
            layout = Layout(profiler_pb2.MetricSchema(node=node, device_ids=[device]))
            columns = {name: values[inside, None] for name, values in rows.columns.items()}
            pieces.append((node, layout, rows.times_us[inside], columns))
    return gather(pieces)


def _natural(text: str) -> tuple[object, ...]:
    """Sorts gpu2 before gpu10."""
    import re

    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text))
