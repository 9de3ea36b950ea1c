"""The main screen: totals, the panes of the overview or one in full, the CLI echo, the keys that work now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Static

from .layout import LEAST_HEIGHT, LEAST_WIDTH, TITLES, arrange
from .panes.base import Pane
from .panes.data import DataPane
from .panes.devices import DevicesPane, LanesPane
from .panes.events import EventsPane
from .panes.models import ModelsPane
from .panes.nodes import NodesPane
from .panes.queue import QueuePane
from .panes.sessions import SessionsPane
from .view import View
from .widgets.echo import Echo
from .widgets.footer import Keys
from .widgets.line import Line
from .widgets.prompt import Prompt
from .widgets.spans import Span
from .widgets.table import Table
from .widgets.timeline import moment_at, timeline
from .widgets.totals import totals

if TYPE_CHECKING:
    from textual import events
    from textual.suggester import Suggester

    from .app import Console


class Overview(Screen[None]):
    """Everything at a glance, or one pane in full."""

    app: Console
    AUTO_FOCUS = "#pane-1"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"zoom({n})", f"{TITLES.get(n, 'Overview')}", show=False, id=f"pane.{n}") for n in range(8)),
        Binding("escape", "back", "Back", show=False, id="back"),
        Binding("slash", "filter", "Filter", show=False, id="filter", priority=True),
        Binding("tab", "app.focus_next", "Next pane", show=False, id="pane.next"),
        Binding("shift+tab", "app.focus_previous", "Previous pane", show=False, id="pane.previous"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.zoom = 0
        self.view: View | None = None
        self.is_ready = False

    def compose(self) -> ComposeResult:
        paint = self.app.paint
        keys = self.app.pane_bindings
        yield Line(paint, id="totals")
        yield Line(paint, id="tabs")
        with Vertical(id="panes"):
            yield DevicesPane(paint, keys(DevicesPane))
            yield LanesPane(paint)
            with Horizontal(id="below"):
                yield ModelsPane(paint, keys(ModelsPane))
                yield QueuePane(paint, keys(QueuePane))
                yield DataPane(paint, keys(DataPane))
            yield SessionsPane(paint, keys(SessionsPane))
            yield NodesPane(paint, keys(NodesPane))
            yield EventsPane(paint, keys(EventsPane))
        yield Static(id="too-small")
        yield Line(paint, id="timeline")
        yield Echo(paint, id="echo")
        yield Prompt(id="prompt")
        yield Keys(paint, id="keys")

    def on_mount(self) -> None:
        self.query_one("#prompt").display = False
        self.is_ready = True
        self._arrange()
        if self.app.view is not None:
            self.show(self.app.view)

    def on_resize(self, event: events.Resize) -> None:
        if self.is_ready:
            self._arrange()

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self._show_newest)

    def _show_newest(self) -> None:
        """What is newest when this is called: a view kept from before would go over a paused replay's, and stay."""
        if self.is_ready and self.app.view is not None:
            self.show(self.app.view)

    def pane(self, number: int) -> Pane:
        return self.query_one(f"#pane-{number}", Pane)

    @property
    def focused_pane(self) -> Pane | None:
        return self.focused if isinstance(self.focused, Pane) else None

    # Showing

    def show(self, view: View) -> None:
        """Draw a tick's view."""
        before = self.view
        self.view = view
        if not self.is_ready:
            return
        if (
            before is None
            or (before.replay is None) != (view.replay is None)
            or _device_rows(before) != _device_rows(view)
        ):
            self._arrange()
        self._show_lines()
        for pane in self.query(Pane):
            if pane.display and (pane.parent is None or pane.parent.display):
                pane.show(view)
        self.refresh_keys()

    def _show_lines(self) -> None:
        if self.view is None:
            return
        left, right = totals(self.view.totals, self.size.width, self.view.replay)
        self.query_one("#totals", Line).put(left, right)
        if (replay := self.view.replay) is not None:
            now = self.view.totals.now
            self.query_one("#timeline", Line).put(timeline(replay, now, self.size.width - 2))
        tabs: list[Span] = []
        for number, title in TITLES.items():
            shown = self.zoom or 1
            mark = "+" if number == shown else ""
            tabs += [(f" {number}", f"key{mark}"), (f" {title} ", f"strong{mark}" if mark else "text"), (" ", "text")]
        self.query_one("#tabs", Line).put(tuple(tabs))

    def _arrange(self) -> None:
        rows = _device_rows(self.view) if self.view else 8
        replayed = self.view is not None and self.view.replay is not None
        self.query_one("#timeline").display = replayed
        plan = arrange(self.size.width, self.size.height - replayed, self.zoom, rows)
        note = self.query_one("#too-small", Static)
        note.display = plan.too_small
        for widget in ("#totals", "#panes", "#keys"):
            self.query_one(widget).display = not plan.too_small
        prompt = self.query_one("#prompt", Prompt)
        self.query_one("#echo").display = not plan.too_small and not prompt.display
        self.query_one("#tabs").display = plan.has_tabs
        if plan.too_small:
            note.update(
                f"gswarm needs {LEAST_WIDTH}x{LEAST_HEIGHT} cells and has {self.size.width}x{self.size.height}: "
                "make the window larger, or use `gswarm status`. q quits."
            )
            return
        boxes = {box.pane: box for row in plan.rows for box in row}
        below = self.query_one("#below", Horizontal)
        in_row = {2, 3, 4} & boxes.keys()
        below.display = bool(in_row)
        if in_row:
            below.styles.height = boxes[min(in_row)].height
        for pane in self.query(Pane):
            number = pane.number
            box = boxes.get(number)
            pane.display = box is not None
            pane.is_zoomed = number == self.zoom
            if box is not None:
                pane.styles.width = box.width if box.width > 0 else "1fr"
                pane.styles.height = "100%" if number in in_row else box.height
        self._show_lines()
        self.call_after_refresh(self._after_arrange)

    def _after_arrange(self) -> None:
        focused = self.focused
        if self.query_one("#prompt").display:
            pass
        elif (isinstance(focused, Pane) and not focused.display) or focused is None:
            shown = next((p for p in self.query(Pane) if p.display), None)
            if shown is not None:
                shown.focus()
        if self.view is not None:
            for pane in self.query(Pane):
                if pane.display:
                    pane.show(self.view)

    def repaint(self) -> None:
        """Draw everything again, for another theme."""
        for pane in self.query(Table):
            pane.repaint()
        for line in self.query(Line):
            line.refresh()

    # Keys

    def action_zoom(self, number: int) -> None:
        """One pane in full; 0 the overview."""
        self.zoom = number
        self._arrange()
        self.set_focus(self.pane(number or 1))

    def action_back(self) -> None:
        """Esc: one step back, whatever is open."""
        prompt = self.query_one("#prompt", Prompt)
        if prompt.display:
            prompt.cancel()
            return
        pane = self.focused_pane
        if pane is not None and pane.filter_text:
            pane.set_filter("")
        elif self.zoom:
            self.action_zoom(0)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`/` comes before all else, so that what is typed right behind it reaches the prompt; not inside the prompt."""
        if action == "filter":
            return isinstance(self.focused, Pane)
        return super().check_action(action, parameters)

    def action_filter(self) -> None:
        pane = self.focused_pane
        if pane is None:
            return

        def changed(text: str) -> None:
            pane.set_filter(text)

        def done(text: str | None) -> None:
            pane.set_filter(text or "")
            self.set_focus(pane)

        self.ask("/", pane.filter_text, changed, done)

    def ask(
        self,
        mark: str,
        value: str,
        changed: Callable[[str], None] | None,
        done: Callable[[str | None], None],
        suggester: Suggester | None = None,
    ) -> None:
        """Open the prompt in place of the echo line."""
        prompt = self.query_one("#prompt", Prompt)
        self.query_one("#echo").display = False
        prompt.open(mark, value, changed, done, suggester)

    @on(Prompt.Closed)
    def _prompt_closed(self) -> None:
        self.query_one("#echo").display = True

    def on_click(self, event: events.Click) -> None:
        """A click on the time line goes there."""
        if self.view is not None and self.view.replay is not None and event.widget is self.query_one("#timeline"):
            event.stop()
            self.app.seek(moment_at(self.view.replay, event.x - 1, self.size.width - 2))

    @on(Table.Moved)
    def _moved(self) -> None:
        self.refresh_keys()

    def on_descendant_focus(self) -> None:
        self.refresh_keys()

    @on(Table.Opened)
    def _opened(self, event: Table.Opened) -> None:
        if isinstance(event.table, Pane):
            self.app.open_page(event.table, event.key)

    def refresh_keys(self) -> None:
        """The echo and the footer for what is focused now."""
        if not self.is_ready:
            return
        pane = self.focused_pane
        self.query_one("#echo", Echo).say(self.app.echo_for(pane))
        self.query_one("#keys", Keys).show(self.app.keys_for(pane), self.app.right_note())


def _device_rows(view: View) -> int:
    return sum(max(1, len(node.devices)) for node in view.nodes) or 4
