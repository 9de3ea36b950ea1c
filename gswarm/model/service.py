"""The host's side of models: RPCs over the store, and what agents report of placements and services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from gswarm.errors import InvalidError, NotFoundError
from gswarm.host.auth import caller
from gswarm.model import operations
from gswarm.names import near
from gswarm.v1 import agent_pb2, common_pb2, models_pb2, models_pb2_grpc
from gswarm.v1.cluster_pb2 import Node
from gswarm.v1.models_pb2 import Model, Placement, Service

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.transaction import Transaction

Context = grpc.aio.ServicerContext[Any, Any]
R = TypeVar("R")
TAIL_BYTES = 1 << 16
METADATA_LIMIT = 64


class ModelService(models_pb2_grpc.ModelsServicer):
    """Registry, placements and services."""

    def __init__(self, host: HostContext) -> None:
        self.host, self.store = host, host.store
        host.nodes.reports.handle("placement", self._placed)
        host.nodes.reports.handle("service", self._served)
        host.nodes.reports.handle_progress(self._progressed)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        models_pb2_grpc.add_ModelsServicer_to_server(self, server)

    async def run(self) -> None:
        """Nothing in the background: agents do the work."""

    async def Download(self, request: models_pb2.DownloadRequest, context: Context) -> models_pb2.DownloadResponse:
        """Register and fetch."""
        return await self._apply(operations.download(request), request, "Models.Download")

    async def DeleteModel(
        self, request: models_pb2.DeleteModelRequest, context: Context
    ) -> models_pb2.DeleteModelResponse:
        """Remove."""
        return await self._apply(operations.delete_model(request), request, "Models.DeleteModel")

    async def Serve(self, request: models_pb2.ServeRequest, context: Context) -> models_pb2.ServeResponse:
        """Ask for a service."""
        return await self._apply(operations.serve(request), request, "Models.Serve")

    async def StopService(
        self, request: models_pb2.StopServiceRequest, context: Context
    ) -> models_pb2.StopServiceResponse:
        """Ask for its end."""
        return await self._apply(operations.stop_service(request.name), request, "Models.StopService")

    async def Annotate(self, request: models_pb2.AnnotateRequest, context: Context) -> models_pb2.AnnotateResponse:
        """Metadata entries."""

        def operation(tx: Transaction) -> models_pb2.AnnotateResponse:
            model = operations.find_model(tx, request.name)
            for key in request.clear:
                model.metadata.pop(key, None)
            model.metadata.update(dict(request.set))
            if len(model.metadata) > METADATA_LIMIT or any(
                len(k) > 100 or len(v) > 1000 for k, v in model.metadata.items()
            ):
                raise InvalidError(
                    "that is too much metadata",
                    why=f"at most {METADATA_LIMIT} entries of 100 and 1,000 characters",
                    field="set",
                )
            tx.put(model)
            tx.event("model.annotated", f"metadata of {model.name} changed", subject=model)
            return models_pb2.AnnotateResponse(revision=tx.revision, model=model)

        return await self._apply(operation, request, "Models.Annotate")

    async def ServiceLogs(
        self, request: models_pb2.ServiceLogsRequest, context: Context
    ) -> AsyncIterator[models_pb2.ServiceLogsResponse]:
        """From the service's node."""
        service = self.store.state.get(Service, request.name)
        if service is None:
            names = [s.name for s in self.store.state.list(Service)]
            raise NotFoundError(f"there is no service {request.name}", next=near(request.name, names), field="name")
        pieces = self.host.nodes.read_log(
            service.node, service.name, request.tail_bytes or TAIL_BYTES, follow=request.follow
        )
        async for piece in pieces:
            yield models_pb2.ServiceLogsResponse(chunk=piece)

    async def _apply(self, operation: Callable[[Transaction], R], request: Any, method: str) -> R:
        return await self.store.apply(operation, actor=caller().name, meta=request.meta, method=method, request=request)

    # What agents report

    def _placed(self, tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        told = report.placement
        placement = tx.edit(Placement, told.id)
        if placement is None or placement.node != node or told.observed_generation < placement.generation:
            return  # of an older wish, or none any more
        if (placement.phase, placement.observed_generation) == (told.phase, told.observed_generation):
            return  # an agent that was restarted finds the files again, and says so again
        placement.phase, placement.detail = told.phase, told.detail
        placement.observed_generation = told.observed_generation
        placement.bytes_done, placement.bytes_total = told.bytes_done, told.bytes_total
        placement.bytes_shared = told.bytes_shared
        placement.changed_at.FromDatetime(tx.now)
        tx.put(placement)
        if told.phase == models_pb2.PLACEMENT_PHASE_STORED:
            self._stored(tx, placement, told)
            tx.event("model.stored", f"{placement.model}@{placement.version} is on {node}", subject=placement)
        elif told.phase == models_pb2.PLACEMENT_PHASE_FAILED:
            tx.event(
                "model.failed",
                f"{placement.model}@{placement.version} did not get to {node}: {told.detail}",
                subject=placement,
                severity=common_pb2.SEVERITY_ERROR,
            )

    def _stored(self, tx: Transaction, placement: Placement, told: agent_pb2.PlacementReport) -> None:
        model = tx.edit(Model, placement.model)
        if model is None:
            return
        for version in model.versions:
            if version.version == placement.version and told.HasField("version"):
                version.digest, version.size_bytes = told.version.digest, told.version.size_bytes
                del version.files[:]
                version.files.extend(told.version.files)
                if version.version == model.default_version:
                    model.size_bytes = version.size_bytes
        for key, value in told.metadata.items():
            if key not in model.metadata:
                model.metadata[key] = value
        tx.put(model)

    def _served(self, tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        told = report.service
        service = tx.edit(Service, told.name)
        if service is None or service.node != node or told.observed_generation < service.observed_generation:
            return
        is_end = service.stop and told.phase == models_pb2.SERVICE_PHASE_STOPPED
        if told.observed_generation < service.generation and not is_end:
            return  # of an older wish: the newer one is on its way
        before = service.phase
        service.observed_generation = told.observed_generation
        service.phase, service.detail, service.failures = told.phase, told.detail, told.failures
        service.pid, service.bound_port = told.pid, told.bound_port
        service.progress_permille = told.progress_permille
        if told.max_in_flight:
            service.max_in_flight = told.max_in_flight
        if told.HasField("load_s"):
            service.load_s = told.load_s
        service.ClearField("memory_bytes")
        if told.HasField("memory_bytes"):
            service.memory_bytes = told.memory_bytes
        if told.phase != models_pb2.SERVICE_PHASE_READY:
            service.ClearField("tokens_per_s")
            service.in_flight = 0
        service.changed_at.FromDatetime(tx.now)
        tx.put(service)
        if told.phase == before:
            return
        names = {
            models_pb2.SERVICE_PHASE_READY: ("service.ready", common_pb2.SEVERITY_INFO),
            models_pb2.SERVICE_PHASE_STOPPED: ("service.stopped", common_pb2.SEVERITY_INFO),
            models_pb2.SERVICE_PHASE_FAILED: ("service.failed", common_pb2.SEVERITY_ERROR),
            models_pb2.SERVICE_PHASE_PENDING: ("service.restarting", common_pb2.SEVERITY_WARNING),
        }
        if told.phase in names:
            name, severity = names[told.phase]
            what = name.partition(".")[2]
            tx.event(
                name,
                f"{service.name} is {what} on {node}{f': {told.detail}' if told.detail else ''}",
                subject=service,
                severity=severity,
            )

    def _progressed(self, tx: Transaction, node: str, progress: agent_pb2.Progress) -> None:
        if progress.HasField("facts") and (known := tx.edit(Node, node)) is not None:
            known.store_free_bytes = progress.facts.store_free_bytes
            known.backends[:] = progress.facts.backends
            tx.put(known)
        for told in progress.services:
            service = tx.edit(Service, told.name)
            if (
                service is None
                or service.node != node
                or told.observed_generation != service.generation
                or service.stop
            ):
                continue
            if told.phase == models_pb2.SERVICE_PHASE_LOADING and service.phase != models_pb2.SERVICE_PHASE_READY:
                service.phase, service.progress_permille = told.phase, told.progress_permille
            if told.HasField("tokens_per_s"):
                service.tokens_per_s = told.tokens_per_s
            tx.put(service)
        for placed in progress.placements:
            placement = tx.edit(Placement, placed.id)
            if placement is None or placement.node != node or placed.observed_generation != placement.generation:
                continue
            if placement.phase in (models_pb2.PLACEMENT_PHASE_PENDING, models_pb2.PLACEMENT_PHASE_DOWNLOADING):
                placement.phase = models_pb2.PLACEMENT_PHASE_DOWNLOADING
                placement.bytes_done, placement.bytes_total = placed.bytes_done, placed.bytes_total
                tx.put(placement)
