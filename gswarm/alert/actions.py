"""What a person can do with alerts: see which rules hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from gswarm.alert.types import Alert
from gswarm.catalogue import Doc, action
from gswarm.cluster.types import Listing

if TYPE_CHECKING:
    from gswarm.swarm import Swarm


@action("alert", "list", read=True)
async def list_(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc("field=value, field!=value or field~part; repeat to narrow")] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "-since",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Alert]:
    """List the alerts that fire now; those that are over are events.

    Examples:
        gswarm alert list
        gswarm alert list --filter severity=error
    """
    return await swarm.list(Alert, filters=tuple(filter), sort=sort, limit=limit)
