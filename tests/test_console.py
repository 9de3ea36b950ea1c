"""The console as a person moves about in it: panes, pages, lists, and the way back; on a fake swarm."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

from gswarm_tui.overview import Overview
from gswarm_tui.pages.device import DevicePage
from gswarm_tui.pages.task import TaskPage
from gswarm_tui.report import Report, lines_of

from gswarm import cli
from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, DevicePath, DeviceProcess, Event, Node, PathKind, Severity
from gswarm.model.types import Model, ModelVersion
from gswarm.views import table
from tests.support.console import at, console, screen, text, tick
from tests.support.swarm import NOON


async def test_number_keys_zoom_and_escape_goes_back() -> None:
    async with console() as (app, _, pilot):
        for key, title in (
            ("2", "2 Models"),
            ("5", "5 Sessions"),
            ("6", "6 Nodes"),
            ("7", "7 Events"),
            ("3", "3 Data"),
        ):
            await pilot.press(key)
            await pilot.pause()
            assert title in text(app) and "1 Devices and plan" not in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert "1 Devices and plan" in text(app)


async def test_the_full_queue_shows_lanes_of_the_fleet() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("4")
        await pilot.pause()
        assert "lanes, 5 s a cell" in text(app)
        await pilot.press("tab", "greater_than_sign")
        await pilot.pause()
        assert "lanes, 10 s a cell" in text(app)


async def test_colon_goes_to_panes_devices_tasks_and_runs_actions() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("colon", *"events", "enter")
        await pilot.pause()
        assert "7 Events" in text(app)
        await pilot.press("colon", *"n1:gpu2", "enter")
        await pilot.pause()
        assert at(app) is DevicePage
        await pilot.press("escape", "colon", *"model stop phi-4", "enter", "y")
        await pilot.pause()
        assert feed.performed == [("model stop", {"service": "phi-4"})]


async def test_enter_opens_a_device_and_escape_leaves_it() -> None:
    async with console() as (app, feed, pilot):
        for _ in range(5):
            feed.swarm.step()
            feed.push()
        await pilot.press("enter")
        await pilot.pause()
        assert at(app) is DevicePage
        shown = text(app)
        assert "‹ Devices ‹ n1 ‹ gpu0" in shown and "memory ledger" in shown and "free = 80G" in shown
        await pilot.press("escape")
        await pilot.pause()
        assert at(app) is Overview


async def test_a_device_page_shows_throttling_links_and_foreign_processes() -> None:
    async with console(120, 60) as (app, feed, pilot):
        device = feed.swarm.data.rows(Device)["SIM-1-0"]
        stranger = DeviceProcess(4711, "ada", "python train.py", 3 * 2**30, 37)
        ways = (DevicePath(1, PathKind.NVLINK, 18),)
        feed.swarm.data.put("SIM-1-0", replace(device, processes=(stranger,), paths=ways, cpu_affinity="0-31"))
        feed.swarm.data.samples["SIM-1-0"].update(
            clock_event_reasons=0x40, pcie_generation=5, pcie_width=16, pcie_rx_kib_per_s=2048, pcie_tx_kib_per_s=0
        )
        feed.swarm.data.reasons["SIM-1-0"] = {"fan_percent": "not supported"}
        await pilot.press("enter")
        await tick(feed, pilot)
        shown = text(app)
        for wanted in (
            "throttled  hardware thermal slowdown",
            "gen 5 ×16  in 2.0M/s  out 0/s",
            "NV18 gpu1",
            "CPUs 0-31",
            "not given  fan",
        ):
            assert wanted in shown
        assert re.search(r"4711 +python train +ada +3.0 +SM 37 %", shown)
        assert all(len(line) == 120 for line in screen(app))


async def test_a_task_page_says_why_where_and_what_would_change_it() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("4", "enter")
        await pilot.pause()
        assert at(app) is TaskPage
        shown = text(app)
        assert "because no device can take llama-405b" in shown
        assert "device by device" in shown and "has 80G" in shown
        assert "model download llama-405b --node n2" in shown


async def test_a_lists_what_the_first_line_counts() -> None:
    async with console(120, 40) as (app, feed, pilot):
        since = feed.swarm.now - timedelta(minutes=3)
        hot = Alert("hot/x", "hot", Severity.WARNING, since=since, message="n1:gpu0: temperature_c 91, above 85")
        feed.swarm.data.put("hot/x", hot)
        await tick(feed, pilot)
        assert "A alarms" in text(app)
        await pilot.press("A")
        await pilot.pause()
        assert at(app) is Report
        shown = text(app)
        assert "SEVERITY" in shown and "temperature_c 91, above 85" in shown and " 3m " in shown
        assert app.view is not None and all(alarm in shown for alarm in app.view.totals.alarms)


async def test_an_answer_with_rows_reads_as_on_the_command_line() -> None:
    events = [Event("7", NOON, "node.ready", Severity.INFO, message="n1 joined")]
    head, row = ("".join(part for part, _ in spans) for spans in lines_of(events))
    assert [head, row] == table(events, Event)


async def test_an_answer_about_one_thing_reads_as_on_the_command_line() -> None:
    model = Model("m", (ModelVersion("v1", size_bytes=16 << 30, created_at=NOON),), metadata={"team": "search"})
    shown = ["".join(part for part, _ in spans) for spans in lines_of(model)]
    assert shown == cli.lines(model) and any("16G" in line for line in shown)


async def test_a_screen_that_is_resumed_shows_the_newest_view() -> None:
    async with console(120, 40) as (app, feed, pilot):
        overview = app.screen
        assert isinstance(overview, Overview)
        overview.on_screen_resume()
        feed.swarm.data.put("n77", Node("n77"))
        feed.push()  # before what the resumption asked for is done
        await pilot.pause()
        assert overview.view is app.view


async def test_help_lists_the_keys_that_work_here() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("2", "question_mark")
        await pilot.pause()
        shown = text(app)
        assert "Serve a model" in shown and "Filter" in shown and "Stop a service" in shown
        await pilot.press("escape")
        await pilot.pause()
        assert at(app) is Overview
