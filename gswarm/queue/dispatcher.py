"""Feeds the strategy with what happens and carries out what it says: leases, loads, timers, and the plan on show."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from gswarm.data.service import transfer
from gswarm.errors import GswarmError
from gswarm.model import operations
from gswarm.model.backends import backend
from gswarm.queue import plan, transitions
from gswarm.queue.history import History, read
from gswarm.queue.transitions import BACKOFF, DONE, FAILED, FINAL, LEASE_S, READY, RUNNING
from gswarm.queue.workflow import resolve
from gswarm.scheduler.strategies import strategy
from gswarm.scheduler.strategy import Arrived, Ended, Event, Job, Load, Places, Site, Slot, Start, Tick
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.data_pb2 import Chunk
from gswarm.v1.models_pb2 import Model, Placement, Service
from gswarm.v1.queue_pb2 import Lane, Plan, Task, Workflow

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.store import Batch, Changed, Transaction

log = logging.getLogger("gswarm.host")
TICK_S = 1.0
FINISHED_WATCHED = 1_000
INFERENCE = queue_pb2.TASK_TYPE_INFERENCE
PLACES = (Service, Device, Placement, Model, Node)


class Dispatcher:
    """One strategy, driven by the store's batches. Everything it knows can be derived from the state again."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store, self.nodes = host, host.store, host.nodes
        self.history = History()
        config = host.config.queue
        self.strategy = strategy(config.strategy, wait_bound_s=config.wait_bound_s)
        self._leases: dict[str, float] = {}
        self._unfinished: dict[int, Task] = {}
        self._backoff: dict[str, Task] = {}
        self._own: dict[str, Task] = {}
        """Tasks the host itself carries out and waits for."""
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._places_due = True
        self._plan_due = True
        self._shown: dict[str, Lane] = {}
        self._group: asyncio.TaskGroup | None = None
        self._archivable: list[str] = []

    def now(self) -> float:
        """The strategy's clock: wall time, since ready times are kept across restarts."""
        return time.time()

    # Life

    async def run(self) -> None:
        """Dispatch until cancelled."""
        self.history.load(await self.store.apply(read, actor="host", durable=False))
        await self.store.apply(self._renew_all, actor="host", method="leases")
        unsubscribe = self.store.subscribe(self._on_batch)
        for task in self.store.state.list(Task):
            self._learn(task)
        self._archivable = [w.id for w in self.store.state.list(Workflow) if w.phase != queue_pb2.WORKFLOW_PHASE_ACTIVE]
        try:
            async with asyncio.TaskGroup() as self._group:
                self._wake.set()
                while True:
                    try:
                        async with asyncio.timeout(TICK_S):
                            await self._wake.wait()
                    except TimeoutError:
                        self._events.append(Tick())
                        await self._timers()
                    self._wake.clear()
                    await self._step()
        finally:
            unsubscribe()

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
            self._forget(old)
        if task is None:
            return
        if task.phase == DONE and task.type == INFERENCE and task.HasField("started_at"):
            self._run_seen(task)
        if old is None or task.phase != old.phase:
            self._learn(task)
        elif int(task.id) in self._unfinished:
            self._unfinished[int(task.id)] = task
            if task.phase == READY and task.priority != old.priority:
                self._arrive(task)

    def _forget(self, task: Task) -> None:
        self._unfinished.pop(int(task.id), None)
        self._backoff.pop(task.id, None)
        self._own.pop(task.id, None)
        self._leases.pop(task.id, None)
        if task.type == INFERENCE and task.phase in (READY, RUNNING):
            self._events.append(Ended((int(task.id),)))

    def _learn(self, task: Task) -> None:
        if task.phase in FINAL:
            return
        self._unfinished[int(task.id)] = task
        if task.phase == READY:
            if task.type == INFERENCE:
                self._arrive(task)
            else:
                self._own[task.id] = task
        elif task.phase == RUNNING:
            self._leases.setdefault(task.id, time.monotonic() + LEASE_S)
            if task.type != INFERENCE:
                self._own[task.id] = task
        elif task.phase == BACKOFF:
            self._backoff[task.id] = task

    def _arrive(self, task: Task) -> None:
        ready = task.ready_at.seconds + task.ready_at.nanos / 1e9
        self._events.append(Arrived((Job(int(task.id), task.model, ready, int(task.priority)),)))

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
                self.store.apply(lambda tx: tx.put_value(name, body), actor="host", method="history"), name="history"
            )

    # One round

    async def _step(self) -> None:
        if self._places_due:
            self._places_due = False
            self._events.append(self._places())
        while self._events:
            events, self._events = self._events, []
            for event in events:
                for instruction in self.strategy.handle(event, self.now()):
                    if isinstance(instruction, Start):
                        await self._lease(instruction)
                    else:
                        await self._load(instruction)
        await self._carry_out_own()
        if self._plan_due:
            self._plan_due = False
            await self._show_plan()

    def _places(self) -> Places:
        state = self.store.state
        devices = {d.id: d for d in state.list(Device)}
        services = list(state.list(Service))
        ready = models_pb2.SERVICE_PHASE_READY
        slots = tuple(
            Slot(s.name, s.model, max(1, s.max_in_flight), s.node)
            for s in services
            if s.phase == ready and not s.stop and self.nodes.connected(s.node)
        )
        wanted = {task.model for task in self._unfinished.values() if task.type == INFERENCE}
        models = {m.name: m for m in state.list(Model) if m.name in wanted}
        stored = {(p.model, p.node) for p in state.list(Placement) if p.phase == models_pb2.PLACEMENT_PHASE_STORED}
        sizes = {(m.name, v.version): v.size_bytes for m in state.list(Model) for v in m.versions}
        sites = [
            self._site(device, services, models, stored, sizes)
            for device in devices.values()
            if self.nodes.connected(device.node) and device.phase != cluster_pb2.DEVICE_PHASE_LOST
        ]
        return Places(slots, tuple(sites))

    def _site(
        self,
        device: Device,
        services: list[Service],
        models: dict[str, Model],
        stored: set[tuple[str, str]],
        sizes: dict[tuple[str, str], int],
    ) -> Site:
        here = [s for s in services if device.id in s.device_ids and s.phase not in operations.GONE and not s.stop]
        failed = {s.model for s in services if device.id in s.device_ids and s.phase == models_pb2.SERVICE_PHASE_FAILED}
        owned = tuple(s.name for s in here if s.owner == common_pb2.OWNER_PLANNER)
        foreign = operations.promised_bytes([s for s in here if s.name not in owned], sizes, device.id)
        needs = {}
        for name, model in models.items():
            simulated = device.kind == operations.SIMULATED
            if model.simulated != simulated or (name, device.node) not in stored or name in failed:
                continue
            chosen = backend("simulated" if simulated else "transformers")
            needed = chosen.needed_bytes(model.size_bytes)
            if chosen.accepts(device.kind) and foreign + needed <= device.memory_bytes:
                needs[name] = needed
        taken = operations.promised_bytes(here, sizes, device.id)
        loads = {name: self.history.load_time(name, plan.kind_of(device)).seconds for name in needs}
        return Site(device.id, device.memory_bytes - taken, tuple(s.name for s in here), owned, loads, needs)

    async def _lease(self, start: Start) -> None:
        """Lease tasks to a service, all in one operation, then tell its node."""
        service = self.store.state.get(Service, start.slot)
        leases: list[agent_pb2.Lease] = []

        def operation(tx: Transaction) -> list[int]:
            gone: list[int] = []
            current = tx.get(Service, start.slot)
            for number in start.jobs:
                task = tx.edit(Task, str(number))
                if task is None or task.phase != READY or current is None:
                    gone.append(number)
                    continue
                try:
                    params = resolve(json.loads(task.params_json), transitions.outputs(tx, task))
                except GswarmError as error:
                    transitions.finish(tx, task, FAILED, str(error))
                    continue
                task.passed_over = passed[number]
                transitions.lease(tx, task, node=current.node, service=current.name, device_ids=current.device_ids)
                leases.append(
                    agent_pb2.Lease(task=task, params_json=json.dumps(params), term_s=LEASE_S, service=current.name)
                )
            return gone

        passed = {number: self.strategy.passed_over(number) for number in start.jobs}
        gone = await self.store.apply(operation, actor="host", method="lease")
        if gone:
            self._events.append(Ended(tuple(gone)))
        for lease in leases:
            self._leases[lease.task.id] = time.monotonic() + LEASE_S
            if service is None or not self.nodes.send(service.node, agent_pb2.AttachResponse(lease=lease)):
                self._leases[lease.task.id] = 0.0  # the timer takes it back

    async def _load(self, order: Load) -> None:
        """Stop what the planner owns there, then serve the model; a refusal is the reason the tasks wait for."""

        def operation(tx: Transaction) -> None:
            for name in order.stop:
                known = tx.get(Service, name)
                if known is not None and known.owner == common_pb2.OWNER_PLANNER:
                    operations.stop_service(name)(tx)
            request = models_pb2.ServeRequest(model=order.model, devices=[order.device], owner=common_pb2.OWNER_PLANNER)
            operations.serve(request)(tx)

        try:
            await self.store.apply(operation, actor="planner", method="load")
        except GswarmError as error:
            log.info("the planner cannot load %s on %s: %s", order.model, order.device, error)
        self._places_due = True

    # Tasks that the host carries out itself

    async def _carry_out_own(self) -> None:
        for task in list(self._own.values()):
            if task.phase == READY:
                await self.store.apply(partial(self._begin_own, task_id=task.id), actor=task.actor, method="task")
            elif task.phase == RUNNING and (outcome := self._own_outcome(task)) is not None:
                await self.store.apply(
                    partial(_end_own, task_id=task.id, done=outcome[0], why=outcome[1]),
                    actor="host",
                    method="task",
                )

    def _begin_own(self, tx: Transaction, task_id: str) -> None:
        task = tx.edit(Task, task_id)
        if task is None or task.phase != READY:
            return
        transitions.lease(tx, task, node="", service="", device_ids=())
        try:
            params = resolve(json.loads(task.params_json), transitions.outputs(tx, task))
            task.output_json = json.dumps(_do(tx, task.type, params))
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
            if until < now and (task := self._unfinished.get(int(key))) is not None and task.type == INFERENCE
        ]
        due = [key for key, task in self._backoff.items() if task.retry_at.seconds <= wall]
        if lost or due:
            await self.store.apply(lambda tx: _take_back(tx, lost, due), actor="host", method="timers")
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
            await self.store.apply(partial(_archive, workflow_id=name), actor="host", method="archive")

    def renewed(self, attempts: Iterable[agent_pb2.TaskAttempt]) -> None:
        """An agent still works on these."""
        until = time.monotonic() + LEASE_S
        for attempt in attempts:
            if attempt.task_id in self._leases:
                self._leases[attempt.task_id] = until

    # The plan

    async def _show_plan(self) -> None:
        state = self.store.state
        view = plan.View(
            now=datetime.now(UTC),
            devices={d.id: d for d in state.list(Device)},
            services={s.name: s for s in state.list(Service) if s.phase not in operations.GONE},
            tasks=self._unfinished,
            batches=self.strategy.plan(self.now()),
            history=self.history,
            strategy=self.strategy.name,
            wait_bound_s=self.strategy.wait_bound_s,
        )
        made, lanes = plan.make(view)
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


def _do(tx: Transaction, kind: queue_pb2.TaskType.ValueType, params: dict[str, Any]) -> dict[str, object]:
    """Carry out a host-side task's change; what it made, for waiting on and for its dependents."""
    if kind == queue_pb2.TASK_TYPE_DOWNLOAD:
        nodes = [params["node"]] if params.get("node") else []
        response = operations.download(
            models_pb2.DownloadRequest(name=params["name"], source=params["source"], nodes=nodes)
        )(tx)
        return {"model": response.model.name, "placements": [p.id for p in response.placements]}
    if kind == queue_pb2.TASK_TYPE_SERVE:
        devices = params.get("device") or []
        request = models_pb2.ServeRequest(
            model=params["model"],
            devices=[devices] if isinstance(devices, str) else devices,
            port=int(params.get("port") or 0),
            backend=params.get("backend", ""),
            name=params.get("service", ""),
        )
        return {"service": operations.serve(request)(tx).service.name}
    if kind == queue_pb2.TASK_TYPE_STOP:
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
