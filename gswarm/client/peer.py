"""The peer port: files by digest for other nodes, and the node's backends for the gateway, behind one token."""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from gswarm import net
from gswarm.errors import GswarmError, UnreachableError
from gswarm.model.throughput import Tail, Throughput
from gswarm.v1 import cluster_pb2

HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "proxy-authorization",
        "host",
        "content-length",
        "authorization",
    }
)


@dataclass(frozen=True, slots=True)
class LocalBackend:
    """A backend that answers now: its port on our loopback, and the name that it wants to be asked by."""

    port: int
    model: str


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PeerServer:
    """Serves while the agent runs. `token` is given by the host at attach and may change with its restarts."""

    def __init__(
        self, bind: str, port: int, state_dir: Path, find_backend: Callable[[str], LocalBackend | None]
    ) -> None:
        self._bind, self._port, self._dir = bind, port, state_dir
        self._find_backend = find_backend
        self.throughput = Throughput()
        """What has passed here, and what the node's own tasks add."""
        self._tokens: list[str] = []
        self.certificate = ""
        """PEM of our certificate; empty on loopback, where the port is plain."""
        self.port = 0
        """Where it listens, once started."""
        self._app = web.Application(client_max_size=64 << 20, middlewares=[self._guard])
        self._app.router.add_route("*", "/services/{name}/{tail:.*}", self._proxy)
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @property
    def token(self) -> str:
        """What requests to other nodes carry."""
        return self._tokens[0] if self._tokens else ""

    def accept(self, token: str) -> None:
        """A new token from the host; the one before stays good, for requests under way."""
        if token and token not in self._tokens[:1]:
            self._tokens = [token, *self._tokens][:2]

    @staticmethod
    def client_tls(peer: cluster_pb2.Node) -> ssl.SSLContext | None:
        """How to talk to another node's port: its certificate pinned, or plain on loopback."""
        if not peer.peer_certificate:
            return None
        context = ssl.create_default_context(cadata=peer.peer_certificate)
        context.check_hostname = False  # the certificate itself is pinned, whatever name it carries
        return context

    def add_file_route(self, prefix: str, find: Callable[[str], Path]) -> None:
        """Serve files under `prefix`; `find` turns the rest of the path into a file or raises."""

        async def serve(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(find(request.match_info["name"]), chunk_size=1 << 20)

        self._app.router.add_get(prefix + "{name}", serve)

    async def start(self) -> None:
        """Listen. Raises GswarmError when the port is taken."""
        context = None
        if not net.is_loopback(self._bind):
            certificate, key = await asyncio.to_thread(net.make_certificate, self._dir, [self._bind])
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate, key)
            self.certificate = certificate.read_text()
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
        )
        self._runner = web.AppRunner(self._app, access_log=None, handler_cancellation=True, shutdown_timeout=2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._bind, self._port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise GswarmError(
                f"peer port {self._port} cannot be used", why=error.strerror or "", next="set client.peer_port"
            ) from None
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """Stop listening; requests under way are ended."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._client is not None:
            await self._client.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not given or not any(hmac.compare_digest(given.encode(), token.encode()) for token in self._tokens):
            return web.json_response({"error": {"message": "the peer port wants the host's token"}}, status=401)
        try:
            return await handler(request)
        except GswarmError as error:
            return web.json_response({"error": {"message": str(error)}}, status=error.http)

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        """Pass a request to a backend on our loopback, bytes as they are; a caller that hangs up ends it there."""
        name = request.match_info["name"]
        backend = self._find_backend(name)
        if backend is None:
            raise UnreachableError(f"service {name} is not ready on this node", next="try again")
        assert self._client is not None
        url = f"http://127.0.0.1:{backend.port}/{request.match_info['tail']}"
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
        body = _asking_for(backend.model, await request.read())
        try:
            async with self._client.request(
                request.method, url, params=request.query, headers=headers, data=body
            ) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
                response = web.StreamResponse(status=answer.status, headers=kept)
                if answer.content_length is not None:
                    response.content_length = answer.content_length
                await response.prepare(request)
                tail = Tail()
                async for piece in answer.content.iter_any():
                    tail.feed(piece)
                    await response.write(piece)
                await response.write_eof()
                if (tokens := tail.tokens()) is not None:
                    self.throughput.add(name, tokens)
                return response
        except aiohttp.ClientConnectionError as error:
            return web.json_response({"error": {"message": f"service {name} does not answer: {error}"}}, status=502)


def _asking_for(model: str, body: bytes) -> bytes:
    """The request under the backend's own name for its model; people ask by the name in the registry."""
    try:
        asked = json.loads(body)
    except ValueError:
        return body
    if not isinstance(asked, dict) or asked.get("model") in (None, model):
        return body
    return json.dumps(asked | {"model": model}, ensure_ascii=False).encode()
