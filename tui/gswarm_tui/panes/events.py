"""Events: who did what, when, and how it ended; newest first."""

from __future__ import annotations

from gswarm.cluster.types import Event, Severity

from .. import figures
from ..view import View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Row
from .base import Pane

_MARKS = {Severity.ERROR: ("×", "failed"), Severity.WARNING: ("▲", "changing"), Severity.INFO: ("·", "dim")}


class EventsPane(Pane):
    """The event log."""

    number = 7
    title = "Events"
    domain = "event"
    filter_field = "message"
    listing = "event list"
    kind = "event"
    empty = ("nothing has happened yet",)

    def draw(self, view: View, width: int, height: int) -> Content:
        kind = 20 if width >= 96 else 16
        who = 12 if width >= 96 else 8
        columns = (
            Column("TIME", 8, gap=0),
            Column("", 1),
            Column("TYPE", kind),
            Column("WHO", who),
            Column("WHAT", max(10, width - 8 - kind - who - 7)),
        )
        return Content(columns, tuple(self._row(e) for e in view.events), subtitle=f"{len(view.events)}")

    def _row(self, e: Event) -> Row:
        glyph, tone = _MARKS.get(e.severity, ("·", "dim"))
        cells: tuple[Spans, ...] = (
            ((figures.clock(e.time, with_seconds=True), "dim"),),
            ((glyph, tone),),
            ((e.type, "text" if tone == "dim" else tone),),
            ((e.actor, "dim"),),
            ((e.message, "text"),),
        )
        number = float(e.id) if e.id.isdigit() else 0.0
        return Row(e.id, cells, values=(number, tone, e.type, e.actor, e.message), search=f"{e.subject} {e.cause}")
