"""A service's log, sent to the host for as long as someone there reads it."""

from __future__ import annotations

import asyncio

from gswarm.client.link import Link
from gswarm.client.supervisor import Supervisor
from gswarm.errors import GswarmError
from gswarm.v1 import agent_pb2

TAIL_BYTES = 1 << 16


class Logs:
    """One task for each reader."""

    def __init__(self, supervisor: Supervisor, link: Link) -> None:
        self._supervisor, self._link = supervisor, link
        self._readers: dict[int, asyncio.Task[None]] = {}

    def read(self, request: agent_pb2.ReadLog) -> None:
        """Start or end sending a log; what was sent under the same id before ends."""
        if task := self._readers.pop(request.stream_id, None):
            task.cancel()
        if not request.cancel:
            self._readers[request.stream_id] = asyncio.create_task(self._send(request), name=f"log-{request.service}")

    def end(self) -> None:
        """End all: a host that welcomes us has no reader of before, and counts its streams from 1 again if it is new."""
        for task in self._readers.values():
            task.cancel()
        self._readers.clear()

    async def _send(self, request: agent_pb2.ReadLog) -> None:
        end = agent_pb2.LogChunk(stream_id=request.stream_id, end=True)
        try:
            tail = request.tail_bytes or TAIL_BYTES
            async for piece in self._supervisor.read_log(request.service, tail, follow=request.follow):
                self._link.log_chunk(agent_pb2.LogChunk(stream_id=request.stream_id, chunk=piece))
        except GswarmError as error:
            end.error = str(error)
        finally:
            if self._readers.get(request.stream_id) is asyncio.current_task():
                del self._readers[request.stream_id]
        self._link.log_chunk(end)
