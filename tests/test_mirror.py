"""A mirror through cuts: it keeps what it had, says how old that is, and is whole again afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gswarm import mirror as module
from gswarm import net
from gswarm.cluster.types import Device, Node, NodePhase
from gswarm.errors import DeadlineError, GswarmError, NotFoundError
from gswarm.mirror import Link, Mirror
from gswarm.swarm import Swarm
from gswarm.v1 import cluster_pb2
from tests.support.cluster import Cluster, cluster, seen
from tests.support.proxy import Proxy


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


async def set_cores(running: Cluster, **cores: int) -> int:
    """Nodes as an agent would have told them."""

    def operation(tx: object) -> int:
        for name, count in cores.items():
            tx.put(cluster_pb2.Node(name=name, cpu_count=count, phase=cluster_pb2.NODE_PHASE_LEFT))  # type: ignore[attr-defined]
        return tx.revision  # type: ignore[attr-defined,no-any-return]

    return await running.context.store.apply(operation, actor="test")


def cores(mirror: Mirror) -> dict[str, int | None]:
    return {name: node.cpu_count for name, node in mirror.rows(Node).items()}


async def test_rows_stand_while_the_host_is_away_and_are_whole_when_it_is_back(
    running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.05, 0.05))
    await set_cores(running, n1=1, n2=2)
    async with Proxy("127.0.0.1", running.context.file.port) as proxy:
        endpoint = net.Endpoint("127.0.0.1", proxy.port, running.context.token)
        async with Swarm(endpoint) as swarm, swarm.mirror(samples=False) as mirror:
            await seen(mirror, lambda: cores(mirror), lambda found: found == {"n1": 1, "n2": 2})
            assert mirror.link is Link.LIVE and mirror.age is not None
            proxy.refuse()
            await seen(mirror, lambda: mirror.link, lambda link: link is Link.STALE)
            assert mirror.problem and cores(mirror) == {"n1": 1, "n2": 2}
            revision = await set_cores(running, n2=3, n3=4)
            proxy.restore()
            await mirror.reach(revision, timeout=20)
            assert cores(mirror) == {"n1": 1, "n2": 3, "n3": 4} and mirror.link is Link.LIVE and not mirror.problem


async def test_a_host_that_goes_silent_is_stale_though_no_connection_broke(
    running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.3)
    async with Proxy("127.0.0.1", running.context.file.port) as proxy:
        endpoint = net.Endpoint("127.0.0.1", proxy.port, running.context.token)
        async with Swarm(endpoint) as swarm, swarm.mirror(samples=False) as mirror:
            await seen(mirror, lambda: mirror.link, lambda link: link is Link.LIVE)
            proxy.silence()
            await seen(mirror, lambda: mirror.link, lambda link: link is Link.STALE)
            assert "silent" in mirror.problem


async def test_what_went_while_it_was_away_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.05, 0.05))
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as first:
        await set_cores(first, n1=1)
        port, token = first.context.file.port, first.context.token
        async with (
            Proxy("127.0.0.1", port) as proxy,
            Swarm(net.Endpoint("127.0.0.1", proxy.port, token)) as swarm,
            swarm.mirror((Node,), samples=False) as mirror,
        ):
            await seen(mirror, lambda: cores(mirror), lambda found: found == {"n1": 1})
            proxy.refuse()
            await first.swarm.node.forget("n1")
            proxy.restore()
            await seen(mirror, lambda: cores(mirror), lambda found: found == {})


async def test_samples_and_devices_come_and_age(running: Cluster) -> None:
    async with running.agent("n1", simulate="2xH100"), running.swarm.mirror() as mirror:
        gpus = await seen(
            mirror,
            lambda: {d.id for d in mirror.rows(Device).values() if d.id.startswith("SIM-")},
            lambda found: len(found) == 2,
        )
        await seen(mirror, lambda: gpus & set(mirror.samples), lambda found: found == gpus)
        for gpu in gpus:
            assert mirror.samples[gpu]["memory_total_bytes"] >= 80e9 and gpu in mirror.sampled_at
        assert mirror.rows(Node)["n1"].phase is NodePhase.READY


async def test_waiting_gives_up_in_time_and_says_what_it_saw_last(running: Cluster) -> None:
    from gswarm.cluster.types import ConditionState, Progress

    await set_cores(running, n1=1)
    node = await running.swarm.get(Node, "n1")

    def never(asked: Node, now: Node | None) -> Progress:
        return Progress(ConditionState.PENDING, message=f"{now.name if now else '?'} sleeps")

    def failed(asked: Node, now: Node | None) -> Progress:
        return Progress(ConditionState.FAILED, message="it burnt")

    with pytest.raises(DeadlineError, match="n1 sleeps"):
        await running.swarm.wait(never, node, timeout=0.3)
    with pytest.raises(GswarmError, match="it burnt"):
        await running.swarm.wait(failed, node, timeout=10)
    with pytest.raises(NotFoundError, match="n1"):
        await running.swarm.get(Node, "n2")


async def test_leaving_a_mirror_leaves_no_task(running: Cluster) -> None:
    before = asyncio.all_tasks()
    async with running.swarm.mirror() as mirror:
        await seen(mirror, lambda: mirror.link, lambda link: link is Link.LIVE)
    left = {task for task in asyncio.all_tasks() - before if not task.done() and "mirror" in task.get_name()}
    assert not left
