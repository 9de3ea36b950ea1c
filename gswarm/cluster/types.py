"""Nodes, devices, events, tokens: what the cluster's own actions return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Kind(Enum):
    """What kind of object a watched object is."""

    UNKNOWN = "unknown"
    NODE = "node"
    DEVICE = "device"
    MODEL = "model"
    PLACEMENT = "placement"
    SERVICE = "service"
    CHUNK = "chunk"
    WORKFLOW = "workflow"
    TASK = "task"
    LANE = "lane"
    PLAN = "plan"
    SESSION = "session"
    EVENT = "event"
    ALERT = "alert"


class Owner(Enum):
    """Who owns a piece of desired state; the planner starts and stops only what it owns."""

    UNKNOWN = "unknown"
    USER = "user"
    PLANNER = "planner"


class Severity(Enum):
    """Mirrors the wire enum Severity."""

    UNKNOWN = "unknown"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ConditionState(Enum):
    """Whether a long action is done, as a pure function of the objects says."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the durable event log: who did what, when, why, and how it ended."""

    id: str = ""
    """Host-wide sequence number, decimal; also the key."""
    time: datetime | None = None
    """Host time (UTC)."""
    type: str = ""
    """Dotted lower-case name, for example "service.ready"."""
    severity: Severity = Severity.UNKNOWN
    actor: str = ""
    """Token name that asked for it, "host", or "node:<name>"."""
    cause: str = ""
    """Request id or event id that led to it; empty when none."""
    subject_kind: Kind = Kind.UNKNOWN
    """Kind and key of the object it is about."""
    subject: str = ""
    message: str = ""
    """One sentence for a person."""


class NodePhase(Enum):
    """Mirrors the wire enum NodePhase."""

    UNKNOWN = "unknown"
    READY = "ready"
    UNREACHABLE = "unreachable"  # Silent for three heartbeats.
    LEFT = "left"  # Said goodbye.


class DeviceKind(Enum):
    """Mirrors the wire enum DeviceKind."""

    UNKNOWN = "unknown"
    GPU = "gpu"
    MIG = "mig"
    CPU = "cpu"
    SIMULATED = "simulated"


class DevicePhase(Enum):
    """Mirrors the wire enum DevicePhase."""

    UNKNOWN = "unknown"
    READY = "ready"
    LOST = "lost"  # The driver no longer answers for it.


class Role(Enum):
    """Mirrors the wire enum Role."""

    UNKNOWN = "unknown"
    VIEWER = "viewer"  # Reads only.
    OPERATOR = "operator"  # Reads and changes.
    AGENT = "agent"  # Attaches as a node and reports on that node only.
    INFER = "infer"  # Asks models through the gateway, nothing else.
    ADMIN = "admin"  # Everything, tokens and shutdown included.


class SamplingGroup(Enum):
    """Metrics that are sampled only when that is asked for. Mirrors the wire enum SamplingGroup."""

    UNKNOWN = "unknown"
    PCIE = "pcie"
    NVLINK = "nvlink"


class PathKind(Enum):
    """How two GPUs of a node reach each other, from near to far. Mirrors the wire enum PathKind."""

    UNKNOWN = "unknown"
    NVLINK = "nvlink"  # Directly or through NVSwitch.
    INTERNAL = "internal"  # Both on one board.
    PIX = "pix"  # At most one PCIe switch between them.
    PXB = "pxb"  # Several PCIe switches, no host bridge.
    PHB = "phb"  # A PCIe host bridge.
    NODE = "node"  # Host bridges of one NUMA node.
    SYS = "sys"  # The connection between NUMA nodes.


