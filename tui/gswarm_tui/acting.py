"""How the console acts: which actions can be done now, what they still ask, how they are run and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.binding import Binding

from gswarm.errors import GswarmError

from .deeds import Deed, find
from .feed import Feed
from .overview import Overview
from .pages.page import Page
from .panes.base import Pane
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence


class Acting(App[None]):
    """An app that does what the catalogue offers."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self.feed = feed
        self.snapshot = Snapshot(host=feed.host)
        self.is_read_only = False
        self.done_line = ""
        """The CLI line of what was done last."""
        self.done_at: tuple[str | None, str | None] | None = None
        """Pane and row it was done at; None: not looked at yet."""
        self._deeds: tuple[Deed, ...] | None = None

    @property
    def base_screen(self) -> Overview | Page | None:
        """The topmost screen that is no overlay."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, Overview | Page)), None)

    def open_subject(self, kind: str, key: str) -> bool:
        """The page of a device or a task."""
        raise NotImplementedError

    @property
    def deeds(self) -> tuple[Deed, ...]:
        """The catalogue's actions, read at first use."""
        if self._deeds is None:
            self._deeds = self.feed.deeds()
        return self._deeds

    def possible_deeds(self) -> tuple[Deed, ...]:
        """What can be done now: all of it when live, reading only in a replay or read-only."""
        reads_only = self.is_read_only or not self.feed.can_act
        return tuple(d for d in self.deeds if d.is_read or not reads_only)

    def deed(self, name: str) -> Deed | None:
        return next((d for d in self.possible_deeds() if d.name == name), None)

    def pane_bindings(self, pane: type[Pane]) -> list[Binding]:
        """A pane's action keys as bindings with ids, so that users can remap them."""
        return [
            Binding(_key_code(key), f"app.deed('{d.name}')", d.summary, show=False, id=f"{pane.kind}.{d.id}")
            for key, d in self.pane_deeds(pane)
        ]

    def pane_deeds(self, pane: type[Pane]) -> list[tuple[str, Deed]]:
        names = dict(pane.extra_keys)
        taken = set(names)
        out = [(key, d) for key, name in names.items() if (d := next((x for x in self.deeds if x.name == name), None))]
        out += [(d.key, d) for d in self.deeds if d.domain == pane.domain and d.key and d.key not in taken]
        order = pane.key_order
        return sorted(out, key=lambda pair: order.find(pair[0]) if pair[0] in order else len(order))

    def values_for(self, deed: Deed) -> dict[str, Any]:
        """What the focused row already says about an action's fields."""
        screen = self.base_screen
        if isinstance(screen, Page):
            return screen.values_for(deed)
        pane = screen.focused_pane if isinstance(screen, Overview) else None
        return pane.values_for(deed) if pane is not None else {}

    def action_deed(self, name: str) -> None:
        """A pane's key."""
        deed = self.deed(name)
        if deed is None:
            why = "read-only: ! switches it off" if self.is_read_only else "a replay changes nothing"
            self.notify(why, timeout=4)
            return
        self.start_deed(deed)

    def start_deed(self, deed: Deed, values: Mapping[str, Any] | None = None) -> None:
        """Ask what is missing, confirm what destroys, run the rest at once."""
        known = {**self.values_for(deed), **(values or {})}
        if deed.name in ("queue explain", "device show") and self._open_subject(deed, known):
            return
        lacking = [f for f in deed.fields if f.name not in known]
        needs_form = any(f.is_required for f in lacking) or (lacking and not deed.is_read and values is None)
        if deed.is_destructive and not any(f.is_required for f in lacking):
            from .confirm import Confirm

            def confirmed(yes: bool | None) -> None:
                if yes:
                    self.run_worker(self._perform_shown(deed, known), exit_on_error=False)

            self.push_screen(Confirm(deed, known), confirmed)
        elif needs_form:
            from .forms import Form

            self.push_screen(Form(deed, known), lambda result: self._show_result(deed, result))
        else:
            self.run_worker(self._perform_shown(deed, known), exit_on_error=False)

    def _open_subject(self, deed: Deed, known: Mapping[str, Any]) -> bool:
        subject = next((known[f.name] for f in deed.fields if f.ref in ("task", "device") and f.name in known), None)
        if isinstance(subject, list):
            subject = subject[0] if subject else None
        if subject is None:
            return False
        if deed.name == "queue explain":
            return self.open_subject("task", str(subject))
        device = next((d.id for d in self.snapshot.devices.values() if subject in (d.id, d.alias)), None)
        return device is not None and self.open_subject("device", device)

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        """Run an action; GswarmError says what went wrong."""
        given = {f.name: values[f.name] for f in deed.fields if f.name in values}
        if deed.verb == "logs" and deed.field("follow") is not None:
            given.setdefault("follow", True)
        try:
            result = await self.feed.perform(deed, given)
        except (GswarmError, asyncio.CancelledError):
            raise
        except Exception as error:  # nothing that an action does wrong may end the console
            self.log(error)
            why = f"{type(error).__name__}: {error}"
            raise GswarmError(f"{deed.name} broke inside gswarm", why=why, next="please report it") from error
        self.done_line, self.done_at = deed.line(given), None
        return result

    async def _perform_shown(self, deed: Deed, values: Mapping[str, Any]) -> None:
        try:
            result = await self.perform(deed, values)
        except GswarmError as error:
            self.notify(str(error), title=deed.name, severity="error", timeout=10)
            return
        self._show_result(deed, result if result is not None else "done")

    def _show_result(self, deed: Deed, result: Any) -> None:
        if result is None:
            return
        if deed.is_read:
            from .report import Report, lines_of

            if hasattr(result, "__aiter__"):
                self.push_screen(Report(deed.name, [], from_end=True, stream=result))
            else:
                self.push_screen(Report(deed.name, lines_of(result)))
        else:
            name = getattr(result, "name", "") or getattr(result, "id", "")
            self.notify(f"{deed.name} {name}: accepted".replace(" :", ":"), timeout=4)

    def run_line(self, words: Sequence[str]) -> bool:
        """Run or ask for the action that `words` name; False if they name none."""
        found = find(self.possible_deeds(), words)
        if found is None:
            return False
        deed, rest = found
        try:
            values = deed.parse(rest)
        except ValueError as error:
            self.notify(str(error), severity="error", timeout=6)
            return True
        self.start_deed(deed, values)
        return True


def _key_code(key: str) -> str:
    return {"+": "plus", "-": "minus", "!": "exclamation_mark", "?": "question_mark"}.get(key, key)
