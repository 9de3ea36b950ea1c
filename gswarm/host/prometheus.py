"""The host's state and newest samples in Prometheus' text format: gathered on the event loop, written in a thread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gswarm import __version__
from gswarm.host import dcgm
from gswarm.host.exposition import F32_DIGITS, F64_DIGITS, Page, exposed, labels, number, scaled
from gswarm.host.selection import enum_word
from gswarm.profiler.ticks import table
from gswarm.v1 import alerts_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2

if TYPE_CHECKING:
    from gswarm.host.server import HostContext


STALE_S, STALE_TICKS = 30.0, 3
"""Samples older than this, and than so many sampling intervals of their node, are not shown."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a page is written from. The messages in it change no more."""

    started_s: float
    revision: int
    ticks: int
    nodes: list[cluster_pb2.Node]
    ages: Mapping[str, float]
    devices: Mapping[str, cluster_pb2.Device]
    samples: list[tuple[bytes, bytes]]
    """Serialised schema and newest tick of each node that is heard."""
    tasks: list[queue_pb2.Task]
    services: list[models_pb2.Service]
    sessions: list[profiler_pb2.Session]
    alerts: list[alerts_pb2.Alert]
    plan: queue_pb2.Plan | None
    chunks: int
    chunk_bytes: int
    dcgm_names: bool


async def page(host: HostContext) -> str:
    """The page. Values that are NA are absent, never 0. A page of thousands of devices does not hold up the host."""
    return await asyncio.to_thread(_write, _see(host))


def _see(host: HostContext) -> _Seen:
    state, hub = host.store.state, host.hub
    samples = []
    for node in hub.nodes():
        newest, age = hub.newest(node), hub.age_s(node)
        # What a node said before it fell silent is not what is so now.
        if newest and age is not None and age <= max(STALE_S, STALE_TICKS * host.nodes.desired.longest_s(node)):
            samples.append(newest)
    nodes = list(state.list(cluster_pb2.Node))
    return _Seen(
        started_s=host.started_at.timestamp(),
        revision=state.revision,
        ticks=hub.ticks,
        nodes=nodes,
        ages={n.name: age for n in nodes if (age := hub.age_s(n.name)) is not None},
        devices={device.id: device for device in state.list(cluster_pb2.Device)},
        samples=samples,
        tasks=list(state.list(queue_pb2.Task)),
        services=list(state.list(models_pb2.Service)),
        sessions=list(state.list(profiler_pb2.Session)),
        alerts=list(state.list(alerts_pb2.Alert)),
        plan=next(state.list(queue_pb2.Plan), None),
        chunks=state.count(data_pb2.Chunk),
        chunk_bytes=sum(chunk.size_bytes for chunk in state.list(data_pb2.Chunk)),
        dcgm_names=host.config.http.dcgm_names,
    )


def _write(seen: _Seen) -> str:
    made = Page()
    _host(seen, made)
    _cluster(seen, made)
    _alerts(seen, made)
    _devices(seen, made)
    return made.text()


def _by_word(descriptor: Any, numbers: Iterable[int], label: str) -> Iterator[tuple[Mapping[str, str], int]]:
    """Counts for every word of an enum, those with none included."""
    counts = Counter(numbers)
    for value in descriptor.values:
        word = enum_word(descriptor, value.number)
        if word != "unknown" or counts[value.number]:
            yield {label: word}, counts[value.number]


def _host(seen: _Seen, made: Page) -> None:
    made.family("gswarm_build_info", "gauge", "Version of the host.", [({"version": __version__}, 1)])
    made.family(
        "gswarm_start_time_seconds",
        "gauge",
        "When the host started, since the epoch.",
        [({}, round(seen.started_s, 3))],
    )
    made.family("gswarm_revision", "gauge", "Revision of the host's state.", [({}, seen.revision)])
    made.family(
        "gswarm_sample_ticks_total", "counter", "Sample ticks taken since the host started.", [({}, seen.ticks)]
    )


