"""Models, placements and services: what model actions return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Owner, Progress


class PlacementPhase(Enum):
    """Mirrors the wire enum PlacementPhase."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    DOWNLOADING = "downloading"
    STORED = "stored"
    FAILED = "failed"


class ServicePhase(Enum):
    """Mirrors the wire enum ServicePhase."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Mirrors the wire message ModelFile."""

    path: str = ""
    """Relative path inside the model directory, "/" separated."""
    size_bytes: int = 0
    digest: str = ""
    """BLAKE3 digest, lower-case hex."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Mirrors the wire message ModelVersion."""

    version: str = ""
    """"v1", "v2", ... in order of registration."""
    digest: str = ""
    """BLAKE3 over the sorted (path, digest) list, hex; empty until one node has it."""
    size_bytes: int = 0
    files: tuple[ModelFile, ...] = ()
    source: str = ""
    """Where it came from; credentials removed."""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A named model with its versions. Key: name."""

    name: str = ""
    versions: tuple[ModelVersion, ...] = ()
    default_version: str = ""
    """The version used when none is named."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Architecture, parameter count, format and whatever people add."""
    created_at: datetime | None = None
    simulated: bool = False
    """Exists only as numbers, for simulated devices."""
    size_bytes: int = 0
    """Bytes of the default version; 0 until known."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One model version on one node: desired, and as observed. Key: "<model>@<version>/<node>"."""

    id: str = ""
    model: str = ""
    version: str = ""
    node: str = ""
    source: str = ""
    phase: PlacementPhase = PlacementPhase.UNKNOWN
    bytes_done: int = 0
    bytes_total: int = 0
    """0 while unknown."""
    generation: int = 0
    observed_generation: int = 0
    owner: Owner = Owner.UNKNOWN
    detail: str = ""
    """Why it failed, what it waits for."""
    changed_at: datetime | None = None
    bytes_shared: int = 0
    """Bytes that this node already held under the same digests."""


@dataclass(frozen=True, slots=True)
class Service:
    """A model being served. Key: name."""

    name: str = ""
    """Unique; by default the model's name, "-2" and so on behind it for more."""
    model: str = ""
    version: str = ""
    node: str = ""
    device_ids: tuple[str, ...] = ()
    backend: str = ""
    """"transformers", "vllm", "diffusers", "simulated"."""
    port: int = 0
    """Port on the node's 127.0.0.1; 0: the agent picks one."""
    phase: ServicePhase = ServicePhase.UNKNOWN
    progress_permille: int = 0
    """Load progress, 0 to 1000 per mille."""
    generation: int = 0
    observed_generation: int = 0
    owner: Owner = Owner.UNKNOWN
    failures: int = 0
    """Failures in the last ten minutes."""
    detail: str = ""
    """What it waits for or why it failed, with the last log line."""
    pid: int = 0
    """Process id of the backend on its node; 0: none."""
    max_in_flight: int = 0
    """Requests it takes at once."""
    tokens_per_s: float | None = None
    """Generated tokens per second over the last ten seconds; absent: not measured."""
    memory_bytes: int | None = None
    """Device memory it holds, bytes; absent: not measured."""
    simulated: bool = False
    """Runs on simulated devices."""
    created_at: datetime | None = None
    changed_at: datetime | None = None
    load_s: float | None = None
    """Seconds from start to ready of the last start; absent: never ready."""
    stop: bool = False
    """True once a stop was asked for: the agent ends it, then reports stopped."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Extra arguments for the backend, checked against its allow list."""
    bound_port: int = 0
    """Observed port on the node; 0 until it listens."""
    in_flight: int = 0
    """Requests in flight as the node's agent last reported."""


def download_done(asked: Placement, now: Placement | None) -> Progress:
    """How far a placement is."""
    if now is None:
        return Progress(ConditionState.FAILED, None, f"{asked.model} was deleted meanwhile")
    if now.generation > asked.generation:
        return Progress(ConditionState.FAILED, None, "a newer download took its place")
    if now.phase is PlacementPhase.STORED:
        return Progress(ConditionState.DONE, 1.0, f"{now.model}@{now.version} is on {now.node}")
    if now.phase is PlacementPhase.FAILED:
        return Progress(ConditionState.FAILED, None, now.detail)
    fraction = now.bytes_done / now.bytes_total if now.bytes_total else None
    return Progress(ConditionState.PENDING, fraction, f"{now.model}@{now.version} is {now.phase.value} on {now.node}")


def service_ready(asked: Service, now: Service | None) -> Progress:
    """How far a service is on its way to ready."""
    if now is None or now.stop:
        return Progress(ConditionState.FAILED, None, f"service {asked.name} was stopped meanwhile")
    if now.generation > asked.generation:
        return Progress(ConditionState.FAILED, None, "a newer request took its place")
    if now.phase is ServicePhase.FAILED and now.observed_generation == asked.generation:
        return Progress(ConditionState.FAILED, None, now.detail)
    if now.phase is ServicePhase.READY and now.observed_generation == asked.generation:
        return Progress(ConditionState.DONE, 1.0, f"{now.name} is ready on {now.node}, port {now.bound_port}")
    fraction = now.progress_permille / 1000 if now.progress_permille else None
    return Progress(ConditionState.PENDING, fraction, f"{now.name} is {now.phase.value} on {now.node}")


def service_stopped(asked: Service, now: Service | None) -> Progress:
    """How far a service is on its way to its end."""
    if now is None or now.phase is ServicePhase.STOPPED:
        return Progress(ConditionState.DONE, 1.0, f"{asked.name} is stopped")
    if not now.stop:
        return Progress(ConditionState.FAILED, None, f"{asked.name} was asked for again")
    return Progress(ConditionState.PENDING, None, f"{asked.name} is stopping on {now.node}")


@dataclass(frozen=True, slots=True)
class Environment:
    """One backend's interpreter as it stands on this machine."""

    backend: str
    python: str
    state: str
    """ready, broken or missing"""
    packages: str = ""
