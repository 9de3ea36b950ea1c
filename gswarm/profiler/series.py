"""A recording's samples as numpy columns, one set a device: what analysis, pictures and exports read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gswarm.errors import InvalidError
from gswarm.names import near
from gswarm.profiler.columns import Rows, absent
from gswarm.profiler.metrics import BY_NAME, is_counter
from gswarm.v1 import profiler_pb2

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]

HOLDS = 3.0
"""A sample stands for the time to the next one, but for no more than this many of its neighbours' intervals."""
LATE = 1.5
"""A sample that comes later than this share of its interval has some missing before it."""


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


def series_of(rows: Rows, told: Mapping[str, profiler_pb2.MetricColumn]) -> tuple[Series, ...]:
    """Rows as a series for each device; `told` says what their columns are."""
    kinds = {name: (told[name].unit, _counts(told[name]), _is_mask(told[name])) for name in rows.columns}
    found = []
    for number, (device, node) in enumerate(zip(rows.device_ids, rows.nodes, strict=True)):
        inside = slice(rows.starts[number], rows.starts[number + 1])
        columns = {}
        for name, values in rows.columns.items():
            mine = values[inside]
            columns[name] = Column(mine, ~absent(mine), *kinds[name])
        found.append(Series(node, device, rows.times_us[inside], columns))
    return tuple(found)


def _is_mask(column: profiler_pb2.MetricColumn) -> bool:
    return column.type == profiler_pb2.COLUMN_TYPE_MASK_U64 or column.name.endswith("_reasons")


def _counts(column: profiler_pb2.MetricColumn) -> bool:
    if column.type != profiler_pb2.COLUMN_TYPE_COUNTER_U64 or _is_mask(column):
        return False
    # Bytes held travel as u64 too; what this version does not know of goes by its unit.
    return is_counter(column.name) if column.name in BY_NAME else not column.name.endswith("_bytes")


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
