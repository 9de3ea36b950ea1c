"""What stands out in a recording, in words that name the evidence. What is NA is no finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np

from gswarm import units
from gswarm.cluster.types import Severity
from gswarm.profiler.history import History, SpanKind
from gswarm.profiler.series import Series
from gswarm.profiler.tables import counted
from gswarm.profiler.types import DeviceFigures, Finding, ModelFigures, NodeFigures

STARVED_ABOVE = 0.05
IDLE_ABOVE = 0.5
LOADING_ABOVE = 0.10
THROTTLED_ABOVE = 0.05
MORE_FITS_ABOVE = 0.25
"""Of a device's memory, free all the time while models came and went: more of them might have stayed."""
HEAD_ROOM_BELOW = 0.05
IMBALANCE_ABOVE = 0.25
GAP_ABOVE_S = 5.0
SMS_BELOW = 0.5
"""Of the utilisation that a device claims, what its SMs do at least when it is really used."""


def find(
    devices: Sequence[DeviceFigures],
    nodes: Sequence[NodeFigures],
    models: Sequence[ModelFigures],
    series: Sequence[Series],
    history: History,
) -> tuple[Finding, ...]:
    """All findings, the gravest first, then those that cost the most time."""
    found = [
        *(finding for device in devices for finding in _device(device, history)),
        *(finding for node in nodes for finding in _node(node, devices)),
        *(finding for one in series for finding in _errors(one, history)),
        *(finding for model in models for finding in _model(model)),
        *_events(history),
    ]
    order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
    return tuple(sorted(found, key=lambda f: (order.index(f.severity), -(f.share or 0.0), f.subject)))


def percent(part: float) -> str:
    """A share for people: 41 %; what is little is not nothing."""
    return "under 1 %" if 0 < part < 0.01 else f"{part * 100:.0f} %"


def _name(device: DeviceFigures) -> str:
    return f"{device.device}{' (SIM)' if device.kind == 'SIM' else ''}"


def _device(device: DeviceFigures, history: History) -> Iterator[Finding]:
    warn, name, free = Severity.WARNING, _name(device), _head_room(device)
    if device.starved_share is not None and device.starved_share > STARVED_ABOVE:
        text = f"{name} idle {percent(device.starved_share)} of the time while its queue had ready tasks"
        if device.loading_share > STARVED_ABOVE:
            text += f"; a model was being loaded on it {percent(device.loading_share)} of the time"
        yield Finding(warn, device.device, text, "gpu_util_percent, lane", device.starved_share)
    elif device.idle_share is not None and device.idle_share > IDLE_ABOVE:
        why = "no task was ready for it then" if not device.starved_share else "mostly without a task ready for it"
        text = f"{name} idle {percent(device.idle_share)} of the time; {why}"
        yield Finding(Severity.INFO, device.device, text, "gpu_util_percent, lane", device.idle_share)
    if device.loading_share > LOADING_ABOVE:
        counts = Counter(span.model for span in history.of(SpanKind.SERVICE, device.id, "loading"))
        told = ", ".join(f"{model} {count}" for model, count in counts.most_common(3))
        text = f"{name} loaded models {percent(device.loading_share)} of the time: {counted(device.loads, 'load')} ({told})"
        if device.loads > 1 and free > MORE_FITS_ABOVE:
            text += f"; it never had less than {units.size(device.head_room_bytes)} of memory free"
        yield Finding(warn, device.device, text, "service, memory_used_bytes", device.loading_share)
    if device.throttled_share is not None and device.throttled_share > THROTTLED_ABOVE:
        told = ", ".join(f"{t.reason} {percent(t.share)}" for t in device.throttled)
        text = f"{name} throttled {percent(device.throttled_share)} of the time: {told}"
        yield Finding(warn, device.device, text, "clock_event_reasons", device.throttled_share)
    if 0 <= free < HEAD_ROOM_BELOW and device.kind != "CPU":
        text = f"{name} had {units.size(device.head_room_bytes)} of memory free when it was fullest ({percent(free)})"
        yield Finding(warn, device.device, text, "memory_used_bytes")
    yield from _half_used(device)
    if device.gaps_s > GAP_ABOVE_S:
        text = f"{name} has no samples for {units.duration(device.gaps_s)} in between; figures are of the rest"
        yield Finding(warn, device.device, text, "samples")


