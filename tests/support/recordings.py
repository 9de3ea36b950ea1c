"""Recordings made record by record, as a recorder writes them."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gswarm.cluster.types import Event, Node
from gswarm.kinds import BY_MESSAGE, key_of, wire_of
from gswarm.profiler import manifest as manifests
from gswarm.profiler.journal import Record, frame
from gswarm.profiler.manifest import Manifest
from gswarm.profiler.recording import Recording
from gswarm.profiler.ticks import NA_I32, NA_U64
from gswarm.v1 import cluster_pb2, common_pb2, profiler_pb2, queue_pb2
from gswarm.wire import length_prefixed

Message = cluster_pb2.Node | cluster_pb2.Device | queue_pb2.Task | common_pb2.Event
START_US = 1_764_000_000_000_000
COLUMNS = (
    profiler_pb2.MetricColumn(name="gpu_util_percent", unit="%", type=profiler_pb2.COLUMN_TYPE_GAUGE_F32),
    profiler_pb2.MetricColumn(name="power_mw", unit="mW", type=profiler_pb2.COLUMN_TYPE_GAUGE_I32),
    profiler_pb2.MetricColumn(name="energy_mj", unit="mJ", type=profiler_pb2.COLUMN_TYPE_COUNTER_U64),
)


def schema(
    node: str, devices: Sequence[str], columns: Sequence[profiler_pb2.MetricColumn] = COLUMNS, id: int = 1
) -> profiler_pb2.MetricSchema:
    return profiler_pb2.MetricSchema(node=node, id=id, columns=columns, device_ids=devices)


def tick(
    layout: profiler_pb2.MetricSchema,
    time_us: int,
    rows: Sequence[Mapping[str, float | int | None]],
    seq: int = 1,
    absent: Sequence[profiler_pb2.Absent] = (),
) -> profiler_pb2.SampleTick:
    """A tick of a node: one mapping a device; what is None or missing is NA."""
    made = profiler_pb2.SampleTick(node=layout.node, seq=seq, time_unix_us=time_us, schema_id=layout.id, absent=absent)
    kinds = {1: ("f32", "f", math.nan), 2: ("i32", "i", NA_I32), 3: ("u64", "Q", NA_U64), 4: ("u64", "Q", NA_U64)}
    for row in rows:
        for column in layout.columns:
            slot, code, missing = kinds[column.type]
            value = row.get(column.name)
            packed = struct.pack(f"<{code}", missing if value is None else value)
            setattr(made, slot, getattr(made, slot) + packed)
    return made


@dataclass
class Journal:
    """Collects records; `now_us` is when the next one arrives."""

    directory: Path
    name: str = "made"
    now_us: int = START_US
    records: list[bytes] = field(default_factory=list)
    revision: int = 1
    events: int = 0
    state: dict[tuple[int, str], bytes] = field(default_factory=dict)

    def add(self, kind: Record, payload: bytes) -> None:
        self.records.append(frame(kind, self.now_us, payload))

    def _watch(self, wires: Sequence[bytes], *, whole: bool) -> bytes:
        mark = cluster_pb2.WatchResponse(revision=self.revision, list=whole)
        mark.time.FromMicroseconds(self.now_us)
        return b"".join(length_prefixed(1, wire) for wire in wires) + mark.SerializeToString()

    def list(self) -> None:
        self.add(Record.LIST, self._watch(list(self.state.values()), whole=True))

    def change(self, *messages: Message) -> None:
        self.revision += 1
        wires = []
        for message in messages:
            kind, key = BY_MESSAGE[type(message)].kind, key_of(message)
            self.state[kind, key] = wire_of(kind, key, self.revision, message.SerializeToString())
            wires.append(self.state[kind, key])
        self.add(Record.BATCH, self._watch(wires, whole=False))

    def event(self, text: str, type: str = "profiler.mark") -> None:
        self.events += 1
        made = common_pb2.Event(id=str(self.events), type=type, message=text, severity=common_pb2.SEVERITY_INFO)
        made.time.FromMicroseconds(self.now_us)
        self.change(made)

    def schema(self, layout: profiler_pb2.MetricSchema) -> None:
        self.add(Record.SCHEMA, layout.SerializeToString())

    def tick(self, made: profiler_pb2.SampleTick) -> None:
        self.add(Record.TICK, made.SerializeToString())

    def write(self, number: int = 1, data: bytes | None = None) -> Path:
        """Put it where a recorder would; with `data` that instead of the whole journal."""
        self.directory.mkdir(parents=True, exist_ok=True)
        Manifest(self.name, 1.0).write(self.directory)
        path = manifests.files(self.directory, number).journal
        path.write_bytes(b"".join(self.records) if data is None else data)
        self.records = []
        return self.directory


def a_run(directory: Path, seconds: int = 200, nodes: int = 2, devices: int = 2, *, lists_every: int = 60) -> Journal:
    """A session with state, events, samples and some that are NA."""
    journal = Journal(directory)
    layouts = [schema(f"n{n}", [f"n{n}-gpu{d}" for d in range(devices)]) for n in range(nodes)]
    for n in range(nodes):
        made = cluster_pb2.Node(name=f"n{n}", cpu_count=8)
        journal.state[1, f"n{n}"] = wire_of(1, f"n{n}", 1, made.SerializeToString())
    for second in range(seconds):
        journal.now_us = START_US + second * 1_000_000
        if second % lists_every == 0:
            journal.list()
            for layout in layouts:
                journal.schema(layout)
        if second % 5 == 1:
            journal.change(cluster_pb2.Node(name=f"n{second % nodes}", cpu_count=second))
        if second % 50 == 10:
            journal.event(f"mark {second}")
        for layout in layouts:
            rows: list[dict[str, float | int | None]] = [
                {
                    "gpu_util_percent": None if second % 7 == d else float((second * 3 + d) % 101),
                    "power_mw": 70_000 + 997 * second % 600_000 + d,
                    "energy_mj": (1 << 50) + 300_000 * second,
                }
                for d in range(devices)
            ]
            absent = [
                profiler_pb2.Absent(device=d, column=0, reason=f"busy {second // 70}")
                for d in range(devices)
                if second % 7 == d
            ]
            journal.now_us += 2000
            journal.tick(tick(layout, journal.now_us - 1000, rows, second + 1, absent))
    return journal


def shown(recording: Recording, moment_us: int) -> tuple[object, ...]:
    """All that a screen shows of a moment; times as whole milliseconds."""
    recording.seek_us(moment_us)
    samples = recording._samples()
    at = {device: int(seconds * 1000) for device, seconds in samples.at.items()}
    return dict(recording.rows(Node)), dict(recording.rows(Event)), dict(samples.values), at, dict(samples.reasons)
