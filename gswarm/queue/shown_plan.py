"""The plan on show: made anew when something has changed, but never so often that planning takes over a core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gswarm.model import operations
from gswarm.queue import plan
from gswarm.queue.durations import History
from gswarm.scheduler.strategy import Server, Strategy
from gswarm.v1.cluster_pb2 import Device
from gswarm.v1.models_pb2 import Service
from gswarm.v1.queue_pb2 import Lane, Plan, Task

if TYPE_CHECKING:
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction

PLAN_S = 0.9


class ShownPlan:
    """The plan and its lanes as watchers see them."""

    def __init__(self, store: Store, strategy: Strategy, history: History) -> None:
        self._store, self._strategy, self._history = store, strategy, history
        self._lanes: dict[str, Lane] = {}
        self._due = True
        self._next = 0.0

    def outdated(self) -> None:
        """Something has changed of which a plan is made."""
        self._due = True

    async def refresh(
        self, clock: float, tasks: Mapping[str, Task], servers: Mapping[str, Server], taken: Callable[[], Set[str]]
    ) -> None:
        """Show a new plan if it is time for one, made of `tasks`, those that have not ended.

        `clock` is the strategy's time now, in seconds; `taken` gives the models that some device takes.
        """
        if not self._due or time.monotonic() < self._next:
            return
        self._due = False
        began = time.monotonic()
        made, lanes = await self._make(clock, tasks, servers, taken)
        # A long queue takes long to run ahead: then look less often.
        self._next = time.monotonic() + max(PLAN_S, 10 * (time.monotonic() - began))
        await self._show(made, {lane.device_id: lane for lane in lanes})

    async def _make(
        self, clock: float, tasks: Mapping[str, Task], servers: Mapping[str, Server], taken: Callable[[], Set[str]]
    ) -> tuple[Plan, list[Lane]]:
        state = self._store.state
        view = plan.View(
            now=datetime.now(UTC),
            clock=clock,
            devices={d.id: d for d in state.list(Device)},
            services={s.name: s for s in state.list(Service) if s.phase not in operations.GONE},
            tasks=dict(tasks),
            servers=dict(servers),
            taken=taken(),
            history=self._history,
            strategy=self._strategy,
        )
        copied = plan.frozen(self._strategy)
        return await asyncio.to_thread(lambda: plan.make(replace(view, strategy=copied())))

    async def _show(self, made: Plan, fresh: dict[str, Lane]) -> None:
        known = self._store.state.get(Plan, "plan")
        if fresh == self._lanes and known is not None and _same(known, made):
            return
        gone = self._lanes.keys() - fresh.keys()
        changed = [lane for key, lane in fresh.items() if self._lanes.get(key) != lane]

        def operation(tx: Transaction) -> None:
            for key in gone:
                tx.delete(Lane, key)
            for lane in changed:
                tx.put(lane)
            tx.put(made)

        await self._store.apply(operation, actor="planner", durable=False)
        self._lanes = fresh


def _same(a: Plan, b: Plan) -> bool:
    counts = ("swaps", "swaps_first_come", "ready", "running", "blocked", "waiting", "beyond")
    return not b.ready and all(getattr(a, name) == getattr(b, name) for name in counts)
