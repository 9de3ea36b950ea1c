"""Replay: the same screens on a recording's clock, moved by keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest
from gswarm_tui.app import Console
from gswarm_tui.replay import ReplayFeed
from gswarm_tui.snapshot import Replay
from gswarm_tui.widgets.spans import plain, width
from gswarm_tui.widgets.timeline import timeline
from textual.pilot import Pilot

from gswarm.cluster.types import Event, Severity
from gswarm.errors import GswarmError
from tests.support.console import screen
from tests.support.swarm import NOON, FakeMirror, FakeSwarm


class FakeRecording:
    """Ten minutes of a fake swarm, a moment each second."""

    name = "run-42"
    start, end = NOON, NOON + timedelta(minutes=10)

    def __init__(self) -> None:
        self.swarm = FakeSwarm(1, 2)
        self.time = self.start

    def events(self) -> list[Event]:
        return [
            Event("1", NOON + timedelta(minutes=2), "session.mark", Severity.INFO, message="here"),
            Event("2", NOON + timedelta(minutes=5), "device.lost", Severity.ERROR, message="gone"),
        ]

    def seek(self, when: datetime) -> None:
        self.time = max(self.start, min(when, self.end))

    def step(self, ticks: int) -> None:
        self.seek(self.time.replace(microsecond=0) + timedelta(seconds=ticks))

    @asynccontextmanager
    async def mirror(self) -> AsyncIterator[FakeMirror]:
        yield self.swarm.data


async def until(pilot: Pilot[None], app: Console, feed: ReplayFeed) -> None:
    """Until what is shown is what the keys asked for."""
    for _ in range(100):
        await pilot.pause(0.02)
        is_shown = app.snapshot.now == feed.position and app.snapshot.replay is not None
        if is_shown and feed.times() and not feed._moved.is_set() and not feed.is_taking:
            return
    raise AssertionError(f"at {feed.position}, shown {app.snapshot.now}")


async def test_keys_move_the_clock() -> None:
    feed = ReplayFeed(FakeRecording())
    feed.is_paused = True
    app = Console(feed)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, app, feed)
        assert "replay run-42" in screen(app)[0] and "paused" in screen(app)[0]
        for key, offset in (("right", 10), ("shift+right", 70), ("left", 60), ("full_stop", 61), ("comma", 60)):
            await pilot.press(key)
            await until(pilot, app, feed)
            assert feed.position == NOON + timedelta(seconds=offset), key
        await pilot.press("right_square_bracket")
        assert feed.position == NOON + timedelta(minutes=2)
        await pilot.press("right_square_bracket", "left_square_bracket")
        assert feed.position == NOON + timedelta(minutes=2)
        await pilot.press("plus", "plus")
        assert feed.speed == 4.0
        await pilot.press("space")
        assert not feed.is_paused
        await pilot.press("space", "g", *"+9m", "enter")
        await until(pilot, app, feed)
        assert feed.position == NOON + timedelta(minutes=9)


async def test_a_replay_changes_nothing_and_offers_nothing_that_would() -> None:
    feed = ReplayFeed(FakeRecording())
    feed.is_paused = True
    app = Console(feed)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, app, feed)
        assert app.possible_deeds() == ()
        shown = app.keys_for(app.screen.focused_pane)  # type: ignore[attr-defined]
        assert "serve" not in [key.word for key in shown] and "pause" in [key.word for key in shown]


async def test_it_plays_by_itself_and_stops_at_the_end() -> None:
    recording = FakeRecording()
    feed = ReplayFeed(recording)
    feed.position, feed.speed = recording.end - timedelta(seconds=1), 60.0
    app = Console(feed)
    async with app.run_test(size=(80, 24)) as pilot:
        for _ in range(200):
            await pilot.pause(0.02)
            if feed.is_paused:
                break
        assert feed.position == recording.end and feed.is_paused


def test_the_time_line_has_its_cells_and_its_cursor() -> None:
    replay = Replay("r", NOON, NOON + timedelta(minutes=10), 1.0, False, ((0.5, "alarm"), (0.2, "mark")), (0, 1, 5, 0))
    for cells in (40, 76, 118):
        spans = timeline(replay, NOON + timedelta(minutes=5), cells)
        assert width(spans) == cells
    line = plain(timeline(replay, NOON, 60))
    assert "┃" in line and "×" in line and "▲" in line


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(GswarmError):
        ReplayFeed(FakeRecording()).to_time("noonish")
