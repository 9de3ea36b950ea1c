"""What is asked of a recording: opened wherever it lies, worked on off the loop, written whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gswarm.catalogue import HostNeed
from gswarm.cli import say
from gswarm.config import state_dir
from gswarm.errors import GswarmError, InvalidError, RefusedError
from gswarm.names import check_name
from gswarm.profiler import manifest as manifests
from gswarm.profiler.access import pull
from gswarm.profiler.apart import apart
from gswarm.profiler.manifest import MANIFEST
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Session

if TYPE_CHECKING:
    from gswarm.profiler.types import Analysis, Comparison, Drawn, Exported
    from gswarm.swarm import Swarm

P = ParamSpec("P")
R = TypeVar("R")
SUFFIXES = {"perfetto": "perfetto.json"}
"""Of exports whose format is not the end of their file's name."""


def is_path(name: str) -> bool:
    """Whether only a directory can be meant: no session's name has a / or begins with a dot."""
    return "/" in name or name.startswith(".")


def is_directory(name: str) -> bool:
    """Whether a recording of this machine can be meant: by its path, or by the name of a copy where we are."""
    return is_path(name) or (Path(name) / MANIFEST).is_file()


def _here(name: str) -> Path | None:
    """Where a recording lies on this machine: by its path, a copy where we are, or what this machine's host recorded."""
    if is_directory(name):
        return Path(name)
    kept = state_dir() / "recordings" / name
    return kept if (kept / MANIFEST).is_file() else None


def host_for(values: Mapping[str, object]) -> HostNeed:
    """Whether the recordings among an action's values need a host; of several, the one that needs it most decides.

    A path never does. A name does, unless a copy of it is where we are or this machine's host keeps it: those are read when no
    host can be asked (`HostNeed` says when), for the host may have recorded more since.
    """
    names = [str(values[name]) for name in ("name", "a", "b") if name in values]
    if all(is_path(name) for name in names):
        return HostNeed.NONE
    if all(is_directory(name) for name in names):
        return HostNeed.IF_THERE
    return HostNeed.YES if any(_here(name) is None for name in names) else HostNeed.IF_NAMED


@contextlib.asynccontextmanager
async def located(swarm: Swarm | Recording | None, name: str) -> AsyncIterator[Path]:
    """A recording's directory: one of this machine, the one that `--from` opened, or one of the host's, pulled for a while.

    To a host that answers for others only names mean something: paths would be those of its own machine.
    Raises NotFoundError.
    """
    if isinstance(swarm, Recording) and name in (swarm.name, str(swarm.directory)):
        yield swarm.directory
    elif isinstance(swarm, Recording) or ((swarm is None or not swarm.in_host) and is_path(name)):
        yield Path(name)
    elif swarm is None:
        directory = _here(name) or Path(name)
        say(f"reading {_shown(directory)}; no host was asked for a newer one")
        yield directory
    elif not swarm.in_host and is_directory(name) and await _copy_will_do(swarm, name):
        yield Path(name)
    else:
        check_name(name, "session name")
        with tempfile.TemporaryDirectory(prefix="gswarm-recording-") as temporary:
            directory = Path(temporary) / name
            await asyncio.to_thread(directory.mkdir)
            await pull(swarm, name, directory)
            yield directory


def _shown(directory: Path) -> str:
    return str(directory) if directory.is_absolute() else f"./{directory}"


async def _copy_will_do(swarm: Swarm, name: str) -> bool:
    """Whether the copy where we are is all that the host has of a session; that, or why not, is told."""
    copy = await asyncio.to_thread(manifests.read, Path(name))
    try:
        known = await swarm.list(Session, filters=(f"name={name}",))
    except GswarmError as error:
        swarm.tell(f"reading ./{name}; the host was not asked for a newer one: {error.what}")
        return True
    if not known:
        swarm.tell(f"reading ./{name}; the host has no session of that name")
        return True
    if _moment(copy.started_at) != known[0].started_at:
        why = "the copy here is of another session of that name"
    elif not copy.stopped_at:
        why = "the copy here does not say that the session had stopped"
    else:
        swarm.tell(f"reading ./{name}; the host has the same")
        return True
    swarm.tell(f"reading {name} from the host: {why} (name it ./{name} to read it)")
    return False


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


