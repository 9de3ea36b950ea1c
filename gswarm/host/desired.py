"""What each node should make true, computed from the state, and which changes concern which node."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message

from gswarm.host.state import Batch
from gswarm.host.store import Store
from gswarm.v1 import agent_pb2, cluster_pb2, profiler_pb2
from gswarm.v1.cluster_pb2 import Node
from gswarm.v1.data_pb2 import Chunk
from gswarm.v1.models_pb2 import Model, Placement, Service
from gswarm.v1.profiler_pb2 import Session

IDLE_INTERVAL_S = 1.0


class Desired:
    """Derives a node's desired state; nothing is stored twice."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, name: str) -> agent_pb2.DesiredState:
        """Everything for one node, whole."""
        state = self._store.state
        services = [s for s in state.list(Service) if s.node == name]
        placements = [p for p in state.list(Placement) if p.node == name]
        models = {s.model for s in services} | {p.model for p in placements}
        chunks = [c for c in state.list(Chunk) if any(place.node == name for place in c.locations)]
        ready = cluster_pb2.NODE_PHASE_READY
        return agent_pb2.DesiredState(
            revision=state.revision,
            services=services,
            placements=placements,
            sessions=self._sessions(name),
            chunks=chunks,
            peers=[n for n in state.list(Node) if n.name != name and n.phase == ready and n.peer_port],
            models=[m for m in state.list(Model) if m.name in models],
            sample_interval_s=self.interval_s(name),
            sampling=node.sampling if (node := state.get(Node, name)) is not None else (),
            adaptive=self._adaptive(name),
        )

    def _sessions(self, name: str) -> list[Session]:
        # One that is paused holds what comes in memory, and writes it when there is room.
        active = (profiler_pb2.SESSION_PHASE_RECORDING, profiler_pb2.SESSION_PHASE_PAUSED)
        return [s for s in self._store.state.list(Session) if s.phase in active and (not s.nodes or name in s.nodes)]

    def interval_s(self, name: str) -> float:
        """The fastest sampling anyone wants of a node, seconds."""
        return min([IDLE_INTERVAL_S, *(s.interval_s for s in self._sessions(name) if s.interval_s)])

    def longest_s(self, name: str) -> float:
        """The longest that a node may be silent by right: its slowest pace while nothing moves, seconds."""
        if (adaptive := self._adaptive(name)) is None:
            return self.interval_s(name)
        return min(adaptive.slowest_s, adaptive.regular_s or adaptive.slowest_s)

    def _adaptive(self, name: str) -> agent_pb2.AdaptiveSampling | None:
        """Bounds that hold for every adaptive session; whoever asked for them gave up the second that is usual."""
        sessions = self._sessions(name)
        adaptive = [s for s in sessions if s.slowest_s]
        if not adaptive:
            return None
        return agent_pb2.AdaptiveSampling(
            fastest_s=min(s.interval_s for s in adaptive),
            slowest_s=min(s.slowest_s for s in adaptive),
            regular_s=min((s.interval_s for s in sessions if not s.slowest_s and s.interval_s), default=0.0),
        )

    def concerned(self, batch: Batch) -> set[str]:
        """Nodes whose desired state a batch changed; progress and phases alone concern no one."""
        names: set[str] = set()
        for change in batch.changes:
            if _essence(change.old) != _essence(change.new):
                for message in (change.old, change.new):
                    names.update(self._nodes_of(message))
        return names

    def _nodes_of(self, message: Message | None) -> Iterable[str]:
        match message:
            case Service() | Placement():
                return (message.node,)
            case Chunk():
                return [place.node for place in message.locations]
            case Model():
                state = self._store.state
                holders: list[Service | Placement] = [*state.list(Service), *state.list(Placement)]
                return {holder.node for holder in holders if holder.model == message.name}
            case Session():
                return list(message.nodes) or [n.name for n in self._store.state.list(Node)]
            case Node():
                return [n.name for n in self._store.state.list(Node)]
            case _:
                return ()


def _essence(message: Message | None) -> object:
    """What of an object an agent acts on."""
    match message:
        case Service():
            return (message.generation, message.stop, message.node)
        case Placement():
            return (message.generation, message.node)
        case Chunk():
            # Only a copy that is wanted, or one that is there for others to pull, matters.
            return (message.digest, tuple((place.node, place.phase) for place in message.locations))
        case Model():
            return (message.default_version, [(v.version, v.digest) for v in message.versions])
        case Session():
            return (message.phase, message.interval_s, message.slowest_s, tuple(message.nodes))
        case Node():
            return (message.phase, message.peer_host, message.peer_port, message.peer_certificate, *message.sampling)
        case _:
            return None
