"""One attached agent as the host holds it: who it is, and what waits to be sent or applied."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gswarm.host.clocks import Clock
from gswarm.v1 import agent_pb2

OUTBOX_LIMIT = 4096


@dataclass(eq=False, slots=True)
class Connection:
    """One attached agent: what waits to be sent, and when it was last heard."""

    node: str
    incarnation: str
    outbox: str
    queue: asyncio.Queue[agent_pb2.AttachResponse] = field(default_factory=lambda: asyncio.Queue(OUTBOX_LIMIT))
    reports: asyncio.Queue[agent_pb2.Report] = field(default_factory=lambda: asyncio.Queue(OUTBOX_LIMIT))
    tick_seq: int = 0
    tick_acked: int = 0
    tick_told: int = 0
    desired_due: bool = False
    clock: Clock = field(default_factory=Clock)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: agent_pb2.AttachResponse) -> bool:
        """Queue a message; an agent that reads nothing for thousands of messages is cut off and attaches anew."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.closed.set()
            return False
        return True
