"""The Python client: one typed door to a host. `async with gswarm.connect("host:8090") as swarm: ...`."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import Message

from gswarm import net
from gswarm.cluster.types import ConditionState, Listing, Progress
from gswarm.codec import from_proto
from gswarm.errors import DeadlineError, GswarmError, InvalidError, NotFoundError, UnreachableError
from gswarm.faces import Faces
from gswarm.kinds import BY_SLOT, body_of
from gswarm.names import near
from gswarm.v1 import cluster_pb2, common_pb2

if TYPE_CHECKING:
    from gswarm.mirror import Mirror

T = TypeVar("T")
RETRY_PAUSE_S = 0.2
DEFAULT_LIMIT = 200


class MirrorLike(Protocol):
    """What can be read of a mirror, live or replayed."""

    updated: asyncio.Event

    @property
    def age(self) -> float | None:
        """Seconds since the source was last heard."""

    @property
    def revision(self) -> int:
        """The revision the rows are whole at."""

    def rows(self, cls: type[T]) -> Mapping[str, T]:
        """Key to object of one kind."""


class Reader(Protocol):
    """What a live swarm and a recording both answer."""

    async def list(
        self, cls: type[T], *, filters: Sequence[str] = (), sort: str = "", limit: int = DEFAULT_LIMIT
    ) -> Listing[T]:
        """Rows of a kind."""

    async def get(self, cls: type[T], key: str) -> T:
        """One object."""

    def mirror(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        """A mirror to follow."""


def parse_filter(text: str) -> cluster_pb2.Filter:
    """`field=value`, `field!=value` or `field~part`; a column's heading stands for its field. Raises InvalidError."""
    for mark, op in (
        ("!=", cluster_pb2.Filter.OP_NOT_EQUAL),
        ("=", cluster_pb2.Filter.OP_EQUAL),
        ("~", cluster_pb2.Filter.OP_CONTAINS),
    ):
        name, found, value = text.partition(mark)
        if found and re.fullmatch(r"[A-Za-z_][\w/]*", name):
            return cluster_pb2.Filter(field=name, op=op, value=value)
    raise InvalidError(f"{text!r} is no filter", next="write field=value, field!=value or field~part", field="filter")


def list_request(
    cls: type, *, filters: Sequence[str] = (), sort: str = "", limit: int = 0, keys: Sequence[str] = ()
) -> cluster_pb2.WatchRequest:
    """The request of a one-shot list. Raises InvalidError for filters that are none."""
    if limit < 0:
        raise InvalidError(f"a limit of {limit} rows cannot be", field="limit")
    return cluster_pb2.WatchRequest(
        kinds=[BY_SLOT[cls.__name__.lower()].kind],
        filters=[parse_filter(text) for text in filters],
        sort=sort,
        limit=limit,
        keys=keys,
        list_only=True,
    )


