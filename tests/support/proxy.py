"""A TCP proxy between two parts under test: it can refuse, delay, cut, and go silent without closing anything."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 16


class Proxy:
    """Listens on a port of its own and passes everything to a target, as long as it is told to."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.delay_s = 0.0
        """How much later every piece arrives."""
        self.port = 0
        self.accepted = 0
        """Connections taken so far."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> None:
        """Cut every connection with a reset; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    def refuse(self) -> None:
        """Cut every connection, and each new one at once, until `restore`."""
        self._refusing = True
        self.drop()

    def silence(self) -> None:
        """Half-open: connections stay, nothing passes in either direction, until `restore`."""
        self._flowing.clear()

    def restore(self) -> None:
        """Work as at the beginning."""
        self._refusing = False
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while piece := await source.read(PIECE_BYTES):
                    await self._flowing.wait()
                    if self.delay_s:
                        await asyncio.sleep(self.delay_s)
                    sink.write(piece)
                    await sink.drain()
        finally:
            self._writers.discard(sink)
            sink.transport.abort()
