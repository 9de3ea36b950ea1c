"""What the cluster did while it was recorded: runs of tasks, phases of services, downloads, marks, and work that waited."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from gswarm.cluster.types import Device, DeviceKind, Event
from gswarm.codec import from_proto
from gswarm.kinds import BY_KIND, body_of
from gswarm.model.types import Placement, PlacementPhase, Service, ServicePhase
from gswarm.profiler.clocks import NOT_RUNNING, host_offset
from gswarm.profiler.journal import Record
from gswarm.profiler.series import Series, Times
from gswarm.queue.types import Lane, Task, TaskPhase
from gswarm.v1 import cluster_pb2

if TYPE_CHECKING:
    from gswarm.profiler.recording import Recording

MARK, BEGIN, END = "profiler.mark", "profiler.begin", "profiler.end"
"""Types of marks: a moment, and the two ends of a span; an end names its begin's event as its cause."""


class SpanKind(Enum):
    """What lasted."""

    TASK = "task"
    """An attempt of a task."""
    SERVICE = "service"
    """A service in one phase."""
    DOWNLOAD = "download"
    """A model on its way to a node."""
    MARK = "mark"
    """What a person named, from begin to end."""
    UNKNOWN = "NA"
    """A metric without a value."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted, in microseconds since the epoch; cut to the recording where it began or ended outside."""

    kind: SpanKind
    name: str
    phase: str
    start_us: int
    end_us: int
    devices: tuple[str, ...] = ()
    node: str = ""
    model: str = ""
    service: str = ""
    wait_s: float | None = None
    """Of a task: seconds from ready to started."""
    tokens: int | None = None
    detail: str = ""
    is_open: bool = False
    """It went on when the recording ended."""

    @property
    def seconds(self) -> float:
        """How long."""
        return (self.end_us - self.start_us) / 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """How many ready tasks stood in a device's lane of the plan, from each of these times on."""

    times_us: Times
    counts: Times

    def at(self, times_us: Times) -> Times:
        """The count at each of these times; 0 before the first."""
        place = np.searchsorted(self.times_us, times_us, side="right") - 1
        return np.where(place < 0, 0, self.counts[np.maximum(place, 0)])


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """All of it. Times are the host's."""

    name: str
    start_us: int
    end_us: int
    interval_s: float
    devices: Mapping[str, Device]
    """Every device that was ever there, as last described."""
    spans: tuple[Span, ...]
    waiting: Mapping[str, Waiting]
    marks: tuple[Event, ...]
    events: tuple[Event, ...]
    damage: tuple[str, ...]
    lost: tuple[tuple[int, str], ...]
    """When the recorder itself had to leave something out, and why."""
    slowest_s: float = 0.0
    """Of a session that is adaptive: how long nothing was sampled by right."""

    def label(self, device: str) -> str:
        """A device's alias, or its id when it was never described."""
        found = self.devices.get(device)
        return found.alias if found is not None and found.alias else device

    def in_order(self, series: Iterable[Series]) -> tuple[Series, ...]:
        """Devices as people count them: by node, gpu2 before gpu10, the processor last; ids of GPUs are in no order."""
        return tuple(
            sorted(series, key=lambda one: (one.node, self.is_cpu(one.device), natural(self.label(one.device))))
        )

    def is_simulated(self, device: str) -> bool:
        """Whether it exists only as numbers."""
        found = self.devices.get(device)
        return found.kind is DeviceKind.SIMULATED if found is not None else device.startswith("SIM-")

    def is_cpu(self, device: str) -> bool:
        """Whether it is a machine's processor."""
        found = self.devices.get(device)
        return found.kind is DeviceKind.CPU if found is not None else device.startswith("CPU-")

    def of(self, kind: SpanKind, device: str = "", phase: str = "") -> list[Span]:
        """The spans of a kind, on a device, in a phase."""
        return [
            span
            for span in self.spans
            if span.kind is kind and (not device or device in span.devices) and (not phase or span.phase == phase)
        ]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts the numbers in names as numbers."""
    return tuple((stem, int(digits or 0)) for stem, digits in re.findall(r"(\D*)(\d*)", name))


def read(recording: Recording) -> History:
    """Walk the recorded changes once."""
    walk = _Walk(_us(recording.start))
    lost: list[tuple[int, str]] = []
    has_list = False
    for kind, time_us, payload in _changes(recording):
        if kind is Record.GAP:
            lost.append((time_us, payload.decode(errors="replace")))
            has_list = False
            if payload == NOT_RUNNING:
                walk.another_clock()
            continue
        if kind is Record.LIST and has_list:
            continue  # a seek point: nothing that the changes have not said
        has_list = has_list or kind is Record.LIST
        walk.take(kind, cluster_pb2.WatchResponse.FromString(payload), time_us)
    end = _us(recording.end)
    events = tuple(recording.events())
    return History(
        recording.name,
        _us(recording.start),
        end,
        float(recording.manifest.interval_s or 1.0),
        walk.devices,
        tuple(sorted([*walk.spans(end), *_marked(events, end)], key=lambda span: (span.start_us, span.name))),
        walk.waiting(),
        tuple(event for event in events if event.type == MARK),
        events,
        recording.damage,
        tuple(lost),
        float(recording.manifest.slowest_s),
    )


def _changes(recording: Recording) -> Iterator[tuple[Record, int, bytes]]:
    """The recording's records that are no samples. The one place here that knows how it holds them."""
    for item in recording.records():
        yield item.kind, item.time_us, item.payload


