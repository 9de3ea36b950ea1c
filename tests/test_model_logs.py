"""Logs on their way to the host: a stream carries one log, and none for a host that has no reader of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from gswarm.model.logs import Logs
from gswarm.v1 import agent_pb2


class Lines:
    """Logs that grow by what is put in, and what of it was sent."""

    def __init__(self) -> None:
        self.grown: dict[str, asyncio.Queue[bytes]] = {name: asyncio.Queue() for name in ("a", "b")}
        self.sent: asyncio.Queue[agent_pb2.LogChunk] = asyncio.Queue()
        self.ended: set[str] = set()
        supervisor: Any = SimpleNamespace(read_log=self._read)
        link: Any = SimpleNamespace(log_chunk=self.sent.put_nowait)
        self.logs = Logs(supervisor, link)

    async def _read(self, service: str, tail_bytes: int, *, follow: bool) -> AsyncIterator[bytes]:
        try:
            while True:
                yield await self.grown[service].get()
        finally:
            self.ended.add(service)

    async def follow(self, service: str, line: bytes) -> None:
        """Read a log as stream 1 until its first line has come."""
        self.logs.read(agent_pb2.ReadLog(stream_id=1, service=service, follow=True))
        self.grown[service].put_nowait(line)
        async with asyncio.timeout(10):
            assert (await self.sent.get()).chunk == line

    async def over(self, service: str) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        assert service in self.ended and self.sent.empty(), "and no more is said of it"


async def test_a_stream_of_a_host_that_starts_again_carries_the_new_log_only() -> None:
    lines = Lines()
    await lines.follow("a", b"of a")
    await lines.follow("b", b"of b")  # under the same id
    await lines.over("a")
    lines.logs.read(agent_pb2.ReadLog(stream_id=1, cancel=True))
    await lines.over("b")


async def test_at_a_welcome_all_logs_end() -> None:
    lines = Lines()
    await lines.follow("a", b"of a")
    lines.logs.end()
    await lines.over("a")
