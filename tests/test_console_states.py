"""What the console says of its data: loading, empty, live or stale; simulated, not given, in trouble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gswarm_tui.app import Console
from gswarm_tui.feed import capture
from gswarm_tui.model_state import build
from gswarm_tui.snapshot import Link, Snapshot
from gswarm_tui.widgets.table import Table

from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, Kind, Node, NodePhase, Severity
from gswarm.model.types import Model, Service
from tests.support.console import console, screen, text, tick, view_of
from tests.support.swarm import FakeFeed, FakeSwarm


async def test_stale_data_is_dimmed_with_its_age_and_comes_back() -> None:
    async with console() as (app, feed, pilot):
        feed.swarm.data.link, feed.swarm.data.age = "stale", 12.0
        await tick(feed, pilot)
        shown = text(app)
        assert "stale 10s, reconnecting" in shown and "stale 10s ·" in shown
        assert app.screen.query_one("#pane-2", Table).content.is_stale
        feed.swarm.data.link, feed.swarm.data.age = "live", 0.1
        await tick(feed, pilot)
        assert "● live" in text(app)


async def test_loading_and_empty_panes_say_what_to_do() -> None:
    swarm = FakeSwarm()
    swarm.data.tables.clear()
    swarm.data.link, swarm.data.age, swarm.data.problem = "connecting", None, "127.0.0.1:8090 does not answer"
    async with console(swarm=swarm) as (app, feed, pilot):
        assert "connecting to 127.0.0.1:8090" in text(app)
        assert "127.0.0.1:8090 does not answer" in text(app)
        swarm.data.link, swarm.data.age = "live", 0.0
        await tick(feed, pilot)
        shown = text(app)
        for line in ("gswarm client connect", "gswarm model download", "gswarm queue submit", "gswarm data put"):
            assert line in shown


async def test_a_feed_that_breaks_does_not_end_the_console() -> None:
    class Breaking(FakeFeed):
        calls = 0

        async def run(self, show: Any) -> None:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("boom")
            await super().run(show)

    feed = Breaking(FakeSwarm())
    app = Console(feed)
    async with app.run_test(size=(120, 40)) as pilot:
        for _ in range(40):
            await pilot.pause(0.05)
            if feed.calls == 2:
                break
        await pilot.pause()
        assert "● live" in text(app)


async def test_a_simulated_device_says_so() -> None:
    swarm = FakeSwarm(1, 2)
    from gswarm.cluster.types import DeviceKind

    for key, device in list(swarm.data.rows(Device).items()):
        swarm.data.put(key, replace(device, kind=DeviceKind.SIMULATED))
    async with console(swarm=swarm) as (app, _, pilot):
        assert text(app).count("SIM") >= 2
        await pilot.press("enter")
        await pilot.pause()
        assert "SIM" in screen(app)[0]


async def test_what_a_device_does_not_give_is_na() -> None:
    swarm = FakeSwarm(1, 1)
    swarm.data.samples["SIM-1-0"] = {"memory_used_bytes": 2.0**30}
    swarm.data.reasons["SIM-1-0"] = {"util_percent": "not supported", "power_mw": "no permission"}
    async with console(swarm=swarm) as (app, _, pilot):
        assert "NA" in text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "not supported" in text(app) and "no permission" in text(app)


async def test_the_header_counts_alerts_and_says_no_trouble_twice() -> None:
    swarm = FakeSwarm()
    async with console(120, 40, swarm=swarm) as (app, feed, pilot):
        assert "▲ 2 alarms" in screen(app)[0], "a lost device and a failed service"
        lost = Alert("device-lost/SIM-3-3", "device-lost", Severity.ERROR, Kind.DEVICE, "SIM-3-3", "n3:gpu3", "n3")
        hot = replace(lost, id="hot/SIM-3-3", rule="hot", metric="temperature_c", value=91.0)
        swarm.data.put(lost.id, lost)
        await tick(feed, pilot)
        assert "▲ 2 alarms" in screen(app)[0], "the same trouble"
        swarm.data.put(hot.id, hot)
        await tick(feed, pilot)
        assert "▲ 3 alarms" in screen(app)[0]
        swarm.data.delete(Alert, hot.id)
        await tick(feed, pilot)
        assert "▲ 2 alarms" in screen(app)[0]


def test_alarms_are_counted() -> None:
    swarm = FakeSwarm()
    swarm.change(Node, "n2", phase=NodePhase.UNREACHABLE)
    view = view_of(swarm)
    assert any("n2" in alarm for alarm in view.totals.alarms)
    assert any("n3:gpu3 lost" in alarm for alarm in view.totals.alarms)
    assert any("mixtral failed" in alarm for alarm in view.totals.alarms)
    assert all(d.trouble for d in view.devices if d.node == "n2")


def test_model_hues_follow_first_service() -> None:
    swarm = FakeSwarm()
    view = view_of(swarm)
    assert [m.name for m in view.models[:3]] == ["llama-8b", "qwen-7b", "sdxl"]
    swarm.data.put("aaa", Service("aaa", "aaa", created_at=swarm.now))
    swarm.data.put("aaa", Model("aaa"))
    later = view_of(swarm)
    assert {m.name: m.hue for m in later.models if m.name in ("llama-8b", "sdxl")} == {"llama-8b": 0, "sdxl": 2}


def test_the_view_is_a_pure_function_of_the_snapshot() -> None:
    swarm = FakeSwarm()
    snapshot = capture(swarm.data, host="h", now=swarm.now)
    assert build(snapshot) == build(snapshot)
    assert build(Snapshot()).totals.link is Link.CONNECTING
