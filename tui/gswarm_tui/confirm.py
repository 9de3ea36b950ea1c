"""Asks before what cannot be undone: the effect spelled out, `y` to go on, anything else to leave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from .deeds import Deed
from .effects import will_happen
from .widgets.board import Board

if TYPE_CHECKING:
    from .app import Console


class Confirm(ModalScreen[bool]):
    """Yes, or not."""

    app: Console
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", show=False, id="confirm.yes"),
        Binding("n,escape,enter,q", "answer(False)", "No", show=False, id="confirm.no"),
    ]

    def __init__(self, deed: Deed, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.deed, self.values = deed, dict(values)

    def compose(self) -> ComposeResult:
        yield Board(self.app.paint, self.deed.name, id="confirm")

    def on_mount(self) -> None:
        view = self.app.view
        effect = will_happen(self.deed, view, self.values) if view else self.deed.effect
        self.query_one("#confirm", Board).put(
            (
                ((effect[:1].upper() + effect[1:] + ".", "strong"),),
                (),
                (("$ ", "dim"), (self.deed.line(self.values), "text")),
                (),
                (("y", "key"), (" do it   ", "dim"), ("esc", "key"), (" leave it", "dim")),
            )
        )

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
