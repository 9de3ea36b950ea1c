"""Readings of a node's devices as one packed tick: columns of each type, little-endian, NA as each type's own mark."""

from __future__ import annotations

from collections.abc import Sequence

from gswarm.host.samples import NA_I32, NA_U64
from gswarm.profiler.metrics import METRICS, NOT_SUPPORTED, Absent, Reading, Type
from gswarm.v1 import profiler_pb2

_F32 = [m for m in METRICS if m.type is Type.F32]
_I32 = [m for m in METRICS if m.type is Type.I32]
_U64 = [m for m in METRICS if m.type is Type.U64]
_COLUMN = {m.name: i for i, m in enumerate(METRICS)}


def pack(readings: Sequence[Reading], *, seq: int, time_unix_us: int, schema_id: int) -> profiler_pb2.SampleTick:
    """A tick of these devices in order. What a reading lacks is NA with the reason it gives."""
    import struct

    f32: list[float] = []
    i32: list[int] = []
    u64: list[int] = []
    absent: list[profiler_pb2.Absent] = []
    for row, reading in enumerate(readings):
        for metric in METRICS:
            value = reading.get(metric.name, Absent(NOT_SUPPORTED))
            if isinstance(value, Absent):
                absent.append(profiler_pb2.Absent(device=row, column=_COLUMN[metric.name], reason=value.reason))
            match metric.type, value:
                case Type.F32, Absent():
                    f32.append(float("nan"))
                case Type.F32, int() | float() as number:
                    f32.append(float(number))
                case Type.I32, Absent():
                    i32.append(NA_I32)
                case Type.I32, int() | float() as number:
                    i32.append(max(-(2**31) + 1, min(2**31 - 1, int(number))))
                case Type.U64, Absent():
                    u64.append(NA_U64)
                case Type.U64, int() | float() as number:
                    u64.append(max(0, min(2**64 - 2, int(number))))
    return profiler_pb2.SampleTick(
        seq=seq,
        time_unix_us=time_unix_us,
        schema_id=schema_id,
        f32=struct.pack(f"<{len(f32)}f", *f32),
        i32=struct.pack(f"<{len(i32)}i", *i32),
        u64=struct.pack(f"<{len(u64)}Q", *u64),
        absent=absent,
    )
