"""Watching: every reader, however slow, ends with what the host has, and never sees half of a change."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.cluster.types import Node
from gswarm.errors import InvalidError
from gswarm.host import watch
from gswarm.host.samples import SampleHub
from gswarm.host.store import Store
from gswarm.host.transaction import Operation, Transaction
from gswarm.host.watch import Watcher
from gswarm.mirror import Samples, Tables
from gswarm.v1 import cluster_pb2, common_pb2, profiler_pb2

EQUAL, CONTAINS = cluster_pb2.Filter.OP_EQUAL, cluster_pb2.Filter.OP_CONTAINS


def change(*pairs: tuple[str, int]) -> Operation[int]:
    """Set the cores of nodes in one operation; 0 removes the node."""

    def operation(tx: Transaction) -> int:
        for name, cores in pairs:
            if cores:
                tx.put(cluster_pb2.Node(name=name, cpu_count=cores))
            else:
                tx.delete(cluster_pb2.Node, name)
        return tx.revision

    return operation


def cores(tables: Tables) -> dict[str, int]:
    return {name: node.cpu_count for name, node in tables.rows(Node).items()}


class Reader:
    """A watcher and the rows that its messages make, read one message at a time."""

    def __init__(self, store: Store, request: cluster_pb2.WatchRequest, hub: SampleHub | None = None) -> None:
        self.tables, self.samples, self.messages = Tables(), Samples(), 0
        self._stream = Watcher(store, hub or SampleHub(), request).follow()

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stream.aclose()  # type: ignore[attr-defined]

    async def read(self) -> cluster_pb2.WatchResponse:
        """The next message, taken in."""
        async with asyncio.timeout(10):
            response = cluster_pb2.WatchResponse.FromString(await anext(self._stream))
        self.messages += 1
        self.tables.feed(response)
        self.samples.feed(response)
        return response

    async def reach(self, revision: int) -> None:
        """Read until the rows are whole at a revision."""
        while self.tables.revision < revision:
            await self.read()


@asynccontextmanager
async def a_store(directory: Path | None = None) -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory() as temporary:
        async with Store(directory or Path(temporary)) as store:
            yield store


NODES = cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE])
CHANGES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), min_size=1, max_size=4),
        st.integers(0, 3),  # how many messages the reader takes after it
    ),
    max_size=25,
)


@settings(max_examples=50, deadline=None)
@given(changes=CHANGES, filtered=st.booleans())
def test_however_slowly_it_reads_a_watcher_ends_with_the_state(
    changes: list[tuple[list[tuple[str, int]], int]], filtered: bool
) -> None:
    filters = [cluster_pb2.Filter(field="cpu_count", op=EQUAL, value="2")] if filtered else []
    wanted = cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE], filters=filters)

    async def scenario() -> None:
        async with a_store() as store, Reader(store, wanted) as reader:
            await reader.read()
            told = 0
            for pairs, reads in changes:
                told = await store.apply(change(*pairs), actor="t")
                if reads == 3 and reader.tables.revision < store.state.revision:
                    await reader.read()
            await reader.reach(store.state.revision)
            expected = {
                node.name: node.cpu_count
                for node in store.state.list(cluster_pb2.Node)
                if not filtered or node.cpu_count == 2
            }
            assert cores(reader.tables) == expected
            assert told <= reader.tables.revision

    asyncio.run(scenario())


async def test_what_changed_together_is_seen_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it takes several messages: chunks of a few bytes here."""
    monkeypatch.setattr(watch, "CHUNK_BYTES", 10)
    async with a_store(tmp_path) as store, Reader(store, NODES) as reader:
        await reader.read()

        async def write() -> None:
            for number in range(1, 100):
                await store.apply(change(("a", number), ("b", number), ("c", number)), actor="t")

        writing = asyncio.create_task(write())
        while cores(reader.tables).get("a") != 99:
            await reader.read()
            assert len(set(cores(reader.tables).values())) <= 1
        await writing
        assert reader.messages > 6


async def test_a_slow_reader_gets_each_object_once(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, Reader(store, NODES) as reader:
        await reader.read()
        for number in range(1, 500):
            await store.apply(change(("a", number), (f"n{number % 5}", number)), actor="t")
        response = await reader.read()
        assert len(response.objects) == 6 and cores(reader.tables)["a"] == 499
        assert reader.tables.revision == store.state.revision


async def test_one_who_missed_too_much_gets_a_list_and_forgets_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "OVERFLOW_FLOOR", 10)
    async with a_store(tmp_path) as store, Reader(store, NODES) as reader:
        await store.apply(change(*((f"old{i}", 1) for i in range(20))), actor="t")
        await reader.reach(store.state.revision)
        for number in range(20):
            await store.apply(change((f"old{number}", 0), (f"new{number}", 1), (f"old{number}x", 0)), actor="t")
        for number in range(20):
            await store.apply(change((f"new{number}", 0)), actor="t")
        await store.apply(change(("last", 1)), actor="t")
        response = await reader.read()
        assert response.list and cores(reader.tables) == {"last": 1}


