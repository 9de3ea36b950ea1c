"""What GPUs and host memory hold in a simulation, what may be put there, and what that is charged.

One model a GPU: the view is the plan's, in which a load counts from the first task that it serves; what a GPU holds is
cleared by the next load on it, in memory / 16 GB/s, or in `sleep_s` if it was put to sleep. Several models a GPU
(`shared`): a load is charged what was cleared of its GPUs since the last one there, and no other begins on them before that
is done; else what fits beside costs its load alone.
A model that sleeps is woken, on any GPUs, in `wake_s`; only what has run can sleep, for the plan shows no other.
"""

from __future__ import annotations

from gswarm.scheduler.problem import SLACK_GB, UNLOAD_GB_PER_S, Problem


class Placed:
    """A server of the simulation."""

    __slots__ = ("busy", "gpus", "id", "model", "ready", "speed", "switch_s", "used", "woken")

    def __init__(self, id: str, model: int, gpus: tuple[int, ...], switch_s: float, speed: float, woken: bool) -> None:
        self.id, self.model, self.gpus, self.switch_s, self.speed = id, model, gpus, switch_s, speed
        self.woken = woken
        self.ready = self.busy = False
        self.used = False
        """Whether a task was served since the load: only then the load is in the plan."""


class Holding:
    """See the module's docstring."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._shared = problem, problem.shared
        count = len(problem.gpus)
        self._on: list[dict[str, Placed]] = [{} for _ in range(count)]
        """Servers of each GPU."""
        self._clear_s = [0.0] * count
        """What the next load on a GPU is charged for it."""
        self._clear_at = [0.0] * count
        """When what a load was charged for is gone from a GPU."""
        self._intact: list[tuple[int, tuple[int, ...]] | None] = [None] * count
        """Model and set that a GPU was last given to, in the plan's view."""
        self._asleep = [0] * len(problem.models)

    def why_not(self, model: int, gpus: tuple[int, ...]) -> str:
        """Why the model cannot be put there now; empty: it can."""
        need = self._problem.models[model].memory_gb
        for g in gpus:
            there, room = self._on[g].values(), self._problem.gpus[g].memory_gb
            if there and (not self._shared or room is None):
                return f"GPU {g} is taken"
            if any(p.model == model and p.gpus == gpus for p in there):
                return "it is there already"
            held = sum(self._problem.models[p.model].memory_gb for p in there)
            if room is not None and held + need > room + SLACK_GB:
                return f"GPU {g} has {room - held:g} GB left" if held else f"GPU {g} is too small"
        return ""

    def charge(self, model: int, gpus: tuple[int, ...], now: float) -> tuple[float, bool]:
        """What the switch takes, seconds, and whether it is a waking. What is cleared or woken is so from now on."""
        m = self._problem.models[model]
        woken = self._asleep[model] > 0
        if woken:
            self._asleep[model] -= 1
        if not self._shared and all(self._intact[g] == (model, gpus) for g in gpus):
            return 0.0, woken
        cost = m.wake_s if woken and m.wake_s is not None else m.load_s
        if not self._shared:
            return cost + max(self._clear_s[g] for g in gpus), woken
        longest = 0.0
        for g in gpus:
            left_s = max(self._clear_at[g] - now, 0.0) + self._clear_s[g]
            self._clear_at[g], self._clear_s[g] = now + left_s, 0.0
            longest = max(longest, left_s)
        return cost + longest, woken

    def place(self, placed: Placed) -> None:
        """It is there."""
        for g in placed.gpus:
            self._on[g][placed.id] = placed

    def served(self, placed: Placed) -> None:
        """It runs its first task: its load is in the plan."""
        placed.used = True
        if self._shared:
            return
        for g in placed.gpus:
            self._clear_s[g] = self._problem.models[placed.model].memory_gb / UNLOAD_GB_PER_S
            self._intact[g] = (placed.model, placed.gpus)

    def can_sleep(self, placed: Placed) -> bool:
        """Whether it can be put to sleep now: its model can, it has run, and there is room."""
        models = self._problem.models
        m = models[placed.model]
        taken = sum(n * o.memory_gb * o.width for n, o in zip(self._asleep, models, strict=True) if n)
        fits = taken + m.memory_gb * m.width <= self._problem.host_memory_gb + SLACK_GB
        return m.can_sleep and (placed.used or placed.woken) and fits

    def remove(self, placed: Placed, *, sleep: bool) -> None:
        """It is no more, or asleep."""
        m = self._problem.models[placed.model]
        away_s = m.sleep_s if sleep and m.sleep_s is not None else m.memory_gb / UNLOAD_GB_PER_S
        self._asleep[placed.model] += sleep
        for g in placed.gpus:
            del self._on[g][placed.id]
            if self._shared:
                self._clear_s[g] += away_s
            elif sleep and placed.used:
                self._clear_s[g], self._intact[g] = away_s, None

    def drop(self, model: int) -> bool:
        """Give up one that sleeps; False: none does."""
        if not self._asleep[model]:
            return False
        self._asleep[model] -= 1
        return True
