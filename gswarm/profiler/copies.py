"""Recordings away from their host: copied here whole, and sealed here when a crash left them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm.config import state_dir
from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.names import check_name
from gswarm.profiler import manifest as manifests
from gswarm.profiler.access import pull
from gswarm.profiler.reading import is_directory
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Pulled, Recovered

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


async def pull_to(swarm: Swarm | Recording, name: str, out: Path | None) -> Pulled:
    """Copy a recording into a directory that is not there yet, whole or not at all."""
    if isinstance(swarm, Recording):
        raise InvalidError(f"{swarm.directory} is a recording already", next="leave out --from")
    target = out or Path(check_name(name, "session name"))
    if await asyncio.to_thread(target.exists):
        raise RefusedError(f"{target} exists", next="name another directory with --out", field="out")
    part = target.with_name(f".{target.name}.part")
    await asyncio.to_thread(_make_anew, part, target)
    try:
        await pull(swarm, name, part)
        files, size = await asyncio.to_thread(_settle, part, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, part, True)
    return Pulled(str(target), files, size)


def _make_anew(directory: Path, target: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise InvalidError(f"cannot make {target}", why=(error.strerror or str(error)).lower(), field="out") from None


def _settle(part: Path, target: Path) -> tuple[int, int]:
    sizes = []
    for path in part.iterdir():
        path.chmod(0o600)
        sizes.append(path.stat().st_size)
    part.rename(target)
    return len(sizes), sum(sizes)


async def recover(recording: str) -> Recovered:
    """Seal what of a recording is not sealed, in a child process. Raises GswarmError, then nothing is changed."""
    directory = Path(recording)
    if not await asyncio.to_thread(is_directory, recording):
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
