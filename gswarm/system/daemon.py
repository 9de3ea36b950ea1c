"""Host and agent as background processes: started in sessions of their own, waited for, ended whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gswarm import config as settings
from gswarm import net
from gswarm.client.identity import AgentFile, local_agents
from gswarm.errors import DeadlineError, GswarmError
from gswarm.net import HostFile

START_S = 30.0
STOP_S = 25.0
POLL_S = 0.05


def log_path(role: str) -> Path:
    """Where a background host or agent writes."""
    return settings.state_dir() / f"{role}.log"


def running_host() -> HostFile | None:
    """The host that runs on this machine with this state directory."""
    found = HostFile.read(settings.state_dir())
    return found if found is not None and found.alive() else None


def spawn(role: str, arguments: list[str], env: Mapping[str, str], ready: Callable[[], bool]) -> int:
    """Start `gswarm ARGUMENTS` in the background and wait until it is ready; its process id.

    Raises GswarmError with its last line when it ends before that.
    """
    path = log_path(role)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > 8 << 20:
        path.replace(path.with_suffix(".log.1"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    begin = os.fstat(fd).st_size
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "gswarm", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=subprocess.STDOUT,
            env=os.environ | _config() | dict(env),
            start_new_session=True,
            cwd=path.parent,
        )
    finally:
        os.close(fd)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise GswarmError(f"the {role} did not start", why=_last_line(path, begin), next=f"see {path}")
        if ready():
            return child.pid
        time.sleep(POLL_S)
    child.terminate()
    raise DeadlineError(
        f"the {role} was not ready after {START_S:g} s", why=_last_line(path, begin), next=f"see {path}"
    )


def _config() -> dict[str, str]:
    """The config.yaml that this command reads, by its full path: what it starts runs in another directory."""
    path = Path(os.environ.get("GSWARM_CONFIG") or "config.yaml")
    return {"GSWARM_CONFIG": str(path.absolute())} if path.is_file() else {}


def _last_line(path: Path, begin: int) -> str:
    with path.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("gswarm: error: ") if lines else "it said nothing"


def is_free(bind: str, port: int) -> bool:
    """Whether a port can be listened on."""
    from gswarm.host.server import listen

    try:
        listen(bind, port, "--port").close()
    except GswarmError:
        return False
    return True


def start_host(config: settings.Config) -> HostFile:
    """Start a host; where a default port is another's, any free one is taken."""
    wanted = config.host
    ports = {
        key: value if f"host.{key}" in config.origins or is_free(wanted.bind, value) else 0
        for key, value in (("port", wanted.port), ("http_port", wanted.http_port), ("model_port", wanted.model_port))
    }
    arguments = ["host", "start", "--bind", wanted.bind]
    arguments += ["--port", str(ports["port"]), "--http-port", str(ports["http_port"])]
    arguments += ["--model-port", str(ports["model_port"])]
    spawn("host", arguments, {}, lambda: running_host() is not None)
    found = running_host()
    assert found is not None
    return found


def start_agent(host: HostFile, simulate: str) -> AgentFile:
    """Start an agent for the local host and wait until the host knows it."""
    address = net.Endpoint("127.0.0.1" if host.bind in ("0.0.0.0", "::") else host.bind, host.port).address
    arguments = ["client", "connect", address, "--resilient"]
    if simulate:
        arguments += ["--simulate", simulate]
    spawn("agent", arguments, {}, lambda: bool(local_agents(address)))
    return local_agents(address)[0]


def stop(pid: int, started: float) -> bool:
    """End a process we know by pid and start time: SIGTERM, and SIGKILL if it does not end; False when it was gone."""
    if not net.same_process(pid, started):
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while net.same_process(pid, started):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(POLL_S)
    return True
