"""Recording sessions: what profiler actions return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


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
