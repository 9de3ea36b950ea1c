"""The console on a fake swarm with a clock of its own, and what stands on its screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gswarm_tui.app import Console
from gswarm_tui.feed import capture
from gswarm_tui.model_state import build
from gswarm_tui.view import View
from textual.pilot import Pilot

from tests.support.swarm import FakeFeed, FakeSwarm


@asynccontextmanager
async def console(
    width: int = 120, height: int = 40, *, swarm: FakeSwarm | None = None, **options: Any
) -> AsyncIterator[tuple[Console, FakeFeed, Pilot[None]]]:
    """A console that runs, the feed it follows, and the keys to it."""
    feed = FakeFeed(swarm or FakeSwarm())
    app = Console(feed, **options)
    async with app.run_test(size=(width, height)) as pilot:
        await pilot.pause()
        yield app, feed, pilot


def screen(app: Console) -> list[str]:
    """What stands on the screen, line by line."""
    update = app.screen._compositor.render_full_update()
    return ["".join(segment.text for strip in line for segment in strip) for line in update.strips]


def at(app: Console) -> type:
    """What kind of screen is on top."""
    return type(app.screen)


def text(app: Console) -> str:
    """All of it, to look for words in."""
    return "\n".join(screen(app))


async def tick(feed: FakeFeed, pilot: Pilot[None]) -> None:
    """A new snapshot, drawn."""
    feed.push()
    await pilot.pause()


def view_of(swarm: FakeSwarm) -> View:
    """What the console makes of a swarm, before anything is drawn."""
    return build(capture(swarm.data, host="h", now=swarm.now))
