"""A recording opened for reading: the cluster's state and samples at any moment of it, through the same reads as live."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gswarm.cluster.types import Device, Event, Listing, Node
from gswarm.codec import from_proto
from gswarm.config import state_dir
from gswarm.errors import InvalidError, NotFoundError
from gswarm.host.selection import select
from gswarm.kinds import BY_SLOT, body_of
from gswarm.mirror import Link, Tables
from gswarm.names import near
from gswarm.profiler import manifest as manifests
from gswarm.profiler.journal import Record
from gswarm.profiler.manifest import MANIFEST, Manifest
from gswarm.profiler.moments import Moments, parse_at
from gswarm.profiler.sealed import SealedSegment
from gswarm.profiler.segments import Item, JournalSegment, Segment
from gswarm.swarm import DEFAULT_LIMIT, list_request
from gswarm.v1 import cluster_pb2, profiler_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gswarm.profiler.columns import Rows
    from gswarm.profiler.series import Series

__all__ = ["Recording", "ReplayMirror", "parse_at"]
T = TypeVar("T")
REMEMBERED_US = 600_000_000
"""A device that gave no sample for longer than this shows none, as on a live host."""
KEPT_ROWS = 50_000


class Recording:
    """The past of a cluster, with a cursor. Answers `list`, `get` and `mirror` as the host did at the cursor's time."""

    def __init__(self, directory: Path, manifest: Manifest, segments: Sequence[Segment], damage: Sequence[str]) -> None:
        self.directory, self.manifest, self.segments = directory, manifest, tuple(segments)
        self._damage = tuple(damage)
        self._points: list[tuple[Segment, int]] = []
        self._point_times: list[int] = []
        for segment in segments:
            for point, time_us in enumerate(segment.points):
                self._points.append((segment, point))
                self._point_times.append(max(time_us, self._point_times[-1] if self._point_times else 0))
        self._start_us = min(segment.start_us for segment in segments)
        self._end_us = max(segment.end_us for segment in segments)
        self.cursor_us = self._end_us
        self._converted: dict[tuple[int, str, int], Any] = {}
        self._tables, self._loaded, self._applied = Tables(), -1, 0
        self._items: list[Item] = []
        self._shown: OrderedDict[int, Moments] = OrderedDict()
        self._updated = asyncio.Event()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a recording: its directory, or the name of a session that the host of this machine recorded. Raises NotFoundError, or InvalidError for what is none or is from a newer gswarm.

        A torn or damaged recording opens with what is whole. Reads what is not sealed yet once: call it in a thread.
        """
        if not directory.exists() and (named := state_dir() / "recordings" / directory / MANIFEST).is_file():
            directory = named.parent
        manifest = manifests.read(directory)
        segments: list[Segment] = []
        damage: list[str] = []
        for found in manifests.segments(directory):
            segment: Segment = SealedSegment(found) if found.sealed else JournalSegment(found.journal, found.number)
            if segment.end_us:
                segments.append(segment)
            else:
                damage += segment.damage
                segment.close()
        if not segments:
            raise InvalidError(
                f"recording {manifest.name} holds nothing that can be read",
                why="; ".join(damage) or "its journal is empty",
            )
        return cls(directory, manifest, segments, damage)

    def close(self) -> None:
        """Give the files back."""
        for segment in self.segments:
            segment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def damage(self) -> tuple[str, ...]:
        """What of the files could not be read, in sentences. Damaged samples are told of once they were asked for."""
        return (*self._damage, *(sentence for segment in self.segments for sentence in segment.damage))

    # Time

    @property
    def name(self) -> str:
        """The session's name."""
        return self.manifest.name

    @property
    def start(self) -> datetime:
        """First record."""
        return _moment(self._start_us)

    @property
    def end(self) -> datetime:
        """Last record."""
        return _moment(self._end_us)

    @property
    def time(self) -> datetime:
        """Where the cursor is."""
        return _moment(self.cursor_us)

    @property
    def address(self) -> str:
        """What stands where a host's address would."""
        return f"recording {self.name}"

    def seek(self, when: datetime) -> None:
        """Put the cursor at a moment; outside the recording it goes to the nearer end."""
        self.seek_us(int(when.timestamp() * 1_000_000))

    def seek_us(self, time_us: int) -> None:
        """The same, in microseconds since the epoch."""
        self.cursor_us = max(self._start_us, min(time_us, self._end_us))
        self._updated, old = asyncio.Event(), self._updated
        old.set()

    @cached_property
    def _moments(self) -> NDArray[np.int64]:
        import numpy as np

        return np.unique(np.concatenate([segment.moments() for segment in self.segments]))

    def step(self, ticks: int) -> None:
        """Move the cursor by so many recorded moments."""
        moments = self._moments
        at = int(moments.searchsorted(self.cursor_us, side="right")) - 1 + ticks
        if len(moments):
            self.seek_us(int(moments[max(0, min(at, len(moments) - 1))]))

    # Everything, in bulk

    def events(self) -> list[Event]:
        """Every event of the recording, in order: marks, alarms, what was done."""
        found: dict[str, Event] = {}
        for segment in self.segments:
            for message in segment.events():
                if message.id not in found:
                    found[message.id] = from_proto(message, Event)
        inside = [e for e in found.values() if e.time is not None and self.start <= e.time <= self.end]
        return sorted(inside, key=lambda event: int(event.id))

    def records(self) -> Iterator[Item]:
        """The state's history in order: full lists (the first, and some later ones), changes and gaps.

        Lists and changes hold a serialised WatchResponse, gaps the text of what went wrong.
        """
        for segment in self.segments:
            for point in range(len(segment.points)):
                for item in segment.items(point):
                    if item.kind in (Record.LIST, Record.BATCH, Record.GAP):
                        yield item

    def counts(self) -> tuple[int, int]:
        """How many node ticks and how many changes it holds."""
        return sum(s.ticks for s in self.segments), sum(s.changes for s in self.segments)

    @property
    def metrics(self) -> Mapping[str, profiler_pb2.MetricColumn]:
        """Every metric that any of its devices was asked for."""
        found: dict[str, profiler_pb2.MetricColumn] = {}
        for segment in self.segments:
            found = dict(segment.schemas()) | found
        return found

    def series(
        self, metrics: Sequence[str] | None = None, *, start_us: int | None = None, end_us: int | None = None
    ) -> tuple[Series, ...]:
        """Each device's samples between two moments (all of the recording by default), as numpy columns.

        By node and device. Reads only the columns (by default all) and the time that are asked for. Blocks: call it in
        a thread.
        """
        from gswarm.profiler.columns import merge
        from gswarm.profiler.series import series_of

        first = self._start_us - REMEMBERED_US if start_us is None else start_us
        last = self._end_us + REMEMBERED_US if end_us is None else end_us
        return series_of(merge([segment.rows(metrics, first, last) for segment in self.segments]), self.metrics)

    def slices(self) -> Iterator[tuple[Rows, Mapping[str, profiler_pb2.MetricColumn]]]:
        """Every sample with what its columns are, a slice of time after another. Blocks: call it in a thread."""
        for segment in self.segments:
            for rows in segment.slices():
                yield rows, segment.schemas()

    # State at the cursor

    def _state(self) -> Tables:
        """The rows at the cursor: from the seek point before it, or on from where we are."""
        point = max(0, bisect_right(self._point_times, self.cursor_us) - 1)
        if point != self._loaded:
            self._items = self._from(point)
            self._tables, self._loaded, self._applied = self._empty(), point, 0
        target = bisect_right(self._items, self.cursor_us, key=lambda item: item.time_us)
        if not target and self._items and self._items[0].kind is Record.LIST:
            target = 1  # ticks of before its first list are older than the session: it holds from the start
        if target < self._applied:
            self._tables, self._applied = self._empty(), 0
        for item in self._items[self._applied : target]:
            if item.kind in (Record.LIST, Record.BATCH):
                self._tables.feed(_watch(item))
        self._applied = target
        return self._tables

    def _empty(self) -> Tables:
        """Tables to fill: most of what stands at one moment stands at another too, and is converted once."""
        if len(self._converted) > KEPT_ROWS:
            self._converted.clear()
        return Tables(self._converted)

    def _from(self, point: int) -> list[Item]:
        """What leads from a full list to the end of a seek point's changes."""
        if not self._points:
            return []
        segment, number = self._points[point]
        items = segment.items(number)
        if number == 0 and point and not segment.is_whole:
            return [*self._from(point - 1), *items]  # its list is damaged: what was before goes on
        return items

    def _samples(self) -> Moments:
        """Samples at the cursor."""
        at = self.cursor_us
        if at not in self._shown:
            rows = [segment.latest(at, at - REMEMBERED_US) for segment in self.segments if segment.start_us <= at]
            self._shown[at] = Moments(rows, [s for s in self.segments if s.start_us <= at], at)
            if len(self._shown) > 2:
                self._shown.popitem(last=False)
        return self._shown[at]

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object at the cursor."""
        return self._state().rows(cls)

    async def list(
        self, cls: type[T], *, filters: Sequence[str] = (), sort: str = "", limit: int = DEFAULT_LIMIT
    ) -> Listing[T]:
        """What the host would have answered then, through the same selection."""
        request = list_request(cls, filters=filters, sort=sort, limit=limit)
        kind = BY_SLOT[cls.__name__.lower()].kind
        tables = self._state()
        chosen, left_out = select(kind, ((body_of(obj), None) for obj in tables.objects(kind)), request)
        found = Listing(
            (from_proto(message, cls) for message, _ in chosen), left_out=left_out, revision=tables.revision
        )
        found.time = self.time
        return found

    async def get(self, cls: type[T], key: str) -> T:
        """One object at the cursor. Raises NotFoundError."""
        rows = self.rows(cls)
        if key not in rows:
            raise NotFoundError(
                f"there was no {cls.__name__.lower()} {key} at {self.time:%H:%M:%S}", next=near(key, rows)
            )
        return rows[key]

    def status(self) -> cluster_pb2.StatusResponse:
        """The host as it was at the cursor. Raises NotFoundError where an older gswarm recorded."""
        tables = self._state()
        if tables.host is None:
            raise NotFoundError(
                f"{self.name} does not say what its host was", why=f"gswarm {self.manifest.gswarm} recorded no status"
            )
        response = cluster_pb2.StatusResponse()
        response.CopyFrom(tables.host)
        response.revision, response.role = tables.revision, "viewer"
        response.nodes, response.devices = len(self.rows(Node)), len(self.rows(Device))
        response.time.FromDatetime(self.time)
        return response

    async def call(self, request: Any, **_: Any) -> Any:
        """The host's status; nothing else can be asked of the past. Raises InvalidError."""
        if isinstance(request, cluster_pb2.StatusRequest):
            return self.status()
        raise InvalidError(f"{type(request).__name__} needs a live host", why="this is a recording")

    @asynccontextmanager
    async def mirror(self, *_: Any, **__: Any) -> AsyncIterator[ReplayMirror]:
        """A mirror that shows the cursor's moment."""
        yield ReplayMirror(self)


class ReplayMirror:
    """What a live mirror offers, at the recording's cursor."""

    link = Link.LIVE
    problem = ""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    @property
    def updated(self) -> asyncio.Event:
        """Set when the cursor has moved."""
        return self._recording._updated

    @property
    def age(self) -> float | None:
        """Never old: it is all there."""
        return 0.0

    @property
    def revision(self) -> int:
        """Revision at the cursor."""
        return self._recording._state().revision

    @property
    def samples(self) -> Mapping[str, Mapping[str, float]]:
        """Device id to metric to the value shown then."""
        return self._recording._samples().values

    @property
    def sampled_at(self) -> Mapping[str, float]:
        """Device id to the time of that sample."""
        return self._recording._samples().at

    @property
    def reasons(self) -> Mapping[str, Mapping[str, str]]:
        """Device id to metric to why it was NA."""
        return self._recording._samples().reasons

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object at the cursor."""
        return self._recording.rows(cls)


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)


def _watch(item: Item) -> cluster_pb2.WatchResponse:
    return cluster_pb2.WatchResponse.FromString(item.payload)
