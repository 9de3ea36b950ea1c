"""What the console took from a mirror at one tick: the objects as they stand, the link, and the latest samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, Event, Node
from gswarm.data.types import Chunk
from gswarm.model.types import Model, Placement, Service
from gswarm.profiler.types import Session
from gswarm.queue.types import Lane, Plan, Task, Workflow


class Link(Enum):
    """How the console stands with what it reads."""

    CONNECTING = "connecting"
    LIVE = "live"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Replay:
    """Where a recording, or the past of a live host, stands."""

    name: str
    start: datetime
    end: datetime
    speed: float = 1.0
    is_paused: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    """(fraction of the time line, "mark" | "alarm") pairs."""
    density: tuple[int, ...] = ()
    """Events per equal share of the time line."""
    at: datetime | None = None
    """Of which moment the samples are, while all else is of now: a live host's past. None: all is of one moment."""


_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a tick of the console is drawn from; nothing in it changes afterwards."""

    now: datetime = _NEVER
    link: Link = Link.CONNECTING
    age_s: float | None = None
    """Seconds since the host was last heard; None: never."""
    host: str = ""
    problem: str = ""
    """Why there is no link, in one sentence."""
    nodes: Mapping[str, Node] = field(default_factory=dict)
    devices: Mapping[str, Device] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    placements: Mapping[str, Placement] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    chunks: Mapping[str, Chunk] = field(default_factory=dict)
    workflows: Mapping[str, Workflow] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    lanes: Mapping[str, Lane] = field(default_factory=dict)
    plan: Plan | None = None
    sessions: Mapping[str, Session] = field(default_factory=dict)
    events: Mapping[str, Event] = field(default_factory=dict)
    alerts: Mapping[str, Alert] = field(default_factory=dict)
    samples: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Device id to metric to value; a metric that is NA is not there."""
    sampled_at: Mapping[str, float] = field(default_factory=dict)
    """Device id to the unix time of its sample."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Device id to metric to why it is NA."""
    replay: Replay | None = None

    def row_of(self, kind: str, key: str) -> Any:
        """The object behind a row."""
        rows: Mapping[str, Mapping[str, Any]] = {
            "node": self.nodes,
            "device": self.devices,
            "model": self.models,
            "chunk": self.chunks,
            "task": self.tasks,
            "session": self.sessions,
            "event": self.events,
        }
        return rows[kind].get(key) if kind in rows else None
