"""From a mirror to snapshots: follow it, take a snapshot when it changed or a second has passed, never give up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gswarm.cluster.types import Device, Event, Node
from gswarm.data.types import Chunk
from gswarm.model.types import Model, Placement, Service
from gswarm.profiler.types import Session
from gswarm.queue.types import Lane, Plan, Task, Workflow

from .snapshot import Link, Replay, Snapshot

if TYPE_CHECKING:
    from .deeds import Deed

RowT = TypeVar("RowT")
TICK_S = 1.0
SETTLE_S = 0.2
"""Changes that come together are drawn together."""


class MirrorLike(Protocol):
    """What the console reads of a mirror, live or replayed."""

    @property
    def updated(self) -> asyncio.Event: ...
    @property
    def age(self) -> float | None: ...
    def rows(self, cls: type[RowT]) -> Mapping[str, RowT]: ...


class Reader(Protocol):
    """What the console reads from: a swarm, or a recording."""

    def mirror(self) -> AbstractAsyncContextManager[MirrorLike]: ...


def capture(mirror: MirrorLike, *, host: str, now: datetime | None = None, replay: Replay | None = None) -> Snapshot:
    """Take a snapshot; the mappings are copied, the objects in them are frozen."""
    link = Link(str(getattr(mirror.link, "value", mirror.link)))  # type: ignore[attr-defined]
    return Snapshot(
        now=now or datetime.now(UTC),
        link=link,
        age_s=mirror.age,
        host=host,
        problem=str(getattr(mirror, "problem", "") or ""),
        nodes=dict(mirror.rows(Node)),
        devices=dict(mirror.rows(Device)),
        models=dict(mirror.rows(Model)),
        placements=dict(mirror.rows(Placement)),
        services=dict(mirror.rows(Service)),
        chunks=dict(mirror.rows(Chunk)),
        workflows=dict(mirror.rows(Workflow)),
        tasks=dict(mirror.rows(Task)),
        lanes=dict(mirror.rows(Lane)),
        plan=next(iter(mirror.rows(Plan).values()), None),
        sessions=dict(mirror.rows(Session)),
        events=dict(mirror.rows(Event)),
        samples=mirror.samples,  # type: ignore[attr-defined]
        sampled_at=mirror.sampled_at,  # type: ignore[attr-defined]
        replay=replay,
    )


class Feed(Protocol):
    """Where the app's snapshots come from."""

    host: str
    can_act: bool
    """False: a recording, which changes nothing."""

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        """Call `show` with each new snapshot, until cancelled."""
        ...

    def deeds(self) -> tuple[Deed, ...]:
        """The actions that the console offers."""
        ...

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        """Run an action."""
        ...

    def reason_of(self, task: Task) -> str:
        """Why a task waits, in one sentence; empty when there is no better one than the plan's."""
        ...

    def row_of(self, kind: str, key: str) -> Any:
        """The object behind a row."""
        ...


class LiveFeed:
    """Follows a reader's mirror; the mirror reconnects by itself."""

    def __init__(self, reader: Reader, host: str) -> None:
        self.reader, self.host = reader, host

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        async with self.reader.mirror() as mirror:
            while True:
                updated = mirror.updated
                show(capture(mirror, host=self.host))
                try:
                    await asyncio.wait_for(updated.wait(), TICK_S)
                    await asyncio.sleep(SETTLE_S)
                except TimeoutError:
                    pass
