"""Running one action for the command line: connect, confirm, wait with progress, print."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from gswarm.catalogue import HostNeed, Told
from gswarm.cli import Globals, render, render_piece, say, writing
from gswarm.errors import DeadlineError, ExitCode, InvalidError, RefusedError, UnreachableError
from gswarm.views import printable

if TYPE_CHECKING:
    from gswarm.catalogue import Action
    from gswarm.cluster.types import Progress


class Interrupted(KeyboardInterrupt):
    """An interrupt of which the person has been told already."""


def execute(action: Action, values: Mapping[str, object], options: Globals) -> int:
    """Do it and print the result; the exit code. Raises GswarmError."""
    bound = action.bind({k: v for k, v in values.items() if v is not None})
    if options.from_ is not None:
        _check_past(action)
    if action.destructive and not options.yes and not options.dry_run:
        _confirm(action, bound)
    try:
        return asyncio.run(_execute(action, bound, options))
    except Interrupted:
        return ExitCode.INTERRUPTED
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _confirm(action: Action, values: Mapping[str, object]) -> None:
    named = next((values[p.name] for p in action.parameters if p.positional), "")
    subjects = named if isinstance(named, list) else [named] if named else []
    asked = " ".join([action.name, *map(str, subjects)])
    if not sys.stdin.isatty():
        raise RefusedError(f"{asked} was not confirmed", why=action.effect, next="add --yes")
    sys.stderr.write(f"{asked}: {action.effect}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was changed")


async def _execute(action: Action, values: dict[str, object], options: Globals) -> int:
    if action.local:
        gc.set_threshold(700, 10, 10)  # a host or an agent lives long: Python's own defaults, which __main__ raised
        result = await action.run(None, **values)
        if isinstance(result, int) and not isinstance(result, bool):
            return result
        if isinstance(result, Told):
            result.tell(lambda piece: render_piece(piece, options.output))
            return ExitCode.OK
        render(result, options.output, returns=action.returns)
        return int(getattr(result, "exit_code", ExitCode.OK))
    async with AsyncExitStack() as stack:
        swarm: Any
        if options.from_ is not None:
            swarm = await _recording(options, stack)
        else:
            swarm = await _connected(action.needs_host(values), options, stack)
        result = await _perform(swarm, action, values, options)
        if result is _STREAMED:
            return ExitCode.OK
        render(result, options.output, returns=action.returns, now=_moment(swarm, result))
    if left_out := getattr(result, "left_out", 0):
        say(f"{left_out} more rows are not shown; use --limit")
    return ExitCode.OK


async def _connected(need: HostNeed, options: Globals, stack: AsyncExitStack) -> Any:
    """The swarm; None when none is needed, or none is there and it will do without."""
    if need is HostNeed.NONE:
        return None
    from gswarm.net import discover
    from gswarm.swarm import Swarm

    try:
        endpoint = discover(options.host, options.token_file)
    except UnreachableError:  # none runs here and none is named
        if need is HostNeed.YES:
            raise
        return None
    try:
        swarm = await stack.enter_async_context(Swarm(endpoint))
    except UnreachableError:  # told here over TLS, else by the first request
        if need is not HostNeed.IF_THERE:
            raise
        return None
    swarm.request_id = options.request_id or uuid.uuid4().hex
    swarm.dry_run, swarm.tell = options.dry_run, say
    return swarm


_STREAMED = object()


async def _perform(swarm: Any, action: Action, values: Mapping[str, object], options: Globals) -> Any:
    """Ask, and wait for the end of what takes long; all of it within --timeout."""
    loop = asyncio.get_running_loop()
    deadline = None if options.timeout is None else loop.time() + options.timeout
    try:
        async with asyncio.timeout_at(deadline):
            result = await action.run(swarm, **values)
            if hasattr(result, "__aiter__"):
                await _stream(result, options)
                return _STREAMED
    except TimeoutError:
        raise DeadlineError(f"{action.name} took longer than {options.timeout:g} s") from None
    except asyncio.CancelledError:
        if action.read or options.dry_run:
            raise
        say(f"interrupted; it may have been done (ask again with --request-id {swarm.request_id}: never done twice)")
        raise Interrupted from None
    until = action.progress()
    if until is None or not options.wait or options.dry_run or options.from_ is not None:
        return result
    return await _wait(swarm, until, result, deadline)


def _moment(swarm: Any, result: Any) -> Any:
    """The time that ages count to: the host's when it listed, a recording's cursor, else none: now."""
    return getattr(result, "time", None) if isinstance(result, list) else getattr(swarm, "time", None)


def _check_past(action: Action) -> None:
    """Raises InvalidError for what cannot be asked of a recording."""
    from gswarm.profiler.unrecorded import UNRECORDED

    if action.local:
        raise InvalidError(f"{action.name} is about this machine", why="it reads no recording", next="leave out --from")
    if not action.read:
        raise InvalidError(f"{action.name} changes things", why="a recording is the past", next="leave out --from")
    if why := UNRECORDED.get(action.id):
        raise InvalidError(f"no recording answers {action.name}", why=why, next="leave out --from")


async def _recording(options: Globals, stack: AsyncExitStack) -> Any:
    from gswarm.profiler.recording import Recording, parse_at
    from gswarm.units import clock

    assert options.from_ is not None
    recording = await asyncio.to_thread(Recording.open, options.from_)
    stack.callback(recording.close)
    for note in recording.damage:
        say(f"warning: {note}")
    if options.at is not None:
        moment = parse_at(options.at, recording.start, recording.end)
        recording.seek(moment)
        if abs(moment - recording.time).total_seconds() > 1:
            edge = "starts" if moment < recording.time else "ends"
            say(f"{options.at} is outside; {recording.name} {edge} at {clock(recording.time)}, which is shown")
    return recording


async def _stream(result: Any, options: Globals) -> None:
    async for piece in result:
        if isinstance(piece, bytes):
            with writing():
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        else:
            render(piece, options.output)


async def _wait(swarm: Any, until: Any, asked: Any, deadline: float | None) -> Any:
    """Follow what was asked until it is done; an interrupt detaches, the work goes on."""
    show = Shower()
    loop = asyncio.get_running_loop()
    many = isinstance(asked, list | tuple)
    done = []
    try:
        for one in asked if many else [asked]:
            left = None if deadline is None else max(0.0, round(deadline - loop.time(), 1))
            done.append(await swarm.wait(until, one, timeout=left, show=show))
    except asyncio.CancelledError:
        show.end()
        say(f"detached; it goes on (request id {swarm.request_id})")
        raise Interrupted from None
    finally:
        show.end()
    return type(asked)(done) if many else done[0]


class Shower:
    """Progress on standard error: one line that is rewritten on a terminal; elsewhere few, plain lines."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""
        self._step: tuple[str, int | None] | None = None

    def __call__(self, progress: Progress) -> None:
        message = printable(progress.message)
        if self._tty:
            percent = f"{progress.fraction:4.0%} " if progress.fraction is not None else ""
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[2K{percent}{message}"[: width + 4])
        else:
            # Where lines stay, one for every count would bury what matters: a new one for new words or another tenth.
            tenth = None if progress.fraction is None else int(progress.fraction * 10)
            step = (re.sub(r"\d+", "", message), tenth)
            if message != self._last and step != self._step:
                sys.stderr.write(f"{message}\n")
                self._step = step
        sys.stderr.flush()
        self._last = message

    def end(self) -> None:
        """Leave the line."""
        if self._tty and self._last:
            sys.stderr.write("\n")
            self._last = ""
