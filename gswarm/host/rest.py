"""REST under /api/v1: one route an action and one a resource, with an OpenAPI page that loads nothing from elsewhere."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Body, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import AfterValidator, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

from gswarm import __version__, net
from gswarm.catalogue import Action, Parameter, actions
from gswarm.cluster.types import ConditionState
from gswarm.codec import dataclass_of, to_plain
from gswarm.errors import ForbiddenError, GswarmError, InvalidError, UnauthenticatedError
from gswarm.host.auth import CHANGERS
from gswarm.kinds import BY_SLOT
from gswarm.swarm import Swarm

if TYPE_CHECKING:
    from gswarm.host.server import HostContext

PREFIX = "/api/v1"
PLURALS = {slot: f"{slot}s" for slot in BY_SLOT}
DOMAINS = {
    "node": "cluster", "device": "cluster", "event": "cluster", "model": "model", "placement": "model",
    "service": "model", "chunk": "data", "workflow": "queue", "task": "queue", "lane": "queue", "plan": "queue",
    "session": "profiler", "alert": "alert",
}  # fmt: skip
WAIT_LIMIT_S = 300.0
_CALLER: ContextVar[Swarm] = ContextVar("rest_caller")


@contextlib.asynccontextmanager
async def build(host: HostContext) -> AsyncIterator[FastAPI]:
    """The application; it talks to its own host over one loopback channel, with each caller's token."""
    bind = host.file.bind
    address = "127.0.0.1" if bind == "0.0.0.0" else "::1" if bind == "::" else bind
    async with Swarm(net.Endpoint(address, host.file.port, host.token)) as swarm:
        swarm.in_host = True
        yield application(swarm, loopback=net.is_loopback(bind))


