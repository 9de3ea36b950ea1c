"""The host's side of the cluster's own requests: watch, status, nodes, tokens, shutdown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from gswarm.errors import NotFoundError, RefusedError
from gswarm.host.auth import caller
from gswarm.host.watch import Watcher
from gswarm.names import near
from gswarm.v1 import cluster_pb2, cluster_pb2_grpc, data_pb2, models_pb2

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.transaction import Transaction

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterService(cluster_pb2_grpc.ClusterServicer):
    """Reads of everything, and changes of nodes and tokens."""

    def __init__(self, host: HostContext) -> None:
        self.host = host

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer; Watch hands out bytes that are serialised already."""
        cluster_pb2_grpc.add_ClusterServicer_to_server(self, _RawWatch(server))  # type: ignore[arg-type]

    async def run(self) -> None:
        """Nothing in the background."""

    async def Watch(  # type: ignore[override]
        self, request: cluster_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """List, then follow."""
        async for message in Watcher(self.host.store, self.host.hub, request).follow():
            yield message

    async def Status(self, request: cluster_pb2.StatusRequest, context: Context) -> cluster_pb2.StatusResponse:
        """The host itself."""
        response = self.host.status()
        response.role = caller(context).role
        return response

    async def ForgetNode(
        self, request: cluster_pb2.ForgetNodeRequest, context: Context
    ) -> cluster_pb2.ForgetNodeResponse:
        """Drop a node that is away, and what was only there."""

        def operation(tx: Transaction) -> cluster_pb2.ForgetNodeResponse:
            node = tx.get(cluster_pb2.Node, request.name)
            if node is None:
                names = [n.name for n in tx.list(cluster_pb2.Node)]
                raise NotFoundError(f"there is no node {request.name}", next=near(request.name, names), field="name")
            if node.phase == cluster_pb2.NODE_PHASE_READY:
                raise RefusedError(f"node {request.name} is attached", next="stop its agent first", field="name")
            for device in list(tx.list(cluster_pb2.Device)):
                if device.node == request.name:
                    tx.delete(cluster_pb2.Device, device.id)
            for placement in list(tx.list(models_pb2.Placement)):
                if placement.node == request.name:
                    tx.delete(models_pb2.Placement, placement.id)
            for service in list(tx.list(models_pb2.Service)):
                if service.node == request.name:
                    tx.delete(models_pb2.Service, service.name)
            for chunk in list(tx.list(data_pb2.Chunk)):
                _forget_copy(tx, chunk, request.name)
            tx.put_value(f"reports:{request.name}", None)
            tx.delete(cluster_pb2.Node, request.name)
            tx.event("node.forgotten", f"{request.name} forgotten", subject=node)
            return cluster_pb2.ForgetNodeResponse(revision=tx.revision)

        response = await self.host.store.apply(
            operation, actor=caller(context).name, meta=request.meta, method="Cluster.ForgetNode", request=request
        )
        if not request.meta.dry_run:
            self.host.hub.forget(request.name)
        return response

    async def CreateToken(
        self, request: cluster_pb2.CreateTokenRequest, context: Context
    ) -> cluster_pb2.CreateTokenResponse:
        """Make a token."""
        return await self.host.auth.create(request, caller(context))

    async def RevokeToken(
        self, request: cluster_pb2.RevokeTokenRequest, context: Context
    ) -> cluster_pb2.RevokeTokenResponse:
        """Revoke a token."""
        return await self.host.auth.revoke(request, caller(context))

    async def ListTokens(
        self, request: cluster_pb2.ListTokensRequest, context: Context
    ) -> cluster_pb2.ListTokensResponse:
        """Names and roles."""
        return cluster_pb2.ListTokensResponse(tokens=await self.host.auth.tokens())

    async def Shutdown(self, request: cluster_pb2.ShutdownRequest, context: Context) -> cluster_pb2.ShutdownResponse:
        """Stop after the answer."""
        self.host.stopping.set()
        return cluster_pb2.ShutdownResponse()


class _RawWatch:
    """Stands between generated registration and the server, to leave Watch's bytes as they are."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the registered handlers below are the ones used."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Register, with Watch unserialised."""
        watch = handlers["Watch"]
        handlers["Watch"] = grpc.unary_stream_rpc_method_handler(watch.unary_stream, watch.request_deserializer, None)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _forget_copy(tx: Transaction, chunk: data_pb2.Chunk, node: str) -> None:
    if not any(place.node == node for place in chunk.locations):
        return
    edited = tx.edit(data_pb2.Chunk, chunk.id)
    assert edited is not None
    kept = [place for place in chunk.locations if place.node != node]
    del edited.locations[:]
    edited.locations.extend(kept)
    tx.put(edited)
