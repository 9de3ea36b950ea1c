"""A sealed part of a recording: its state in deflated blocks, its samples in Parquet."""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gswarm.errors import InvalidError
from gswarm.profiler.journal import Record, scan
from gswarm.profiler.manifest import Files
from gswarm.profiler.segments import Item, event_rows_of, folded
from gswarm.v1 import common_pb2, profiler_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gswarm.profiler.columns import Rows
    from gswarm.profiler.parquet import Table

KEPT_SLICES, KEPT_BLOCKS = 4, 2


class SealedSegment:
    """Reads a sealed segment. Opening reads the state file only; samples are read slice by slice when asked for."""

    def __init__(self, found: Files) -> None:
        self.number, self._files = found.number, found
        self._data = found.state.read_bytes()
        frames, lost = scan(self._data)
        name = found.state.name
        self.damage = [f"{lost} bytes of {name} belong to no whole record and were left out"] if lost else []
        self._blocks = [frame for frame in frames if frame.kind is Record.BLOCK]
        self._points = [frame.time_us for frame in self._blocks]
        self._decoded: OrderedDict[int, list[Item]] = OrderedDict()
        self._slices: OrderedDict[int, Rows] = OrderedDict()
        self._broken: set[int] = set()
        told = next((f for f in reversed(frames) if f.kind is Record.SUMMARY), None)
        self._summary: Mapping[str, Any] = (
            json.loads(self._data[told.offset : told.offset + told.size]) if told is not None else {}
        )
        self.damage += self._summary.get("lost", ())
        self.ticks, self.changes = int(self._summary.get("ticks", 0)), int(self._summary.get("changes", 0))
        self.start_us, self.end_us = self._span()
        self._check_metrics()

    def _span(self) -> tuple[int, int]:
        if self._summary:
            return int(self._summary["start_us"]), int(self._summary["end_us"])
        self.damage.append(f"{self._files.state.name} has lost its summary: counts are not known")
        changed = [self._points[0], self.items(len(self._blocks) - 1)[-1].time_us] if self._blocks else []
        edges = [*changed, *(edge for span in (self._table.spans if self._table is not None else []) for edge in span)]
        return min(edges, default=0), max(edges, default=0)

    def _check_metrics(self) -> None:
        """See without pyarrow whether the samples are there whole."""
        path, size = self._files.metrics, int(self._summary.get("metrics_bytes", 0))
        if size and not path.is_file():
            self.damage.append(f"{path.name} is missing: no samples of that part")
        elif size and path.stat().st_size != size:
            self.damage.append(f"{path.name} is cut short or longer than it was: no samples of that part")

    @property
    def points(self) -> Sequence[int]:
        """See Segment."""
        return self._points

    @property
    def is_whole(self) -> bool:
        """See Segment."""
        return not self._blocks or self.items(0)[0].kind is Record.LIST

    def close(self) -> None:
        """Close the samples' file."""
        if "_table" in self.__dict__ and self._table is not None:
            self._table.close()

    def items(self, point: int) -> list[Item]:
        """See Segment."""
        if point not in self._decoded:
            found = self._blocks[point]
            inner = zlib.decompress(self._data[found.offset : found.offset + found.size])
            frames, _ = scan(inner)
            self._decoded[point] = [Item(f.time_us, f.kind, inner[f.offset : f.offset + f.size]) for f in frames]
            if len(self._decoded) > KEPT_BLOCKS:
                self._decoded.popitem(last=False)
        return self._decoded[point]

    def reasons(self, until_us: int) -> Mapping[str, Mapping[str, str]]:
        """See Segment. Each block starts with all reasons that hold there."""
        from bisect import bisect_right

        point = bisect_right(self._points, until_us) - 1
        return folded(self.items(point), until_us) if point >= 0 else {}

    @cached_property
    def _table(self) -> Table | None:
        from gswarm.profiler.parquet import Table

        if not self._files.metrics.is_file():
            return None
        try:
            return Table(self._files.metrics, self._footer(self._files.metrics))
        except InvalidError as error:
            self._damaged(str(error))
            return None

    def _footer(self, path: Path) -> int | None:
        found = self._summary.get("footers", {}).get(path.name)
        return None if found is None else int(found)

    def _damaged(self, sentence: str) -> None:
        if sentence not in self.damage:
            self.damage.append(sentence)

    def schemas(self) -> Mapping[str, profiler_pb2.MetricColumn]:
        """See Segment."""
        return self._table.columns if self._table is not None else {}

    def _rows(self, group: int, metrics: Sequence[str] | None) -> Rows | None:
        """A row group; None when it is damaged."""
        if self._table is None or group in self._broken:
            return None
        try:
            return self._table.rows(group, metrics)
        except InvalidError as error:
            self._broken.add(group)
            self._damaged(str(error))
            return None

    def _slice(self, group: int) -> Rows | None:
        """All metrics of one row group, kept for the next question."""
        if group not in self._slices:
            rows = self._rows(group, None)
            if rows is None:
                return None
            self._slices[group] = rows
            if len(self._slices) > KEPT_SLICES:
                self._slices.popitem(last=False)
        self._slices.move_to_end(group)
        return self._slices[group]

    def latest(self, until_us: int, since_us: int) -> Rows:
        """See Segment. Slices are looked at from the newest, until each device is found."""
        from gswarm.profiler.columns import merge

        spans = self._table.spans if self._table is not None else []
        every = set(self._summary.get("devices", ()))
        found: list[Rows] = []
        seen: set[str] = set()
        for group in reversed(range(len(spans))):
            first, last = spans[group]
            if first > until_us:
                continue
            if last < since_us or (every and seen >= every):
                break
            rows = self._slice(group)
            if rows is None:
                continue
            at = rows.latest(until_us)
            for i, device in enumerate(rows.device_ids):
                if device in seen or (at[i] >= 0 and rows.times_us[at[i]] < since_us):
                    at[i] = -1
            found.append(rows.chosen(at))
            seen.update(found[-1].device_ids)
        return merge(found)

    def rows(self, metrics: Sequence[str] | None, start_us: int, end_us: int) -> Rows:
        """See Segment."""
        from gswarm.profiler.columns import merge

        found: list[Rows] = []
        for group, (first, last) in enumerate(self._table.spans if self._table is not None else []):
            if last < start_us or first > end_us:
                continue
            rows = self._rows(group, metrics)
            if rows is not None:
                found.append(rows if start_us <= first and last <= end_us else rows.between(start_us, end_us))
        return merge(found)

    def slices(self) -> Iterator[Rows]:
        """See Segment."""
        for group in range(len(self._table.spans) if self._table is not None else 0):
            rows = self._rows(group, None)
            if rows is not None:
                yield rows

    def moments(self) -> NDArray[np.int64]:
        """See Segment."""
        import numpy as np

        changed = [
            item.time_us
            for point in range(len(self._points))
            for item in self.items(point)
            if item.kind is Record.BATCH
        ]
        sampled = []
        for group in range(len(self._table.spans) if self._table is not None else 0):
            assert self._table is not None
            try:
                sampled.append(self._table.times(group))
            except InvalidError as error:
                self._damaged(str(error))
        return np.unique(np.concatenate([np.array(changed, np.int64), *sampled]))

    def events(self) -> list[common_pb2.Event]:
        """See Segment. When their file is damaged, they are in the state too."""
        from gswarm.profiler.parquet import read_events

        try:
            return read_events(self._files.events, self._footer(self._files.events))
        except InvalidError as error:
            self._damaged(str(error))
            every = (item for point in range(len(self._points)) for item in self.items(point))
            return [event for _, event in event_rows_of(every, self.start_us)]
