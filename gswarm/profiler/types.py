"""Recording sessions: what profiler actions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Progress
from gswarm.errors import InvalidError


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


@dataclass(frozen=True, slots=True)
class Pulled:
    """A recording that was copied here."""

    path: str
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """A recording that is whole again, as far as it can be."""

    path: str
    ticks: int
    """Node ticks."""
    changes: int
    size_bytes: int
    lost: tuple[str, ...] = ()
    """What could not be read, in sentences; empty: nothing is missing."""


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """Tags of key=value texts. Raises InvalidError naming the one that is none."""
    found: dict[str, str] = {}
    for text in texts:
        key, given, value = text.partition("=")
        if not given or not key:
            raise InvalidError(f"{text!r} is no tag", next="write key=value", field="tag")
        found[key] = value
    return found


def session_sealed(asked: Session, now: Session | None) -> Progress:
    """How far the sealing of a stopped session is."""
    if now is None:
        return Progress(ConditionState.FAILED, None, f"session {asked.name} was deleted")
    if now.phase is SessionPhase.SEALED:
        return Progress(ConditionState.DONE, 1.0, f"{now.name} is sealed")
    if now.phase is SessionPhase.STOPPED and now.detail:
        return Progress(ConditionState.FAILED, None, now.detail)
    return Progress(ConditionState.PENDING, None, f"{now.name} is being sealed")


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric that devices may give: its unit, how it travels, how often it is read, and where it comes from."""

    name: str = ""
    unit: str = ""
    type: str = ""
    read: str = ""
    """Every tick, every 5 s or once."""
    switch: str = ""
    """The option of `profiler sampling` that turns it on; empty: always sampled."""
    source: str = ""
    """NVML call, or where else it is read."""


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """How one GPU reaches the others of its node, in their order."""

    device: str
    to: tuple[str, ...]
    cpu_affinity: str
    numa_node: int | None
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class NodeTopology:
    """The matrix of one node."""

    node: str
    rows: tuple[TopologyRow, ...]

    def lines(self) -> list[str]:
        """As a table: a row and a column for each GPU, then the CPUs and the NUMA node that are near."""
        head = [self.node, *(row.device for row in self.rows), "CPUS", "NUMA"]
        cells = [head]
        for row in self.rows:
            numa = "-" if row.numa_node is None else str(row.numa_node)
            name = f"{row.device} SIM" if row.simulated else row.device
            cells.append([name, *row.to, row.cpu_affinity or "-", numa])
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]


@dataclass(frozen=True, slots=True)
class Topology:
    """The matrices of some nodes."""

    nodes: tuple[NodeTopology, ...]

    def lines(self) -> list[str]:
        """All of them, an empty line between."""
        return [line for i, node in enumerate(self.nodes) for line in ([""] if i else []) + node.lines()]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What was switched: how many nodes sample something else now."""

    changed: int
    revision: int
