"""Profiling sessions end to end: started, recorded, sealed, exported, through cuts and restarts."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from gswarm import net, views
from gswarm.client.agent import Agent, Options
from gswarm.cluster.types import Device, Event, Node, NodePhase
from gswarm.errors import GswarmError, InvalidError, NotFoundError, RefusedError
from gswarm.profiler.metrics import METRICS
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Session, SessionPhase, session_sealed
from gswarm.v1 import profiler_pb2
from tests.support.cluster import Cluster, cluster, seen
from tests.support.proxy import Proxy


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    async with cluster(tmp_path) as found:
        yield found


@asynccontextmanager
async def with_nodes(running: Cluster, *names: str) -> AsyncIterator[None]:
    """Agents with two simulated GPUs each, once the host hears their samples."""
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(running.agent(name, simulate="2xH100"))
        async with running.swarm.mirror() as mirror:
            await seen(mirror, lambda: len(mirror.samples), lambda count: count == 3 * len(names))
        yield


async def recorded(running: Cluster, name: str, ticks: int) -> Session:
    """Wait until a session holds so many ticks."""
    async with running.swarm.mirror((Session,), samples=False) as mirror:
        return await seen(
            mirror, lambda: mirror.rows(Session)[name] if mirror.revision else Session(), lambda s: s.ticks >= ticks
        )


async def sealed(running: Cluster, name: str) -> Session:
    """Stop a session and wait for its seal."""
    return await running.swarm.wait(session_sealed, await running.swarm.profiler.stop(name), timeout=60)


async def test_a_session_from_start_to_seal(running: Cluster, tmp_path: Path) -> None:
    async with with_nodes(running, "n1", "n2"):
        started = await running.swarm.profiler.start(name="run-7", interval=0.2)
        assert started.phase is SessionPhase.RECORDING and started.interval_s == 0.2
        await recorded(running, "run-7", 8)
        await running.swarm.profiler.mark("batch 64")
        stopped = await sealed(running, "run-7")
    assert [s.name for s in await running.swarm.profiler.list()] == ["run-7"]
    assert stopped.ticks >= 8 and stopped.events >= 1 and stopped.stopped_at is not None
    assert dict(views.detail(stopped))["nodes"] == "all"
    directory = Path(stopped.path)
    assert stopped.size_bytes == sum(path.stat().st_size for path in directory.iterdir())
    with Recording.open(directory) as recording:
        assert recording.counts() == (stopped.ticks, stopped.events) and not recording.damage
        assert {one.node for one in recording.series()} == {"n1", "n2"}
        assert "batch 64" in [event.message for event in recording.events()]
    assert directory.stat().st_mode & 0o077 == 0


async def test_even_the_shortest_session_tells_what_it_holds(running: Cluster) -> None:
    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="short")
        stopped = await sealed(running, "short")
        with Recording.open(Path(stopped.path)) as recording:
            assert recording.counts() == (stopped.ticks, stopped.events)


async def test_recording_itself_is_not_something_that_happens(running: Cluster) -> None:
    """Without this a session's own counters would be recorded, counted, and recorded again."""
    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="quiet", interval=0.2)
        before = await recorded(running, "quiet", 5)
        after = await recorded(running, "quiet", before.ticks + 30)
        # How far the node's clock is off may become known meanwhile; a flush that is an event comes twice a second.
        assert after.events <= before.events + 2


async def test_only_the_nodes_asked_for_are_recorded(running: Cluster) -> None:
    async with with_nodes(running, "n1", "n2"):
        await running.swarm.profiler.start(name="one", interval=0.2, nodes=["n2"])
        await recorded(running, "one", 3)
        stopped = await sealed(running, "one")
    with Recording.open(Path(stopped.path)) as recording:
        assert {one.node for one in recording.series()} == {"n2"}


async def test_two_sessions_at_once_keep_their_own_pace(running: Cluster) -> None:
    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="slow", interval=1.0)
        await running.swarm.profiler.start(name="fast", interval=0.1)
        slow = await recorded(running, "slow", 4)
        fast = (await running.swarm.profiler.info("fast")).ticks
        assert fast > 2 * slow.ticks
        await sealed(running, "fast")
        # The other goes on, and the agent goes back to its pace.
        await recorded(running, "slow", slow.ticks + 2)


