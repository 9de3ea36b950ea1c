"""A recording opened for reading: the cluster's state and samples at any moment of it, through the same reads as live."""

from __future__ import annotations

import asyncio
import json
import mmap
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from gswarm.cluster.types import Event, Listing
from gswarm.codec import from_proto
from gswarm.config import state_dir
from gswarm.errors import InvalidError, NotFoundError
from gswarm.host.selection import select
from gswarm.kinds import BY_SLOT, body_of
from gswarm.mirror import Link, Samples, Tables
from gswarm.names import near
from gswarm.profiler.journal import FORMAT, Frame, Record, scan
from gswarm.profiler.recorder import JOURNAL, MANIFEST
from gswarm.swarm import DEFAULT_LIMIT, list_request
from gswarm.v1 import cluster_pb2, profiler_pb2

T = TypeVar("T")


class Recording:
    """The past of a cluster, with a cursor. Answers `list`, `get` and `mirror` as the host did at the cursor's time."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], data: Any, frames: list[Frame], damage: Sequence[str]
    ) -> None:
        self.directory, self.manifest, self.damage = directory, manifest, tuple(damage)
        """`damage` says, in sentences, what of the files could not be read."""
        self._data, self._frames = data, frames
        self._times = [found.time_us for found in frames]
        self._lists = [i for i, found in enumerate(frames) if found.kind is Record.LIST]
        self._moments = sorted({found.time_us for found in frames if found.kind in (Record.TICK, Record.BATCH)})
        self.cursor_us = self._times[-1]
        self._applied = -1
        self._tables, self._samples = Tables(), Samples()
        self._updated = asyncio.Event()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a recording: its directory, or the name of a session that the host of this machine recorded. Raises NotFoundError, or InvalidError for what is none or is from a newer gswarm.

        A torn or damaged journal opens with what is whole. Reads the whole journal once: call it in a thread.
        """
        if not directory.exists() and (named := state_dir() / "recordings" / directory / MANIFEST).is_file():
            directory = named.parent
        if not (directory / MANIFEST).is_file():
            raise NotFoundError(
                f"{directory} is no recording",
                why=f"it has no {MANIFEST}",
                next="give a recording's directory, or the name of a session that this machine's host recorded",
            )
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            version = int(manifest["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidError(f"{directory / MANIFEST} is damaged", why=str(error)) from None
        if version > FORMAT:
            raise InvalidError(
                f"{directory} was recorded by a newer gswarm",
                why=f"its format is {version}, this one reads up to {FORMAT}",
                next="upgrade gswarm",
            )
        path = directory / JOURNAL
        data: Any = b""
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        frames, lost = scan(data)
        damage = [f"{lost} bytes of {path.name} belong to no whole record and were left out"] if lost else []
        if not frames:
            raise InvalidError(
                f"{directory} holds nothing that can be read", why="; ".join(damage) or "its journal is empty"
            )
        frames.sort(key=lambda found: found.time_us)
        return cls(directory, manifest, data, frames, damage)

    def close(self) -> None:
        """Unmap the journal."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Time

    @property
    def name(self) -> str:
        """The session's name."""
        return str(self.manifest["name"])

    @property
    def start(self) -> datetime:
        """First record."""
        return _moment(self._times[0])

    @property
    def end(self) -> datetime:
        """Last record."""
        return _moment(self._times[-1])

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
        self.cursor_us = max(self._times[0], min(time_us, self._times[-1]))
        self._updated, old = asyncio.Event(), self._updated
        old.set()

    def step(self, ticks: int) -> None:
        """Move the cursor by so many recorded moments."""
        at = bisect_right(self._moments, self.cursor_us) - 1 + ticks
        self.seek_us(self._moments[max(0, min(at, len(self._moments) - 1))])

    def seek_text(self, text: str | None) -> None:
        """Seek to `+12m`, `12:04:31` or an ISO time; None leaves the cursor at the end. Raises InvalidError."""
        if text is not None:
            self.seek(parse_at(text, self.start, self.end))

    def events(self) -> list[Event]:
        """Every event of the recording, in order: marks, alarms, what was done."""
        found: dict[str, Event] = {}
        for item in self._frames:
            if item.kind in (Record.BATCH, Record.LIST):
                for obj in self._watch(item).objects:
                    if obj.WhichOneof("body") == "event":
                        found.setdefault(obj.key, from_proto(obj.event, Event))
        inside = [e for e in found.values() if e.time is not None and self.start <= e.time <= self.end]
        return sorted(inside, key=lambda event: int(event.id))

    def counts(self) -> tuple[int, int]:
        """How many node ticks and how many changes it holds."""
        kinds = [found.kind for found in self._frames]
        return kinds.count(Record.TICK), kinds.count(Record.BATCH)

    def ticks(self) -> Iterator[tuple[profiler_pb2.MetricSchema, profiler_pb2.SampleTick]]:
        """Every sample tick with its schema, in order of arrival."""
        schemas: dict[tuple[str, int], profiler_pb2.MetricSchema] = {}
        for item in self._frames:
            if item.kind is Record.SCHEMA:
                schema = profiler_pb2.MetricSchema.FromString(self._payload(item))
                schemas[schema.node, schema.id] = schema
            elif item.kind is Record.TICK:
                tick = profiler_pb2.SampleTick.FromString(self._payload(item))
                if (tick.node, tick.schema_id) in schemas:
                    yield schemas[tick.node, tick.schema_id], tick

    # State at the cursor

    def _payload(self, item: Frame) -> bytes:
        return bytes(self._data[item.offset : item.offset + item.size])

    def _watch(self, item: Frame) -> cluster_pb2.WatchResponse:
        return cluster_pb2.WatchResponse.FromString(self._payload(item))

    def _state(self) -> tuple[Tables, Samples]:
        """Rows and samples at the cursor: from the seek point before it, or on from where we are."""
        last = bisect_right(self._times, self.cursor_us) - 1
        point = bisect_right(self._lists, last) - 1
        first = self._lists[point] if point >= 0 else 0
        if not first <= self._applied <= last:
            self._tables, self._samples = Tables(), Samples()
            self._applied = first - 1
            self._feed_schemas(first)
        for index in range(self._applied + 1, last + 1):
            self._apply(self._frames[index])
        self._applied = last
        return self._tables, self._samples

    def _feed_schemas(self, before: int) -> None:
        for item in self._frames[:before]:
            if item.kind is Record.SCHEMA:
                self._apply(item)

    def _apply(self, item: Frame) -> None:
        match item.kind:
            case Record.LIST | Record.BATCH:
                self._tables.feed(self._watch(item))
            case Record.SCHEMA:
                schema = profiler_pb2.MetricSchema.FromString(self._payload(item))
                self._samples.feed(cluster_pb2.WatchResponse(schemas=[schema]))
            case Record.TICK:
                tick = profiler_pb2.SampleTick.FromString(self._payload(item))
                self._samples.feed(cluster_pb2.WatchResponse(ticks=[tick]))

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object at the cursor."""
        return self._state()[0].rows(cls)

    async def list(
        self, cls: type[T], *, filters: Sequence[str] = (), sort: str = "", limit: int = DEFAULT_LIMIT
    ) -> Listing[T]:
        """What the host would have answered then, through the same selection."""
        request = list_request(cls, filters=filters, sort=sort, limit=limit)
        kind = BY_SLOT[cls.__name__.lower()].kind
        tables, _ = self._state()
        chosen, left_out = select(kind, ((body_of(obj), b"") for obj in tables.objects(kind)), request)
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

    async def call(self, request: Any, **_: Any) -> Any:
        """Nothing can be asked of the past. Raises InvalidError."""
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
        return self._recording._state()[0].revision

    @property
    def samples(self) -> Mapping[str, Mapping[str, float]]:
        """Device id to metric to the value shown then."""
        return self._recording._state()[1].values

    @property
    def sampled_at(self) -> Mapping[str, float]:
        """Device id to the time of that sample."""
        return self._recording._state()[1].at

    @property
    def reasons(self) -> Mapping[str, Mapping[str, str]]:
        """Device id to metric to why it was NA."""
        return self._recording._state()[1].reasons

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object at the cursor."""
        return self._recording.rows(cls)


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)


def parse_at(text: str, start: datetime, end: datetime) -> datetime:
    """The moment of `+12m` or `+90s` (from the start), `12:04:31` (local time) or an ISO time. Raises InvalidError."""
    if match := re.fullmatch(r"\+(\d+(?:\.\d+)?)(s|m|h)?", text):
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]
        # Beyond the end is the end anyway; ages beyond it are no date at all.
        return start + timedelta(seconds=min(seconds, 1e9))
    if match := re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", text):
        local = start.astimezone()
        seconds = float(match[3] or 0)
        if int(match[1]) < 24 and int(match[2]) < 60 and seconds < 60:
            when = local.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0) + timedelta(
                seconds=seconds
            )
            if when < start - timedelta(minutes=1) and when + timedelta(days=1) <= end + timedelta(minutes=1):
                when += timedelta(days=1)
            return when.astimezone(UTC)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidError(
            f"{text!r} is no time in a recording", next="write +12m, 12:04:31 or 2026-11-24T12:04:31Z", field="at"
        ) from None
    return (when if when.tzinfo else when.astimezone()).astimezone(UTC)
