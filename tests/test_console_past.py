"""The past of a live host in the console: samples of then over the state of now, said plainly, moved by replay's keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gswarm_tui.app import Console
from gswarm_tui.past import KEPT, Past
from gswarm_tui.snapshot import Replay
from gswarm_tui.widgets.spans import plain
from gswarm_tui.widgets.timeline import moment_at, timeline
from textual.pilot import Pilot

from gswarm.cluster.types import Device, Event, Severity
from gswarm.errors import UnreachableError
from gswarm.host.samples import SampleHub
from gswarm.mirror import samples_at
from gswarm.v1 import profiler_pb2
from tests.support.cluster import cluster, seen
from tests.support.console import screen
from tests.support.swarm import NOON, FakeFeed, FakeSwarm

GPU = "SIM-1-0"


@dataclass
class Then:
    """What a host answers about one moment: utilisation is the seconds past noon."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)


class PastFeed(FakeFeed):
    """A live fake swarm whose past can be asked for."""

    def __init__(self, swarm: FakeSwarm) -> None:
        super().__init__(swarm)
        self.asked: list[datetime] = []
        self.is_away = False
        self.player = Past(self.fetch, lambda: swarm.data.rows(Event).values(), lambda: swarm.now)

    async def fetch(self, moment: datetime) -> Then:
        self.asked.append(moment)
        if self.is_away:
            raise UnreachableError("gone")
        values = {"gpu_util_percent": float((self.swarm.now - moment).total_seconds() % 100), "temperature_c": 77.0}
        return Then({GPU: values}, {GPU: moment.timestamp()})

    async def run(self, show: Callable[[Any], None]) -> None:
        self.show = lambda snapshot: show(self.player.over(snapshot))
        self.push()
        await self.player.run(self.push)


@asynccontextmanager
async def console(width: int = 120) -> AsyncIterator[tuple[Console, PastFeed, Pilot[None]]]:
    feed = PastFeed(FakeSwarm(1, 2, now=NOON))
    app = Console(feed)
    async with app.run_test(size=(width, 40)) as pilot:
        await pilot.pause()
        yield app, feed, pilot


async def until(pilot: Pilot[None], what: Callable[[], bool]) -> None:
    for _ in range(200):
        await pilot.pause(0.02)
        if what():
            return
    raise AssertionError("it did not come true")


def moment(app: Console) -> datetime | None:
    return app.snapshot.replay.at if app.snapshot.replay is not None else None


async def test_keys_go_back_and_the_screen_says_what_is_of_then_and_what_of_now() -> None:
    async with console() as (app, _feed, pilot):
        assert "live" in screen(app)[0] and moment(app) is None
        now = app.snapshot.samples[GPU]
        await pilot.press("comma")
        await until(pilot, lambda: moment(app) == NOON - timedelta(seconds=1))
        first = screen(app)[0]
        assert "past" in first and "samples of" in first and "paused" in first and "state of now" in first
        assert app.snapshot.samples[GPU]["gpu_util_percent"] == 1 and app.snapshot.now == NOON
        assert app.snapshot.tasks and app.view is not None and app.view.devices[0].age_s == 0
        for key, ago in (("left", 11), ("shift+left", 71), ("right", 61), ("full_stop", 60), ("comma", 61)):
            await pilot.press(key)
            await until(pilot, lambda ago=ago: moment(app) == NOON - timedelta(seconds=ago))  # type: ignore[misc]
        shown = app.keys_for(app.screen.focused_pane)  # type: ignore[attr-defined]
        assert shown[0].word == "now"
        await pilot.press("backspace")
        await until(pilot, lambda: moment(app) is None)
        assert "live" in screen(app)[0] and app.snapshot.samples[GPU] == now


async def test_the_oldest_moment_is_ten_minutes_ago_and_reaching_the_present_is_live_again() -> None:
    async with console() as (app, _feed, pilot):
        await pilot.press("comma", *["shift+left"] * 15)
        await until(pilot, lambda: moment(app) == NOON - KEPT)
        await pilot.press(*["shift+right"] * 9)
        await until(pilot, lambda: moment(app) == NOON - timedelta(minutes=1))
        await pilot.press("shift+right")
        await until(pilot, lambda: moment(app) is None)


async def test_it_jumps_between_events_plays_and_goes_to_a_time() -> None:
    async with console() as (app, feed, pilot):
        events = sorted(e.time for e in feed.swarm.data.rows(Event).values() if e.time is not None)
        await pilot.press("left_square_bracket", "left_square_bracket")
        await until(pilot, lambda: moment(app) == events[-2])
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: moment(app) == events[-1])
        await pilot.press("g", *"+2m", "enter")
        await until(pilot, lambda: moment(app) == NOON - timedelta(minutes=8))
        await pilot.press("plus", "space")
        await until(pilot, lambda: (at := moment(app)) is not None and at > NOON - timedelta(minutes=8))
        assert "×2" in screen(app)[0]


