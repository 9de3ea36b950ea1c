"""What a reading action answered, in a box to scroll: a record field by field, a list row by row, a log line by line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from gswarm.errors import GswarmError
from gswarm.views import detail, plain, printable, table

from .widgets.board import Board
from .widgets.spans import Spans

if TYPE_CHECKING:
    from .app import Console

MOST_LINES = 5000


def lines_of(result: Any) -> list[Spans]:
    """The lines of an answer."""
    if isinstance(result, str):
        return [((line, "text"),) for line in result.splitlines()]
    if callable(own := getattr(result, "lines", None)):
        return [((line, "text"),) for line in own()]
    rows = getattr(result, "rows", None)
    if isinstance(rows, list | tuple):
        result = rows
    if is_dataclass(result) and not isinstance(result, type):
        pairs = detail(result)
        width = max(len(label) for label, _ in pairs)
        return [((f"{label:<{width}}  ", "dim"), (printable(told), "text")) for label, told in pairs]
    if isinstance(result, Sequence) and not isinstance(result, bytes):
        if not result:
            return [(("nothing", "dim"),)]
        if is_dataclass(result[0]) and not isinstance(result[0], type):
            head, *rows = table(result, type(result[0]), now=getattr(result, "time", None))
            return [((head, "dim"),), *(((row, "text"),) for row in rows)]
        return [((plain(row), "text"),) for row in result]
    return [((plain(result), "text"),)]


def clean(line: str) -> str:
    """A line without what would move the cursor or change colours; of a progress bar, its last state."""
    line = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", line).rpartition("\r")[2]
    return "".join(c for c in line.expandtabs(4) if c.isprintable())


class Report(ModalScreen[None]):
    """An answer to read."""

    app: Console
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "leave", "Leave", show=False, id="report.leave"),
        Binding("down,j", "scroll(1)", "Down", show=False, id="report.down"),
        Binding("up,k", "scroll(-1)", "Up", show=False, id="report.up"),
        Binding("pagedown,space", "scroll(20)", "Page down", show=False, id="report.page_down"),
        Binding("pageup", "scroll(-20)", "Page up", show=False, id="report.page_up"),
    ]

    def __init__(
        self,
        title: str,
        lines: list[Spans],
        *,
        from_end: bool = False,
        stream: AsyncIterator[bytes | str] | None = None,
    ) -> None:
        super().__init__()
        self._stream = stream
        self._title, self._lines = title, lines[-MOST_LINES:]
        self._top = len(self._lines) if from_end else 0

    def compose(self) -> ComposeResult:
        yield Board(self.app.paint, self._title, id="report")

    def on_mount(self) -> None:
        self.call_after_refresh(self._draw)
        if self._stream is not None:
            self.run_worker(self._follow(self._stream), exit_on_error=False)

    async def _follow(self, stream: AsyncIterator[bytes | str]) -> None:
        """Lines as they come, until the report is left."""
        rest = ""
        try:
            async for piece in stream:
                rest += piece.decode(errors="replace") if isinstance(piece, bytes) else piece
                *whole, rest = rest.replace("\r\n", "\n").split("\n")
                self.add([((clean(line), "text"),) for line in whole])
        except GswarmError as error:
            rest += f"\n{error}"
        if rest:
            self.add([((clean(line), "text"),) for line in rest.split("\n")])

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def add(self, lines: list[Spans]) -> None:
        """More of it came in."""
        height = self.query_one("#report", Board).size.height
        at_end = self._top >= len(self._lines) - height
        self._lines = (self._lines + lines)[-MOST_LINES:]
        if at_end:
            self._top = len(self._lines)
        self._draw()

    def _draw(self) -> None:
        board = self.query_one("#report", Board)
        height = max(1, board.size.height)
        self._top = max(0, min(self._top, len(self._lines) - height))
        shown = self._lines[self._top : self._top + height]
        subtitle = f"{self._top + len(shown)} of {len(self._lines)} lines · esc leaves"
        board.put(tuple(shown), subtitle=subtitle)

    def action_scroll(self, by: int) -> None:
        self._top += by
        self._draw()

    def action_leave(self) -> None:
        self.dismiss(None)
