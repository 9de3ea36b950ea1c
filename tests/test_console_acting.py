"""Actions from the console: keys, palette, forms, confirmation; what is refused, and what is not offered."""

from __future__ import annotations

from gswarm_tui.confirm import Confirm
from gswarm_tui.forms import Form
from gswarm_tui.overview import Overview
from gswarm_tui.widgets.table import Table

from gswarm.errors import RefusedError
from tests.support.console import at, console, screen, text


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
        assert pane.cursor_key == "llama-405b"
        await pilot.press("s", *["up"])
        await pilot.pause()
        assert "free 57G, needs 891G" in text(app)


async def test_devices_that_fit_together_say_of_how_many_they_are_one() -> None:
    async with console() as (app, _, pilot):
        pane = app.screen.query_one("#pane-2", Table)
        await pilot.press("2")
        while pane.cursor_key != "mixtral":
            await pilot.press("down")
        await pilot.press("s")
        await pilot.pause()
        assert "free 80G of 80G, one of 2" in text(app)


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


async def test_the_palette_holds_the_actions() -> None:
    async with console() as (app, _, pilot):
        await pilot.press("ctrl+p", *"serve")
        await pilot.pause(0.3)
        assert "Serve a model." in text(app)
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
