"""Marks in Python: a moment when awaited, a span when entered, from async code and from code that is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Self

from gswarm.v1 import profiler_pb2

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


class Mark:
    """What `swarm.profiler.mark("epoch 3")` gives.

        await swarm.profiler.mark("loss is NaN")        # a moment
        async with swarm.profiler.mark("epoch 3"):      # begin and end
        with swarm.profiler.mark("epoch 3"):            # the same where nothing can be awaited

    The last one asks the host from a thread of its own and waits for its answer: some milliseconds at either end, also
    when it is used on an event loop. All raise GswarmError when the host cannot be told.
    """

    def __init__(self, swarm: Swarm, text: str) -> None:
        self._swarm, self._text = swarm, text
        self._began = ""

    def __await__(self) -> Generator[Any, None, None]:
        return self._moment().__await__()

    async def _moment(self) -> None:
        await self._swarm.call(profiler_pb2.MarkRequest(text=self._text))

    async def __aenter__(self) -> Self:
        self._began = (await self._swarm.call(self._begin())).event
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._swarm.call(self._end())

    def __enter__(self) -> Self:
        self._began = _ask(self._swarm, self._begin()).event
        return self

    def __exit__(self, *exc: object) -> None:
        _ask(self._swarm, self._end())

    def _begin(self) -> profiler_pb2.MarkRequest:
        return profiler_pb2.MarkRequest(text=self._text, begins=True)

    def _end(self) -> profiler_pb2.MarkRequest:
        return profiler_pb2.MarkRequest(text=self._text, ends=self._began)


def _ask(swarm: Swarm, request: profiler_pb2.MarkRequest) -> profiler_pb2.MarkResponse:
    """Send a request from a loop and a connection of its own, and wait for the answer."""
    from gswarm.swarm import Swarm

    answer: list[profiler_pb2.MarkResponse] = []
    failure: list[BaseException] = []

    async def send() -> None:
        async with Swarm(swarm.endpoint) as own:
            own.token_text = swarm.token_text
            answer.append(await own.call(request))

    def work() -> None:
        try:
            asyncio.run(send())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="gswarm-mark", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