def _head_room(device: DeviceFigures) -> float:
    """The share of memory that was free when it was fullest; below 0 when that is NA."""
    total = device.figures("memory_total_bytes")
    if device.head_room_bytes is None or total is None or not total.max:
        return -1.0
    return max(0.0, device.head_room_bytes / total.max)


def _half_used(device: DeviceFigures) -> Iterator[Finding]:
    """NVML's utilisation is the time with any kernel at all; what the SMs did says how much of the device that was."""
    claimed, active = device.figures("gpu_util_percent"), device.figures("sm_active_percent")
    if claimed is None or active is None or claimed.mean is None or active.mean is None:
        return
    if claimed.mean > 50 and active.mean < SMS_BELOW * claimed.mean:
        text = f"{_name(device)} was busy {claimed.mean:.0f} % on average, but its SMs were active {active.mean:.0f} %"
        yield Finding(Severity.WARNING, device.device, text, "gpu_util_percent, sm_active_percent")


def _node(node: NodeFigures, devices: Sequence[DeviceFigures]) -> Iterator[Finding]:
    if node.imbalance is None or node.imbalance <= IMBALANCE_ABOVE:
        return
    means = {
        _name(d): f.mean
        for d in devices
        if d.node == node.node and d.kind != "CPU" and (f := d.figures("gpu_util_percent")) and f.mean is not None
    }
    most, least = max(means, key=lambda d: means[d]), min(means, key=lambda d: means[d])
    text = (
        f"{node.node} is uneven by {percent(node.imbalance)}: {most} was at {means[most]:.0f} % on average, "
        f"{least} at {means[least]:.0f} %"
    )
    yield Finding(Severity.INFO, node.node, text, "gpu_util_percent")


def _errors(one: Series, history: History) -> Iterator[Finding]:
    column = one.columns.get("ecc_uncorrected_volatile")
    if column is None or np.count_nonzero(column.known) < 2:
        return
    values, times = column.values[column.known].astype(np.int64), one.times_us[column.known]
    grown = np.diff(values)
    if (count := int(grown[grown > 0].sum())) > 0:
        first = datetime.fromtimestamp(int(times[1:][grown > 0][0]) / 1e6, UTC)
        name = history.label(one.device)
        text = f"{name} had {counted(count, 'uncorrected memory error')}, the first at {units.clock(first)}"
        yield Finding(Severity.ERROR, name, text, "ecc_uncorrected_volatile")


def _events(history: History) -> Iterator[Finding]:
    """What the host itself called an error while it was recorded."""
    told: dict[tuple[str, str], list[str]] = {}
    happened = {event.message for event in history.events if not event.type.startswith("alert.")}
    for event in history.events:
        # An alert about an event says the same once more.
        is_again = event.type.startswith("alert.") and event.message in happened
        if event.severity is Severity.ERROR and not is_again:
            told.setdefault((event.type, event.subject), []).append(event.message)
    for (kind, subject), messages in told.items():
        again = f" ({len(messages)} times)" if len(messages) > 1 else ""
        yield Finding(Severity.ERROR, subject, f"{kind}: {messages[0]}{again}", "event")


def _model(model: ModelFigures) -> Iterator[Finding]:
    if model.failed:
        text = f"{model.failed} of {model.tasks} attempts with {model.model} did not end well"
        yield Finding(Severity.WARNING, model.model, text, "task")
    if model.run_mean_s is None or model.wait_mean_s is None or model.wait_mean_s <= model.run_mean_s:
        return
    text = (
        f"tasks with {model.model} waited {units.duration(model.wait_mean_s)} on average and ran "
        f"{units.duration(model.run_mean_s)}"
    )
    if model.load_mean_s is not None:
        text += f"; loading it took {units.duration(model.load_mean_s)}, {counted(model.loads, 'load')}"
    yield Finding(Severity.INFO, model.model, text, "task, service")
