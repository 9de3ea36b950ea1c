"""Packed ticks: every value comes back, a column costs nothing until it is given, a reason is told once and known to all."""

from __future__ import annotations

import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from gswarm.host.samples import SampleHub
from gswarm.mirror import Samples
from gswarm.profiler.metrics import METRICS, OFF, UNSUPPORTED, Absent, Group, Metric, Reading, Type
from gswarm.profiler.packing import REMIND_S, Packer
from gswarm.profiler.ticks import NA_I32, NA_U64, SLOTS, table
from gswarm.v1 import cluster_pb2, profiler_pb2

DEVICES = ("GPU-1", "GPU-2")
ABSENT = st.sampled_from([UNSUPPORTED, Absent("Unknown Error"), Absent("Insufficient Permissions")])


def value_of(metric: Metric) -> st.SearchStrategy[float | int]:
    """What a device may give."""
    if metric.type is Type.F32:
        return st.floats(width=32, allow_nan=False, allow_infinity=False)
    if metric.type is Type.I32:
        return st.integers(-(2**31) + 1, 2**31 - 1)
    return st.integers(0, 2**64 - 2)


READINGS = st.one_of(
    ABSENT,
    st.fixed_dictionaries({}, optional={m.name: st.one_of(ABSENT, value_of(m)) for m in METRICS[::7]}),
)


def mirrored(hub: SampleHub) -> Samples:
    """What one who comes now sees."""
    schemas = [profiler_pb2.MetricSchema.FromString(wire) for wire in hub.schemas("n1")]
    ticks = [profiler_pb2.SampleTick.FromString(wire) for wire in hub.history("n1", 0)]
    samples = Samples()
    samples.feed(cluster_pb2.WatchResponse(schemas=schemas, ticks=ticks))
    return samples


class Node:
    """An agent's packer, the host behind it, and one who watches from the start."""

    def __init__(self) -> None:
        self.packer, self.hub, self.watcher = Packer("n1", DEVICES), SampleHub(), Samples()
        self.seq = 0

    def tick(self, *readings: Reading | Absent, after_s: float = 1.0) -> profiler_pb2.SampleTick:
        self.seq += 1
        fresh = self.packer.admit(readings)
        if fresh:
            self.hub.add_schema(self.packer.schema)
        tick = self.packer.pack(readings, seq=self.seq, time_unix_us=int((1000 + self.seq * after_s) * 1e6))
        tick.node = "n1"
        self.hub.add(tick)
        self.watcher.feed(
            cluster_pb2.WatchResponse(schemas=[self.packer.schema] if fresh else [], ticks=[tick])
        )  # fmt: skip
        return tick


@given(st.lists(st.tuples(READINGS, READINGS), min_size=1, max_size=6))
def test_what_was_read_is_what_is_seen_from_the_start_and_by_who_comes_late(
    rounds: list[tuple[Reading | Absent, Reading | Absent]],
) -> None:
    node = Node()
    for readings in rounds:
        node.tick(*readings)
        if not node.packer.schema.columns:
            continue
        announced = {column.name for column in node.packer.schema.columns}
        for samples in (node.watcher, mirrored(node.hub)):
            for device, reading in zip(DEVICES, readings, strict=True):
                for name in announced:
                    value = reading if isinstance(reading, Absent) else reading.get(name, UNSUPPORTED)
                    if isinstance(value, Absent):
                        assert name not in samples.values[device]
                        assert samples.reasons[device][name] == value.reason
                    else:
                        assert samples.values[device][name] == value
                        assert name not in samples.reasons.get(device, {})
        # And nothing that some device gave, or should have given, is left out.
        for reading in readings:
            if not isinstance(reading, Absent):
                assert {name for name, value in reading.items() if value != UNSUPPORTED} <= announced


def one_by_one(schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick, row: int) -> dict[str, float]:
    """A device's values as the contract says them, each looked for on its own."""
    found: dict[str, float] = {}
    for slot, code, missing in (("f32", "<f", None), ("i32", "<i", NA_I32), ("u64", "<Q", NA_U64)):
        mine = [column for column in schema.columns if SLOTS[column.type][0] == slot]
        size = struct.calcsize(code)
        packed: bytes = getattr(tick, slot)
        for place, column in enumerate(mine):
            at = row * len(mine) * size
            if at + len(mine) * size > len(packed):
                continue
            (value,) = struct.unpack_from(code, packed, at + place * size)
            if value != missing and not math.isnan(value):
                found[column.name] = value / 10**column.scale if column.scale and slot != "f32" else value
    return found


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60), st.data())
def test_a_whole_tick_read_at_once_is_what_it_is_read_one_by_one(
    f32: bytes, i32: bytes, u64: bytes, data: st.DataObject
) -> None:
    kinds = st.sampled_from(profiler_pb2.ColumnType.values()[1:])
    columns = [
        profiler_pb2.MetricColumn(name=f"m{i}", type=data.draw(kinds), scale=data.draw(st.sampled_from([0, 0, 2])))
        for i in range(data.draw(st.integers(0, 6)))
    ]
    schema = profiler_pb2.MetricSchema(node="n1", id=1, columns=columns, device_ids=DEVICES)
    tick = profiler_pb2.SampleTick(node="n1", seq=1, schema_id=1, f32=f32, i32=i32, u64=u64)
    assert table(schema, tick) == [one_by_one(schema, tick, row) for row in range(len(DEVICES))]


