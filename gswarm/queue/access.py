"""Reads and submissions that take more than one step: files to workflows, snapshots to plans and explanations."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gswarm.cluster.types import Device, Node
from gswarm.codec import from_proto
from gswarm.errors import InvalidError, RefusedError
from gswarm.model.types import Model, Placement, Service
from gswarm.queue import explain as explaining
from gswarm.queue.types import Explanation, Lane, Plan, PlanView, Task, TaskPhase, Workflow
from gswarm.queue.workflow import load, parse
from gswarm.v1 import queue_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

T = TypeVar("T")


async def submit(swarm: Swarm, files: list[Path]) -> list[Workflow]:
    """Read, check and submit files in one request. Raises InvalidError with file, line and column."""
    if not files:
        raise InvalidError("no workflow file is named", field="file")
    specs = []
    for path in files:
        specs += parse(sys.stdin.read(), "standard input") if str(path) == "-" else load(path)
    response = await swarm.call(queue_pb2.SubmitRequest(workflows=specs))
    return [from_proto(workflow, Workflow) for workflow in response.workflows]


async def cancel(swarm: Swarm, tasks: list[str], workflows: list[str]) -> list[Task]:
    """Cancel, then read what of it is cancelled or being stopped, with what is not run because of it.

    A dry run answers with what would be cancelled, as it stands. A retry answers the same again.
    """
    if not tasks and not workflows:
        raise InvalidError("nothing to cancel was named", next="name task ids, or --workflow", field="task")
    await swarm.call(queue_pb2.CancelRequest(task_ids=tasks, workflow_ids=workflows))
    homes = {t.workflow_id for t in await _named(swarm, tasks)} | set(workflows)
    known = [t for home in homes for t in await swarm.list(Task, filters=(f"workflow_id={home}",), limit=0)]
    needed_by: dict[str, list[str]] = {}  # from older hosts tasks do not know it themselves
    for task in known:
        for need in task.depends_on:
            needed_by.setdefault(need, []).append(task.id)
    look = [t.id for t in known if t.id in tasks or t.workflow_id in workflows]
    covered = set(look)
    while look:
        more = set(needed_by.get(look.pop(), ())) - covered
        covered |= more
        look += more
    return sorted((t for t in known if t.id in covered and _goes(t, swarm)), key=lambda t: int(t.id))


async def retry(swarm: Swarm, tasks: list[str], workflows: list[str]) -> list[Task]:
    """Put tasks back to work, then read those that are, with what they need and what was not run because of them.

    A dry run answers with what would be put back, as it stands. A retry answers the same again.
    """
    if not tasks and not workflows:
        raise InvalidError("nothing to put back was named", next="name task ids, or --workflow", field="task")
    response = await swarm.call(queue_pb2.RetryRequest(task_ids=tasks, workflow_ids=workflows))
    if workflows and not response.task_ids:
        raise RefusedError("the host is older and puts back named tasks only", next="name them, or update the host")
    # Older hosts, and replies that one of them kept, do not name what was put back.
    return await _named(swarm, response.task_ids or tasks)


async def _named(swarm: Swarm, ids: Iterable[str]) -> list[Task]:
    """The tasks of these ids that there are, in this order, each once."""
    wanted = tuple(dict.fromkeys(ids))
    if not wanted:
        return []  # no keys are all keys
    found = {t.id: t for t in await swarm.list(Task, keys=wanted, limit=0)}
    return [found[name] for name in wanted if name in found]


def _goes(task: Task, swarm: Swarm) -> bool:
    if swarm.dry_run:
        return task.phase not in (TaskPhase.DONE, TaskPhase.FAILED, TaskPhase.CANCELLED)
    return task.cancel or task.phase is TaskPhase.CANCELLED


async def plan(swarm: Any) -> PlanView:
    """The plan as the host has published it, or as it was at a recording's cursor."""
    plans = await swarm.list(Plan, limit=0)
    lanes = await swarm.list(Lane, limit=0)
    return PlanView(plans[0] if plans else Plan(), tuple(sorted(lanes, key=lambda lane: lane.alias)))


async def explain(swarm: Any, task_id: str) -> Explanation:
    """One explanation from a snapshot of everything it depends on."""
    task: Task = await swarm.get(Task, task_id)

    async def rows(cls: type[T], key: str) -> dict[str, T]:
        return {getattr(row, key): row for row in await swarm.list(cls, limit=0)}

    tasks = await swarm.list(Task, limit=0)
    plans = await swarm.list(Plan, limit=0)
    snapshot = explaining.Snapshot(
        now=tasks.time or datetime.now(UTC),
        tasks={t.id: t for t in tasks},
        devices=await rows(Device, "id"),
        nodes=await rows(Node, "name"),
        models=await rows(Model, "name"),
        placements=await rows(Placement, "id"),
        services=await rows(Service, "name"),
        lanes=await rows(Lane, "device_id"),
        plan=plans[0] if plans else None,
    )
    return explaining.explain(task, snapshot)
