"""What every pane is: a table that turns a view into content, with its number, its domain and four designed states."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, ClassVar

from .. import figures
from ..snapshot import Link
from ..view import View
from ..widgets.spans import Spans
from ..widgets.table import Content, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.binding import Binding

    from ..deeds import Deed
    from ..themes import Paint


class Pane(Table):
    """One numbered pane. Subclasses give `draw`, and what to say while there is nothing."""

    number: ClassVar[int] = 0
    title: ClassVar[str] = ""
    domain: ClassVar[str] = ""
    """Catalogue domain whose keys work here."""
    extra_keys: ClassVar[dict[str, str]] = {}
    """Keys for actions of other domains: key to the action's name."""
    key_order: ClassVar[str] = ""
    """Keys as they stand in the footer, from the left; others follow."""
    kind: ClassVar[str] = ""
    """What a row is, as `Ref` names it."""
    detail: ClassVar[str] = ""
    """The action that shows one row, when it has no page."""
    filter_field: ClassVar[str] = "name"
    listing: ClassVar[str] = ""
    """The CLI line that lists the same."""
    empty: ClassVar[tuple[str, ...]] = ("nothing here yet",)
    """What to say while empty; lines that begin with `$ ` are commands."""

    def __init__(self, paint: Callable[[], Paint], bindings: list[Binding] | None = None) -> None:
        super().__init__(paint, id=f"pane-{self.number}")
        self.add_class("pane")
        self.view: View | None = None
        self.is_zoomed = False
        if bindings:
            from textual.binding import BindingsMap

            self._bindings = BindingsMap.merge([self._bindings, BindingsMap(bindings)])

    def draw(self, view: View, width: int, height: int) -> Content:
        """The pane's content for an inner size in cells."""
        raise NotImplementedError

    def show(self, view: View) -> None:
        """Draw `view`; loading, empty and stale states are handled here for every pane."""
        self.view = view
        width, height = self.size.width, self.size.height
        if width < 4 or height < 2:
            return
        self.load(self.compose_content(view, width, height))

    def compose_content(self, view: View, width: int, height: int) -> Content:
        heading = f"{self.number} {self.title}" if self.number else self.title
        if view.is_loading:
            lines: tuple[Spans, ...] = ((("◌ ", "changing"), (f"connecting to {view.totals.host}", "dim")),)
            if view.totals.problem:
                lines += ((("  " + view.totals.problem, "faint"),),)
            return Content(note=lines, title=heading)
        content = self.draw(view, width, height)
        title = content.title or heading
        subtitle = content.subtitle
        if view.totals.link is Link.STALE:
            aged = f"stale {figures.span(view.totals.age_s)}"
            subtitle = f"{aged} · {subtitle}" if subtitle else aged
        note = content.note or (() if content.rows else tuple(_hint(line) for line in self.empty))
        return Content(
            columns=content.columns,
            rows=content.rows,
            note=note,
            is_stale=view.is_stale,
            title=title,
            subtitle=subtitle,
        )

    def on_resize(self, event: object) -> None:
        if self.view is not None:
            self.show(self.view)
        self.repaint()

    def subject(self) -> str | None:
        """What an action of this pane is about: the name a person would type."""
        return self.cursor_key

    def values_for(self, deed: Deed) -> dict[str, Any]:
        """The fields of `deed` that the row under the cursor (or the marked rows) fill."""
        subject = self.subject()
        if subject is None:
            return {}
        for field in deed.fields:
            if field.ref == self.kind:
                return {field.name: [subject] if field.is_list else subject}
        return {}

    def can(self, deed: Deed) -> bool:
        """Whether `deed` makes sense on the row under the cursor."""
        needs = any(f.ref == self.kind and not f.is_option for f in deed.fields)
        return not needs or self.subject() is not None

    def echo(self) -> str:
        """The CLI line that shows the same."""
        if self.filter_text:
            return f"gswarm {self.listing} --filter {shlex.quote(f'{self.filter_field}~{self.filter_text}')}"
        subject = self.subject()
        return f"gswarm {self.detail} {shlex.quote(subject)}" if self.detail and subject else f"gswarm {self.listing}"


def _hint(line: str) -> Spans:
    if line.startswith("$ "):
        return (("$ ", "focus"), (line[2:], "text"))
    return ((line, "dim"),)