def test_a_metric_that_no_device_gives_costs_nothing() -> None:
    node = Node()
    given: Reading = {"gpu_util_percent": 1.0, "power_mw": 5, "fan_percent": UNSUPPORTED}
    lean = node.tick(given, given)
    assert [column.name for column in node.packer.schema.columns] == ["gpu_util_percent", "power_mw"]
    assert len(lean.f32) == len(lean.i32) == 8 and not lean.u64 and not lean.absent


def test_ticks_from_before_the_table_grew_are_read_as_they_were() -> None:
    """One layout with the number 1, memory typed as a counter, every reason in every tick."""
    wire = profiler_pb2.COLUMN_TYPE_GAUGE_F32, profiler_pb2.COLUMN_TYPE_COUNTER_U64
    columns = [
        profiler_pb2.MetricColumn(name=name, type=kind)
        for name, kind in zip(("fan_percent", "memory_used_bytes"), wire, strict=True)
    ]
    schema = profiler_pb2.MetricSchema(node="n1", id=1, device_ids=["GPU-1"], columns=columns)
    told = profiler_pb2.Absent(device=0, column=0, reason="not supported")
    samples = Samples()
    for seq in (1, 2):
        tick = profiler_pb2.SampleTick(
            node="n1", seq=seq, time_unix_us=seq, schema_id=1, absent=[told], f32=struct.pack("<f", float("nan")),
            u64=struct.pack("<Q", 6 << 30),
        )  # fmt: skip
        samples.feed(cluster_pb2.WatchResponse(schemas=[schema] if seq == 1 else [], ticks=[tick]))
    assert samples.values == {"GPU-1": {"memory_used_bytes": 6 << 30}}
    assert samples.reasons == {"GPU-1": {"fan_percent": "not supported"}}


def test_what_is_switched_off_is_no_column_before_it_was_on_and_says_so_after() -> None:
    node = Node()
    node.tick({"power_mw": 5, "nvlink_rx_kib": OFF[Group.NVLINK]}, {"power_mw": 5})
    assert [column.name for column in node.packer.schema.columns] == ["power_mw"]
    node.tick({"power_mw": 5, "nvlink_rx_kib": 2**40 + 1}, {"power_mw": 5})
    assert node.watcher.values["GPU-1"]["nvlink_rx_kib"] == 2**40 + 1
    node.tick({"power_mw": 5, "nvlink_rx_kib": OFF[Group.NVLINK]}, {"power_mw": 5})
    assert "--nvlink on" in node.watcher.reasons["GPU-1"]["nvlink_rx_kib"]


def test_reasons_are_told_when_they_change_and_again_now_and_then() -> None:
    node = Node()
    reading: Reading = {"power_mw": 5, "fan_percent": Absent("Unknown Error")}
    told = [len(node.tick(reading, reading).absent) for _ in range(5)]
    assert told == [2, 0, 0, 0, 0]
    assert len(node.tick({**reading, "fan_percent": Absent("GPU requires restart")}, reading).absent) == 1
    later = [len(node.tick(reading, reading).absent) for _ in range(int(REMIND_S))]
    assert later.count(2) == 1 and sum(later) == 3  # back to the first reason, and one reminder of both


def test_a_device_that_is_gone_costs_one_reason() -> None:
    node = Node()
    whole: Reading = {m.name: 1 for m in METRICS}
    node.tick(whole, whole)
    gone = node.tick(Absent("lost: GPU is lost"), whole)
    assert [(a.device, a.every_column, a.reason) for a in gone.absent] == [(0, True, "lost: GPU is lost")]
    assert set(node.watcher.reasons["GPU-1"]) == {m.name for m in METRICS} and not node.watcher.values["GPU-1"]
    node.tick(whole, whole)
    assert not node.watcher.reasons["GPU-1"] and set(node.watcher.values["GPU-1"]) == {m.name for m in METRICS}


def test_the_same_layout_has_the_same_id_after_a_restart_and_another_layout_another() -> None:
    first, second, other = Node(), Node(), Node()
    for node in (first, second):
        node.tick({"power_mw": 5}, {})
    other.tick({"energy_mj": 5}, {})
    assert first.packer.schema.id == second.packer.schema.id != other.packer.schema.id


def test_ticks_of_a_layout_before_stay_readable_while_the_schema_grows() -> None:
    node = Node()
    before = node.tick({"power_mw": 5}, {"power_mw": 6})
    node.tick({"power_mw": 7, "gpu_util_percent": 1.5}, {"power_mw": 8})
    schema = node.hub.schema("n1", before.schema_id)
    assert schema is not None and table(schema, before) == [{"power_mw": 5}, {"power_mw": 6}]


def test_a_value_that_its_type_cannot_hold_is_na_and_never_cut_to_another() -> None:
    node = Node()
    node.tick({"power_mw": 2**40, "energy_mj": -3, "gpu_util_percent": 7}, {})
    assert node.watcher.values["GPU-1"] == {"gpu_util_percent": 7}
    assert node.watcher.reasons["GPU-1"] == dict.fromkeys(("power_mw", "energy_mj"), "out of range")