async def test_a_page_says_so_too() -> None:
    async with console() as (app, _feed, pilot):
        await pilot.press("comma")
        await until(pilot, lambda: moment(app) is not None)
        app.open_subject("device", GPU)
        await until(pilot, lambda: "past" in screen(app)[0])
        assert "state of now" in screen(app)[0]
        await pilot.press("comma")
        await until(pilot, lambda: moment(app) == NOON - timedelta(seconds=2))
        await pilot.press("backspace")
        await until(pilot, lambda: "past" not in screen(app)[0])


async def test_a_host_that_cannot_be_asked_leaves_the_present_on_screen() -> None:
    async with console() as (app, feed, pilot):
        feed.is_away = True
        await pilot.press("comma")
        await until(pilot, lambda: bool(feed.asked) and not feed.player.is_on)
        assert moment(app) is None and "live" in screen(app)[0]


async def test_keys_of_the_past_are_other_keys_while_it_is_off() -> None:
    async with console() as (_app, feed, pilot):
        await pilot.press("left", "plus", "g", "backspace", "right_square_bracket", "full_stop")
        await pilot.pause()
        assert not feed.player.is_on and not feed.asked


async def test_history_of_a_device_does_not_hold_what_came_later() -> None:
    async with console() as (app, _feed, pilot):
        await pilot.press("comma", "left")
        await until(pilot, lambda: moment(app) == NOON - timedelta(seconds=11))
        assert app.history_of(GPU, ("gpu_util_percent",)) == [11.0]


@pytest.mark.parametrize("width", [80, 120])
async def test_a_click_on_the_time_line_goes_there(width: int) -> None:
    async with console(width) as (app, _feed, pilot):
        await pilot.press("comma")
        await until(pilot, lambda: moment(app) is not None)
        await pilot.click("#timeline", offset=(10 + (width - 20) // 2, 0))
        await until(pilot, lambda: abs((moment(app) or NOON) - (NOON - KEPT / 2)) < timedelta(seconds=8))


def test_a_cell_of_the_time_line_stands_for_the_moment_that_is_drawn_there() -> None:
    replay = Replay("r", NOON, NOON + KEPT)
    for cells in (40, 78, 118):
        for x in range(9, cells - 9):
            drawn = plain(timeline(replay, moment_at(replay, x, cells) + timedelta(milliseconds=1), cells))
            assert drawn.index("┃") == x
    assert moment_at(replay, 0, 78) == NOON and moment_at(replay, 77, 78) == NOON + KEPT


def test_the_hub_knows_what_was_the_newest_at_a_moment() -> None:
    hub = SampleHub()
    for seq in range(1, 1_000):
        hub.add(profiler_pb2.SampleTick(node="n1", seq=seq, time_unix_us=seq * 1_000_000, schema_id=1))

    def at(time_us: int) -> int | None:
        wire = hub.at("n1", time_us)
        return None if wire is None else profiler_pb2.SampleTick.FromString(wire).seq

    assert at(500_000_000) == 500 and at(500_999_999) == 500 and at(10**15) == 999
    assert at(398_000_000) is None, "that is older than what is kept"
    assert hub.at("n2", 10**15) is None


async def test_a_host_answers_with_the_samples_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as running, running.agent("n1", "1xH100"):
        async with running.swarm.mirror((Device,)) as mirror:
            early = await seen(mirror, lambda: dict(mirror.sampled_at), lambda at: "SIM-n1-0" in at)
            energy = mirror.samples["SIM-n1-0"]["energy_mj"]
            later = early["SIM-n1-0"] + 1.5
            await seen(mirror, lambda: mirror.sampled_at["SIM-n1-0"], lambda at: at > later)
            assert mirror.samples["SIM-n1-0"]["energy_mj"] > energy
        moment = datetime.fromtimestamp(early["SIM-n1-0"], NOON.tzinfo)
        found = await samples_at(running.swarm, moment + timedelta(microseconds=1))
        assert found.at["SIM-n1-0"] == early["SIM-n1-0"] and found.values["SIM-n1-0"]["energy_mj"] == energy
        assert "power_mw" in found.reasons[next(key for key in found.at if key.startswith("CPU-"))]
        assert not (await samples_at(running.swarm, moment - timedelta(hours=1))).values


def test_alarms_and_marks_stand_on_the_time_line_of_the_past() -> None:
    swarm = FakeSwarm(1, 1)
    for number, kind, severity in (("91", "profiler.mark", Severity.INFO), ("92", "device.lost", Severity.ERROR)):
        swarm.data.put(number, Event(number, NOON - timedelta(minutes=int(number) - 88), kind, severity, message="x"))
    feed = PastFeed(swarm)
    feed.player.go(NOON - timedelta(minutes=1))
    feed.player._shown = (feed.player.position, Then())
    from gswarm_tui.feed import capture

    replay = feed.player.over(capture(swarm.data, host="h", now=NOON)).replay
    assert replay is not None
    drawn = plain(timeline(replay, NOON, 100))
    assert "▲" in drawn and "×" in drawn and "┃" in drawn
