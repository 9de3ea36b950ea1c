"""Real processes, killed with SIGKILL and cut from each other: what was served goes on, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gswarm.v1 import cluster_pb2, models_pb2
from tests.support.killing import READY, Running, eventually, ready, started
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with started(tmp_path) as found:
        yield found


async def test_a_killed_agent_adopts_what_it_served(running: Running) -> None:
    agent = running.agent()
    async with running.client() as client:
        first = await ready(client)
        before = await client.serve("m")
        running.kill(agent)
        assert psutil.pid_exists(before.pid), "the backend outlives its agent"
        running.agent()
        await eventually(client.node, lambda n: n.incarnation not in ("", first.incarnation))
        after = await eventually(lambda: client.service("m"), lambda s: s.phase == READY and s.pid == before.pid)
        assert (after.bound_port, after.failures) == (before.bound_port, 0)
        assert [p.pid for p in running.backends()] == [before.pid]
        # And it still watches over it: a backend that dies is started again.
        os.kill(before.pid, signal.SIGKILL)
        again = await eventually(lambda: client.service("m"), lambda s: s.phase == READY and s.pid != before.pid)
        assert [p.pid for p in running.backends()] == [again.pid]


async def test_what_was_stopped_while_the_agent_was_dead_is_ended_by_the_next(running: Running) -> None:
    agent = running.agent()
    async with running.client() as client:
        await ready(client)
        await client.serve("m")
        running.kill(agent)
        await client.swarm.call(models_pb2.StopServiceRequest(name="m"))
        assert running.backends()
        running.agent()
        await eventually(lambda: asyncio.to_thread(running.backends), lambda found: not found)
        await eventually(lambda: client.service("m"), lambda s: s.phase in (0, models_pb2.SERVICE_PHASE_STOPPED))


async def test_a_killed_host_finds_everything_as_it_was(running: Running) -> None:
    (host,) = running._processes
    running.agent()
    async with running.client() as client:
        await ready(client)
        before = await client.serve("m")
        numbers = await client.tick_numbers()
    running.kill(host)
    assert psutil.pid_exists(before.pid)
    await asyncio.sleep(4)  # samples are taken while no host is there
    running.host()
    async with running.client() as client:
        await eventually(client.node, lambda n: n.phase == cluster_pb2.NODE_PHASE_READY)

        # The new host held nothing; all that came after the last acknowledged tick gets there, without a hole.
        def whole(got: list[int]) -> bool:
            return len(got) > 5 and got[0] <= numbers[-1] + 1 and got == list(range(got[0], got[-1] + 1))

        await eventually(client.tick_numbers, whole)
        after = await client.service("m")
        assert (after.phase, after.pid, after.generation) == (READY, before.pid, before.generation)
        assert [p.pid for p in running.backends()] == [before.pid]


async def test_kills_under_load_neither_lose_nor_double_a_report(running: Running) -> None:
    (host,) = running._processes
    agent = running.agent()
    names: list[str] = []
    over = asyncio.Event()
    async with running.client() as client:
        await ready(client)

    async def ask() -> None:
        """Some forty models a second, for as long as there is killing; each is acknowledged in the end."""
        async with running.client() as client:
            while not over.is_set():
                name = f"m{len(names)}"
                await client.download(name)
                names.append(name)
                await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    for victim in ("host", "agent", "host", "agent"):
        await asyncio.sleep(1.5)  # amid the load, wherever that is
        if victim == "host":
            running.kill(host)
            host = running.host()
        else:
            running.kill(agent)
            agent = running.agent()
    over.set()
    await asyncio.wait_for(asking, 60)
    assert len(names) > 40, "there was load"
    async with running.client() as client:
        await eventually(client.stored, lambda count: count == len(names))
        told = Counter(event.message for event in await client.events("model.stored"))
        asked = Counter(event.subject for event in await client.events("model.download"))
    assert told == Counter({f"{name}@v1 is on n1": 1 for name in names})
    assert asked == Counter(dict.fromkeys(names, 1))


@pytest.mark.parametrize("failure", ["silence", "refuse"])
async def test_a_cut_link_is_survived_and_noticed_once(running: Running, failure: str) -> None:
    async with Proxy("127.0.0.1", running.installed.port) as proxy, running.client() as client:
        running.agent(port=proxy.port)
        await ready(client)
        before = await client.serve("m")
        getattr(proxy, failure)()
        node = await eventually(client.node, lambda n: n.phase == cluster_pb2.NODE_PHASE_UNREACHABLE)
        assert "silent" in node.detail
        assert (await client.service("m")).phase == READY, "silence says nothing about what is served there"
        assert psutil.pid_exists(before.pid)
        await client.download("asked-meanwhile")
        proxy.restore()
        await ready(client)
        await eventually(client.stored, lambda count: count == 2)
        after = await client.service("m")
        assert (after.phase, after.pid) == (READY, before.pid)
        assert len(await client.events("node.unreachable")) == 1
        numbers = await eventually(client.tick_numbers, lambda got: got == list(range(1, len(got) + 1)))
        assert len(numbers) >= 6, "what was sampled during the cut came after it"


async def test_without_resilience_the_agent_ends_with_its_host_and_leaves_nothing(running: Running) -> None:
    (host,) = running._processes
    agent = running.agent(resilient=False)
    async with running.client() as client:
        await ready(client)
        await client.serve("m")
    running.kill(host)
    assert await asyncio.to_thread(agent.wait, 40) == 3
    assert not running.backends()
    assert "Traceback" not in running.log()


async def test_a_stopped_agent_says_goodbye_and_ends_what_it_started(running: Running) -> None:
    agent = running.agent()
    async with running.client() as client:
        await ready(client)
        await client.serve("m")
        agent.terminate()
        assert await asyncio.to_thread(agent.wait, 40) == 0
        assert not running.backends()
        node = await eventually(client.node, lambda n: n.phase == cluster_pb2.NODE_PHASE_LEFT)
        assert node.detail == "stopped"
        assert not await client.events("node.unreachable")


async def test_a_second_agent_on_the_same_state_is_refused(running: Running) -> None:
    running.agent()
    async with running.client() as client:
        first = await ready(client)
        second = running.agent()
        assert await asyncio.to_thread(second.wait, 40) == 5
        assert "runs on this machine already" in running.log()
        assert (await client.node()).incarnation == first.incarnation
