"""The last ten minutes of a live host: samples of then, asked of the host moment by moment, over the state of now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gswarm.cluster.types import Event
from gswarm.errors import GswarmError

from .player import Player, marks
from .snapshot import Replay, Snapshot

KEPT = timedelta(minutes=10)
TICK = timedelta(seconds=1)
"""A step; hosts sample once a second unless a session wants more."""


class Samples(Protocol):
    """The samples of one moment."""

    @property
    def values(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def at(self) -> Mapping[str, float]: ...
    @property
    def reasons(self) -> Mapping[str, Mapping[str, str]]: ...


class Past(Player):
    """Off while the console shows the present; a key that moves back switches it on, reaching the present off."""

    def __init__(
        self,
        fetch: Callable[[datetime], Awaitable[Samples]],
        events: Callable[[], Iterable[Event]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(now())
        self.is_on = False
        self._fetch, self._events, self._now = fetch, events, now
        self._shown: tuple[datetime, Samples] | None = None

    @property
    def start(self) -> datetime:
        """As far back as hosts remember."""
        return self._now() - KEPT

    @property
    def end(self) -> datetime:
        """The present."""
        return self._now()

    def times(self) -> list[datetime]:
        """The moments of the events that the console knows, in order."""
        return sorted(event.time for event in self._events() if event.time is not None and event.time >= self.start)

    def takes(self, what: str, by: int) -> bool:
        """From the present only back."""
        return self.is_on or (what in ("step", "to_event") and by < 0)

    def go(self, time: datetime) -> None:
        """Stand at `time`; at the present the past is over."""
        if time >= self._now() - TICK / 2:
            self.live()
            return
        super().go(time)
        self.is_on = True

    def skip(self, seconds: float) -> None:
        """Move by `seconds`."""
        self._begin()
        super().skip(seconds)

    def step(self, ticks: int) -> None:
        """Pause, and move by so many seconds."""
        self._begin()
        self.is_paused = True
        self.seek(self.position + ticks * TICK)

    def to_event(self, step: int) -> None:
        """The next event, or the one before."""
        self._begin()
        super().to_event(step)

    def live(self) -> None:
        """Back to the present."""
        self.is_on, self._shown = False, None
        self._moved.set()

    def _begin(self) -> None:
        if not self.is_on:
            self.position = self._now()
            self.speed, self.is_paused = 1.0, False

    async def run(self, changed: Callable[[], None]) -> None:
        """Fetch what is to be shown and call `changed`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.is_on:
                await self._moved.wait()
            self._moved.clear()
            last, asked = loop.time(), self.position
            if self.is_on:
                try:
                    found = await self._fetch(asked)
                except GswarmError:
                    self.live()  # the mirror says what is wrong with the link
                else:
                    if self.is_on:
                        self._shown = (asked, found)
            changed()
            if not self.is_on:
                continue
            await self.frame()
            if self.is_on and not self.is_paused and not self._moved.is_set():
                self.go(self.position + timedelta(seconds=(loop.time() - last) * self.speed))

    def over(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot of now with the samples of then; as it is while the past is off."""
        if not self.is_on or self._shown is None:
            return snapshot
        moment, samples = self._shown
        start, end = self.start, self.end
        found, density = marks(self._events(), start, end)
        return replace(
            snapshot,
            samples=dict(samples.values),
            sampled_at=dict(samples.at),
            reasons=samples.reasons,
            replay=Replay(snapshot.host, start, end, self.speed, self.is_paused, found, density, moment),
        )
