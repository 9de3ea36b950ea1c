"""Feeds the strategy with what happens and carries out what it says: leases, loads, timers, and the plan on show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from gswarm.data.service import transfer
from gswarm.errors import GswarmError
from gswarm.model import operations
from gswarm.model.backends import backend
from gswarm.queue import parameters, plan, transitions
from gswarm.queue.durations import History, read
from gswarm.queue.references import Json, resolve
from gswarm.queue.transitions import BACKOFF, DONE, FAILED, FINAL, LEASE_S, READY, RUNNING
from gswarm.scheduler import strategy as seam
from gswarm.scheduler.strategy import Event, Load, Start, Unload
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.data_pb2 import Chunk
from gswarm.v1.models_pb2 import Model, Placement, Service
from gswarm.v1.queue_pb2 import Lane, Plan, Task, Workflow

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.state import Batch, Changed
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
TICK_S = 1.0
PLAN_S = 0.9
FINISHED_WATCHED = 1_000
INFERENCE = queue_pb2.TASK_TYPE_INFERENCE
PLACES = (Service, Device, Placement, Model, Node)


class Dispatcher:
    """One strategy, driven by the store's batches. Everything it knows can be derived from the state again."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store, self.nodes = host, host.store, host.nodes
        self.history = History()
        config = host.config.queue
        self.strategy = seam.create(config.strategy, wait_bound_s=config.wait_bound_s)
        self._leases: dict[str, float] = {}
        self._unfinished: dict[str, Task] = {}
        self._backoff: dict[str, Task] = {}
        self._own: dict[str, Task] = {}
        """Tasks the host itself carries out and waits for."""
        self._events: list[Event] = []
        self._devices: dict[str, seam.Device] = {}
        self._models: dict[str, seam.Model] = {}
        self._servers: dict[str, seam.Server] = {}
        self._starting: set[str] = set()
        """Tasks that a lease operation under way starts: the strategy knows of those already."""
        self._wake = asyncio.Event()
        self._places_due = True
        self._plan_due = True
        self._plan_next = 0.0
        self._shown: dict[str, Lane] = {}
        self._group: asyncio.TaskGroup | None = None
        self._archivable: list[str] = []
        self._attached: set[str] = set()

    def now(self) -> float:
        """The strategy's clock: it never goes back."""
        return time.monotonic()

    # Life

    async def run(self) -> None:
        """Dispatch until cancelled."""
        self.history.load(await self.store.apply(read, actor="host", durable=False))
        await self.store.insist(self._renew_all, method="leases")
        unsubscribe = self.store.subscribe(self._on_batch)
        self._learn_all()
        self._archivable = [w.id for w in self.store.state.list(Workflow) if w.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE]
        try:
            async with asyncio.TaskGroup() as self._group:
                self._wake.set()
                ticked = time.monotonic()
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(asyncio.get_running_loop().time() + TICK_S):
                            await self._wake.wait()
                    self._wake.clear()
                    if time.monotonic() - ticked >= TICK_S:  # also when something happens all the time
                        ticked = time.monotonic()
                        await self._tick()
                    await self._step()
        finally:
            unsubscribe()

    async def _tick(self) -> None:
        self._events.append(seam.Ticked())
        attached = {n.name for n in self.store.state.list(Node) if self.nodes.connected(n.name)}
        if attached != self._attached:  # an agent is attached only after the change that says so is published
            self._attached, self._places_due = attached, True
        await self._timers()

    def _renew_all(self, tx: Transaction) -> None:
        """After a host start every lease gets one full term."""
        until = time.monotonic() + LEASE_S
        for task in tx.list(Task):
            if task.phase == RUNNING:
                self._leases[task.id] = until

    def _on_batch(self, batch: Batch) -> None:
        for change in batch.changes:
            if change.kind == common_pb2.KIND_TASK:
                self._task_changed(change)
            elif isinstance(change.new or change.old, PLACES):
                self._places_due = True
                self._load_seen(change)
                self._wake.set()
            elif isinstance(change.new, Workflow) and change.new.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE:
                if change.new.id not in self._archivable:
                    self._archivable.append(change.new.id)
            elif isinstance(change.new or change.old, Chunk) and self._own:
                self._wake.set()

    def _task_changed(self, change: Changed) -> None:
        task = change.new if isinstance(change.new, Task) else None
        old = change.old if isinstance(change.old, Task) else None
        self._plan_due = True
        self._wake.set()
        if old is not None and (task is None or task.phase != old.phase):
            self._forget(old, is_done=task is not None and task.phase == DONE)
        if task is None:
            return
        if task.phase == DONE and task.type == INFERENCE and task.HasField("started_at"):
            self._run_seen(task)
        if old is None or task.phase != old.phase:
            self._learn(task)
        elif task.id in self._unfinished:
            self._unfinished[task.id] = task
            if task.phase == READY and task.priority != old.priority:
                self._arrive(task)

    def _forget(self, task: Task, *, is_done: bool) -> None:
        self._unfinished.pop(task.id, None)
        self._backoff.pop(task.id, None)
        self._own.pop(task.id, None)
        self._leases.pop(task.id, None)
        if task.type == INFERENCE and task.phase in (READY, RUNNING):
            starting = task.phase == READY and not is_done and task.id in self._starting
            if not starting:
                self._events.append(seam.Completed(task.id) if is_done else seam.Withdrawn(task.id))

    def _learn_all(self) -> None:
        """What is in the state already, in the order in which it became ready: the strategy's lines go by age."""
        for task in sorted(self.store.state.list(Task), key=lambda t: (t.ready_at.seconds, t.ready_at.nanos)):
            self._learn(task)

    def _learn(self, task: Task) -> None:
        if task.phase in FINAL:
            return
        self._unfinished[task.id] = task
        if task.phase == READY:
            if task.type == INFERENCE:
                self._arrive(task)
            else:
                self._own[task.id] = task
        elif task.phase == RUNNING:
            self._leases.setdefault(task.id, time.monotonic() + LEASE_S)
            if task.type != INFERENCE:
                self._own[task.id] = task
            elif task.id not in self._starting:
                rank = seam.Rank(max(1, int(task.priority)))
                self._events.append(seam.Started(seam.Job(task.id, task.model, rank), task.service))
        elif task.phase == BACKOFF:
            self._backoff[task.id] = task

    def _arrive(self, task: Task) -> None:
        waited = max(0.0, time.time() - task.ready_at.seconds - task.ready_at.nanos / 1e9)
        rank = seam.Rank(max(1, int(task.priority)))
        if task.model not in self._models:
            self._places_due = True  # no one had asked for it until now
        self._events.append(seam.Arrived(seam.Job(task.id, task.model, rank, waited_s=waited)))

    def _run_seen(self, task: Task) -> None:
        seconds = (task.finished_at.ToDatetime() - task.started_at.ToDatetime()).total_seconds()
        device = self.store.state.get(Device, task.device_ids[0]) if task.device_ids else None
        self._remember(self.history.add("run", task.model, plan.kind_of(device), seconds))

    def _load_seen(self, change: Changed) -> None:
        new, old = change.new, change.old
        ready = models_pb2.SERVICE_PHASE_READY
        if (
            isinstance(new, Service)
            and isinstance(old, Service)
            and new.phase == ready != old.phase
            and new.HasField("load_s")
        ):
            device = self.store.state.get(Device, new.device_ids[0])
            self._remember(self.history.add("load", new.model, plan.kind_of(device), new.load_s))

    def _remember(self, value: tuple[str, bytes]) -> None:
        if self._group is not None:
            name, body = value
            self._group.create_task(
                self.store.insist(lambda tx: tx.put_value(name, body), method="history"), name="history"
            )

    # One round

    async def _step(self) -> None:
        while self._places_due or self._events:  # a load makes a place: the plan is shown with it, never without
            if self._places_due:
                self._places_due = False
                self._events += self._places()
            events, self._events = self._events, []
            starts: dict[str, list[Start]] = defaultdict(list)
            for instruction in self.strategy.handle(self.now(), events):
                match instruction:
                    case Start():
                        starts[instruction.server].append(instruction)
                    case Load():
                        await self._load(instruction)
                    case Unload():
                        await self._unload(instruction)
            for server, orders in starts.items():
                await self._lease(server, orders)
        await self._carry_out_own()
        if self._plan_due and time.monotonic() >= self._plan_next:
            self._plan_due = False
            await self._show_plan()

    def _places(self) -> list[Event]:
        """What has changed about devices, models and servers since the strategy was last told."""
        state = self.store.state
        devices, models, servers = self._look()
        events: list[Event] = []
        events += [seam.DeviceIs(d) for key, d in devices.items() if self._devices.get(key) != d]
        events += [seam.ModelIs(m) for key, m in models.items() if self._models.get(key) != m]
        events += [seam.ServerIs(s) for key, s in servers.items() if self._servers.get(key) != s]
        for key in self._servers.keys() - servers.keys():
            service = state.get(Service, key)
            events.append(
                seam.ServerGone(key, service is not None and service.phase == models_pb2.SERVICE_PHASE_FAILED)
            )
        events += [seam.ModelGone(key) for key in self._models.keys() - models.keys()]
        events += [seam.DeviceGone(key) for key in self._devices.keys() - devices.keys()]
        self._devices, self._models, self._servers = devices, models, servers
        return events

    def _look(self) -> tuple[dict[str, seam.Device], dict[str, seam.Model], dict[str, seam.Server]]:
        state = self.store.state
        sizes = {(m.name, v.version): v.size_bytes for m in state.list(Model) for v in m.versions}
        found = {
            d.id: d
            for d in state.list(Device)
            if self.nodes.connected(d.node) and d.phase != cluster_pb2.DEVICE_PHASE_LOST
        }
        # A processor is shared with everything else; a GPU is planned as one server's.
        devices = {
            key: seam.Device(key, d.memory_bytes, shared=d.kind == cluster_pb2.DEVICE_KIND_CPU)
            for key, d in found.items()
        }
        wanted = {task.model for task in self._unfinished.values() if task.type == INFERENCE}
        stored = {(p.model, p.node) for p in state.list(Placement) if p.phase == models_pb2.PLACEMENT_PHASE_STORED}
        models = {m.name: self._model(m, found, stored) for m in state.list(Model) if m.name in wanted}
        servers = {}
        for s in state.list(Service):
            if s.phase in operations.GONE or s.stop:
                continue
            needed = backend(s.backend).needed_bytes(sizes.get((s.model, s.version), 0))
            servers[s.name] = seam.Server(
                s.name,
                s.model,
                tuple(s.device_ids),
                needed,
                max(1, s.max_in_flight),
                ready=s.phase == models_pb2.SERVICE_PHASE_READY,
                ours=s.owner == common_pb2.OWNER_PLANNER,
                reachable=self.nodes.connected(s.node) and all(key in found for key in s.device_ids),
            )
        return devices, models, servers

    def _model(self, model: Model, devices: dict[str, Device], stored: set[tuple[str, str]]) -> seam.Model:
        chosen = backend("simulated" if model.simulated else "transformers")
        able = {n.name for n in self.store.state.list(Node) if chosen.name in n.backends}
        needed = chosen.needed_bytes(model.size_bytes)
        fitting = tuple(
            key
            for key, d in sorted(devices.items())
            if (model.name, d.node) in stored and d.node in able and chosen.accepts(d.kind) and needed <= d.memory_bytes
        )
        kind = plan.kind_of(devices[fitting[0]] if fitting else None)
        return seam.Model(
            model.name,
            needed,
            fitting,
            round(self.history.load_time(model.name, kind).seconds, 1),
            round(self.history.run(model.name, kind).seconds, 2),
        )

    async def _lease(self, server: str, orders: list[Start]) -> None:
        """Lease tasks to a service, all in one operation, then tell its node."""
        leases: list[agent_pb2.Lease] = []
        refused: list[str] = []

        def operation(tx: Transaction) -> str:
            leases.clear()
            refused.clear()
            current = tx.get(Service, server)
            for order in orders:
                task = tx.edit(Task, order.job)
                if task is None or task.phase != READY or current is None:
                    refused.append(order.job)
                    continue
                try:
                    params = resolve(json.loads(task.params_json), _outputs(tx, task))
                except GswarmError as error:
                    refused.append(order.job)
                    transitions.finish(tx, task, FAILED, str(error))
                    continue
                task.passed_over = order.passed_over
                transitions.lease(tx, task, node=current.node, service=server, device_ids=current.device_ids)
                leases.append(
                    agent_pb2.Lease(task=task, params_json=json.dumps(params), term_s=LEASE_S, service=server)
                )
            return current.node if current is not None else ""

        self._starting = {order.job for order in orders}
        try:
            node = await self.store.insist(operation, method="lease")
        finally:
            self._starting = set()
        self._events += [seam.Withdrawn(job) for job in refused]
        for lease in leases:
            self._leases[lease.task.id] = time.monotonic() + LEASE_S
            if not self.nodes.send(node, agent_pb2.AttachResponse(lease=lease)):
                self._leases[lease.task.id] = 0.0  # the timer takes it back

    async def _load(self, order: Load) -> None:
        """Serve a model where the strategy wants it; a refusal is told to it."""
        request = models_pb2.ServeRequest(model=order.model, devices=order.devices, owner=common_pb2.OWNER_PLANNER)
        try:
            await self.store.insist(operations.serve(request), actor="planner", method="load")
        except GswarmError as error:
            log.info("the planner cannot load %s on %s: %s", order.model, order.devices[0], error)
            self._events.append(seam.LoadRefused(order.model, order.devices[0]))
        self._places_due = True

    async def _unload(self, order: Unload) -> None:
        """End a service that the planner started; a user's is never touched."""

        def operation(tx: Transaction) -> None:
            known = tx.get(Service, order.server)
            if known is not None and known.owner == common_pb2.OWNER_PLANNER:
                operations.stop_service(order.server)(tx)

        await self.store.insist(operation, actor="planner", method="unload")

    @property
    def unfinished(self) -> int:
        """Tasks that have not ended."""
        return len(self._unfinished)

    # Tasks that the host carries out itself

    async def _carry_out_own(self) -> None:
        for task in list(self._own.values()):
            if task.phase == READY:
                await self._start_own(task)
            elif task.phase == RUNNING and (outcome := self._own_outcome(task)) is not None:
                await self.store.insist(
                    partial(_end_own, task_id=task.id, done=outcome[0], why=outcome[1]), method="task"
                )

    async def _start_own(self, task: Task) -> None:
        try:
            await self.store.insist(partial(self._begin_own, task_id=task.id), actor=task.actor, method="task")
        except GswarmError:
            raise
        except Exception:  # our own mistake costs this task, not the queue
            log.exception("task %s could not be carried out", task.id)
            why = "the host failed to do this; see gswarm logs host"
            await self.store.insist(partial(_give_up, task_id=task.id, why=why), method="task")

    def _begin_own(self, tx: Transaction, task_id: str) -> None:
        task = tx.edit(Task, task_id)
        if task is None or task.phase != READY:
            return
        transitions.lease(tx, task, node="", service="", device_ids=())
        try:
            params = resolve(json.loads(task.params_json), _outputs(tx, task))
            task.output_json = json.dumps(_do(tx, task, params if isinstance(params, dict) else {}))
            tx.put(task)
        except GswarmError as error:
            transitions.attempt_failed(tx, task, str(error))

    def _own_outcome(self, task: Task) -> tuple[bool, str] | None:
        """(done, why not) once a download, service or transfer has come to its end; None while it is under way."""
        made = json.loads(task.output_json or "{}")
        state = self.store.state
        if task.timeout_s and (datetime.now(UTC) - task.started_at.ToDatetime(UTC)).total_seconds() > task.timeout_s:
            return False, f"not done after {task.timeout_s:g} s"
        if task.type == queue_pb2.TASK_TYPE_DOWNLOAD:
            placements = [state.get(Placement, key) for key in made.get("placements", [])]
            for placement in placements:
                if placement is None or placement.phase == models_pb2.PLACEMENT_PHASE_FAILED:
                    return False, placement.detail if placement else "it was deleted meanwhile"
            stored = models_pb2.PLACEMENT_PHASE_STORED
            return (True, "") if all(p is not None and p.phase == stored for p in placements) else None
        if task.type in (queue_pb2.TASK_TYPE_SERVE, queue_pb2.TASK_TYPE_STOP):
            service = state.get(Service, made.get("service", ""))
            if task.type == queue_pb2.TASK_TYPE_STOP:
                gone = service is None or service.phase == models_pb2.SERVICE_PHASE_STOPPED
                return (True, "") if gone else None
            if service is None or service.stop or service.phase == models_pb2.SERVICE_PHASE_FAILED:
                return False, service.detail if service and service.detail else "the service was stopped meanwhile"
            return (True, "") if service.phase == models_pb2.SERVICE_PHASE_READY else None
        chunk = state.get(Chunk, made.get("chunk", ""))
        place = next((p for p in chunk.locations if p.node == made.get("node")), None) if chunk else None
        if place is None or place.phase == data_pb2.LOCATION_PHASE_FAILED:
            return False, place.detail if place else "the chunk was deleted meanwhile"
        return (True, "") if place.phase == data_pb2.LOCATION_PHASE_PRESENT else None

    # Time

    async def _timers(self) -> None:
        """Take back what is overdue: leases that ran out, retries that are due; let finished workflows leave the watch."""
        now, wall = time.monotonic(), time.time()
        lost = [
            key
            for key, until in self._leases.items()
            if until < now and (task := self._unfinished.get(key)) is not None and task.type == INFERENCE
        ]
        due = [key for key, task in self._backoff.items() if task.retry_at.seconds <= wall]
        if lost or due:
            await self.store.insist(lambda tx: _take_back(tx, lost, due), method="timers")
        if self._unfinished:
            self._plan_due = True
        await self._archive()

    async def _archive(self) -> None:
        state = self.store.state
        watched = state.count(Task) - len(self._unfinished)
        while watched > FINISHED_WATCHED and self._archivable:
            name = self._archivable.pop(0)
            workflow = state.get(Workflow, name)
            if workflow is None:
                continue
            watched -= workflow.tasks
            await self.store.insist(partial(_archive, workflow_id=name), method="archive")

    def renewed(self, attempts: Iterable[agent_pb2.TaskAttempt]) -> None:
        """An agent still works on these."""
        until = time.monotonic() + LEASE_S
        for attempt in attempts:
            if attempt.task_id in self._leases:
                self._leases[attempt.task_id] = until

    # The plan

    async def _show_plan(self) -> None:
        state = self.store.state
        began = time.monotonic()
        view = plan.View(
            now=datetime.now(UTC),
            clock=self.now(),
            devices={d.id: d for d in state.list(Device)},
            services={s.name: s for s in state.list(Service) if s.phase not in operations.GONE},
            tasks=dict(self._unfinished),
            servers=dict(self._servers),
            history=self.history,
            strategy=self.strategy,
        )
        copied = plan.frozen(self.strategy)
        made, lanes = await asyncio.to_thread(lambda: plan.make(replace(view, strategy=copied())))
        # A long queue takes long to run ahead: then look less often, so that planning never takes over a core.
        self._plan_next = time.monotonic() + max(PLAN_S, 10 * (time.monotonic() - began))
        fresh = {lane.device_id: lane for lane in lanes}
        known = state.get(Plan, "plan")
        if fresh == self._shown and known is not None and _same_plan(known, made):
            return
        gone = self._shown.keys() - fresh.keys()
        changed = [lane for key, lane in fresh.items() if self._shown.get(key) != lane]
        self._shown = fresh

        def operation(tx: Transaction) -> None:
            for key in gone:
                tx.delete(Lane, key)
            for lane in changed:
                tx.put(lane)
            tx.put(made)

        await self.store.apply(operation, actor="planner", durable=False)


