"""Running one action for the command line: connect, confirm, wait with progress, print."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from gswarm.cli import Globals, render, say
from gswarm.errors import DeadlineError, ExitCode, GswarmError, InvalidError, RefusedError

if TYPE_CHECKING:
    from gswarm.catalogue import Action
    from gswarm.cluster.types import Progress


def execute(action: Action, values: Mapping[str, object], options: Globals) -> int:
    """Do it and print the result; the exit code. Raises GswarmError."""
    bound = action.bind({k: v for k, v in values.items() if v is not None})
    if action.destructive and not options.yes and not options.dry_run:
        _confirm(action, bound)
    try:
        return asyncio.run(_execute(action, bound, options))
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _confirm(action: Action, values: Mapping[str, object]) -> None:
    subject = next((str(values[p.name]) for p in action.parameters if p.positional), "")
    if not sys.stdin.isatty():
        raise RefusedError(f"{action.name} {subject} was not confirmed", why=action.effect, next="add --yes")
    sys.stderr.write(f"{action.name} {subject}: {action.effect}. Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was changed")


async def _execute(action: Action, values: dict[str, object], options: Globals) -> int:
    if action.local:
        result = await action.run(None, **values)
        if isinstance(result, int) and not isinstance(result, bool):
            return result
        render(result, options.output, returns=action.returns)
        return ExitCode.OK
    async with AsyncExitStack() as stack:
        swarm: Any
        if options.from_ is not None:
            swarm = await _recording(action, options, stack)
        else:
            from gswarm.swarm import connect

            swarm = await stack.enter_async_context(connect(options.host, token_file=options.token_file))
            swarm.request_id = options.request_id or uuid.uuid4().hex
            swarm.dry_run = options.dry_run
        try:
            async with asyncio.timeout(options.timeout if not action.until else None):
                result = await action.run(swarm, **values)
        except TimeoutError:
            raise DeadlineError(f"{action.name} took longer than {options.timeout:g} s") from None
        if hasattr(result, "__aiter__"):
            await _stream(result, options)
            return ExitCode.OK
        until = action.progress()
        if until is not None and options.wait and not options.dry_run and options.from_ is None:
            result = await _wait(swarm, until, result, options)
    render(result, options.output, returns=action.returns)
    if left_out := getattr(result, "left_out", 0):
        say(f"{left_out} more rows are not shown; use --limit")
    return ExitCode.OK


async def _recording(action: Action, options: Globals, stack: AsyncExitStack) -> Any:
    if not action.read:
        raise InvalidError(f"{action.name} changes things", why="a recording is the past", next="leave out --from")
    from gswarm.profiler.recording import Recording

    assert options.from_ is not None
    recording = await asyncio.to_thread(Recording.open, options.from_)
    stack.callback(recording.close)
    for note in recording.damage:
        say(f"warning: {note}")
    recording.seek_text(options.at)
    return recording


async def _stream(result: Any, options: Globals) -> None:
    async for piece in result:
        if isinstance(piece, bytes):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        else:
            render(piece, options.output)


async def _wait(swarm: Any, until: Any, asked: Any, options: Globals) -> Any:
    """Follow what was asked until it is done; an interrupt detaches, the work goes on."""
    show = _Shower()
    many = isinstance(asked, list | tuple)
    try:
        done = [
            await swarm.wait(until, one, timeout=options.timeout, show=show) for one in (asked if many else [asked])
        ]
    except asyncio.CancelledError:
        show.end()
        say(f"detached; it goes on (request id {swarm.request_id})")
        raise KeyboardInterrupt from None
    except GswarmError:
        show.end()
        raise
    show.end()
    return type(asked)(done) if many else done[0]


class _Shower:
    """Progress on standard error: one line that is rewritten on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""

    def __call__(self, progress: Progress) -> None:
        percent = f"{progress.fraction:4.0%} " if progress.fraction is not None else ""
        text = f"{percent}{progress.message}"
        if text == self._last:
            return
        if self._tty:
            sys.stderr.write(f"\r\x1b[2K{text}")
        elif progress.message != self._last.partition("% ")[2] and progress.message != self._last:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        self._last = text

    def end(self) -> None:
        """Leave the line."""
        if self._tty and self._last:
            sys.stderr.write("\n")
