"""A clock that keys move: position, speed and pause on a time line with events; what replay and a live host's past share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from gswarm.cluster.types import Event, Severity

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
FRAME_S = 0.25
BINS = 120
FIRING = "alert.firing"
"""The event of a rule that begins to hold, whatever its severity."""


class Player:
    """Moved by keys; whoever shows something of it waits for `moved`."""

    def __init__(self, position: datetime) -> None:
        self.position = position
        self.speed = 1.0
        self.is_paused = False
        self._moved = asyncio.Event()

    @property
    def start(self) -> datetime:
        """Where the time line begins."""
        raise NotImplementedError

    @property
    def end(self) -> datetime:
        """Where it ends."""
        raise NotImplementedError

    def times(self) -> Sequence[datetime]:
        """The moments of events, in order."""
        raise NotImplementedError

    def step(self, ticks: int) -> None:
        """Pause, and move by so many samples."""
        raise NotImplementedError

    def takes(self, what: str, by: int) -> bool:
        """Whether a key does anything now."""
        return what != "live"

    def live(self) -> None:
        """Back to the present, where there is one."""

    async def frame(self) -> None:
        """Wait for the next frame: until the clock is moved, or by itself while it plays."""
        try:
            async with asyncio.timeout(None if self.is_paused else FRAME_S):
                await self._moved.wait()
        except TimeoutError:
            pass

    def go(self, time: datetime) -> None:
        """Stand at `time`, held to the time line; the next frame shows it."""
        self.position = max(self.start, min(time, self.end))

    def seek(self, time: datetime) -> None:
        """The same, shown at once."""
        self.go(time)
        self._moved.set()

    def skip(self, seconds: float) -> None:
        """Move by `seconds`."""
        self.seek(self.position + timedelta(seconds=seconds))

    def toggle(self) -> None:
        """Pause, or go on; at the end it starts again."""
        self.is_paused = not self.is_paused
        if not self.is_paused and self.position >= self.end:
            self.go(self.start)
        self._moved.set()

    def faster(self, step: int) -> None:
        """The next speed up or down."""
        at = SPEEDS.index(self.speed) + step
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, at))]
        self._moved.set()

    def to_event(self, step: int) -> None:
        """The next or previous event."""
        if step > 0:
            target = next((t for t in self.times() if t > self.position), None)
        else:
            target = next((t for t in reversed(self.times()) if t < self.position), None)
        if target is not None:
            self.is_paused = True
            self.seek(target)

    def to_time(self, text: str) -> None:
        """Go to a time ("12:04:31"), or so far from the start ("+12m"). Raises InvalidError."""
        from gswarm.profiler.recording import parse_at

        self.seek(parse_at(text.strip(), self.start, self.end))


def marks(
    events: Iterable[Event], start: datetime, end: datetime
) -> tuple[tuple[tuple[float, str], ...], tuple[int, ...]]:
    """Marks and alarms as (share of the time line, "mark" | "alarm"), and events per equal share of it."""
    whole = max(1e-9, (end - start).total_seconds())
    density = [0] * BINS
    found: list[tuple[float, str]] = []
    for event in events:
        if event.time is None:
            continue
        share = (event.time - start).total_seconds() / whole
        if 0 <= share <= 1:
            density[min(BINS - 1, int(share * BINS))] += 1
            if event.type.endswith("mark"):
                found.append((share, "mark"))
            elif event.severity is Severity.ERROR or event.type == FIRING:
                found.append((share, "alarm"))
    return tuple(found), tuple(density)
