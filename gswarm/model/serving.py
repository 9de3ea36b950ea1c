"""Services of a node kept running: each backend started or adopted, waited for, started again when it ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from gswarm.client.supervisor import Launch
from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.model.backends import backend
from gswarm.model.backends.backend import Serving
from gswarm.model.store import ModelStore
from gswarm.profiler.simulated import STATE_DIRECTORY
from gswarm.units import size as show_size
from gswarm.v1 import agent_pb2, models_pb2
from gswarm.v1.models_pb2 import Service

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

FAILURES_ALLOWED = 5
FAILURE_WINDOW_S = 600.0
RESTART_PAUSE_S = 1.0
PROBE_S = 0.2
STOP_GRACE_S = 10.0
THROUGHPUT_S = 2.0
PENDING, LOADING = models_pb2.SERVICE_PHASE_PENDING, models_pb2.SERVICE_PHASE_LOADING
READY, FAILED = models_pb2.SERVICE_PHASE_READY, models_pb2.SERVICE_PHASE_FAILED
STOPPED = models_pb2.SERVICE_PHASE_STOPPED


@dataclass(eq=False)
class _Kept:
    """A service being kept running."""

    spec: Service
    task: asyncio.Task[None]
    failures: deque[float] = field(default_factory=deque)

    def failed(self) -> int:
        """Count a failure; how many there were of late."""
        now = time.monotonic()
        self.failures.append(now)
        while self.failures[0] < now - FAILURE_WINDOW_S:
            self.failures.popleft()
        return len(self.failures)


class Services:
    """One task for each service; desired state starts, replaces and ends them."""

    def __init__(self, agent: Agent, store: ModelStore) -> None:
        self._agent, self._store = agent, store
        self._kept: dict[str, _Kept] = {}
        self._ready: dict[str, tuple[Service, str]] = {}
        self.stopping = False
        """The agent itself stops: its services stay wanted, and nothing new is begun."""

    def ready(self, service: str) -> tuple[Service, str] | None:
        """A service that answers now, and the name its backend wants as model."""
        return self._ready.get(service)

    async def stop_all(self) -> None:
        """End every backend, for a stop of the agent itself; they start again with the next."""
        self.stopping = True
        for kept in self._kept.values():
            kept.task.cancel()
        await asyncio.gather(*(kept.task for kept in self._kept.values()), return_exceptions=True)
        await self._agent.supervisor.stop_all(STOP_GRACE_S)

    async def reconcile(self, state: agent_pb2.DesiredState, group: asyncio.TaskGroup) -> None:
        """End what is not wanted as it is, then start what is missing."""
        wanted = {service.name: service for service in state.services}
        for name, kept in list(self._kept.items()):
            spec = wanted.get(name)
            if spec is None or spec.generation != kept.spec.generation or spec.stop:
                kept.task.cancel()
                await asyncio.gather(kept.task, return_exceptions=True)
                del self._kept[name]
        for name in [p.name for p in self._agent.supervisor.running()]:
            if name not in wanted:
                await self._agent.supervisor.stop(name, STOP_GRACE_S)
        for name, spec in wanted.items():
            if name in self._kept:
                continue
            if spec.stop:
                group.create_task(self._end(spec), name=f"stop-{name}")
            elif not (spec.phase == FAILED and spec.observed_generation == spec.generation):
                task = group.create_task(self._keep(spec), name=f"serve-{name}")
                self._kept[name] = _Kept(spec, task)

    async def tell_throughput(self) -> None:
        """Say every few seconds how many tokens each service gives; until cancelled."""
        told: dict[str, float] = {}
        while True:
            await asyncio.sleep(THROUGHPUT_S)
            for name, (spec, _) in self._ready.items():
                rate = self._agent.peer.throughput.rate(name)
                if rate is not None and told.get(name) != rate:
                    told[name] = rate
                    self._agent.link.progress_service(_report(spec, READY, tokens_per_s=rate))

    async def _end(self, spec: Service) -> None:
        await self._stop(spec.name)
        self._report(spec, STOPPED)

    async def _keep(self, spec: Service) -> None:
        """Keep one service running until cancelled; too many failures end in `failed`, until a new generation."""
        kept = self._kept[spec.name]
        try:
            while True:
                try:
                    await self._serve_once(spec)
                    raise GswarmError("the backend ended by itself")
                except (InvalidError, RefusedError) as error:
                    # Nothing about it changes by trying again: say so at once.
                    self._report(spec, FAILED, detail=str(error), failures=len(kept.failures) + 1)
                    return
                except GswarmError as error:
                    count = kept.failed()
                    last = self._agent.supervisor.last_lines(spec.name)
                    detail = f"{error}: {last}" if last else str(error)
                    if count >= FAILURES_ALLOWED:
                        self._report(spec, FAILED, detail=detail, failures=count)
                        return
                    self._report(spec, PENDING, detail=f"starting again after: {detail}", failures=count)
                finally:
                    self._ready.pop(spec.name, None)
                    self._agent.peer.throughput.forget(spec.name)
                await asyncio.sleep(RESTART_PAUSE_S * 2**count / 2)
        except asyncio.CancelledError:
            await self._stop(spec.name)
            if not self.stopping:
                current = next((s for s in self._agent.desired.services if s.name == spec.name), None)
                if current is None or current.stop:
                    self._report(current or spec, STOPPED)
            raise

    async def _stop(self, name: str) -> None:
        await self._agent.supervisor.stop(name, STOP_GRACE_S)
        self._forget_simulated(name)

    def _forget_simulated(self, name: str) -> None:
        (self._agent.state_dir / STATE_DIRECTORY / f"{name}.json").unlink(missing_ok=True)

    async def _serve_once(self, spec: Service) -> None:
        """Start (or find) the backend, wait until it answers, then until it ends."""
        chosen = backend(spec.backend)
        running = self._agent.supervisor.get(spec.name)
        if running is not None and running.generation != spec.generation:
            await self._agent.supervisor.stop(spec.name, STOP_GRACE_S)
            running = None
        serving = await self._serving(spec, running.port if running else 0)
        began = time.monotonic()
        adopted = running is not None
        if running is None:
            chosen.check(serving)
            self._check_memory(spec, serving, chosen.needed_bytes(serving.size_bytes))
            self._check_port(spec)
            command = chosen.command(serving)
            self._report(spec, LOADING)
            running = self._agent.supervisor.start(
                Launch(spec.name, spec.generation, command.argv, command.env, serving.port, command.directory)
            )
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as client:
            await self._until_ready(client, spec, serving, chosen.load_limit_s, began)
            self._ready[spec.name] = (spec, chosen.served_name(serving))
            self._report(
                spec,
                READY,
                progress_permille=1000,
                pid=running.pid,
                bound_port=serving.port,
                load_s=None if adopted else time.monotonic() - began,
                memory_bytes=chosen.needed_bytes(serving.size_bytes) if spec.simulated else None,
                max_in_flight=chosen.max_in_flight,
            )
            code = await self._agent.supervisor.wait(spec.name)
        self._forget_simulated(spec.name)
        raise GswarmError(
            f"the backend ended with {f'exit code {code}' if code is not None else 'an unknown exit code'}"
        )

    async def _serving(self, spec: Service, port: int) -> Serving:
        devices = {device.id: device.describe() for device in self._agent.devices}
        missing = [device for device in spec.device_ids if device not in devices]
        if missing:
            raise RefusedError(f"device {missing[0]} is not on this node")
        model = next((m for m in self._agent.desired.models if m.name == spec.model), None)
        version = next((v for v in model.versions if v.version == spec.version), None) if model else None
        size = version.size_bytes if version else 0
        directory = self._store.directory(spec.model, spec.version)
        if not spec.simulated:
            await asyncio.to_thread(self._store.check, spec.model, spec.version)
        port = port or spec.port or _free_port()
        kind = devices[spec.device_ids[0]].kind
        return Serving(
            spec.name,
            spec.model,
            directory,
            size,
            tuple(spec.device_ids),
            kind,
            port,
            dict(spec.options),
            self._agent.state_dir,
        )

    def _check_memory(self, spec: Service, serving: Serving, needed: int) -> None:
        """Refuse what does not fit now; foreign processes count as what they take."""
        share = needed // len(serving.device_ids)
        for device in self._agent.devices:
            if device.id in serving.device_ids:
                free = device.free_bytes()
                if free is not None and free < share:
                    raise RefusedError(
                        f"{spec.model} does not fit on {device.describe().alias}",
                        why=f"it needs {show_size(share)}, {show_size(free)} are free",
                        next="stop a service there, or choose another device",
                    )

    def _check_port(self, spec: Service) -> None:
        if spec.port and not self._agent.supervisor.get(spec.name) and not _is_free(spec.port):
            raise RefusedError(
                f"port {spec.port} is taken on {self._agent.name}", next="choose another --port, or none"
            )

    async def _until_ready(
        self, client: aiohttp.ClientSession, spec: Service, serving: Serving, limit_s: float, began: float
    ) -> None:
        url = f"http://127.0.0.1:{serving.port}"
        while self._agent.supervisor.get(spec.name) is not None:
            try:
                async with client.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
                    body = await answer.json(content_type=None) if answer.status == 503 else {}
                    if isinstance(body, dict) and isinstance(body.get("progress"), float):
                        done = int(body["progress"] * 1000)
                        self._agent.link.progress_service(_report(spec, LOADING, progress_permille=done))
            except (aiohttp.ClientError, TimeoutError, ValueError):
                pass
            if time.monotonic() - began > limit_s:
                await self._agent.supervisor.stop(spec.name, STOP_GRACE_S)
                raise GswarmError(f"the backend was not ready after {limit_s:g} s")
            await asyncio.sleep(PROBE_S)
        code = await self._agent.supervisor.wait(spec.name)
        raise GswarmError(f"the backend ended while loading, exit code {'unknown' if code is None else code}")

    def _report(self, spec: Service, phase: models_pb2.ServicePhase.ValueType, **fields: Any) -> None:
        self._agent.link.report(service=_report(spec, phase, **fields))


def _report(spec: Service, phase: models_pb2.ServicePhase.ValueType, **fields: Any) -> agent_pb2.ServiceReport:
    return agent_pb2.ServiceReport(name=spec.name, observed_generation=spec.generation, phase=phase, **fields)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
