"""The store's state as the strategy sees it: devices, models, servers and jobs, and the events between two looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gswarm.host.state import State
from gswarm.model.backends import backend
from gswarm.queue.history import Estimate, History
from gswarm.queue.ledger import DONE, READY, WAITING
from gswarm.scheduler import strategy as seam
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Model, Placement, Service
from gswarm.v1.queue_pb2 import Task

SERVED = (models_pb2.SERVICE_PHASE_PENDING, models_pb2.SERVICE_PHASE_LOADING, models_pb2.SERVICE_PHASE_READY)
GONE = (models_pb2.SERVICE_PHASE_STOPPED, models_pb2.SERVICE_PHASE_FAILED)


def kind_word(kind: cluster_pb2.DeviceKind.ValueType) -> str:
    """gpu, cpu, ..."""
    return cluster_pb2.DeviceKind.Name(kind).removeprefix("DEVICE_KIND_").lower()


@dataclass(slots=True)
class Facts:
    """Everything but the jobs, as last told to the strategy."""

    history: History
    devices: dict[str, seam.Device] = field(default_factory=dict)
    models: dict[str, seam.Model] = field(default_factory=dict)
    servers: dict[str, seam.Server] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    """Device to the word of its kind."""

    def changes(self, state: State) -> list[seam.Event]:
        """What has changed since the last look."""
        events: list[seam.Event] = []
        devices, models = self._read_devices(state), {}
        models = {m.name: self._read_model(m, state, devices) for m in state.list(Model)}
        servers = {s.name: self._read_server(s, state) for s in state.list(Service) if s.phase not in GONE}
        failed = {s.name for s in state.list(Service) if s.phase == models_pb2.SERVICE_PHASE_FAILED}
        for name in self.servers.keys() - servers.keys():
            events.append(seam.ServerGone(name, failed=name in failed))
        events += [seam.DeviceGone(name) for name in self.devices.keys() - devices.keys()]
        events += [seam.ModelGone(name) for name in self.models.keys() - models.keys()]
        events += [seam.DeviceIs(device) for name, device in devices.items() if self.devices.get(name) != device]
        events += [seam.ModelIs(model) for name, model in models.items() if self.models.get(name) != model]
        events += [seam.ServerIs(server) for name, server in servers.items() if self.servers.get(name) != server]
        self.devices, self.models, self.servers = devices, models, servers
        return events

    def _read_devices(self, state: State) -> dict[str, seam.Device]:
        nodes = {n.name for n in state.list(Node) if n.phase == cluster_pb2.NODE_PHASE_READY}
        self.kinds = {d.id: kind_word(d.kind) for d in state.list(Device)}
        return {
            d.id: seam.Device(d.id, d.memory_bytes, shared=d.kind == cluster_pb2.DEVICE_KIND_CPU)
            for d in state.list(Device)
            if d.node in nodes and d.phase == cluster_pb2.DEVICE_PHASE_READY
        }

    def _read_model(self, model: Model, state: State, devices: dict[str, seam.Device]) -> seam.Model:
        name = "simulated" if model.simulated else "transformers"
        version = next((v for v in model.versions if v.version == model.default_version), None)
        memory = backend(name).needed_bytes(version.size_bytes if version else model.size_bytes)
        places = [d for d in state.list(Device) if d.id in devices and self.lacks(model, d, state, memory) == ""]
        kind = kind_word(places[0].kind) if places else "gpu"
        return seam.Model(
            model.name,
            memory,
            tuple(sorted(d.id for d in places)),
            self.history.load_time(model.name, kind, model.size_bytes).seconds,
            self.history.run(model.name, kind).seconds,
        )

    @staticmethod
    def lacks(model: Model, device: Device, state: State, memory: int) -> str:
        """Why the planner cannot bring the model up on a device at all; empty: it can."""
        simulated = device.kind == cluster_pb2.DEVICE_KIND_SIMULATED
        if simulated != model.simulated:
            return "it is simulated" if simulated else "the model is simulated"
        placement = state.get(Placement, f"{model.name}@{model.default_version}/{device.node}")
        if placement is None or placement.phase != models_pb2.PLACEMENT_PHASE_STORED:
            return f"{model.name} is not stored on {device.node}"
        node = state.get(Node, device.node)
        name = "simulated" if model.simulated else "transformers"
        if node is None or name not in node.backends:
            return f"backend {name} is not installed on {device.node}"
        if device.memory_bytes < memory:
            return "too small"
        return ""

    def _read_server(self, service: Service, state: State) -> seam.Server:
        node = state.get(Node, service.node)
        model = self.models.get(service.model)
        return seam.Server(
            service.name,
            service.model,
            tuple(service.device_ids),
            memory=(service.memory_bytes if service.HasField("memory_bytes") else 0) or (model.memory if model else 0),
            slots=max(1, service.max_in_flight),
            ready=service.phase == models_pb2.SERVICE_PHASE_READY and not service.stop,
            ours=service.owner == common_pb2.OWNER_PLANNER,
            reachable=node is not None and node.phase == cluster_pb2.NODE_PHASE_READY and not service.stop,
        )

    def run_of(self, model: str, device: str) -> Estimate:
        """How long a task of a model runs on a device."""
        return self.history.run(model, self.kinds.get(device, "gpu"))

    def load_of(self, model: str, device: str, size_bytes: int) -> Estimate:
        """How long a model loads on a device."""
        return self.history.load_time(model, self.kinds.get(device, "gpu"), size_bytes)


def job_of(task: Task, state: State, now: datetime) -> seam.Job:
    """A task that is waiting or ready, as a job."""
    needs = frozenset(
        need for need in task.depends_on if (known := state.get(Task, need)) is None or known.phase != DONE
    )
    since = task.ready_at.ToDatetime(UTC) if task.HasField("ready_at") else now
    return seam.Job(
        task.id,
        task.model,
        seam.Rank(task.priority or seam.Rank.NORMAL),
        needs if task.phase == WAITING else frozenset(),
        max(0.0, (now - since).total_seconds()),
    )


def is_planned(task: Task) -> bool:
    """Whether the strategy decides about this task at all."""
    return task.type == queue_pb2.TASK_TYPE_INFERENCE


def waiting_jobs(state: State, now: datetime) -> Iterator[seam.Job]:
    """Jobs that wait or are ready, oldest first."""
    found = [t for t in state.list(Task) if is_planned(t) and t.phase in (WAITING, READY)]
    for task in sorted(found, key=lambda t: (t.ready_at.seconds, t.ready_at.nanos, int(t.id))):
        yield job_of(task, state, now)
