"""A link cut for ten minutes: all that the agent sampled meanwhile is in the recording and with the host, in its place."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gswarm import net
from gswarm.client.agent import Agent, Options
from gswarm.cluster.types import Node, NodePhase
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Session, session_sealed
from gswarm.v1 import profiler_pb2
from tests.support.cluster import cluster, seen
from tests.support.proxy import Proxy

SECONDS = 600


async def test_ten_minutes_are_backfilled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as running, Proxy("127.0.0.1", running.context.file.port) as proxy:
        endpoint = net.Endpoint("127.0.0.1", proxy.port, running.context.token)
        agent = Agent(running.context.config, Options(endpoint, resilient=True, name="n1", simulate="8xH100"))
        work = asyncio.create_task(agent.run())
        async with running.swarm.mirror((Node, Session)) as mirror:
            await seen(
                mirror, lambda: mirror.rows(Node).get("n1"), lambda n: n is not None and n.phase is NodePhase.READY
            )
            await running.swarm.profiler.start(name="cut")
            await seen(
                mirror, lambda: {n: s.ticks for n, s in mirror.rows(Session).items()}, lambda t: bool(t.get("cut"))
            )
            proxy.refuse()
            await agent.link.detached.wait()
            sampled = cut_off_for(agent, SECONDS)
            proxy.restore()
            await seen(mirror, lambda: mirror.rows(Session)["cut"].ticks, lambda t: t > SECONDS)
            stopped = await running.swarm.profiler.stop("cut")
            sealed = await running.swarm.wait(session_sealed, stopped, timeout=60)
        kept = running.context.hub.history("n1", SECONDS)
        held = {profiler_pb2.SampleTick.FromString(wire).time_unix_us for wire in kept}
        agent.stopping.set()
        await asyncio.wait_for(work, 20)
    with Recording.open(Path(sealed.path)) as recording:
        found = recording.series(["power_mw"])[0].times_us.tolist()
        assert not recording.damage
    sampled = {time_us // 1000 * 1000 for time_us in sampled}  # recordings keep milliseconds
    held = {time_us // 1000 * 1000 for time_us in held}
    assert sampled <= set(found), f"{len(sampled - set(found))} of {len(sampled)} are missing"
    assert len(found) == len(set(found)), "none came twice"
    assert len(sampled & held) >= SECONDS - 30, "and the host holds its last ten minutes of them"


def cut_off_for(agent: Agent, seconds: int) -> set[int]:
    """Let the agent sample once a second for so long, ending now; the times, microseconds."""
    begin = time.time_ns() // 1000 - seconds * 1_000_000
    readings = [device.read() for device in agent.devices]
    times = [begin + number * 1_000_000 for number in range(seconds)]
    for stamp in times:
        agent.profiler._seq += 1
        agent.link.sample(agent.profiler._packer.pack(readings, seq=agent.profiler._seq, time_unix_us=stamp))
    return set(times)
