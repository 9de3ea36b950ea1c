"""Who may do what: tokens, roles, and the interceptor that every call passes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from gswarm import net
from gswarm.errors import ForbiddenError, GswarmError, NotFoundError, RefusedError, UnauthenticatedError
from gswarm.names import check_name, near
from gswarm.v1 import cluster_pb2, common_pb2

if TYPE_CHECKING:
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
PREFIX = "token:"
LOCAL = "local"
ROLES = {
    "viewer": cluster_pb2.ROLE_VIEWER,
    "operator": cluster_pb2.ROLE_OPERATOR,
    "agent": cluster_pb2.ROLE_AGENT,
    "infer": cluster_pb2.ROLE_INFER,
    "admin": cluster_pb2.ROLE_ADMIN,
}
READERS = frozenset({"viewer", "operator", "agent", "admin"})
CHANGERS = frozenset({"operator", "admin"})
# Methods that are not for every changer. Keys are "Service.Method" within gswarm.v1.
ALLOWED: dict[str, frozenset[str]] = {
    "Cluster.Watch": READERS,
    "Cluster.Status": READERS,
    "Queue.History": READERS,
    "Models.ServiceLogs": READERS,
    "Profiler.ReadRecording": READERS,
    "Agent.Attach": frozenset({"agent", "admin"}),
    "Data.RegisterChunk": frozenset({"agent", "operator", "admin"}),
    "Cluster.CreateToken": frozenset({"admin"}),
    "Cluster.RevokeToken": frozenset({"admin"}),
    "Cluster.ListTokens": frozenset({"admin"}),
    "Cluster.Shutdown": frozenset({"admin"}),
}
INFERRERS = frozenset({"infer", "operator", "admin"})


class Streams:
    """The streams of one token: they end when it is revoked."""

    __slots__ = ("_running", "is_revoked")

    def __init__(self) -> None:
        self.is_revoked = False
        """Whether the token no longer counts."""
        self._running: set[asyncio.Task[Any]] = set()

    def revoke(self) -> None:
        """End them all."""
        self.is_revoked = True
        for task in self._running:
            task.cancel()

    def __enter__(self) -> None:
        """Run a stream's handler in the current task: one of its own would cost memory for as long as a node is attached."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises UnauthenticatedError when it ended because the token was revoked."""
        task = asyncio.current_task()
        assert task is not None
        self._running.discard(task)
        if isinstance(error, asyncio.CancelledError) and self.is_revoked and not task.uncancel():
            raise _revoked() from None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the token's name and role; `node` is the only one an agent token may speak for, empty: any.

    `handlers` are those of the methods it has called and may call, wrapped: one for all its calls of a method.
    """

    name: str
    role: str
    node: str = ""
    streams: Streams = field(default_factory=Streams, compare=False, repr=False)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = field(default_factory=dict, compare=False, repr=False)


_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller(_: object = None) -> Caller:
    """Who asks in the current call."""
    return _CALLER.get()


class Auth:
    """The tokens the host knows, by the digest of their secret; the secrets themselves are kept nowhere but with their users."""

    def __init__(self, store: Store, directory: Path, fingerprint: str) -> None:
        self._store = store
        self._directory = directory
        self.fingerprint = fingerprint
        self._known: dict[str, Caller] = {}

    async def start(self) -> net.Token:
        """Load tokens; on the first start make the local one and write it where only the user reads it."""
        path = self._directory / "host.token"
        local: net.Token | None = None
        if path.exists():
            local = net.Token.parse(path.read_text())
        token = (
            net.Token("admin", local.secret, self.fingerprint) if local else net.Token.new("admin", self.fingerprint)
        )

        def operation(tx: Transaction) -> dict[str, bytes]:
            info = cluster_pb2.TokenInfo(name=LOCAL, role=cluster_pb2.ROLE_ADMIN)
            if tx.get_value(PREFIX + token.digest) is None:
                for name, value in tx.list_values(PREFIX):
                    if cluster_pb2.TokenInfo.FromString(value).name == LOCAL:
                        tx.put_value(name, None)
                info.created_at.FromDatetime(tx.now)
                tx.put_value(PREFIX + token.digest, info.SerializeToString())
            return dict(tx.list_values(PREFIX))

        values = await self._store.apply(operation, actor="host", method="tokens")
        for name, value in values.items():
            self._learn(name.removeprefix(PREFIX), cluster_pb2.TokenInfo.FromString(value))
        if token != local:
            net.write_private(path, str(token))
        return token

    def _learn(self, digest: str, info: cluster_pb2.TokenInfo) -> None:
        role = cluster_pb2.Role.Name(info.role).removeprefix("ROLE_").lower()
        self._known[digest] = Caller(info.name, role, info.node)

    def check(self, authorization: str) -> Caller:
        """The caller of a "Bearer ..." header. Raises UnauthenticatedError."""
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise UnauthenticatedError(
                "the host wants a token",
                next="set GSWARM_TOKEN or use --token-file; an admin makes tokens with gswarm token create",
            )
        found = self._known.get(net.Token.parse(text).digest)
        if found is None:
            raise UnauthenticatedError(
                "the host does not know this token",
                why="it is mistyped, revoked, or another host's",
                next="ask for a new one",
            )
        return found

    async def create(self, request: cluster_pb2.CreateTokenRequest, who: Caller) -> cluster_pb2.CreateTokenResponse:
        """Make a token; its text is in this answer and nowhere else."""
        check_name(request.name, "name")
        role = next((word for word, value in ROLES.items() if value == request.role), None)
        if role is None:
            raise NotFoundError("that is not a role", next=f"roles are {', '.join(ROLES)}", field="role")
        if request.node and role != "agent":
            raise RefusedError("only agent tokens are bound to a node", field="node")
        token = net.Token.new(role, self.fingerprint)
        info = cluster_pb2.TokenInfo(name=request.name, role=request.role, node=request.node)

        def operation(tx: Transaction) -> cluster_pb2.CreateTokenResponse:
            if any(cluster_pb2.TokenInfo.FromString(v).name == request.name for _, v in tx.list_values(PREFIX)):
                raise RefusedError(
                    f"there is a token named {request.name}", next="choose another name, or revoke it", field="name"
                )
            info.created_at.FromDatetime(tx.now)
            tx.put_value(PREFIX + token.digest, info.SerializeToString())
            tx.event("token.created", f"token {request.name} ({role}) made")
            return cluster_pb2.CreateTokenResponse(revision=tx.revision)

        # No request id is stored: a stored reply would keep the secret. A retry makes another name necessary, which is safe.
        meta = common_pb2.RequestMeta(dry_run=request.meta.dry_run, expected_revision=request.meta.expected_revision)
        response = await self._store.apply(operation, actor=who.name, meta=meta, method="Cluster.CreateToken")
        if meta.dry_run:
            return response
        self._learn(token.digest, info)
        response.token = str(token)
        return response

    async def revoke(self, request: cluster_pb2.RevokeTokenRequest, who: Caller) -> cluster_pb2.RevokeTokenResponse:
        """Forget a token; calls with it are refused from now on."""

        def operation(tx: Transaction) -> cluster_pb2.RevokeTokenResponse:
            names = {}
            for key, value in tx.list_values(PREFIX):
                names[cluster_pb2.TokenInfo.FromString(value).name] = key
            if request.name == LOCAL:
                raise RefusedError("the local token cannot be revoked", next="remove host.token and restart the host")
            if request.name not in names:
                raise NotFoundError(
                    f"there is no token named {request.name}", next=near(request.name, names), field="name"
                )
            tx.put_value(names[request.name], None)
            tx.event("token.revoked", f"token {request.name} revoked")
            return cluster_pb2.RevokeTokenResponse(revision=tx.revision)

        response = await self._store.apply(
            operation, actor=who.name, meta=request.meta, method="Cluster.RevokeToken", request=request
        )
        if not request.meta.dry_run:
            for digest in [digest for digest, known in self._known.items() if known.name == request.name]:
                self._known.pop(digest).streams.revoke()
        return response

    async def tokens(self) -> list[cluster_pb2.TokenInfo]:
        """All tokens, without secrets."""

        def operation(tx: Transaction) -> list[cluster_pb2.TokenInfo]:
            return [cluster_pb2.TokenInfo.FromString(value) for _, value in tx.list_values(PREFIX)]

        return await self._store.apply(operation, actor="host", durable=False)


class Interceptor(grpc.aio.ServerInterceptor):
    """Authenticates, checks the role, names the caller, and turns errors into statuses. No traceback leaves the host."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler."""
        handler: Any = await continuation(details)
        service, _, method = details.method.strip("/").rpartition("/")
        if handler is None or service == "grpc.health.v1.Health":
            untouched: grpc.RpcMethodHandler[Any, Any] | None = handler
            return untouched
        who: Caller | GswarmError
        try:
            metadata = dict(details.invocation_metadata or ())
            who = self._auth.check(str(metadata.get("authorization", "")))
            if (known := who.handlers.get(details.method)) is not None:
                return known
            if service.startswith("gswarm.v1."):
                authorize(who, f"{service.removeprefix('gswarm.v1.')}.{method}")
        except GswarmError as error:
            who = error
        wrapped: grpc.RpcMethodHandler[Any, Any] = _wrapped(handler, who, details.method)
        if isinstance(who, Caller):
            who.handlers[details.method] = wrapped
        return wrapped


