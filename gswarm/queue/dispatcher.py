"""Feeds the strategy with what happens and carries out what it says: leases, loads, and what falls due."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from gswarm.errors import GswarmError, InvalidError
from gswarm.model import operations
from gswarm.queue import durations, places, transitions
from gswarm.queue.archive import Archive
from gswarm.queue.deadlines import Deadlines
from gswarm.queue.host_tasks import HostTasks
from gswarm.queue.places import Places
from gswarm.queue.shown_plan import ShownPlan
from gswarm.queue.transitions import BACKOFF, DONE, FAILED, FINAL, LEASE_S, READY, RUNNING, WAITING
from gswarm.scheduler import strategy as seam
from gswarm.scheduler.strategy import Event, Load, Start, Strategy, Unload
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Node
from gswarm.v1.data_pb2 import Chunk
from gswarm.v1.models_pb2 import Service
from gswarm.v1.queue_pb2 import Task, Workflow

if TYPE_CHECKING:
    from gswarm.config import QueueConfig
    from gswarm.host.server import HostContext
    from gswarm.host.state import Batch, Changed
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
TICK_S = 1.0
INFERENCE = queue_pb2.TASK_TYPE_INFERENCE
NODE_LEFT = cluster_pb2.NODE_PHASE_LEFT


class Dispatcher:
    """One strategy, driven by the store's batches. Everything it knows can be derived from the state again."""

    def __init__(self, host: HostContext) -> None:
        self._store, self._nodes = host.store, host.nodes
        config = host.config.queue
        self.strategy = _strategy(config)
        self.history = durations.History()
        self.places = Places(host.store.state, host.nodes, self.history)
        self.unfinished: dict[str, Task] = {}
        """Tasks that have not ended."""
        self._host_tasks = HostTasks(host.store)
        self._deadlines = Deadlines(host.store)
        self._archive = Archive(host.store)
        self._plan = ShownPlan(host.store, self.strategy, self.history)
        self._events: list[Event] = []
        self._starting: set[str] = set()
        """Tasks that a lease operation under way starts: the strategy knows of those already."""
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None

    def now(self) -> float:
        """The strategy's clock: it never goes back."""
        return time.monotonic()

    # Life

    async def run(self) -> None:
        """Dispatch until cancelled."""
        await self._store.apply(transitions.link, actor="host", durable=False)
        self.history.load(await self._store.apply(durations.read, actor="host", durable=False))
        unsubscribe = self._store.subscribe(self._on_batch)
        self.take_stock()
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

    def take_stock(self) -> None:
        """Learn what is in the state already, in the order in which it became ready: the strategy's lines go by age."""
        for task in sorted(self._store.state.list(Task), key=lambda t: (t.ready_at.seconds, t.ready_at.nanos)):
            self._learn(task)
        for workflow in self._store.state.list(Workflow):
            self._archive.learn(workflow)

    def news(self) -> list[Event]:
        """What the strategy has not been told yet; from now on it counts as told."""
        events, self._events = self._events, []
        changes = self.places.changes(self.unfinished.values())
        # Models first: what is asked of one counts by how long its tasks run.
        models = [event for event in changes if isinstance(event, seam.ModelIs)]
        return [*models, *events, *(event for event in changes if not isinstance(event, seam.ModelIs))]

    def renewed(self, attempts: Iterable[agent_pb2.TaskAttempt]) -> None:
        """An agent still works on these."""
        self._deadlines.renew(attempts)

    # What happens

    def _on_batch(self, batch: Batch) -> None:
        for change in batch.changes:
            if change.kind == common_pb2.KIND_TASK:
                self._task_changed(change)
            elif isinstance(what := change.new or change.old, places.KINDS):
                self.places.changed(what)
                self._wake.set()
                if isinstance(change.new, Node) and change.new.phase == NODE_LEFT:
                    self._take_back(change.new.name)
            elif isinstance(change.new, Workflow):
                self._archive.learn(change.new)
            elif isinstance(change.new or change.old, Chunk) and self._host_tasks:
                self._wake.set()
            if (took := durations.measured(self._store.state, change)) is not None:
                self._remember(*self.history.add(*took))

    def _take_back(self, node: str) -> None:
        """What an agent was doing that has said goodbye is done by no one; one that is out of reach may go on."""
        for task in self.unfinished.values():
            if task.phase == RUNNING and task.node == node:
                self._deadlines.expire(task.id)

    def _task_changed(self, change: Changed) -> None:
        task = change.new if isinstance(change.new, Task) else None
        old = change.old if isinstance(change.old, Task) else None
        self._plan.outdated()
        self._wake.set()
        if old is not None and (task is None or task.phase != old.phase):
            self._forget(old, phase=task.phase if task is not None else None)
        if task is None:
            return
        if old is None or task.phase != old.phase:
            self._learn(task)
        elif task.id in self.unfinished:
            self.unfinished[task.id] = task
            if task.phase in (WAITING, READY) and task.type == INFERENCE and task.priority != old.priority:
                self._arrive(task)

    def _forget(self, task: Task, *, phase: queue_pb2.TaskPhase.ValueType | None) -> None:
        """A task left its phase for `phase`; None: it is no more."""
        self.unfinished.pop(task.id, None)
        self._deadlines.forget(task.id)
        self._host_tasks.forget(task.id)
        if phase == DONE:
            self._events.append(seam.Completed(task.id))  # of any type: others may have waited for it
        elif task.type == INFERENCE and task.phase in (WAITING, READY, RUNNING):
            goes_on = phase == READY if task.phase == WAITING else task.phase == READY and task.id in self._starting
            if not goes_on:
                self._events.append(seam.Withdrawn(task.id))

    def _learn(self, task: Task) -> None:
        if task.phase in FINAL:
            return
        self.unfinished[task.id] = task
        if task.phase == BACKOFF:
            self._deadlines.pauses(task)
        elif task.type != INFERENCE:
            if task.phase in (READY, RUNNING):
                self._host_tasks.learn(task)
        elif task.phase in (WAITING, READY):
            self._arrive(task)
        elif task.phase == RUNNING:
            self._deadlines.leased(task.id)
            if task.id not in self._starting:
                self._events.append(seam.Started(_job(task), task.service))

    def _arrive(self, task: Task) -> None:
        """Tell of a task that may run, or of one that waits for others, so that it counts as work to come."""
        if not self.places.knows(task.model):
            self.places.due = True  # no one had asked for it until now
        if task.phase == READY:
            self._events.append(seam.Arrived(_job(task, waited_s=_age_s(task.ready_at))))
            return
        needs = frozenset(
            key
            for key in task.depends_on
            if (other := self._store.state.get(Task, key)) is not None and other.phase != DONE
        )
        if needs:  # else it becomes ready with the next change
            self._events.append(seam.Arrived(_job(task, needs, _age_s(task.created_at))))

    def _remember(self, name: str, value: bytes) -> None:
        if self._group is not None:
            keep = self._store.insist(lambda tx: tx.put_value(name, value), method="history")
            self._group.create_task(keep, name="history")

    # One round

    async def _tick(self) -> None:
        self._events.append(seam.Ticked())
        self.places.see_attached()
        await self._deadlines.meet()
        if self.unfinished:
            self._plan.outdated()
        await self._archive.tidy(len(self.unfinished))

    async def _step(self) -> None:
        while self.places.due or self._events:  # a load makes a place: the plan is shown with it, never without
            news = self.news()
            starts: dict[str, list[Start]] = defaultdict(list)
            for instruction in self.strategy.handle(self.now(), news):
                match instruction:
                    case Start():
                        starts[instruction.server].append(instruction)
                    case Load():
                        await self._load(instruction)
                    case Unload():
                        await self._unload(instruction)
            for server, orders in starts.items():
                await self._lease(server, orders)
        await self._host_tasks.advance()
        await self._plan.refresh(self.now(), self.unfinished, self.places.servers, self.places.taken)

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
                    params = transitions.resolved(tx, task)
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
            node = await self._store.insist(operation, method="lease")
        finally:
            self._starting = set()
        self._events += [seam.Withdrawn(job) for job in refused]
        for lease in leases:
            if not self._nodes.send(node, agent_pb2.AttachResponse(lease=lease)):
                self._deadlines.expire(lease.task.id)

    async def _load(self, order: Load) -> None:
        """Serve a model where the strategy wants it; a refusal is told to it."""
        request = models_pb2.ServeRequest(model=order.model, devices=order.devices, owner=common_pb2.OWNER_PLANNER)
        try:
            await self._store.insist(operations.serve(request), actor="planner", method="load")
        except GswarmError as error:
            log.info("the planner cannot load %s on %s: %s", order.model, order.devices[0], error)
            self._events.append(seam.LoadRefused(order.model, order.devices[0]))
        self.places.due = True

    async def _unload(self, order: Unload) -> None:
        """End a service that the planner started; a user's is never touched."""

        def operation(tx: Transaction) -> None:
            known = tx.get(Service, order.server)
            if known is not None and known.owner == common_pb2.OWNER_PLANNER:
                operations.stop_service(order.server)(tx)

        await self._store.insist(operation, actor="planner", method="unload")


def _strategy(config: QueueConfig) -> Strategy:
    """Raises InvalidError for a name that the queue cannot run on."""
    from gswarm.scheduler import strategies

    if config.strategy not in strategies.live_names():
        is_known = config.strategy in strategies.names()
        raise InvalidError(
            f"the queue cannot run on the strategy {config.strategy}",
            why="it gives tasks away for good, as is fit for files only" if is_known else "there is none of that name",
            next=f"set queue.strategy to {' or '.join(strategies.live_names())}",
            field="queue.strategy",
        )
    try:
        return seam.create(config.strategy, wait_bound_s=config.wait_bound_s)
    except strategies.StrategyError as error:
        raise InvalidError(
            str(error), next="mend that package, or unset queue.strategy", field="queue.strategy"
        ) from None


def _job(task: Task, needs: frozenset[str] = frozenset(), waited_s: float = 0.0) -> seam.Job:
    return seam.Job(task.id, task.model, seam.Rank(max(1, int(task.priority))), needs, waited_s)


def _age_s(since: Timestamp) -> float:
    return max(0.0, time.time() - since.seconds - since.nanos / 1e9)