async def test_a_list_says_what_it_left_out_in_the_order_asked_for(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        await store.apply(change(*((f"n{i}", i) for i in range(1, 8))), actor="t")
        wanted = cluster_pb2.WatchRequest(
            kinds=[common_pb2.KIND_NODE],
            filters=[cluster_pb2.Filter(field="name", op=CONTAINS, value="N")],
            sort="-cpu_count",
            limit=3,
            list_only=True,
        )
        async with aclosing(Watcher(store, SampleHub(), wanted).follow()) as stream:  # type: ignore[type-var]
            messages = [cluster_pb2.WatchResponse.FromString(message) async for message in stream]
        tables = Tables()
        assert [tables.feed(message) for message in messages][-1]
        assert list(cores(tables)) == ["n7", "n6", "n5"] and tables.left_out == {common_pb2.KIND_NODE: 4}


async def test_unknown_fields_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    wanted = cluster_pb2.WatchRequest(
        kinds=[common_pb2.KIND_NODE], filters=[cluster_pb2.Filter(field="cores", op=EQUAL, value="1")]
    )
    async with a_store(tmp_path) as store:
        with pytest.raises(InvalidError, match="cores"):
            Watcher(store, SampleHub(), wanted)


async def test_silence_is_broken_by_a_heartbeat_that_claims_no_more_than_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.02)
    async with a_store(tmp_path) as store, Reader(store, NODES) as reader:
        first = await reader.read()
        beat = await reader.read()
        assert not beat.objects and beat.revision == first.revision
        assert beat.time.ToNanoseconds() > first.time.ToNanoseconds()


def schema(node: str) -> profiler_pb2.MetricSchema:
    column = profiler_pb2.MetricColumn(name="power_mw", type=profiler_pb2.COLUMN_TYPE_GAUGE_I32)
    return profiler_pb2.MetricSchema(id=1, node=node, device_ids=[f"{node}-gpu0"], columns=[column])


def tick(node: str, seq: int) -> profiler_pb2.SampleTick:
    packed = struct.pack("<i", 1000 * seq)
    return profiler_pb2.SampleTick(node=node, seq=seq, time_unix_us=seq * 1_000_000, schema_id=1, i32=packed)


async def test_samples_come_with_their_past_then_the_newest_of_each_node(tmp_path: Path) -> None:
    hub, wanted = SampleHub(), cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE])
    wanted.samples.history_s = 3
    wanted.samples.nodes.extend(["n1", "n2"])
    async with a_store(tmp_path) as store, Reader(store, wanted, hub) as reader:
        for node in ("n1", "n2", "n3"):
            hub.add_schema(schema(node))
            for seq in range(1, 11):
                hub.add(tick(node, seq))
        await reader.read()  # the list
        past = [await reader.read() for _ in range(2)]
        assert [[t.seq for t in message.ticks] for message in past] == [[7, 8, 9, 10]] * 2
        for seq in range(11, 31):
            hub.add(tick("n1", seq))
        response = await reader.read()
        assert [(t.node, t.seq) for t in response.ticks] == [("n1", 30)]
        assert reader.samples.values == {"n1-gpu0": {"power_mw": 30_000}, "n2-gpu0": {"power_mw": 10_000}}


async def test_ticks_do_not_wait_for_changes_nor_changes_for_ticks(tmp_path: Path) -> None:
    hub, wanted = SampleHub(), cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE])
    wanted.samples.SetInParent()
    async with a_store(tmp_path) as store, Reader(store, wanted, hub) as reader:
        await reader.read()
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        hub.add_schema(schema("n1"))
        hub.add(tick("n1", 1))
        response = await reading
        assert len(response.schemas) == 1 and len(response.ticks) == 1 and not response.objects
        await store.apply(change(("n1", 1)), actor="t")
        assert len((await reader.read()).objects) == 1


async def test_ticks_of_many_nodes_come_together_and_a_change_takes_them_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phase slots spread them over the second; a message for each would cost the host most of what watchers cost."""
    hub, request = SampleHub(), cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_NODE])
    request.samples.SetInParent()
    names = [f"n{i}" for i in range(8)]
    for name in names:
        hub.add_schema(schema(name))
    async with a_store(tmp_path) as store, Reader(store, request, hub) as reader:
        await reader.reach(store.state.revision)
        past = [await reader.read() for _ in names]
        assert all(len(message.schemas) == 1 for message in past)
        monkeypatch.setattr(watch, "SAMPLES_EVERY_S", 1.0)
        coming = asyncio.create_task(reader.read())
        for seq, name in enumerate(names, 1):
            hub.add(tick(name, seq))
            await asyncio.sleep(0)
        assert [t.node for t in (await coming).ticks] == names
        monkeypatch.setattr(watch, "SAMPLES_EVERY_S", 3600.0)
        hub.add(tick("n1", 20))
        await store.apply(change(("m1", 4)), actor="test")
        both = await reader.read()
        assert [t.seq for t in both.ticks] == [20] and [o.key for o in both.objects] == ["m1"]
