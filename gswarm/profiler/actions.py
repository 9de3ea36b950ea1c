"""What a person can do with recording sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gswarm.catalogue import Doc, Ref, Short, action
from gswarm.cluster.types import Listing
from gswarm.errors import InvalidError, NotFoundError
from gswarm.profiler.types import (
    Analysis,
    Comparison,
    Drawn,
    Exported,
    MetricInfo,
    Pulled,
    Recovered,
    Sampling,
    Session,
    Topology,
)

if TYPE_CHECKING:
    from gswarm.swarm import Swarm

_HOST_FOR = "gswarm.profiler.reading:host_for"


@action("profiler", "start", key="n", effect="records metrics and everything that happens")
async def start(
    swarm: Swarm,
    *,
    name: Annotated[str, Doc("name of the session")],
    interval: Annotated[float, Doc("seconds between samples, 0.1 to 60")] = 1.0,
    nodes: Annotated[
        list[str], Ref("node"), Doc("only these nodes; by default all, also those that join later")
    ] = [],  # noqa: B006
    metrics: Annotated[
        list[str], Doc("only these metrics, a,b or repeated; by default all that devices give")
    ] = [],  # noqa: B006
    tag: Annotated[list[str], Doc("key=value; repeat")] = [],  # noqa: B006
    for_: Annotated[str, Doc("stop by itself after this time: 90s, 10m, 1h30m")] = "",
    until_task: Annotated[str, Ref("task"), Doc("stop by itself when this task ends")] = "",
    adaptive: Annotated[bool, Doc("sample at the interval while values move, slower while none does")] = False,
    slowest: Annotated[float | None, Doc("seconds between samples at the slowest, up to 60; by default 10")] = None,
) -> Session:
    """Start recording a session.

    It goes on until it is stopped, also when this terminal is closed or the host restarts.

    Examples:
        gswarm profiler start --name run-42
        gswarm profiler start --name fast --interval 0.2 --nodes n1 --for 10m
        gswarm profiler start --name power --metrics power_mw,gpu_util_percent --tag model=llama --until-task 17
        gswarm profiler start --name night --adaptive --interval 0.2 --slowest 10
    """
    from gswarm.profiler.running import start as begin

    return await begin(swarm, name, interval, nodes, metrics, tag, for_, until_task, adaptive=adaptive, slowest=slowest)


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
    filter: Annotated[
        list[str], Doc("field=value, field!=value or field~part, by column or by name in JSON; repeat to narrow")
    ] = [],  # noqa: B006
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


@action("profiler", "tag", effect="changes what a session is tagged with")
async def tag(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session")],
    set: Annotated[list[str], Doc("key=value")] = [],  # noqa: B006
    *,
    remove: Annotated[list[str], Doc("key of a tag to remove; repeat")] = [],  # noqa: B006
) -> Session:
    """Set and remove tags of a session, also after it has ended.

    Examples:
        gswarm profiler tag run-42 model=llama batch=64
        gswarm profiler tag run-42 --remove batch
    """
    from gswarm.codec import from_proto
    from gswarm.profiler.types import parse_tags
    from gswarm.v1 import profiler_pb2

    if not set and not remove:
        raise InvalidError("nothing to change", next="give key=value, or --remove KEY", field="set")
    request = profiler_pb2.TagSessionRequest(name=name, set=parse_tags(set), remove=remove)
    return from_proto((await swarm.call(request)).session, Session)


@action("profiler", "pull", read=True, effect="copies the recording's files to this machine")
async def pull(
    swarm: Swarm,
    name: Annotated[str, Ref("session"), Doc("name of the session")],
    *,
    out: Annotated[Path | None, Short("-O"), Doc("directory to make; by default NAME, here")] = None,
) -> Pulled:
    """Copy a recording to this machine, where --from opens it without a host.

    A session that still records is copied as far as it is.

    Examples:
        gswarm profiler pull run-42
        gswarm profiler pull run-42 --out recordings/run-42
    """
    from gswarm.profiler.copies import pull_to

    return await pull_to(swarm, name, out)


@action("profiler", "recover", local=True, effect="seals what a crash left; nothing whole is lost")
async def recover(
    recording: Annotated[str, Doc("a recording's directory, or the name of a session of this machine's host")],
) -> Recovered:
    """Repair and seal a recording that a crash left, and say what it lost.

    A host does this by itself when it starts; this is for copies, and for machines whose host will not come back.

    Examples:
        gswarm profiler recover run-42
        gswarm profiler recover /backup/recordings/run-42
    """
    from gswarm.profiler.copies import recover as repair

    return await repair(recording)


@action("profiler", "run", local=True, effect="records a session while a command runs")
async def run(
    command: Annotated[list[str], Doc("command and its arguments, after --")],
    *,
    name: Annotated[str, Doc("name of the session")],
    interval: Annotated[float, Doc("seconds between samples, 0.1 to 60")] = 1.0,
    nodes: Annotated[list[str], Doc("only these nodes; by default all")] = [],  # noqa: B006
    metrics: Annotated[list[str], Doc("only these metrics, a,b or repeated")] = [],  # noqa: B006
    tag: Annotated[list[str], Doc("key=value; repeat")] = [],  # noqa: B006
    adaptive: Annotated[bool, Doc("sample at the interval while values move, slower while none does")] = False,
    slowest: Annotated[float | None, Doc("seconds between samples at the slowest, up to 60; by default 10")] = None,
    host: Annotated[str | None, Doc("host to talk to, HOST:PORT")] = None,
    token_file: Annotated[Path | None, Doc("file with the token")] = None,
) -> int:
    """Record while a command runs here, and pass its exit code on.

    The command has this terminal; signals reach it. However it ends, the session stops and is sealed.

    Examples:
        gswarm profiler run --name train-7 -- python train.py --epochs 3
        gswarm profiler run --name fast --interval 0.2 --tag batch=64 -- make bench
    """
    from gswarm.profiler.running import run as record

    return await record(
        command, name, interval, nodes, metrics, tag, host, token_file, adaptive=adaptive, slowest=slowest
    )


@action(
    "profiler",
    "mark",
    key="m",
    effect="puts a mark on every running session's time line",
    face="gswarm.profiler.marks:Mark",
)
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


@action("profiler", "export", key="E", read=True, effect="writes the samples to a file", host_for=_HOST_FOR)
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


@action("profiler", "metrics", local=True, read=True)
async def metrics(
    part: Annotated[str, Doc("only those with this in their name")] = "",
) -> list[MetricInfo]:
    """List every metric: its unit, how it travels, how often it is read, and the NVML call it comes from.

    Examples:
        gswarm profiler metrics
        gswarm profiler metrics pcie --output json
    """
    from gswarm.names import near
    from gswarm.profiler.metrics import METRICS

    found = [
        MetricInfo(m.name, m.unit, m.type.value, m.cadence.value, f"--{m.group.value}" if m.group else "", m.source)
        for m in METRICS
        if part in m.name
    ]
    if not found:
        told = near(part, [m.name for m in METRICS])
        raise NotFoundError(f"no metric has {part!r} in its name", next=told, field="part")
    return found


@action("profiler", "topology", read=True)
async def topology(
    swarm: Swarm, node: Annotated[str, Ref("node"), Doc("node name; by default all nodes with GPUs")] = ""
) -> Topology:
    """Show how the GPUs of a node reach each other, and which CPUs are near, as nvidia-smi topo -m does.

    Examples:
        gswarm profiler topology n1
        gswarm profiler topology --output json
    """
    from gswarm.cluster.types import Device, Node
    from gswarm.profiler.matrix import topology as of

    if node:
        await swarm.get(Node, node)
    return of(d for d in await swarm.list(Device, limit=0) if node in ("", d.node))


@action("profiler", "sampling", effect="turns slow metrics on or off on running agents")
async def sampling(
    swarm: Swarm,
    *,
    pcie: Annotated[Literal["on", "off"] | None, Doc("PCIe traffic of GPUs older than Hopper; blocks 40 ms")] = None,
    nvlink: Annotated[Literal["on", "off"] | None, Doc("NVLink counters, each link and total")] = None,
    nodes: Annotated[list[str], Ref("node"), Doc("only these nodes; by default all there are")] = [],  # noqa: B006
) -> Sampling:
    """Turn the sampling of slow metrics on or off while agents run.

    Examples:
        gswarm profiler sampling --nvlink on
        gswarm profiler sampling --pcie off --nodes n1
    """
    from gswarm.v1 import profiler_pb2

    groups = {profiler_pb2.SAMPLING_GROUP_PCIE: pcie, profiler_pb2.SAMPLING_GROUP_NVLINK: nvlink}
    response = await swarm.call(
        profiler_pb2.SetSamplingRequest(
            nodes=nodes,
            on=[group for group, wanted in groups.items() if wanted == "on"],
            off=[group for group, wanted in groups.items() if wanted == "off"],
        )
    )
    return Sampling(response.changed, response.revision)


@action("profiler", "analyze", key="a", read=True, host_for=_HOST_FOR)
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


@action("profiler", "compare", read=True, host_for=_HOST_FOR)
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


@action("profiler", "plot", key="p", read=True, effect="draws a picture into a file", host_for=_HOST_FOR)
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


@action("profiler", "report", key="R", read=True, effect="writes a page about the recording", host_for=_HOST_FOR)
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
