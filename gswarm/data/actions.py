"""What a person can do with shared data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gswarm.catalogue import Doc, Ref, Short, action
from gswarm.cluster.types import Listing
from gswarm.data.types import Chunk, ChunkType

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


class PutType(Enum):
    """What a file is stored as."""

    FILE = "file"
    JSON = "json"
    NUMPY = "numpy"


@action("data", "put", key="p", effect="stores a copy in this machine's shared memory")
async def put(
    swarm: Swarm,
    path: Annotated[Path, Doc("file to store; .npy becomes an array, .json is checked")],
    *,
    type: Annotated[PutType | None, Doc("store as this, whatever the suffix")] = None,
    name: Annotated[str | None, Doc("label; by default the file's name")] = None,
    holder: Annotated[str | None, Doc("take a lease in this name at once")] = None,
    lease: Annotated[float, Doc("lease of that holder, seconds")] = 3600.0,
) -> Chunk:
    """Store a file in the data pool.

    The bytes go to shared memory on this machine, hashed; any node can then get or transfer them by id.

    Examples:
        gswarm data put embeddings.npy --holder train-7
        gswarm data put prompts.json --name "eval prompts"
    """
    from gswarm.data import access, codecs

    kind = None if type is None else ChunkType(type.value)
    return await access.put_file(
        swarm, codecs.inspect_file(path, kind), name=name or path.name, holder=holder or "", lease_s=lease
    )


@action("data", "get", key="g", read=True, effect="writes the chunk to a file")
async def get(
    swarm: Swarm,
    chunk: Annotated[str, Ref("chunk"), Doc("chunk id")],
    *,
    out: Annotated[Path | None, Short("-O"), Doc("file to write; by default the chunk's name, here")] = None,
    force: Annotated[bool, Doc("overwrite the file if it exists")] = False,
) -> Chunk:
    """Write a chunk to a file, fetching it to this machine first if need be.

    Examples:
        gswarm data get 4f1c9e0a77b2d853 --out embeddings.npy
    """
    from gswarm.data import access

    return await access.get_file(swarm, chunk, out, force=force)


@action("data", "list", read=True)
async def list_(
    swarm: Swarm,
    *,
    filter: Annotated[
        list[str], Doc("field=value, field!=value or field~part, by column or by name in JSON; repeat to narrow")
    ] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "-created_at",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Chunk]:
    """List chunks: what they are, who holds them, where they are.

    Examples:
        gswarm data list
        gswarm data list --filter type=numpy --sort -size_bytes
    """
    return await swarm.list(Chunk, filters=tuple(filter), sort=sort, limit=limit)


@action("data", "info", key="a", read=True)
async def info(swarm: Swarm, chunk: Annotated[str, Ref("chunk"), Doc("chunk id")]) -> Chunk:
    """Show one chunk with every holder and location.

    Examples:
        gswarm data info 4f1c9e0a77b2d853
    """
    return await swarm.get(Chunk, chunk)


@action("data", "acquire", effect="keeps the chunk from being deleted until the lease ends")
async def acquire(
    swarm: Swarm,
    chunk: Annotated[str, Ref("chunk"), Doc("chunk id")],
    *,
    holder: Annotated[str, Doc("who holds it; the same name again renews")],
    lease: Annotated[float, Doc("seconds")] = 3600.0,
) -> Chunk:
    """Take a named lease on a chunk, or renew it.

    Examples:
        gswarm data acquire 4f1c9e0a77b2d853 --holder train-7 --lease 86400
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import data_pb2

    response = await swarm.call(data_pb2.AcquireRequest(id=chunk, holder=holder, lease_s=lease))
    return from_proto(response.chunk, Chunk)


@action("data", "release", effect="gives a lease back")
async def release(
    swarm: Swarm,
    chunk: Annotated[str, Ref("chunk"), Doc("chunk id")],
    *,
    holder: Annotated[str, Doc("the name that holds it")],
) -> Chunk:
    """Give a lease back.

    Examples:
        gswarm data release 4f1c9e0a77b2d853 --holder train-7
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import data_pb2

    response = await swarm.call(data_pb2.ReleaseRequest(id=chunk, holder=holder))
    return from_proto(response.chunk, Chunk)


@action("data", "delete", key="D", destructive=True, effect="deletes every copy")
async def delete(swarm: Swarm, chunk: Annotated[str, Ref("chunk"), Doc("chunk id")]) -> None:
    """Delete a chunk everywhere; refused while anyone holds it.

    Examples:
        gswarm data delete 4f1c9e0a77b2d853
    """
    from gswarm.v1 import data_pb2

    await swarm.call(data_pb2.DeleteChunkRequest(id=chunk))


@action("data", "transfer", key="t", until="gswarm.data.types:transfer_done", effect="copies the chunk to another node")
async def transfer(
    swarm: Swarm,
    chunk: Annotated[str, Ref("chunk"), Doc("chunk id")],
    node: Annotated[str, Ref("node"), Doc("node that shall have a copy")],
) -> Chunk:
    """Copy a chunk to another node, directly between the two, verified by digest.

    Examples:
        gswarm data transfer 4f1c9e0a77b2d853 n2
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import data_pb2

    response = await swarm.call(data_pb2.TransferRequest(id=chunk, node=node))
    return from_proto(response.chunk, Chunk)
