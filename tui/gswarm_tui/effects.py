"""What an action will do, said before it is done, and which choices a field has now: pure functions of the view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gswarm.model.fitting import Offer, fit
from gswarm.queue.explain import needed_bytes

from . import figures
from .deeds import Deed, Field
from .view import DeviceView, View


@dataclass(frozen=True, slots=True)
class Choice:
    """One value a field can take; `lacking` says why it would not do."""

    value: str
    note: str = ""
    lacking: str = ""


def named(deed: Deed, values: Mapping[str, Any], ref: str) -> Any:
    """The value of the field that names a resource of kind `ref`."""
    return next((values[f.name] for f in deed.fields if f.ref == ref and values.get(f.name)), None)


def choices(deed: Deed, field: Field, view: View, values: Mapping[str, Any]) -> tuple[Choice, ...]:
    """What `field` can be now: those that fit first, those that don't behind them, with the reason."""
    if field.choices:
        return tuple(Choice(c) for c in field.choices)
    match field.ref:
        case "model":
            return tuple(Choice(m.name, f"{figures.size(m.size)} {m.state.word}") for m in view.models)
        case "service":
            return tuple(Choice(s.name, f"{s.model} {s.phase.value}") for m in view.models for s in m.services)
        case "device":
            found = [_device(d, view, named(deed, values, "model"), values) for d in view.devices]
            return tuple(sorted(found, key=lambda c: c.lacking != ""))
        case "node":
            return tuple(
                Choice(n.name, n.state.word, "" if n.state.word == "ready" else n.state.word) for n in view.nodes
            )
        case "chunk":
            return tuple(Choice(c.id, f"{c.kind} {figures.size(c.size)}") for c in view.chunks)
        case "task":
            return tuple(Choice(t.id, f"{t.model} {t.task.phase.value}") for t in view.tasks)
        case "workflow":
            names = dict.fromkeys(t.task.workflow_id for t in view.tasks)
            return tuple(Choice(name) for name in names if name)
        case "session":
            return tuple(Choice(s.name, s.phase.value) for s in view.sessions)
    return ()


def _device(d: DeviceView, view: View, name: Any, values: Mapping[str, Any]) -> Choice:
    model = next((m for m in view.models if m.name == name), None)
    free = None if d.memory is None else d.memory_total - d.memory
    note = f"free {figures.size(free)} of {figures.size(d.memory_total)}" if free is not None else d.name[:24]
    if d.is_simulated:
        note = f"SIM {note}"
    if d.trouble:
        return Choice(d.alias, note, d.trouble)
    if model is not None:
        if model.is_simulated and not d.is_simulated:
            return Choice(d.alias, note, f"{model.name} exists only for SIM devices")
        if d.is_simulated and not model.is_simulated and values.get("backend") not in (None, "", "simulated"):
            return Choice(d.alias, note, "SIM: only the simulated backend")
        needed = needed_bytes(model.model)
        if free is not None and needed > free:
            if width := _width(d, needed, view):
                return Choice(d.alias, f"{note}, one of {width}")
            return Choice(d.alias, note, f"free {figures.size(free)}, needs {figures.size(needed)}")
    return Choice(d.alias, note)


def _width(d: DeviceView, needed: int, view: View) -> int:
    """Of how many devices of its node it is one that take the model together; 0: of none."""
    offers = [
        Offer(p.id, p.node, p.memory_total - p.memory, needed, cpu=p.is_cpu, alone=p.is_cpu)
        for p in view.devices
        if p.node == d.node and p.is_simulated == d.is_simulated and p.memory is not None and not p.trouble
    ]
    found = fit(offers)
    return found.width if d.id in found.devices else 0


def will_happen(deed: Deed, view: View, values: Mapping[str, Any]) -> str:
    """One line that says what running it does, with numbers where there are any."""
    if deed.name == "model serve":
        return _serve(deed, view, values)
    if deed.name == "model stop":
        service = next((s for m in view.models for s in m.services if s.name == named(deed, values, "service")), None)
        if service is not None:
            freed = f", frees {figures.size(service.memory_bytes)}" if service.memory_bytes else ""
            waiting = sum(t.model == service.model for t in view.tasks)
            tasks = f"; {waiting} queued tasks want {service.model}" if waiting else ""
            return f"stops {service.name} on {service.node}{freed}{tasks}"
    if deed.name == "data delete":
        chunk = next((c for c in view.chunks if c.id == named(deed, values, "chunk")), None)
        if chunk is not None:
            held = f"; held by {', '.join(h.name for h in chunk.chunk.holders)}" if chunk.references else ""
            return f"deletes {figures.size(chunk.size)} on {chunk.where or 'no node'}{held}"
    if deed.name == "queue cancel":
        task = next((t for t in view.tasks if t.id == named(deed, values, "task")), None)
        if task is not None:
            return f"cancels task {task.id}" + (f", which runs on {task.where}" if task.is_running else "")
    return deed.effect or deed.summary


def _serve(deed: Deed, view: View, values: Mapping[str, Any]) -> str:
    model = next((m for m in view.models if m.name == named(deed, values, "model")), None)
    if model is None:
        return "starts a backend that serves the model"
    places = named(deed, values, "device") or []
    where = " ".join(places) if places else "a device that the host picks"
    loads = [s.load_s for s in model.services if s.load_s is not None]
    basis = (
        f", {figures.seconds(sum(loads) / len(loads))} from {len(loads)} loads"
        if loads
        else ", load time not known yet"
    )
    if len(loads) == 1:
        basis = basis.replace("1 loads", "1 load")
    size = figures.size(model.size) if model.size else "a size not known yet"
    names = [d for d in view.devices if d.alias in places or d.short in places or d.id in places]
    share = needed_bytes(model.model) // max(1, len(places))
    crowded = [d for d in names if d.memory is not None and share > d.memory_total - d.memory]
    evicts = f"; does not fit on {crowded[0].alias} as it stands" if crowded else "; evicts nothing" if names else ""
    return f"loads {size} on {where}{basis}{evicts}"
