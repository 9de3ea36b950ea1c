"""The OpenAI-compatible gateway: one raw ASGI route that finds a service by model name and passes bytes through."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc.aio

from gswarm.errors import ForbiddenError, GswarmError, NotFoundError, UnreachableError
from gswarm.host.auth import INFERRERS
from gswarm.host.http import serve, tls_files
from gswarm.names import near
from gswarm.v1 import models_pb2
from gswarm.v1.models_pb2 import Service

if TYPE_CHECKING:
    from gswarm.host.server import HostContext

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BODY_LIMIT = 32 << 20
PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
READY = models_pb2.SERVICE_PHASE_READY
DROPPED = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"})


class Gateway:
    """Serves the model port. Round robin over the ready services of a model, fewest in flight first."""

    def __init__(self, host: HostContext, sock: socket.socket) -> None:
        self._host, self._socket = host, sock
        self._in_flight: dict[str, int] = defaultdict(int)
        self._turn = 0
        self._client: aiohttp.ClientSession | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """No gRPC here."""

    async def run(self) -> None:
        """Serve until cancelled."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self._client:
            await serve(self, self._socket, tls=tls_files(self._host))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        try:
            self._check(scope)
            path, method = scope["path"], scope["method"]
            if path == "/v1/models" and method == "GET":
                await _json(send, 200, {"object": "list", "data": self._models()})
            elif path in PATHS and method == "POST":
                await self._proxy(path, receive, send)
            else:
                raise NotFoundError(
                    f"{method} {path} is not served here",
                    next="POST /v1/chat/completions or /v1/completions, GET /v1/models",
                )
        except GswarmError as error:
            await _error(send, error)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        who = self._host.auth.check(headers.get(b"authorization", ""))
        if who.role not in INFERRERS:
            raise ForbiddenError(f"a {who.role} token may not ask models", next="use a token of role infer or operator")

    def _models(self) -> list[dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for service in self._host.store.state.list(Service):
            if service.phase == READY:
                for name in (service.model, service.name):
                    created = int(service.created_at.seconds)
                    owner = "simulated" if service.simulated else "gswarm"
                    found.setdefault(name, {"id": name, "object": "model", "created": created, "owned_by": owner})
        return list(found.values())

    def _pick(self, model: str) -> Service:
        """A ready service of that model (or of that very name), the least loaded, in turn among equals."""
        services = [s for s in self._host.store.state.list(Service) if model in (s.model, s.name)]
        ready = [s for s in services if s.phase == READY and not s.stop and self._host.nodes.connected(s.node)]
        if not ready:
            if services:
                phases = ", ".join(
                    f"{s.name} is {models_pb2.ServicePhase.Name(s.phase).removeprefix('SERVICE_PHASE_').lower()}"
                    for s in services
                )
                raise UnreachableError(
                    f"no service of {model} is ready", why=phases, next="wait, or look at gswarm model services"
                )
            known = {name for s in self._host.store.state.list(Service) for name in (s.model, s.name)}
            raise NotFoundError(
                f"no service has the model {model!r}",
                next=near(model, known) or f"gswarm model serve {model}",
                field="model",
            )
        self._turn += 1
        turn = self._turn % len(ready)
        ready = ready[turn:] + ready[:turn]  # among equals, each in turn
        return min(ready, key=lambda s: self._in_flight[s.name] / max(1, s.max_in_flight))

    async def _proxy(self, path: str, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        service = self._pick(_model_of(body))
        peer = self._host.nodes.peer(service.node)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {peer.token}"}
        self._in_flight[service.name] += 1
        work = asyncio.current_task()
        assert work is not None
        watcher = asyncio.create_task(_hung_up(receive), name="gateway-hangup")
        pump = asyncio.create_task(
            self._pump(peer.url(f"/services/{service.name}{path}"), body, headers, peer.tls, send), name="gateway-pump"
        )
        try:
            await asyncio.wait((watcher, pump), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                await pump
            # Otherwise the client hung up: closing the upstream connection stops the generation.
        finally:
            for task in (watcher, pump):
                task.cancel()
            await asyncio.gather(watcher, pump, return_exceptions=True)
            self._in_flight[service.name] -= 1

    async def _pump(self, url: str, body: bytes, headers: dict[str, str], tls: Any, send: Send) -> None:
        assert self._client is not None
        started = False
        try:
            async with self._client.post(url, data=body, headers=headers, ssl=tls if tls else True) as answer:
                kept = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in DROPPED]
                await send({"type": "http.response.start", "status": answer.status, "headers": kept})
                started = True
                async for piece in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, OSError) as error:
            if started:
                # Half an answer went out; an abrupt end tells the client that it is not whole.
                raise ConnectionResetError("the backend broke off") from error
            raise UnreachableError("the node of that model does not answer", why=str(error), next="try again") from None


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_LIMIT:
            raise GswarmError(f"the request is larger than {BODY_LIMIT} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


def _model_of(body: bytes) -> str:
    from gswarm.errors import InvalidError

    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise InvalidError("the request is not JSON", why=str(error)) from None
    model = parsed.get("model") if isinstance(parsed, dict) else None
    if not isinstance(model, str) or not model:
        raise InvalidError("the request names no model", next='add "model": "<name>"', field="model")
    return model


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _json(send: Send, status: int, value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, error: GswarmError) -> None:
    """An error in OpenAI's own shape."""
    detail = {
        "message": str(error),
        "type": error.status.lower(),
        "param": error.field or None,
        "code": error.status.lower(),
    }
    with contextlib.suppress(OSError):
        await _json(send, error.http, {"error": detail})
