"""One pure function from a snapshot to what is on screen: immutable view models that panes and tests share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from gswarm.cluster.types import Device, DeviceKind, DevicePhase, Node, NodePhase
from gswarm.data.types import Chunk
from gswarm.model.types import Model, Placement, PlacementPhase, Service, ServicePhase
from gswarm.queue import explain
from gswarm.queue.types import Block, Explanation, Priority, Takes, Task, TaskPhase

from .figures import size, span
from .snapshot import Snapshot
from .view import BlockView, ChunkView, DeviceView, ModelView, NodeView, State, TaskView, Tone, Totals, View

UTIL = ("util_percent", "utilization_percent", "gpu_util_percent", "util_pct")
MEMORY = ("memory_used_bytes",)
POWER = ("power_mw",)
TEMPERATURE = ("temperature_c",)
UNREAD_AFTER_S = 600.0
MOST_ASKED = 40
"""Unplanned tasks that are asked each tick what they lack; the rest say so on their page."""


def pick(values: Mapping[str, float], names: Iterable[str]) -> float | None:
    """The first of `names` that has a value."""
    return next((values[name] for name in names if name in values), None)


def hues(snapshot: Snapshot) -> dict[str, int]:
    """A hue per model, in order of first service; models only planned or asked for come after them by name."""
    served = sorted(
        (s for s in snapshot.services.values() if s.created_at is not None), key=lambda s: (s.created_at, s.name)
    )
    order = dict.fromkeys(s.model for s in served)
    asked = {b.model for lane in snapshot.lanes.values() for b in lane.blocks}
    asked.update(t.model for t in snapshot.tasks.values())
    order.update(dict.fromkeys(sorted(asked)))
    order.pop("", None)
    return {name: number for number, name in enumerate(order)}


def build(snapshot: Snapshot) -> View:
    """The view of `snapshot`."""
    hue_of = hues(snapshot)
    nodes = _nodes(snapshot, hue_of)
    models = tuple(_model(snapshot, m, hue_of) for m in snapshot.models.values())
    tasks = _tasks(snapshot, hue_of)
    return View(
        totals=_totals(snapshot, nodes, len(tasks)),
        nodes=nodes,
        models=tuple(sorted(models, key=lambda m: (m.hue is None, m.hue or 0, m.name))),
        tasks=tasks,
        chunks=_chunks(snapshot),
        plan=snapshot.plan,
        sessions=tuple(sorted(snapshot.sessions.values(), key=lambda s: (s.stopped_at is not None, s.name))),
        events=tuple(sorted(snapshot.events.values(), key=lambda e: -int(e.id) if e.id.isdigit() else 0)),
        replay=snapshot.replay,
    )


def _age(snapshot: Snapshot, then: datetime | None) -> float:
    return max(0.0, (snapshot.now - then).total_seconds()) if then else 0.0


def _nodes(snapshot: Snapshot, hue_of: Mapping[str, int]) -> tuple[NodeView, ...]:
    by_node: dict[str, list[Device]] = {name: [] for name in sorted(snapshot.nodes, key=natural)}
    for device in snapshot.devices.values():
        by_node.setdefault(device.node, []).append(device)
    on_device: dict[str, Service] = {}
    for service in snapshot.services.values():
        if service.phase in (ServicePhase.LOADING, ServicePhase.READY, ServicePhase.STOPPING):
            on_device.update(dict.fromkeys(service.device_ids, service))
    views = []
    for name, devices in by_node.items():
        node = snapshot.nodes.get(name) or Node(name=name)
        devices.sort(key=lambda d: (d.kind is DeviceKind.CPU, d.kind is DeviceKind.SIMULATED, d.index))
        rows = tuple(_device(snapshot, node, d, on_device.get(d.id), hue_of) for d in devices)
        views.append(NodeView(name, node_state(node, _age(snapshot, node.last_seen)), node.detail, rows, node))
    return tuple(views)


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts n2 before n10."""
    parts: list[tuple[int, int | str]] = []
    digits = word = ""
    for c in text:
        if c.isdigit() and c.isascii():
            if word:
                parts.append((1, word))
                word = ""
            digits += c
        else:
            if digits:
                parts.append((0, int(digits)))
                digits = ""
            word += c
    if digits:
        parts.append((0, int(digits)))
    if word:
        parts.append((1, word))
    return tuple(parts)


