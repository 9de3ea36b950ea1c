"""Data: chunks with type, size, references and age; `!` marks those held long and never read."""

from __future__ import annotations

from functools import partial

from .. import figures
from ..view import ChunkView, View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Later, Row
from .base import Pane


class DataPane(Pane):
    """Shared data and who holds it."""

    number = 3
    title = "Data"
    domain = "data"
    key_order = "pgtaD"
    detail = "data info"
    filter_field = "id"
    listing = "data list"
    kind = "chunk"
    empty = ("no data yet", "$ gswarm data put FILE", "or press p")

    def draw(self, view: View, width: int, height: int) -> Content:
        has_where = width >= 44
        identity = 4 if width < 60 else 16
        length = _unique(view, identity)
        used = 1 + length + 1 + 1 + 4 + 1 + 4 + 1 + 1 + 4
        where = (width - used) // 3 if has_where else 0
        kind = width - used - (where + 2 if where else 0)
        columns = [
            Column("ID", length, gap=0),
            Column("TYPE", kind),
            Column("SIZE", 4, "right"),
            Column("REFS", 4, "right"),
            Column("", 1, gap=0),
            Column("AGE", 5, "right", gap=0),
        ]
        if where:
            columns.append(Column("WHERE", where, gap=2))
        unread = sum(c.is_unread for c in view.chunks)
        subtitle = f"{len(view.chunks)}" + (f" · ! {unread} held, unread" if unread else "") if view.chunks else ""
        return Content(
            tuple(columns),
            tuple(Later(c.id, partial(self._row, c, length, bool(where))) for c in view.chunks),
            subtitle=subtitle,
        )

    def _row(self, c: ChunkView, length: int, has_where: bool) -> Row:
        tone = "changing" if c.is_unread else "text"
        cells: list[Spans] = [
            ((c.id[:length], "text"),),
            ((c.kind, "dim"),),
            ((figures.size(c.size), "text"),),
            ((str(c.references), "text"),),
            (("!" if c.is_unread else " ", "changing"),),
            ((figures.span(c.age_s), tone if c.is_unread else "dim"),),
        ]
        if has_where:
            cells.append(((c.where, "dim"),))
        return Row(
            c.id,
            tuple(cells),
            values=(c.id, c.kind, float(c.size), float(c.references), 0.0, c.age_s, c.where),
            search=f"{c.id} {c.chunk.name} {c.where} {' '.join(h.name for h in c.chunk.holders)}",
        )


def _unique(view: View, least: int) -> int:
    """How many letters of an id tell all chunks apart."""
    ids = [c.id for c in view.chunks]
    for length in range(least, 16):
        if len({i[:length] for i in ids}) == len(set(ids)):
            return length
    return 16
