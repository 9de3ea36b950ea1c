"""The console's app: one feed of snapshots, one screen that shows them, pages above it. It holds nothing that must live."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from gswarm.cluster.types import Listing
from gswarm.errors import GswarmError

from . import themes
from .acting import Acting
from .diff import FrameDiff
from .feed import Feed
from .model_state import build, pick
from .overview import Overview
from .pages.page import Page
from .panes.base import Pane
from .snapshot import Snapshot
from .themes import Paint
from .view import View
from .widgets.footer import Key

if TYPE_CHECKING:
    from datetime import datetime

    from textual import events
    from textual.command import Provider
    from textual.screen import Screen

    from .player import Player

HISTORY = 240
"""Samples kept a device, for the device page."""


def _palette() -> type[Provider]:
    from .palette import Actions

    return Actions


class Console(Acting):
    """gswarm's console."""

    CSS_PATH = Path(__file__).with_name("console.tcss")
    TITLE = "gswarm"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit", show=False, id="quit"),
        Binding("ctrl+l", "redraw", "Redraw", show=False, id="redraw"),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, id="suspend"),
        Binding("y", "copy_line", "Copy the CLI line", show=False, id="copy"),
        Binding("Y", "copy_json", "Copy the row as JSON", show=False, id="copy_json"),
        Binding("question_mark", "help", "Help for here", show=False, id="help"),
        Binding("colon", "command", "Go or run", show=False, id="command", priority=True),
        Binding("space", "replay('toggle')", "Pause, go on", show=False, id="replay.pause", priority=True),
        Binding("left", "replay('skip', -10)", "10 s back", show=False, id="replay.back", priority=True),
        Binding("right", "replay('skip', 10)", "10 s on", show=False, id="replay.on", priority=True),
        Binding("shift+left", "replay('skip', -60)", "1 min back", show=False, id="replay.minute_back", priority=True),
        Binding("shift+right", "replay('skip', 60)", "1 min on", show=False, id="replay.minute_on", priority=True),
        Binding("comma", "replay('step', -1)", "One tick back", show=False, id="replay.tick_back", priority=True),
        Binding("full_stop", "replay('step', 1)", "One tick on", show=False, id="replay.tick_on", priority=True),
        Binding(
            "left_square_bracket",
            "replay('to_event', -1)",
            "Previous event",
            show=False,
            id="replay.previous",
            priority=True,
        ),
        Binding(
            "right_square_bracket", "replay('to_event', 1)", "Next event", show=False, id="replay.next", priority=True
        ),
        Binding("plus", "replay('faster', 1)", "Faster", show=False, id="replay.faster", priority=True),
        Binding("minus", "replay('faster', -1)", "Slower", show=False, id="replay.slower", priority=True),
        Binding("g", "replay('ask')", "Go to a time", show=False, id="replay.go", priority=True),
        Binding("backspace", "replay('live')", "Back to now", show=False, id="replay.live", priority=True),
        Binding("A", "alarms", "Alarms", show=False, id="alarms"),
        Binding("exclamation_mark", "read_only", "Read-only on and off", show=False, id="read_only"),
    ]

    def __init__(self, feed: Feed, *, theme: str = "gswarm-dark", is_ascii: bool = False) -> None:
        super().__init__(feed)
        self.animation_level = "none"
        for made in themes.themes():
            self.register_theme(made)
        if os.environ.get("NO_COLOR"):
            theme = themes.MONO.name
        self.is_ascii = is_ascii
        self._paint = Paint(themes.PALETTES[theme], is_ascii=is_ascii)
        self.theme = theme
        self.view: View | None = None
        self.has_data = asyncio.Event()
        self._history: dict[str, deque[Mapping[str, float]]] = {}
        self._sampled: dict[str, float] = {}
        self.commands: list[str] = []
        self.frame_diff = FrameDiff.if_possible()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {**super().get_theme_variable_defaults(), **themes.themes()[0].variables}

    def paint(self) -> Paint:
        return self._paint

    def get_default_screen(self) -> Screen[None]:
        return Overview()

    async def on_mount(self) -> None:
        self.app_resume_signal.subscribe(self, lambda _: self.action_redraw())
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
        if snapshot.age_s is not None:
            self.has_data.set()
        with self.batch_update():
            screen = self.base_screen
            if screen is not None:
                screen.show(self.view)

    def _remember(self, snapshot: Snapshot) -> None:
        for device, values in snapshot.samples.items():
            at, before = snapshot.sampled_at.get(device, 0.0), self._sampled.get(device, 0.0)
            if at < before:
                self._history.pop(device, None)  # back in time: what came later is no history of this
            if at != before:
                self._sampled[device] = at
                self._history.setdefault(device, deque(maxlen=HISTORY)).append(values)

    def history_of(self, device: str, metrics: tuple[str, ...]) -> list[float | None]:
        """The last samples of a metric, oldest first."""
        return [pick(values, metrics) for values in self._history.get(device, ())]

    # What screens ask for

    def echo_for(self, pane: Pane | None) -> str:
        """The CLI line that shows what the screen shows."""
        at = (pane.id, pane.cursor_key) if pane is not None else (None, None)
        if self.done_line and self.done_at is None:
            self.done_at = at
        if self.done_line and self.done_at == at:
            return self.done_line  # what was just done, until the cursor moves
        self.done_line, self.done_at = "", None
        return pane.echo() if pane is not None else "gswarm status"

    def keys_for(self, pane: Pane | None) -> tuple[Key, ...]:
        keys: list[Key] = []
        if pane is not None:
            possible = {d.name for d in self.possible_deeds()}
            keys = [Key(key, d.word) for key, d in self.pane_deeds(type(pane)) if d.name in possible and pane.can(d)]
        if self.view is not None and self.view.replay is not None:
            keys = [Key("space", "pause"), Key("←→", "10 s"), Key("[]", "event"), Key("+-", "speed"), Key("g", "go to")]
            if self.view.replay.at is not None:
                keys.insert(0, Key("bksp", "now"))
        if self.view is not None and self.view.totals.alarms:
            keys.append(Key("A", "alarms"))
        keys += [Key("/", "filter"), Key(":", "go"), Key("?", "help"), Key("^p", "palette"), Key("q", "quit")]
        return tuple(keys)

    def page_keys(self, page: Page) -> tuple[Key, ...]:
        return tuple(Key(key, d.word) for key, d in page.deeds())

    def right_note(self) -> str:
        return "read-only" if self.is_read_only else ""

    def open_page(self, pane: Pane, key: str) -> None:
        """Enter on a row."""
        if self.open_subject(pane.kind, key):
            return
        deed = self.deed(pane.detail)
        if deed is not None:
            self.start_deed(deed, {})

    def open_subject(self, kind: str, key: str) -> bool:
        """The page of a device or a task."""
        if kind == "device" and key in self.snapshot.devices:
            from .pages.device import DevicePage

            self.push_screen(DevicePage(key))
            return True
        if kind == "task" and key in self.snapshot.tasks:
            from .pages.task import TaskPage

            self.push_screen(TaskPage(key))
            return True
        return False

    # Keys

    def action_go(self, number: int) -> None:
        """A pane in full from anywhere; 0 the overview."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if isinstance(self.screen, Overview):
            self.screen.action_zoom(number)

    def action_help(self) -> None:
        from .help import Help, key_name

        shown: dict[str, str] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.description and binding.id:
                shown.setdefault(binding.id, binding.description)
        keys = []
        for name, words in shown.items():
            codes = [b.binding.key for b in self.screen.active_bindings.values() if b.binding.id == name]
            keys.append((key_name(",".join(codes)), words.partition("\n")[0].rstrip(".")))
        self.push_screen(Help("keys that work here", keys))

    def action_alarms(self) -> None:
        """`A`: what the first line counts, each with its sentence; rules that fire with their since and severity."""
        from .report import Report, lines_of

        alerts = sorted(self.snapshot.alerts.values(), key=lambda a: (a.since is None, a.since), reverse=True)
        lines = lines_of(Listing(alerts, time=self.snapshot.now)) if alerts else []
        told = {alert.message for alert in alerts}
        rest = [alarm for alarm in (self.view.totals.alarms if self.view is not None else ()) if alarm not in told]
        lines += [(("▲ ", "changing"), (alarm, "text")) for alarm in rest]
        self.push_screen(Report("alarms", lines or [(("nothing is wrong", "ready"),)]))

    def action_command(self) -> None:
        """`:` goes to a pane, a device or a task, or runs an action."""
        screen = self.base_screen
        if not isinstance(screen, Overview):
            self.action_go(0)
            screen = self.base_screen
        if isinstance(screen, Overview):
            from .go import Completion

            screen.ask(":", "", None, self._command, Completion(self))

    def _command(self, text: str | None) -> None:
        from .go import go

        screen = self.base_screen
        if isinstance(screen, Overview) and screen.focused_pane is None:
            screen.pane(screen.zoom or 1).focus()
        if text:
            self.commands.append(text)
            go(self, text)

    def action_copy_line(self) -> None:
        """`y`: the CLI line to the clipboard."""
        from .widgets.echo import Echo

        echo = self.screen.query(Echo)
        text = echo.first().text if echo else ""
        if text:
            self.copy_to_clipboard(text)
            self.notify("copied", timeout=2)

    def action_copy_json(self) -> None:
        """`Y`: the row under the cursor as JSON."""
        screen = self.base_screen
        pane = screen.focused_pane if isinstance(screen, Overview) else None
        row = self.snapshot.row_of(pane.kind, pane.cursor_key) if pane is not None and pane.cursor_key else None
        if row is not None:
            import json

            from gswarm.codec import to_plain

            self.copy_to_clipboard(json.dumps(to_plain(row), ensure_ascii=False))
            self.notify("copied as JSON", timeout=2)

    def action_read_only(self) -> None:
        self.is_read_only = not self.is_read_only
        self.notify(
            "read-only: nothing can be changed" if self.is_read_only else "changes are possible again", timeout=3
        )
        if isinstance(self.screen, Overview):
            self.screen.refresh_keys()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Replay's keys work in the past only, and like `:` not while something is typed or an overlay is open."""
        if action in ("replay", "command"):
            is_free = self.screen is self.base_screen and not isinstance(self.focused, Input)
            return is_free and (action == "command" or self._is_moved_by(*parameters))
        return super().check_action(action, parameters)

    def action_replay(self, what: str, by: int = 0) -> None:
        """A key of the replay."""
        player = self.feed.player
        if player is None:
            return
        match what:
            case "toggle":
                player.toggle()
            case "skip":
                player.skip(by)
            case "step":
                player.step(by)
            case "to_event":
                player.to_event(by)
            case "faster":
                player.faster(by)
            case "live":
                player.live()
            case "ask":
                self._ask_time(player)

    def _is_moved_by(self, what: object, by: object = 0) -> bool:
        player = self.feed.player
        return player is not None and player.takes(str(what), by if isinstance(by, int) else 0)

    def seek(self, moment: datetime) -> None:
        """Stand at a moment of the time line."""
        if self.feed.player is not None:
            self.feed.player.seek(moment)

    def _ask_time(self, player: Player) -> None:
        screen = self.base_screen

        def done(text: str | None) -> None:
            if isinstance(screen, Overview):
                screen.pane(screen.zoom or 1).focus()
            if not text:
                return
            try:
                player.to_time(text)
            except GswarmError as error:
                self.notify(str(error), severity="error")

        if isinstance(screen, Overview):
            screen.ask("go to", "", None, done)

    def theme_names(self) -> list[str]:
        return list(themes.SHORT_NAMES)

    def change_theme(self, short: str) -> None:
        """Another theme, at once."""
        name = themes.SHORT_NAMES[short]
        self._paint = Paint(themes.PALETTES[name], is_ascii=self.is_ascii)
        self.theme = name
        for screen in self.screen_stack:
            if isinstance(screen, Overview | Page):
                screen.repaint()
        if self.view is not None and self.base_screen is not None:
            self.base_screen.show(self.view)

    # The terminal

    def action_redraw(self) -> None:
        """Ctrl+l: forget what is on the terminal and draw it all."""
        self.frame_diff.forget()
        self.screen.refresh(layout=True)

    def on_app_focus(self, event: events.AppFocus) -> None:
        self.action_redraw()

    def on_resize(self, event: events.Resize) -> None:
        self.action_redraw()  # a terminal may have reflowed what it showed

    def _display(self, screen: Screen[Any], renderable: Any) -> None:
        super()._display(screen, self.frame_diff.narrowed(renderable, self.size))
