"""Reads and submissions that take more than one step: files to workflows, snapshots to plans and explanations."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gswarm.cluster.types import Device, Node
from gswarm.codec import from_proto
from gswarm.errors import InvalidError
from gswarm.model.types import Model, Placement, Service
from gswarm.queue import explain as explaining
from gswarm.queue.types import Explanation, Lane, Plan, PlanView, Task, Workflow
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
