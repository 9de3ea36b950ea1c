"""`gswarm up` and `gswarm down`: the one-machine default."""

from __future__ import annotations

import asyncio
import os
import sys

from gswarm import config as settings
from gswarm.cli import render, say
from gswarm.client.identity import local_agents
from gswarm.cluster.types import Device, Node
from gswarm.errors import RefusedError
from gswarm.net import HostFile
from gswarm.profiler.simulated import parse
from gswarm.swarm import connect
from gswarm.system import daemon
from gswarm.system.types import Daemon

KNOWN_S = 10.0


async def bring_up(simulate: str, *, console: bool) -> int:
    """Start what does not run, then the console, or a table for those without a terminal."""
    config = settings.load()
    parse("check", simulate)
    host = daemon.running_host()
    if host is None:
        say("starting a host")
        host = await asyncio.to_thread(daemon.start_host, config)
    agents = local_agents(f"127.0.0.1:{host.port}")
    if not agents:
        say(f"starting an agent{f' with {simulate} simulated' if simulate else ''}")
        await asyncio.to_thread(daemon.start_agent, host, simulate)
    elif simulate and not await _has_simulated():
        raise RefusedError(
            "an agent runs already, without simulated devices",
            next=f"gswarm down, then gswarm up --simulate {simulate}",
        )
    await _until_known()
    if console and sys.stdin.isatty() and sys.stdout.isatty():
        _become_console(host)
    await _show(host)
    return 0


async def _has_simulated() -> bool:
    async with connect() as swarm:
        return any(node.simulated for node in await swarm.list(Node))


async def _until_known() -> None:
    """Wait until the agent is a ready node; it has started, so this takes moments."""
    async with connect() as swarm, swarm.mirror((Node,), samples=False) as mirror:
        try:
            async with asyncio.timeout(KNOWN_S):
                while not any(node.phase.value == "ready" for node in mirror.rows(Node).values()):
                    await mirror.updated.wait()
        except TimeoutError:
            say(f"warning: the agent is not attached yet; see {daemon.log_path('agent')}")


def _become_console(host: HostFile) -> None:
    """Be the console from here on: no process of ours stays behind it."""
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "gswarm_tui", f"127.0.0.1:{host.port}"])


async def _show(host: HostFile) -> None:
    async with connect() as swarm:
        devices = await swarm.list(Device, sort="alias")
        nodes = await swarm.list(Node)
    render(nodes, "table", returns=list[Node])
    sys.stdout.write("\n")
    render(devices, "table", returns=list[Device])
    sys.stdout.write(
        f"\nhost 127.0.0.1:{host.port}, REST http://127.0.0.1:{host.http_port}/api/v1, models http://127.0.0.1:{host.model_port}/v1\n"
        f"open the console: gswarm-tui 127.0.0.1:{host.port}\n"
        "stop everything:  gswarm down\n"
    )


async def bring_down() -> list[Daemon]:
    """Stop agents first, so that what they serve ends with them, then the host."""
    stopped = []
    for agent in local_agents():
        if await asyncio.to_thread(daemon.stop, agent.pid, agent.started):
            stopped.append(Daemon("agent", "stopped", agent.pid, agent.host, str(daemon.log_path("agent"))))
    host = daemon.running_host()
    if host is not None and await asyncio.to_thread(daemon.stop, host.pid, host.started):
        address = f"{host.bind}:{host.port}"
        stopped.append(Daemon("host", "stopped", host.pid, address, str(daemon.log_path("host"))))
    if not stopped:
        say("nothing runs here")
    return stopped
