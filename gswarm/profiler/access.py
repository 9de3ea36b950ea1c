"""Reading recordings from the host: pulled to this machine."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm import net
from gswarm.errors import InvalidError
from gswarm.names import check_name
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def pull(swarm: Swarm, name: str, directory: Path) -> None:
    """Copy a recording's files into `directory`. Raises NotFoundError, or InvalidError when it cannot be written."""
    import grpc.aio

    stream = swarm.channel.unary_stream(
        "/gswarm.v1.Profiler/ReadRecording",
        request_serializer=profiler_pb2.ReadRecordingRequest.SerializeToString,
        response_deserializer=profiler_pb2.ReadRecordingResponse.FromString,
    )(profiler_pb2.ReadRecordingRequest(name=name), metadata=net.bearer(swarm.token_text))
    file = None
    try:
        async for part in stream:
            if part.path:
                if file is not None:
                    file.close()
                # The name comes from the host, which is a peer too.
                file = (directory / check_name(part.path, "file name")).open("wb")
            if file is not None:
                await asyncio.to_thread(file.write, part.chunk)
        if file is not None:
            file.close()
    except grpc.aio.AioRpcError as error:
        net.raise_error(error, swarm.address)
    except OSError as error:
        raise InvalidError(
            f"cannot write {directory}", why=(error.strerror or str(error)).lower(), field="out"
        ) from None
    finally:
        stream.cancel()
        if file is not None:
            with contextlib.suppress(OSError):  # what is buffered still: it has failed above
                file.close()