def _same_plan(a: Plan, b: Plan) -> bool:
    return (
        all(
            getattr(a, name) == getattr(b, name)
            for name in ("swaps", "swaps_first_come", "ready", "running", "blocked")
        )
        and not b.ready
    )


def _outputs(tx: Transaction, task: Task) -> Callable[[str], Json]:
    found = transitions.outputs(tx, task)
    return lambda action: found.get(action)


def _do(tx: Transaction, task: Task, params: dict[str, Any]) -> dict[str, object]:
    """Carry out a host-side task's change; what it made, for waiting on and for its dependents."""
    parameters.check(task.type, params if "model" in params else params | ({"model": task.model} if task.model else {}))
    if task.type == queue_pb2.TASK_TYPE_DOWNLOAD:
        nodes = [params["node"]] if "node" in params else []
        asked = models_pb2.DownloadRequest(name=params["name"], source=params["source"], nodes=nodes)
        response = operations.download(asked)(tx)
        return {"model": response.model.name, "placements": [p.id for p in response.placements]}
    if task.type == queue_pb2.TASK_TYPE_SERVE:
        device = params.get("device", [])
        request = models_pb2.ServeRequest(
            model=task.model,
            devices=[device] if isinstance(device, str) else device,
            port=params.get("port", 0),
            backend=params.get("backend", ""),
            name=params.get("service", ""),
        )
        return {"service": operations.serve(request)(tx).service.name}
    if task.type == queue_pb2.TASK_TYPE_STOP:
        return {"service": operations.stop_service(params["service"])(tx).service.name}
    transfer(params["chunk"], params["node"])(tx)
    return {"chunk": params["chunk"], "node": params["node"]}


