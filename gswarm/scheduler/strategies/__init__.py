"""One file a strategy, found by name: ours, and those that other packages offer as entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from gswarm.scheduler.strategy import Strategy

GROUP = "gswarm.strategies"
"""Entry points of this group name a callable that makes a strategy; ours go before others of the same name."""
OURS = {
    "fifo": "fifo:Fifo",
    "baseline": "baseline:Baseline",
    "affinity": "affinity:Affinity",
    "static": "static:Static",
    "online": "online:Online",
}
SHARED = {
    "fifo": "together:Fifo",
    "baseline": "together:Baseline",
    "affinity": "together:Affinity",
    "static": "together:Static",
    "online": "crowd:Crowd",
}
"""The same on GPUs that several models share."""


class StrategyError(RuntimeError):
    """A strategy of another package that cannot be had: says which package, and why."""


LIVE = "online"
"""The one of ours that the live queue can run on: the others give tasks away for good and take no withdrawal."""


def names() -> list[str]:
    """Every strategy that goes by events, ours first."""
    return [*OURS, *_installed()]


def live_names() -> list[str]:
    """Those that the live queue can run on."""
    return [LIVE, *_installed()]


def _installed() -> list[str]:
    return sorted({found.name for found in entry_points(group=GROUP)} - OURS.keys())


def create(name: str, *, shared: bool = False, **options: Any) -> Strategy:
    """The strategy of this name, made with its own options; `shared`: for GPUs that several models share.

    Raises KeyError for a name that there is not, StrategyError for another package's that cannot be loaded.
    """
    if (ours := (SHARED.get(name) if shared else None) or OURS.get(name)) is not None:
        module, _, attribute = ours.partition(":")
        make = getattr(import_module(f"{__name__}.{module}"), attribute)
    else:
        found = [point for point in entry_points(group=GROUP) if point.name == name]
        if not found:
            raise KeyError(f"there is no strategy {name!r}; known: {', '.join(names())}")
        try:
            make = found[0].load()
        except Exception as error:  # whatever that package raises as it is imported
            of = f" of {found[0].dist.name}" if found[0].dist else ""
            words = f"{type(error).__name__}: {error}"
            raise StrategyError(f"the strategy {name}{of} cannot be loaded from {found[0].value}: {words}") from error
    return cast("Callable[..., Strategy]", make)(**options)
