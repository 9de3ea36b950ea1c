"""Who an agent is: its name, its state directory, and the file by which local commands find it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gswarm import config as settings
from gswarm import net
from gswarm.errors import RefusedError
from gswarm.names import check_name


@dataclass(frozen=True, slots=True)
class AgentFile:
    """`agent.json` in an agent's state directory."""

    name: str
    pid: int
    started: float
    host: str
    """HOST:PORT it is connected to."""

    @property
    def state_dir(self) -> Path:
        """The agent's directory."""
        return agents_dir() / self.name

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return net.same_process(self.pid, self.started)

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        net.write_private(self.state_dir / "agent.json", json.dumps(asdict(self)))


def agents_dir() -> Path:
    """Where the agents of this machine keep their state, one directory a name."""
    return settings.state_dir() / "agents"


def local_agents(address: str | None = None) -> list[AgentFile]:
    """Agents that run on this machine now; only those of the host at `address` when it is given."""
    found = []
    for path in sorted(agents_dir().glob("*/agent.json")):
        try:
            agent = AgentFile(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if agent.alive() and (address is None or _same(agent.host, address)):
            found.append(agent)
    return found


def _same(a: str, b: str) -> bool:
    (host_a, port_a), (host_b, port_b) = net.parse_address(a), net.parse_address(b)
    return port_a == port_b and (host_a == host_b or (net.is_loopback(host_a) and net.is_loopback(host_b)))


def node_name(configured: str) -> str:
    """The node's name: what is configured, else the machine's. Raises InvalidError."""
    return check_name(configured or settings.machine_name(), "node name")


class StateLock:
    """Holds an agent's state directory for one process."""

    def __init__(self, directory: Path) -> None:
        """Raises RefusedError while another agent has it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise RefusedError(
                f"an agent named {directory.name} runs on this machine already",
                next="stop it, or give this one another --name",
            ) from None

    def release(self) -> None:
        """Let another agent have it."""
        os.close(self._fd)
