"""The agent's side of the data pool: serves local clients over a Unix socket and pulls copies that are wanted here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm.data import wire
from gswarm.data.pool import Pool, Reservation
from gswarm.data.pull import Cancelled, Source, pull
from gswarm.data.types import ChunkType
from gswarm.errors import GswarmError, InvalidError
from gswarm.v1 import agent_pb2, common_pb2, data_pb2

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

PULLS_AT_ONCE = 2
RETRY_S = (1.0, 5.0, 30.0)


def pool_root(state_dir: Path) -> Path:
    """Where a node's chunks lie: on shared memory, one directory per agent state directory."""
    base = Path(os.environ.get("GSWARM_SHM_DIR", f"/dev/shm/gswarm-{os.getuid()}"))
    return base / hashlib.blake2b(str(state_dir).encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class _Client:
    """One local connection and the space it has reserved but not yet sealed."""

    sock: socket.socket
    reservations: dict[str, Reservation] = field(default_factory=dict)


class DataWorker:
    """Holds the node's pool; makes the locations that the host wants here true."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.pool = Pool(pool_root(agent.state_dir))
        self.pool.drop_unfinished()
        self.socket_path = agent.state_dir / wire.SOCKET_NAME
        self._wanted: agent_pb2.DesiredState | None = None
        self._changed = asyncio.Event()
        self._registering: set[str] = set()
        self._registered_at: dict[str, int] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PULLS_AT_ONCE)
        self._group: asyncio.TaskGroup | None = None
        agent.peer.add_file_route("/chunks/", self.pool.path)

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """Remember the newest desired state; `run` acts on it."""
        self._wanted = state
        self._changed.set()

    async def run(self) -> None:
        """Serve and reconcile until cancelled."""
        listener = self._listen()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._accept(listener, group), name="data-socket")
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if self._wanted is not None:
                        self._reconcile(self._wanted, group)
        finally:
            listener.close()
            self.socket_path.unlink(missing_ok=True)

    # Desired state

    def _reconcile(self, state: agent_pb2.DesiredState, group: asyncio.TaskGroup) -> None:
        wanted = {chunk.digest: chunk for chunk in state.chunks}
        for digest in list(self.pool.digests()):
            # A chunk just registered may be missing from a state that was made before it.
            newer = self._registered_at.get(digest, 0) > state.revision
            if digest not in wanted and digest not in self._registering and not newer:
                self.pool.delete(digest)
                self._registered_at.pop(digest, None)
        for chunk in state.chunks:
            mine = next((place for place in chunk.locations if place.node == self.agent.name), None)
            if mine is None:
                continue
            if mine.phase == data_pb2.LOCATION_PHASE_PENDING and chunk.id not in self._pulls:
                task = group.create_task(self._fetch(chunk), name=f"pull-{chunk.id}")
                self._pulls[chunk.id] = task
                task.add_done_callback(partial(self._pulled, chunk.id))
            elif mine.phase == data_pb2.LOCATION_PHASE_PRESENT and chunk.digest not in self.pool:
                # Shared memory does not outlive a reboot: say so rather than offer what is gone.
                self._report(chunk.id, data_pb2.LOCATION_PHASE_FAILED, "the copy was lost when the machine restarted")
        ids = {chunk.id for chunk in state.chunks}
        for chunk_id, task in list(self._pulls.items()):
            if chunk_id not in ids:
                task.cancel()

    def _pulled(self, chunk_id: str, _: asyncio.Task[None]) -> None:
        self._pulls.pop(chunk_id, None)

    async def _fetch(self, chunk: data_pb2.Chunk) -> None:
        """Pull one chunk from whoever has it, then report; errors end in a failed location, never in this task."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._slots:
            detail = ""
            for pause in (0.0, *RETRY_S):
                await asyncio.sleep(pause)
                for source in self._sources(chunk):
                    try:
                        await self._pull_in_thread(chunk, source)
                    except GswarmError as error:
                        detail = str(error)
                    else:
                        self._report(chunk.id, data_pb2.LOCATION_PHASE_PRESENT, "", loop.time() - began)
                        return
            detail = detail or "no node that has it can be reached"
            self._report(chunk.id, data_pb2.LOCATION_PHASE_FAILED, detail)

    async def _pull_in_thread(self, chunk: data_pb2.Chunk, source: Source) -> None:
        if chunk.digest in self.pool:
            return
        loop, cancelled = asyncio.get_running_loop(), threading.Event()

        def progress(done: int) -> None:
            location = data_pb2.Location(node=self.agent.name, phase=data_pb2.LOCATION_PHASE_PENDING, bytes_done=done)
            told = agent_pb2.LocationReport(chunk_id=chunk.id, location=location)
            loop.call_soon_threadsafe(self.agent.link.progress_location, told)

        work = asyncio.create_task(
            asyncio.to_thread(pull, self.pool, chunk.digest, chunk.size_bytes, source, progress, cancelled)
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            try:
                await work
            except (Cancelled, GswarmError):
                pass
            raise

    def _sources(self, chunk: data_pb2.Chunk) -> Iterable[Source]:
        peers = {node.name: node for node in self._wanted.peers} if self._wanted else {}
        for place in chunk.locations:
            peer = peers.get(place.node)
            if place.phase == data_pb2.LOCATION_PHASE_PRESENT and place.node != self.agent.name and peer:
                yield Source(
                    peer.name, peer.peer_host, peer.peer_port, self.agent.peer.token, self.agent.peer.client_tls(peer)
                )

    def _report(
        self, chunk_id: str, phase: data_pb2.LocationPhase.ValueType, detail: str, seconds: float | None = None
    ) -> None:
        location = data_pb2.Location(node=self.agent.name, phase=phase, detail=detail)
        if seconds is not None:
            location.transfer_s = seconds
        self.agent.link.report(location=agent_pb2.LocationReport(chunk_id=chunk_id, location=location))

    # Local clients

    def _listen(self) -> socket.socket:
        self.socket_path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with wire.reachable(self.socket_path) as address:
            listener.bind(address)
        self.socket_path.chmod(0o600)
        listener.listen(64)
        return listener

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in (os.getuid(), 0):
                sock.close()
                continue
            sock.setblocking(False)
            group.create_task(self._serve(_Client(sock)), name="data-client")

    async def _serve(self, client: _Client) -> None:
        """Answer one client until it goes; what it reserved and never sealed is given back."""
        try:
            while data := await _receive(client.sock):
                try:
                    answer, fd = await self._answer(client, wire.unpack(data))
                except GswarmError as error:
                    answer, fd = wire.Refused.of(error), None
                except (OSError, ValueError, OverflowError) as error:
                    # A full table of files, a number no field holds: one client's trouble, never the agent's end.
                    odd = GswarmError("the data pool could not do that", why=str(error), next="run gswarm doctor")
                    answer, fd = wire.Refused.of(odd), None
                try:
                    socket.send_fds(client.sock, [wire.pack(answer)], [] if fd is None else [fd])
                finally:
                    if isinstance(answer, wire.Opened) and fd is not None:
                        os.close(fd)
        except (ConnectionError, BlockingIOError):
            pass  # it went away, or never reads: either way it gets nothing more
        finally:
            client.sock.close()
            for reservation in client.reservations.values():
                self.pool.abandon(reservation)

    async def _answer(self, client: _Client, said: wire.Said) -> tuple[wire.Said, int | None]:
        match said:
            case wire.Reserve(size):
                reservation = await asyncio.to_thread(self.pool.reserve, size)
                client.reservations[reservation.name] = reservation
                return wire.Reserved(reservation.name), reservation.fd
            case wire.Seal():
                return wire.Sealed((await self._seal(client, said)).SerializeToString().hex()), None
            case wire.Open(digest):
                fd = self.pool.open(digest)
                return wire.Opened(os.fstat(fd).st_size), fd
            case _:
                raise InvalidError(f"{type(said).__name__} is an answer, not a request")

    async def _seal(self, client: _Client, said: wire.Seal) -> data_pb2.Chunk:
        reservation = client.reservations.get(said.reservation)
        if reservation is None:
            raise InvalidError("nothing is reserved under that name", field="reservation")
        digest = await asyncio.to_thread(self.pool.digest, reservation)
        self._registering.add(digest)
        try:
            del client.reservations[reservation.name]
            kept = self.pool.seal(reservation, digest)
            try:
                return await self._register(said, digest, reservation.size_bytes)
            except Exception:
                if kept:
                    self.pool.delete(digest)
                raise
        finally:
            self._registering.discard(digest)

    async def _register(self, said: wire.Seal, digest: str, size_bytes: int) -> data_pb2.Chunk:
        if said.type not in {known.value for known in ChunkType}:
            raise InvalidError(f"there are no chunks of type {said.type!r}", field="type")
        chunk = data_pb2.Chunk(
            type=data_pb2.ChunkType.Value(f"CHUNK_TYPE_{said.type.upper()}"),
            dtype=said.dtype,
            shape=said.shape,
            size_bytes=size_bytes,
            digest=digest,
            name=said.name,
            locations=[data_pb2.Location(node=self.agent.name)],
        )
        request = data_pb2.RegisterChunkRequest(
            meta=common_pb2.RequestMeta(request_id=said.request_id),
            chunk=chunk,
            holder=said.holder,
            lease_s=said.lease_s,
        )
        # The log names who put it: their token when they gave one, else this node.
        swarm = self.agent.swarm.using(token=said.token) if said.token else self.agent.swarm
        response: data_pb2.RegisterChunkResponse = await swarm.call(request)
        self._registered_at[digest] = response.revision
        return response.chunk


async def _receive(sock: socket.socket) -> bytes:
    """The next datagram; empty when the client is gone."""
    return await asyncio.get_running_loop().sock_recv(sock, wire.MAX_MESSAGE)
