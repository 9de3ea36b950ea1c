"""Why a task stands where it stands: one true reason, and device by device what it would take. Pure, over a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from gswarm.cluster.types import Device, DeviceKind, DevicePhase, Node, NodePhase, Owner
from gswarm.model.backends import backend
from gswarm.model.fitting import Fit, Offer, default_backend, fit
from gswarm.model.types import Model, Placement, PlacementPhase, Service, ServicePhase
from gswarm.queue.types import Explanation, Lane, Plan, Priority, Takes, Task, TaskPhase, TaskType, Verdict
from gswarm.units import duration
from gswarm.units import size as show_size

USABLE = 0.9
"""Share of a processor's memory that the planner uses."""
GONE = (ServicePhase.STOPPED, ServicePhase.FAILED)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state that an explanation is a function of."""

    now: datetime
    tasks: Mapping[str, Task]
    devices: Mapping[str, Device]
    nodes: Mapping[str, Node]
    models: Mapping[str, Model]
    placements: Mapping[str, Placement]
    services: Mapping[str, Service]
    lanes: Mapping[str, Lane]
    plan: Plan | None


def explain(task: Task, snapshot: Snapshot) -> Explanation:
    """The explanation of one task."""
    found = _fit(task, snapshot)
    waits = task.model and task.phase in (TaskPhase.READY, TaskPhase.WAITING)
    verdicts = _verdicts(task, found, snapshot) if waits else ()
    start, where, basis = _expected(task, snapshot)
    wait = (snapshot.now - task.ready_at).total_seconds() if task.ready_at and task.phase is TaskPhase.READY else None
    return Explanation(
        task=task.id,
        phase=task.phase,
        reason=_reason(task, snapshot, verdicts),
        waits_s=wait,
        wait_bound_s=snapshot.plan.wait_bound_s if snapshot.plan else None,
        expected_start=start,
        expected_on=where,
        basis=basis,
        needs=_needs(task, found.width, snapshot),
        verdicts=verdicts,
    )


def _reason(task: Task, snapshot: Snapshot, verdicts: tuple[Verdict, ...]) -> str:
    match task.phase:
        case TaskPhase.DONE:
            return f"done, on {task.service or task.node or 'the host'}"
        case TaskPhase.FAILED | TaskPhase.CANCELLED:
            return task.detail
        case TaskPhase.BACKOFF:
            left = (task.retry_at - snapshot.now).total_seconds() if task.retry_at else 0.0
            return f"{task.detail}; tried again in {duration(left)}" if left > 0 else f"{task.detail}; due again"
        case TaskPhase.RUNNING:
            return f"running on {task.service or 'the host'}, attempt {task.attempt}"
        case TaskPhase.WAITING:
            waits = [
                name
                for name in task.depends_on
                if (t := snapshot.tasks.get(name)) is not None and t.phase is not TaskPhase.DONE
            ]
            return f"waiting for task {', '.join(waits)}" if waits else "waiting for tasks that have just ended"
    if task.type is not TaskType.INFERENCE:
        return "ready; the host carries it out next"
    if task.model not in snapshot.models:
        return f"there is no model {task.model}: gswarm model download {task.model} --source ..."
    stored = [p for p in snapshot.placements.values() if p.model == task.model and p.phase is PlacementPhase.STORED]
    if not stored:
        return f"{task.model} is stored on no node"
    serving = [
        s
        for s in snapshot.services.values()
        if s.model == task.model and s.phase not in GONE and not s.stop and _is_reached(s, snapshot)
    ]
    if any(s.phase is ServicePhase.READY for s in serving):
        ahead = sum(1 for t in snapshot.tasks.values() if t.model == task.model and _is_before(t, task, snapshot))
        if not ahead:
            return f"{task.model} is served; this task is its next"
        return f"{task.model} is served and busy; {ahead} of its tasks are before this one"
    if serving:
        return f"{task.model} is {serving[0].phase.value} on {serving[0].node}"
    if not verdicts:
        return "no device is known"
    if all(v.takes is Takes.NO for v in verdicts):
        return f"no device can take {task.model}: on {verdicts[0].device}, {verdicts[0].why}"
    if free := next((v for v in verdicts if v.takes is Takes.COULD and v.change), None):
        return f"{task.model} has to be loaded first: {free.device} is {free.why}"
    return f"every device that could take {task.model} is busy: {verdicts[0].device} {verdicts[0].why}"


def _is_reached(service: Service, snapshot: Snapshot) -> bool:
    node = snapshot.nodes.get(service.node)
    devices = [snapshot.devices.get(key) for key in service.device_ids]
    return (
        node is not None
        and node.phase is NodePhase.READY
        and all(d is not None and d.phase is not DevicePhase.LOST for d in devices)
    )


def _is_before(other: Task, task: Task, snapshot: Snapshot) -> bool:
    if other.phase is TaskPhase.RUNNING:
        return True
    return other.phase is TaskPhase.READY and other.id != task.id and _claim(other, snapshot) < _claim(task, snapshot)


def _claim(task: Task, snapshot: Snapshot) -> tuple[bool, int, datetime, int]:
    """Who starts first among ready tasks of one model: who has waited for the bound, then rank, then age."""
    since = task.ready_at or snapshot.now
    bound = snapshot.plan.wait_bound_s if snapshot.plan else 0.0
    if bound and (snapshot.now - since).total_seconds() >= bound:
        return False, 0, since, int(task.id)
    return True, -list(Priority).index(task.priority), since, int(task.id)


def _needs(task: Task, width: int, snapshot: Snapshot) -> str:
    model = snapshot.models.get(task.model)
    if not task.model:
        return ""
    if model is None or not model.size_bytes:
        return task.model
    where = f"{width} devices of one node" if width > 1 else "a device"
    return f"{task.model}, {show_size(needed_bytes(model))} on {where}"


def needed_bytes(model: Model) -> int:
    """Device memory the model takes, by the estimate of the backend that serves it where nothing else is installed."""
    return backend(default_backend((), simulated=model.simulated)).needed_bytes(model.size_bytes)


def _backend_on(node: Node, model: Model) -> str:
    return default_backend(node.backends, simulated=model.simulated)


def _is_alone(device: Device) -> bool:
    return device.kind in (DeviceKind.CPU, DeviceKind.MIG)


def _fit(task: Task, snapshot: Snapshot) -> Fit:
    """What the planner knows of where the model fits: on devices that are there, and by their whole memory."""
    model = snapshot.models.get(task.model)
    if model is None:
        return fit(())
    offers = []
    for device in snapshot.devices.values():
        node = snapshot.nodes.get(device.node)
        if node is None or node.phase is not NodePhase.READY or device.phase is DevicePhase.LOST:
            continue
        name = _backend_on(node, model)
        if _suits(model, device) and _is_stored(task, device, snapshot) and name in node.backends:
            needed, cpu = backend(name).needed_bytes(model.size_bytes), device.kind is DeviceKind.CPU
            offers.append(Offer(device.id, device.node, device.memory_bytes, needed, cpu, _is_alone(device)))
    return fit(offers)


def _verdicts(task: Task, fitting: Fit, snapshot: Snapshot) -> tuple[Verdict, ...]:
    """Soonest first; those that take it never last, and of these the nearest to it first: its reason is the one to tell."""
    model = snapshot.models.get(task.model)
    stored = {
        p.node for p in snapshot.placements.values() if p.model == task.model and p.phase is PlacementPhase.STORED
    }
    order = list(Takes)

    def rank(device: Device, verdict: Verdict) -> tuple[bool | int | str | datetime, ...]:
        start = verdict.expected_start
        is_foreign = model is not None and not _suits(model, device)
        return (
            order.index(verdict.takes), start is None, start or snapshot.now,
            is_foreign, device.node not in stored, device.alias,
        )  # fmt: skip

    found = [(device, _verdict(task, device, fitting, snapshot)) for device in snapshot.devices.values()]
    return tuple(verdict for _, verdict in sorted(found, key=lambda pair: rank(*pair)))


def _suits(model: Model, device: Device) -> bool:
    return model.simulated == (device.kind is DeviceKind.SIMULATED)


def _is_stored(task: Task, device: Device, snapshot: Snapshot) -> bool:
    return any(
        p.model == task.model and p.node == device.node and p.phase is PlacementPhase.STORED
        for p in snapshot.placements.values()
    )


def _holding(device_id: str, snapshot: Snapshot) -> list[Service]:
    return [s for s in snapshot.services.values() if device_id in s.device_ids and s.phase not in GONE and not s.stop]


def _verdict(task: Task, device: Device, fitting: Fit, snapshot: Snapshot) -> Verdict:
    def answer(takes: Takes, why: str, change: str = "", start: datetime | None = None) -> Verdict:
        return Verdict(device.alias, takes, start, why, change)

    node = snapshot.nodes.get(device.node)
    if node is None or node.phase is not NodePhase.READY:
        return answer(Takes.NO, f"{device.node} is {node.phase.value if node else 'gone'}")
    if device.phase is DevicePhase.LOST:
        return answer(Takes.NO, f"lost: {device.detail}")
    model = snapshot.models.get(task.model)
    if model is None:
        return answer(Takes.NO, f"there is no model {task.model}")
    if not _suits(model, device):
        return answer(Takes.NO, "simulated" if not model.simulated else "a real device; the model is simulated")
    here = _holding(device.id, snapshot)
    mine = next((s for s in here if s.model == task.model and _is_reached(s, snapshot)), None)
    if mine is not None:
        start = _lane_start(task, device, snapshot)
        word = "holds" if mine.phase is ServicePhase.READY else f"is {mine.phase.value}:"
        return answer(Takes.YES, f"{word} {task.model}", start=start)
    if not _is_stored(task, device, snapshot):
        return answer(
            Takes.NO,
            f"{task.model} is not stored on {device.node}",
            f"gswarm model download {task.model} --node {device.node} --source ...",
        )
    wanted = _backend_on(node, model)
    if wanted not in node.backends:
        return answer(
            Takes.NO,
            f"backend {wanted} is not installed on {device.node}",
            f"gswarm client backend install {wanted}",
        )
    start = _lane_start(task, device, snapshot)
    if start is None and _failed_on(device.id, task, snapshot):  # the planner tries again after a while
        return answer(Takes.NO, f"{task.model} failed there", _serve(task, device))
    needed = backend(wanted).needed_bytes(model.size_bytes)
    if device.id not in fitting.devices:
        return answer(Takes.NO, _too_small(device, needed, fitting.width))
    names = ", ".join(s.name for s in here)
    if device.kind is DeviceKind.CPU:  # several services share it while memory lasts
        usable = int(device.memory_bytes * USABLE)
        held = {s.name: _held_bytes(s, snapshot) for s in here}
        free = usable - sum(held.values())
        if needed > usable:
            return answer(Takes.NO, f"{show_size(usable)} can be used, {show_size(needed)} are needed")
        if ours := [s.name for s in here if s.owner is Owner.PLANNER and free < needed <= free + held[s.name]]:
            return answer(Takes.COULD, _until_due(ours[0]), start=start)
        if needed > free:
            why = f"free {show_size(max(0, free))}, {show_size(needed - free)} too little; held by {names}"
            return answer(Takes.NO, why, f"gswarm model stop {here[0].name}")
        return answer(Takes.COULD, f"free {show_size(free)}, needs a load", _serve(task, device), start)
    people = [s.name for s in here if s.owner is not Owner.PLANNER]
    if people:
        return answer(
            Takes.NO, f"held by {', '.join(people)}, which the planner does not stop", f"gswarm model stop {people[0]}"
        )
    if stuck := next((s.name for s in here if not _is_reached(s, snapshot)), None):
        return answer(Takes.NO, f"held by {stuck}, which cannot be reached")
    if (
        start is None
        and (width := fitting.width) > 1
        and (count := _can_be_had(task, device.node, fitting, snapshot)) < width
    ):
        return answer(Takes.NO, f"{width} devices of {device.node} are needed, {count} can be had")
    if here:
        return answer(Takes.COULD, _until_due(names), start=start)
    has = f"free {show_size(device.memory_bytes)}"
    if fitting.width > 1:
        bare = [key for key in _of_node(device.node, fitting, snapshot) if not _holding(key, snapshot)]
        change = f"gswarm model serve {task.model}" if len(bare) >= fitting.width else ""
        return answer(Takes.COULD, f"{has}, one of {fitting.width}; needs a load", change, start)
    return answer(Takes.COULD, f"{has}, needs a load", _serve(task, device), start)


def _too_small(device: Device, needed: int, width: int) -> str:
    has = f"has {show_size(device.memory_bytes)}"
    if needed <= device.memory_bytes:
        return f"a processor; {width} GPUs of one node take it together"
    if width > 1 and not _is_alone(device) and needed > device.memory_bytes * width:
        return f"{has}, {show_size(needed // width)} are needed on each of {width} devices"
    if width > 1 and not _is_alone(device):
        return f"{has}, {show_size(needed)} are needed: {width} such devices of one node"
    return f"{has}, {show_size(needed)} are needed"


def _can_be_had(task: Task, node: str, fitting: Fit, snapshot: Snapshot) -> int:
    """How many of the devices of a node that the model fits on hold nothing of a person's, nor did it fail there."""
    return sum(
        all(s.owner is Owner.PLANNER and _is_reached(s, snapshot) for s in _holding(key, snapshot))
        and not _failed_on(key, task, snapshot)
        for key in _of_node(node, fitting, snapshot)
    )


