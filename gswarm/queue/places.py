"""Where models can run, in the strategy's terms: devices, models and servers, and what has changed of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from gswarm.model import operations
from gswarm.model.backends import backend
from gswarm.model.backends.backend import Backend
from gswarm.model.fitting import Fit, default_backend, fit
from gswarm.queue.durations import History, kind_of
from gswarm.scheduler import strategy as seam
from gswarm.scheduler.strategy import Event
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Model, Placement, Service
from gswarm.v1.queue_pb2 import Task

if TYPE_CHECKING:
    from gswarm.host.nodes import Nodes
    from gswarm.host.state import State

KINDS = (Service, Device, Placement, Model, Node)
"""What places are made of."""


class Places:
    """What the strategy was last told of places."""

    def __init__(self, state: State, nodes: Nodes, history: History) -> None:
        self._state, self._nodes, self._history = state, nodes, history
        self._devices: dict[str, seam.Device] = {}
        self._memories: dict[int, int] = {}
        self._models: dict[str, seam.Model] = {}
        self._fits: dict[str, tuple[Fit, int]] = {}
        """Per model where it fits, and the bytes that it takes there, as long as no device or node changes, nor what is stored."""
        self._moved = True
        """Whether any of these has changed: then devices and models are looked at anew, and not servers only."""
        self.servers: dict[str, seam.Server] = {}
        self._attached: set[str] = set()
        """Nodes whose agents were there when devices were last looked at."""
        self.due = True
        """Set when something of them may have changed."""

    def changed(self, what: Message) -> None:
        """One of `KINDS` has changed."""
        self.due = True
        if not isinstance(what, Service):
            self._moved = True

    def knows(self, model: str) -> bool:
        """Whether the strategy has been told of a model."""
        return model in self._models

    def taken(self) -> frozenset[str]:
        """Models that some device takes: they fit there, or are served within reach."""
        served = {server.model for server in self.servers.values() if server.reachable}
        return frozenset(served | {name for name, model in self._models.items() if len(model.devices) >= model.width})

    def see_attached(self) -> None:
        """Look which agents are attached: one is so only after the change that says it is published."""
        if self._find_attached() != self._attached:
            self.due = self._moved = True

    def _find_attached(self) -> set[str]:
        return {n.name for n in self._state.list(Node) if self._nodes.connected(n.name)}

    def changes(self, tasks: Iterable[Task]) -> list[Event]:
        """What is new since the last call; models are told of when one of `tasks`, those unfinished, asks for them."""
        if not self.due:
            return []
        self.due = False
        wanted = {task.model for task in tasks if task.type == queue_pb2.TASK_TYPE_INFERENCE}
        events, gone = self._see_devices() if self._moved else ([], [])
        models, servers = self._find_models(wanted), self._find_servers()
        events += [seam.ModelIs(m) for key, m in models.items() if self._models.get(key) != m]
        events += [seam.ServerIs(s) for key, s in servers.items() if self.servers.get(key) != s]
        for key in self.servers.keys() - servers.keys():
            service = self._state.get(Service, key)
            has_failed = service is not None and service.phase == models_pb2.SERVICE_PHASE_FAILED
            events.append(seam.ServerGone(key, has_failed))
        events += [seam.ModelGone(key) for key in self._models.keys() - models.keys()]
        self._models, self.servers = models, servers
        return [*events, *gone]

    def _see_devices(self) -> tuple[list[Event], list[Event]]:
        """Look at the devices that can be reached: what is new of them, and which are gone."""
        self._moved = False
        self._fits.clear()
        self._attached = self._find_attached()
        found = {
            key: d
            for key, d in self._state.items(Device)
            if d.node in self._attached and d.phase != cluster_pb2.DEVICE_PHASE_LOST
        }
        # A processor is shared with everything else; a GPU is planned as one server's.
        cpu = cluster_pb2.DEVICE_KIND_CPU
        # Nodes of a kind share what protobuf makes anew for each look: of large clusters that is half a KiB a node.
        shared = self._memories.setdefault
        made = (
            seam.Device(key, shared(d.memory_bytes, d.memory_bytes), d.kind == cpu, sys.intern(d.node))
            for key, d in found.items()
        )
        # What has not changed stays the object that the strategy holds: of a large cluster there are thousands.
        devices = {d.id: known if (known := self._devices.get(d.id)) == d else d for d in made}
        changed: list[Event] = [seam.DeviceIs(d) for key, d in devices.items() if self._devices.get(key) != d]
        gone: list[Event] = [seam.DeviceGone(key) for key in self._devices.keys() - devices.keys()]
        self._devices = devices
        return changed, gone

    def _find_models(self, wanted: set[str]) -> dict[str, seam.Model]:
        found = {}
        for name in sorted(wanted):
            if (model := self._state.get(Model, name)) is None:
                continue
            if name not in self._fits:
                self._fits[name] = self._fit(model)
            where, needed = self._fits[name]
            kind = kind_of(self._state.get(Device, where.devices[0]) if where.devices else None)
            load_s, run_s = self._history.load_time(name, kind).seconds, self._history.run(name, kind).seconds
            found[name] = seam.Model(
                name, needed, where.devices, round(load_s, 1), round(run_s, 2), max(1, where.width)
            )
        return found

    def _fit(self, model: Model) -> tuple[Fit, int]:
        """Where a model fits among the devices that can be reached, and the bytes that it takes there."""
        state = self._state
        stored = {
            p.node
            for p in state.list(Placement)
            if p.model == model.name and p.phase == models_pb2.PLACEMENT_PHASE_STORED
        }
        chosen: dict[str, Backend] = {}
        for node in state.list(Node):
            if (
                node.name in stored
                and (name := default_backend(node.backends, simulated=model.simulated)) in node.backends
            ):
                chosen[node.name] = backend(name)
        offers = {
            key: operations.offer_of(device, device.memory_bytes, serves.needed_bytes(model.size_bytes))
            for key, device in sorted(state.items(Device))
            if key in self._devices and (serves := chosen.get(device.node)) is not None and serves.accepts(device.kind)
        }
        found = fit(offers.values())
        return found, max((offers[key].needed for key in found.devices), default=model.size_bytes)

    def _find_servers(self) -> dict[str, seam.Server]:
        devices = self._devices
        sizes = {(m.name, v.version): v.size_bytes for m in self._state.list(Model) for v in m.versions}
        return {
            s.name: seam.Server(
                s.name,
                s.model,
                tuple(s.device_ids),
                backend(s.backend).needed_bytes(sizes.get((s.model, s.version), 0)),
                max(1, s.max_in_flight),
                ready=s.phase == models_pb2.SERVICE_PHASE_READY,
                ours=s.owner == common_pb2.OWNER_PLANNER,
                reachable=self._nodes.connected(s.node) and all(key in devices for key in s.device_ids),
            )
            for s in self._state.list(Service)
            if s.phase not in operations.GONE and not s.stop
        }