def node_state(node: Node, silent_s: float) -> State:
    if node.phase is NodePhase.READY:
        return State("●", "ready", Tone.READY)
    if node.phase is NodePhase.UNREACHABLE:
        return State("×", f"silent {span(silent_s)}", Tone.FAILED)
    if node.phase is NodePhase.LEFT:
        return State("○", "left", Tone.QUIET)
    return State("◌", "unknown", Tone.QUIET)


def _device(
    snapshot: Snapshot, node: Node, device: Device, service: Service | None, hue_of: Mapping[str, int]
) -> DeviceView:
    values = snapshot.samples.get(device.id, {})
    lane = snapshot.lanes.get(device.id)
    blocks = tuple(_block(b, hue_of) for b in lane.blocks) if lane else ()
    trouble = ""
    if device.phase is DevicePhase.LOST:
        trouble = f"lost {span(_age(snapshot, device.changed_at))}"
    elif node.phase is NodePhase.UNREACHABLE:
        trouble = f"node silent {span(_age(snapshot, node.last_seen))}"
    elif node.phase is NodePhase.LEFT:
        trouble = "node left"
    util, memory, power = pick(values, UTIL), pick(values, MEMORY), pick(values, POWER)
    holds = (hue_of.get(service.model, 0), service.model) if service else None
    sampled = snapshot.sampled_at.get(device.id)
    moment = (snapshot.replay.at if snapshot.replay else None) or snapshot.now
    return DeviceView(
        id=device.id,
        alias=device.alias or device.id,
        node=device.node,
        short=(device.alias or device.id).rpartition(":")[2],
        name=device.name,
        is_simulated=device.kind is DeviceKind.SIMULATED,
        is_cpu=device.kind is DeviceKind.CPU,
        util=util,
        memory=None if memory is None else int(memory),
        memory_total=device.memory_bytes,
        watts=None if power is None else power / 1000,
        cap_w=None if device.power_limit_mw is None else device.power_limit_mw / 1000,
        celsius=pick(values, TEMPERATURE),
        trouble=trouble,
        holds=holds,
        is_idle=not trouble and holds is None and not blocks and not (util and util >= 0.5),
        age_s=None if sampled is None else max(0.0, moment.timestamp() - sampled),
        blocks=blocks,
    )


def _block(block: Block, hue_of: Mapping[str, int]) -> BlockView:
    return BlockView(
        model=block.model,
        hue=hue_of.get(block.model, 0),
        start=block.start.timestamp() if block.start else 0.0,
        end=block.end.timestamp() if block.end else 0.0,
        load_s=block.load_s,
        count=block.count or len(block.task_ids),
        is_running=block.running,
        task_ids=block.task_ids,
        reason=block.reason,
        runs_seen=block.runs_seen,
    )


def service_state(service: Service) -> State:
    """A service's phase as shown."""
    phase = service.phase
    if phase is ServicePhase.READY:
        return State("●", "ready", Tone.READY)
    if phase is ServicePhase.LOADING:
        return State("◐", f"loading {service.progress_permille // 10}%", Tone.CHANGING)
    if phase is ServicePhase.FAILED:
        return State("×", f"failed: {service.detail}" if service.detail else "failed", Tone.FAILED)
    if phase is ServicePhase.STOPPED:
        return State("○", "stopped", Tone.QUIET)
    return State("◐", phase.value, Tone.CHANGING)


_SERVICE_RANK = (
    ServicePhase.READY,
    ServicePhase.LOADING,
    ServicePhase.PENDING,
    ServicePhase.STOPPING,
    ServicePhase.FAILED,
    ServicePhase.STOPPED,
)


