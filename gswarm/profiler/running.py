"""Sessions from the client's side: started, and around a command whose exit code is passed on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gswarm.cli import say
from gswarm.errors import GswarmError, InvalidError, NotFoundError
from gswarm.profiler.types import Session, parse_tags
from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from gswarm.swarm import Swarm

SLOWEST_S = 10.0
"""Between samples of an adaptive session while nothing moves, unless it is said."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""What a key press sends to the whole foreground group: the command has it already."""


async def start(
    swarm: Swarm,
    name: str,
    interval: float,
    nodes: Sequence[str],
    metrics: Sequence[str],
    tags: Sequence[str],
    duration: str = "",
    until_task: str = "",
    *,
    adaptive: bool = False,
    slowest: float | None = None,
) -> Session:
    """Start a session. Raises InvalidError for what can never be, else what the host says."""
    from gswarm.codec import from_proto
    from gswarm.units import parse_duration

    if interval <= 0:  # on the wire 0 stands for the default
        raise InvalidError(f"an interval of {interval:g} s cannot be", next="from 0.1 to 60 s", field="interval")
    if slowest is not None and not adaptive:
        raise InvalidError("a slowest interval is for adaptive sessions", next="add --adaptive", field="slowest")
    if slowest is not None and slowest <= 0:
        raise InvalidError(f"a slowest interval of {slowest:g} s cannot be", next="up to 60 s", field="slowest")
    seconds = 0.0
    if duration:
        try:
            seconds = parse_duration(duration)
        except ValueError:
            seconds = 0.0
        if not seconds:
            raise InvalidError(f"{duration!r} is no time", next="write 90s, 10m or 1h30m", field="for_")
    named = [part.strip() for text in metrics for part in text.split(",") if part.strip()]
    if metrics and not named:  # on the wire none stands for all
        raise InvalidError("no metric is named", next="leave out --metrics to record all", field="metrics")
    request = profiler_pb2.StartSessionRequest(
        name=name,
        interval_s=interval,
        nodes=nodes,
        metrics=named,
        tags=parse_tags(tags),
        for_s=seconds,
        until_task=until_task,
        slowest_s=(SLOWEST_S if slowest is None else slowest) if adaptive else 0.0,
    )
    return from_proto((await swarm.call(request)).session, Session)


async def run(
    command: Sequence[str],
    name: str,
    interval: float,
    nodes: Sequence[str],
    metrics: Sequence[str],
    tags: Sequence[str],
    host: str | None,
    token_file: Path | None,
    *,
    adaptive: bool = False,
    slowest: float | None = None,
) -> int:
    """Record while the command runs; its exit code, 128 and the signal's number when it was killed."""
    from gswarm.swarm import connect

    if not command:
        raise InvalidError("there is no command", next="write it after --", field="command")
    if shutil.which(command[0]) is None:  # before there is a session, whose name would be taken
        raise _missing(command)
    async with connect(host, token_file=token_file) as swarm:
        await start(swarm, name, interval, nodes, metrics, tags, adaptive=adaptive, slowest=slowest)
        say(f"session {name} records")
        async with _stopping(swarm, name):
            return await _command(command)


@contextlib.asynccontextmanager
async def _stopping(swarm: Swarm, name: str) -> AsyncIterator[None]:
    """Stop the session at the end, whatever the end is; that it cannot be stopped is said, and changes no exit code."""
    try:
        yield
    finally:
        try:
            async with asyncio.timeout(30):
                await swarm.call(profiler_pb2.StopSessionRequest(name=name))
            say(f"session {name} stopped; see gswarm profiler info {name}")
        except (GswarmError, TimeoutError) as error:
            say(f"session {name} was not stopped: {error}. Run gswarm profiler stop {name}")


async def _command(command: Sequence[str]) -> int:
    with _Forwarding() as forwarding:
        try:
            process = await asyncio.create_subprocess_exec(*command)
        except FileNotFoundError:
            raise _missing(command) from None
        except OSError as error:
            raise InvalidError(f"{command[0]} cannot be run", why=error.strerror or "", field="command") from None
        forwarding.to(process)
        code = await process.wait()
    return 128 - code if code < 0 else code


def _missing(command: Sequence[str]) -> NotFoundError:
    return NotFoundError(f"there is no command {command[0]} that can be run", field="command")


class _Forwarding:
    """Passes signals that reach us on to the command, those included that come before it has started."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._early: list[signal.Signals] = []

    def __enter__(self) -> Self:
        for number in FORWARDED:
            asyncio.get_running_loop().add_signal_handler(number, self._forward, number)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in FORWARDED:
            asyncio.get_running_loop().remove_signal_handler(number)

    def to(self, process: Process) -> None:
        """The command has started: it was not there yet to get what came before, from a key press either."""
        self._process = process
        for number in self._early:
            self._send(process, number)

    def _forward(self, number: signal.Signals) -> None:
        if self._process is None:
            self._early.append(number)
        elif not (number in FROM_TERMINAL and _in_foreground()):
            self._send(self._process, number)

    @staticmethod
    def _send(process: Process, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
