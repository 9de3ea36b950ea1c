"""Reading recordings from the host: pulled to this machine, then opened here."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm import net
from gswarm.errors import RefusedError
from gswarm.names import check_name
from gswarm.profiler.export import rows
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Exported
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def pull(swarm: Swarm, name: str, directory: Path) -> None:
    """Copy a recording's files into `directory`. Raises NotFoundError."""
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
    except grpc.aio.AioRpcError as error:
        net.raise_error(error, swarm.address)
    finally:
        stream.cancel()
        if file is not None:
            file.close()


async def export(swarm: Swarm, name: str, form: str, out: Path | None, *, force: bool) -> Exported:
    """Write a session's samples to a file, whole or not at all."""
    target = out or Path(f"{check_name(name, 'session name')}.{form}")
    if target.exists() and not force:
        raise RefusedError(f"{target} exists", next="use --force, or --out with another name", field="out")
    with tempfile.TemporaryDirectory(prefix="gswarm-export-") as temporary:
        await pull(swarm, name, Path(temporary))
        return await asyncio.to_thread(_write, Path(temporary), target, form)


def _write(directory: Path, target: Path, form: str) -> Exported:
    part = target.with_name(f".{target.name}.part")
    count = 0
    try:
        with Recording.open(directory) as recording, part.open("w") as file:
            for line in rows(recording, form):
                file.write(line)
                count += 1
            damage = recording.damage
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return Exported(str(target), count - (1 if form == "csv" and count else 0), "; ".join(damage))