def application(swarm: Swarm, *, loopback: bool) -> FastAPI:
    """Routes over a swarm. Only on `loopback` may a caller name files: they are this machine's, not the caller's."""
    app = FastAPI(
        title="gswarm", version=__version__, docs_url=None, redoc_url=None, openapi_url=f"{PREFIX}/openapi.json"
    )

    @app.middleware("http")
    async def name_caller(request: Request, call_next: Callable[[Request], Any]) -> Response:
        """The caller's own token rides along, so that roles hold as on gRPC."""
        if not request.url.path.startswith(PREFIX) or request.url.path in (f"{PREFIX}/openapi.json", f"{PREFIX}/docs"):
            response: Response = await call_next(request)
            return response
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return problem(UnauthenticatedError("the host wants a token", next="send Authorization: Bearer <token>"))
        _CALLER.set(swarm.using(token=token, request_id=request.headers.get("idempotency-key", "")))
        answered: Response = await call_next(request)
        return answered

    @app.exception_handler(GswarmError)
    async def gswarm_error(_: Request, error: GswarmError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return problem(
            InvalidError(f"{name} is wrong", why=str(first["msg"]).removeprefix("Value error, "), field=name)
        )

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = "NOT_FOUND" if error.status_code == 404 else "INVALID_ARGUMENT"
        what = f"{request.method} {request.url.path}: {error.detail.lower()}"
        body = {"error": {"message": what, "why": "", "next": f"see {PREFIX}/docs", "field": "", "code": code}}
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.get("/", include_in_schema=False)
    @app.get(f"{PREFIX}/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(files("gswarm.host").joinpath("docs.html").read_text())

    router = APIRouter(prefix=PREFIX)
    for slot in BY_SLOT:
        _add_resource(router, slot)
    for action in actions():
        if not action.local:
            _add_action(router, action, loopback=loopback)
    app.include_router(router)
    return app


def problem(error: GswarmError) -> JSONResponse:
    """An error as JSON with its status."""
    body = {
        "error": {
            "message": error.what,
            "why": error.why,
            "next": error.next,
            "field": error.field,
            "code": error.status,
        }
    }
    return JSONResponse(body, error.http)


def path_of(action: Action) -> str:
    """Its method goes there: /actions/model/serve."""
    return f"/actions/{action.id.replace('.', '/')}"


def _add_resource(router: APIRouter, slot: str) -> None:
    domain, plural = DOMAINS[slot], PLURALS[slot]
    cls: Any = dataclass_of(slot)

    async def rows(
        filter: Annotated[list[str] | None, Query(description="field=value, field!=value or field~part")] = None,
        sort: Annotated[str, Query()] = "",
        limit: Annotated[int, Query(ge=0, le=100_000)] = 200,
    ) -> JSONResponse:
        found = await _CALLER.get().list(cls, filters=filter or (), sort=sort, limit=limit)
        return JSONResponse({"items": to_plain(list(found)), "left_out": found.left_out, "revision": found.revision})

    async def one(id: str) -> JSONResponse:
        return JSONResponse(to_plain(await _CALLER.get().get(cls, id)))

    tags = [domain]
    router.add_api_route(f"/{domain}/{plural}", rows, methods=["GET"], tags=tags, name=f"list {plural}")  # type: ignore[arg-type]
    router.add_api_route(f"/{domain}/{plural}/{{id:path}}", one, methods=["GET"], tags=tags, name=f"get {slot}")  # type: ignore[arg-type]


def touches_files(action: Action) -> bool:
    """Whether it reads or writes files named by the caller, which over REST are files of the host's machine."""
    return any(p.type is Path for p in action.parameters)


def method_of(action: Action) -> str:
    """GET is for what changes nothing, files included."""
    return "GET" if action.read and not touches_files(action) else "POST"


async def _check_files(swarm: Swarm, action: Action, *, loopback: bool) -> None:
    """Raises ForbiddenError unless the caller may name files of this machine."""
    if not loopback:
        raise ForbiddenError(
            f"{action.name} is not done over REST here",
            why="it names files of the host's machine, and this host listens beyond loopback",
            next=f"run gswarm {action.name} on the machine that has the files, or use the Python client there",
        )
    role = (await swarm.status()).role
    if role not in CHANGERS:
        raise ForbiddenError(f"{action.name} names files of the host's machine", why=f"the role {role} may not do that")


async def _first(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, the first one in hand: an error comes while there can still be a status for it."""
    head = await anext(pieces, b"")

    async def whole() -> AsyncIterator[bytes]:
        yield head
        async for piece in pieces:
            yield piece

    return whole()


def _add_action(router: APIRouter, action: Action, *, loopback: bool) -> None:
    model = body_model(action)

    async def run(values: dict[str, Any], wait: float | None) -> Response:
        swarm = _CALLER.get()
        if touches_files(action):
            await _check_files(swarm, action, loopback=loopback)
        result = await action.run(swarm, **values)
        if hasattr(result, "__aiter__"):
            return StreamingResponse(await _first(result), media_type="application/octet-stream")
        until = action.progress()
        if until is None:
            return JSONResponse(to_plain(result))
        return await _follow(swarm, until, result, wait)

    async def post(
        body: Annotated[model, Body()],  # type: ignore[valid-type]
        wait: Annotated[float | None, Query(ge=0, le=WAIT_LIMIT_S, description="seconds to wait for the end")] = None,
        idempotency_key: Annotated[str | None, Header(description="a retry with it is answered, not repeated")] = None,
    ) -> Response:
        return await run(_given(body), wait)

    async def get(query: Annotated[model, Query()]) -> Response:  # type: ignore[valid-type]
        return await run(_given(query), None)

    # FastAPI resolves annotations by name; ours are objects made here.
    for function in (post, get):
        hints = inspect.get_annotations(function)
        hints.update({"body": Annotated[model, Body()]} if function is post else {"query": Annotated[model, Query()]})
        hints.update(
            {
                "wait": Annotated[float | None, Query(ge=0, le=WAIT_LIMIT_S)],
                "idempotency_key": Annotated[str | None, Header()],
            }
            if function is post
            else {}
        )
        hints["return"] = Response
        function.__annotations__ = hints
    options: dict[str, Any] = {
        "tags": [action.domain or "cluster"],
        "summary": action.summary,
        "description": action.doc,
        "name": action.name,
    }
    method = method_of(action)
    router.add_api_route(path_of(action), get if method == "GET" else post, methods=[method], **options)


def _given(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.model_fields_set}


async def _follow(swarm: Swarm, until: Any, result: Any, wait: float | None) -> Response:
    """202 with where to look, or after `wait` seconds what has become of it."""
    many = isinstance(result, list)
    asked = result if many else [result]
    location = _location(asked[0]) if asked else PREFIX
    if wait:
        try:
            asked = [await swarm.wait(until, one, timeout=wait) for one in asked]
        except GswarmError as error:
            if error.status != "DEADLINE_EXCEEDED":
                raise
        else:
            return JSONResponse(to_plain(asked if many else asked[0]))
    progress = [until(one, one) for one in asked]
    pending = any(p.state is ConditionState.PENDING for p in progress)
    body = to_plain(asked if many else asked[0])
    return JSONResponse(body, 202 if pending else 200, headers={"Location": location} if pending else {})


def _location(item: Any) -> str:
    from urllib.parse import quote

    slot = type(item).__name__.lower()
    key = getattr(item, BY_SLOT[slot].key_field)
    return f"{PREFIX}/{DOMAINS[slot]}/{PLURALS[slot]}/{quote(str(key), safe='/@')}"


def body_model(action: Action) -> type[Any]:
    """A Pydantic model of an action's parameters; unknown fields are refused."""
    fields: dict[str, Any] = {
        p.name: (_annotation(p), Field(_default(p), description=p.doc)) for p in action.parameters
    }
    name = "".join(part.title() for part in action.id.replace("_", ".").split(".")) + "Body"
    made: type[Any] = create_model(name, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    return made


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("a file of the host's machine is named by its absolute path")
    return text


def _annotation(p: Parameter) -> Any:
    kind: Any = Literal[p.choices] if p.choices else p.type
    if p.type is Path:
        # The host's working directory and standard input mean nothing to a caller, so neither is a default.
        kind = Annotated[str, AfterValidator(_absolute)]
        return list[kind] if p.many else kind
    if p.many:
        kind = list[kind]
    return kind | None if p.optional else kind


def _default(p: Parameter) -> Any:
    if p.required or p.type is Path:
        return ...
    return list(p.default) if p.many and isinstance(p.default, list | tuple) else p.default
