"""What a person can do with the cluster as a whole: status, nodes, devices, events, tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from gswarm.catalogue import Doc, Ref, action
from gswarm.cluster.types import Device, Event, HostStatus, Listing, MadeToken, Node, Role, TokenInfo

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

FILTER = "field=value, field!=value or field~part, by column or by name in JSON; repeat to narrow"


@action("", "status", read=True)
async def status(swarm: Swarm) -> HostStatus:
    """Show the host: version, ports, counts, and the role you have.

    Examples:
        gswarm status
        gswarm status --host 10.0.0.5:8090 --output json
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import cluster_pb2

    return from_proto(await swarm.call(cluster_pb2.StatusRequest()), HostStatus)


@action("node", "list", read=True)
async def node_list(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Node]:
    """List nodes.

    Examples:
        gswarm node list
        gswarm node list --filter phase!=ready
    """
    return await swarm.list(Node, filters=tuple(filter), sort=sort, limit=limit)


@action("node", "show", read=True)
async def node_show(swarm: Swarm, node: Annotated[str, Ref("node"), Doc("node name")]) -> Node:
    """Show one node.

    Examples:
        gswarm node show n1
    """
    return await swarm.get(Node, node)


@action("node", "forget", destructive=True, effect="drops the node, its devices, placements and services")
async def node_forget(swarm: Swarm, node: Annotated[str, Ref("node"), Doc("node name")]) -> None:
    """Forget a node that has left for good.

    Examples:
        gswarm node forget n3 --yes
    """
    from gswarm.v1 import cluster_pb2

    await swarm.call(cluster_pb2.ForgetNodeRequest(name=node))


@action("device", "list", read=True)
async def device_list(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "alias",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Device]:
    """List devices: GPUs, CPUs, simulated ones.

    Examples:
        gswarm device list
        gswarm device list --filter node=n1 --output json
    """
    return await swarm.list(Device, filters=tuple(filter), sort=sort, limit=limit)


@action("device", "show", read=True)
async def device_show(
    swarm: Swarm, device: Annotated[str, Ref("device"), Doc("alias such as n1:gpu0, or the device's id")]
) -> Device:
    """Show one device.

    Examples:
        gswarm device show n1:gpu0
    """
    from gswarm.errors import NotFoundError, RefusedError
    from gswarm.names import near

    rows = await swarm.list(Device, limit=0)
    exact = [row for row in rows if device in (row.id, row.alias)]
    found = exact or [row for row in rows if row.alias.partition(":")[2] == device]
    if len(found) > 1:
        raise RefusedError(
            f"{device} could be {', '.join(row.alias for row in found[:6])}", next="name one of them", field="device"
        )
    if not found:
        raise NotFoundError(
            f"there is no device {device}", next=near(device, (row.alias for row in rows)), field="device"
        )
    return found[0]


@action("event", "list", read=True)
async def event_list(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc(FILTER)] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "-time",
    limit: Annotated[int, Doc("rows at most")] = 50,
) -> Listing[Event]:
    """List what happened, newest first: who did what, when, and how it ended.

    Examples:
        gswarm event list
        gswarm event list --filter severity=error
    """
    return await swarm.list(Event, filters=tuple(filter), sort=sort, limit=limit)


@action("token", "create", role="admin", effect="makes a token")
async def token_create(
    swarm: Swarm,
    name: Annotated[str, Doc("name, for the log and for revoking")],
    role: Annotated[Role, Doc("what it may do")],
    *,
    node: Annotated[str, Doc("for role agent: the only node it may speak for")] = "",
) -> MadeToken:
    """Make a token; its text is shown once.

    Examples:
        gswarm token create laptop operator
        gswarm token create n7 agent --node n7
    """
    from gswarm.v1 import cluster_pb2

    value = cluster_pb2.Role.Value(f"ROLE_{role.name}")
    response = await swarm.call(cluster_pb2.CreateTokenRequest(name=name, role=value, node=node))
    return MadeToken(name, role, response.token)


@action("token", "list", read=True, role="admin")
async def token_list(swarm: Swarm) -> list[TokenInfo]:
    """List tokens by name and role; secrets are shown nowhere.

    Examples:
        gswarm token list
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import cluster_pb2

    response = await swarm.call(cluster_pb2.ListTokensRequest())
    return [from_proto(info, TokenInfo) for info in response.tokens]


@action("token", "revoke", role="admin", destructive=True, effect="whoever uses this token is refused from now on")
async def token_revoke(swarm: Swarm, name: Annotated[str, Doc("name of the token")]) -> None:
    """Revoke a token.

    Examples:
        gswarm token revoke laptop --yes
    """
    from gswarm.v1 import cluster_pb2

    await swarm.call(cluster_pb2.RevokeTokenRequest(name=name))
