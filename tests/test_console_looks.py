"""How the console looks: at every size, in every theme, without colour, without other characters than ASCII."""

from __future__ import annotations

import pytest
from gswarm_tui import themes
from gswarm_tui.__main__ import main
from gswarm_tui.layout import arrange

from gswarm.cluster.types import Device, Node
from tests.support.console import console, screen, text

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


def test_without_a_terminal_it_refuses_and_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "gswarm status" in capsys.readouterr().err
