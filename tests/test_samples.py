"""The host's last ten minutes of samples: in order, each once, bounded, and readable by metric name."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from gswarm.host import samples as module
from gswarm.host.samples import SampleHub
from gswarm.profiler.ticks import NA_I32, NA_U64, table
from gswarm.v1 import profiler_pb2

SCHEMA = profiler_pb2.MetricSchema(
    node="n1",
    id=1,
    device_ids=["GPU-1", "GPU-2"],
    columns=[
        profiler_pb2.MetricColumn(name="utilization_percent", type=profiler_pb2.COLUMN_TYPE_GAUGE_F32),
        profiler_pb2.MetricColumn(name="energy_mj", type=profiler_pb2.COLUMN_TYPE_COUNTER_U64),
        profiler_pb2.MetricColumn(name="temperature_c", type=profiler_pb2.COLUMN_TYPE_GAUGE_I32, scale=1),
        profiler_pb2.MetricColumn(name="throttle", type=profiler_pb2.COLUMN_TYPE_MASK_U64),
    ],
)


def tick(seq: int, at_s: float | None = None, node: str = "n1", size: int = 8) -> profiler_pb2.SampleTick:
    at = seq if at_s is None else at_s
    return profiler_pb2.SampleTick(node=node, seq=seq, time_unix_us=int(at * 1e6), schema_id=1, f32=bytes(size))


def newest(hub: SampleHub) -> profiler_pb2.SampleTick:
    found = hub.newest("n1")
    assert found is not None
    return profiler_pb2.SampleTick.FromString(found[1])


def seqs(wires: list[bytes]) -> list[int]:
    return [profiler_pb2.SampleTick.FromString(wire).seq for wire in wires]


@given(st.permutations(list(range(1, 13))), st.data())
def test_in_whatever_order_ticks_come_each_is_kept_once_in_its_place(order: list[int], data: st.DataObject) -> None:
    again = data.draw(st.lists(st.sampled_from(order), max_size=6))
    hub, told = SampleHub(), []
    hub.subscribe(lambda node, wire, schema: told.append(wire))
    for seq in [*order, *again]:
        hub.add(tick(seq))
    assert seqs(hub.history("n1", 600)) == sorted(order)
    assert sorted(seqs(told)) == sorted(order), "a listener hears each once"
    assert newest(hub).seq == max(order)


def test_only_the_last_ten_minutes_are_kept_and_asked_for_by_time() -> None:
    hub = SampleHub()
    for seq in range(1, 1_000):
        hub.add(tick(seq))
    assert seqs(hub.history("n1", 10_000)) == list(range(399, 1_000))
    assert seqs(hub.history("n1", 5)) == list(range(994, 1_000))
    hub.add(tick(3))
    assert seqs(hub.history("n1", 10_000))[0] == 399, "what is too old when it comes is not kept"


def test_a_node_cannot_take_all_memory() -> None:
    hub = SampleHub()
    for seq in range(1, 40):
        hub.add(tick(seq, at_s=seq / 10, size=1 << 20))
    assert sum(len(wire) for wire in hub.history("n1", 600)) <= module.NODE_LIMIT_BYTES


def test_a_clock_that_is_set_back_does_not_freeze_what_is_shown() -> None:
    hub = SampleHub()
    hub.add(tick(1, at_s=1_000))
    hub.add(tick(2, at_s=900))
    assert newest(hub).seq == 2


def test_age_counts_from_arrival_and_the_forgotten_have_none() -> None:
    now = 100.0
    hub = SampleHub(lambda: now)
    hub.add(tick(1))
    now = 107.5
    assert hub.age_s("n1") == 7.5
    hub.forget("n1")
    assert hub.age_s("n1") is None and hub.newest("n1") is None and hub.history("n1", 60) == []


def test_values_come_scaled_by_device_and_na_is_left_out() -> None:
    given = profiler_pb2.SampleTick(
        f32=struct.pack("<2f", 12.5, float("nan")),
        i32=struct.pack("<2i", 615, NA_I32),
        u64=struct.pack("<4Q", 10**12, 5, NA_U64, NA_U64),
    )
    first = {"utilization_percent": 12.5, "energy_mj": 10**12, "temperature_c": 61.5, "throttle": 5}
    assert table(SCHEMA, given) == [first, {}]


def test_a_tick_cut_short_is_na_not_an_error() -> None:
    torn = profiler_pb2.SampleTick(f32=struct.pack("<f", 1.0) + b"x", u64=b"123")
    assert table(SCHEMA, torn) == [{"utilization_percent": 1.0}, {}]


def test_columns_of_a_type_that_only_a_newer_agent_knows_are_na() -> None:
    newer = profiler_pb2.MetricSchema()
    newer.CopyFrom(SCHEMA)
    newer.columns.add(name="x", type=99)
    assert table(newer, profiler_pb2.SampleTick(f32=struct.pack("<2f", 1, 2))) == [
        {"utilization_percent": 1.0},
        {"utilization_percent": 2.0},
    ]


def test_who_follows_hears_the_newest_and_not_what_comes_late() -> None:
    hub, told = SampleHub(), []
    end = hub.follow(lambda tick: told.append(tick.seq))
    for seq in (5, 3, 5, 6):
        hub.add(tick(seq))
    end()
    hub.add(tick(7))
    assert told == [5, 6]


def test_the_newest_comes_with_its_own_schema() -> None:
    hub = SampleHub()
    hub.add(tick(1))
    assert hub.newest("n1") == (b"", tick(1).SerializeToString()), "it is not known yet"
    hub.add_schema(SCHEMA)
    hub.add_schema(profiler_pb2.MetricSchema(node="n1", id=2))
    newest = hub.newest("n1")
    assert newest is not None and profiler_pb2.MetricSchema.FromString(newest[0]) == SCHEMA
    assert newest[1] == tick(1).SerializeToString()


def test_a_late_listener_gets_schemas_and_an_ended_one_nothing() -> None:
    hub, told = SampleHub(), []
    hub.add_schema(SCHEMA)
    assert [profiler_pb2.MetricSchema.FromString(s) for s in hub.schemas("n1")] == [SCHEMA]
    end = hub.subscribe(lambda node, wire, schema: told.append((node, wire, schema)))
    hub.add_schema(SCHEMA)
    end()
    hub.add(tick(1))
    ((node, wire, schema),) = told
    assert (node, wire, profiler_pb2.MetricSchema.FromString(schema or b"")) == ("n1", b"", SCHEMA)


def test_nodes_of_one_layout_keep_their_own_devices() -> None:
    hub, other = SampleHub(), profiler_pb2.MetricSchema()
    other.CopyFrom(SCHEMA)
    other.node, other.device_ids[:] = "n2", ["GPU-3"]
    for schema in (SCHEMA, other):
        hub.add_schema(schema)
        assert hub.schema(schema.node, 1) == schema
    assert hub.schema("n1", 1) == SCHEMA