async def _worked(swarm: Any, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Off the loop; what is done for a host's own face in another process, for it takes large libraries and a core."""
    if getattr(swarm, "in_host", False):
        return await apart(function, *args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def analyse(swarm: Swarm, name: str) -> Analysis:
    """A recording in figures and findings."""
    async with located(swarm, name) as directory:
        return await _worked(swarm, _analysed, directory)


def _analysed(directory: Path) -> Analysis:
    from gswarm.profiler import analysis, history

    with Recording.open(directory) as found:
        past = history.read(found)
        return analysis.analyse(past.in_order(found.series()), past)


async def compare(swarm: Swarm, a: str, b: str, *, metrics: Sequence[str], confidence: float, seed: int) -> Comparison:
    """Two recordings side by side."""
    if seed < 0:
        raise InvalidError(f"a seed of {seed} cannot be", next="0 or more", field="seed")
    if not 0.5 <= confidence < 1:
        raise InvalidError(
            f"a confidence of {confidence:g} cannot be", next="from 0.5 to under 1, as 0.95", field="confidence"
        )
    async with located(swarm, a) as first, located(swarm, b) as second:
        return await _worked(swarm, _compared, first, second, tuple(metrics), confidence, seed)


def _compared(a: Path, b: Path, metrics: Sequence[str], confidence: float, seed: int) -> Comparison:
    from gswarm.profiler import comparison, history, series

    with Recording.open(a) as first, Recording.open(b) as second:
        pasts = [(one, history.read(one)) for one in (first, second)]
        sides = [comparison.Recorded(past.in_order(one.series()), past) for one, past in pasts]
    series.check_metrics(metrics, [one for side in sides for one in side.series])
    return comparison.compare(*sides, metrics=metrics, confidence=confidence, seed=seed)


async def plot(
    swarm: Swarm,
    name: str,
    *,
    metrics: Sequence[str],
    devices: Sequence[str],
    out: Path | None,
    term: bool,
    force: bool,
) -> Drawn:
    """A picture of a recording: for the terminal, or a file, whole or not at all."""
    if not term:
        _not_in_host(swarm, "plot")
        if out is not None and out.suffix.lower() not in (".svg", ".png"):
            raise InvalidError(f"--out is {out}", next="name a file that ends in .svg or .png", field="out")
        _check_matplotlib()
    async with located(swarm, name) as directory:
        return await _worked(swarm, _plotted, directory, tuple(metrics), tuple(devices), out, term, force)


def _plotted(
    directory: Path, metrics: Sequence[str], devices: Sequence[str], out: Path | None, term: bool, force: bool
) -> Drawn:
    from gswarm.profiler import charts, history, plots, terminal
    from gswarm.profiler.types import Drawn

    with Recording.open(directory) as found:
        target = "" if term else _target(found, out, "svg", force)
        past = history.read(found)
        every = past.in_order(found.series())
        chosen, shown = charts.choose(every, past, metrics, devices)
        picture: tuple[str, ...] = ()
        if isinstance(target, Path):
            form = target.suffix.lower()[1:]
            _write(target, lambda part: part.write_bytes(plots.draw(shown, past, chosen, form)))
        else:
            picture = terminal.draw(shown, past, chosen, shutil.get_terminal_size((100, 24)).columns)
        return Drawn(str(target), len(shown), chosen, "; ".join(found.damage), picture)


async def report(swarm: Swarm, name: str, out: Path | None, *, force: bool) -> Exported:
    """A recording as one page, whole or not at all."""
    async with located(swarm, name) as directory:
        return await _worked(swarm, _reported, directory, out, force)


def _reported(directory: Path, out: Path | None, force: bool) -> Exported:
    from gswarm.profiler import analysis, history
    from gswarm.profiler import report as page
    from gswarm.profiler.types import Exported

    with Recording.open(directory) as found:
        target = _target(found, out, "html", force)
        past = history.read(found)
        every = past.in_order(found.series())
        figures = analysis.analyse(every, past)
        _write(target, lambda part: _write_text(part, page.pieces(figures, every, past)))
        return Exported(str(target), figures.ticks, "; ".join(found.damage))


async def export(swarm: Swarm, name: str, form: str, out: Path | None, *, force: bool) -> Exported:
    """Write a session's samples to a file, whole or not at all."""
    async with located(swarm, name) as directory:
        return await _worked(swarm, _exported, directory, form, out, force)


def _exported(directory: Path, form: str, out: Path | None, force: bool) -> Exported:
    from gswarm.profiler import export as formats
    from gswarm.profiler import history, perfetto
    from gswarm.profiler.types import Exported

    with Recording.open(directory) as found:
        target = _target(found, out, SUFFIXES.get(form, form), force)
        match form:
            case "parquet":
                count = _write(target, lambda part: formats.parquet(found.series(), part))
            case "perfetto":
                past = history.read(found)
                pieces = perfetto.pieces(past.in_order(found.series()), past)
                count = _write(target, lambda part: _write_text(part, pieces)) - 2  # what stands around the events
            case _:
                count = _write(target, lambda part: _write_text(part, formats.rows(found, form)))
                count -= form == "csv" and count > 0
        return Exported(str(target), count, "; ".join(found.damage))


def _target(found: Recording, out: Path | None, suffix: str, force: bool) -> Path:
    """Where to write. Raises InvalidError or RefusedError where it may not be."""
    target = out or Path(f"{check_name(found.name, 'session name')}.{suffix}")
    if target.exists() or str(target) == "-":
        if not target.is_file():  # a device or a directory is never replaced
            raise InvalidError(f"{target} is no file", next="name one with --out", field="out")
        if not force:
            raise RefusedError(f"{target} exists", next="use --force, or --out with another name", field="out")
    return target


def _write(target: Path, make: Callable[[Path], int]) -> int:
    """A file, whole or not at all. Raises InvalidError when it cannot be written."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        count = make(part)
        part.replace(target)
    except OSError as error:
        raise InvalidError(f"cannot write {target}", why=(error.strerror or str(error)).lower(), field="out") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _write_text(part: Path, pieces: Iterable[str]) -> int:
    count = 0
    with part.open("w", encoding="utf-8") as file:
        for piece in pieces:
            file.write(piece)
            count += 1
    return count


def _check_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise RefusedError(
            "matplotlib is not installed", next='run pip install "gswarm[plot]", or use --term', field="term"
        )


def _not_in_host(swarm: Any, what: str) -> None:
    """A picture is drawn where it is looked at."""
    if getattr(swarm, "in_host", False):
        raise RefusedError(
            f"the host does not {what}",
            why="it loads no large libraries into the process that everyone depends on",
            next=f"run gswarm profiler {what} where you are, or use the Python client",
        )
