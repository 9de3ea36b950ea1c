"""What every page is: a breadcrumb, a body, the echo and the keys; esc goes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widget import Widget

from .. import figures
from ..view import View
from ..widgets.board import Board
from ..widgets.echo import Echo
from ..widgets.footer import Key, Keys
from ..widgets.line import Line
from ..widgets.spans import Spans
from ..widgets.table import Content, Row, Table
from ..widgets.totals import link_spans, replay_spans

if TYPE_CHECKING:
    from textual import events

    from ..app import Console
    from ..deeds import Deed


class Page(Screen[None]):
    """A page about one thing."""

    app: Console
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,left,h", "back", "Back", show=False, id="page.back"),
        *(
            Binding(str(n), f"app.go({n})", f"Pane {n}" if n else "Overview", show=False, id=f"page.pane.{n}")
            for n in range(8)
        ),
    ]
    domain: ClassVar[str] = ""

    def __init__(self, subject: str) -> None:
        super().__init__()
        self.subject = subject
        self.is_ready = False

    def compose(self) -> ComposeResult:
        yield Line(self.app.paint, id="crumbs")
        with Vertical(id="page-body"):
            yield from self.body()
        yield Echo(self.app.paint, id="echo")
        yield Keys(self.app.paint, id="keys")

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError

    def crumbs(self, view: View) -> Spans:
        raise NotImplementedError

    def draw(self, view: View) -> None:
        raise NotImplementedError

    def echo_line(self) -> str:
        return ""

    deed_keys: ClassVar[dict[str, str]] = {}
    """Keys of this page: key to the action's name."""

    def deeds(self) -> list[tuple[str, Deed]]:
        """The page's keys whose actions exist and can be done now."""
        return [(key, d) for key, name in self.deed_keys.items() if (d := self.app.deed(name)) is not None]

    def on_key(self, event: events.Key) -> None:
        """The page's action keys."""
        deed = next((d for key, d in self.deeds() if event.character == key), None)
        if deed is not None:
            event.stop()
            self.app.start_deed(deed)

    def values_for(self, deed: Deed) -> dict[str, Any]:
        """The fields of `deed` that this page's subject fills."""
        return {}

    def on_mount(self) -> None:
        self.is_ready = True
        self.call_after_refresh(self._again)

    def on_resize(self) -> None:
        if self.is_ready:
            self.call_after_refresh(self._again)

    def _again(self) -> None:
        if self.app.view is not None:
            self.show(self.app.view)

    def show(self, view: View) -> None:
        """Draw a tick's view."""
        if not self.is_ready:
            return
        t = view.totals
        clock = figures.clock(t.now, with_seconds=True)
        right: Spans = link_spans(t) if view.is_stale else (("● ", "ready"), (clock, "dim"))
        if view.replay is not None:
            right = replay_spans(view.replay, clock)
        self.query_one("#crumbs", Line).put(self.crumbs(view), right)
        self.draw(view)
        self.query_one("#echo", Echo).say(self.echo_line())
        keys = self.app.page_keys(self)
        self.query_one("#keys", Keys).show((*keys, Key("esc", "back"), Key("?", "help"), Key("q", "quit")))

    def repaint(self) -> None:
        for table in self.query(Table):
            table.repaint()
        for widget in (*self.query(Line), *self.query(Board)):
            widget.refresh()

    def action_back(self) -> None:
        self.app.pop_screen()


class Listing(Table):
    """A table inside a page, with a fixed title."""

    def __init__(self, page: Page, title: str, *, id: str) -> None:
        super().__init__(page.app.paint, id=id)
        self.add_class("pane")
        self.border_title = title

    def rows(self, content: Content) -> None:
        self.load(content)


__all__ = ["Listing", "Page", "Row"]
