"""Child processes that outlive their agent: started in sessions of their own, adopted after a restart, ended whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from gswarm import net
from gswarm.errors import GswarmError, NotFoundError

log = logging.getLogger("gswarm.agent")
LOG_LIMIT = 32 << 20
SERVICE_VARIABLE = "GSWARM_SERVICE"
AGENT_VARIABLE = "GSWARM_AGENT_DIR"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run: `name` is unique on the node; `env` is added to the agent's own."""

    name: str
    generation: int
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    """Port it will listen on; kept so that an adopting agent knows it."""
    directory: Path | None = None
    """Where it starts; by default the agent's state directory."""


@dataclass(frozen=True, slots=True)
class Process:
    """A child that runs: enough to recognise it again."""

    name: str
    generation: int
    pid: int
    started: float
    port: int

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return net.same_process(self.pid, self.started)


class Supervisor:
    """Starts, watches, adopts and ends the backends of one agent. Its records are in `processes.json`."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self.logs = state_dir / "logs"
        self.logs.mkdir(mode=0o700, exist_ok=True)
        self._records = state_dir / "processes.json"
        self._running: dict[str, Process] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._codes: dict[str, int | None] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def adopt(self) -> list[Process]:
        """Find what an earlier agent of this directory left running; anything of ours that is not on record is ended."""
        known: dict[int, Process] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            for record in json.loads(self._records.read_text()):
                process = Process(**record)
                known[process.pid] = process
        alive = {pid: process for pid, process in known.items() if process.alive()}
        for record in alive.values():
            self._watch(record)
        for found, session in _marked(self._dir):
            # A session whose leader is gone is a backend that died while no agent was there: its workers go too.
            if session not in alive and not any(_descends(found, pid) for pid in alive):
                log.warning("ending process %d, which no record names", found.pid)
                with contextlib.suppress(psutil.Error):
                    found.kill()
        self._save()
        return list(self._running.values())

    def get(self, name: str) -> Process | None:
        """The process of that name while it runs."""
        return self._running.get(name)

    def running(self) -> list[Process]:
        """Everything that runs."""
        return list(self._running.values())

    def log_path(self, name: str) -> Path:
        """Where a service's output goes."""
        return self.logs / f"{name}.log"

    def start(self, launch: Launch) -> Process:
        """Start a process in its own session, output to its log. Raises GswarmError when it cannot be started."""
        if launch.name in self._running:
            raise GswarmError(f"{launch.name} runs already")
        env = os.environ | dict(launch.env)
        env[SERVICE_VARIABLE], env[AGENT_VARIABLE] = launch.name, str(self._dir)
        path = self.log_path(launch.name)
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".log.1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                list(launch.argv),
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=launch.directory or self._dir,
                start_new_session=True,
            )
        except OSError as error:
            raise GswarmError(f"{launch.argv[0]} cannot be started", why=error.strerror or str(error)) from None
        finally:
            os.close(fd)
        self._children[child.pid] = child
        process = Process(
            launch.name, launch.generation, child.pid, psutil.Process(child.pid).create_time(), launch.port
        )
        self._watch(process)
        self._save()
        return process

    def _watch(self, process: Process) -> None:
        """Notice its end through a pidfd, which works for children and adopted processes alike."""
        self._running[process.name] = process
        ended = self._ended[process.name] = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            loop.call_soon(self._gone, process, ended, None)
            return
        loop.add_reader(fd, self._gone, process, ended, fd)

    def _gone(self, process: Process, ended: asyncio.Event, fd: int | None) -> None:
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        # Workers of a backend that died must not live on without it. Before it is reaped, while its number is taken.
        _signal_group(process.pid, signal.SIGKILL)
        child = self._children.pop(process.pid, None)
        self._codes[process.name] = child.wait() if child is not None else None
        if self._running.get(process.name) is process:
            del self._running[process.name]
            self._save()
        ended.set()

    async def wait(self, name: str) -> int | None:
        """Wait until the process has ended; its exit code, None when it was adopted."""
        if ended := self._ended.get(name):
            await ended.wait()
        return self._codes.get(name)

    async def stop(self, name: str, grace_s: float = 10.0) -> None:
        """End the whole group: SIGTERM, then SIGKILL after `grace_s`."""
        process = self._running.get(name)
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._ended[name].wait()
        except TimeoutError:
            _signal_group(process.pid, signal.SIGKILL)
            await self._ended[name].wait()

    async def stop_all(self, grace_s: float = 5.0) -> None:
        """End everything, at once."""
        await asyncio.gather(*(self.stop(name, grace_s) for name in list(self._running)))

    def last_lines(self, name: str, count: int = 5) -> str:
        """The last lines of a log, for saying why it failed."""
        with contextlib.suppress(OSError):
            with self.log_path(name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
            return "\n".join([line for line in lines if line.strip()][-count:])
        return ""

    async def read_log(self, name: str, tail_bytes: int, *, follow: bool) -> AsyncIterator[bytes]:
        """The last bytes of a log, then more as it grows. Raises NotFoundError."""
        path = self.log_path(name)
        if not path.exists():
            raise NotFoundError(f"there is no log of {name}")
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail_bytes))
            while True:
                piece = file.read(1 << 16)
                if piece:
                    yield piece
                elif not follow:
                    return
                else:
                    await asyncio.sleep(0.3)
                    if path.stat().st_size < file.tell():
                        file.seek(0)  # it was rotated

    def rotate_logs(self) -> None:
        """Cut logs that have grown past 32 MiB; one older part is kept."""
        for path in self.logs.glob("*.log"):
            self._rotate(path)

    def _rotate(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_LIMIT:
                # The child has the file open for appending: copy, then cut it under its feet.
                path.with_suffix(".log.1").write_bytes(path.read_bytes()[-LOG_LIMIT:])
                os.truncate(path, 0)

    def _save(self) -> None:
        net.write_private(self._records, json.dumps([asdict(p) for p in self._running.values()]))


def _marked(directory: Path) -> list[tuple[psutil.Process, int]]:
    """Processes that carry this agent's mark in their environment, and the session each belongs to."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            ours = environ.get(AGENT_VARIABLE) == str(directory) and SERVICE_VARIABLE in environ
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, os.getsid(process.pid)))
    return found


def _descends(process: psutil.Process, pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(parent.pid == pid for parent in process.parents())
    return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
