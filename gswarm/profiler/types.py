"""Recording sessions: what profiler actions return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Progress


class SessionPhase(Enum):
    """Mirrors the wire enum SessionPhase."""

    UNKNOWN = "unknown"
    RECORDING = "recording"
    PAUSED = "paused"  # Disk full or unwritable; goes on by itself.
    STOPPED = "stopped"
    SEALED = "sealed"  # Journal turned into Parquet segments.


@dataclass(frozen=True, slots=True)
class Session:
    """A named recording. Key: name."""

    name: str = ""
    nodes: tuple[str, ...] = ()
    """Empty: all nodes, also those that join later."""
    interval_s: float = 0.0
    phase: SessionPhase = SessionPhase.UNKNOWN
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    ticks: int = 0
    """Node ticks recorded."""
    events: int = 0
    size_bytes: int = 0
    """On disk."""
    path: str = ""
    """On the host's machine."""
    detail: str = ""
    actor: str = ""
    generation: int = 0
    metrics: tuple[str, ...] = ()
    """Empty: all metrics, also those that come later."""
    tags: Mapping[str, str] = field(default_factory=dict)
    stops_at: datetime | None = None
    """When it stops by itself."""
    until_task: str = ""
    """Task that it stops with."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written: where, how many rows, and what of the recording could not be read."""

    path: str
    rows: int
    damage: str = ""


def session_sealed(asked: Session, now: Session | None) -> Progress:
    """How far the sealing of a stopped session is."""
    if now is None:
        return Progress(ConditionState.FAILED, None, f"session {asked.name} was deleted")
    if now.phase is SessionPhase.SEALED:
        return Progress(ConditionState.DONE, 1.0, f"{now.name} is sealed")
    if now.phase is SessionPhase.STOPPED and now.detail:
        return Progress(ConditionState.FAILED, None, now.detail)
    return Progress(ConditionState.PENDING, None, f"{now.name} is being sealed")
