"""The console as a person meets it: panes, keys, forms, pages, states, sizes; on a fake swarm with a clock of its own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gswarm_tui import themes
from gswarm_tui.__main__ import main
from gswarm_tui.app import Console
from gswarm_tui.confirm import Confirm
from gswarm_tui.forms import Form
from gswarm_tui.layout import arrange
from gswarm_tui.model_state import build
from gswarm_tui.overview import Overview
from gswarm_tui.pages.device import DevicePage
from gswarm_tui.pages.task import TaskPage
from gswarm_tui.panes.devices import folded
from gswarm_tui.report import Report, lines_of
from gswarm_tui.snapshot import Link, Snapshot
from gswarm_tui.widgets.table import Row, Table, made, settled
from textual.pilot import Pilot

from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, DevicePath, DeviceProcess, Event, Kind, Node, NodePhase, PathKind, Severity
from gswarm.errors import RefusedError
from gswarm.model.types import Model, Service
from gswarm.queue.types import Task
from gswarm.views import table
from tests.support.swarm import NOON, FakeFeed, FakeSwarm


@asynccontextmanager
async def console(
    width: int = 120, height: int = 40, *, swarm: FakeSwarm | None = None, **options: Any
) -> AsyncIterator[tuple[Console, FakeFeed, Pilot[None]]]:
    feed = FakeFeed(swarm or FakeSwarm())
    app = Console(feed, **options)
    async with app.run_test(size=(width, height)) as pilot:
        await pilot.pause()
        yield app, feed, pilot


def screen(app: Console) -> list[str]:
    """What stands on the screen, line by line."""
    update = app.screen._compositor.render_full_update()
    return ["".join(segment.text for strip in line for segment in strip) for line in update.strips]


def at(app: Console) -> type:
    """What kind of screen is on top."""
    return type(app.screen)


def text(app: Console) -> str:
    return "\n".join(screen(app))


async def tick(feed: FakeFeed, pilot: Pilot[None]) -> None:
    feed.push()
    await pilot.pause()


SIZES = ((80, 24), (100, 30), (120, 40), (160, 50), (200, 60))


@pytest.mark.parametrize(("width", "height"), SIZES)
async def test_every_device_is_on_screen_at_every_size(width: int, height: int) -> None:
    async with console(width, height) as (app, feed, _):
        shown = text(app)
        for node in feed.swarm.data.rows(Node):
            assert f"▸ {node}" in shown or all(
                d.alias in shown for d in feed.swarm.data.rows(Device).values() if d.node == node
            )
        assert "lost 40s" in shown
        assert "now" in shown and "+1m" in shown
        assert all(len(line) == width for line in screen(app))


@pytest.mark.parametrize(
    ("width", "height", "there", "gone"),
    [
        (
            80,
            24,
            ("live", "util", "mem", "queue", "1 Devices", "7 Events"),
            ("devices", "kW", "tok/s", "127.0.0.1", "°C"),
        ),
        (100, 30, ("tok/s", "°C", "2 Models", "4 Queue"), ("kW", "3 Data", "127.0.0.1")),
        (120, 40, ("32 devices", "kW", "2 Models", "4 Queue", "3 Data"), ("127.0.0.1",)),
        (160, 50, ("127.0.0.1:8090", "4 nodes", "WHERE", "WHO"), ()),
    ],
)
async def test_what_each_size_shows(width: int, height: int, there: tuple[str, ...], gone: tuple[str, ...]) -> None:
    async with console(width, height) as (app, _, _):
        shown = text(app)
        assert all(word in shown for word in there), [w for w in there if w not in shown]
        first = shown.partition("\n")[0]
        assert not any(word in (shown if word[0].isdigit() else first) for word in gone if word != "°C")


async def test_enter_opens_a_folded_node_and_its_first_device_has_the_cursor() -> None:
    async with console(80, 24) as (app, _, pilot):
        pane = app.screen.query_one("#pane-1", Table)
        await pilot.press("end")
        assert pane.cursor_key == "node/n4"
        await pilot.press("enter")
        await pilot.pause()
        assert pane.cursor_key == "SIM-4-0"
        assert "n4:gpu7" in text(app) and "▸ n1" in text(app)


async def test_too_small_says_so_and_comes_back() -> None:
    async with console(50, 12) as (app, _, pilot):
        assert "60x16" in text(app)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "1 Devices" in text(app)


def test_the_layout_fills_the_height_and_width() -> None:
    for width, height in SIZES:
        for zoom in range(8):
            plan = arrange(width, height, zoom, 33)
            assert sum(row[0].height for row in plan.rows) == height - 3 - plan.has_tabs
            for row in plan.rows:
                assert all(len({box.height for box in row}) == 1 for _ in row)


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


async def test_filter_narrows_the_focused_table_and_escape_lifts_it() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("tab", "slash", *"phi", "enter")
        await pilot.pause()
        pane = app.screen.query_one("#pane-2", Table)
        assert [row.key for row in pane.shown] == ["phi-4"]
        assert "/phi 1 of" in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert len(pane.shown) > 5


async def test_q_in_the_filter_is_a_letter() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("0", "slash", "q")
        await pilot.pause()
        assert app.is_running and "/ q" in text(app)


async def test_sorting_goes_through_the_columns_and_back() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("2", "o", "o", "o", "o")
        await pilot.pause()
        pane = app.screen.query_one("#pane-2", Table)
        sizes = [made(row).values[1] for row in pane.shown]
        assert sizes == sorted(sizes, reverse=True)


async def test_rows_stay_where_they_are_while_you_look() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("4")
        await pilot.pause()
        pane = app.screen.query_one("#pane-4", Table)
        before = [row.key for row in pane.shown]
        task = feed.swarm.data.rows(Task)[before[-1]]
        feed.swarm.change(Task, task.id, created_at=task.created_at - timedelta(minutes=9))  # type: ignore[operator]
        feed.swarm.data.delete(Task, before[1])
        await tick(feed, pilot)
        assert [row.key for row in pane.shown] == [k for k in before if k != before[1]]


def test_new_rows_follow_their_neighbour() -> None:
    assert settled(["a", "b", "c"], ["x", "c", "y", "a", "b"]) == ["x", "a", "b", "c", "y"]


async def test_the_cursor_stays_on_its_row_when_rows_come_and_go() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("2", "down", "down")
        pane = app.screen.query_one("#pane-2", Table)
        key = pane.cursor_key
        feed.swarm.data.put("aaa", Model("aaa", size_bytes=1))
        feed.swarm.data.delete(Model, pane.shown[0].key)
        await tick(feed, pilot)
        assert pane.cursor_key == key


async def test_a_tick_draws_only_lines_whose_text_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with console() as (_app, feed, pilot):
        await pilot.pause()
        drawn: list[tuple[Any, ...]] = []
        original = Table.refresh

        def counted(self: Table, *regions: Any, **options: Any) -> Any:
            drawn.append((self.id, *regions))
            return original(self, *regions, **options)

        monkeypatch.setattr(Table, "refresh", counted)
        await tick(feed, pilot)
        assert drawn == []
        values = feed.swarm.data.samples["SIM-1-0"]
        values["util_percent"] = (values["util_percent"] + 40) % 100
        await tick(feed, pilot)
        assert [(name, region.height) for name, region in drawn] == [("pane-1", 1)]


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
        assert "because no device can take llama-70b" in shown
        assert "device by device" in shown and "has 80G" in shown
        assert "model download llama-70b --node n2" in shown


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


async def test_a_screen_that_is_resumed_shows_the_newest_view() -> None:
    async with console(120, 40) as (app, feed, pilot):
        overview = app.screen
        assert isinstance(overview, Overview)
        overview.on_screen_resume()
        feed.swarm.data.put("n77", Node("n77"))
        feed.push()  # before what the resumption asked for is done
        await pilot.pause()
        assert overview.view is app.view


async def test_a_form_says_what_will_happen_and_runs() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("2", "down", "s")
        await pilot.pause()
        assert at(app) is Form
        assert "loads 15G on a device that the host picks, 6.1s from 1 load" in text(app)
        await pilot.press("down", "down")
        await pilot.pause()
        assert "$ gswarm model serve qwen-7b --device n1:gpu1" in text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert feed.performed == [
            ("model serve", {"name": "qwen-7b", "device": ["n1:gpu1"], "port": 0, "backend": None})
        ]
        assert at(app) is Overview
        assert "$ gswarm model serve qwen-7b --device n1:gpu1" in text(app)


async def test_devices_that_do_not_fit_come_last_with_the_reason() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("2", *["down"] * 10)
        pane = app.screen.query_one("#pane-2", Table)
        assert pane.cursor_key == "llama-70b"
        await pilot.press("s", *["up"])
        await pilot.pause()
        assert "needs 140G" in text(app) or "lost" in text(app)


async def test_a_wrong_value_is_said_beside_its_field_and_nothing_runs() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("2", "s", "tab", *"http", "enter")
        await pilot.pause()
        assert at(app) is Form
        assert "http is not a whole number" in text(app)
        assert feed.performed == []


async def test_a_refusal_stays_in_the_form() -> None:
    async with console() as (app, feed, pilot):
        feed.failure = RefusedError("port 9100 is taken", next="give another with --port", field="port")
        await pilot.press("2", "s", "enter")
        await pilot.pause()
        assert at(app) is Form
        assert "port 9100 is taken. Give another with --port" in text(app)


async def test_destructive_actions_are_confirmed() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("2", "x")
        await pilot.pause()
        assert at(app) is Confirm
        assert "Stops llama-8b on n1" in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert feed.performed == []
        await pilot.press("x", "y")
        await pilot.pause()
        assert feed.performed == [("model stop", {"service": "llama-8b"})]


async def test_read_only_hides_and_refuses_what_changes() -> None:
    async with console() as (app, feed, pilot):
        await pilot.press("2", "exclamation_mark")
        await pilot.pause()
        keys = screen(app)[-1]
        assert "serve" not in keys and "filter" in keys
        await pilot.press("x")
        await pilot.pause()
        assert at(app) is not Confirm and feed.performed == []


async def test_a_key_whose_action_does_not_exist_is_not_shown() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("4")
        await pilot.pause()
        keys = screen(app)[-1]
        assert "submit" in keys and "hold" not in keys and "what" not in keys


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


async def test_the_palette_holds_the_actions() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("ctrl+p", *"serve")
        await pilot.pause(0.3)
        assert "Serve a model." in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert at(app) is Overview


async def test_help_lists_the_keys_that_work_here() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("2", "question_mark")
        await pilot.pause()
        shown = text(app)
        assert "Serve a model" in shown and "Filter" in shown and "Stop a service" in shown
        await pilot.press("escape")
        await pilot.pause()
        assert at(app) is Overview


async def test_every_binding_of_ours_has_an_id_of_its_own() -> None:
    from textual.binding import Binding

    async with console() as (app, _, pilot):
        await pilot.press("2", "s")
        await pilot.pause()
        nodes = [node for shown in app.screen_stack for node in (shown, *shown.query("*"))]
        classes = {
            cls for node in (app, *nodes) for cls in type(node).__mro__ if cls.__module__.startswith("gswarm_tui")
        }
        declared = [b for cls in classes for b in cls.__dict__.get("BINDINGS", ())]
        assert len(declared) > 20
        assert all(isinstance(b, Binding) and b.id for b in declared)
        ids = [b.id for b in declared]
        assert len(set(ids)) == len(ids)


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


@pytest.mark.parametrize("theme", list(themes.PALETTES))
async def test_every_theme_draws(theme: str) -> None:
    async with console(theme=theme) as (app, _, pilot):
        assert "1 Devices and plan" in text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "memory ledger" in text(app)


async def test_no_color_is_mono_with_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with console() as (app, _, _):
        assert app.theme == "gswarm-mono"
        assert "[" in text(app) and "×" in text(app)


async def test_ascii_draws_panes_without_other_characters() -> None:
    async with console(is_ascii=True) as (app, _, _):
        lines = screen(app)
        inside = [line[1:-1] for line in lines[2:20]]
        assert all(line.isascii() for line in inside), [line for line in inside if not line.isascii()]


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


def test_the_view_is_a_pure_function_of_the_snapshot() -> None:
    from gswarm_tui.feed import capture

    swarm = FakeSwarm()
    snapshot = capture(swarm.data, host="h", now=swarm.now)
    assert build(snapshot) == build(snapshot)
    assert build(Snapshot()).totals.link is Link.CONNECTING


def test_alarms_are_counted() -> None:
    from gswarm_tui.feed import capture

    swarm = FakeSwarm()
    swarm.change(Node, "n2", phase=NodePhase.UNREACHABLE)
    view = build(capture(swarm.data, host="h", now=swarm.now))
    assert any("n2" in alarm for alarm in view.totals.alarms)
    assert any("n3:gpu3 lost" in alarm for alarm in view.totals.alarms)
    assert any("mixtral failed" in alarm for alarm in view.totals.alarms)
    assert all(d.trouble for d in view.devices if d.node == "n2")


def test_nodes_fold_until_all_fit_and_the_cursors_stays_open() -> None:
    from gswarm_tui.feed import capture

    swarm = FakeSwarm(6, 8)
    nodes = build(capture(swarm.data, host="h", now=swarm.now)).nodes
    assert folded(nodes, 48, "n1") == set()
    assert folded(nodes, 20, "n5") == {"n2", "n3", "n4", "n6"}
    assert folded(nodes, 6, "") == {n.name for n in nodes}


def test_model_hues_follow_first_service() -> None:
    from gswarm_tui.feed import capture

    swarm = FakeSwarm()
    view = build(capture(swarm.data, host="h", now=swarm.now))
    assert [m.name for m in view.models[:3]] == ["llama-8b", "qwen-7b", "sdxl"]
    swarm.data.put("aaa", Service("aaa", "aaa", created_at=swarm.now))
    swarm.data.put("aaa", Model("aaa"))
    later = build(capture(swarm.data, host="h", now=swarm.now))
    assert {m.name: m.hue for m in later.models if m.name in ("llama-8b", "sdxl")} == {"llama-8b": 0, "sdxl": 2}


def test_without_a_terminal_it_refuses_and_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "gswarm status" in capsys.readouterr().err


def test_rows_compare_by_text() -> None:
    assert Row("a", ((("x", "text"),),)) == Row("a", ((("x", "text"),),))


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
