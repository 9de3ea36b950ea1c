"""Where a model fits: on one device, or spread evenly over several of one node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

WIDTHS = (1, 2, 4, 8)
"""How many devices a server may take: a model's attention heads are dealt out to them, and these divide nearly all."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A device that may take a model."""

    device: str
    node: str
    room: int
    """Bytes."""
    needed: int
    """Bytes that the model takes, by the backend that serves it there."""
    cpu: bool = False
    alone: bool = False
    """No server takes it together with others: a processor, a slice of a GPU."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many devices of one node a server of the model takes, and all that can be among them. Width 0: it fits nowhere."""

    width: int
    devices: tuple[str, ...]


def fit(offers: Iterable[Offer]) -> Fit:
    """The fewest devices that take it; accelerators, where any do, before processors."""
    groups: defaultdict[tuple[str, str], list[Offer]] = defaultdict(list)
    for offer in offers:
        groups[offer.node, offer.device if offer.alone else ""].append(offer)
    processors = Fit(0, ())
    for width in WIDTHS:
        taking = [o for group in groups.values() for o in _taking(group, width)]
        if any(not offer.cpu for offer in taking):
            return Fit(width, tuple(offer.device for offer in taking))
        if taking:
            processors = Fit(width, tuple(offer.device for offer in taking))
    return processors


def _taking(group: Sequence[Offer], width: int) -> list[Offer]:
    found = [offer for offer in group if offer.room * width >= offer.needed]
    return found if len(found) >= width else []


def default_backend(installed: Container[str], *, simulated: bool) -> str:
    """What serves a model on a device of a node with these backends, unless another one is named."""
    if simulated:
        return "simulated"
    return "vllm" if "vllm" in installed and "transformers" not in installed else "transformers"
