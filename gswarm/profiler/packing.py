"""Readings of a node's devices as one packed tick: columns of each type, little-endian, NA as each type's own mark.

A column is announced when a device first gives it. Why a value is NA is told when that changes, and in full every
REMIND_S for readers that missed a tick.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from gswarm.profiler.metrics import METRICS, OFF, UNSUPPORTED, Absent, Metric, Reading, Type, columns
from gswarm.profiler.ticks import NA_I32, NA_U64
from gswarm.v1 import profiler_pb2

REMIND_S = 30.0
OUT_OF_RANGE = "out of range"
_NAN = float("nan")
_NOT_GIVEN = (UNSUPPORTED, *OFF.values())
_U64 = (Type.U64, Type.COUNTER, Type.MASK)


class Packer:
    """Packs the ticks of one node; its schema grows with what the devices turn out to give, and never shrinks."""

    def __init__(self, node: str, device_ids: Sequence[str], metrics: Sequence[Metric] = METRICS) -> None:
        self._known = {metric.name: metric for metric in metrics}
        self._order = {metric.name: i for i, metric in enumerate(metrics)}
        self._announced: list[Metric] = []
        self._f32: list[str] = []
        self._i32: list[str] = []
        self._u64: list[str] = []
        self._column: dict[str, int] = {}
        self._told: list[dict[str, str] | str] = []
        """Per device what was told last: reasons by metric, or one for all of them."""
        self._remind_at_us = 0
        self.schema = profiler_pb2.MetricSchema(node=node, device_ids=device_ids)

    def admit(self, readings: Sequence[Reading | Absent]) -> bool:
        """Take up columns that a device gives, or should but cannot now, for the first time; True: the schema has grown."""
        fresh = {
            name
            for reading in readings
            if not isinstance(reading, Absent)
            for name in reading.keys() - self._column.keys()
            if name in self._known and reading[name] not in _NOT_GIVEN
        }
        if not fresh:
            return False
        names = sorted({*fresh, *self._column}, key=self._order.__getitem__)
        self._announced = [self._known[name] for name in names]
        self._column = {name: i for i, name in enumerate(names)}
        self._f32 = [m.name for m in self._announced if m.type is Type.F32]
        self._i32 = [m.name for m in self._announced if m.type is Type.I32]
        self._u64 = [m.name for m in self._announced if m.type in _U64]
        schema = profiler_pb2.MetricSchema(
            node=self.schema.node, columns=columns(self._announced), device_ids=self.schema.device_ids
        )
        schema.id = zlib.crc32(schema.SerializeToString(deterministic=True)) or 1
        self.schema = schema
        self.remind()
        return True

    def remind(self) -> None:
        """Tell every reason with the next tick: someone new listens."""
        self._told = [{} for _ in self.schema.device_ids]

    def pack(self, readings: Sequence[Reading | Absent], *, seq: int, time_unix_us: int) -> profiler_pb2.SampleTick:
        """A tick of the devices in the schema's order; a device that gives nothing at all is NA for one reason."""
        if time_unix_us >= self._remind_at_us or self._remind_at_us > time_unix_us + 2 * REMIND_S * 1e6:
            self._remind_at_us = time_unix_us + int(REMIND_S * 1e6)
            self.remind()
        f32: list[float] = []
        i32: list[int] = []
        u64: list[int] = []
        tick = profiler_pb2.SampleTick(seq=seq, time_unix_us=time_unix_us, schema_id=self.schema.id)
        for row, reading in enumerate(readings):
            if isinstance(reading, Absent):
                f32 += [_NAN] * len(self._f32)
                i32 += [NA_I32] * len(self._i32)
                u64 += [NA_U64] * len(self._u64)
                self._tell_all(tick, row, reading.reason)
                continue
            lacking: list[str] = []
            for name in self._f32:
                value = reading.get(name, UNSUPPORTED)
                if isinstance(value, Absent):
                    lacking.append(name)
                    value = _NAN
                f32.append(value)
            for name in self._i32:
                value = reading.get(name, UNSUPPORTED)
                if isinstance(value, Absent) or not NA_I32 < value < 2**31:
                    lacking.append(name)
                    value = NA_I32
                i32.append(int(value))
            for name in self._u64:
                value = reading.get(name, UNSUPPORTED)
                if isinstance(value, Absent) or not 0 <= value < NA_U64:
                    lacking.append(name)
                    value = NA_U64
                u64.append(int(value))
            self._tell(tick, row, reading, lacking)
        tick.f32 = struct.pack(f"<{len(f32)}f", *f32)
        tick.i32 = struct.pack(f"<{len(i32)}i", *i32)
        tick.u64 = struct.pack(f"<{len(u64)}Q", *u64)
        return tick

    def _tell_all(self, tick: profiler_pb2.SampleTick, row: int, reason: str) -> None:
        if self._told[row] != reason:
            tick.absent.add(device=row, every_column=True, reason=reason)
            self._told[row] = reason

    def _tell(self, tick: profiler_pb2.SampleTick, row: int, reading: Reading, lacking: Sequence[str]) -> None:
        told = self._told[row]
        if isinstance(told, str):
            told = {}
        now: dict[str, str] = {}
        for name in lacking:
            value = reading.get(name, UNSUPPORTED)
            reason = value.reason if isinstance(value, Absent) else OUT_OF_RANGE
            now[name] = reason
            if told.get(name) != reason:
                tick.absent.add(device=row, column=self._column[name], reason=reason)
        self._told[row] = now
