"""How long things took: run times by (model, device kind), load times likewise, kept across restarts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from gswarm.host.transaction import Transaction

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
