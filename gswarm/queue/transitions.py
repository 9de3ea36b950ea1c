"""What may happen to a task and its workflow, as functions of a transaction; every change of phase goes through here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

from gswarm.errors import ExhaustedError, NotFoundError, RefusedError
from gswarm.host.transaction import Transaction
from gswarm.queue.references import Json, resolve
from gswarm.v1 import agent_pb2, common_pb2, queue_pb2
from gswarm.v1.queue_pb2 import Task, Workflow

WAITING, READY, RUNNING = queue_pb2.TASK_PHASE_WAITING, queue_pb2.TASK_PHASE_READY, queue_pb2.TASK_PHASE_RUNNING
DONE, FAILED, CANCELLED = queue_pb2.TASK_PHASE_DONE, queue_pb2.TASK_PHASE_FAILED, queue_pb2.TASK_PHASE_CANCELLED
BACKOFF = queue_pb2.TASK_PHASE_BACKOFF
FINAL = frozenset({DONE, FAILED, CANCELLED})
UNWELL = frozenset({FAILED, CANCELLED})
LEASE_S = 30.0
OUTPUT_LIMIT = 64 * 1024
BACKOFF_CAP_S = 60.0
NOT_RUN = "not run:"
"""How the detail of a task begins that ended because one that it depends on did."""


def asked_tasks(request: queue_pb2.SubmitRequest) -> int:
    """How many tasks a submission makes."""
    return sum(len(spec.actions) for spec in request.workflows)


def submit(
    request: queue_pb2.SubmitRequest, *, unfinished: int, limit: int
) -> Callable[[Transaction], queue_pb2.SubmitResponse]:
    """Make all workflows of a checked request, or none.

    `unfinished` tasks are there already or on their way; counted by the caller, for here it would take a look at each.
    """

    def operation(tx: Transaction) -> queue_pb2.SubmitResponse:
        asked = asked_tasks(request)
        if unfinished + asked > limit:
            raise ExhaustedError(
                "the queue is full",
                why=f"{unfinished} tasks are unfinished, {limit} are allowed",
                next="wait, or raise host.queue_limit",
            )
        response = queue_pb2.SubmitResponse(revision=tx.revision)
        for spec in request.workflows:
            workflow = _make(tx, spec)
            response.workflows.append(workflow)
            response.first_task_ids.append(workflow.first_task)
        names = ", ".join(w.id for w in response.workflows)
        tx.event(
            "queue.submitted", f"{names}: {asked} tasks", subject=response.workflows[0] if response.workflows else None
        )
        return response

    return operation


def _make(tx: Transaction, spec: queue_pb2.WorkflowSpec) -> Workflow:
    first = 0
    ids: dict[str, str] = {}
    needed_by: dict[str, list[str]] = {}
    for action in spec.actions:
        number = tx.next_id("task")
        first = first or number
        ids[action.id] = str(number)
        for need in action.depends_on:
            needed_by.setdefault(need, []).append(ids[action.id])
    workflow = Workflow(
        id=f"w{tx.next_id('workflow')}",
        name=spec.name,
        phase=queue_pb2.WORKFLOW_PHASE_ACTIVE,
        tasks=len(spec.actions),
        actor=tx.actor,
        first_task=first,
        created_at=tx.stamp,
    )
    tx.put(workflow)
    for action in spec.actions:
        task = Task(
            id=ids[action.id],
            workflow_id=workflow.id,
            action=action.id,
            type=action.type,
            model=action.model,
            priority=action.priority or queue_pb2.PRIORITY_NORMAL,
            phase=WAITING if action.depends_on else READY,
            retries=action.retries,
            timeout_s=action.timeout_s,
            depends_on=[ids[name] for name in action.depends_on],
            needed_by=needed_by.get(action.id),
            params_json=action.params_json,
            actor=tx.actor,
            created_at=tx.stamp,
            ready_at=None if action.depends_on else tx.stamp,
        )
        tx.put(task)
    return workflow


def link(tx: Transaction) -> None:
    """Tell the tasks that an older host has stored what depends on them; what has ended meanwhile is passed on."""
    needed_by: dict[str, list[str]] = {}
    for task in tx.list(Task):
        for need in task.depends_on:
            needed_by.setdefault(need, []).append(task.id)
    for need, tasks in needed_by.items():
        known = tx.get(Task, need)
        if known is None or known.needed_by:
            continue
        task = edit(tx, need)
        task.needed_by.extend(tasks)
        tx.put(task)
        if task.phase in FINAL and (ended := _pass_on(tx, task)) and (workflow := tx.edit(Workflow, task.workflow_id)):
            _ended(tx, workflow, ended)


def siblings(tx: Transaction, workflow: Workflow) -> Iterator[Task]:
    """All tasks of a workflow that are still watched, in order."""
    for number in range(workflow.first_task, workflow.first_task + workflow.tasks):
        if (task := tx.get(Task, str(number))) is not None:
            yield task


def edit(tx: Transaction, task_id: str) -> Task:
    """A private copy of a task. Raises NotFoundError."""
    task = tx.edit(Task, task_id)
    if task is None:
        raise NotFoundError(
            f"there is no task {task_id} in the queue", next="finished ones are in gswarm queue history", field="task"
        )
    return task


def lease(tx: Transaction, task: Task, *, node: str, service: str, device_ids: Iterable[str]) -> None:
    """A new attempt starts on a node."""
    task.phase = RUNNING
    task.attempt += 1
    task.node, task.service, task.detail = node, service, ""
    del task.device_ids[:]
    task.device_ids.extend(device_ids)
    task.started_at.CopyFrom(tx.stamp)
    task.lease_until.FromDatetime(tx.now + timedelta(seconds=LEASE_S))
    tx.put(task)


def make_ready(tx: Transaction, task: Task) -> None:
    """A task may run from now on: what it depends on is done, or its pause after a failed attempt is over."""
    task.phase = READY
    task.ready_at.CopyFrom(tx.stamp)
    task.ClearField("retry_at")
    tx.put(task)


def ready_again(tx: Transaction, task: Task, why: str) -> None:
    """An attempt was lost (its node went, its lease ran out): the task waits for another. Not a failure of the task."""
    if task.cancel:
        finish(tx, task, CANCELLED, "cancelled")
        return
    task.phase, task.detail = READY, why
    task.ClearField("started_at")
    task.ClearField("lease_until")
    task.node = task.service = ""
    del task.device_ids[:]
    tx.put(task)


def attempt_failed(tx: Transaction, task: Task, why: str, *, permanent: bool = False) -> None:
    """An attempt failed: try again later while attempts are left, else the task has failed."""
    if task.cancel:
        finish(tx, task, CANCELLED, "cancelled")
    elif permanent or task.attempt > task.retries:
        finish(tx, task, FAILED, why)
    else:
        pause = min(BACKOFF_CAP_S, 2.0 ** min(task.attempt, 10) / 2)
        task.phase, task.detail = BACKOFF, f"attempt {task.attempt} of {task.retries + 1} failed: {why}"
        task.retry_at.FromDatetime(tx.now + timedelta(seconds=pause))
        tx.put(task)
        tx.event("task.retry", f"task {task.id}: {task.detail}", subject=task, severity=common_pb2.SEVERITY_WARNING)


def finish(tx: Transaction, task: Task, phase: queue_pb2.TaskPhase.ValueType, detail: str) -> int:
    """A task has its end; its dependents become ready, or end with the reason. How many tasks have ended by it."""
    task.phase, task.detail = phase, detail
    task.finished_at.CopyFrom(tx.stamp)
    task.ClearField("lease_until")
    tx.put(task)
    if phase == FAILED:
        tx.event(
            "task.failed",
            f"task {task.id} ({task.action}) failed: {detail}",
            subject=task,
            severity=common_pb2.SEVERITY_ERROR,
        )
    workflow = tx.edit(Workflow, task.workflow_id)
    return _ended(tx, workflow, [task]) if workflow is not None else 1


def _ended(tx: Transaction, workflow: Workflow, tasks: list[Task]) -> int:
    """Count tasks of a workflow that have ended, and all that end by it. How many these are."""
    count = 0
    while tasks:
        last = tasks.pop()
        count += 1
        _count(workflow, last.phase)
        tasks += _pass_on(tx, last)
    if workflow.done + workflow.failed + workflow.cancelled >= workflow.tasks:
        _end(tx, workflow)
    tx.put(workflow)
    return count


def _pass_on(tx: Transaction, last: Task) -> list[Task]:
    """What waits for a task that has ended becomes ready, or ends too: those that do."""
    ended = []
    for name in last.needed_by:
        other = tx.get(Task, name)
        if other is None or other.phase != WAITING:
            continue
        if last.phase == DONE:
            # From the last on: most often tasks end in their order, and one that has not is found soonest so.
            if all(_phase(tx, need) == DONE for need in reversed(other.depends_on)):
                make_ready(tx, edit(tx, name))
            continue
        word = "failed" if last.phase == FAILED else "was cancelled"
        dependent = edit(tx, name)
        dependent.phase = FAILED if last.phase == FAILED else CANCELLED
        dependent.detail = f"{NOT_RUN} {last.action} (task {last.id}) {word}"
        dependent.finished_at.CopyFrom(tx.stamp)
        tx.put(dependent)
        ended.append(dependent)
    return ended


def _phase(tx: Transaction, task_id: str) -> queue_pb2.TaskPhase.ValueType:
    task = tx.get(Task, task_id)
    return task.phase if task is not None else DONE


def _count(workflow: Workflow, phase: queue_pb2.TaskPhase.ValueType) -> None:
    if phase == DONE:
        workflow.done += 1
    elif phase == FAILED:
        workflow.failed += 1
    else:
        workflow.cancelled += 1


def _end(tx: Transaction, workflow: Workflow) -> None:
    if workflow.failed:
        workflow.phase = queue_pb2.WORKFLOW_PHASE_FAILED
    elif workflow.cancelled:
        workflow.phase = queue_pb2.WORKFLOW_PHASE_CANCELLED
    else:
        workflow.phase = queue_pb2.WORKFLOW_PHASE_DONE
    workflow.finished_at.CopyFrom(tx.stamp)
    told = f"{workflow.done} done, {workflow.failed} failed, {workflow.cancelled} cancelled"
    severity = common_pb2.SEVERITY_ERROR if workflow.failed else common_pb2.SEVERITY_INFO
    tx.event("workflow.ended", f"{workflow.id} ({workflow.name}): {told}", subject=workflow, severity=severity)


def reported(tx: Transaction, node: str, report: agent_pb2.Report) -> None:
    """What an agent says of an attempt; late words of older attempts are dropped, one result is kept."""
    told = report.task
    task = tx.edit(Task, told.attempt.task_id)
    if task is None or task.phase in FINAL or told.attempt.attempt != task.attempt or task.node not in ("", node):
        return
    if told.phase == DONE:
        if len(told.output_json.encode()) > OUTPUT_LIMIT:
            attempt_failed(tx, task, f"its output is over {OUTPUT_LIMIT} bytes", permanent=True)
            return
        task.output_json = told.output_json
        task.node = node
        if told.HasField("tokens_in"):
            task.tokens_in = told.tokens_in
        if told.HasField("tokens_out"):
            task.tokens_out = told.tokens_out
        finish(tx, task, DONE, "")
    elif told.phase == FAILED:
        attempt_failed(tx, task, told.detail, permanent=told.permanent)
    elif told.phase == CANCELLED:
        if task.cancel:
            finish(tx, task, CANCELLED, "cancelled while running")
        else:
            ready_again(tx, task, told.detail)


def cancel(tx: Transaction, task_ids: Iterable[str]) -> tuple[int, list[Task]]:
    """Cancel tasks: (how many that changed, dependents too; the running ones to revoke). Finished ones stay as they are."""
    changed, running = 0, []
    for task_id in task_ids:
        task = edit(tx, task_id)
        if task.phase in FINAL:
            continue
        task.cancel = True
        if task.phase == RUNNING and task.service:
            tx.put(task)
            running.append(task)
            changed += 1
        else:
            changed += finish(tx, task, CANCELLED, "cancelled before it ran")
    return changed, running


def retry(tx: Transaction, task_ids: Iterable[str]) -> list[str]:
    """Put tasks that did not end well back to work: their ids, in order.

    With them go those that they need and that did not end well either, and what was not run because of any of these,
    unless it needs others that did not end well.
    """
    named = list(dict.fromkeys(task_ids))
    for task_id in named:
        task = edit(tx, task_id)
        if task.phase not in UNWELL:
            raise RefusedError(
                f"task {task_id} has not failed",
                why=f"it is {queue_pb2.TaskPhase.Name(task.phase)[11:].lower()}",
                field="task",
            )
    again = _with_what_follows(tx, _with_what_they_need(tx, named))
    workflows: dict[str, Workflow] = {}
    for name in sorted(again, key=int):
        task = edit(tx, name)
        workflow = workflows.get(task.workflow_id) or tx.edit(Workflow, task.workflow_id)
        if workflow is not None:
            workflows[workflow.id] = workflow
            _restart(tx, task, workflow, again)
    for workflow in workflows.values():
        workflow.phase = queue_pb2.WORKFLOW_PHASE_ACTIVE
        workflow.ClearField("finished_at")
        tx.put(workflow)
    return sorted(again, key=int)


def _with_what_they_need(tx: Transaction, task_ids: Iterable[str]) -> set[str]:
    """These tasks and those before them that did not end well."""
    found = set(task_ids)
    look = list(found)
    while look:
        task = tx.get(Task, look.pop())
        for need in task.depends_on if task is not None else ():
            if need not in found and _phase(tx, need) in UNWELL:
                found.add(need)
                look.append(need)
    return found


def _with_what_follows(tx: Transaction, again: set[str]) -> set[str]:
    """These tasks, and what was not run because of them only."""
    found, look = set(again), list(again)
    missing: dict[str, int] = {}
    """Of what may follow: how many that it needs did not end well and do not go back."""
    while look:
        name = look.pop()
        task = tx.get(Task, name)
        for other in task.needed_by if task is not None else ():
            if other in found:
                continue
            if other not in missing:
                follower = tx.get(Task, other)
                if follower is None or follower.phase not in UNWELL or not follower.detail.startswith(NOT_RUN):
                    continue
                missing[other] = sum(need not in again and _phase(tx, need) in UNWELL for need in follower.depends_on)
            if name not in again:
                missing[other] -= 1
            if not missing[other]:
                found.add(other)
                look.append(other)
    return found


def _restart(tx: Transaction, task: Task, workflow: Workflow, again: set[str]) -> None:
    if task.phase == FAILED:
        workflow.failed -= 1
    else:
        workflow.cancelled -= 1
    waits = any(need in again or _phase(tx, need) != DONE for need in task.depends_on)
    task.phase, task.detail, task.cancel = WAITING if waits else READY, "", False
    task.retries += task.attempt  # as many further attempts as it had at first
    for field in ("finished_at", "started_at", "retry_at", "ready_at"):
        task.ClearField(field)
    if not waits:
        task.ready_at.CopyFrom(tx.stamp)
    tx.put(task)


def resolved(tx: Transaction, task: Task) -> Json:
    """A task's parameters with what the tasks it depends on gave in place. Raises InvalidError."""
    outputs: dict[str, Json] = {}
    for need in task.depends_on:
        other = tx.get(Task, need)
        if other is not None and other.output_json:
            outputs[other.action] = json.loads(other.output_json)
    return resolve(json.loads(task.params_json), outputs.get)