def model_state(services: Iterable[Service], placements: Iterable[Placement]) -> State:
    """Where a model stands: its best service, else its best copy."""
    ranked = sorted(
        (s for s in services if s.phase in _SERVICE_RANK[:5]), key=lambda s: (_SERVICE_RANK.index(s.phase), s.name)
    )
    if ranked:
        return service_state(ranked[0])
    copies = list(placements)
    for p in copies:
        if p.phase in (PlacementPhase.DOWNLOADING, PlacementPhase.PENDING):
            share = f" {100 * p.bytes_done // p.bytes_total}%" if p.bytes_total else ""
            return State("◐", f"fetching{share}", Tone.CHANGING)
    if any(p.phase is PlacementPhase.STORED for p in copies):
        return State("○", "stored", Tone.QUIET)
    if copies and (failed := copies[0]).phase is PlacementPhase.FAILED:
        return State("×", f"failed: {failed.detail}" if failed.detail else "failed", Tone.FAILED)
    return State("◌", "listed", Tone.QUIET)


def _model(snapshot: Snapshot, model: Model, hue_of: Mapping[str, int]) -> ModelView:
    services = tuple(s for s in snapshot.services.values() if s.model == model.name)
    placements = [p for p in snapshot.placements.values() if p.model == model.name]
    rates = [s.tokens_per_s for s in services if s.tokens_per_s is not None and s.phase is ServicePhase.READY]
    alias = {d.id: d.alias for d in snapshot.devices.values()}
    running = [
        alias.get(i, i) for s in services if s.phase in (ServicePhase.READY, ServicePhase.LOADING) for i in s.device_ids
    ]
    stored = sorted({p.node for p in placements if p.phase is PlacementPhase.STORED}, key=natural)
    size = model.size_bytes or max((p.bytes_total for p in placements), default=0)
    state = model_state(services, placements)
    if model.simulated and not services and state.glyph == "◌":
        state = State("○", "simulated", Tone.QUIET)
    return ModelView(
        name=model.name,
        hue=hue_of.get(model.name) if services else None,
        size=size,
        state=state,
        tokens_per_s=sum(rates) if rates else None,
        where=" ".join(running or stored),
        is_simulated=model.simulated,
        services=services,
        model=model,
    )


def lacks(task: Task, snapshot: Snapshot) -> str:
    """What keeps a ready task out of the plan, shortly; empty when a device could take it."""
    found = explanation(task, snapshot)
    if any(v.takes is not Takes.NO for v in found.verdicts):
        return ""
    model = snapshot.models.get(task.model)
    if model is None:
        return f"no model {task.model}"
    if found.reason.startswith("no device can take"):
        return f"needs {size(explain.needed_bytes(model))}"
    return found.reason.partition(":")[0]


def explanation(task: Task, snapshot: Snapshot) -> Explanation:
    """The queue's own explanation, computed here from what the mirror holds; a recording gives the same."""
    facts = explain.Snapshot(
        snapshot.now,
        snapshot.tasks,
        snapshot.devices,
        snapshot.nodes,
        snapshot.models,
        snapshot.placements,
        snapshot.services,
        snapshot.lanes,
        snapshot.plan,
    )
    return explain.explain(task, facts)


_PRIORITY = (Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW, Priority.UNKNOWN)
_OPEN = (TaskPhase.WAITING, TaskPhase.READY, TaskPhase.RUNNING, TaskPhase.BACKOFF)


def _tasks(snapshot: Snapshot, hue_of: Mapping[str, int]) -> tuple[TaskView, ...]:
    planned: dict[str, tuple[Block | None, str]] = {}
    for lane in snapshot.lanes.values():
        for run in lane.blocks:
            here: tuple[Block | None, str] = (run, lane.alias)
            planned.update(dict.fromkeys(run.task_ids, here))
    alias = {d.id: d.alias for d in snapshot.devices.values()}
    bound = snapshot.plan.wait_bound_s if snapshot.plan else 0.0
    views = []
    asked = 0
    for task in snapshot.tasks.values():
        if task.phase not in _OPEN:
            continue
        block, where = planned.get(task.id, (None, ""))
        running = task.phase is TaskPhase.RUNNING
        waited = _age(snapshot, task.ready_at or task.created_at)
        if running:
            waited = _age(snapshot, task.started_at)
            where = where or (alias.get(task.device_ids[0], "") if task.device_ids else task.node)
        blocked = ""
        if task.phase is TaskPhase.READY and block is None and asked < MOST_ASKED:
            asked += 1
            blocked = task.detail or lacks(task, snapshot)
        if task.phase is TaskPhase.WAITING:
            blocked = f"after {' '.join(task.depends_on)}" if task.depends_on else "waits"
        elif task.phase is TaskPhase.BACKOFF:
            blocked = "retries soon"
        views.append(
            TaskView(
                id=task.id,
                model=task.model or task.type.value,
                hue=hue_of.get(task.model),
                wait_s=waited,
                is_late=not running and bool(bound) and waited >= 0.75 * bound,
                starts=block.start if block and not running else None,
                where=where,
                blocked=blocked,
                is_running=running,
                who=task.actor,
                task=task,
            )
        )
    return tuple(sorted(views, key=_task_order))


