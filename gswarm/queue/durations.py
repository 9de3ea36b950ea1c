"""How long things took: run times by (model, device kind), load times likewise, kept across restarts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from gswarm.host.state import Changed, State
from gswarm.host.transaction import Transaction
from gswarm.v1 import models_pb2, queue_pb2
from gswarm.v1.cluster_pb2 import Device
from gswarm.v1.models_pb2 import Service
from gswarm.v1.queue_pb2 import Task

PREFIX = "history:"
DEFAULT_RUN_S = 5.0
DEFAULT_LOAD_S = 30.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds expected, the runs behind it (0: a guess), and the standard deviation of those."""

    seconds: float
    runs_seen: int
    deviation_s: float = 0.0


@dataclass(slots=True)
class History:
    """Welford's running mean and variance for each key, in memory; `add` gives the value to keep on disk."""

    _stats: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def load(self, values: list[tuple[str, bytes]]) -> None:
        """Take what is on disk."""
        for name, value in values:
            count, mean, m2 = json.loads(value)
            self._stats[name.removeprefix(PREFIX)] = (int(count), float(mean), float(m2))

    def add(self, what: str, model: str, kind: str, seconds: float) -> tuple[str, bytes]:
        """One more observation; the value to keep on disk."""
        key = f"{what}:{model}:{kind}"
        count, mean, m2 = self._stats.get(key, (0, 0.0, 0.0))
        count += 1
        delta = seconds - mean
        mean += delta / count
        m2 += delta * (seconds - mean)
        self._stats[key] = (count, mean, m2)
        return PREFIX + key, json.dumps([count, mean, m2]).encode()

    def run(self, model: str, kind: str) -> Estimate:
        """How long a task of the model takes on such a device."""
        return self._estimate(f"run:{model}:{kind}", DEFAULT_RUN_S)

    def load_time(self, model: str, kind: str) -> Estimate:
        """How long loading the model takes there."""
        return self._estimate(f"load:{model}:{kind}", DEFAULT_LOAD_S)

    def _estimate(self, key: str, default: float) -> Estimate:
        if key not in self._stats:
            return Estimate(default, 0)
        count, mean, m2 = self._stats[key]
        return Estimate(mean, count, math.sqrt(m2 / count))


def read(tx: Transaction) -> list[tuple[str, bytes]]:
    """Everything kept."""
    return list(tx.list_values(PREFIX))


def kind_of(device: Device | None) -> str:
    """What run times are kept by: the device's product name."""
    return device.name if device is not None else "unknown"


def measured(state: State, change: Changed) -> tuple[str, str, str, float] | None:
    """What a change tells of how long something took: an inference that is done, a service that has become ready.

    Gives what `History.add` takes.
    """
    new, old = change.new, change.old
    if isinstance(new, Task):
        done = new.phase == queue_pb2.TASK_PHASE_DONE and new.type == queue_pb2.TASK_TYPE_INFERENCE
        if not done or not new.HasField("started_at"):
            return None
        device = state.get(Device, new.device_ids[0]) if new.device_ids else None
        seconds = (new.finished_at.ToDatetime() - new.started_at.ToDatetime()).total_seconds()
        return "run", new.model, kind_of(device), seconds
    if isinstance(new, Service) and isinstance(old, Service):
        became_ready = new.phase == models_pb2.SERVICE_PHASE_READY != old.phase
        if became_ready and new.HasField("load_s"):
            return "load", new.model, kind_of(state.get(Device, new.device_ids[0])), new.load_s
    return None
