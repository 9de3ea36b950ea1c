"""Replay: a recording on a clock of its own, shown by the same screens as the live host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gswarm.cluster.types import Event
from gswarm.errors import RefusedError

from .feed import MirrorLike, capture
from .player import Player, marks
from .snapshot import Replay, Snapshot

if TYPE_CHECKING:
    from .deeds import Deed


class RecordingLike(Protocol):
    """What a replay needs of a recording."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> datetime: ...
    @property
    def end(self) -> datetime: ...
    @property
    def time(self) -> datetime: ...
    def events(self) -> Sequence[Event]: ...
    def seek(self, when: datetime) -> None: ...
    def step(self, ticks: int) -> None: ...
    def mirror(self) -> AbstractAsyncContextManager[MirrorLike]: ...


class ReplayFeed(Player):
    """Plays a recording; keys move its clock."""

    can_act = False

    def __init__(self, recording: RecordingLike) -> None:
        super().__init__(recording.start)
        self.recording = recording
        self.host = f"recording {recording.name}"
        self.is_taking = False
        self._steps = 0
        """Recorded moments that are still to be moved by."""
        self._marks: tuple[tuple[float, str], ...] = ()
        self._density: tuple[int, ...] = ()
        self._times: list[datetime] = []

    @property
    def player(self) -> Player:
        """What its keys move."""
        return self

    @property
    def start(self) -> datetime:
        """First moment of the recording."""
        return self.recording.start

    @property
    def end(self) -> datetime:
        """Last moment of it."""
        return self.recording.end

    def times(self) -> Sequence[datetime]:
        """The moments of its events."""
        return self._times

    @property
    def replay(self) -> Replay:
        """How the replay stands, for header and time line."""
        r = self.recording
        return Replay(r.name, r.start, r.end, self.speed, self.is_paused, self._marks, self._density)

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        async with self.recording.mirror() as mirror:
            show(await self._take(mirror))
            await asyncio.to_thread(self._read_events)  # all of the recording's: after the first frame
            while True:
                self._moved.clear()
                show(await self._take(mirror))
                await self.frame()
                now = loop.time()
                if not self.is_paused:
                    self.go(self.position + timedelta(seconds=(now - last) * self.speed))
                    if self.position >= self.recording.end:
                        self.is_paused = True
                last = now

    async def _take(self, mirror: MirrorLike) -> Snapshot:
        """What is to be shown, read in a thread: far back that is much. Nothing else may read the recording meanwhile."""
        position, steps, self._steps = self.position, self._steps, 0
        self.is_taking = True
        snapshot = await asyncio.to_thread(partial(self._taken, mirror, position, steps))
        self.is_taking = False
        if steps and self.position == position:
            self.position = snapshot.now
        return replace(snapshot, replay=self.replay)

    def _taken(self, mirror: MirrorLike, position: datetime, steps: int) -> Snapshot:
        self.recording.seek(position)
        if steps:
            self.recording.step(steps)
        return capture(mirror, host=self.host, now=self.recording.time if steps else position)

    def _read_events(self) -> None:
        events = self.recording.events()
        self._marks, self._density = marks(events, self.start, self.end)
        self._times = sorted(e.time for e in events if e.time is not None)

    def step(self, ticks: int) -> None:
        """Pause, and move by recorded moments."""
        self.is_paused = True
        self._steps += ticks
        self._moved.set()

    # A recording changes nothing

    def deeds(self) -> tuple[Deed, ...]:
        return ()

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        raise RefusedError("a replay changes nothing", next="open the live host for that")

    @classmethod
    def open(cls, path: Path) -> ReplayFeed:
        """Open a recording's directory. Raises GswarmError when it is none."""
        from gswarm.profiler.recording import Recording

        return cls(Recording.open(path))
