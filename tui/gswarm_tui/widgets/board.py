"""A framed block of painted lines: gauges, ledgers, sentences. Lines are drawn again only when they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from .spans import Spans, fit, strip

if TYPE_CHECKING:
    from ..themes import Paint


class Board(Widget):
    """Lines of spans in a frame; a class of its own sets its size."""

    def __init__(self, paint: Callable[[], Paint], title: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.add_class("board")
        self._paint = paint
        self.border_title = title
        self.lines: tuple[Spans, ...] = ()
        self.is_stale = False

    def put(self, lines: tuple[Spans, ...], *, subtitle: str = "", is_stale: bool = False) -> None:
        """Show `lines`; the subtitle stands in the lower border."""
        before, self.lines = self.lines, lines
        if (self.border_subtitle or "") != subtitle:
            self.border_subtitle = subtitle
        if is_stale != self.is_stale or len(before) != len(lines):
            self.is_stale = is_stale
            self.refresh()
            return
        for y, (old, new) in enumerate(zip(before, lines, strict=True)):
            if old != new:
                self.refresh(Region(0, y, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        spans = self.lines[y] if y < len(self.lines) else ()
        width = self.size.width
        suffix = "~" if self.is_stale else ""
        return strip(((" ", "text"), *fit(spans, max(0, width - 1))), self._paint(), width, suffix=suffix)
