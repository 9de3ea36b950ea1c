"""Workflows, tasks and the plan: what queue actions return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class TaskType(Enum):
    """Mirrors the wire enum TaskType."""

    UNKNOWN = "unknown"
    INFERENCE = "inference"
    DOWNLOAD = "download"
    SERVE = "serve"
    STOP = "stop"
    DATA_TRANSFER = "data_transfer"


class Priority(Enum):
    """Mirrors the wire enum Priority."""

    UNKNOWN = "unknown"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"


class TaskPhase(Enum):
    """Mirrors the wire enum TaskPhase."""

    UNKNOWN = "unknown"
    WAITING = "waiting"  # Waits for other tasks.
    READY = "ready"  # Could run; the plan decides when and where.
    RUNNING = "running"  # Leased to a node.
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BACKOFF = "backoff"  # Failed an attempt; ready again at retry_at.


class WorkflowPhase(Enum):
    """Mirrors the wire enum WorkflowPhase."""

    UNKNOWN = "unknown"
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Task:
    """One action of a workflow. Key: id."""

    id: str = ""
    """Decimal, host-wide, in order of submission."""
    workflow_id: str = ""
    action: str = ""
    """Its id inside the workflow."""
    type: TaskType = TaskType.UNKNOWN
    model: str = ""
    """Model it needs; empty for types without one."""
    priority: Priority = Priority.UNKNOWN
    phase: TaskPhase = TaskPhase.UNKNOWN
    attempt: int = 0
    """Attempts started so far."""
    retries: int = 0
    """Further attempts allowed after the first."""
    timeout_s: float = 0.0
    """Limit of one attempt, seconds; 0: none."""
    depends_on: tuple[str, ...] = ()
    """Task ids."""
    params_json: str = ""
    """Type-specific parameters as canonical JSON, references unresolved."""
    output_json: str = ""
    """Result as JSON; empty until done; over 64 KiB it is a chunk reference."""
    detail: str = ""
    """Why it failed, was cancelled, or cannot start, in one sentence."""
    node: str = ""
    device_ids: tuple[str, ...] = ()
    service: str = ""
    """Service it ran or runs on."""
    created_at: datetime | None = None
    ready_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    retry_at: datetime | None = None
    cancel: bool = False
    """A cancel was asked for while running."""
    actor: str = ""
    """Token name that submitted it."""
    passed_over: int = 0
    """How many later tasks were started in its place while it was ready."""
    lease_until: datetime | None = None
    """When the lease ends unless the node renews it."""
    tokens_out: int | None = None
    """Tokens generated; absent when not told."""
    tokens_in: int | None = None


@dataclass(frozen=True, slots=True)
class Workflow:
    """A submitted workflow. Key: id."""

    id: str = ""
    """"w" and a number."""
    name: str = ""
    phase: WorkflowPhase = WorkflowPhase.UNKNOWN
    tasks: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    actor: str = ""
    created_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A run of tasks of one model on one device, as planned or running."""

    model: str = ""
    task_ids: tuple[str, ...] = ()
    count: int = 0
    """Tasks in it, also when task_ids was cut to the first 64."""
    start: datetime | None = None
    end: datetime | None = None
    load_s: float = 0.0
    """Seconds of load or swap before start; 0: already there."""
    running: bool = False
    runs_seen: int = 0
    """Measured runs behind the estimate; 0: a default guess, and the console says so."""
    reason: str = ""
    """Why these ride together here."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The plan of one device. Key: device_id."""

    device_id: str = ""
    alias: str = ""
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan as a whole. Key: "plan"."""

    made_at: datetime | None = None
    strategy: str = ""
    """Name of the strategy."""
    swaps: int = 0
    """Model loads in the plan, and what first-come-first-served would need."""
    swaps_first_come: int = 0
    done_at: datetime | None = None
    runs_seen: int = 0
    oldest_wait_s: float = 0.0
    """Longest wait of a ready task now, and the bound on it, seconds."""
    wait_bound_s: float = 0.0
    ready: int = 0
    running: int = 0
    blocked: int = 0
