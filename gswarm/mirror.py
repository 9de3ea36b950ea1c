"""A mirror: the host's state on the reader's side, whole at each revision, followed for ever."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from gswarm.codec import from_proto
from gswarm.errors import GswarmError
from gswarm.kinds import BY_KIND, body_of
from gswarm.v1 import cluster_pb2, common_pb2, profiler_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

T = TypeVar("T")
SILENCE_S = 6.0
BACKOFF_S = (0.1, 2.0)


class Link(Enum):
    """How a mirror stands with its source."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"


class Tables:
    """Objects by kind, converted to dataclasses when first read; changed only by whole batches.

    `converted` holds rows by kind, key and revision, so that tables of one host that come after another share them.
    """

    def __init__(self, converted: dict[tuple[int, str, int], Any] | None = None) -> None:
        self._converted = converted
        self.revision = 0
        self.time: datetime | None = None
        self.left_out: dict[int, int] = {}
        self.host: cluster_pb2.StatusResponse | None = None
        """The host, where a recording's list says it."""
        self._objects: dict[int, dict[str, cluster_pb2.Object]] = {kind: {} for kind in BY_KIND}
        self._rows: dict[int, dict[str, Any]] = {kind: {} for kind in BY_KIND}
        self._kinds = {info.slot.capitalize(): kind for kind, info in BY_KIND.items()}
        self._staged: list[cluster_pb2.Object] = []
        self._listing = False

    def feed(self, response: cluster_pb2.WatchResponse) -> bool:
        """Take one message; True when it completed a batch or list, so that rows changed as a whole."""
        self._staged.extend(response.objects)
        if response.HasField("host"):
            self.host = response.host
        self._listing = self._listing or response.list
        if not response.revision:
            return False
        if self._listing:
            for kind in self._objects:
                self._objects[kind].clear()
                self._rows[kind].clear()
            self.left_out = {rest.kind: rest.left_out for rest in response.rest}
        changed = bool(self._staged) or self._listing
        for obj in self._staged:
            if obj.kind not in self._objects:
                continue  # a kind of a newer host
            self._rows[obj.kind].pop(obj.key, None)
            if obj.deleted:
                self._objects[obj.kind].pop(obj.key, None)
            else:
                self._objects[obj.kind][obj.key] = obj
        self._staged, self._listing = [], False
        self.revision = response.revision
        self.time = response.time.ToDatetime(UTC)
        return changed

    def objects(self, kind: int) -> Iterable[cluster_pb2.Object]:
        """The wire objects of a kind."""
        return self._objects[kind].values()

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object of one kind."""
        kind = self._kinds[cls.__name__]
        objects, rows = self._objects[kind], self._rows[kind]
        if len(rows) != len(objects):
            # Converted once, and again only when the object changes.
            self._rows[kind] = rows = {
                key: rows[key] if key in rows else self._convert(obj, cls) for key, obj in objects.items()
            }
        return rows

    def _convert(self, obj: cluster_pb2.Object, cls: type[T]) -> T:
        if self._converted is None:
            return from_proto(body_of(obj), cls)
        version = (obj.kind, obj.key, obj.revision)
        found: T | None = self._converted.get(version)
        if found is None:
            found = self._converted[version] = from_proto(body_of(obj), cls)
        return found


class Samples:
    """The newest sample of each device, read out only for those that are asked for."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = {}
        self.reasons: dict[str, dict[str, str]] = {}
        self.at: dict[str, float] = {}
        self._schemas: dict[tuple[str, int], profiler_pb2.MetricSchema] = {}

    def feed(self, response: cluster_pb2.WatchResponse) -> bool:
        """Take schemas and ticks of a message; True when anything came."""
        from gswarm.profiler.ticks import table

        for schema in response.schemas:
            self._schemas[schema.node, schema.id] = schema
        for tick in response.ticks:
            if (tick.node, tick.schema_id) not in self._schemas:
                continue
            schema = self._schemas[tick.node, tick.schema_id]
            at = tick.time_unix_us / 1e6
            if any(self.at.get(device, 0.0) > at for device in schema.device_ids):
                continue
            for device, given in zip(schema.device_ids, table(schema, tick), strict=True):
                self.values[device] = given
                self.at[device] = at
                self._forget_reasons(device)
            self._explain(schema, tick.absent)
        for schema in response.schemas:
            self._explain(schema, schema.absent)
        return bool(response.ticks or response.schemas)

    def _forget_reasons(self, device: str) -> None:
        """A reason holds until a value comes."""
        reasons = self.reasons.get(device, {})
        for name in self.values[device].keys() & reasons.keys():
            del reasons[name]

    def _explain(self, schema: profiler_pb2.MetricSchema, told: Iterable[profiler_pb2.Absent]) -> None:
        for absent in told:
            if absent.device >= len(schema.device_ids) or absent.column >= len(schema.columns):
                continue
            device = schema.device_ids[absent.device]
            names = [c.name for c in schema.columns] if absent.every_column else [schema.columns[absent.column].name]
            values = self.values.get(device, {})
            self.reasons.setdefault(device, {}).update((n, absent.reason) for n in names if n not in values)


