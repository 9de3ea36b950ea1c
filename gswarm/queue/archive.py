"""Finished workflows leave the watched state, oldest first, once it holds enough finished tasks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gswarm.queue import transitions
from gswarm.v1 import queue_pb2
from gswarm.v1.queue_pb2 import Task, Workflow

if TYPE_CHECKING:
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction

FINISHED_WATCHED = 1_000


class Archive:
    """Workflows that have ended, in that order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: dict[str, None] = {}

    def learn(self, workflow: Workflow) -> None:
        """Remember a workflow once it has ended; one that was put back to work and ended again comes last."""
        if workflow.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE:
            self._ended.pop(workflow.id, None)
            self._ended[workflow.id] = None

    async def tidy(self, unfinished: int) -> None:
        """Archive what is over the limit; `unfinished` of the watched tasks have not ended."""
        state = self._store.state
        watched = state.count(Task) - unfinished
        while watched > FINISHED_WATCHED and self._ended:
            name = next(iter(self._ended))
            del self._ended[name]
            workflow = state.get(Workflow, name)
            if workflow is None:
                continue
            watched -= workflow.tasks
            await self._store.insist(partial(_archive, workflow_id=name), method="archive")


def _archive(tx: Transaction, workflow_id: str) -> None:
    workflow = tx.get(Workflow, workflow_id)
    if workflow is None or workflow.phase == queue_pb2.WORKFLOW_PHASE_ACTIVE:
        return
    for task in list(transitions.siblings(tx, workflow)):
        tx.archive(Task, task.id)
    tx.delete(Workflow, workflow_id)
