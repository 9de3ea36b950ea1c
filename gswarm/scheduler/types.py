"""What the scheduler's commands answer: a plan's figures, faults of a plan, what happens in a simulation, why a task waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

EXIT_INVALID = 5
"""Exit code for a plan that is not valid."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan comes to, of which strategy and mode. Waits and responses are over requests, in seconds."""

    strategy: str = ""
    mode: str = ""
    gpus: int = 0
    tasks: int = 0
    makespan_s: float = 0.0
    bound_s: float = 0.0
    ratio: float = 0.0
    """Makespan over the proven lower bound; 1.0 where both are 0."""
    switches: int = 0
    switch_s: float = 0.0
    utilisation: float = 0.0
    """Execution GPU-seconds over GPUs times makespan."""
    wait_mean_s: float = 0.0
    wait_p50_s: float = 0.0
    wait_p99_s: float = 0.0
    response_mean_s: float = 0.0
    response_p50_s: float = 0.0
    response_p99_s: float = 0.0
    planning_us_per_task: float = 0.0
    late: int | None = None
    """Requests that ended after their deadline; None where there are no deadlines."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with a plan: `task` is "request/node", empty for the whole plan."""

    kind: str
    task: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a plan is valid, and what is wrong with it."""

    plan: str
    valid: bool
    mode: str
    gpus: int
    executions: int
    flaws: tuple[Flaw, ...] = ()
    at_least: bool = False
    """There are more flaws than these."""

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return 0 if self.valid else EXIT_INVALID

    def lines(self) -> Iterator[str]:
        """A sentence, then a line a flaw."""
        if self.valid:
            yield f"{self.plan} is valid: {_count(self.executions, 'task')} on {_count(self.gpus, 'GPU')}, {self.mode}"
            return
        more = " or more" if self.at_least else ""
        yield f"{self.plan} is not valid ({self.mode}): {_count(len(self.flaws), 'fault')}{more}"
        for flaw in self.flaws:
            yield f"  {flaw.task or 'the plan'}: {flaw.kind}: {flaw.message}"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happens in a simulation, at `time_s` of virtual time; what begins takes `seconds`."""

    time_s: float
    kind: str
    """arrival, load, wake, loaded, unload, sleep, drop, start or end."""
    task: str
    """Empty where no task is concerned."""
    model: str
    gpus: tuple[int, ...]
    seconds: float
    passed_over: int
    reason: str

    def lines(self) -> Iterator[str]:
        """One line of fixed columns, so that lines that come one by one stand below each other."""
        gpus = ",".join(map(str, self.gpus)) or "-"
        seconds = f"{self.seconds:10.3f}" if self.kind in ("arrival", "load", "wake", "start") else " " * 10
        yield (
            f"{self.time_s:12.3f}  {self.kind:<7}  {self.model:<14}  {gpus:<11}  {seconds}"
            f"  {self.task or '-'}  {self.reason}".rstrip()
        )


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a GPU does before or after a task. `task` is empty where it does nothing."""

    gpu: int
    task: str = ""
    model: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    switch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task of a plan runs where and when it does. Times are seconds since t = 0."""

    task: str
    model: str
    gpus: tuple[int, ...]
    start_s: float
    end_s: float
    switch_s: float
    ready_s: float
    """When all it needs had ended and it had arrived."""
    ready_after: str
    """The predecessor that ended last; empty when its arrival made it ready."""
    free_s: float
    """When the last of its GPUs was free."""
    ready: str
    switch: str
    start: str
    before: tuple[Neighbour, ...]
    next: tuple[Neighbour, ...]
    instead: Mapping[str, int]
    """Tasks that began while it was ready and waited, by model."""
    instead_there: Mapping[str, int]
    """Those of them that ran on its GPUs."""
    overtaken_by: int
    """Those of them that became ready later than it did."""

    @property
    def waited_s(self) -> float:
        """From ready to start."""
        return self.start_s - self.ready_s

    def lines(self) -> Iterator[str]:
        """Sentences for a person."""
        where = "GPU" if len(self.gpus) == 1 else "GPUs"
        yield f"{self.task} ({self.model}) runs on {where} {_listed(self.gpus)}, {told_s(self.start_s)} to {told_s(self.end_s)}"
        yield f"  ready    {self.ready}"
        yield from _neighbours("before", self.before, "nothing: it is the first task there")
        yield f"  switch   {self.switch}"
        yield f"  start    {self.start}"
        if self.waited_s > 0:
            told = _counted(self.instead) or "nothing"
            if self.instead:
                there = _counted(self.instead_there)
                told += f"; on its own GPUs {there or 'none of them'}; {self.overtaken_by} of them became ready later"
            yield f"  instead  began in the {told_s(self.waited_s)} that it waited: {told}"
        yield from _neighbours("next", self.next, "nothing: it is the last task there")


def _neighbours(label: str, found: tuple[Neighbour, ...], nothing: str) -> Iterator[str]:
    for n in found:
        told = nothing
        if n.task:
            switch = f" after a switch of {told_s(n.switch_s)}" if n.switch_s else ""
            told = f"{n.task} ({n.model}) from {told_s(n.start_s)} to {told_s(n.end_s)}{switch}"
        yield f"  {label:<7}  GPU {n.gpu}: {told}"
        label = ""


def told_s(seconds: float) -> str:
    """Seconds to the millisecond: 12.5 s."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{model} ×{n}" for model, n in counts.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
