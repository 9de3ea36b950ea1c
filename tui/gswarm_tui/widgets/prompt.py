"""The one-line prompt that filter, go and replay's jump share; it stands where the echo stands."""

from __future__ import annotations

from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.suggester import Suggester
from textual.widgets import Input, Label


class Prompt(Horizontal):
    """A mark, and an input without a frame."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._changed: Callable[[str], None] | None = None
        self._done: Callable[[str | None], None] | None = None
        self._history: list[str] = []

    def compose(self) -> ComposeResult:
        yield Label(":", id="prompt-mark")
        yield Input(id="prompt-input", compact=True)

    def open(
        self,
        mark: str,
        value: str,
        changed: Callable[[str], None] | None,
        done: Callable[[str | None], None],
        suggester: Suggester | None = None,
    ) -> None:
        """Ask; `changed` hears every letter, `done` the answer, or None when it was left."""
        self._changed, self._done = changed, done
        self.query_one("#prompt-mark", Label).update(mark)
        box = self.query_one("#prompt-input", Input)
        box.suggester = suggester
        box.value = value
        box.cursor_position = len(value)
        self.display = True
        self.screen.set_focus(box)  # at once: what is typed next is meant for it

    def cancel(self) -> None:
        self._close(None)

    def _close(self, text: str | None) -> None:
        done, self._done, self._changed = self._done, None, None
        self.display = False
        if done is not None:
            done(text)

    @on(Input.Changed)
    def _on_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self._changed is not None:
            self._changed(event.value)

    @on(Input.Submitted)
    def _on_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._close(event.value)
