"""Tables of the console: what stays in place while a person looks, filters, sorts and opens nodes; what is drawn anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from gswarm_tui.panes.devices import folded, plan_line
from gswarm_tui.widgets.table import Row, Table, made, settled

from gswarm.model.types import Model
from gswarm.queue.types import Task
from tests.support.console import console, text, tick, view_of
from tests.support.swarm import FakeSwarm


async def test_enter_opens_a_folded_node_and_its_first_device_has_the_cursor() -> None:
    async with console(80, 24) as (app, _, pilot):
        pane = app.screen.query_one("#pane-1", Table)
        await pilot.press("end")
        assert pane.cursor_key == "node/n4"
        await pilot.press("enter")
        await pilot.pause()
        assert pane.cursor_key == "SIM-4-0"
        assert "n4:gpu7" in text(app) and "▸ n1" in text(app)


def test_nodes_fold_until_all_fit_and_the_cursors_stays_open() -> None:
    swarm = FakeSwarm(6, 8)
    nodes = view_of(swarm).nodes
    assert folded(nodes, 48, "n1") == set()
    assert folded(nodes, 20, "n5") == {"n2", "n3", "n4", "n6"}
    assert folded(nodes, 6, "") == {n.name for n in nodes}


def test_the_border_says_how_far_a_very_long_queue_is_planned() -> None:
    view = view_of(FakeSwarm(1, 1))
    assert view.plan is not None
    for beyond, wide, narrow in ((0, "plan done ≈", "done ≈"), (28993, "planned to ≈", "to ≈")):
        shown = replace(view, plan=replace(view.plan, done_at=view.totals.now, beyond=beyond))
        for width, began in ((120, wide), (80, narrow)):
            (told,) = (part for part in plan_line(shown, width).split(" · ") if "≈" in part)
            assert told.startswith(began) and ("28993" in told) == bool(beyond)


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


def test_rows_compare_by_text() -> None:
    assert Row("a", ((("x", "text"),),)) == Row("a", ((("x", "text"),),))
