"""The host's side of the queue: RPCs over the store, reports of attempts, and the dispatcher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.host.auth import caller
from gswarm.names import near
from gswarm.queue import transitions
from gswarm.queue.dispatcher import Dispatcher
from gswarm.queue.workflow import validate
from gswarm.v1 import agent_pb2, queue_pb2, queue_pb2_grpc
from gswarm.v1.queue_pb2 import Task, Workflow

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.transaction import Transaction

Context = grpc.aio.ServicerContext[Any, Any]
WORKFLOWS_AT_ONCE = 1_000
HISTORY_LIMIT = 1_000


class QueueService(queue_pb2_grpc.QueueServicer):
    """Workflows and tasks."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store, self.nodes = host, host.store, host.nodes
        self.dispatcher = Dispatcher(host)
        self._submitting = 0
        host.nodes.reports.handle("task", transitions.reported)
        host.nodes.reports.handle_progress(self._progressed)
        host.nodes.handle_hello(_hello)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        queue_pb2_grpc.add_QueueServicer_to_server(self, server)

    async def run(self) -> None:
        """Dispatch until cancelled."""
        await self.dispatcher.run()

    def _progressed(self, tx: Transaction, node: str, progress: agent_pb2.Progress) -> None:
        self.dispatcher.renewed(progress.running)

    async def Submit(self, request: queue_pb2.SubmitRequest, context: Context) -> queue_pb2.SubmitResponse:
        """Accept workflows whole, or none."""
        check(request)
        asked, known = transitions.asked_tasks(request), len(self.dispatcher.unfinished) + self._submitting
        operation = transitions.submit(request, unfinished=known, limit=self.host.config.host.queue_limit)
        self._submitting += asked
        try:
            return await self.store.apply(
                operation, actor=caller(context).name, meta=request.meta, method="Queue.Submit", request=request
            )
        finally:
            self._submitting -= asked

    async def Cancel(self, request: queue_pb2.CancelRequest, context: Context) -> queue_pb2.CancelResponse:
        """Cancel tasks and workflows; running ones are ended on their nodes."""
        running: list[Task] = []

        def operation(tx: Transaction) -> queue_pb2.CancelResponse:
            ids = [*request.task_ids, *(task.id for task in _tasks_of(tx, request.workflow_ids))]
            count, found = transitions.cancel(tx, ids)
            running.extend(found)
            if count:
                tx.event("queue.cancelled", f"{count} tasks cancelled")
            return queue_pb2.CancelResponse(revision=tx.revision, cancelled=count)

        response = await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Queue.Cancel", request=request
        )
        if not request.meta.dry_run:
            for task in running:
                attempt = agent_pb2.TaskAttempt(task_id=task.id, attempt=task.attempt)
                revoke = agent_pb2.Revoke(attempt=attempt, reason="cancelled")
                self.nodes.send(task.node, agent_pb2.AttachResponse(revoke=revoke))
        return response

    async def Retry(self, request: queue_pb2.RetryRequest, context: Context) -> queue_pb2.RetryResponse:
        """Put failed or cancelled tasks back to work."""

        def operation(tx: Transaction) -> queue_pb2.RetryResponse:
            unwell = [task.id for task in _tasks_of(tx, request.workflow_ids) if task.phase in transitions.UNWELL]
            if not unwell and not request.task_ids:
                raise RefusedError(
                    "nothing to put back to work", why="no task of it has failed or was cancelled", field="workflow"
                )
            again = transitions.retry(tx, [*request.task_ids, *unwell])
            tx.event("queue.retried", f"{len(again)} task{'' if len(again) == 1 else 's'} put back to work")
            return queue_pb2.RetryResponse(revision=tx.revision, retried=len(again), task_ids=again)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Queue.Retry", request=request
        )

    async def SetPriority(
        self, request: queue_pb2.SetPriorityRequest, context: Context
    ) -> queue_pb2.SetPriorityResponse:
        """Change the priority of what has not started."""
        if request.priority == queue_pb2.PRIORITY_UNKNOWN:
            raise InvalidError("that is no priority", next="low, normal, high or critical", field="priority")

        def operation(tx: Transaction) -> queue_pb2.SetPriorityResponse:
            for name in request.task_ids:
                task = transitions.edit(tx, name)
                if task.phase not in transitions.FINAL and task.phase != transitions.RUNNING:
                    task.priority = request.priority
                    tx.put(task)
            return queue_pb2.SetPriorityResponse(revision=tx.revision)

        return await self.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Queue.SetPriority", request=request
        )

    async def History(self, request: queue_pb2.HistoryRequest, context: Context) -> queue_pb2.HistoryResponse:
        """Finished tasks that have left the watched state."""
        limit = request.limit or 200
        if limit > HISTORY_LIMIT:
            raise InvalidError(
                f"{limit} rows are too many at once", next=f"at most {HISTORY_LIMIT}; page with --before", field="limit"
            )
        tasks = await self.store.archived(Task, before=request.before_id, limit=limit, parent=request.workflow_id)
        return queue_pb2.HistoryResponse(tasks=tasks)


def check(request: queue_pb2.SubmitRequest) -> None:
    """Raise InvalidError unless a request could have come from a checked file: callers may be anyone."""
    if not 0 < len(request.workflows) <= WORKFLOWS_AT_ONCE:
        raise InvalidError(
            f"{len(request.workflows)} workflows at once cannot be",
            next=f"from 1 to {WORKFLOWS_AT_ONCE}",
            field="workflows",
        )
    for workflow in request.workflows:
        validate(workflow)


def _hello(tx: Transaction, node: str, hello: agent_pb2.Hello) -> None:
    """A node is back: what it was leased and no longer runs is ready again (a report on its way still counts)."""
    running = {(attempt.task_id, attempt.attempt) for attempt in hello.running}
    for task in list(tx.list(Task)):
        if task.phase == transitions.RUNNING and task.node == node and (task.id, task.attempt) not in running:
            copy = transitions.edit(tx, task.id)
            transitions.ready_again(tx, copy, f"the agent on {node} started anew")


def _tasks_of(tx: Transaction, workflows: Iterable[str]) -> Iterator[Task]:
    """All tasks of these workflows. Raises NotFoundError."""
    for name in workflows:
        workflow = tx.get(Workflow, name)
        if workflow is None:
            known = [w.id for w in tx.list(Workflow)]
            raise NotFoundError(f"there is no workflow {name}", next=near(name, known), field="workflow")
        yield from transitions.siblings(tx, workflow)
