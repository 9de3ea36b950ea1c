"""The frame-diff layer: what reaches the terminal is, cell for cell, what Textual alone would have written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyte
import pytest
from gswarm_tui import diff
from gswarm_tui.app import Console
from gswarm_tui.diff import FrameDiff
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.console import Console as RichConsole
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.strip import Strip

from tests.support.swarm import FakeFeed, FakeSwarm

WIDTH, HEIGHT = 24, 4
STYLES = (
    Style.parse("#d6dde6 on #0f1419"),
    Style.parse("bold #ffffff on #0f1419"),
    Style.parse("#8f9dad on #0f1419"),
    Style.parse("#8f9dad on #1c3247"),
    Style.parse("underline #8f9dad on #0f1419"),
    Style.parse("reverse #8f9dad on #0f1419"),
)
CONSOLE = RichConsole(force_terminal=True, color_system="truecolor", width=WIDTH, height=HEIGHT, legacy_windows=False)


def terminal(width: int = WIDTH, height: int = HEIGHT) -> tuple[pyte.Screen, pyte.Stream]:
    screen = pyte.Screen(width, height)
    screen.reset_mode(7, private=True)  # Textual runs without auto wrap
    return screen, pyte.Stream(screen)


def cells(screen: pyte.Screen) -> list[list[tuple[Any, ...]]]:
    """What a person sees: the foreground of a blank does not show."""
    out = []
    for y in range(screen.lines):
        row = []
        for x in range(screen.columns):
            c = screen.buffer[y][x]
            shows = c.data.strip() or c.underscore or c.reverse or c.strikethrough
            row.append((c.data, c.fg if shows else "", c.bg, c.bold if shows else False, c.underscore, c.reverse))
        out.append(row)
    return out


pieces = st.lists(
    st.tuples(st.text("ab cde 123●━▌█░é你漢", min_size=1, max_size=9), st.sampled_from(STYLES)), min_size=1, max_size=6
)


def strip_of(parts: list[tuple[str, Style]], width: int) -> Strip:
    return Strip([Segment(text, style) for text, style in parts]).adjust_cell_length(width, STYLES[0]).crop(0, width)


@settings(max_examples=200, deadline=None)
@given(frames=st.lists(st.lists(pieces, min_size=HEIGHT, max_size=HEIGHT), min_size=1, max_size=6))
def test_whole_frames_end_up_the_same(frames: list[list[list[tuple[str, Style]]]]) -> None:
    plain, narrow = terminal(), terminal()
    layer = FrameDiff()
    for frame in frames:
        update = LayoutUpdate([[strip_of(parts, WIDTH)] for parts in frame], Region(0, 0, WIDTH, HEIGHT))
        plain[1].feed(update.render_segments(CONSOLE).replace("\n", "\r\n"))
        narrow[1].feed(layer.render(update, Size(WIDTH, HEIGHT), ColorSystem.TRUECOLOR))
        assert cells(narrow[0]) == cells(plain[0])


@settings(max_examples=200, deadline=None)
@given(
    first=st.lists(pieces, min_size=HEIGHT, max_size=HEIGHT),
    changes=st.lists(st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 2), pieces), min_size=1, max_size=8),
)
def test_parts_of_lines_end_up_the_same(
    first: list[list[tuple[str, Style]]], changes: list[tuple[int, int, list[tuple[str, Style]]]]
) -> None:
    plain, narrow = terminal(), terminal()
    layer = FrameDiff()
    updates: list[Any] = [LayoutUpdate([[strip_of(p, WIDTH)] for p in first], Region(0, 0, WIDTH, HEIGHT))]
    for y, x, parts in changes:
        made = Strip([Segment(text, style) for text, style in parts]).crop(0, WIDTH - x)
        chops: list[dict[int, Strip | None]] = [{} for _ in range(HEIGHT)]
        chops[y] = {0: None, x: made}
        ends = [[x, x + made.cell_length] for _ in range(HEIGHT)]
        if x == 0:
            chops[y], ends = {0: made}, [[made.cell_length] for _ in range(HEIGHT)]
        updates.append(ChopsUpdate(chops, [(y, x, x + made.cell_length)], ends))
    for update in updates:
        plain[1].feed(update.render_segments(CONSOLE).replace("\n", "\r\n"))
        narrow[1].feed(layer.render(update, Size(WIDTH, HEIGHT), ColorSystem.TRUECOLOR))
    assert visible(narrow[0]) == visible(plain[0])


def visible(screen: pyte.Screen) -> list[str]:
    """Text only: an emulator is free in what it leaves of a wide character that was cut in half."""
    lines = []
    for y in range(screen.lines):
        data = (screen.buffer[y][x].data for x in range(screen.columns))
        lines.append("".join(c if c and (c.isascii() or c in "●━▌█░é") else "?" for c in data))
    return lines


def test_an_unchanged_frame_writes_nothing() -> None:
    layer = FrameDiff()
    update = LayoutUpdate([[strip_of([("load 91", STYLES[0])], WIDTH)]] * HEIGHT, Region(0, 0, WIDTH, HEIGHT))
    assert layer.render(update, Size(WIDTH, HEIGHT), ColorSystem.TRUECOLOR)
    assert layer.render(update, Size(WIDTH, HEIGHT), ColorSystem.TRUECOLOR) == ""


def test_one_changed_digit_writes_one_cell() -> None:
    layer, size = FrameDiff(), Size(WIDTH, HEIGHT)
    for text in ("util 91 %  mem 40", "util 92 %  mem 40"):
        update = LayoutUpdate([[strip_of([(text, STYLES[0])], WIDTH)]], Region(0, 0, WIDTH, 1))
        written = layer.render(update, size, ColorSystem.TRUECOLOR)
    assert written.count("2") and "util" not in written and "mem" not in written
    assert len(written) < 60


def test_runs_of_one_style_share_its_codes() -> None:
    layer, size = FrameDiff(), Size(WIDTH, HEIGHT)
    for digit in "12":
        line = strip_of([(f"{digit}        ", STYLES[0]), (f"{digit}", STYLES[1])], WIDTH)
        rows: list[Iterable[Strip]] = [[line] for _ in range(HEIGHT)]
        written = layer.render(LayoutUpdate(rows, Region(0, 0, WIDTH, HEIGHT)), size, ColorSystem.TRUECOLOR)
    assert written.count("38;2;214;221;230") == 1


def test_after_forgetting_all_is_written_again() -> None:
    layer, size = FrameDiff(), Size(WIDTH, HEIGHT)
    update = LayoutUpdate([[strip_of([("abc", STYLES[0])], WIDTH)]], Region(0, 0, WIDTH, 1))
    first = layer.render(update, size, ColorSystem.TRUECOLOR)
    layer.forget()
    assert layer.render(update, size, ColorSystem.TRUECOLOR) == first


def test_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_DIFF", "0")
    update = LayoutUpdate([], Region(0, 0, 1, 1))
    assert FrameDiff.if_possible().narrowed(update, Size(1, 1)) is update
    monkeypatch.delenv("GSWARM_DIFF")
    assert FrameDiff.if_possible().narrowed(update, Size(1, 1)) is not update


def test_steps_aside_when_the_private_names_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "_IS_KNOWN", False)
    update = object()
    assert FrameDiff.if_possible().narrowed(update, Size(1, 1)) is update


def test_the_private_names_of_textual_that_this_layer_stands_on() -> None:
    assert callable(App._display)
    assert {"strips", "region"} <= set(LayoutUpdate([], Region(0, 0, 0, 0)).__dict__)
    assert {"chops", "spans", "chop_ends"} <= set(ChopsUpdate([], [(0, 0, 0)], []).__dict__)


class Twice(Console):
    """Writes every update to two terminals: as Textual would, and through the layer."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(FakeFeed(FakeSwarm(2, 4, tasks=12)))
        self.plain, self.narrow = terminal(width, height), terminal(width, height)
        self.written = [0, 0]
        self.layer = FrameDiff()

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        if renderable is not None and not self._batch_count and self._running:
            whole = renderable.render_segments(CONSOLE)
            cut = self.layer.narrowed(renderable, self.size).render_segments(CONSOLE)
            self.written = [self.written[0] + len(whole), self.written[1] + len(cut)]
            self.plain[1].feed(whole.replace("\n", "\r\n"))
            self.narrow[1].feed(cut)
        super()._display(screen, None)


async def test_the_console_itself_looks_the_same_through_the_layer() -> None:
    app = Twice(100, 30)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        feed = app.feed
        assert isinstance(feed, FakeFeed)
        for press in ("down", "tab", "down", "4", "0", "slash", "q", "escape", "question_mark", "escape", "ctrl+p"):
            await pilot.press(press)
            feed.swarm.step()
            feed.push()
            await pilot.pause()
            assert cells(app.narrow[0]) == cells(app.plain[0]), press
        assert any("gswarm" in line for line in app.narrow[0].display)
        assert app.written[1] < app.written[0] / 2
