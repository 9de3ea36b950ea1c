"""The host's side of the data pool: who has which chunk, who holds it, what must move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from gswarm.data import references
from gswarm.data.codecs import expected_bytes
from gswarm.data.pool import DIGEST
from gswarm.errors import InvalidError, NotFoundError, RefusedError
from gswarm.host.auth import caller
from gswarm.names import check_name, near
from gswarm.v1 import agent_pb2, cluster_pb2, data_pb2, data_pb2_grpc
from gswarm.v1.data_pb2 import Chunk, Location

if TYPE_CHECKING:
    from gswarm.host.server import HostContext
    from gswarm.host.state import Batch
    from gswarm.host.transaction import Transaction

R = TypeVar("R", bound=Message)

Context = grpc.aio.ServicerContext[Any, Any]
MAX_DIMENSIONS = 64
EXPIRY_CHECK_S = 60.0


class DataService(data_pb2_grpc.DataServicer):
    """Chunks as durable objects; locations on nodes are desired state that agents make true."""

    def __init__(self, host: HostContext) -> None:
        self.store = host.store
        self.nodes = host.nodes
        self._changed = asyncio.Event()
        self.nodes.reports.handle("location", self._located)
        self.nodes.reports.handle_progress(self._progressed)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        data_pb2_grpc.add_DataServicer_to_server(self, server)

    async def run(self) -> None:
        """End leases as they run out."""
        unsubscribe = self.store.subscribe(self._on_batch)
        try:
            while True:
                now = datetime.now(UTC)
                next_end = references.next_expiry(self.store.state.list(Chunk), now)
                wait = EXPIRY_CHECK_S if next_end is None else min(EXPIRY_CHECK_S, (next_end - now).total_seconds())
                if wait > 0:
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(wait):
                            await self._changed.wait()
                    except TimeoutError:
                        pass
                else:
                    await self.store.insist(_expire, method="expire")
        finally:
            unsubscribe()

    def _on_batch(self, batch: Batch) -> None:
        if any(isinstance(change.new, Chunk) for change in batch.changes):
            self._changed.set()

    async def RegisterChunk(
        self, request: data_pb2.RegisterChunkRequest, context: Context
    ) -> data_pb2.RegisterChunkResponse:
        """A sealed chunk, from the agent that has it."""
        who = caller(context)
        check_chunk(request.chunk)
        if request.holder:
            check_name(request.holder, "holder")

        def operation(tx: Transaction) -> data_pb2.RegisterChunkResponse:
            node = request.chunk.locations[0].node
            if tx.get(cluster_pb2.Node, node) is None:
                raise NotFoundError(f"there is no node {node}", field="locations")
            chunk = _same_content(tx, request.chunk) or _new_chunk(tx, request.chunk)
            _put_location(chunk, Location(node=node, phase=data_pb2.LOCATION_PHASE_PRESENT))
            if request.holder:
                references.acquire(chunk, request.holder, actor=tx.actor, lease_s=request.lease_s, now=tx.now)
            tx.put(chunk)
            tx.event("data.put", f"{chunk.id} ({chunk.size_bytes} bytes) put on {node}", subject=chunk)
            return data_pb2.RegisterChunkResponse(revision=tx.revision, chunk=chunk)

        return await self.store.apply(
            operation, actor=who.name, meta=request.meta, method="Data.RegisterChunk", request=request
        )

    async def Acquire(self, request: data_pb2.AcquireRequest, context: Context) -> data_pb2.AcquireResponse:
        """Take or renew a lease."""
        check_name(request.holder, "holder")

        def change(tx: Transaction, chunk: Chunk) -> data_pb2.AcquireResponse:
            references.acquire(chunk, request.holder, actor=tx.actor, lease_s=request.lease_s, now=tx.now)
            tx.put(chunk)
            tx.event("data.acquire", f"{request.holder} holds {chunk.id}", subject=chunk)
            return data_pb2.AcquireResponse(revision=tx.revision, chunk=chunk)

        return await self.store.apply(
            _on(request.id, change),
            actor=caller(context).name,
            meta=request.meta,
            method="Data.Acquire",
            request=request,
        )

    async def Release(self, request: data_pb2.ReleaseRequest, context: Context) -> data_pb2.ReleaseResponse:
        """Give a lease back."""

        def change(tx: Transaction, chunk: Chunk) -> data_pb2.ReleaseResponse:
            references.release(chunk, request.holder)
            tx.put(chunk)
            tx.event("data.release", f"{request.holder} released {chunk.id}", subject=chunk)
            return data_pb2.ReleaseResponse(revision=tx.revision, chunk=chunk)

        return await self.store.apply(
            _on(request.id, change),
            actor=caller(context).name,
            meta=request.meta,
            method="Data.Release",
            request=request,
        )

    async def DeleteChunk(self, request: data_pb2.DeleteChunkRequest, context: Context) -> data_pb2.DeleteChunkResponse:
        """Delete a chunk no one holds; agents drop their copies as they see it gone."""

        def change(tx: Transaction, chunk: Chunk) -> data_pb2.DeleteChunkResponse:
            references.refuse_if_held(chunk)
            tx.delete(Chunk, chunk.id)
            tx.event("data.delete", f"{chunk.id} deleted", subject=chunk)
            return data_pb2.DeleteChunkResponse(revision=tx.revision)

        return await self.store.apply(
            _on(request.id, change),
            actor=caller(context).name,
            meta=request.meta,
            method="Data.DeleteChunk",
            request=request,
        )

    async def Transfer(self, request: data_pb2.TransferRequest, context: Context) -> data_pb2.TransferResponse:
        """Ask that a node have a copy; its agent pulls it."""
        return await self.store.apply(
            transfer(request.id, request.node),
            actor=caller(context).name,
            meta=request.meta,
            method="Data.Transfer",
            request=request,
        )

    def _located(self, tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        """A node has (or failed to get) a copy."""
        told = report.location
        chunk = tx.edit(Chunk, told.chunk_id)
        if chunk is None or told.location.node != node:
            return  # deleted meanwhile; the next desired state tells the node so
        _put_location(chunk, told.location)
        tx.put(chunk)
        if told.location.phase == data_pb2.LOCATION_PHASE_PRESENT:
            tx.event("data.transferred", f"{chunk.id} is on {node}", subject=chunk)
        elif told.location.phase == data_pb2.LOCATION_PHASE_FAILED:
            tx.event("data.failed", f"{chunk.id} did not get to {node}: {told.location.detail}", subject=chunk)

    def _progressed(self, tx: Transaction, node: str, progress: agent_pb2.Progress) -> None:
        for told in progress.locations:
            chunk = tx.edit(Chunk, told.chunk_id)
            if chunk is None:
                continue
            for location in chunk.locations:
                if location.node == node and location.phase == data_pb2.LOCATION_PHASE_PENDING:
                    location.bytes_done = told.location.bytes_done
                    tx.put(chunk)


def transfer(chunk_id: str, node: str) -> Callable[[Transaction], data_pb2.TransferResponse]:
    """The operation that asks for a copy on `node`; also used by the queue's data_transfer tasks."""

    def change(tx: Transaction, chunk: Chunk) -> data_pb2.TransferResponse:
        target = tx.get(cluster_pb2.Node, node)
        if target is None:
            names = [n.name for n in tx.list(cluster_pb2.Node)]
            raise NotFoundError(f"there is no node {node}", next=near(node, names), field="node")
        if target.phase != cluster_pb2.NODE_PHASE_READY:
            raise RefusedError(f"node {node} is not reachable now", why=target.detail, field="node")
        present = data_pb2.LOCATION_PHASE_PRESENT
        if not any(location.phase == present for location in chunk.locations):
            raise RefusedError(f"no node has chunk {chunk.id}", next="put it again")
        if not any(location.node == node and location.phase == present for location in chunk.locations):
            _put_location(chunk, Location(node=node, phase=data_pb2.LOCATION_PHASE_PENDING))
            tx.put(chunk)
            tx.event("data.transfer", f"{chunk.id} goes to {node}", subject=chunk)
        return data_pb2.TransferResponse(revision=tx.revision, chunk=chunk)

    return _on(chunk_id, change)