def authorize(who: Caller, method: str) -> None:
    """Raise ForbiddenError unless the caller's role allows `Service.Method`."""
    allowed = ALLOWED.get(method, CHANGERS)
    if who.role not in allowed:
        raise ForbiddenError(
            f"a {who.role} token may not call {method}",
            why=f"it takes {' or '.join(sorted(allowed))}",
            next="use another token, or ask an admin for one",
        )


def _wrapped(handler: Any, who: Caller | GswarmError, method: str) -> Any:
    if handler.response_streaming:
        inner = handler.stream_stream or handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        behaviour: Any
        if inspect.isasyncgenfunction(inner):

            async def generator(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                try:
                    streams = _enter(who).streams
                    async for response in inner(request, context):
                        if streams.is_revoked:
                            raise _revoked()
                        yield response
                except Exception as error:
                    await _abort(context, error, method)

            behaviour = generator
        else:

            async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
                try:
                    with _enter(who).streams:
                        await inner(request, context)
                except Exception as error:
                    await _abort(context, error, method)

            behaviour = stream
    else:
        inner = handler.stream_unary or handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        behaviour = _unary(inner, who, method)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _unary(inner: Any, who: Caller | GswarmError, method: str) -> Any:
    async def behaviour(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            _enter(who)
            return await inner(request, context)
        except Exception as error:
            await _abort(context, error, method)

    return behaviour


def _enter(who: Caller | GswarmError) -> Caller:
    if isinstance(who, GswarmError):
        raise who
    if who.streams.is_revoked:
        raise _revoked()
    _CALLER.set(who)
    return who


def _revoked() -> UnauthenticatedError:
    return UnauthenticatedError("this token was revoked", next="ask an admin for a new one")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, GswarmError):
        status = grpc.StatusCode[error.status]
        await context.abort(status, str(error), ((net.ERROR_KEY, net.pack_error(error)),))
    log.error("%s failed", method, exc_info=error)
    wrapped = GswarmError("the host failed to do this", why=type(error).__name__, next="see gswarm logs host")
    await context.abort(grpc.StatusCode.INTERNAL, str(wrapped), ((net.ERROR_KEY, net.pack_error(wrapped)),))
