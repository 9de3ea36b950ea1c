"""The planner's seam: typed events in, instructions out, on the clock that the events carry. Pure.

A strategy is a state machine. Whoever drives it (the live dispatcher, a simulator, a test) feeds it everything that
happens, in order, and carries out what it answers. It keeps no clock, reads nothing, and imports nothing of ours; so
the same object plans the live queue, its projection on the screen, and a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol


class Rank(IntEnum):
    """How much a job matters."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Job:
    """A task that needs a model. `needs` are the unfinished jobs it waits for."""

    id: str
    model: str
    rank: Rank = Rank.NORMAL
    needs: frozenset[str] = frozenset()
    waited_s: float = 0.0
    """How long it has been ready already when it arrives (after a restart)."""
    run_s: float | None = None
    """How long it will run; None: about as long as others of its model."""
    request: str = ""
    """What it is part of: jobs of one request are wanted together. Empty: it stands alone."""
    deadline: float = float("inf")
    """When it should have ended, on the clock of the events, so that what needs it can still be in time."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where models run. On a `shared` one several fit while memory lasts; else one server takes it whole."""

    id: str
    memory: int
    shared: bool = False
    machine: str = ""
    """The devices of one server are of one machine."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a model takes, and on which devices it could be loaded now (its files are there, it fits at all)."""

    name: str
    memory: int
    devices: tuple[str, ...] = ()
    load_s: float = 10.0
    run_s: float = 5.0
    width: int = 1
    """Devices that one server takes, all of them whole and at once."""
    sleep_s: float | None = None
    """To put it into host memory; None: it cannot be."""
    wake_s: float | None = None
    """To bring it back from there, on any devices that it could be loaded on."""

    @property
    def can_sleep(self) -> bool:
        """Whether it can be put into host memory and brought back."""
        return self.sleep_s is not None and self.wake_s is not None


@dataclass(frozen=True, slots=True)
class Server:
    """A running copy of a model. Only `ours` may be unloaded by a strategy."""

    id: str
    model: str
    devices: tuple[str, ...]
    memory: int = 0
    slots: int = 1
    ready: bool = False
    ours: bool = False
    reachable: bool = True


# Events


@dataclass(frozen=True, slots=True)
class Arrived:
    """A job is there, or what is known of it has changed."""

    job: Job


@dataclass(frozen=True, slots=True)
class Started:
    """A job runs on a server without having been asked for (adopted after a restart)."""

    job: Job
    server: str


@dataclass(frozen=True, slots=True)
class Completed:
    """A job is done: what needs it may go on."""

    job: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A job will not run now: cancelled, failed, waiting to be retried, or its start was refused."""

    job: str


@dataclass(frozen=True, slots=True)
class ServerIs:
    """A server appeared or changed."""

    server: Server


@dataclass(frozen=True, slots=True)
class ServerGone:
    """A server is no more; `failed` if it could not be kept up, `asleep` if its model lies in host memory now."""

    server: str
    failed: bool = False
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class LoadRefused:
    """A `Load` was not carried out."""

    model: str
    device: str


@dataclass(frozen=True, slots=True)
class DeviceIs:
    """A device appeared or changed."""

    device: Device


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """A device can no longer be used."""

    device: str


@dataclass(frozen=True, slots=True)
class HostIs:
    """Host memory that models can sleep in, bytes; where no one is told of it, none do."""

    memory: int


@dataclass(frozen=True, slots=True)
class ModelIs:
    """A model appeared, or what is known of it has changed."""

    model: Model


@dataclass(frozen=True, slots=True)
class ModelGone:
    """A model was deleted."""

    model: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event = (
    Arrived
    | Started
    | Completed
    | Withdrawn
    | ServerIs
    | ServerGone
    | LoadRefused
    | DeviceIs
    | DeviceGone
    | HostIs
    | ModelIs
    | ModelGone
    | Ticked
)

# Instructions


class Start(NamedTuple):
    """Run a job on a server, now. A tuple, for there is one of each job: it is made in half the time."""

    job: str
    server: str
    passed_over: int = 0
    """How often later jobs were started in its place while it was ready."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a model up on devices; where it sleeps in host memory, one that sleeps is woken."""

    model: str
    devices: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unload:
    """End a server of ours that runs nothing. With `sleep` its model goes into host memory, where it fits."""

    server: str
    reason: str = ""
    sleep: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up what sleeps of a model, one server's worth of it."""

    model: str
    reason: str = ""


Instruction = Start | Load | Unload | Drop


class Strategy(Protocol):
    """Decides which job runs where, and which model is loaded where."""

    name: str
    wait_bound_s: float
    """How long a ready job may be passed over, seconds."""

    def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
        """Take in what happened at `now` (seconds on a clock that never goes back) and say what to do."""

    def next_tick(self) -> float | None:
        """When it wants a `Ticked` at the latest; None: only when something happens."""

    def passed_over(self, job: str) -> int:
        """How often later jobs were started in a ready job's place; 0 for others."""


def create(name: str, *, wait_bound_s: float) -> Strategy:
    """The strategy of this name for the live queue: it says why. Raises KeyError for one that cannot run it."""
    from gswarm.scheduler import strategies

    if name not in strategies.live_names():
        raise KeyError(name)
    options: dict[str, Any] = {}
    if name == strategies.LIVE:
        # What waits may wait for hours, for a download or a person: until then GPUs stay free for whoever comes. Among equals
        # first come is first served, as `gswarm queue explain` says.
        options = {"load_ahead": False, "wait_weight": 0.0, "tail_weight": 0.0}
    return strategies.create(name, wait_bound_s=wait_bound_s, reasons=True, **options)
