"""Models: size, state with glyph and word, tokens a second, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import figures
from ..view import ModelView, View
from ..widgets.spans import Spans
from ..widgets.table import Column, Content, Row
from .base import Pane

if TYPE_CHECKING:
    from ..deeds import Deed


class ModelsPane(Pane):
    """What can be served, and what is."""

    number = 2
    title = "Models"
    domain = "model"
    key_order = "sxdmcvbD"
    detail = "model info"
    listing = "model list"
    kind = "model"
    marks_simulated = True
    empty = ("no models yet; press d, or type", "$ gswarm model download NAME \\", "      --source file:///path")

    def draw(self, view: View, width: int, height: int) -> Content:
        has_where = width >= 58
        # name, size, state, tok/s (and where): what is over the state takes, being the only one with sentences
        all_simulated = bool(view.models) and all(m.is_simulated for m in view.models)
        self.marks_simulated = not all_simulated  # else the title says it for all
        mark = 4 if self.marks_simulated and any(m.is_simulated for m in view.models) else 0
        longest = max((len(m.name) + mark * m.is_simulated for m in view.models), default=0)
        name = min(max(longest + 1, 13), 16 if width < 58 else 28)
        state = width - 1 - name - 1 - 4 - 2 - 1 - 5
        if has_where:
            where = min(max(16, (width - 60) // 2 + 14), state // 2)
            state -= where + 2
        columns = [Column("MODEL", name, gap=0), Column("SIZE", 4, "right"), Column("STATE", state, gap=2)]
        columns.append(Column("TOK/S", 5, "right"))
        if has_where:
            columns.append(Column("WHERE", where, gap=2))
        rows = tuple(self._row(m, has_where) for m in view.models)
        ready = sum(m.state.word == "ready" for m in view.models)
        subtitle = f"{ready} ready of {len(rows)}" if rows else ""
        title = f"{self.number} {self.title}" + (" · SIM" if all_simulated else "")
        return Content(tuple(columns), rows, title=title, subtitle=subtitle)

    def _row(self, m: ModelView, has_where: bool) -> Row:
        quiet = m.state.tone.value == "dim"
        edge = ("▌", f"hue{m.hue % 8}") if m.hue is not None else (" ", "text")
        word = "dim" if m.state.word == "ready" or quiet else m.state.tone.value
        name: Spans = (edge, (m.name, "dim" if quiet else "text"))
        if m.is_simulated and self.marks_simulated:
            name = (*name, (" SIM", "faint"))
        cells: list[Spans] = [
            name,
            ((figures.size(m.size) if m.size else figures.NA, "dim" if quiet else "text"),),
            ((f"{m.state.glyph} ", m.state.tone.value), (m.state.word, "text" if m.state.word == "ready" else word)),
            ((figures.number(m.tokens_per_s), "text"),) if m.tokens_per_s is not None else (("", "text"),),
        ]
        if has_where:
            cells.append(((m.where, "dim"),))
        return Row(
            m.name,
            tuple(cells),
            values=(m.name, float(m.size), m.state.word, m.tokens_per_s or 0.0, m.where),
            search=m.where,
        )

    def values_for(self, deed: Deed) -> dict[str, Any]:
        """Stop and logs are about a model's service, the rest about the model."""
        key = self.cursor_key
        model = next((m for m in self.view.models if m.name == key), None) if self.view else None
        if model is None:
            return {}
        out: dict[str, Any] = {}
        for field in deed.fields:
            if field.ref == "model":
                out[field.name] = [model.name] if field.is_list else model.name
            elif field.ref == "service" and (names := [s.name for s in model.services if not s.stop]):
                out[field.name] = [names[0]] if field.is_list else names[0]
        return out

    def can(self, deed: Deed) -> bool:
        required = [f for f in deed.fields if f.is_required and f.ref in ("model", "service")]
        known = self.values_for(deed)
        return all(f.name in known for f in required) or deed.name == "model download"
