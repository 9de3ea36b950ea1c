"""What stands out in a recording, in words that name the evidence. What is NA is no finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from gswarm import units
from gswarm.cluster.types import Severity
from gswarm.profiler.history import History, SpanKind
from gswarm.profiler.series import Series
from gswarm.profiler.tables import counted, several
from gswarm.profiler.types import DeviceFigures, DeviceShare, Finding, ModelFigures, NodeFigures

STARVED_ABOVE = 0.05
IDLE_ABOVE = 0.5
LOADING_ABOVE = 0.10
THROTTLED_ABOVE = 0.05
MORE_FITS_ABOVE = 0.25
"""Of a device's memory, free all the time while models came and went: more of them might have stayed."""
HEAD_ROOM_BELOW = 0.05
IMBALANCE_ABOVE = 0.25
USED_ABOVE = 5.0
"""Mean utilisation of the busiest device, in percent: below it nothing is done that could be uneven."""
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
        *_together(said for device in devices for said in _device(device, history)),
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


@dataclass(frozen=True, slots=True)
class _Said:
    """What is found of one device, in words and shares from 0 to 1; others may have the same said of them."""

    severity: Severity
    device: DeviceFigures
    parts: tuple[str | float, ...]
    evidence: str
    share: float | None = None
    """Of the sampled time."""

    @property
    def like(self) -> tuple[object, ...]:
        """The same for devices that share a line: only their shares may differ."""
        words = tuple(part if isinstance(part, str) else None for part in self.parts)
        return self.device.node, self.device.kind, self.severity, words


def _together(said: Iterable[_Said]) -> Iterator[Finding]:
    """One finding for all devices of a node of which the same is said."""
    alike: dict[tuple[object, ...], list[_Said]] = {}
    for one in said:
        alike.setdefault(one.like, []).append(one)
    for group in alike.values():
        first = group[0]
        subject = several([one.device.device for one in group])
        told = [
            part if isinstance(part, str) else _between([one.parts[place] for one in group])
            for place, part in enumerate(first.parts)
        ]
        yield Finding(
            first.severity,
            subject,
            f"{subject}{' (SIM)' if first.device.kind == 'SIM' else ''} {''.join(told)}",
            first.evidence,
            max((one.share for one in group if one.share is not None), default=None),
            tuple(DeviceShare(one.device.device, one.share) for one in group),
        )


def _between(shares: Sequence[str | float]) -> str:
    known = sorted(part for part in shares if not isinstance(part, str))
    least, most = percent(known[0]), percent(known[-1])
    return most if least == most else f"{least.removesuffix(' %')} to {most}"


def _device(device: DeviceFigures, history: History) -> Iterator[_Said]:
    warn, free, loading = Severity.WARNING, _head_room(device), device.loading_share
    if (starved := device.starved_share) is not None and starved > STARVED_ABOVE:
        parts: tuple[str | float, ...] = ("idle ", starved, " of the time while ready tasks were queued there")
        if loading > STARVED_ABOVE:
            parts += ("; a model was being loaded ", loading, " of the time")
        yield _Said(warn, device, parts, "gpu_util_percent, lane", starved)
    elif (idle := device.idle_share) is not None and idle > IDLE_ABOVE:
        why = "no task was ready there then" if not starved else "mostly without a task ready there"
        yield _Said(Severity.INFO, device, ("idle ", idle, f" of the time; {why}"), "gpu_util_percent, lane", idle)
    if loading > LOADING_ABOVE:
        counts = Counter(span.model for span in history.of(SpanKind.SERVICE, device.id, "loading"))
        told = ", ".join(f"{model} {count}" for model, count in counts.most_common(3))
        text = f" of the time: {counted(device.loads, 'load')} ({told})"
        if device.loads > 1 and free > MORE_FITS_ABOVE:
            text += f"; never less than {units.size(device.head_room_bytes)} of memory free"
        yield _Said(warn, device, ("loaded models ", loading, text), "service, memory_used_bytes", loading)
    if (throttled := device.throttled_share) is not None and throttled > THROTTLED_ABOVE:
        parts = ("throttled ", throttled, " of the time")
        for place, reason in enumerate(device.throttled):
            parts += (f"{', ' if place else ': '}{reason.reason} ", reason.share)
        yield _Said(warn, device, parts, "clock_event_reasons", throttled)
    if 0 <= free < HEAD_ROOM_BELOW and device.kind != "CPU":
        text = f"had {units.size(device.head_room_bytes)} of memory free when it was fullest ("
        yield _Said(warn, device, (text, free, ")"), "memory_used_bytes")
    yield from _half_used(device)
    if device.gaps_s > GAP_ABOVE_S:
        text = f"has no samples for {units.duration(device.gaps_s)} in between; figures are of the rest"
        yield _Said(warn, device, (text,), "samples")


def _head_room(device: DeviceFigures) -> float:
    """The share of memory that was free when it was fullest; below 0 when that is NA."""
    total = device.figures("memory_total_bytes")
    if device.head_room_bytes is None or total is None or not total.max:
        return -1.0
    return max(0.0, device.head_room_bytes / total.max)


def _half_used(device: DeviceFigures) -> Iterator[_Said]:
    """NVML's utilisation is the time with any kernel at all; what the SMs did says how much of the device that was."""
    claimed, active = device.figures("gpu_util_percent"), device.figures("sm_active_percent")
    if claimed is None or active is None or claimed.mean is None or active.mean is None:
        return
    if claimed.mean > 50 and active.mean < SMS_BELOW * claimed.mean:
        parts = ("was busy ", claimed.mean / 100, " on average, but its SMs were active ", active.mean / 100)
        yield _Said(Severity.WARNING, device, parts, "gpu_util_percent, sm_active_percent")


def _node(node: NodeFigures, devices: Sequence[DeviceFigures]) -> Iterator[Finding]:
    if node.imbalance is None or node.imbalance <= IMBALANCE_ABOVE:
        return
    means = {
        _name(d): f.mean
        for d in devices
        if d.node == node.node and d.kind != "CPU" and (f := d.figures("gpu_util_percent")) and f.mean is not None
    }
    most, least = max(means, key=lambda d: means[d]), min(means, key=lambda d: means[d])
    if means[most] < USED_ABOVE:
        return
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
