"""Waiting for what becomes of sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gswarm.profiler.types import Session, session_sealed
from tests.support.cluster import Cluster, seen

Accept = Callable[[Session], bool]


async def session(running: Cluster, name: str, accept: Accept, timeout: float = 30) -> Session:
    """A session once it is as wanted."""
    async with running.swarm.mirror((Session,), samples=False) as mirror:
        rows = await seen(mirror, lambda: mirror.rows(Session), lambda r: name in r and accept(r[name]), timeout)
        return rows[name]


async def until(true: Callable[[], bool]) -> None:
    """For what gives no sign: another process's files, the far end of a stream."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def sealed(running: Cluster, name: str) -> Session:
    return await running.swarm.wait(session_sealed, await running.swarm.profiler.stop(name), timeout=60)
