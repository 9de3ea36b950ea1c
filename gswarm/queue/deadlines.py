"""What falls due in the queue: leases that no agent renews, retries whose pause is over."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gswarm.queue import transitions
from gswarm.queue.transitions import BACKOFF, LEASE_S, RUNNING
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2
from gswarm.v1.cluster_pb2 import Node
from gswarm.v1.queue_pb2 import Task

if TYPE_CHECKING:
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction


class Deadlines:
    """When each lease runs out and each pause ends; kept in memory, so after a host start every lease has a full term."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leases: dict[str, float] = {}
        self._pauses: dict[str, Task] = {}

    def leased(self, task_id: str) -> None:
        """An agent works on a task: its lease begins."""
        self._leases[task_id] = time.monotonic() + LEASE_S

    def pauses(self, task: Task) -> None:
        """A task waits to be tried again."""
        self._pauses[task.id] = task

    def forget(self, task_id: str) -> None:
        """A task is neither leased nor in a pause any longer."""
        self._leases.pop(task_id, None)
        self._pauses.pop(task_id, None)

    def renew(self, attempts: Iterable[agent_pb2.TaskAttempt]) -> None:
        """An agent still works on these."""
        for attempt in attempts:
            if attempt.task_id in self._leases:
                self.leased(attempt.task_id)

    def expire(self, task_id: str) -> None:
        """A lease did not reach its agent, or that one has left: it is taken back with what is due next."""
        if task_id in self._leases:
            self._leases[task_id] = 0.0

    async def meet(self) -> None:
        """Make ready again what has lost its lease, or has paused long enough."""
        now, wall = time.monotonic(), time.time()
        lost = [key for key, until in self._leases.items() if until < now]
        due = [key for key, task in self._pauses.items() if task.retry_at.seconds <= wall]
        if lost or due:
            await self._store.insist(lambda tx: _take_back(tx, lost, due), method="timers")


def _take_back(tx: Transaction, lost: list[str], due: list[str]) -> None:
    for key in lost:
        task = tx.edit(Task, key)
        if task is not None and task.phase == RUNNING:
            node = tx.get(Node, task.node)
            has_left = node is not None and node.phase == cluster_pb2.NODE_PHASE_LEFT
            why = f"{task.node} {'left' if has_left else 'did not renew its lease'}"
            tx.event("task.lost", f"task {key}: {why}", subject=task, severity=common_pb2.SEVERITY_WARNING)
            transitions.ready_again(tx, task, why)
    for key in due:
        task = tx.edit(Task, key)
        if task is not None and task.phase == BACKOFF:
            transitions.make_ready(tx, task)
