"""Workflows, tasks and the plan: what queue actions return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Progress


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
    needed_by: tuple[str, ...] = ()
    """Task ids: those that depend on it."""


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
    first_task: int = 0
    """Id of its first task; the others follow in order of its actions."""


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
    """Ready, and no device takes it."""
    waiting: int = 0
    """Waits for other tasks, or to be tried again."""
    beyond: int = 0
    """Ready or waiting, and after the end of what is planned, which `done_at` is then: a very long queue is planned in part."""

    @property
    def counts(self) -> list[str]:
        """How many tasks there are of each kind, in words, each task once; empty: there are none."""
        kinds = (
            (self.ready - self.blocked, "ready"),
            (self.running, "running"),
            (self.waiting, "waiting"),
            (self.blocked, "blocked"),
        )
        return [f"{count} {word}" for count, word in kinds if count]


class Takes(Enum):
    """Whether a device takes a task."""

    YES = "yes"
    COULD = "could"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one device says of a task."""

    device: str
    takes: Takes
    expected_start: datetime | None
    why: str
    change: str = ""
    """The command that would change it; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task stands where it stands."""

    task: str
    phase: TaskPhase
    reason: str
    """One true reason, in one sentence."""
    waits_s: float | None
    wait_bound_s: float | None
    expected_start: datetime | None
    expected_on: str
    basis: str
    """What the expected start rests on."""
    needs: str
    verdicts: tuple[Verdict, ...]
    """Device by device, soonest first."""

    def lines(self) -> list[str]:
        """As text."""
        from gswarm import units, views

        out = [f"task {self.task} is {self.phase.value}: {self.reason}"]
        if self.waits_s is not None:
            bound = f" of at most {self.wait_bound_s:g} s" if self.wait_bound_s else ""
            out.append(f"waits     {units.duration(self.waits_s)}{bound}")
        if self.expected_start is not None:
            out.append(f"starts    {units.clock(self.expected_start)} on {self.expected_on} ({self.basis})")
        if self.needs:
            out.append(f"needs     {self.needs}")
        if self.verdicts:
            out += ["", *views.table(self.verdicts, Verdict)]
        return out


@dataclass(frozen=True, slots=True)
class PlanView:
    """The plan with its lanes."""

    plan: Plan
    lanes: tuple[Lane, ...]

    def lines(self) -> list[str]:
        """As text: the summary, then the order on each device."""
        from gswarm import units

        plan = self.plan
        out = [
            f"{', '.join(plan.counts) or 'nothing queued'}; loads {plan.swaps}, first-come {plan.swaps_first_come}; "
            f"oldest waits {units.age(plan.oldest_wait_s)} of {plan.wait_bound_s:g}s"
        ]
        if plan.done_at is not None and (plan.ready or plan.running):
            basis = f"{plan.runs_seen} runs seen" if plan.runs_seen else "a guess: no runs were seen yet"
            until, after = "done about", ""
            if plan.beyond:
                until, after = "planned to", f", {plan.beyond} task{'s' if plan.beyond > 1 else ''} after that"
            out[0] += f"; {until} {units.clock(plan.done_at)} ({basis}){after}"
        for lane in self.lanes:
            out += ["", lane.alias]
            for block in lane.blocks:
                what = (
                    "running"
                    if block.running
                    else f"load {units.duration(block.load_s)}, then" if block.load_s else "next"
                )
                ids = " ".join(block.task_ids[:8]) + (" ..." if block.count > 8 else "")
                out.append(
                    f"  {units.clock(block.start)} to {units.clock(block.end)}  {block.model} x{block.count}  {what}: {ids}  ({block.reason})"
                )
        return out


def workflow_done(asked: Workflow, now: Workflow | None) -> Progress:
    """How far a workflow is."""
    if now is None:
        return Progress(ConditionState.DONE, 1.0, f"{asked.id} ended and has left the watch; see gswarm queue history")
    told = f"{now.id}: {now.done} of {now.tasks} done"
    if now.failed or now.cancelled:
        told += f", {now.failed} failed, {now.cancelled} cancelled"
    if now.phase is WorkflowPhase.DONE:
        return Progress(ConditionState.DONE, 1.0, told)
    if now.phase in (WorkflowPhase.FAILED, WorkflowPhase.CANCELLED):
        return Progress(ConditionState.FAILED, None, told)
    return Progress(ConditionState.PENDING, (now.done + now.failed + now.cancelled) / max(1, now.tasks), told)
