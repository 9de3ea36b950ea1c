"""What a node has: its GPUs, its CPU, and the devices that exist only as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gswarm.profiler.metrics import METRICS, Absent, Group, Metric, Reading
from gswarm.v1 import cluster_pb2

if TYPE_CHECKING:
    from gswarm.profiler.gpu import Gpu


class SampledDevice(Protocol):
    """One device that can be read."""

    id: str
    simulated: bool
    lost: str
    """Why it does not answer; empty while it does."""
    sampling: frozenset[Group]
    """Slow groups of metrics to read as well."""

    @property
    def processes(self) -> tuple[cluster_pb2.DeviceProcess, ...]:
        """What ran on it when it was read last."""

    def describe(self) -> cluster_pb2.Device:
        """What it is, and whether it answers."""

    def read(self) -> Reading | Absent:
        """Its metrics now, or why there are none. May block: one thread a device calls it."""

    def free_bytes(self) -> int | None:
        """Memory free now, foreign processes included; None when it cannot be told."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node samples: its devices, and every metric that they may give."""

    devices: list[SampledDevice]
    metrics: tuple[Metric, ...] = METRICS


def discover(
    node: str,
    simulate: str = "",
    extra_metrics: Sequence[str] = (),
    on_xid: Callable[[Gpu, int], None] | None = None,
    state_dir: Path | None = None,
) -> Machine:
    """Every device of this machine, then the simulated ones.

    Raises InvalidError for a bad simulation, or an extra metric that cannot be. `on_xid` is called in a thread.
    """
    from gswarm.profiler import cpu, nvml, simulated

    metrics = METRICS
    if extra_metrics:
        from gswarm.profiler import extra_metrics as extra

        extra.check(extra_metrics)
    gpus = nvml.discover(node, extra_metrics, on_xid)
    if extra_metrics:
        answering = next((gpu.device for gpu in gpus if not gpu.lost), None)
        metrics += tuple(extra.metric(name, answering) for name in extra_metrics)
    devices: list[SampledDevice] = [*gpus]
    devices += simulated.parse(node, simulate, first_index=len(devices))
    devices.append(cpu.Cpu(node, state_dir))
    return Machine(devices, metrics)
