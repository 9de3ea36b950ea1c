"""Help for where you are: the keys that work here, from the bindings themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from .widgets.board import Board
from .widgets.spans import Spans

if TYPE_CHECKING:
    from .app import Console

_NAMES = {
    "slash": "/", "question_mark": "?", "colon": ":", "less_than_sign": "<", "greater_than_sign": ">", "escape": "esc",
    "plus": "+", "minus": "-", "comma": ",", "full_stop": ".", "left_square_bracket": "[", "right_square_bracket": "]",
    "exclamation_mark": "!", "space": "space", "up": "↑", "down": "↓", "left": "←", "right": "→",
}  # fmt: skip


def key_name(keys: str) -> str:
    """A binding's keys as they stand on the keyboard."""
    names = []
    for key in keys.split(","):
        head, _, last = key.rpartition("+")
        shown = _NAMES.get(last, last)
        names.append(f"^{shown}" if head == "ctrl" else f"{head}+{shown}" if head else shown)
    return " ".join(names)


def shortened(words: str, cells: int) -> str:
    """As many whole words as there is room for, and a mark that there were more."""
    if len(words) <= cells:
        return words
    return f"{words[:cells].rpartition(' ')[0].rstrip(',')}…"


class Help(ModalScreen[None]):
    """What can be pressed here. Esc, enter or ? leaves."""

    app: Console
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,question_mark,q", "leave", "Leave", show=False, id="help.leave"),
        Binding("down,j", "scroll(1)", "Down", show=False, id="help.down"),
        Binding("up,k", "scroll(-1)", "Up", show=False, id="help.up"),
    ]

    def __init__(self, title: str, keys: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        # The rest of an action's summary is for --help; here there is room for what it does.
        self._keys = [(key, re.split("[;:] ", words)[0]) for key, words in keys]
        self._title, self._top = title, 0

    def compose(self) -> ComposeResult:
        yield Board(self.app.paint, self._title, id="help")

    def on_mount(self) -> None:
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        board = self.query_one("#help", Board)
        height, cells = max(1, board.size.height), max(20, board.size.width - 2)
        columns = 2 if cells >= 84 else 1
        lines: list[Spans] = []
        per = -(-len(self._keys) // columns)
        width = cells // columns
        for i in range(per):
            line: list[tuple[str, str]] = []
            for column in range(columns):
                at = column * per + i
                if at < len(self._keys):
                    key, words = self._keys[at]
                    line += [(f"{key:>12.12}  ", "key"), (f"{shortened(words, width - 15):<{width - 14}}", "text")]
            lines.append(tuple(line))
        self._top = max(0, min(self._top, len(lines) - height))
        board.put(tuple(lines[self._top : self._top + height]), subtitle="esc leaves")

    def action_scroll(self, by: int) -> None:
        self._top += by
        self._draw()

    def action_leave(self) -> None:
        self.dismiss(None)