def check_chunk(chunk: Chunk) -> None:
    """Raise InvalidError unless what an agent says of a chunk can be true."""
    if not DIGEST.fullmatch(chunk.digest):
        raise InvalidError(f"{chunk.digest!r} is no BLAKE3 digest", field="digest")
    if len(chunk.locations) != 1 or not chunk.locations[0].node:
        raise InvalidError("a new chunk is on exactly one node", field="locations")
    if chunk.type == data_pb2.CHUNK_TYPE_UNKNOWN:
        raise InvalidError("a chunk has a type", field="type")
    if len(chunk.shape) > MAX_DIMENSIONS:
        raise InvalidError(f"an array of {len(chunk.shape)} dimensions cannot be stored", field="shape")
    if chunk.name:
        check_name(chunk.name, "name", spaces=True)
    if chunk.type == data_pb2.CHUNK_TYPE_NUMPY:
        if (due := expected_bytes(chunk.dtype, chunk.shape)) != chunk.size_bytes:
            raise InvalidError(
                f"{chunk.dtype}{list(chunk.shape)} takes {due} bytes, not {chunk.size_bytes}", field="shape"
            )
    elif chunk.dtype or chunk.shape:
        raise InvalidError("only arrays have dtype and shape", field="dtype")


def _on(chunk_id: str, change: Callable[[Transaction, Chunk], R]) -> Callable[[Transaction], R]:
    """An operation on a private copy of one chunk."""

    def operation(tx: Transaction) -> R:
        chunk = tx.edit(Chunk, chunk_id)
        if chunk is None:
            raise NotFoundError(
                f"there is no chunk {chunk_id}", next=near(chunk_id, (c.id for c in tx.list(Chunk))), field="id"
            )
        return change(tx, chunk)

    return operation


