"""Recording sessions: what profiler actions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gswarm.cluster.types import ConditionState, Progress, Severity
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
    slowest_s: float = 0.0
    """Adaptive: between `interval_s` while values move and this while none does; 0: regular."""


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

    def lines(self) -> list[str]:
        """As text."""
        from gswarm.profiler.tables import counted

        return [f"{counted(self.changed, 'node')} told to sample something else"]


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """A metric of one device over a recording, each sample weighted with the time it stands for. None is NA."""

    metric: str
    unit: str
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None
    min: float | None
    known_share: float
    """Of the sampled time, from 0 to 1, for how much there was a value."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """A reason for which a device's clocks were held down, as NVML names it, and for what share of the time, 0 to 1."""

    reason: str
    share: float


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What one device did. Shares are of its sampled time, 0 to 1; None is NA."""

    device: str
    id: str
    node: str
    name: str
    kind: str
    samples: int
    sampled_s: float
    """Seconds that the samples stand for; gaps are not in it."""
    gaps_s: float
    """Seconds between the first sample and the last for which there was none."""
    idle_share: float | None
    """GPU utilisation under 5 %."""
    starved_share: float | None
    """Idle while tasks that the plan gave to this device were ready."""
    loading_share: float
    """A model was being loaded on it."""
    loads: int
    throttled_share: float | None
    throttled: tuple[Throttled, ...]
    head_room_bytes: int | None
    """Memory free when it was fullest."""
    energy_j: float | None
    energy_basis: str
    """"counter": the device's own; "power": the power drawn, summed over the sampled time; empty: NA."""
    metrics: tuple[MetricFigures, ...]

    def figures(self, metric: str) -> MetricFigures | None:
        """Of one metric; None when the device has none."""
        return next((found for found in self.metrics if found.metric == metric), None)


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """The accelerators of one node together; its CPU is not among them."""

    node: str
    devices: int
    util_mean: float | None
    idle_share: float | None
    throttled_share: float | None
    imbalance: float | None
    """Of the devices' mean utilisation: 0 when all do the same, 1 when one does everything."""
    energy_j: float | None
    energy_devices: int
    """How many of the devices the energy is of."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What was done with one model. Times in seconds; None: nothing to count."""

    model: str
    tasks: int
    """Attempts that ended while it was recorded."""
    failed: int
    run_mean_s: float | None
    run_p95_s: float | None
    wait_mean_s: float | None
    wait_p95_s: float | None
    tokens: int | None
    loads: int
    load_mean_s: float | None


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """One of the devices that a finding is of, and its own share of the time, 0 to 1, where it is one."""

    device: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing, in words that name the evidence."""

    severity: Severity
    subject: str
    """A device, a node, a model; or several devices of a node, when the same is to be said of them."""
    text: str
    evidence: str
    """The metric or kind of object that says so."""
    share: float | None = None
    """Of the sampled time, 0 to 1, where it is one; of several devices the largest."""
    devices: tuple[DeviceShare, ...] = ()
    """Those it is of, each with its share; empty: it is not of devices."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """A recording in figures and findings."""

    name: str
    start: datetime
    end: datetime
    ticks: int
    events: int
    findings: tuple[Finding, ...]
    devices: tuple[DeviceFigures, ...]
    nodes: tuple[NodeFigures, ...]
    models: tuple[ModelFigures, ...]
    damage: tuple[str, ...] = ()
    """What of the recording could not be read, or was not recorded."""

    def lines(self) -> list[str]:
        """As text."""
        from gswarm.profiler.tables import analysis

        return analysis(self)


class Verdict(Enum):
    """What a comparison says of one figure."""

    MORE = "more"
    LESS = "less"
    SAME = "no change shown"  # The interval has 0 in it: noise would do as much.
    UNKNOWN = "NA"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of a device or a model in two recordings."""

    subject: str
    kind: str
    """"device" or "model"."""
    metric: str
    unit: str
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    """The difference lies between these two with the comparison's confidence."""
    verdict: Verdict
    detail: str = ""
    """Why there is no verdict."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two recordings side by side."""

    a: str
    b: str
    confidence: float
    """That none of all the verdicts is noise."""
    resamples: int
    seed: int
    changes: tuple[Change, ...]
    damage: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """As text."""
        from gswarm.profiler.tables import comparison

        return comparison(self)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture of a recording: in a file, or as the lines of a terminal."""

    path: str
    devices: int
    metrics: tuple[str, ...]
    damage: str = ""
    picture: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """As text; in colour on a terminal that wants it."""
        from gswarm.profiler.tables import drawn

        return drawn(self)