@pytest.mark.parametrize("interval", [0.0, -1.0, 0.01, 61.0, float("inf")])
async def test_an_interval_that_cannot_be_is_refused(running: Cluster, interval: float) -> None:
    with pytest.raises(InvalidError) as refused:
        await running.swarm.profiler.start(name="x", interval=interval)
    assert refused.value.field == "interval" and not await running.swarm.profiler.list()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "-x", "x" * 200, "a\nb"])
async def test_a_name_that_could_be_a_path_is_refused(running: Cluster, name: str, tmp_path: Path) -> None:
    with pytest.raises(GswarmError, match="name"):
        await running.swarm.profiler.start(name=name)
    assert not await running.swarm.profiler.list() and not (tmp_path / "recordings").exists()


async def test_names_are_taken_once_and_unknown_ones_named(running: Cluster) -> None:
    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="run-7")
        with pytest.raises(RefusedError, match="records already"):
            await running.swarm.profiler.start(name="run-7")
        with pytest.raises(RefusedError, match="records"):
            await running.swarm.profiler.delete("run-7")
        with pytest.raises(NotFoundError, match="n1"):
            await running.swarm.profiler.start(name="x", nodes=["n11"])
        with pytest.raises(NotFoundError, match="run-7"):
            await running.swarm.profiler.stop("run-8")
        stopped = await sealed(running, "run-7")
        again = await running.swarm.profiler.stop("run-7")
        assert again.phase is SessionPhase.SEALED and again.stopped_at == stopped.stopped_at
        with pytest.raises(RefusedError, match="exists"):
            await running.swarm.profiler.start(name="run-7")
        await running.swarm.profiler.delete("run-7")
        assert not Path(stopped.path).exists() and not await running.swarm.profiler.list()
        await running.swarm.profiler.start(name="run-7")


async def test_exports_carry_units_and_leave_unknown_values_empty(running: Cluster, tmp_path: Path) -> None:
    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="run-7", interval=0.2)
        await recorded(running, "run-7", 4)
        stopped = await sealed(running, "run-7")
        as_csv = await running.swarm.profiler.export("run-7", format="csv")
        as_json = await running.swarm.profiler.export("run-7", format="json")
        with pytest.raises(RefusedError, match="exists"):
            await running.swarm.profiler.export("run-7", format="csv")
    with Path(as_csv.path).open() as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path(as_json.path).read_text().splitlines()]
    assert len(table) == len(lines) == as_csv.rows == as_json.rows == 3 * stopped.ticks
    given = [metric.name for metric in METRICS if metric.name in lines[0]]
    assert list(table[0]) == ["time", "node", "device", *given]
    assert {"gpu_util_percent", "power_mw", "energy_mj", "load_1m", "network_rx_bytes"} <= set(given)
    for row, line in zip(table, lines, strict=True):
        assert row["device"] == line["device"] and datetime.fromisoformat(row["time"]).tzinfo is not None
        for name in given:
            cell, value = row[name], line[name]
            assert (cell == "") == (value is None)
            assert value is None or float(cell) == pytest.approx(value, rel=1e-4)
    cpu = next(line for line in lines if line["device"].startswith("CPU-"))
    assert cpu["power_mw"] is None and cpu["memory_used_bytes"] > 0
    gpu = next(line for line in lines if line["device"].startswith("SIM-"))
    assert gpu["power_mw"] > 1_000 and gpu["memory_total_bytes"] >= 80e9


async def test_the_sealed_file_needs_none_of_our_code(running: Cluster) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    async with with_nodes(running, "n1"):
        await running.swarm.profiler.start(name="run-7", interval=0.2)
        await recorded(running, "run-7", 4)
        stopped = await sealed(running, "run-7")
    table = pq.read_table(Path(stopped.path) / "metrics-0001.parquet")
    assert table.num_rows == 3 * stopped.ticks
    assert table.schema.field("time").type == pa.timestamp("ms", tz="UTC")
    assert {"power_mw", "gpu_util_percent", "memory_used_bytes", "load_1m"} <= set(table.column_names)
    rows = table.to_pylist()
    keys = [(row["device_id"], row["time"]) for row in rows]
    assert keys == sorted(keys)
    assert all(row["power_mw"] is None for row in rows if row["device_id"].startswith("CPU-"))
    assert all(row["power_mw"] for row in rows if row["device_id"].startswith("SIM-"))