async def samples_at(swarm: Swarm, moment: datetime) -> Samples:
    """What every device of a live host had sampled at a moment of the last ten minutes. Raises GswarmError."""
    found = Samples()
    # Samples come with a list; the plan is the shortest there is.
    request = cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_PLAN], list_only=True)
    request.samples.at_unix_us = int(moment.timestamp() * 1e6)
    async for response in swarm.watch(request, silence_s=SILENCE_S):
        found.feed(response)
    return found


class Mirror:
    """Follows a host: reconnects for ever, keeps the last rows while it cannot, says how old they are.

    `updated` is set and replaced with every change of rows, samples or link: keep the one you saw, then wait for it.
    """

    def __init__(self, swarm: Swarm, request: cluster_pb2.WatchRequest) -> None:
        self._swarm, self._request = swarm, request
        self._tables, self._samples = Tables(), Samples()
        self._heard: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.link = Link.CONNECTING
        self.problem = ""
        """Why there is no link, in one sentence."""
        self.updated = asyncio.Event()

    @property
    def revision(self) -> int:
        """The revision the rows are whole at; 0 before the first list."""
        return self._tables.revision

    @property
    def age(self) -> float | None:
        """Seconds since the host was last heard; None: never."""
        return None if self._heard is None else time.monotonic() - self._heard

    @property
    def samples(self) -> Mapping[str, Mapping[str, float]]:
        """Device id to metric to newest value; what is NA is not there."""
        return self._samples.values

    @property
    def sampled_at(self) -> Mapping[str, float]:
        """Device id to the time of its newest sample, seconds since the epoch."""
        return self._samples.at

    @property
    def reasons(self) -> Mapping[str, Mapping[str, str]]:
        """Device id to metric to why it is NA."""
        return self._samples.reasons

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object of one kind, as of `revision`."""
        return self._tables.rows(cls)

    async def reach(self, revision: int, timeout: float | None = None) -> None:
        """Wait until the rows hold everything up to `revision`. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.revision < revision:
                await self.updated.wait()

    async def __aenter__(self) -> Mirror:
        self._task = asyncio.create_task(self._follow(), name="mirror")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _publish(self) -> None:
        self.updated, old = asyncio.Event(), self.updated
        old.set()

    async def _follow(self) -> None:
        pause = BACKOFF_S[0]
        while True:
            try:
                async for response in self._swarm.watch(self._request, silence_s=SILENCE_S):
                    pause = BACKOFF_S[0]
                    self._take(response)
                reason = "the host ended the stream"
            except GswarmError as error:
                reason = str(error)
            if self.link is not Link.CONNECTING:
                self.link = Link.STALE
            self.problem = reason
            self._publish()
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, BACKOFF_S[1])

    def _take(self, response: cluster_pb2.WatchResponse) -> None:
        self._heard = time.monotonic()
        changed = self._tables.feed(response)
        changed = self._samples.feed(response) or changed
        if self._tables.revision and self.link is not Link.LIVE:
            self.link, self.problem, changed = Link.LIVE, "", True
        if changed:
            self._publish()
