"""The host's state and newest samples in Prometheus' text format, with gswarm_* names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from gswarm.host.samples import values
from gswarm.host.selection import enum_word
from gswarm.v1 import cluster_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2

if TYPE_CHECKING:
    from gswarm.host.server import HostContext


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


class _Page:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float | int]]) -> None:
        rows = [f"{name}{_labels(labels)} {value}" for labels, value in samples]
        if rows:
            self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows]


def render(host: HostContext) -> str:
    """The page. Values that are NA are absent, never 0."""
    state, page = host.store.state, _Page()
    nodes = list(state.list(cluster_pb2.Node))
    page.family(
        "gswarm_node_ready",
        "gauge",
        "1 when the node's agent is attached.",
        [({"node": n.name}, int(n.phase == cluster_pb2.NODE_PHASE_READY)) for n in nodes],
    )
    ages = [({"node": n.name}, age) for n in nodes if (age := host.hub.age_s(n.name)) is not None]
    page.family("gswarm_sample_age_seconds", "gauge", "Age of the newest sample of a node.", ages)
    tasks = Counter(enum_word(queue_pb2.TaskPhase.DESCRIPTOR, task.phase) for task in state.list(queue_pb2.Task))
    page.family(
        "gswarm_tasks",
        "gauge",
        "Watched tasks by phase.",
        [({"phase": p}, count) for p, count in sorted(tasks.items())],
    )
    services = list(state.list(models_pb2.Service))
    page.family(
        "gswarm_service_ready",
        "gauge",
        "1 when the service answers.",
        [
            ({"service": s.name, "model": s.model, "node": s.node}, int(s.phase == models_pb2.SERVICE_PHASE_READY))
            for s in services
        ],
    )
    page.family("gswarm_chunks", "gauge", "Chunks in the data pool.", [({}, state.count(data_pb2.Chunk))])
    page.family("gswarm_revision", "counter", "Revision of the host's state.", [({}, state.revision)])
    page.family(
        "gswarm_sample_ticks_total", "counter", "Sample ticks taken since the host started.", [({}, host.hub.ticks)]
    )
    _devices(host, page)
    return "\n".join(page.lines) + "\n"


def _devices(host: HostContext, page: _Page) -> None:
    aliases = {d.id: d for d in host.store.state.list(cluster_pb2.Device)}
    families: dict[str, list[tuple[Mapping[str, str], float | int]]] = {}
    counters: set[str] = set()
    for node in host.hub.nodes():
        tick = host.hub.latest(node)
        schema = host.hub.schema(node, tick.schema_id) if tick else None
        if tick is None or schema is None:
            continue
        counters |= {c.name for c in schema.columns if c.type == profiler_pb2.COLUMN_TYPE_COUNTER_U64}
        for row, device_id in enumerate(schema.device_ids):
            device = aliases.get(device_id)
            if device is None:
                continue
            labels = {"device": device.alias, "uuid": device_id, "node": node, "name": device.name}
            for metric, value in values(schema, tick, row):
                if value is not None:
                    families.setdefault(metric, []).append((labels, value))
    for metric, samples in sorted(families.items()):
        suffix = "_total" if metric in counters else ""
        kind = "counter" if metric in counters else "gauge"
        page.family(
            f"gswarm_device_{metric}{suffix}", kind, f"Device metric {metric}; the unit is in the name.", samples
        )
