"""What a person can do with models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from gswarm.catalogue import Doc, Ref, action
from gswarm.cluster.types import Listing
from gswarm.model.types import Model, Placement, Service

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

FILTER = "field=value, field!=value or field~part, by column or by name in JSON; repeat to narrow"


@action("model", "list", read=True)
async def list_(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "name",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Model]:
    """List models.

    Examples:
        gswarm model list
        gswarm model list --sort -size_bytes --output json
    """
    return await swarm.list(Model, filters=tuple(filter), sort=sort, limit=limit)


@action("model", "info", read=True)
async def info(swarm: Swarm, name: Annotated[str, Ref("model"), Doc("model name")]) -> Model:
    """Show one model: versions, files, metadata.

    Examples:
        gswarm model info smollm2
    """
    return await swarm.get(Model, name)


@action("model", "placements", read=True)
async def placements(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Placement]:
    """List which version is on which node, and what is under way.

    Examples:
        gswarm model placements --filter model=smollm2
    """
    return await swarm.list(Placement, filters=tuple(filter), limit=limit)


@action(
    "model",
    "download",
    key="d",
    until="gswarm.model.types:download_done",
    effect="stores the model's files on the node",
)
async def download(
    swarm: Swarm,
    name: Annotated[str, Doc("name to register it under")],
    *,
    source: Annotated[str, Doc("file:///dir, https://host/file or simulated:16GiB")],
    node: Annotated[
        list[str], Ref("node"), Doc("nodes to store it on; by default one the host picks")
    ] = [],  # noqa: B006
    metadata: Annotated[list[str], Doc("key=value; repeat")] = [],  # noqa: B006
) -> list[Placement]:
    """Download a model: files are kept once, whatever they are named.

    Examples:
        gswarm model download smollm2 --source file:///models/smollm2
        gswarm model download llama-8b --source simulated:16GiB
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import models_pb2

    request = models_pb2.DownloadRequest(name=name, source=source, nodes=node, metadata=pairs(metadata, "metadata"))
    response = await swarm.call(request)
    return [from_proto(placement, Placement) for placement in response.placements]


@action("model", "delete", key="D", destructive=True, effect="deletes the files that no other model uses")
async def delete(
    swarm: Swarm,
    name: Annotated[str, Ref("model"), Doc("model name")],
    *,
    node: Annotated[str, Ref("node"), Doc("only the copy on this node")] = "",
) -> None:
    """Delete a model; refused while it is served.

    Examples:
        gswarm model delete smollm2 --yes
    """
    from gswarm.v1 import models_pb2

    await swarm.call(models_pb2.DeleteModelRequest(name=name, node=node))


@action("model", "annotate", effect="changes the model's metadata")
async def annotate(
    swarm: Swarm,
    name: Annotated[str, Ref("model"), Doc("model name")],
    *,
    set: Annotated[list[str], Doc("key=value; repeat")] = [],  # noqa: B006
    clear: Annotated[list[str], Doc("key to remove; repeat")] = [],  # noqa: B006
) -> Model:
    """Set or clear metadata of a model.

    Examples:
        gswarm model annotate smollm2 --set team=search --clear draft
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import models_pb2

    response = await swarm.call(models_pb2.AnnotateRequest(name=name, set=pairs(set, "set"), clear=clear))
    return from_proto(response.model, Model)


@action(
    "model",
    "serve",
    key="s",
    until="gswarm.model.types:service_ready",
    effect="starts a backend that holds the model in memory",
)
async def serve(
    swarm: Swarm,
    name: Annotated[str, Ref("model"), Doc("model name")],
    *,
    device: Annotated[
        list[str], Ref("device"), Doc("where: n1:gpu0, gpu0, cpu; repeat for several; by default as few as fit")
    ] = [],  # noqa: B006
    port: Annotated[int, Doc("port on the node's loopback; 0: any")] = 0,
    backend: Annotated[str, Doc("transformers, vllm or simulated; by default one that the node has")] = "",
    version: Annotated[str, Doc("version; by default the newest")] = "",
    service: Annotated[str, Doc("name of the service; by default the model's")] = "",
    option: Annotated[list[str], Doc("key=value for the backend; repeat")] = [],  # noqa: B006
) -> Service:
    """Serve a model; ask it through the host's model port.

    Examples:
        gswarm model serve smollm2 --device cpu --port 9100
        gswarm model serve llama-8b --device n1:gpu0 --backend vllm
        gswarm model serve llama-70b --device n1:gpu0 --device n1:gpu1
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import models_pb2

    request = models_pb2.ServeRequest(
        model=name,
        version=version,
        devices=device,
        port=port,
        backend=backend,
        name=service,
        options=pairs(option, "option"),
    )
    return from_proto((await swarm.call(request)).service, Service)


@action(
    "model",
    "stop",
    key="x",
    until="gswarm.model.types:service_stopped",
    destructive=True,
    effect="ends the backend; requests under way fail",
)
async def stop(swarm: Swarm, service: Annotated[str, Ref("service"), Doc("name of the service")]) -> Service:
    """Stop a service.

    Examples:
        gswarm model stop smollm2 --yes
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import models_pb2

    return from_proto((await swarm.call(models_pb2.StopServiceRequest(name=service))).service, Service)


@action("model", "services", read=True)
async def services(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "name",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Service]:
    """List services: what serves which model, where, and how it is.

    Examples:
        gswarm model services
        gswarm model services --filter phase=ready
    """
    return await swarm.list(Service, filters=tuple(filter), sort=sort, limit=limit)


@action("model", "logs", key="v", read=True)
async def logs(
    swarm: Swarm,
    service: Annotated[str, Ref("service"), Doc("name of the service")],
    *,
    tail: Annotated[int, Doc("bytes from the end")] = 65536,
    follow: Annotated[bool, Doc("go on as it grows")] = False,
) -> AsyncIterator[bytes]:
    """Show what a service's backend wrote.

    Examples:
        gswarm model logs smollm2 --follow
    """
    from gswarm.model.access import read_logs

    return read_logs(swarm, service, tail, follow=follow)


def pairs(words: list[str], field: str) -> dict[str, str]:
    """`key=value` words as a mapping. Raises InvalidError."""
    from gswarm.errors import InvalidError

    found = {}
    for word in words:
        key, mark, value = word.partition("=")
        if not mark or not key:
            raise InvalidError(f"{word!r} is not key=value", field=field)
        found[key] = value
    return found
