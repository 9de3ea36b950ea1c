"""One file a strategy; found by name."""

from __future__ import annotations

from gswarm.scheduler.strategies.grouping import Grouping
from gswarm.scheduler.strategy import Strategy

NAMES = ("grouping",)


def strategy(name: str, *, wait_bound_s: float) -> Strategy:
    """The strategy of that name. Raises KeyError."""
    return {"grouping": Grouping}[name](wait_bound_s=wait_bound_s)
