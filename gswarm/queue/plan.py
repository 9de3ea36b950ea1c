"""The plan on the clock: what runs, then each batch in order, as lanes of blocks with times and their basis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gswarm.queue.history import History
from gswarm.scheduler.strategy import Batch
from gswarm.v1 import cluster_pb2, queue_pb2
from gswarm.v1.models_pb2 import Service
from gswarm.v1.queue_pb2 import Block, Lane, Plan, Task

IDS_SHOWN = 64


@dataclass(frozen=True, slots=True)
class View:
    """What a plan is made from."""

    now: datetime
    devices: Mapping[str, cluster_pb2.Device]
    services: Mapping[str, Service]
    tasks: Mapping[int, Task]
    """Unfinished tasks by number."""
    batches: Sequence[Batch]
    history: History
    strategy: str
    wait_bound_s: float


def kind_of(device: cluster_pb2.Device | None) -> str:
    """What run times are kept by: the device's product name."""
    return device.name if device is not None else "unknown"


def make(view: View) -> tuple[Plan, list[Lane]]:
    """The plan and its lanes, one for each device that runs or is to run something."""
    free_at: dict[str, datetime] = {}
    blocks: dict[str, list[Block]] = defaultdict(list)
    running = [t for t in view.tasks.values() if t.phase == queue_pb2.TASK_PHASE_RUNNING and t.model]
    for service_name, tasks in _group(running).items():
        service = view.services.get(service_name)
        if service is None:
            continue
        for device_id in service.device_ids:
            block = _running_block(view, service, tasks, device_id)
            blocks[device_id].append(block)
            free_at[device_id] = block.end.ToDatetime(view.now.tzinfo)
    swaps = 0
    runs_seen = 0
    for batch in view.batches:
        devices = (
            list(view.services[batch.slot].device_ids)
            if batch.slot in view.services
            else [batch.device] if batch.device else []
        )
        if not devices:
            continue
        is_load = not batch.slot
        swaps += is_load
        block = _batch_block(view, batch, devices[0], max(free_at.get(d, view.now) for d in devices), is_load=is_load)
        runs_seen += block.runs_seen
        for device_id in devices:
            blocks[device_id].append(block)
            free_at[device_id] = block.end.ToDatetime(view.now.tzinfo)
    lanes = [
        Lane(
            device_id=device_id,
            alias=view.devices[device_id].alias if device_id in view.devices else device_id,
            blocks=found,
        )
        for device_id, found in sorted(blocks.items())
    ]
    return _summary(view, swaps, runs_seen, max(free_at.values(), default=None)), lanes


def _group(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.service].append(task)
    return groups


def _running_block(view: View, service: Service, tasks: list[Task], device_id: str) -> Block:
    estimate = view.history.run(service.model, kind_of(view.devices.get(device_id)))
    started = min(t.started_at.ToDatetime(view.now.tzinfo) for t in tasks)
    left = max(0.5, estimate.seconds - (view.now - started).total_seconds())
    block = Block(
        model=service.model,
        task_ids=[t.id for t in tasks[:IDS_SHOWN]],
        count=len(tasks),
        running=True,
        runs_seen=estimate.runs_seen,
        reason=f"running on {service.name}",
    )
    block.start.FromDatetime(started)
    block.end.FromDatetime(view.now + timedelta(seconds=left))
    return block


def _batch_block(view: View, batch: Batch, device_id: str, after: datetime, *, is_load: bool) -> Block:
    kind = kind_of(view.devices.get(device_id))
    run = view.history.run(batch.model, kind)
    load_s = view.history.load_time(batch.model, kind).seconds if is_load else 0.0
    service = view.services.get(batch.slot)
    width = max(1, service.max_in_flight if service is not None else 1)
    start = max(after, view.now) + timedelta(seconds=load_s)
    rounds = -(-len(batch.jobs) // width)
    block = Block(
        model=batch.model,
        task_ids=[str(job) for job in batch.jobs[:IDS_SHOWN]],
        count=len(batch.jobs),
        load_s=load_s,
        runs_seen=run.runs_seen,
        reason=batch.reason,
    )
    block.start.FromDatetime(start)
    block.end.FromDatetime(start + timedelta(seconds=rounds * run.seconds))
    return block


def first_come_swaps(tasks: Sequence[Task], holding: Sequence[str]) -> int:
    """Loads that first-come-first-served would need: each task in order to the device whose turn it is, least used first."""
    held = list(holding) or [""]
    used = [0] * len(held)
    swaps = 0
    for task in sorted(tasks, key=lambda t: int(t.id)):
        turn = min(range(len(held)), key=lambda i: (used[i], i))
        used[turn] += 1
        if held[turn] != task.model:
            swaps += 1
            held[turn] = task.model
    return swaps


def _summary(view: View, swaps: int, runs_seen: int, done_at: datetime | None) -> Plan:
    ready = [t for t in view.tasks.values() if t.phase == queue_pb2.TASK_PHASE_READY]
    placed = {job for batch in view.batches if batch.slot or batch.device for job in batch.jobs}
    with_model = [t for t in ready if t.model]
    blocked = [t for t in with_model if int(t.id) not in placed]
    waits = [
        (view.now - t.ready_at.ToDatetime(view.now.tzinfo)).total_seconds() for t in ready if t.HasField("ready_at")
    ]
    holding = [s.model for s in view.services.values() if s.phase != 0 and not s.stop]
    plan = Plan(
        strategy=view.strategy,
        swaps=swaps,
        swaps_first_come=first_come_swaps(with_model, holding),
        runs_seen=runs_seen,
        oldest_wait_s=round(max(waits, default=0.0), 1),
        wait_bound_s=view.wait_bound_s,
        ready=len(ready),
        running=sum(t.phase == queue_pb2.TASK_PHASE_RUNNING for t in view.tasks.values()),
        blocked=len(blocked),
    )
    plan.made_at.FromDatetime(view.now)
    if done_at is not None:
        plan.done_at.FromDatetime(done_at)
    return plan