def _cluster(seen: _Seen, made: Page) -> None:
    phases = cluster_pb2.NodePhase.DESCRIPTOR
    made.family("gswarm_nodes", "gauge", "Nodes by phase.", _by_word(phases, (n.phase for n in seen.nodes), "phase"))
    ready = cluster_pb2.NODE_PHASE_READY
    made.family(
        "gswarm_node_ready", "gauge", "1 when the node's agent is attached.",
        [({"node": n.name}, int(n.phase == ready)) for n in seen.nodes],
    )  # fmt: skip
    made.family(
        "gswarm_sample_age_seconds", "gauge", "Age of the newest sample of a node.",
        [({"node": node}, round(age, 3)) for node, age in seen.ages.items()],
    )  # fmt: skip
    made.family(
        "gswarm_tasks", "gauge", "Watched tasks by phase.",
        _by_word(queue_pb2.TaskPhase.DESCRIPTOR, (task.phase for task in seen.tasks), "phase"),
    )  # fmt: skip
    if seen.plan is not None:
        made.family(
            "gswarm_queue_oldest_wait_seconds", "gauge", "How long the oldest ready task has waited.",
            [({}, seen.plan.oldest_wait_s)],
        )  # fmt: skip
    made.family(
        "gswarm_service_ready", "gauge", "1 when the service answers.",
        [(_service(s), int(s.phase == models_pb2.SERVICE_PHASE_READY)) for s in seen.services],
    )  # fmt: skip
    made.family(
        "gswarm_service_tokens_per_second", "gauge", "Tokens that a service makes each second.",
        [(_service(s), s.tokens_per_s) for s in seen.services if s.HasField("tokens_per_s")],
    )  # fmt: skip
    made.family("gswarm_chunks", "gauge", "Chunks in the data pool.", [({}, seen.chunks)])
    made.family("gswarm_chunk_bytes", "gauge", "Size of the chunks in the data pool.", [({}, seen.chunk_bytes)])
    made.family(
        "gswarm_sessions", "gauge", "Recording sessions by phase.",
        _by_word(profiler_pb2.SessionPhase.DESCRIPTOR, (session.phase for session in seen.sessions), "phase"),
    )  # fmt: skip


def _service(service: models_pb2.Service) -> Mapping[str, str]:
    return {"service": service.name, "model": service.model, "node": service.node}


def _alerts(seen: _Seen, made: Page) -> None:
    words = common_pb2.Severity.DESCRIPTOR
    made.family(
        "gswarm_alerts", "gauge", "Alerts that fire, by severity.",
        _by_word(words, (alert.severity for alert in seen.alerts), "severity"),
    )  # fmt: skip
    made.family(
        "gswarm_alert_firing", "gauge", "1 for each alert that fires.",
        [
            ({"rule": a.rule, "severity": enum_word(words, a.severity), "node": a.node, "subject": a.name}, 1)
            for a in seen.alerts
        ],
    )  # fmt: skip


def _devices(seen: _Seen, made: Page) -> None:
    kinds = cluster_pb2.DeviceKind.DESCRIPTOR
    of = {
        device.id: labels(
            {
                "node": device.node,
                "device": device.alias,
                "gpu": "" if device.kind == cluster_pb2.DEVICE_KIND_CPU else str(device.index),
                "uuid": device.id,
                "model": device.name,
                "kind": enum_word(kinds, device.kind),
            }
        )
        for device in seen.devices.values()
    }
    up = made.family("gswarm_device_up", "gauge", "1 when the driver answers for the device.")
    ready = cluster_pb2.DEVICE_PHASE_READY
    up += [f"gswarm_device_up{of[d.id]} {int(d.phase == ready)}" for d in seen.devices.values()]
    samples = [_read(schema, tick) for schema, tick in seen.samples]
    for schema, values in samples:
        rows = [(values[row], of[key]) for row, key in enumerate(schema.device_ids) if key in of]
        for column in schema.columns:
            metric = exposed(column.name, counts=column.type == profiler_pb2.COLUMN_TYPE_COUNTER_U64)
            lines, digits = made.family(metric.name, metric.kind, metric.help), _digits(column)
            for given, pairs in rows:
                if (value := given.get(column.name)) is not None:
                    told = number(scaled(value, metric.multiply, metric.divide), digits)
                    lines.append(f"{metric.name}{pairs} {told}")
    if seen.dcgm_names:
        _dcgm(seen, samples, made)


def _read(schema: bytes, tick: bytes) -> tuple[profiler_pb2.MetricSchema, list[dict[str, float | int]]]:
    parsed = profiler_pb2.MetricSchema.FromString(schema)
    return parsed, table(parsed, profiler_pb2.SampleTick.FromString(tick))


def _digits(column: profiler_pb2.MetricColumn) -> int:
    return F32_DIGITS if column.type == profiler_pb2.COLUMN_TYPE_GAUGE_F32 else F64_DIGITS


def _dcgm(
    seen: _Seen, samples: list[tuple[profiler_pb2.MetricSchema, list[dict[str, float | int]]]], made: Page
) -> None:
    gpus = {d.id: dcgm.labels_of(d) for d in seen.devices.values() if d.kind != cluster_pb2.DEVICE_KIND_CPU}
    for schema, values in samples:
        rows = [(values[row], gpus[key]) for row, key in enumerate(schema.device_ids) if key in gpus]
        for column in schema.columns:
            if (field := dcgm.FIELDS.get(column.name)) is None:
                continue
            lines, digits = made.family(field.name, field.kind, field.help), _digits(column)
            for given, pairs in rows:
                if (value := given.get(column.name)) is not None:
                    lines.append(f"{field.name}{pairs} {number(dcgm.value_of(field, value), digits)}")
