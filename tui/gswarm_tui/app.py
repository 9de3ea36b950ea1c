"""The console's app: one feed of snapshots, one screen that shows them, pages above it. It holds nothing that must live."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from . import themes
from .diff import FrameDiff
from .feed import Feed
from .model_state import View, build, pick
from .overview import Overview
from .pages.page import Page
from .snapshot import Snapshot
from .themes import Paint
from .widgets.footer import Key

if TYPE_CHECKING:
    from textual.screen import Screen

    from gswarm.queue.types import Task

    from .panes.base import Pane

HISTORY = 240
"""Samples kept a device, for the device page."""


class Console(App[None]):
    """gswarm's console."""

    CSS_PATH = Path(__file__).with_name("console.tcss")
    TITLE = "gswarm"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", show=False, id="quit"),
        Binding("ctrl+l", "redraw", "Redraw", show=False, id="redraw"),
        Binding("y", "copy_line", "Copy the CLI line", show=False, id="copy"),
    ]

    def __init__(self, feed: Feed, *, theme: str = "gswarm-dark", is_ascii: bool = False) -> None:
        super().__init__()
        self.feed = feed
        self.animation_level = "none"
        for made in themes.themes():
            self.register_theme(made)
        if os.environ.get("NO_COLOR"):
            theme = "gswarm-mono"
        self.is_ascii = is_ascii
        self._paint = Paint(themes.PALETTES[theme], is_ascii=is_ascii)
        self.theme = theme
        self.snapshot = Snapshot(host=feed.host)
        self.view: View | None = None
        self._history: dict[str, deque[Mapping[str, float]]] = {}
        self._sampled: dict[str, float] = {}
        self.frame_diff = FrameDiff.if_possible()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {**super().get_theme_variable_defaults(), **themes.themes()[0].variables}

    def paint(self) -> Paint:
        return self._paint

    def get_default_screen(self) -> Screen[None]:
        return Overview()

    async def on_mount(self) -> None:
        self.take(self.snapshot)
        self.run_worker(self._follow(), name="feed", exit_on_error=False)

    async def _follow(self) -> None:
        while True:
            try:
                await self.feed.run(self.take)
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:  # the console outlives whatever it reads from
                self.log(error)
                await asyncio.sleep(1.0)

    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        self.snapshot = snapshot
        self._remember(snapshot)
        self.view = build(snapshot)
        with self.batch_update():
            screen = self.screen
            if isinstance(screen, Overview | Page):
                screen.show(self.view)

    def _remember(self, snapshot: Snapshot) -> None:
        for device, values in snapshot.samples.items():
            at = snapshot.sampled_at.get(device, 0.0)
            if self._sampled.get(device) != at:
                self._sampled[device] = at
                self._history.setdefault(device, deque(maxlen=HISTORY)).append(values)

    # What the screens ask for

    def pane_bindings(self, pane: type[Pane]) -> list[Binding]:
        return []

    def echo_for(self, pane: Pane | None) -> str:
        return "gswarm status"

    def keys_for(self, pane: Pane | None) -> tuple[Key, ...]:
        return (Key("/", "filter"), Key("?", "help"), Key("^p", "palette"), Key("q", "quit"))

    def right_note(self) -> str:
        return ""

    def open_page(self, pane: Pane, key: str) -> None:
        """Enter on a row."""
        if pane.kind == "device" and not key.startswith("node/"):
            from .pages.device import DevicePage

            self.push_screen(DevicePage(key))
        elif pane.kind == "task":
            from .pages.task import TaskPage

            self.push_screen(TaskPage(key))

    def page_keys(self, page: Page) -> tuple[Key, ...]:
        return ()

    def reason_of(self, task: Task) -> str:
        """Why a task waits, when the host says so."""
        return ""

    def history_of(self, device: str, metrics: tuple[str, ...]) -> list[float | None]:
        """The last samples of a metric, oldest first."""
        return [pick(values, metrics) for values in self._history.get(device, ())]

    # Keys

    def action_redraw(self) -> None:
        """Ctrl+l: forget what is on the terminal and draw it all."""
        self.frame_diff.forget()
        self.refresh(layout=True)
        self.screen.refresh(layout=True)

    # The frame diff

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        super()._display(screen, self.frame_diff.narrowed(renderable, self.size))
