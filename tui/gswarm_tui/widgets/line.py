"""One-row widgets drawn from spans: left part, right part, nothing between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.strip import Strip
from textual.widget import Widget

from .spans import Span, Spans, fit, strip, width

if TYPE_CHECKING:
    from ..themes import Paint


class Line(Widget):
    """A row of the screen. Shown again only when its spans change."""

    DEFAULT_CSS = "Line { height: 1; width: 1fr; }"

    def __init__(self, paint: Callable[[], Paint], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._paint = paint
        self._spans: Spans = ()

    def put(self, left: Spans, right: Spans = ()) -> None:
        """Show `left` and, at the right edge, `right`; the left part gives way first."""
        cells = self.size.width
        if not cells:
            return
        room = cells - 2 - (width(right) + 1 if right else 0)
        spans: tuple[Span, ...] = ((" ", "text"), *fit(left, max(0, room)))
        if right:
            spans = (*spans, (" ", "text"), *right, (" ", "text"))
        if spans != self._spans:
            self._spans = spans
            self.refresh()

    def render_line(self, y: int) -> Strip:
        return strip(self._spans, self._paint(), self.size.width)
