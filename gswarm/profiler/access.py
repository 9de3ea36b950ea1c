"""What actions do with sessions and recordings from the client's side: start, pull, recover, and open what was pulled."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm import net
from gswarm.config import state_dir
from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.names import check_name
from gswarm.profiler.export import rows
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Exported, Pulled, Recovered, Session, parse_tags
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def start(
    swarm: Swarm,
    name: str,
    interval: float,
    nodes: Sequence[str],
    metrics: Sequence[str],
    tags: Sequence[str],
    duration: str = "",
    until_task: str = "",
) -> Session:
    """Start a session. Raises InvalidError for what can never be, else what the host says."""
    from gswarm.codec import from_proto
    from gswarm.units import parse_duration

    if interval <= 0:  # on the wire 0 stands for the default
        raise InvalidError(f"an interval of {interval:g} s cannot be", next="from 0.1 to 60 s", field="interval")
    seconds = 0.0
    if duration:
        try:
            seconds = parse_duration(duration)
        except ValueError:
            seconds = 0.0
        if not seconds:
            raise InvalidError(f"{duration!r} is no time", next="write 90s, 10m or 1h30m", field="for_")
    request = profiler_pb2.StartSessionRequest(
        name=name,
        interval_s=interval,
        nodes=nodes,
        metrics=[part.strip() for text in metrics for part in text.split(",") if part.strip()],
        tags=parse_tags(tags),
        for_s=seconds,
        until_task=until_task,
    )
    return from_proto((await swarm.call(request)).session, Session)


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


async def pull_to(swarm: Swarm, name: str, out: Path | None) -> Pulled:
    """Copy a recording into a directory that is not there yet, whole or not at all."""
    target = out or Path(check_name(name, "session name"))
    if await asyncio.to_thread(target.exists):
        raise RefusedError(f"{target} exists", next="name another directory with --out", field="out")
    part = target.with_name(f".{target.name}.part")
    await asyncio.to_thread(_make_anew, part)
    try:
        await pull(swarm, name, part)
        files, size = await asyncio.to_thread(_settle, part, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, part, True)
    return Pulled(str(target), files, size)


def _make_anew(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)


def _settle(part: Path, target: Path) -> tuple[int, int]:
    sizes = []
    for path in part.iterdir():
        path.chmod(0o600)
        sizes.append(path.stat().st_size)
    part.rename(target)
    return len(sizes), sum(sizes)


async def recover(recording: str) -> Recovered:
    """Seal what of a recording is not sealed, in a child process. Raises GswarmError, then nothing is changed."""
    from gswarm.profiler import manifest as manifests

    directory = Path(recording)
    if not await asyncio.to_thread((directory / manifests.MANIFEST).is_file):
        directory = state_dir() / "recordings" / check_name(recording, "session name")
    await asyncio.to_thread(manifests.read, directory)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gswarm.profiler.seal", str(directory), stdout=-1, stderr=-1, start_new_session=True
    )
    try:
        told, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise GswarmError(f"{directory} cannot be sealed", why=lines[-1] if lines else str(process.returncode))
    body = json.loads(told)
    damage = await asyncio.to_thread(_damage_of, directory)
    lost = tuple(dict.fromkeys((*body["lost"], *damage)))
    return Recovered(str(directory), body["ticks"], body["changes"], body["size_bytes"], lost)


def _damage_of(directory: Path) -> tuple[str, ...]:
    with Recording.open(directory) as opened:
        opened.events()
        opened.series(list(opened.metrics))
        return opened.damage


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
