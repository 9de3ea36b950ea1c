"""One attached agent as the host holds it: who it is, what waits to be sent or applied, and the tasks that do so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from gswarm.host.clocks import Clock
from gswarm.v1 import agent_pb2

OUTBOX_LIMIT = 4096
"""Messages that may wait to be sent, and reports that may wait to be applied or are being applied."""
GROUP = 256
"""Reports applied in one transaction."""


@dataclass(eq=False, slots=True)
class Connection:
    """One attached agent. Made in the task that reads its stream; others run only while there is work for them, since
    of thousands of agents nearly all say nothing but ticks.
    """

    node: str
    incarnation: str
    outbox: str
    write: Callable[[agent_pb2.AttachResponse], Awaitable[None]]
    """Puts a message on the stream."""
    apply: Callable[[Connection, list[agent_pb2.Report]], Awaitable[None]]
    """Applies reports, `GROUP` at most, and acknowledges them."""
    tick_seq: int = 0
    tick_acked: int = 0
    tick_told: int = 0
    desired_due: bool = False
    clock: Clock = field(default_factory=Clock)
    _reader: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _outgoing: list[agent_pb2.AttachResponse] = field(default_factory=list)
    _writer: asyncio.Task[None] | None = None
    _reports: list[agent_pb2.Report] = field(default_factory=list)
    _applier: asyncio.Task[None] | None = None
    _room: asyncio.Event | None = None
    """What the reader waits for while too many reports are not applied."""
    _is_over: bool = False
    _error: BaseException | None = None

    async def __aenter__(self) -> None:
        """While the reader is inside, reading until the agent hangs up or is cut off. No coroutine of ours is held meanwhile."""

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """End what runs for it. Raises what applying raised; being cut off is an end like any other."""
        assert self._reader is not None
        is_cut = self._is_over and isinstance(error, asyncio.CancelledError) and not self._reader.uncancel()
        self._is_over = True
        tasks = [task for task in (self._writer, self._applier) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._error is not None and (error is None or is_cut):
            raise self._error
        return is_cut

    def cut(self) -> None:
        """End it from our side."""
        if not self._is_over:
            self._is_over = True
            assert self._reader is not None
            self._reader.cancel()

    def send(self, message: agent_pb2.AttachResponse) -> bool:
        """Queue a message; an agent that reads nothing for thousands of messages is cut off and attaches anew."""
        if len(self._outgoing) >= OUTBOX_LIMIT:
            self.cut()
        if self._is_over:
            return False
        self._outgoing.append(message)
        if self._writer is None:
            self._writer = self._start(self._write(), "write")
        return True

    async def _write(self) -> None:
        while self._outgoing:
            messages, self._outgoing = self._outgoing, []
            for message in messages:
                try:
                    await self.write(message)
                except Exception:  # gRPC has several for an agent that has gone
                    self.cut()
                    return
        self._writer = None

    async def report(self, report: agent_pb2.Report) -> None:
        """Queue a report to be applied; while too many are it waits for one group, since heartbeats come behind it."""
        self._reports.append(report)
        if self._applier is None:
            self._applier = self._start(self._apply(), "apply")
        elif len(self._reports) >= OUTBOX_LIMIT:
            self._room = asyncio.Event()
            await self._room.wait()

    async def _apply(self) -> None:
        while self._reports:
            group = self._reports[:GROUP]
            await self.apply(self, group)
            del self._reports[: len(group)]
            if self._room is not None:
                self._room.set()
                self._room = None
        self._applier = None

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"attach-{what}-{self.node}")
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self.cut()
