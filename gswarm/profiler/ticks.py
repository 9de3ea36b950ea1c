"""A tick of samples: how its values are packed, what NA is written as, and a whole one read as a table."""

from __future__ import annotations

from gswarm.v1 import profiler_pb2

SLOTS = {
    profiler_pb2.COLUMN_TYPE_GAUGE_F32: ("f32", "<f4"),
    profiler_pb2.COLUMN_TYPE_GAUGE_I32: ("i32", "<i4"),
    profiler_pb2.COLUMN_TYPE_COUNTER_U64: ("u64", "<u8"),
    profiler_pb2.COLUMN_TYPE_MASK_U64: ("u64", "<u8"),
    profiler_pb2.COLUMN_TYPE_GAUGE_U64: ("u64", "<u8"),
}
"""Per column type the field of the tick that it is in, and its numpy type, little-endian."""
NA_I32 = -(1 << 31)
NA_U64 = (1 << 64) - 1
"""Of a float it is NaN."""


def table(schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick) -> list[dict[str, float | int]]:
    """What each device of a tick gives, by metric, scaled integers as what they stand for; what is NA is left out.

    Columns of a type that a newer agent knows are NA, and so are the rows that a tick is too short for.
    """
    import numpy as np

    slots: dict[str, list[tuple[str, int]]] = {"f32": [], "i32": [], "u64": []}
    for column in schema.columns:
        if column.type in SLOTS:
            slots[SLOTS[column.type][0]].append((column.name, column.scale))
    found: list[dict[str, float | int]] = [{} for _ in schema.device_ids]
    for slot, dtype in set(SLOTS.values()):
        names, raw = [name for name, _ in slots[slot]], getattr(tick, slot)
        if not names:
            continue
        packed = np.frombuffer(raw[: len(raw) - len(raw) % np.dtype(dtype).itemsize], dtype)
        whole = min(len(packed) // len(names), len(found))
        scales = [(name, 10**scale) for name, scale in slots[slot] if scale and slot != "f32"]
        missing = {"i32": NA_I32, "u64": NA_U64}.get(slot)
        for given, row in zip(found, packed[: whole * len(names)].reshape(whole, len(names)).tolist(), strict=False):
            # NaN, the NA of floats, is the one value that differs from itself.
            mine = {name: v for name, v in zip(names, row, strict=True) if v != missing and v == v}
            given.update(mine)
            given.update((name, mine[name] / factor) for name, factor in scales if name in mine)
    return found