@dataclass(frozen=True, slots=True)
class DevicePath:
    """The way from a device to another of its node."""

    index: int = 0
    """Position of the other on the node."""
    kind: PathKind = PathKind.UNKNOWN
    nvlinks: int = 0
    """NVLinks that join them."""


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process on a device."""

    pid: int = 0
    user: str = ""
    command: str = ""
    """Program and script without their arguments, which may hold secrets."""
    memory_bytes: int | None = None
    """Of this device; absent when the driver does not tell."""
    sm_percent: int | None = None
    """Share of the time in which its kernels ran, per cent."""
    ours: bool = False
    """Started by gswarm."""


@dataclass(frozen=True, slots=True)
class Node:
    """An agent's machine. Key: name."""

    name: str = ""
    incarnation: str = ""
    """New at each agent process start (UUID hex)."""
    phase: NodePhase = NodePhase.UNKNOWN
    version: str = ""
    """gswarm version of the agent."""
    features: tuple[str, ...] = ()
    """Optional abilities the agent announced, for example "peer", "simulate"."""
    peer_host: str = ""
    """Where other nodes and the gateway reach the peer port; port 0: none."""
    peer_port: int = 0
    cpu_count: int = 0
    """Logical CPUs."""
    memory_bytes: int = 0
    """Physical memory, bytes."""
    joined_at: datetime | None = None
    last_seen: datetime | None = None
    detail: str = ""
    """One sentence when something is wrong (version skew, silence), else empty."""
    backends: tuple[str, ...] = ()
    """Backend names that can be started there."""
    platform: str = ""
    """Operating system and kernel, as platform.platform() gives."""
    simulated: bool = False
    """Has at least one simulated device."""
    store_free_bytes: int = 0
    """Free bytes of the model store's file system, as last reported."""
    peer_certificate: str = ""
    """PEM of the peer port's self-signed certificate, pinned by who connects; empty: plain, loopback only."""
    sampling: tuple[SamplingGroup, ...] = ()
    """Slow metrics that its agent should sample; kept by the host."""
    clock_offset_us: int | None = None
    """The node's clock minus the host's, microseconds, from heartbeats; absent until known. Sample times are the node's."""
    clock_error_us: int = 0
    """How far that may be wrong, microseconds."""


@dataclass(frozen=True, slots=True)
class Device:
    """One compute device. Key: id."""

    id: str = ""
    """NVML UUID, "SIM-..." for simulated, "CPU-..." for the machine's processor."""
    alias: str = ""
    """"<node>:gpu0", "<node>:cpu"."""
    node: str = ""
    index: int = 0
    """Position on its node, from 0."""
    kind: DeviceKind = DeviceKind.UNKNOWN
    name: str = ""
    """Marketing name, for example "NVIDIA H100 80GB HBM3"."""
    memory_bytes: int = 0
    """Total memory, bytes."""
    power_limit_mw: int | None = None
    """Power cap, milliwatts; absent when the device gives none."""
    phase: DevicePhase = DevicePhase.UNKNOWN
    detail: str = ""
    """Why it is lost, else empty."""
    driver_version: str = ""
    changed_at: datetime | None = None
    paths: tuple[DevicePath, ...] = ()
    """Ways to the other GPUs of the node; told once."""
    cpu_affinity: str = ""
    """CPUs near to it, for example "0-31,64-95"; empty when it is not known."""
    numa_node: int | None = None
    processes: tuple[DeviceProcess, ...] = ()
    """What runs on it, as last reported."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """Mirrors the wire message TokenInfo."""

    name: str = ""
    role: Role = Role.UNKNOWN
    node: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Mirrors the wire message HostStatus."""

    version: str = ""
    started_at: datetime | None = None
    revision: int = 0
    nodes: int = 0
    devices: int = 0
    pid: int = 0
    """Process id of the host."""
    grpc_port: int = 0
    http_port: int = 0
    model_port: int = 0
    state_dir: str = ""
    role: str = ""
    """Role of the token that asked, for example "admin"."""
    time: datetime | None = None
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long action is: done, failed or pending, with a fraction from 0 to 1 where one is known."""

    state: ConditionState = ConditionState.UNKNOWN
    fraction: float | None = None
    message: str = ""


class Listing(list[T], Generic[T]):
    """Rows of a list, with how many its limit left out, at which revision, and the host's time."""

    def __init__(
        self, rows: Iterable[T] = (), *, left_out: int = 0, revision: int = 0, time: datetime | None = None
    ) -> None:
        super().__init__(rows)
        self.left_out, self.revision, self.time = left_out, revision, time


@dataclass(frozen=True, slots=True)
class MadeToken:
    """A token as it is shown once, at its making."""

    name: str
    role: Role
    token: str
