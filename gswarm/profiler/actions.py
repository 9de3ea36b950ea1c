"""What a person can do with recording sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gswarm.catalogue import Doc, Ref, Short, action
from gswarm.cluster.types import Listing
from gswarm.errors import InvalidError
from gswarm.profiler.types import Analysis, Comparison, Drawn, Exported, Session

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

_OFFLINE = "gswarm.profiler.reading:needs_no_host"


@action("profiler", "start", key="n", effect="records metrics and everything that happens")
async def start(
    swarm: Swarm,
    *,
    name: Annotated[str, Doc("name of the session")],
    interval: Annotated[float, Doc("seconds between samples, 0.1 to 60")] = 1.0,
    nodes: Annotated[
        list[str], Ref("node"), Doc("only these nodes; by default all, also those that join later")
    ] = [],  # noqa: B006
) -> Session:
    """Start recording a session.

    Examples:
        gswarm profiler start --name run-42
        gswarm profiler start --name fast --interval 0.2 --nodes n1
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import profiler_pb2

    if interval <= 0:  # on the wire 0 stands for the default
        raise InvalidError(f"an interval of {interval:g} s cannot be", next="from 0.1 to 60 s", field="interval")
    response = await swarm.call(profiler_pb2.StartSessionRequest(name=name, interval_s=interval, nodes=nodes))
    return from_proto(response.session, Session)


@action(
    "profiler", "stop", key="x", until="gswarm.profiler.types:session_sealed", effect="ends the recording and seals it"
)
async def stop(swarm: Swarm, name: Annotated[str, Ref("session"), Doc("name of the session")]) -> Session:
    """Stop a session and seal its recording.

    Examples:
        gswarm profiler stop run-42
    """
    from gswarm.codec import from_proto
    from gswarm.v1 import profiler_pb2

    response = await swarm.call(profiler_pb2.StopSessionRequest(name=name))
    return from_proto(response.session, Session)


@action("profiler", "list", read=True)
async def list_(
    swarm: Swarm,
    *,
    filter: Annotated[list[str], Doc("field=value, field!=value or field~part; repeat to narrow")] = [],  # noqa: B006
    sort: Annotated[str, Doc("field to sort by, - before it for descending")] = "-started_at",
    limit: Annotated[int, Doc("rows at most")] = 200,
) -> Listing[Session]:
    """List sessions.

    Examples:
        gswarm profiler list
    """
    return await swarm.list(Session, filters=tuple(filter), sort=sort, limit=limit)


@action("profiler", "info", read=True)
async def info(swarm: Swarm, name: Annotated[str, Ref("session"), Doc("name of the session")]) -> Session:
    """Show one session: what it holds and where it lies.

    Examples:
        gswarm profiler info run-42
    """
    return await swarm.get(Session, name)


@action("profiler", "mark", key="m", effect="puts a mark on every running session's time line")
async def mark(swarm: Swarm, text: Annotated[str, Doc("what to say there")]) -> None:
    """Put a mark on the time line of what is being recorded.

    Examples:
        gswarm profiler mark "batch 64"
    """
    from gswarm.v1 import profiler_pb2

    await swarm.call(profiler_pb2.MarkRequest(text=text))


@action("profiler", "delete", key="D", destructive=True, effect="deletes the recording's files")
async def delete(swarm: Swarm, name: Annotated[str, Ref("session"), Doc("name of the session")]) -> None:
    """Delete a stopped session and its recording.

    Examples:
        gswarm profiler delete run-41 --yes
    """
    from gswarm.v1 import profiler_pb2

    await swarm.call(profiler_pb2.DeleteSessionRequest(name=name))


