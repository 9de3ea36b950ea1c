"""The agent's side of models: makes placements and services what the host says they should be, and says how they are."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from gswarm.client.supervisor import Launch
from gswarm.errors import GswarmError, InvalidError, NotFoundError, RefusedError
from gswarm.model.backends import NAMES, backend
from gswarm.model.backends.backend import Serving
from gswarm.model.backends.environments import python_of
from gswarm.model.sources.source import Cancelled, open_source, simulated_size, without_secrets
from gswarm.model.store import ModelStore, check_path, facts, hash_file
from gswarm.profiler.simulated import STATE_DIRECTORY
from gswarm.units import size as show_size
from gswarm.v1 import agent_pb2, models_pb2
from gswarm.v1.models_pb2 import ModelFile, ModelVersion, Placement, Service

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

log = logging.getLogger("gswarm.agent")
FAILURES_ALLOWED = 5
FAILURE_WINDOW_S = 600.0
RESTART_PAUSE_S = 1.0
PROBE_S = 0.2
STOP_GRACE_S = 10.0
THROUGHPUT_S = 2.0
FREE_STEP = 64 << 20
LOADING, READY = models_pb2.SERVICE_PHASE_LOADING, models_pb2.SERVICE_PHASE_READY
FAILED, STOPPED = models_pb2.SERVICE_PHASE_FAILED, models_pb2.SERVICE_PHASE_STOPPED


@dataclass(eq=False)
class _Download:
    """A placement being made."""

    generation: int
    task: asyncio.Task[None]
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Serve:
    """A service being kept running."""

    spec: Service
    task: asyncio.Task[None]
    failures: deque[float] = field(default_factory=deque)


class ModelWorker:
    """One task for each placement and each service; desired state starts, replaces and ends them."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.store = ModelStore(agent.state_dir / "store")
        self.store.clear_incoming()
        agent.peer.add_file_route("/blobs/", self.store.blob)
        agent.link.facts = self._facts
        self._downloads: dict[str, _Download] = {}
        self._settled: dict[str, int] = {}
        """Generation of each placement that is made and reported; the host may not know it yet."""
        self._serves: dict[str, _Serve] = {}
        self._wanted: agent_pb2.DesiredState | None = None
        self._changed = asyncio.Event()
        self._ready: dict[str, tuple[Service, str]] = {}
        self._logs: dict[int, asyncio.Task[None]] = {}
        self._stopping = False

    def backends(self) -> list[str]:
        """Backends that could be started here."""
        has_simulated = any(device.simulated for device in self.agent.devices)
        return [name for name in NAMES if (has_simulated if name == "simulated" else python_of(name) is not None)]

    def free_bytes(self) -> int:
        """Room in the model store, rounded down, so that it is not told anew for every file written."""
        return self.store.free_bytes() // FREE_STEP * FREE_STEP

    def _facts(self) -> agent_pb2.NodeFacts:
        return agent_pb2.NodeFacts(store_free_bytes=self.free_bytes(), backends=self.backends())

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """Remember the newest desired state; `run` acts on it."""
        self._wanted = state
        self._changed.set()

    def ready(self, service: str) -> tuple[Service, str] | None:
        """A service that answers now, and the name its backend wants as model."""
        return self._ready.get(service)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tell_throughput(), name="throughput")
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self._wanted is not None and not self._stopping:
                    await self._reconcile(self._wanted, group)

    async def stop_all(self) -> None:
        """End every backend, for a stop of the agent itself; they start again with the next."""
        self._stopping = True
        for serve in self._serves.values():
            serve.task.cancel()
        await asyncio.gather(*(serve.task for serve in self._serves.values()), return_exceptions=True)
        await self.agent.supervisor.stop_all(STOP_GRACE_S)

    async def _reconcile(self, state: agent_pb2.DesiredState, group: asyncio.TaskGroup) -> None:
        await self._reconcile_placements(state, group)
        wanted = {service.name: service for service in state.services}
        for name, serve in list(self._serves.items()):
            spec = wanted.get(name)
            if spec is None or spec.generation != serve.spec.generation or spec.stop:
                serve.task.cancel()
                await asyncio.gather(serve.task, return_exceptions=True)
                del self._serves[name]
        for name in [p.name for p in self.agent.supervisor.running()]:
            if name not in wanted:
                await self.agent.supervisor.stop(name, STOP_GRACE_S)
        for name, spec in wanted.items():
            if name in self._serves:
                continue
            if spec.stop:
                group.create_task(self._end(spec), name=f"stop-{name}")
            elif not (spec.phase == FAILED and spec.observed_generation == spec.generation):
                task = group.create_task(self._keep(spec), name=f"serve-{name}")
                self._serves[name] = _Serve(spec, task)

    async def _tell_throughput(self) -> None:
        told: dict[str, float] = {}
        while True:
            await asyncio.sleep(THROUGHPUT_S)
            for name, (spec, _) in self._ready.items():
                rate = self.agent.peer.throughput.rate(name)
                if rate is not None and told.get(name) != rate:
                    told[name] = rate
                    self.agent.link.progress_service(
                        agent_pb2.ServiceReport(
                            name=name, observed_generation=spec.generation, phase=READY, tokens_per_s=rate
                        )
                    )

    # Placements

    async def _reconcile_placements(self, state: agent_pb2.DesiredState, group: asyncio.TaskGroup) -> None:
        wanted = {placement.id: placement for placement in state.placements}
        for key, download in list(self._downloads.items()):
            placement = wanted.get(key)
            if placement is None or placement.generation != download.generation:
                download.cancelled.set()
                download.task.cancel()
                await asyncio.gather(download.task, return_exceptions=True)
                self._downloads.pop(key, None)
        self._settled = {key: generation for key, generation in self._settled.items() if key in wanted}
        keep = {(placement.model, placement.version) for placement in wanted.values()}
        for model, version in await asyncio.to_thread(self.store.versions):
            if (model, version) not in keep:
                await asyncio.to_thread(self.store.delete_version, model, version)
        for key, placement in wanted.items():
            settled = placement.observed_generation == placement.generation and placement.phase in (
                models_pb2.PLACEMENT_PHASE_STORED,
                models_pb2.PLACEMENT_PHASE_FAILED,
            )
            settled = settled or self._settled.get(key) == placement.generation
            if key not in self._downloads and not settled:
                cancelled = threading.Event()
                task = group.create_task(self._download(placement, state, cancelled), name=f"download-{key}")
                self._downloads[key] = _Download(placement.generation, task, cancelled)

    async def _download(self, placement: Placement, state: agent_pb2.DesiredState, cancelled: threading.Event) -> None:
        """Make one placement; ends in a report, never in an error."""
        report = agent_pb2.PlacementReport(id=placement.id, observed_generation=placement.generation)
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            told = agent_pb2.PlacementReport(
                id=placement.id,
                observed_generation=placement.generation,
                phase=models_pb2.PLACEMENT_PHASE_DOWNLOADING,
                bytes_done=done,
                bytes_total=total,
            )
            loop.call_soon_threadsafe(self.agent.link.progress_placement, told)

        try:
            if placement.source.startswith("simulated:"):
                size = simulated_size(placement.source)
                version = ModelVersion(version=placement.version, size_bytes=size, digest="", source=placement.source)
                shared = 0
            else:
                version, shared = await _in_thread(self._fetch, placement, progress, cancelled)
                directory = self.store.directory(placement.model, placement.version)
                report.metadata.update(await asyncio.to_thread(facts, directory))
            report.phase, report.bytes_shared = models_pb2.PLACEMENT_PHASE_STORED, shared
            report.bytes_done = report.bytes_total = version.size_bytes
            version.source = without_secrets(placement.source)
            report.version.CopyFrom(version)
        except Cancelled:
            return
        except Exception as error:
            if not isinstance(error, GswarmError | OSError):
                log.exception("download of %s@%s failed", placement.model, placement.version)
            report.phase, report.detail = models_pb2.PLACEMENT_PHASE_FAILED, str(error)
            await asyncio.to_thread(self.store.give_up, placement.model, placement.version)
        finally:
            self._downloads.pop(placement.id, None)
        self._settled[placement.id] = placement.generation
        self.agent.link.report(placement=report)
        self._changed.set()

    def _fetch(self, placement: Placement, progress: object, cancelled: threading.Event) -> tuple[ModelVersion, int]:
        """Bring every file of a version into the store; (version, bytes that were here already). Blocks."""
        tell = progress if callable(progress) else lambda done, total: None
        try:
            return self.store.check(placement.model, placement.version, read=True), 0
        except NotFoundError:
            pass
        except GswarmError as error:
            log.warning("%s: %s; it is brought anew", error.what, error.why)
        roots = None if self.agent.loopback else tuple(Path(root) for root in self.agent.config.client.file_roots)
        source = open_source(placement.source, file_roots=roots)
        offered = source.files()
        for file in offered:
            check_path(file.path)
        making = self.store.making(placement.model, placement.version)
        total = sum(file.size_bytes or 0 for file in offered)
        files: list[ModelFile] = []
        done = shared = 0
        for number, file in enumerate(offered):
            if cancelled.is_set():
                raise Cancelled
            base = done
            local = source.local(file)
            if local is not None:
                digest = hash_file(local)
                size = local.stat().st_size
                new = self.store.copy_in(local, digest, making, lambda moved, base=base: tell(base + moved, total))  # type: ignore[misc]
            else:
                partial = making / f"part-{number}"
                self.store.need((file.size_bytes or 0) - (partial.stat().st_size if partial.exists() else 0))
                with self.store.writing():
                    source.fetch(file, partial, lambda moved, base=base: tell(base + moved, total), cancelled)  # type: ignore[misc]
                    digest, size = hash_file(partial), partial.stat().st_size
                    new = self.store.adopt(partial, digest, making)
            shared += 0 if new else size
            files.append(ModelFile(path=file.path, size_bytes=size, digest=digest))
            done += size
            tell(done, max(total, done))
        self.store.put_version(placement.model, placement.version, files)
        return self.store.check(placement.model, placement.version), shared

    # Services

    async def _end(self, spec: Service) -> None:
        await self.agent.supervisor.stop(spec.name, STOP_GRACE_S)
        self._forget_simulated(spec.name)
        self._report(spec, STOPPED)

    async def _keep(self, spec: Service) -> None:
        """Keep one service running until cancelled; too many failures end in `failed`, until a new generation."""
        serve = self._serves[spec.name]
        try:
            while True:
                try:
                    await self._serve_once(spec)
                    raise GswarmError("the backend ended by itself")
                except (InvalidError, RefusedError) as error:
                    # Nothing about it changes by trying again: say so at once.
                    self._report(spec, FAILED, detail=str(error), failures=len(serve.failures) + 1)
                    return
                except GswarmError as error:
                    now = time.monotonic()
                    serve.failures.append(now)
                    while serve.failures[0] < now - FAILURE_WINDOW_S:
                        serve.failures.popleft()
                    last = self.agent.supervisor.last_lines(spec.name)
                    detail = f"{error}: {last}" if last else str(error)
                    count = len(serve.failures)
                    if count >= FAILURES_ALLOWED:
                        self._report(spec, FAILED, detail=detail, failures=count)
                        return
                    self._report(
                        spec, models_pb2.SERVICE_PHASE_PENDING, detail=f"starting again after: {detail}", failures=count
                    )
                finally:
                    self._ready.pop(spec.name, None)
                    self.agent.peer.throughput.forget(spec.name)
                await asyncio.sleep(RESTART_PAUSE_S * 2 ** len(serve.failures) / 2)
        except asyncio.CancelledError:
            await self.agent.supervisor.stop(spec.name, STOP_GRACE_S)
            self._forget_simulated(spec.name)
            if not self._stopping:
                current = self._current(spec.name)
                if current is None or current.stop:
                    self._report(current or spec, STOPPED)
            raise

    def _current(self, name: str) -> Service | None:
        return next((s for s in self._wanted.services if s.name == name), None) if self._wanted else None

    def _forget_simulated(self, name: str) -> None:
        (self.agent.state_dir / STATE_DIRECTORY / f"{name}.json").unlink(missing_ok=True)

    async def _serve_once(self, spec: Service) -> None:
        """Start (or find) the backend, wait until it answers, then until it ends."""
        chosen = backend(spec.backend)
        running = self.agent.supervisor.get(spec.name)
        if running is not None and running.generation != spec.generation:
            await self.agent.supervisor.stop(spec.name, STOP_GRACE_S)
            running = None
        serving = await self._serving(spec, running.port if running else 0)
        began = time.monotonic()
        adopted = running is not None
        if running is None:
            chosen.check(serving)
            self._check_memory(spec, serving, chosen.needed_bytes(serving.size_bytes))
            command = chosen.command(serving)
            self._report(spec, LOADING)
            running = self.agent.supervisor.start(
                Launch(spec.name, spec.generation, command.argv, command.env, serving.port, command.directory)
            )
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as client:
            await self._until_ready(client, spec, serving, chosen.load_limit_s, began)
            self._ready[spec.name] = (spec, chosen.served_name(serving))
            self._report(
                spec,
                READY,
                pid=running.pid,
                port=serving.port,
                load_s=None if adopted else time.monotonic() - began,
                memory=chosen.needed_bytes(serving.size_bytes) if spec.simulated else None,
                max_in_flight=chosen.max_in_flight,
            )
            code = await self.agent.supervisor.wait(spec.name)
        self._forget_simulated(spec.name)
        raise GswarmError(
            f"the backend ended with {f'exit code {code}' if code is not None else 'an unknown exit code'}"
        )

    async def _serving(self, spec: Service, port: int) -> Serving:
        devices = {device.id: device.describe() for device in self.agent.devices}
        missing = [device for device in spec.device_ids if device not in devices]
        if missing:
            raise RefusedError(f"device {missing[0]} is not on this node")
        model = next((m for m in self._wanted.models if m.name == spec.model), None) if self._wanted else None
        version = next((v for v in model.versions if v.version == spec.version), None) if model else None
        size = version.size_bytes if version else 0
        directory = self.store.directory(spec.model, spec.version)
        if not spec.simulated:
            await asyncio.to_thread(self.store.check, spec.model, spec.version)
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
            self.agent.state_dir,
        )

    def _check_memory(self, spec: Service, serving: Serving, needed: int) -> None:
        """Refuse what does not fit now; foreign processes count as what they take."""
        share = needed // len(serving.device_ids)
        for device in self.agent.devices:
            if device.id in serving.device_ids:
                free = device.free_bytes()
                if free is not None and free < share:
                    raise RefusedError(
                        f"{spec.model} does not fit on {device.describe().alias}",
                        why=f"it needs {show_size(share)}, {show_size(free)} are free",
                        next="stop a service there, or choose another device",
                    )
        if spec.port and not self.agent.supervisor.get(spec.name) and not _is_free(spec.port):
            raise RefusedError(f"port {spec.port} is taken on {self.agent.name}", next="choose another --port, or none")

    async def _until_ready(
        self, client: aiohttp.ClientSession, spec: Service, serving: Serving, limit_s: float, began: float
    ) -> None:
        url = f"http://127.0.0.1:{serving.port}"
        while self.agent.supervisor.get(spec.name) is not None:
            try:
                async with client.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
                    body = await answer.json(content_type=None) if answer.status == 503 else {}
                    if isinstance(body, dict) and isinstance(body.get("progress"), float):
                        self._progress(spec, body["progress"])
            except (aiohttp.ClientError, TimeoutError, ValueError):
                pass
            if time.monotonic() - began > limit_s:
                await self.agent.supervisor.stop(spec.name, STOP_GRACE_S)
                raise GswarmError(f"the backend was not ready after {limit_s:g} s")
            await asyncio.sleep(PROBE_S)
        code = await self.agent.supervisor.wait(spec.name)
        raise GswarmError(f"the backend ended while loading, exit code {'unknown' if code is None else code}")

    def _progress(self, spec: Service, fraction: float) -> None:
        self.agent.link.progress_service(
            agent_pb2.ServiceReport(
                name=spec.name,
                observed_generation=spec.generation,
                phase=LOADING,
                progress_permille=int(fraction * 1000),
            )
        )

    def _report(
        self,
        spec: Service,
        phase: models_pb2.ServicePhase.ValueType,
        *,
        detail: str = "",
        failures: int = 0,
        pid: int = 0,
        port: int = 0,
        load_s: float | None = None,
        memory: int | None = None,
        max_in_flight: int = 0,
    ) -> None:
        report = agent_pb2.ServiceReport(
            name=spec.name,
            observed_generation=spec.generation,
            phase=phase,
            detail=detail,
            failures=failures,
            pid=pid,
            bound_port=port,
            progress_permille=1000 if phase == READY else 0,
            max_in_flight=max_in_flight,
        )
        if load_s is not None:
            report.load_s = load_s
        if memory is not None:
            report.memory_bytes = memory
        self.agent.link.report(service=report)

    # Logs

    def read_log(self, request: agent_pb2.ReadLog) -> None:
        """Start or end sending a service's log to the host."""
        if request.cancel:
            if task := self._logs.pop(request.stream_id, None):
                task.cancel()
            return
        self._logs[request.stream_id] = asyncio.create_task(self._send_log(request), name=f"log-{request.service}")

    async def _send_log(self, request: agent_pb2.ReadLog) -> None:
        end = agent_pb2.LogChunk(stream_id=request.stream_id, end=True)
        try:
            pieces = self.agent.supervisor.read_log(
                request.service, request.tail_bytes or 1 << 16, follow=request.follow
            )
            async for piece in pieces:
                self.agent.link.log_chunk(agent_pb2.LogChunk(stream_id=request.stream_id, chunk=piece))
        except GswarmError as error:
            end.error = str(error)
        finally:
            self._logs.pop(request.stream_id, None)
        self.agent.link.log_chunk(end)


async def _in_thread(
    function: object, placement: Placement, progress: object, cancelled: threading.Event
) -> tuple[ModelVersion, int]:
    """Run a blocking download in a thread; when cancelled, tell it to stop and wait until it has."""
    assert callable(function)
    work: asyncio.Task[tuple[ModelVersion, int]] = asyncio.create_task(
        asyncio.to_thread(function, placement, progress, cancelled)
    )
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.gather(work, return_exceptions=True)
        raise


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