def _task_order(view: TaskView) -> tuple[int, int, float, int, int]:
    task = view.task
    group = (
        3 if view.is_running else 0 if view.blocked and task.phase is TaskPhase.READY else 1 if not view.blocked else 2
    )
    starts = view.starts.timestamp() if view.starts else 4e12
    number = int(task.id) if task.id.isdigit() else 0
    return group, _PRIORITY.index(task.priority) if group == 0 else 0, starts, _PRIORITY.index(task.priority), number


def chunk_kind(chunk: Chunk) -> str:
    """What a chunk is, shortly: "f32[512,4096]", "json", "file"."""
    if chunk.dtype or chunk.shape:
        code = chunk.dtype.lstrip("<>=|")
        letters = code.rstrip("0123456789")
        width = code[len(letters) :]
        dtype = f"{letters}{int(width) * 8}" if width else code
        return f"{dtype}[{','.join(map(str, chunk.shape))}]"
    return chunk.name if chunk.type.value == "file" and chunk.name else chunk.type.value


def _chunks(snapshot: Snapshot) -> tuple[ChunkView, ...]:
    views = []
    for chunk in snapshot.chunks.values():
        age = _age(snapshot, chunk.created_at)
        held = [_age(snapshot, h.since) for h in chunk.holders]
        views.append(
            ChunkView(
                id=chunk.id,
                kind=chunk_kind(chunk),
                size=chunk.size_bytes,
                references=len(chunk.holders),
                age_s=age,
                is_unread=bool(held) and max(held) > UNREAD_AFTER_S and chunk.last_read_at is None,
                where=" ".join(sorted((place.node for place in chunk.locations), key=natural)),
                chunk=chunk,
            )
        )
    return tuple(sorted(views, key=lambda c: (c.age_s, c.id)))


def _totals(snapshot: Snapshot, nodes: tuple[NodeView, ...], queue: int) -> Totals:
    every = [device for node in nodes for device in node.devices]
    devices = [d for d in every if not d.is_cpu] or every
    utils = [d.util for d in devices if d.util is not None]
    memories = [d.memory for d in devices if d.memory is not None]
    powers = [d.watts for d in devices if d.watts is not None]
    rates = [
        s.tokens_per_s
        for s in snapshot.services.values()
        if s.tokens_per_s is not None and s.phase is ServicePhase.READY
    ]
    alarms = [alert.message for alert in snapshot.alerts.values()]
    # Rules on states say it already, where there are any.
    told = {alert.name for alert in snapshot.alerts.values() if not alert.metric}
    alarms += [f"{d.alias} {d.trouble}" for d in every if d.trouble.startswith("lost") and d.alias not in told]
    alarms += [f"{n.name} {n.state.word}" for n in nodes if n.state.tone is Tone.FAILED and n.name not in told]
    alarms += [f"{s.name} failed" for s in snapshot.services.values() if s.phase is ServicePhase.FAILED]
    return Totals(
        link=snapshot.link,
        age_s=snapshot.age_s,
        host=snapshot.host,
        nodes=len(nodes),
        devices=len(every),
        util=sum(utils) / len(utils) if utils else None,
        memory=sum(memories) if memories else None,
        memory_total=sum(d.memory_total for d in devices),
        watts=sum(powers) if powers else None,
        tokens_per_s=sum(rates) if rates else None,
        queue=queue,
        alarms=tuple(alarms),
        now=snapshot.now,
        problem=snapshot.problem,
    )