def _expire(tx: Transaction) -> data_pb2.ReleaseResponse:
    for chunk in list(tx.list(Chunk)):
        if any(h.expires_at.ToDatetime(UTC) <= tx.now for h in chunk.holders):
            edited = tx.edit(Chunk, chunk.id)
            assert edited is not None
            for holder in references.expire(edited, tx.now):
                tx.event("data.expired", f"the lease of {holder.name} on {chunk.id} ran out", subject=chunk)
            tx.put(edited)
    return data_pb2.ReleaseResponse(revision=tx.revision)


def _same_content(tx: Transaction, new: Chunk) -> Chunk | None:
    """The chunk that already stands for these very bytes and this meaning, to be extended by a location."""
    for chunk in tx.list(Chunk):
        if (chunk.digest, chunk.type, chunk.dtype, list(chunk.shape), chunk.name) == (
            new.digest,
            new.type,
            new.dtype,
            list(new.shape),
            new.name,
        ):
            return tx.edit(Chunk, chunk.id)
    return None


def _new_chunk(tx: Transaction, new: Chunk) -> Chunk:
    chunk = Chunk()
    chunk.CopyFrom(new)
    base = chunk.digest[:16]
    chunk.id = base
    number = 1
    while tx.get(Chunk, chunk.id) is not None:
        number += 1
        chunk.id = f"{base}-{number}"
    del chunk.locations[:]
    del chunk.holders[:]
    chunk.created_at.FromDatetime(tx.now)
    chunk.ClearField("last_read_at")
    chunk.actor = tx.actor
    return chunk


def _put_location(chunk: Chunk, location: Location) -> None:
    for index, old in enumerate(chunk.locations):
        if old.node == location.node:
            chunk.locations[index].CopyFrom(location)
            return
    chunk.locations.add().CopyFrom(location)
