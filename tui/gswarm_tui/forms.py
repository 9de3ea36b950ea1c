"""Forms made from an action's signature: fields with live choices, inline errors, what will happen, the CLI line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from gswarm.errors import GswarmError

from .deeds import Deed, Field
from .effects import Choice, choices, will_happen
from .widgets.board import Board
from .widgets.spans import Spans

if TYPE_CHECKING:
    from textual import events

    from .app import Console

MOST_CHOICES = 6


class Entry(Input):
    """A field's input: up and down walk its choices instead of the text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "choose(1)", "Next choice", show=False, id="form.next_choice"),
        Binding("up", "choose(-1)", "Previous choice", show=False, id="form.previous_choice"),
    ]

    def __init__(self, field: Field, value: str) -> None:
        super().__init__(value=value, id=f"field-{field.name.strip('_')}", compact=True, placeholder=_hint(field))
        self.field = field

    def action_choose(self, step: int) -> None:
        form = self.screen
        if isinstance(form, Form):
            form.choose(self, step)


def _hint(field: Field) -> str:
    if field.is_required:
        return "needed"
    shown = field.show(field.default)
    return shown or "optional"


class Form(ModalScreen[Any]):
    """Asks for an action's values and runs it. Never more than one screen."""

    app: Console
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave", show=False, id="form.leave"),
        # Before all else, so that what is typed right behind a tab reaches the next field.
        Binding("tab", "app.focus_next", "Next field", show=False, id="form.next", priority=True),
        Binding("shift+tab", "app.focus_previous", "Previous field", show=False, id="form.previous", priority=True),
        Binding("enter", "run", "Run", show=False, id="form.run", priority=True),
        Binding("ctrl+y", "app.copy_line", "Copy the CLI line", show=False, id="form.copy"),
    ]

    def __init__(self, deed: Deed, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.deed = deed
        self.given = dict(values)
        self.errors: dict[str, str] = {}
        self.failure = ""
        self.is_running_deed = False
        self._picked: dict[str, int] = {}
        self._prefix: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        paint = self.app.paint
        with Vertical(id="form"):
            yield Board(paint, f"{self.deed.name}", id="form-head")
            with VerticalScroll(id="form-fields", can_focus=False):
                for field in self.deed.fields:
                    with Horizontal(classes="form-row"):
                        yield Label(field.label, classes="form-label")
                        value = self.given.get(field.name)
                        yield Entry(field, field.show(value) if value is not None else "")
            yield Board(paint, "choices", id="form-choices")
            yield Board(paint, "what will happen", id="form-effect")

    def on_mount(self) -> None:
        entries = list(self.query(Entry))
        empty = next((e for e in entries if e.field.is_required and not e.value), None)
        optional = next((e for e in entries if not e.value and e.field.ref), None)
        target = empty or optional or (entries[0] if entries else None)
        if target is not None:
            target.focus()
        rows = max(1, min(len(entries), self.app.size.height - 18))
        self.query_one("#form-fields").styles.height = rows
        self.call_after_refresh(self._draw)

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._draw)

    # What is typed

    def values(self) -> dict[str, Any]:
        """What the inputs hold; fields that cannot be read are left out and noted in `errors`."""
        out: dict[str, Any] = {}
        self.errors = {}
        for entry in self.query(Entry):
            try:
                out[entry.field.name] = entry.field.read(entry.value)
            except ValueError as error:
                self.errors[entry.field.name] = str(error)
        return out

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self.failure = ""
        if isinstance(event.input, Entry) and event.input.has_focus:
            self._picked.pop(event.input.field.name, None)
        self._draw()

    def on_descendant_focus(self) -> None:
        self._draw()

    def _choices(self, entry: Entry) -> tuple[Choice, ...]:
        view = self.app.view
        if view is None:
            return ()
        known = self.values()
        found = choices(self.deed, entry.field, view, known)
        typed = self._prefix.get(entry.field.name, "") if entry.field.name in self._picked else entry.value
        last = typed.replace(",", " ").split(" ")[-1].lower() if entry.field.is_list else typed.lower()
        exact = any(c.value.lower() == last for c in found)
        return found if exact or not last else tuple(c for c in found if last in c.value.lower())

    def choose(self, entry: Entry, step: int) -> None:
        """Walk the choices of a field with the arrows."""
        name = entry.field.name
        if name not in self._picked:
            self._prefix[name] = entry.value
        found = self._choices(entry)
        if not found:
            return
        at = self._picked.get(name, -1 if step > 0 else 0) + step
        at %= len(found)
        self._picked[name] = at
        value = found[at].value
        if entry.field.is_list:
            kept = self._prefix[name].replace(",", " ").split(" ")[:-1]
            value = " ".join([*kept, value])
        with entry.prevent(Input.Changed):
            entry.value = value
        entry.cursor_position = len(value)
        self._draw()

    # Drawing

    def _draw(self) -> None:
        view = self.app.view
        if view is None or not self.is_attached:
            return
        values = self.values()
        head: list[Spans] = [((self.deed.summary, "text"),)]
        self.query_one("#form-head", Board).put(tuple(head))
        focused = self.focused if isinstance(self.focused, Entry) else None
        self._draw_choices(focused)
        line = self.deed.line({**{f.name: f.default for f in self.deed.fields}, **values})
        lines: list[Spans] = []
        touched = {e.field.name: msg for e in self.query(Entry) if (msg := self.errors.get(e.field.name)) and e.value}
        for entry in self.query(Entry):
            entry.set_class(entry.field.name in touched, "-wrong")
        if self.failure:
            lines.append((("× ", "failed"), (self.failure, "failed")))
        elif touched:
            name, message = next(iter(touched.items()))
            lines.append((("× ", "failed"), (f"{name.strip('_').replace('_', ' ')}: {message}", "failed")))
        elif self.is_running_deed:
            lines.append((("◐ ", "changing"), ("asking the host", "changing")))
        else:
            lines.append(((will_happen(self.deed, view, values), "text"),))
        lines.append((("$ ", "dim"), (line, "text")))
        lines.append((("enter", "key"), (" run  ", "dim"), ("tab", "key"), (" next field  ", "dim"), ("↑↓", "key"),
                      (" choices  ", "dim"), ("esc", "key"), (" leave", "dim")))  # fmt: skip
        self.query_one("#form-effect", Board).put(tuple(lines))

    def _draw_choices(self, entry: Entry | None) -> None:
        board = self.query_one("#form-choices", Board)
        if entry is None:
            board.put(())
            return
        board.border_title = entry.field.label
        found = self._choices(entry)
        at = self._picked.get(entry.field.name, -1)
        first = max(0, min(at - MOST_CHOICES // 2, len(found) - MOST_CHOICES))
        lines: list[Spans] = [((entry.field.doc or entry.field.label, "dim"),)]
        for i, choice in list(enumerate(found))[first : first + MOST_CHOICES]:
            mark = "+" if i == at else ""
            tone = "faint" if choice.lacking else "text"
            note = choice.lacking or choice.note
            lines.append(
                ((f"{choice.value:<20.40}", f"{tone}{mark}"), (f" {note}", "faint" if choice.lacking else "dim"))
            )
        hidden = len(found) - first - MOST_CHOICES
        board.put(tuple(lines), subtitle=f"{hidden} more" if hidden > 0 else "")

    # Keys

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_run(self) -> None:
        """Run it once the letters typed before enter have reached their field."""
        (self.focused or self).call_later(self._submit)

    def _submit(self) -> None:
        """Run it, if every field can be read."""
        if self.is_running_deed or not self.is_current:
            return
        values = self.values()
        if self.errors:
            name, message = next(iter(self.errors.items()))
            self.failure = f"{name.strip('_').replace('_', ' ')} {message}"
            wrong = next((e for e in self.query(Entry) if e.field.name == name), None)
            if wrong is not None:
                wrong.focus()
            self._draw()
            return
        if self.deed.is_destructive:
            from .confirm import Confirm

            self.app.push_screen(Confirm(self.deed, values), self._confirmed)
            return
        self.is_running_deed = True
        self._draw()
        self.run_worker(self._run(values), exit_on_error=False)

    def _confirmed(self, yes: bool | None) -> None:
        if yes:
            self.is_running_deed = True
            self.run_worker(self._run(self.values()), exit_on_error=False)

    async def _run(self, values: dict[str, Any]) -> None:
        try:
            result = await self.app.perform(self.deed, values)
        except GswarmError as error:
            self.failure = str(error)
            self.is_running_deed = False
            wrong = next((e for e in self.query(Entry) if error.field and e.field.name == error.field), None)
            if wrong is not None:
                wrong.focus()
            self._draw()
            return
        self.dismiss(result)