async def test_a_cut_leaves_no_hole(running: Cluster) -> None:
    """What an agent samples while its link is down comes afterwards, in its place."""
    async with Proxy("127.0.0.1", running.context.file.port) as proxy:
        endpoint = net.Endpoint("127.0.0.1", proxy.port, running.context.token)
        agent = Agent(running.context.config, Options(endpoint, resilient=True, name="n1", simulate="1xH100"))
        work = asyncio.create_task(agent.run())
        async with running.swarm.mirror((Node, Session)) as mirror:
            await seen(
                mirror, lambda: mirror.rows(Node).get("n1"), lambda n: n is not None and n.phase is NodePhase.READY
            )
            await running.swarm.profiler.start(name="cut", interval=0.1)
            await seen(
                mirror,
                lambda: mirror.rows(Session)["cut"].ticks if "cut" in mirror.rows(Session) else 0,
                lambda t: t >= 5,
            )
            proxy.refuse()
            await agent.link.detached.wait()
            await asyncio.wait_for(_more_samples(agent, 20), 30)
            proxy.restore()
            await agent.link.attached.wait()
            count = mirror.rows(Session)["cut"].ticks
            await seen(mirror, lambda: mirror.rows(Session)["cut"].ticks, lambda t: t >= count + 30)
        stopped = await sealed(running, "cut")
        history = running.context.hub.history("n1", 600)
        ticks = [profiler_pb2.SampleTick.FromString(wire) for wire in history]
        heard, heard_ms = [tick.seq for tick in ticks], [tick.time_unix_us // 1000 for tick in ticks]
        assert heard == list(range(heard[0], heard[-1] + 1))
        agent.stopping.set()
        await asyncio.wait_for(work, 20)
    with Recording.open(Path(stopped.path)) as recording:
        times = recording.series()[0].times_us
    # A busy machine samples late now and then; a hole would be of twenty samples.
    sampled = set((times // 1000).tolist())
    missing = [at for at in heard_ms if times[0] // 1000 <= at <= times[-1] // 1000 and at not in sampled]
    assert len(missing) <= len(heard_ms) // 4, "two samples within one interval count once"


async def test_a_host_that_stops_while_it_records_stops_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as first, with_nodes(first, "n1"):
        await first.swarm.profiler.start(name="long", interval=0.1)
        await recorded(first, "long", 4)


async def _more_samples(agent: Agent, count: int) -> None:
    """Until the agent has sampled so many times more."""
    profiler = next(worker for worker in agent.workers if type(worker).__name__ == "ProfilerWorker")
    start = profiler._seq  # type: ignore[attr-defined]
    while profiler._seq < start + count:  # type: ignore[attr-defined]  # noqa: ASYNC110 (it tells no one)
        await asyncio.sleep(0.02)


async def test_a_host_that_starts_again_goes_on_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as first, with_nodes(first, "n1"):
        await first.swarm.profiler.start(name="long", interval=0.2)
        before = await recorded(first, "long", 4)
    async with cluster(tmp_path) as second, with_nodes(second, "n1"):
        assert (await second.swarm.profiler.info("long")).phase is SessionPhase.RECORDING
        await recorded(second, "long", before.ticks + 4)
        stopped = await sealed(second, "long")
        with Recording.open(Path(stopped.path)) as recording:
            assert recording.counts() == (stopped.ticks, stopped.events) and not recording.damage


async def test_who_started_and_stopped_is_in_the_event_log(running: Cluster) -> None:
    await running.swarm.profiler.start(name="run-7")
    await running.swarm.profiler.stop("run-7")
    events = {event.type: event for event in await running.swarm.list(Event)}
    assert events["session.started"].actor == events["session.stopped"].actor == "local"
    assert events["session.started"].subject == "run-7"
    assert not await running.swarm.list(Device)