@action("profiler", "export", key="E", read=True, effect="writes the samples to a file", offline=_OFFLINE)
async def export(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session, or a recording's directory")],
    *,
    format: Annotated[
        Literal["csv", "parquet", "json", "perfetto"],
        Doc("csv, parquet, json lines, or a trace for ui.perfetto.dev"),
    ] = "csv",
    out: Annotated[Path | None, Short("-O"), Doc("file to write; by default NAME and the format, here")] = None,
    force: Annotated[bool, Doc("overwrite the file if it exists")] = False,
) -> Exported:
    """Write a session's samples to a file, one row a device and moment; or all of it as a trace.

    Examples:
        gswarm profiler export run-42 --format csv
        gswarm profiler export run-42 --format perfetto --out run-42.json
    """
    from gswarm.profiler.reading import export as write

    return await write(swarm, name, format, out, force=force)


@action("profiler", "analyze", key="a", read=True, offline=_OFFLINE)
async def analyze(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session, or a recording's directory")],
) -> Analysis:
    """Say what stands out in a recording, with figures per device, node and model.

    Means and percentiles are weighted with time. What a device did not give is NA.

    Examples:
        gswarm profiler analyze run-42
        gswarm profiler analyze ./run-42 --output json
    """
    from gswarm.profiler.reading import analyse

    return await analyse(swarm, name)


@action("profiler", "compare", read=True, offline=_OFFLINE)
async def compare(
    swarm: Swarm,
    a: Annotated[str, Ref("session"), Doc("name of a session, or a recording's directory")],
    b: Annotated[str, Ref("session"), Doc("the one to compare it with")],
    *,
    metric: Annotated[list[str], Doc("compare this metric; repeat; by default the usual ones")] = [],  # noqa: B006
    confidence: Annotated[float, Doc("that none of the changes told is noise, 0.5 to under 1")] = 0.95,
    seed: Annotated[int, Doc("of the resampling: the same seed gives the same intervals")] = 0,
) -> Comparison:
    """Compare two recordings per device and per model, and tell changes from noise.

    Each difference has an interval from a block bootstrap over time; it is called a change only when 0 is not in it.

    Examples:
        gswarm profiler compare before after
        gswarm profiler compare ./before ./after --metric power_mw
    """
    from gswarm.profiler.reading import compare as work

    return await work(swarm, a, b, metrics=metric, confidence=confidence, seed=seed)


@action("profiler", "plot", key="p", read=True, effect="draws a picture into a file", offline=_OFFLINE)
async def plot(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session, or a recording's directory")],
    *,
    metric: Annotated[list[str], Doc("draw this metric; repeat; by default the usual ones")] = [],  # noqa: B006
    device: Annotated[list[str], Doc("only this device of the recording; repeat")] = [],  # noqa: B006
    out: Annotated[Path | None, Short("-O"), Doc("file to write, .svg or .png; by default NAME.svg, here")] = None,
    term: Annotated[bool, Doc("draw in the terminal instead")] = False,
    force: Annotated[bool, Doc("overwrite the file if it exists")] = False,
) -> Drawn:
    """Draw a recording's metrics over time, with model loads, tasks and marks.

    Files need matplotlib (pip install "gswarm[plot]"); --term does not.

    Examples:
        gswarm profiler plot run-42 --out run-42.png --metric power_mw
        gswarm profiler plot run-42 --term
    """
    from gswarm.profiler.reading import plot as draw

    return await draw(swarm, name, metrics=metric, devices=device, out=out, term=term, force=force)


@action("profiler", "report", key="R", read=True, effect="writes a page about the recording", offline=_OFFLINE)
async def report(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session, or a recording's directory")],
    *,
    out: Annotated[Path | None, Short("-O"), Doc("file to write; by default NAME.html, here")] = None,
    force: Annotated[bool, Doc("overwrite the file if it exists")] = False,
) -> Exported:
    """Write a recording as one HTML page that needs nothing else: findings, figures, timeline, charts.

    Examples:
        gswarm profiler report run-42 --out report.html
    """
    from gswarm.profiler.reading import report as write

    return await write(swarm, name, out, force=force)
