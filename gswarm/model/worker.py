"""The agent's side of models: makes placements and services what the host says they should be, and says how they are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gswarm.model.backends import NAMES
from gswarm.model.backends.environments import python_of
from gswarm.model.downloads import Downloads
from gswarm.model.logs import Logs
from gswarm.model.serving import Services
from gswarm.model.store import ModelStore
from gswarm.v1 import agent_pb2
from gswarm.v1.models_pb2 import Service

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

FREE_STEP = 64 << 20


class ModelWorker:
    """Hands the desired state to the two that make it true, and says what this node has for models."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.store = ModelStore(agent.state_dir / "store")
        self.store.clear_incoming()
        self.services = Services(agent, self.store)
        self._changed = asyncio.Event()
        self._downloads = Downloads(agent, self.store, self._changed.set)
        self._logs = Logs(agent.supervisor, agent.link)
        agent.peer.add_file_route("/blobs/", self.store.blob)
        agent.link.facts = self._facts

    def backends(self) -> list[str]:
        """Backends that could be started here."""
        has_simulated = any(device.simulated for device in self.agent.devices)
        return [name for name in NAMES if (has_simulated if name == "simulated" else python_of(name) is not None)]

    def free_bytes(self) -> int:
        """Room in the model store, rounded down, so that it is not told anew for every file written."""
        return self.store.free_bytes() // FREE_STEP * FREE_STEP

    def _facts(self) -> agent_pb2.NodeFacts:
        return agent_pb2.NodeFacts(store_free_bytes=self.free_bytes(), backends=self.backends())

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """There is a newer desired state; `run` acts on the agent's newest."""
        self._changed.set()

    def ready(self, service: str) -> tuple[Service, str] | None:
        """A service that answers now, and the name its backend wants as model."""
        return self.services.ready(service)

    def read_log(self, request: agent_pb2.ReadLog) -> None:
        """Start or end sending a service's log to the host."""
        self._logs.read(request)

    def welcomed(self) -> None:
        """The agent is attached, again or to a new host."""
        self._logs.end()

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.services.tell_throughput(), name="throughput")
            while True:
                await self._changed.wait()
                self._changed.clear()
                if not self.services.stopping:
                    state = self.agent.desired
                    await self._downloads.reconcile(state, group)
                    await self.services.reconcile(state, group)

    async def stop_all(self) -> None:
        """End every backend, for a stop of the agent itself; they start again with the next."""
        await self.services.stop_all()
