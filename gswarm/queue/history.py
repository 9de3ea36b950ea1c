"""How long runs and loads took, per model and kind of device: measured, durable, and named as the basis of estimates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gswarm.host.store import Transaction

PREFIX = "measured/"
WEIGHT = 0.2
"""How much one more measurement counts, once there are a few."""
GUESS_RUN_S = 5.0
GUESS_LOAD_S = 10.0
GUESS_BYTES_PER_S = 1 << 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, and how many measurements are behind them; 0: a guess."""

    seconds: float
    seen: int = 0

    def with_measured(self, seconds: float) -> Estimate:
        """After one more measurement: the plain mean of the first few, then slowly forgetting."""
        if not self.seen:
            return Estimate(seconds, 1)
        weight = max(1.0 / (self.seen + 1), WEIGHT)
        return Estimate(self.seconds + (seconds - self.seconds) * weight, self.seen + 1)


class History:
    """What was measured. Changed only inside operations; read anywhere (each entry is replaced whole)."""

    def __init__(self) -> None:
        self._known: dict[str, Estimate] = {}

    def load(self, tx: Transaction) -> None:
        """Read what earlier starts have measured."""
        for name, value in tx.list_values(PREFIX):
            body = json.loads(value)
            self._known[name] = Estimate(float(body["s"]), int(body["n"]))

    def measured_run(self, tx: Transaction, model: str, kind: str, seconds: float) -> None:
        """A task of this model ran for so long."""
        self._measured(tx, f"{PREFIX}run/{kind}/{model}", seconds)

    def measured_load(self, tx: Transaction, model: str, kind: str, seconds: float) -> None:
        """The model took so long from start to ready."""
        self._measured(tx, f"{PREFIX}load/{kind}/{model}", seconds)

    def _measured(self, tx: Transaction, name: str, seconds: float) -> None:
        if not 0 <= seconds < 1e6:
            return
        estimate = self._known.get(name, Estimate(0.0)).with_measured(seconds)
        self._known[name] = estimate
        tx.put_value(name, json.dumps({"s": round(estimate.seconds, 4), "n": estimate.seen}).encode())

    def run(self, model: str, kind: str) -> Estimate:
        """How long a task of this model runs."""
        return self._known.get(f"{PREFIX}run/{kind}/{model}", Estimate(GUESS_RUN_S))

    def load_time(self, model: str, kind: str, size_bytes: int) -> Estimate:
        """How long the model takes from start to ready."""
        guess = Estimate(GUESS_LOAD_S + size_bytes / GUESS_BYTES_PER_S)
        return self._known.get(f"{PREFIX}load/{kind}/{model}", guess)
