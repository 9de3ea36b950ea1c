"""Metrics that a user names: any property of nvitop's Device that takes no argument and gives a number."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

from nvitop import Device

from gswarm.errors import InvalidError
from gswarm.names import near
from gswarm.profiler.metrics import BY_NAME, UNSUPPORTED, Absent, Cadence, Group, Metric, Reading, Type
from gswarm.profiler.nvml_sources import NEVER

LIMIT = 64
_ACTIONS = frozenset({"cuda", "oneshot", "to_leaf_devices", "all_processes", "reset_max_memory_usage"})
"""Properties that do something rather than tell something."""


def properties() -> list[str]:
    """Every name that could be asked for."""
    return [
        name
        for name, member in inspect.getmembers_static(Device)
        if not name.startswith("_") and name not in _ACTIONS and _takes_nothing(member)
    ]


def _takes_nothing(member: Any) -> bool:
    if isinstance(member, property):
        return True
    if not inspect.isfunction(member):
        return False
    wanted = list(inspect.signature(member).parameters.values())[1:]
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted)


def check(names: Sequence[str]) -> None:
    """Raises InvalidError naming what is near, for a name that is no such property or in the table already."""
    if len(names) > LIMIT:
        raise InvalidError(f"{len(names)} extra metrics are too many", next=f"at most {LIMIT}", field="extra_metrics")
    known = properties()
    for name in names:
        if name in BY_NAME:
            raise InvalidError(f"{name} is sampled anyway", next="leave it out", field="extra_metrics")
        if name not in known:
            raise InvalidError(
                f"nvitop's Device has no property {name!r} that takes no argument",
                next=near(name, known),
                field="extra_metrics",
            )


def metric(name: str, device: Any) -> Metric:
    """Its column, of the type of what the device, if there is one, gives now. Raises InvalidError when that is no number."""
    told = None
    if device is not None:
        with contextlib.suppress(Exception):  # it is asked again with each sample, which then says what is wrong
            told = _ask(device, name)
    if told is not None and not isinstance(told, int | float):
        raise InvalidError(f"{name} of nvitop's Device is no number", why=f"it gives {told!r}", field="extra_metrics")
    kind = Type.U64 if isinstance(told, int) else Type.F32
    return Metric(name, "", kind, f"nvitop Device.{name}")


def _ask(device: Any, name: str) -> Any:
    """A number, or what else it gives; None for nvitop's NA."""
    from nvitop import NA

    found = getattr(device, name)
    told = found() if callable(found) else found
    return None if told is NA or told == NA else told


class Extra:
    """The named properties of one device."""

    cadence = Cadence.TICK
    group: Group | None = None

    def __init__(self, device: Any, names: Sequence[str]) -> None:
        self._device = device
        self.metrics = tuple(names)

    def read(self, into: Reading) -> bool:
        """Ask for each. nvitop has one NA for what is not supported and what fails."""
        for name in self.metrics:
            try:
                told = _ask(self._device, name)
            except NEVER:
                into[name] = UNSUPPORTED
                continue
            except Exception as error:  # nvitop computes some of these; one that fails is no reason to lose the others
                into[name] = Absent(str(error) or type(error).__name__)
                continue
            if told is None:
                into[name] = Absent("nvitop gives none")
            elif not isinstance(told, int | float) or told < 0:
                into[name] = Absent(f"no number: {told!r}"[:60])
            else:
                into[name] = told
        return True
