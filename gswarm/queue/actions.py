"""What a person can do with the queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gswarm.catalogue import Doc, Ref, action
from gswarm.cluster.types import Listing
from gswarm.queue.types import Explanation, PlanView, Priority, Task, Workflow

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

FILTER = "field=value, field!=value or field~part, by column or by name in JSON; repeat to narrow"


@action("queue", "submit", key="n", until="gswarm.queue.types:workflow_done", effect="queues the workflow's tasks")
async def submit(
    swarm: Swarm, file: Annotated[list[Path], Doc("workflow files, YAML or JSON; - for standard input")]
) -> list[Workflow]:
    """Submit workflows: all of them, or none when one is wrong.

    Examples:
        gswarm queue submit flow.yaml
        gswarm queue submit a.yaml b.json --no-wait
    """
    from gswarm.queue.access import submit as send

    return await send(swarm, file)


@action("queue", "list", read=True)
async def list_(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Task]:
    """List tasks.

    Examples:
        gswarm queue list
        gswarm queue list --filter phase=ready --filter model=llama-8b
    """
    return await swarm.list(Task, filters=tuple(filter), sort=sort, limit=limit)


@action("queue", "info", read=True)
async def info(swarm: Swarm, task: Annotated[str, Ref("task"), Doc("task id")]) -> Task:
    """Show one task: parameters, result, where it ran.

    Examples:
        gswarm queue info 4711
    """
    return await swarm.get(Task, task)


@action("queue", "workflows", read=True)
async def workflows(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "-created_at",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Workflow]:
    """List workflows.

    Examples:
        gswarm queue workflows
    """
    return await swarm.list(Workflow, filters=tuple(filter), sort=sort, limit=limit)


@action("queue", "wait", read=True, until="gswarm.queue.types:workflow_done")
async def wait(swarm: Swarm, workflow: Annotated[list[str], Ref("workflow"), Doc("workflow ids")]) -> list[Workflow]:
    """Wait until workflows have ended; exits 1 if one of them failed.

    Examples:
        gswarm queue wait w12 --timeout 600
    """
    return [await swarm.get(Workflow, name) for name in workflow]


@action("queue", "plan", read=True)
async def plan(swarm: Swarm) -> PlanView:
    """Show the plan: the order on each device, loads, and when it is done.

    Examples:
        gswarm queue plan
        gswarm queue plan --output json
    """
    from gswarm.queue.access import plan as read

    return await read(swarm)


@action("queue", "explain", key="e", read=True)
async def explain(swarm: Swarm, task: Annotated[str, Ref("task"), Doc("task id")]) -> Explanation:
    """Say why a task waits, when and where it should start, and what would change that.

    Examples:
        gswarm queue explain 4711
    """
    from gswarm.queue.access import explain as read

    return await read(swarm, task)


@action("queue", "cancel", key="c", destructive=True, effect="ends the tasks; running ones are stopped on their node")
async def cancel(
    swarm: Swarm,
    task: Annotated[list[str], Ref("task"), Doc("task ids")] = [],  # noqa: B006
    *,
    workflow: Annotated[
        list[str], Ref("workflow"), Doc("every unfinished task of this workflow; repeat")
    ] = [],  # noqa: B006
) -> list[Task]:
    """Cancel tasks or whole workflows; shows what of them is cancelled, or still being stopped on its node.

    Examples:
        gswarm queue cancel 4711 4712 --yes
        gswarm queue cancel --workflow w12 --yes
    """
    from gswarm.queue.access import cancel as send

    return await send(swarm, task, workflow)


@action(
    "queue",
    "retry",
    key="R",
    effect="puts the tasks, what they need that failed, and what was not run because of them, back to work",
)
async def retry(
    swarm: Swarm,
    task: Annotated[list[str], Ref("task"), Doc("task ids")] = [],  # noqa: B006
    *,
    workflow: Annotated[
        list[str], Ref("workflow"), Doc("every task of this workflow that did not end well; repeat")
    ] = [],  # noqa: B006
) -> list[Task]:
    """Put failed or cancelled tasks back to work, with what they need that failed; shows all that go back.

    Examples:
        gswarm queue retry 4711
        gswarm queue retry --workflow w12
    """
    from gswarm.queue.access import retry as send

    return await send(swarm, task, workflow)


@action("queue", "priority", effect="changes when the tasks start")
async def priority(
    swarm: Swarm,
    priority: Annotated[Priority, Doc("how urgent")],
    task: Annotated[list[str], Ref("task"), Doc("task ids")],
) -> None:
    """Change the priority of tasks that have not started.

    Examples:
        gswarm queue priority high 4711
    """
    from gswarm.v1 import queue_pb2

    value = queue_pb2.Priority.Value(f"PRIORITY_{priority.name}")
    await swarm.call(queue_pb2.SetPriorityRequest(task_ids=task, priority=value))


@action("queue", "history", read=True)
async def history(
    swarm: Swarm,
    *,
    workflow: Annotated[str, Doc("only of this workflow")] = "",
    before: Annotated[int, Doc("only tasks with ids below this")] = 0,
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> list[Task]:
    """List finished tasks that are no longer in the list, newest first.

    Examples:
        gswarm queue history --limit 50
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import queue_pb2

    request = queue_pb2.HistoryRequest(before_id=before, limit=limit, workflow_id=workflow)
    return [from_proto(task, Task) for task in (await swarm.call(request)).tasks]