def _end_own(tx: Transaction, task_id: str, done: bool, why: str) -> None:
    task = tx.edit(Task, task_id)
    if task is None or task.phase != RUNNING:
        return
    if done:
        transitions.finish(tx, task, DONE, "")
    else:
        transitions.attempt_failed(tx, task, why)


def _give_up(tx: Transaction, task_id: str, why: str) -> None:
    task = tx.edit(Task, task_id)
    if task is not None and task.phase == READY:
        transitions.lease(tx, task, node="", service="", device_ids=())
        transitions.attempt_failed(tx, task, why)


def _take_back(tx: Transaction, lost: list[str], due: list[str]) -> None:
    for key in lost:
        task = tx.edit(Task, key)
        if task is not None and task.phase == RUNNING:
            tx.event(
                "task.lost",
                f"task {key}: {task.node} did not renew its lease",
                subject=task,
                severity=common_pb2.SEVERITY_WARNING,
            )
            transitions.ready_again(tx, task, f"{task.node} did not renew its lease")
    for key in due:
        task = tx.edit(Task, key)
        if task is not None and task.phase == BACKOFF:
            task.phase = READY
            task.ready_at.FromDatetime(tx.now)
            task.ClearField("retry_at")
            tx.put(task)


def _archive(tx: Transaction, workflow_id: str) -> None:
    workflow = tx.get(Workflow, workflow_id)
    if workflow is None or workflow.phase == queue_pb2.WORKFLOW_PHASE_ACTIVE:
        return
    for task in list(transitions.siblings(tx, workflow)):
        tx.archive(Task, task.id)
    tx.delete(Workflow, workflow_id)
