"""What a node has: its GPUs, its CPU, and the devices that exist only as numbers."""

from __future__ import annotations

from typing import Protocol

from gswarm.profiler.metrics import Reading
from gswarm.v1 import cluster_pb2


class SampledDevice(Protocol):
    """One device that can be read."""

    id: str
    simulated: bool

    def describe(self) -> cluster_pb2.Device:
        """What it is, and whether it answers."""

    def read(self) -> Reading:
        """Its metrics now. May block: one thread a device calls it."""

    def free_bytes(self) -> int | None:
        """Memory free now, foreign processes included; None when it cannot be told."""


def discover(node: str, simulate: str = "") -> list[SampledDevice]:
    """Every device of this machine, then the simulated ones. Raises InvalidError for a bad simulation."""
    from gswarm.profiler import cpu, nvml, simulated

    found: list[SampledDevice] = []
    found += nvml.discover(node)
    found += simulated.parse(node, simulate, first_index=len(found))
    found.append(cpu.Cpu(node))
    return found
