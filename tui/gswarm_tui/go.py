"""`:` goes to a pane, a device, a task or a model, or runs an action; completion for it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from textual.suggester import Suggester

from .layout import TITLES
from .overview import Overview

if TYPE_CHECKING:
    from .app import Console

PANES = {"overview": 0, **{title.lower(): number for number, title in TITLES.items()}}


def go(app: Console, text: str) -> None:
    """Follow what was typed, or say what would have been understood."""
    try:
        words = shlex.split(text)
    except ValueError:
        app.notify("a quote is not closed", severity="error")
        return
    if not words:
        return
    word = words[0].lower()
    if len(words) == 1:
        if word in ("q", "quit"):
            app.exit()
            return
        if word in PANES or (word.isdigit() and len(word) == 1 and int(word) in PANES.values()):
            app.action_go(PANES[word] if word in PANES else int(word))
            return
        device = next((d.id for d in app.snapshot.devices.values() if words[0] in (d.id, d.alias)), None)
        if device is not None:
            app.open_subject("device", device)
            return
        if app.open_subject("task", words[0]):
            return
        if words[0] in app.snapshot.models:
            app.action_go(2)
            screen = app.base_screen
            if isinstance(screen, Overview):
                screen.pane(2).move_to_key(words[0])
            return
    if words[0] == "theme" and len(words) == 2 and words[1] in app.theme_names():
        app.change_theme(words[1])
    elif not app.run_line(words):
        app.notify(
            f"{text} is no pane, device, task, model or action. Try :queue, or ctrl+p for all there is",
            severity="error",
            timeout=6,
        )


class Completion(Suggester):
    """The first thing that what was typed could become: earlier commands, panes, devices, models, actions."""

    def __init__(self, app: Console) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._app = app

    async def get_suggestion(self, value: str) -> str | None:
        app = self._app
        names = [*reversed(app.commands), *PANES]
        names += [d.name for d in app.possible_deeds()]
        names += [d.alias for d in app.snapshot.devices.values()]
        names += [*app.snapshot.models, *app.snapshot.tasks]
        return next((n for n in names if n.startswith(value) and n != value), None) if value else None
