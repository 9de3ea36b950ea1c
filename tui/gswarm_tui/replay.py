"""Replay: a recording on a clock of its own, shown by the same screens as the live host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gswarm.cluster.types import Event, Severity
from gswarm.errors import RefusedError

from .feed import MirrorLike, capture, row_of
from .snapshot import Replay, Snapshot

if TYPE_CHECKING:
    from .deeds import Deed

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
FRAME_S = 0.25
BINS = 120


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


class ReplayFeed:
    """Plays a recording; keys move its clock."""

    can_act = False

    def __init__(self, recording: RecordingLike) -> None:
        self.recording = recording
        self.host = f"recording {recording.name}"
        self.position = recording.start
        self.speed = 1.0
        self.is_paused = False
        self._moved = asyncio.Event()
        self._mirror: MirrorLike | None = None
        whole = max(1e-9, (recording.end - recording.start).total_seconds())
        density = [0] * BINS
        marks: list[tuple[float, str]] = []
        events = recording.events()
        for event in events:
            if event.time is None:
                continue
            share = (event.time - recording.start).total_seconds() / whole
            if 0 <= share <= 1:
                density[min(BINS - 1, int(share * BINS))] += 1
                if event.type.endswith("mark"):
                    marks.append((share, "mark"))
                elif event.severity is Severity.ERROR:
                    marks.append((share, "alarm"))
        self._density, self._marks = tuple(density), tuple(marks)
        self._times = sorted(e.time for e in events if e.time is not None)

    @property
    def replay(self) -> Replay:
        """How the replay stands, for header and time line."""
        r = self.recording
        return Replay(r.name, r.start, r.end, self.speed, self.is_paused, self._marks, self._density)

    async def run(self, show: Callable[[Snapshot], None]) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        async with self.recording.mirror() as mirror:
            self._mirror = mirror
            while True:
                self._moved.clear()
                show(await asyncio.to_thread(self._taken, mirror))  # seeking far back reads much
                try:
                    async with asyncio.timeout(None if self.is_paused else FRAME_S):
                        await self._moved.wait()
                except TimeoutError:
                    pass
                now = loop.time()
                if not self.is_paused:
                    self._go(self.position + timedelta(seconds=(now - last) * self.speed))
                    if self.position >= self.recording.end:
                        self.is_paused = True
                last = now

    def _taken(self, mirror: MirrorLike) -> Snapshot:
        position = self.position
        self.recording.seek(position)
        return capture(mirror, host=self.host, now=position, replay=self.replay)

    # The clock

    def _go(self, time: datetime) -> None:
        self.position = max(self.recording.start, min(time, self.recording.end))

    def seek(self, time: datetime) -> None:
        """Stand at `time`, held to the recording."""
        self._go(time)
        self._moved.set()

    def skip(self, seconds: float) -> None:
        """Move by `seconds`."""
        self.seek(self.position + timedelta(seconds=seconds))

    def toggle(self) -> None:
        """Pause, or go on; at the end it starts again."""
        self.is_paused = not self.is_paused
        if not self.is_paused and self.position >= self.recording.end:
            self._go(self.recording.start)
        self._moved.set()

    def faster(self, step: int) -> None:
        """The next speed up or down."""
        at = SPEEDS.index(self.speed) + step
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, at))]
        self._moved.set()

    def to_event(self, step: int) -> None:
        """The next or previous event."""
        if step > 0:
            target = next((t for t in self._times if t > self.position), None)
        else:
            target = next((t for t in reversed(self._times) if t < self.position), None)
        if target is not None:
            self.is_paused = True
            self.seek(target)

    def step(self, ticks: int) -> None:
        """Pause, and move by recorded moments."""
        self.is_paused = True
        self.recording.seek(self.position)
        self.recording.step(ticks)
        self.seek(self.recording.time)

    def to_time(self, text: str) -> None:
        """Go to a time of the recording ("12:04:31") or into it ("+12m"). Raises InvalidError."""
        from gswarm.profiler.recording import parse_at

        self.seek(parse_at(text.strip(), self.recording.start, self.recording.end))

    # A recording changes nothing

    def deeds(self) -> tuple[Deed, ...]:
        return ()

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        raise RefusedError("a replay changes nothing", next="open the live host for that")

    def row_of(self, kind: str, key: str) -> Any:
        return row_of(self._mirror, kind, key) if self._mirror is not None else None

    @classmethod
    def open(cls, path: Path) -> ReplayFeed:
        """Open a recording's directory. Raises GswarmError when it is none."""
        from gswarm.profiler.recording import Recording

        return cls(Recording.open(path))
