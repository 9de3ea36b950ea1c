"""What can be wrong with a plan, and an execution as the validator takes it in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

TOLERANCE_S = 1e-6


class Kind(StrEnum):
    """What can be wrong."""

    GPUS = "wrong number of GPUs"
    UNKNOWN = "unknown task"
    DOUBLED = "task doubled"
    MISSING = "task missing"
    MODEL = "wrong model"
    REPEATED = "GPU named twice"
    RANGE = "no such GPU"
    WIDTH = "wrong width"
    TIME = "impossible time"
    DURATION = "wrong duration"
    RUNNING = "running task changed"
    DEPENDENCY = "dependency"
    ARRIVAL = "before arrival"
    EARLY = "before t = 0"
    NOT_FREE = "GPU not free yet"
    OVERLAP = "overlap"
    UNCHARGED = "switch uncharged"
    BROKEN = "placement broken"
    TOO_SHORT = "switch too short"
    TOO_LONG = "switch too long"
    NEEDLESS = "switch needless"
    MEMORY = "memory exceeded"
    HOST_MEMORY = "host memory exceeded"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong: with which task ("request/node"; empty for the whole plan), and the numbers in words."""

    kind: Kind
    task: str
    message: str

    def __str__(self) -> str:
        return f"{self.task}: {self.kind}: {self.message}" if self.task else f"{self.kind}: {self.message}"


@dataclass(slots=True)
class Run:
    """An execution whose task is known and whose times and GPUs are numbers that can be."""

    task: int
    name: str
    model: int
    gpus: tuple[int, ...]
    start: float
    end: float
    switch: float
    opens: float
    """When the switch begins."""

    @property
    def begins(self) -> str:
        return f"its switch begins at {in_words(self.opens)}" if self.switch else f"starts at {in_words(self.start)}"


def in_words(seconds: float) -> str:
    """Seconds to the microsecond, without idle zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + " s"
