"""The palette (ctrl+p): the actions that can be done now, the panes, the themes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from .layout import TITLES

if TYPE_CHECKING:
    from .app import Console


class Actions(Provider):
    """Everything that can be done now, by name or by what it does."""

    def _entries(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        app = cast("Console", self.app)
        for deed in app.possible_deeds():
            yield deed.name, deed.summary, partial(app.start_deed, deed)
        yield "go overview", "all panes at once", partial(app.action_go, 0)
        for number, title in TITLES.items():
            yield f"go {title.lower()}", f"pane {number} in full", partial(app.action_go, number)
        for name in app.theme_names():
            yield f"theme {name}", "change the colours", partial(app.change_theme, name)
        yield "redraw", "draw the whole screen again", app.action_redraw
        yield "help", "the keys that work here", app.action_help
        yield "quit", "leave the console; nothing stops", app.exit

    async def discover(self) -> Hits:
        for name, summary, run in self._entries():
            yield DiscoveryHit(name, run, help=summary)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, summary, run in self._entries():
            score = matcher.match(name)
            if score <= 0:
                score = matcher.match(f"{name} {summary}") * 0.6
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=summary)
