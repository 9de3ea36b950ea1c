"""What happens to tasks, as steps inside store transactions: submitted, ready, leased, ended, passed on, put away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gswarm.errors import ExhaustedError, NotFoundError, RefusedError
from gswarm.names import near
from gswarm.v1 import common_pb2, queue_pb2
from gswarm.v1.queue_pb2 import Task, Workflow, WorkflowSpec

if TYPE_CHECKING:
    from gswarm.host.store import Transaction

WAITING, READY, RUNNING = queue_pb2.TASK_PHASE_WAITING, queue_pb2.TASK_PHASE_READY, queue_pb2.TASK_PHASE_RUNNING
DONE, FAILED = queue_pb2.TASK_PHASE_DONE, queue_pb2.TASK_PHASE_FAILED
CANCELLED, BACKOFF = queue_pb2.TASK_PHASE_CANCELLED, queue_pb2.TASK_PHASE_BACKOFF
ENDED = (DONE, FAILED, CANCELLED)
LEASE_S = 30.0
KEPT = 1_000
"""Ended tasks (and workflows) that stay in the watched state."""
LOST_LIMIT = 5
"""Attempts that may be lost with their nodes before a task fails, beyond its retries."""
BACKOFF_S = (1.0, 60.0)
_UNFINISHED = "queue/unfinished"


class Ledger:
    """The steps. Used inside operations only, so on the store's writer thread: its index needs no lock.

    The index (who depends on whom) follows from the tasks and never changes for one; it is built at the first use.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._dependents: dict[str, list[str]] | None = None

    def dependents(self, tx: Transaction, task: str) -> list[str]:
        """Ids of the tasks that wait for this one's result."""
        return self._index(tx).get(task, [])

    def _index(self, tx: Transaction) -> dict[str, list[str]]:
        if self._dependents is None:
            self._dependents = {}
            for task in tx.list(Task):
                for need in task.depends_on:
                    self._dependents.setdefault(need, []).append(task.id)
        return self._dependents

    # In

    def submit(self, tx: Transaction, specs: Iterable[WorkflowSpec], now: datetime) -> queue_pb2.SubmitResponse:
        """Add checked workflows, all of them or none."""
        index = self._index(tx)
        response = queue_pb2.SubmitResponse(revision=tx.revision)
        specs = list(specs)
        total = sum(len(spec.actions) for spec in specs)
        unfinished = _unfinished(tx)
        if unfinished + total > self._limit:
            raise ExhaustedError(
                f"the queue takes no {total} more tasks",
                why=f"{unfinished} of at most {self._limit} are unfinished",
                next="wait until some are done, cancel some, or raise host.queue_limit",
            )
        tx.put_value(_UNFINISHED, str(unfinished + total).encode())
        for spec in specs:
            workflow = Workflow(
                id=f"w{tx.next_id('workflow')}",
                name=spec.name,
                phase=queue_pb2.WORKFLOW_PHASE_ACTIVE,
                tasks=len(spec.actions),
                actor=tx.actor,
            )
            workflow.created_at.FromDatetime(now)
            ids = {action.id: str(tx.next_id("task")) for action in spec.actions}
            for id_ in ids.values():
                index.pop(id_, None)  # of an operation that was rolled back
            for action in spec.actions:
                task = Task(
                    id=ids[action.id],
                    workflow_id=workflow.id,
                    action=action.id,
                    type=action.type,
                    model=action.model,
                    priority=action.priority,
                    phase=WAITING if action.depends_on else READY,
                    retries=action.retries,
                    timeout_s=action.timeout_s,
                    depends_on=[ids[need] for need in action.depends_on],
                    params_json=action.params_json,
                    actor=tx.actor,
                )
                task.created_at.FromDatetime(now)
                if task.phase == READY:
                    task.ready_at.FromDatetime(now)
                for need in task.depends_on:
                    index.setdefault(need, []).append(task.id)
                tx.put(task)
            tx.put(workflow)
            count = len(spec.actions)
            tx.event("workflow.submitted", f"{spec.name} ({workflow.id}) with {_tasks(count)}", subject=workflow)
            response.workflows.append(workflow)
            response.first_task_ids.append(int(ids[spec.actions[0].id]))
        return response

    # On

    def make_ready(self, tx: Transaction, task: Task, now: datetime, detail: str = "") -> None:
        """`task` (a private copy) may run."""
        task.phase, task.detail = READY, detail
        task.ready_at.FromDatetime(now)
        for gone in ("retry_at", "lease_until", "started_at", "finished_at"):
            task.ClearField(gone)  # type: ignore[arg-type]
        task.node, task.service, task.cancel, task.passed_over = "", "", False, 0
        del task.device_ids[:]
        tx.put(task)

    def attempt_failed(self, tx: Transaction, task: Task, why: str, now: datetime, *, permanent: bool = False) -> None:
        """An attempt ended in failure: another one after a pause, or the end."""
        if task.cancel:
            self.end(tx, task, CANCELLED, now, "cancelled")
        elif permanent or task.attempt > task.retries:
            tries = f" after {task.attempt} attempts" if task.attempt > 1 else ""
            self.end(tx, task, FAILED, now, f"{why}{tries}")
        else:
            pause = min(BACKOFF_S[0] * 2.0 ** (task.attempt - 1), BACKOFF_S[1])
            task.phase = BACKOFF
            task.detail = f"attempt {task.attempt} of {task.retries + 1} failed: {why}"
            task.retry_at.FromDatetime(now + timedelta(seconds=pause))
            task.ClearField("lease_until")
            tx.put(task)

    def attempt_lost(self, tx: Transaction, task: Task, why: str, now: datetime) -> None:
        """No one runs it any more, through no fault of its own as far as is known: it goes back in line."""
        if task.cancel:
            self.end(tx, task, CANCELLED, now, "cancelled")
        elif task.attempt > task.retries + LOST_LIMIT:
            self.end(tx, task, FAILED, now, f"{why}; {task.attempt} attempts were lost")
        else:
            text = f"attempt {task.attempt} of task {task.id} was lost: {why}"
            tx.event("task.lost", text, subject=task, severity=common_pb2.SEVERITY_WARNING)
            ready_at = task.ready_at.ToDatetime(now.tzinfo)
            self.make_ready(tx, task, ready_at, f"attempt {task.attempt} was lost: {why}")

    def end(
        self, tx: Transaction, task: Task, phase: queue_pb2.TaskPhase.ValueType, now: datetime, detail: str
    ) -> None:
        """`task` (a private copy) is done, failed or cancelled; what waits for it goes on or ends with it."""
        self._end_one(tx, task, phase, now, detail)
        if phase == DONE:
            for waiter in self._copies(tx, self.dependents(tx, task.id)):
                if waiter.phase == WAITING and all(self._is_done(tx, need) for need in waiter.depends_on):
                    self.make_ready(tx, waiter, now)
            return
        ended = [task]
        while ended:
            cause = ended.pop()
            word = "failed" if phase == FAILED else "was cancelled"
            for waiter in self._copies(tx, self.dependents(tx, cause.id)):
                if waiter.phase == WAITING:
                    root = f": {task.detail}" if phase == FAILED else ""
                    self._end_one(tx, waiter, phase, now, f"not run: {task.action} (task {task.id}) {word}{root}")
                    ended.append(waiter)

    def _copies(self, tx: Transaction, ids: Iterable[str]) -> Iterator[Task]:
        for id_ in ids:
            if (task := tx.edit(Task, id_)) is not None:
                yield task

    def _is_done(self, tx: Transaction, id_: str) -> bool:
        task = tx.get(Task, id_)
        return task is not None and task.phase == DONE

    def _end_one(
        self, tx: Transaction, task: Task, phase: queue_pb2.TaskPhase.ValueType, now: datetime, detail: str
    ) -> None:
        task.phase, task.detail = phase, detail
        task.finished_at.FromDatetime(now)
        for gone in ("lease_until", "retry_at"):
            task.ClearField(gone)  # type: ignore[arg-type]
        tx.put(task)
        if phase == FAILED:
            text = f"task {task.id} ({task.action}) failed: {detail}"
            tx.event("task.failed", text, subject=task, severity=common_pb2.SEVERITY_ERROR)
        tx.put_value(_UNFINISHED, str(max(0, _unfinished(tx) - 1)).encode())
        workflow = tx.edit(Workflow, task.workflow_id)
        if workflow is not None:
            workflow.done += phase == DONE
            workflow.failed += phase == FAILED
            workflow.cancelled += phase == CANCELLED
            self._end_workflow(tx, workflow, now)
            tx.put(workflow)
        self._put_away(tx, task.id)

    def _end_workflow(self, tx: Transaction, workflow: Workflow, now: datetime) -> None:
        if workflow.done + workflow.failed + workflow.cancelled < workflow.tasks:
            return
        workflow.phase = (
            queue_pb2.WORKFLOW_PHASE_FAILED
            if workflow.failed
            else queue_pb2.WORKFLOW_PHASE_CANCELLED if workflow.cancelled else queue_pb2.WORKFLOW_PHASE_DONE
        )
        workflow.finished_at.FromDatetime(now)
        word = queue_pb2.WorkflowPhase.Name(workflow.phase).removeprefix("WORKFLOW_PHASE_").lower()
        severity = common_pb2.SEVERITY_ERROR if workflow.failed else common_pb2.SEVERITY_INFO
        text = f"{workflow.name} ({workflow.id}): {workflow.done} of {workflow.tasks} done"
        tx.event(f"workflow.{word}", text, subject=workflow, severity=severity)
        number = tx.next_id("ended-workflow")
        tx.put_value(f"ended-workflow/{number}", workflow.id.encode())
        if (old := tx.get_value(f"ended-workflow/{number - KEPT}")) is not None:
            tx.put_value(f"ended-workflow/{number - KEPT}", None)
            last = tx.get(Workflow, old.decode())
            if last is not None and last.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE:
                tx.archive(Workflow, last.id)

    # Out

    def _put_away(self, tx: Transaction, task: str) -> None:
        """Remember an end; the oldest beyond the last thousand leave the watched state, needed ones later."""
        head = tx.next_id("ended")
        tx.put_value(f"ended/{head}", task.encode())
        tail = int(tx.get_value("ended-tail") or 1)
        for _ in range(4):
            if head - tail < KEPT:
                break
            old = (tx.get_value(f"ended/{tail}") or b"").decode()
            tx.put_value(f"ended/{tail}", None)
            tail += 1
            known = tx.get(Task, old)
            if known is None or known.phase not in ENDED:
                continue
            if any(w.phase not in ENDED for w in self._copies(tx, self.dependents(tx, old))):
                head = tx.next_id("ended")
                tx.put_value(f"ended/{head}", old.encode())
                continue
            tx.archive(Task, old)
            self._index(tx).pop(old, None)
        tx.put_value("ended-tail", str(tail).encode())

    # What people ask for

    def find(self, tx: Transaction, id_: str) -> Task:
        """A private copy of a task. Raises NotFoundError."""
        task = tx.edit(Task, id_)
        if task is None:
            raise NotFoundError(
                f"there is no task {id_}", next="tasks that ended long ago are in gswarm queue history", field="task"
            )
        return task

    def tasks_of(self, tx: Transaction, workflow: str) -> list[Task]:
        """A workflow's watched tasks. Raises NotFoundError."""
        if tx.get(Workflow, workflow) is None:
            known = (w.id for w in tx.list(Workflow))
            raise NotFoundError(f"there is no workflow {workflow}", next=near(workflow, known), field="workflow")
        return [task for task in tx.list(Task) if task.workflow_id == workflow]

    def cancel(self, tx: Transaction, task: Task, now: datetime) -> bool:
        """End a task that is not done; a running inference is ended by its node. False: there was nothing to do."""
        if task.phase in ENDED or task.cancel:
            return False
        if task.phase == RUNNING and task.node:
            task.cancel, task.detail = True, "is being cancelled"
            tx.put(task)
        else:
            self.end(tx, task, CANCELLED, now, "cancelled")
        return True

    def retry(self, tx: Transaction, task: Task, now: datetime) -> int:
        """Put a failed or cancelled task back to work, and those that ended only because of it. How many."""
        if task.phase not in (FAILED, CANCELLED):
            word = queue_pb2.TaskPhase.Name(task.phase).removeprefix("TASK_PHASE_").lower()
            raise RefusedError(f"task {task.id} is {word}", next="only failed and cancelled tasks can be tried again")
        for need in task.depends_on:
            known = tx.get(Task, need)
            if known is None:
                raise RefusedError(
                    f"task {task.id} cannot run again",
                    why=f"the result of task {need} has left the queue",
                    next="submit the workflow again",
                )
            if known.phase in (FAILED, CANCELLED):
                raise RefusedError(
                    f"task {task.id} cannot run again", why=f"it needs task {need}", next=f"gswarm queue retry {need}"
                )
        count = self._revive(tx, task, now)
        pending = [task.id]
        while pending:
            for waiter in self._copies(tx, self.dependents(tx, pending.pop())):
                if waiter.phase in (FAILED, CANCELLED) and not waiter.attempt:
                    count += self._revive(tx, waiter, now)
                    pending.append(waiter.id)
        return count

    def _revive(self, tx: Transaction, task: Task, now: datetime) -> int:
        was = task.phase
        task.output_json = ""
        self.make_ready(tx, task, now)
        if not all(self._is_done(tx, need) for need in task.depends_on):
            task.phase = WAITING
            task.ClearField("ready_at")
        tx.put_value(_UNFINISHED, str(_unfinished(tx) + 1).encode())
        workflow = tx.edit(Workflow, task.workflow_id)
        if workflow is not None:
            workflow.failed -= was == FAILED
            workflow.cancelled -= was == CANCELLED
            workflow.phase = queue_pb2.WORKFLOW_PHASE_ACTIVE
            workflow.ClearField("finished_at")
            tx.put(workflow)
        return 1


def _unfinished(tx: Transaction) -> int:
    return int(tx.get_value(_UNFINISHED) or 0)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