def _of_node(node: str, fitting: Fit, snapshot: Snapshot) -> list[str]:
    return [key for key in fitting.devices if snapshot.devices[key].node == node]


def _failed_on(device_id: str, task: Task, snapshot: Snapshot) -> bool:
    return any(
        device_id in s.device_ids and s.model == task.model and s.phase is ServicePhase.FAILED
        for s in snapshot.services.values()
    )


def _serve(task: Task, device: Device) -> str:
    return f"gswarm model serve {task.model} --device {device.alias}"


def _until_due(holder: str) -> str:
    return f"holds {holder} until its tasks are through or this one is due"


def _held_bytes(service: Service, snapshot: Snapshot) -> int:
    """What the planner counts for it on each of its devices: its backend's estimate, whatever is measured."""
    model = snapshot.models.get(service.model)
    sizes = {v.version: v.size_bytes for v in model.versions} if model is not None else {}
    return backend(service.backend).needed_bytes(sizes.get(service.version, 0)) // max(1, len(service.device_ids))


def _lane_start(task: Task, device: Device, snapshot: Snapshot) -> datetime | None:
    lane = snapshot.lanes.get(device.id)
    if lane is None:
        return None
    return next((b.start for b in lane.blocks if task.id in b.task_ids), None)


def _expected(task: Task, snapshot: Snapshot) -> tuple[datetime | None, str, str]:
    if task.phase not in (TaskPhase.READY, TaskPhase.WAITING):
        return None, "", ""
    for lane in snapshot.lanes.values():
        for block in lane.blocks:
            if task.id in block.task_ids and not block.running:
                basis = f"{block.runs_seen} runs seen" if block.runs_seen else "a guess: no runs of it were seen yet"
                return block.start, lane.alias, basis
    return None, "", ""
