"""The HTTP port: liveness, Prometheus metrics, and the REST application mounted under /api/v1."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import grpc.aio
import uvicorn

from gswarm import __version__
from gswarm.host import prometheus

if TYPE_CHECKING:
    from gswarm.host.server import HostContext

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class OurUvicorn(uvicorn.Server):
    """Uvicorn inside our process: the signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


async def serve(app: App, sock: socket.socket, *, tls: tuple[str, str] | None = None) -> None:
    """Serve an ASGI application on a bound socket until cancelled; open requests get two seconds to end."""
    import asyncio

    options: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        server_header=False,
        **options,
    )
    server = OurUvicorn(config)
    task = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        await task
        raise


class HttpServer:
    """Health and metrics by hand, everything else by the REST application."""

    def __init__(self, host: HostContext, sock: socket.socket) -> None:
        self._host, self._socket = host, sock
        self._rest: App | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """No gRPC here."""

    async def run(self) -> None:
        """Serve until cancelled."""
        from gswarm.host.rest import build

        async with build(self._host) as rest:
            self._rest = rest
            await serve(self, self._socket, tls=tls_files(self._host))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path == "/healthz":
            await _answer(send, 200, b'{"status":"ok","version":"%b"}\n' % __version__.encode(), b"application/json")
        elif scope["type"] == "http" and path == "/metrics":
            await self._metrics(scope, send)
        elif self._rest is not None:
            await self._rest(scope, receive, send)

    async def _metrics(self, scope: Scope, send: Send) -> None:
        from gswarm.errors import GswarmError

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._host.auth.check(headers.get(b"authorization", ""))
        except GswarmError as error:
            await _answer(send, error.http, f"{error}\n".encode(), b"text/plain; charset=utf-8")
            return
        body = (await prometheus.page(self._host)).encode()
        await _answer(send, 200, body, b"text/plain; version=0.0.4; charset=utf-8")


def tls_files(host: HostContext) -> tuple[str, str] | None:
    """Certificate and key when the host listens beyond loopback."""
    if not host.file.tls:
        return None
    return str(host.state_dir / "host.crt"), str(host.state_dir / "host.key")


async def _answer(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