def _marked(events: tuple[Event, ...], end_us: int) -> Iterator[Span]:
    """Marks with a begin and an end; one whose end is not there went on."""
    ends = {event.cause: event for event in events if event.type == END}
    for event in events:
        if event.type == BEGIN:
            over = ends.get(event.id)
            until = _us(over.time) if over is not None else end_us
            yield Span(SpanKind.MARK, event.message, "", _us(event.time), until, is_open=over is None)


def _us(moment: datetime | None) -> int:
    return 0 if moment is None else round(moment.timestamp() * 1_000_000)


@dataclass(slots=True)
class _Walk:
    """State while the changes go by."""

    start_us: int
    devices: dict[str, Device] = field(default_factory=dict)
    _offset: int = 0
    """What brings the host's stamps of now to the recording's time."""
    _open: dict[tuple[SpanKind, str], Span] = field(default_factory=dict)
    _closed: list[Span] = field(default_factory=list)
    _ready: dict[str, int] = field(default_factory=dict)
    """Tasks that are ready, and since when."""
    _lanes: dict[str, frozenset[str]] = field(default_factory=dict)
    _counts: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def take(self, kind: Record, response: cluster_pb2.WatchResponse, time_us: int) -> None:
        """One operation's changes, or everything."""
        now = _us(response.time.ToDatetime(UTC)) if response.HasField("time") else time_us
        if kind is Record.BATCH:  # a list is as old as the last change
            self._offset = host_offset(time_us, now)
        now = max(now + self._offset, self.start_us)
        if response.list:
            self._forget_what_is_not_in(response, now)
        touched = response.list
        for obj in response.objects:
            if obj.kind not in BY_KIND:
                continue  # a kind of a newer gswarm
            match BY_KIND[obj.kind].slot:
                case "device" if not obj.deleted:
                    self.devices[obj.key] = from_proto(obj.device, Device)
                case "task":
                    self._task(obj.key, None if obj.deleted else from_proto(obj.task, Task), now)
                    touched = True
                case "service":
                    self._service(obj.key, None if obj.deleted else from_proto(obj.service, Service), now)
                case "placement":
                    self._placement(obj.key, None if obj.deleted else from_proto(obj.placement, Placement), now)
                case "lane":
                    lane: Any = Lane() if obj.deleted else from_proto(body_of(obj), Lane)
                    self._lanes[obj.key] = frozenset(i for b in lane.blocks if not b.running for i in b.task_ids)
                    touched = True
        if touched:
            self._count(now)

    def another_clock(self) -> None:
        """The host was started again."""
        self._offset = 0

    def _forget_what_is_not_in(self, response: cluster_pb2.WatchResponse, now: int) -> None:
        named = {(BY_KIND[obj.kind].slot, obj.key) for obj in response.objects if obj.kind in BY_KIND}
        slots = {SpanKind.TASK: "task", SpanKind.SERVICE: "service", SpanKind.DOWNLOAD: "placement"}
        for kind, name in list(self._open):
            if (slots[kind], name) not in named:
                self._close((kind, name), now)
        self._ready = {key: since for key, since in self._ready.items() if ("task", key) in named}
        self._lanes = {key: ids if ("lane", key) in named else frozenset() for key, ids in self._lanes.items()}

    def _close(self, key: tuple[SpanKind, str], end_us: int, **changed: Any) -> None:
        if (span := self._open.pop(key, None)) is not None:
            self._closed.append(replace(span, end_us=max(span.start_us, end_us), **changed))

    def _task(self, key: str, task: Task | None, now: int) -> None:
        since = self._ready.pop(key, None)
        if task is not None and task.phase is TaskPhase.READY:
            self._ready[key] = self._stamp(task.ready_at, now) if since is None else since
        at = (SpanKind.TASK, key)
        if task is None or task.phase is not TaskPhase.RUNNING:
            ended = now if task is None else self._stamp(task.finished_at, now)
            told: dict[str, Any] = (
                {} if task is None else {"phase": task.phase.value, "tokens": task.tokens_out, "detail": task.detail}
            )
            self._close(at, ended, **told)
            return
        stamped = self._stamp(task.started_at, now)
        began = max(self.start_us, stamped)
        wait = None
        if task.started_at is not None and task.ready_at is not None:
            # Seen to become ready: then on this axis, else by the clock of that time.
            ready = self._stamp(task.ready_at, now) if since is None else since
            wait = max(0.0, (stamped - ready) / 1e6)
        if at not in self._open:
            self._open[at] = Span(
                *at, task.phase.value, began, began, task.device_ids, task.node, task.model, task.service, wait
            )

    def _stamp(self, moment: datetime | None, now: int) -> int:
        return now if moment is None else _us(moment) + self._offset

    def _service(self, key: str, service: Service | None, now: int) -> None:
        at = (SpanKind.SERVICE, key)
        word = "" if service is None else service.phase.value
        known = self._open.get(at)
        if known is not None and known.phase == word:
            return
        self._close(at, now)
        if service is not None and service.phase not in (ServicePhase.STOPPED, ServicePhase.UNKNOWN):
            self._open[at] = Span(
                *at, word, now, now, service.device_ids, service.node, service.model, key, detail=service.detail
            )

    def _placement(self, key: str, placement: Placement | None, now: int) -> None:
        at = (SpanKind.DOWNLOAD, key)
        if placement is not None and placement.phase is PlacementPhase.DOWNLOADING:
            name = placement.phase.value
            self._open.setdefault(at, Span(*at, name, now, now, (), placement.node, placement.model))
        else:
            self._close(at, now, **({} if placement is None else {"phase": placement.phase.value}))

    def _count(self, now: int) -> None:
        for device, ids in self._lanes.items():
            steps = self._counts.setdefault(device, [])
            count = len(ids & self._ready.keys())
            if not steps or steps[-1][1] != count:
                steps.append((now, count))

    def spans(self, end_us: int) -> tuple[Span, ...]:
        """All of them; those still open end with the recording."""
        still = [replace(span, end_us=max(span.start_us, end_us), is_open=True) for span in self._open.values()]
        return (*self._closed, *still)

    def waiting(self) -> dict[str, Waiting]:
        """By device id."""
        return {
            device: Waiting(np.array([t for t, _ in steps], np.int64), np.array([n for _, n in steps], np.int64))
            for device, steps in self._counts.items()
        }