class Swarm(Faces):
    """A live swarm. Its methods raise GswarmError subclasses only; the actions hang on its domains: `swarm.model.serve(...)`."""

    def __init__(self, endpoint: net.Endpoint) -> None:
        """Use `connect` instead; the channel opens on entering."""
        super().__init__(self)
        self.endpoint = endpoint
        self.token_text = str(endpoint.token or "")
        self.dry_run = False
        self.request_id = ""
        """When set, the id of the next command's requests: a retry with the same id is answered, not repeated."""
        self.in_host = False
        """Whether this is the host talking to itself for callers elsewhere, whose files these are not."""
        self.tell: Callable[[str], None] = lambda text: None
        """Called with what is worth knowing and no error; the command line says it on standard error."""
        self._channel: grpc.aio.Channel | None = None
        self._calls = 0

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.endpoint.address

    async def __aenter__(self) -> Self:
        self._channel = await net.pinned_channel(self.endpoint)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def using(self, *, token: str | None = None, request_id: str = "", dry_run: bool = False) -> Swarm:
        """The same connection on behalf of another token, with a request id, or as a dry run."""
        other = copy.copy(self)
        Faces.__init__(other, other)
        other.token_text = self.token_text if token is None else token
        other.request_id, other.dry_run, other._calls = request_id, dry_run, 0
        return other

    @property
    def channel(self) -> grpc.aio.Channel:
        """The open channel."""
        return self._open()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("use the swarm inside `async with gswarm.connect(...)`")
        return self._channel

    async def call(self, request: Message, *, timeout: float | None = 60.0) -> Any:
        """Send a request message to its method and return the response message.

        A mutating request gets an id, so that the retries made here while the host comes up are safe.
        """
        path, response = _method(type(request))
        if "meta" in request.DESCRIPTOR.fields_by_name:
            self._fill_meta(request.meta)  # type: ignore[attr-defined]
        call = self._open().unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        deadline = time.monotonic() + net.CONNECT_S
        while True:
            try:
                return await call(request, metadata=net.bearer(self.token_text), timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    net.raise_error(error, self.address)
                if any(key == net.ERROR_KEY for key, _ in error.trailing_metadata() or ()):
                    net.raise_error(error, self.address)
            await asyncio.sleep(RETRY_PAUSE_S)

    def _fill_meta(self, meta: common_pb2.RequestMeta) -> None:
        self._calls += 1
        if not meta.request_id:
            base = self.request_id or uuid.uuid4().hex
            # An action that makes several calls must not reuse one id for different requests.
            meta.request_id = base if self._calls == 1 or not self.request_id else f"{base}-{self._calls}"
        meta.dry_run = meta.dry_run or self.dry_run

    async def watch(
        self, request: cluster_pb2.WatchRequest, *, silence_s: float | None = None
    ) -> AsyncIterator[cluster_pb2.WatchResponse]:
        """The raw stream. Raises UnreachableError after `silence_s` without a message (the host sends heartbeats)."""
        call = self._open().unary_stream(
            "/gswarm.v1.Cluster/Watch",
            request_serializer=cluster_pb2.WatchRequest.SerializeToString,
            response_deserializer=cluster_pb2.WatchResponse.FromString,
        )(request, metadata=net.bearer(self.token_text))
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    response = await call.read()
                if not isinstance(response, cluster_pb2.WatchResponse):
                    return
                yield response
        except TimeoutError:
            raise UnreachableError(f"{self.address} is silent", why=f"nothing came for {silence_s:g} s") from None
        except grpc.aio.AioRpcError as error:
            net.raise_error(error, self.address)
        finally:
            call.cancel()

    async def list(
        self,
        cls: type[T],
        *,
        filters: Sequence[str] = (),
        sort: str = "",
        limit: int = DEFAULT_LIMIT,
        keys: Sequence[str] = (),
    ) -> Listing[T]:
        """Rows of a kind, of these keys if any are named; the host filters, sorts and limits."""
        return await self._list(cls, list_request(cls, filters=filters, sort=sort, limit=limit, keys=keys))

    async def _list(self, cls: type[T], request: cluster_pb2.WatchRequest) -> Listing[T]:
        deadline = time.monotonic() + net.CONNECT_S
        while True:
            rows: Listing[T] = Listing()
            try:
                async for response in self.watch(request, silence_s=30.0):
                    rows.extend(from_proto(body_of(obj), cls) for obj in response.objects)
                    rows.left_out += sum(rest.left_out for rest in response.rest)
                    if response.revision:
                        rows.revision, rows.time = response.revision, response.time.ToDatetime(UTC)
                return rows
            except UnreachableError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    async def get(self, cls: type[T], key: str) -> T:
        """One object by key. Raises NotFoundError with near names."""
        rows = await self._list(cls, list_request(cls, keys=(key,)))
        if rows:
            return rows[0]
        slot = cls.__name__.lower()
        field = BY_SLOT[slot].key_field
        known = await self._list(cls, list_request(cls, limit=1000))
        raise NotFoundError(
            f"there is no {slot} {key}", next=near(key, (str(getattr(row, field, "")) for row in known)), field=slot
        )

    def mirror(
        self,
        kinds: Iterable[type] = (),
        *,
        samples: bool = True,
        history_s: float = 0.0,
        keys: Sequence[str] = (),
    ) -> Mirror:
        """A mirror of these kinds (all by default), with samples unless told otherwise; enter it to start."""
        from gswarm.mirror import Mirror

        request = cluster_pb2.WatchRequest(kinds=[BY_SLOT[k.__name__.lower()].kind for k in kinds], keys=keys)
        if samples:
            request.samples.history_s = history_s
            request.samples.SetInParent()
        return Mirror(self, request)

    async def wait(
        self,
        until: Callable[[T, T | None], Progress],
        asked: T,
        *,
        timeout: float | None = None,
        show: Callable[[Progress], None] | None = None,
    ) -> T:
        """Follow an object until `until(asked, now)` says done; returns it as it then is.

        Raises GswarmError when it failed and DeadlineError after `timeout` seconds; the work itself goes on.
        """
        cls = type(asked)
        key = str(getattr(asked, BY_SLOT[cls.__name__.lower()].key_field))
        shown: Progress | None = None
        try:
            async with asyncio.timeout(timeout), self.mirror((cls,), samples=False, keys=(key,)) as mirror:
                while True:
                    updated = mirror.updated
                    if mirror.revision:
                        now = mirror.rows(cls).get(key)
                        progress = until(asked, now)
                        if progress.state is ConditionState.FAILED:
                            raise GswarmError(f"{cls.__name__.lower()} {key} failed", why=progress.message)
                        if show is not None and progress != shown:
                            show(progress)
                        shown = progress
                        if progress.state is ConditionState.DONE:
                            return now if now is not None else asked
                    await updated.wait()
        except TimeoutError:
            told = f"last seen: {shown.message}" if shown else ""
            raise DeadlineError(
                f"{cls.__name__.lower()} {key} is not done after {timeout:g} s",
                why=told,
                next="it goes on; look again later",
            ) from None


def _method(request: type[Message]) -> tuple[str, type[Message]]:
    """Path and response type of the method that takes this request."""
    descriptor: Any = request.DESCRIPTOR
    for service in descriptor.file.services_by_name.values():
        for method in service.methods:
            if method.input_type is descriptor:
                return f"/{service.full_name}/{method.name}", message_factory.GetMessageClass(method.output_type)
    raise TypeError(f"no method takes {request.__name__}")


@contextlib.asynccontextmanager
async def connect(
    address: str | None = None, *, token: str | None = None, token_file: Path | None = None
) -> AsyncIterator[Swarm]:
    """Connect to a host: "HOST:8090", or the one of GSWARM_HOST, config.yaml or this machine.

    The token comes from `token`, `token_file`, GSWARM_TOKEN, or the local host's own file.
    """
    if token is not None:
        host, port = net.parse_address(address or "127.0.0.1")
        endpoint = net.Endpoint(host, port, net.Token.parse(token))
    else:
        endpoint = net.discover(address, token_file)
    async with Swarm(endpoint) as swarm:
        yield swarm
