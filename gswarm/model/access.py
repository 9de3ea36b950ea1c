"""Reading a service's log through the host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from gswarm import net
from gswarm.v1 import models_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def read_logs(swarm: Swarm, service: str, tail: int, *, follow: bool) -> AsyncIterator[bytes]:
    """Pieces of the log as they come. Raises NotFoundError, UnreachableError."""
    import grpc.aio

    stream = swarm.channel.unary_stream(
        "/gswarm.v1.Models/ServiceLogs",
        request_serializer=models_pb2.ServiceLogsRequest.SerializeToString,
        response_deserializer=models_pb2.ServiceLogsResponse.FromString,
    )(
        models_pb2.ServiceLogsRequest(name=service, tail_bytes=tail, follow=follow),
        metadata=net.bearer(swarm.token_text),
    )
    try:
        async for part in stream:
            yield part.chunk
    except grpc.aio.AioRpcError as error:
        net.raise_error(error, swarm.address)
    finally:
        stream.cancel()
