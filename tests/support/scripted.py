"""Recordings made by hand, byte for byte as the recorder writes them: series and events with known answers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from gswarm.kinds import BY_MESSAGE, key_of
from gswarm.profiler.journal import Record, frame
from gswarm.profiler.recording import Recording
from gswarm.profiler.ticks import NA_I32, NA_U64
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, profiler_pb2, queue_pb2

NOON = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
F32, I32 = profiler_pb2.COLUMN_TYPE_GAUGE_F32, profiler_pb2.COLUMN_TYPE_GAUGE_I32
U64, MASK = profiler_pb2.COLUMN_TYPE_COUNTER_U64, profiler_pb2.COLUMN_TYPE_MASK_U64
COLUMNS: Mapping[str, tuple[str, profiler_pb2.ColumnType.ValueType]] = {
    "gpu_util_percent": ("%", F32),
    "temperature_c": ("°C", F32),
    "power_mw": ("mW", I32),
    "sm_clock_mhz": ("MHz", I32),
    "memory_used_bytes": ("B", U64),
    "memory_total_bytes": ("B", U64),
    "energy_mj": ("mJ", U64),
    "clock_event_reasons": ("", MASK),
    "ecc_uncorrected_volatile": ("", U64),
    "sm_active_percent": ("%", F32),
}
_PACKED = {F32: ("f32", "f", float("nan")), I32: ("i32", "i", NA_I32)}
Values = Mapping[str, float | int | None]


def at(seconds: float) -> datetime:
    """So many seconds into every recording made here."""
    return NOON + timedelta(seconds=seconds)


def us(seconds: float) -> int:
    """The same, as recordings have it."""
    return round(at(seconds).timestamp() * 1e6)


class Script:
    """Writes a recording. Everything takes seconds from noon."""

    def __init__(self, directory: Path, name: str = "run", interval_s: float = 1.0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.name, self.interval_s = directory, name, interval_s
        self._records: list[tuple[int, bytes]] = []
        self.ahead_s = 0.0
        """How far the host's clock, which stamps changes, is ahead of the recording's time."""
        self._revision, self._seq = 0, 0

    def _add(self, kind: Record, seconds: float, payload: bytes) -> None:
        self._records.append((us(seconds), frame(kind, us(seconds), payload)))

    def state(
        self, seconds: float, *objects: Message, deleted: Sequence[Message] = (), everything: bool = False
    ) -> None:
        """One operation's changes, or a full list."""
        self._revision += 1
        response = cluster_pb2.WatchResponse(revision=self._revision, list=everything)
        response.time.FromDatetime(at(seconds + self.ahead_s))
        for message, is_deleted in [*((one, False) for one in objects), *((one, True) for one in deleted)]:
            info = BY_MESSAGE[type(message)]
            obj = response.objects.add(kind=info.kind, key=key_of(message), revision=self._revision, deleted=is_deleted)
            if not is_deleted:
                getattr(obj, info.slot).CopyFrom(message)
        self._add(Record.LIST if everything else Record.BATCH, seconds, response.SerializeToString())

    def schema(
        self,
        seconds: float,
        devices: Sequence[str],
        columns: Sequence[str] = tuple(COLUMNS),
        *,
        node: str = "n1",
        id: int = 1,
    ) -> profiler_pb2.MetricSchema:
        """A node's layout."""
        made = profiler_pb2.MetricSchema(node=node, id=id, device_ids=devices)
        for column in columns:
            unit, kind = COLUMNS[column]
            made.columns.add(name=column, unit=unit, type=kind)
        self._add(Record.SCHEMA, seconds, made.SerializeToString())
        return made

    def tick(self, seconds: float, schema: profiler_pb2.MetricSchema, rows: Sequence[Values], **changed: Any) -> None:
        """One moment of a node; what a row lacks is NA."""
        self._seq += 1
        packed: dict[str, bytes] = {"f32": b"", "i32": b"", "u64": b""}
        for row in rows:
            for column in schema.columns:
                slot, code, absent = _PACKED.get(column.type, ("u64", "Q", NA_U64))
                value = row.get(column.name)
                packed[slot] += struct.pack(f"<{code}", absent if value is None else value)
        tick = profiler_pb2.SampleTick(
            node=schema.node, seq=self._seq, time_unix_us=us(seconds), schema_id=schema.id, **(packed | changed)
        )
        self._add(Record.TICK, seconds, tick.SerializeToString())

    def gap(self, seconds: float, why: str) -> None:
        """The recorder lost something."""
        self._add(Record.GAP, seconds, why.encode())

    def write(self) -> Path:
        """The directory, ready to be opened."""
        body = {"format": 1, "name": self.name, "interval_s": self.interval_s, "nodes": []}
        (self.directory / "manifest.json").write_text(json.dumps(body))
        records = sorted(self._records, key=lambda one: one[0])
        (self.directory / "journal").write_bytes(b"".join(record for _, record in records))
        return self.directory

    def open(self) -> Recording:
        """The recording, open; to be closed."""
        return Recording.open(self.write())


def gpu(index: int, *, node: str = "n1", simulated: bool = False) -> cluster_pb2.Device:
    """A device as an agent describes it."""
    return cluster_pb2.Device(
        id=f"{'SIM' if simulated else 'GPU'}-{node}-{index}",
        alias=f"{node}:gpu{index}",
        node=node,
        index=index,
        kind=cluster_pb2.DEVICE_KIND_SIMULATED if simulated else cluster_pb2.DEVICE_KIND_GPU,
        name="NVIDIA H100",
        memory_bytes=80 << 30,
    )


def task(number: int, phase: str, model: str = "m", *, device: str = "", ready: float | None = None,
         started: float | None = None, finished: float | None = None, tokens: int | None = None) -> queue_pb2.Task:  # fmt: skip
    """A task in a phase, "ready" for example."""
    made = queue_pb2.Task(
        id=str(number), type=queue_pb2.TASK_TYPE_INFERENCE, model=model, phase=f"TASK_PHASE_{phase.upper()}"  # type: ignore[arg-type]
    )
    if device:
        made.device_ids.append(device)
    for field, when in (("ready_at", ready), ("started_at", started), ("finished_at", finished)):
        if when is not None:
            getattr(made, field).FromDatetime(at(when))
    if tokens is not None:
        made.tokens_out = tokens
    return made


def lane(device: str, *task_ids: int, running: Sequence[int] = ()) -> queue_pb2.Lane:
    """A device's part of the plan: what is to run there, and what runs there already."""
    made = queue_pb2.Lane(device_id=device)
    for ids, is_running in ((running, True), (task_ids, False)):
        if ids:
            made.blocks.add(model="m", task_ids=[str(i) for i in ids], count=len(ids), running=is_running)
    return made


def service(name: str, phase: str, device: str, model: str = "m", node: str = "n1") -> models_pb2.Service:
    """A service in a phase, "loading" for example."""
    return models_pb2.Service(
        name=name, model=model, node=node, device_ids=[device], phase=f"SERVICE_PHASE_{phase.upper()}"  # type: ignore[arg-type]
    )


def mark(number: int, seconds: float, text: str, kind: str = "mark", *, cause: str = "") -> common_pb2.Event:
    """A mark as the host logs it: a moment, or "begin" and "end" of something, the end caused by its begin."""
    made = common_pb2.Event(id=str(number), type=f"profiler.{kind}", message=text, cause=cause)
    made.time.FromDatetime(at(seconds))
    return made
