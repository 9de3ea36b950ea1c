"""Placements of a node made true: versions brought into its store, those no longer wanted deleted."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gswarm.errors import GswarmError, NotFoundError
from gswarm.model.sources.source import (
    Cancelled,
    Source,
    SourceFile,
    open_source,
    simulated_size,
    without_secrets,
)
from gswarm.model.store import ModelStore, check_path, facts, hash_file
from gswarm.v1 import agent_pb2, models_pb2
from gswarm.v1.models_pb2 import ModelFile, ModelVersion, Placement

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

T = TypeVar("T")
log = logging.getLogger("gswarm.agent")
STORED, FAILED = models_pb2.PLACEMENT_PHASE_STORED, models_pb2.PLACEMENT_PHASE_FAILED


@dataclass(eq=False)
class _Download:
    """A placement being made."""

    generation: int
    task: asyncio.Task[None]
    cancelled: threading.Event


class Downloads:
    """One task for each placement that is being made."""

    def __init__(self, agent: Agent, store: ModelStore, ended: Callable[[], None]) -> None:
        """`ended` is called after each: the desired state is to be looked at again."""
        self._agent, self._store, self._ended = agent, store, ended
        self._under_way: dict[str, _Download] = {}
        self._settled: dict[str, int] = {}
        """Generation of each placement that is made and reported; the host may not know it yet."""

    async def reconcile(self, state: agent_pb2.DesiredState, group: asyncio.TaskGroup) -> None:
        """End what is no longer wanted, delete it, begin what is not there."""
        wanted = {placement.id: placement for placement in state.placements}
        for key, download in list(self._under_way.items()):
            placement = wanted.get(key)
            if placement is None or placement.generation != download.generation:
                download.cancelled.set()
                download.task.cancel()
                await asyncio.gather(download.task, return_exceptions=True)
                self._under_way.pop(key, None)
        self._settled = {key: generation for key, generation in self._settled.items() if key in wanted}
        keep = {(placement.model, placement.version) for placement in wanted.values()}
        for model, version in await asyncio.to_thread(self._store.versions):
            if (model, version) not in keep:
                await asyncio.to_thread(self._store.delete_version, model, version)
        for key, placement in wanted.items():
            if key not in self._under_way and not self._is_settled(placement):
                cancelled = threading.Event()
                task = group.create_task(self._download(placement, cancelled), name=f"download-{key}")
                self._under_way[key] = _Download(placement.generation, task, cancelled)

    def _is_settled(self, placement: Placement) -> bool:
        known = placement.observed_generation == placement.generation and placement.phase in (STORED, FAILED)
        return known or self._settled.get(placement.id) == placement.generation

    async def _download(self, placement: Placement, cancelled: threading.Event) -> None:
        """Make one placement; ends in a report, never in an error."""
        report = agent_pb2.PlacementReport(id=placement.id, observed_generation=placement.generation)
        tell = partial(self._tell, asyncio.get_running_loop(), placement)
        try:
            if placement.source.startswith("simulated:"):
                size = simulated_size(placement.source)
                version = ModelVersion(version=placement.version, size_bytes=size, digest="", source=placement.source)
                shared = 0
            else:
                version, shared = await _in_thread(partial(self._bring, placement, tell, cancelled), cancelled)
                directory = self._store.directory(placement.model, placement.version)
                report.metadata.update(await asyncio.to_thread(facts, directory))
            report.phase, report.bytes_shared = STORED, shared
            report.bytes_done = report.bytes_total = version.size_bytes
            version.source = without_secrets(placement.source)
            report.version.CopyFrom(version)
        except Cancelled:
            return
        except Exception as error:
            if not isinstance(error, GswarmError | OSError):
                log.exception("download of %s@%s failed", placement.model, placement.version)
            report.phase, report.detail = FAILED, str(error)
            await asyncio.to_thread(self._store.give_up, placement.model, placement.version)
        finally:
            self._under_way.pop(placement.id, None)
        self._settled[placement.id] = placement.generation
        self._agent.link.report(placement=report)
        self._ended()

    def _tell(self, loop: asyncio.AbstractEventLoop, placement: Placement, done: int, total: int) -> None:
        """How far a download is, said from its thread."""
        told = agent_pb2.PlacementReport(
            id=placement.id,
            observed_generation=placement.generation,
            phase=models_pb2.PLACEMENT_PHASE_DOWNLOADING,
            bytes_done=done,
            bytes_total=total,
        )
        loop.call_soon_threadsafe(self._agent.link.progress_placement, told)

    def _bring(
        self, placement: Placement, tell: Callable[[int, int], None], cancelled: threading.Event
    ) -> tuple[ModelVersion, int]:
        """Bring every file of a version into the store; (version, bytes that were here already). Blocks."""
        try:
            return self._store.check(placement.model, placement.version, read=True), 0
        except NotFoundError:
            pass
        except GswarmError as error:
            log.warning("%s: %s; it is brought anew", error.what, error.why)
        roots = None if self._agent.loopback else tuple(Path(root) for root in self._agent.config.client.file_roots)
        source = open_source(placement.source, file_roots=roots)
        offered = source.files()
        for file in offered:
            check_path(file.path)
        making = self._store.making(placement.model, placement.version)
        total = sum(file.size_bytes or 0 for file in offered)
        files: list[ModelFile] = []
        done = shared = 0

        def moved(before: int, size: int) -> None:
            tell(before + size, total)

        for number, file in enumerate(offered):
            if cancelled.is_set():
                raise Cancelled
            kept, is_new = self._bring_file(source, file, making, f"part-{number}", partial(moved, done), cancelled)
            shared += 0 if is_new else kept.size_bytes
            files.append(kept)
            done += kept.size_bytes
            tell(done, max(total, done))
        self._store.put_version(placement.model, placement.version, files)
        return self._store.check(placement.model, placement.version), shared

    def _bring_file(
        self,
        source: Source,
        file: SourceFile,
        making: Path,
        part: str,
        moved: Callable[[int], None],
        cancelled: threading.Event,
    ) -> tuple[ModelFile, bool]:
        """Copy or fetch one file; it, and whether the store did not have it yet. `part` keeps what a cut leaves."""
        store = self._store
        if (local := source.local(file)) is not None:
            digest = hash_file(local)
            size = local.stat().st_size
            is_new = store.copy_in(local, digest, making, moved)
        else:
            target = making / part
            store.need((file.size_bytes or 0) - (target.stat().st_size if target.exists() else 0))
            with store.writing():
                source.fetch(file, target, moved, cancelled)
                digest, size = hash_file(target), target.stat().st_size
                is_new = store.adopt(target, digest, making)
        return ModelFile(path=file.path, size_bytes=size, digest=digest), is_new


async def _in_thread(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Run blocking work in a thread; when cancelled, tell it to stop and wait until it has."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.gather(task, return_exceptions=True)
        raise
