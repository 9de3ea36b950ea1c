"""Data from Python: put values and files, map chunks without a copy, fetch what is on another node."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm.codec import from_proto, to_proto
from gswarm.data import codecs, local, wire
from gswarm.data.types import Chunk, LocationPhase, transfer_done
from gswarm.errors import RefusedError, UnreachableError
from gswarm.v1 import data_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def put_value(swarm: Swarm, value: object, *, name: str = "", holder: str = "", lease_s: float = 0.0) -> Chunk:
    """Store bytes, a numpy array or JSON-like data in this machine's pool.

    Raises InvalidError for what cannot be held exactly, ExhaustedError when shared memory is full.
    """
    socket = local_agent(swarm)[1]
    label = _label(swarm, name, holder, lease_s)
    return from_proto(await asyncio.to_thread(local.put_value, socket, value, label), Chunk)


async def put_file(
    swarm: Swarm, file: codecs.FilePayload, *, name: str = "", holder: str = "", lease_s: float = 0.0
) -> Chunk:
    """Store a file that `codecs.inspect_file` has looked at. A dry run stops there: the result has no id yet."""
    socket = local_agent(swarm)[1]
    if swarm.dry_run:
        return Chunk(type=file.type, dtype=file.dtype, shape=file.shape, size_bytes=file.size_bytes, name=name)
    label = _label(swarm, name, holder, lease_s)
    return from_proto(await asyncio.to_thread(local.put_file, socket, file, label), Chunk)


async def map_chunk(swarm: Swarm, chunk_id: str, *, timeout: float | None = None) -> local.Mapped:
    """Map a chunk read-only; if this machine has no copy, one is transferred first.

    The result's `value()` is the array, data or bytes; arrays are views of the shared pages. Close it when done.
    """
    node, socket = local_agent(swarm)
    chunk = await swarm.get(Chunk, chunk_id)
    if not any(place.node == node and place.phase is LocationPhase.PRESENT for place in chunk.locations):
        response = await swarm.call(data_pb2.TransferRequest(id=chunk_id, node=node))
        asked = from_proto(response.chunk, Chunk)
        await swarm.wait(transfer_done, asked, timeout=timeout)
    return await asyncio.to_thread(local.open_chunk, socket, to_proto(chunk, data_pb2.Chunk))


async def get_file(swarm: Swarm, chunk_id: str, out: Path | None, *, force: bool = False) -> Chunk:
    """Write a chunk to `out` (by default its own name in the working directory), whole or not at all."""
    chunk = await swarm.get(Chunk, chunk_id)
    target = out or Path(Path(chunk.name).name or chunk.id)
    if target.exists() and not force:
        raise RefusedError(f"{target} exists", next="use --force, or --out with another name", field="out")
    with await map_chunk(swarm, chunk_id) as mapped:
        await asyncio.to_thread(local.write_file, mapped, target)
    return chunk


def local_agent(swarm: Swarm) -> tuple[str, Path]:
    """Name and socket of the agent on this machine. Raises UnreachableError when none runs."""
    from gswarm.client.identity import local_agents

    agents = local_agents(swarm.address)
    if not agents:
        raise UnreachableError(
            "no agent of this host runs on this machine",
            next="data is put and read through one: gswarm up, or gswarm client connect HOST:8090",
        )
    return agents[0].name, agents[0].state_dir / wire.SOCKET_NAME


def _label(swarm: Swarm, name: str, holder: str, lease_s: float) -> local.Label:
    return local.Label(name, holder, lease_s, swarm.request_id or uuid.uuid4().hex, swarm.token_text)
