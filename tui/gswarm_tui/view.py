"""What is on screen as immutable values: made once a tick, compared by value, shared by panes and tests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import Event, Node
from gswarm.data.types import Chunk
from gswarm.model.types import Model, Service
from gswarm.profiler.types import Session
from gswarm.queue.types import Plan, Task

from .snapshot import Link, Replay


class Tone(Enum):
    """How a state is coloured; each also has a glyph and a word."""

    READY = "ready"
    CHANGING = "changing"
    FAILED = "failed"
    QUIET = "dim"


@dataclass(frozen=True, slots=True)
class State:
    """A state as it is shown: glyph, word, tone."""

    glyph: str
    word: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class BlockView:
    """A block of a lane in unix seconds."""

    model: str
    hue: int
    start: float
    end: float
    load_s: float
    count: int
    is_running: bool
    task_ids: tuple[str, ...]
    reason: str
    runs_seen: int


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device with its last sample and its plan. None is NA."""

    id: str
    alias: str
    node: str
    short: str
    name: str
    is_simulated: bool
    is_cpu: bool
    util: float | None
    memory: int | None
    memory_total: int
    watts: float | None
    cap_w: float | None
    celsius: float | None
    trouble: str
    """"lost 41s" and the like; empty when well."""
    holds: tuple[int, str] | None
    """Hue and name of the model that sits on it."""
    is_idle: bool
    age_s: float | None
    blocks: tuple[BlockView, ...]


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with its devices in order."""

    name: str
    state: State
    detail: str
    devices: tuple[DeviceView, ...]
    node: Node


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model and where it stands."""

    name: str
    hue: int | None
    """None: never served."""
    size: int
    state: State
    tokens_per_s: float | None
    where: str
    is_simulated: bool
    services: tuple[Service, ...]
    model: Model


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task that is not finished: blocked first, then next to start, running last."""

    id: str
    model: str
    hue: int | None
    wait_s: float
    is_late: bool
    """Waits beyond three quarters of its bound."""
    starts: datetime | None
    where: str
    blocked: str
    """What it lacks, shortly; empty when it will run."""
    is_running: bool
    who: str
    task: Task


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk of data and who holds it."""

    id: str
    kind: str
    size: int
    references: int
    age_s: float
    is_unread: bool
    """Held long and never read."""
    where: str
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Totals:
    """The first line. None is NA."""

    link: Link
    age_s: float | None
    host: str
    nodes: int
    devices: int
    util: float | None
    memory: int | None
    memory_total: int
    watts: float | None
    tokens_per_s: float | None
    queue: int
    alarms: tuple[str, ...]
    now: datetime
    problem: str


@dataclass(frozen=True, slots=True)
class View:
    """All that the console shows at one tick."""

    totals: Totals
    nodes: tuple[NodeView, ...] = ()
    models: tuple[ModelView, ...] = ()
    tasks: tuple[TaskView, ...] = ()
    chunks: tuple[ChunkView, ...] = ()
    plan: Plan | None = None
    sessions: tuple[Session, ...] = ()
    events: tuple[Event, ...] = ()
    """Newest first."""
    replay: Replay | None = None

    @property
    def devices(self) -> tuple[DeviceView, ...]:
        return tuple(device for node in self.nodes for device in node.devices)

    @property
    def is_stale(self) -> bool:
        return self.totals.link is not Link.LIVE

    @property
    def is_loading(self) -> bool:
        return self.totals.link is Link.CONNECTING and self.totals.age_s is None
