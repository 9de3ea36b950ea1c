"""From a mirror to snapshots: follow it, take a snapshot when it changed or a second has passed, never give up."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, Event, Node
from gswarm.data.types import Chunk
from gswarm.errors import UnreachableError
from gswarm.model.types import Model, Placement, Service
from gswarm.profiler.types import Session
from gswarm.queue.types import Lane, Plan, Task, Workflow

from .past import Past
from .snapshot import Link, Replay, Snapshot

if TYPE_CHECKING:
    from gswarm.net import Endpoint

    from .deeds import Deed
    from .player import Player

RowT = TypeVar("RowT")
TICK_S = 1.0
SETTLE_S = 0.05
LEAST_S = 0.3
"""Changes that come together are drawn together."""


class MirrorLike(Protocol):
    """What the console reads of a mirror, live or replayed."""

    @property
    def updated(self) -> asyncio.Event: ...
    @property
    def age(self) -> float | None: ...
    @property
    def samples(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def sampled_at(self) -> Mapping[str, float]: ...
    @property
    def reasons(self) -> Mapping[str, Mapping[str, str]]: ...
    def rows(self, cls: type[RowT]) -> Mapping[str, RowT]: ...


def capture(mirror: MirrorLike, *, host: str, now: datetime | None = None, replay: Replay | None = None) -> Snapshot:
    """Take a snapshot; the mappings are copied, the objects in them are frozen."""
    link = getattr(mirror, "link", None)
    return Snapshot(
        now=now or datetime.now(UTC),
        link=Link(str(getattr(link, "value", link or "live"))),
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
        alerts=dict(mirror.rows(Alert)),
        samples=dict(mirror.samples),
        sampled_at=dict(mirror.sampled_at),
        reasons=mirror.reasons,
        replay=replay,
    )


class Feed(Protocol):
    """Where the app's snapshots come from."""

    host: str
    can_act: bool
    """False: a recording, which changes nothing."""

    @property
    def player(self) -> Player | None:
        """The clock that keys move; None: there is nothing but the present."""
        ...

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        """Call `show` with each new snapshot, until cancelled."""
        ...

    def deeds(self) -> tuple[Deed, ...]:
        """The actions that the console offers."""
        ...

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        """Run an action."""
        ...


class LiveFeed:
    """Follows a host through a mirror, which reconnects by itself; acts through the catalogue."""

    can_act = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.host = endpoint.address
        self.player: Past | None = None
        self._swarm: Any = None

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        await asyncio.to_thread(importlib.import_module, "gswarm.mirror")  # gRPC, after the first paint
        from gswarm.mirror import samples_at
        from gswarm.swarm import Swarm

        async with Swarm(self.endpoint) as swarm, swarm.mirror(samples=True) as mirror:
            self._swarm = swarm
            past = self.player = Past(lambda moment: samples_at(swarm, moment), lambda: mirror.rows(Event).values())
            async with asyncio.TaskGroup() as group:
                group.create_task(past.run(lambda: show(past.over(capture(mirror, host=self.host)))), name="past")
                await follow(mirror, self.host, lambda snapshot: show(past.over(snapshot)))

    def deeds(self) -> tuple[Deed, ...]:
        from .deeds import catalogue

        return catalogue()

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        if self._swarm is None:
            raise UnreachableError(f"{self.host} has not answered yet", next="wait for the link, then try again")
        return await deed.run(self._swarm, **values)


async def follow(mirror: MirrorLike, host: str, show: Callable[[Snapshot], None]) -> None:
    """Show a snapshot whenever the mirror changed, and each second for the ages; changes that come close together once."""
    loop = asyncio.get_running_loop()
    while True:
        updated = mirror.updated
        show(capture(mirror, host=host))
        shown = loop.time()
        try:
            async with asyncio.timeout(TICK_S):
                await updated.wait()
        except TimeoutError:
            continue
        await asyncio.sleep(max(SETTLE_S, LEAST_S - (loop.time() - shown)))


def open_feed(host: str | None, recording: str | None, *, token_file: str | None = None) -> Feed:
    """The feed for a command line. Raises GswarmError when there is nothing to read from."""
    if recording is not None:
        from .replay import ReplayFeed

        return ReplayFeed.open(Path(recording))
    from gswarm import net

    return LiveFeed(net.discover(host, Path(token_file) if token_file else None))
