"""What more planning would bring on line: the offline search, over all that is known, anew at each arrival.

`online` decides in microseconds. Beside it, on the same instances, a planner with all the time it wants: whenever requests
arrive, it plans everything that has arrived and is not done with `offline`'s greedy pass and so many passes of its search,
and follows that plan until the next arrival. It knows as little of what is to come as `online`. It is spared what the rest
of a broken placement costs to unload, so its makespan is a little too short. Prints makespan over the bound of both, and
what each planned for a decision, in microseconds of CPU; one JSON line.

    python benchmarks/replanning.py [--iterations 30] [--only narrow,deep]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field

import numpy as np
from scheduler import RECIPES, mean

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.generate import generate
from gswarm.scheduler.plan import Plan
from gswarm.scheduler.problem import Gpu, Node, Placement, Problem, Request, Running, build
from gswarm.scheduler.simulate import Simulation
from gswarm.scheduler.strategies import create, offline


@dataclass(eq=False)
class Held:
    """A placement, until one of its GPUs is given to another."""

    model: int
    gpus: tuple[int, ...]


@dataclass
class Replanning:
    """Where everything is, at one arrival after another."""

    problem: Problem
    iterations: int
    planning_s: float = 0.0
    end: np.ndarray = field(init=False)
    """Per task; infinite: not started."""

    def __post_init__(self) -> None:
        p = self.problem
        self.end = np.full(p.tasks, math.inf)
        self._where: list[tuple[int, ...]] = [()] * p.tasks
        self._held: list[Held | None] = [None] * len(p.gpus)
        self._free = [0.0] * len(p.gpus)
        self._request = p.request_column()

    def run(self) -> float:
        """The makespan."""
        times = sorted(set(self.problem.release.tolist()))
        for now, until in zip(times, [*times[1:], math.inf], strict=True):
            rest, tasks = self._rest(now)
            began = time.process_time()
            plan = offline.plan(rest, iterations=self.iterations)
            self.planning_s += time.process_time() - began
            self._follow(plan, tasks, now, until)
        return float(self.end.max())

    def _rest(self, now: float) -> tuple[Problem, list[int]]:
        """What is known and not done, and the tasks' numbers in the whole."""
        p = self.problem
        requests: list[Request] = []
        running: list[Running] = []
        tasks: list[int] = []
        left = np.flatnonzero((p.release <= now) & (self.end > now))
        for r in np.unique(self._request[left]).tolist():
            mine = left[self._request[left] == r].tolist()
            at = {task: n for n, task in enumerate(mine)}
            nodes = [
                Node(p.nodes[t], int(p.model[t]), tuple(at[q] for q in p.preds_of(t).tolist() if q in at)) for t in mine
            ]
            requests.append(Request(p.requests[r], 0.0, nodes, p.seconds[mine].tolist()))
            for t in mine:
                if self._where[t]:
                    running.append(Running(len(tasks), self._where[t], float(self.end[t]) - now))
                tasks.append(t)
        whole = {id(h): h for h in self._held if h is not None and all(self._held[g] is h for g in h.gpus)}
        placements = tuple(Placement(h.model, h.gpus) for h in whole.values())
        gpus = [Gpu(free_at=max(0.0, free - now)) for free in self._free]
        return build(p.models, gpus, requests, placements=placements, running=tuple(running)), tasks

    def _follow(self, plan: Plan, tasks: list[int], now: float, until: float) -> None:
        """Carry out what the plan begins before the next arrival: loads under way are ended too."""
        for n in np.argsort(plan.start - plan.switch_s, kind="stable").tolist():
            task, gpus, switch_s = tasks[n], plan.sets[plan.where[n]], float(plan.switch_s[n])
            start = now + float(plan.start[n])
            if self._where[task] or start - switch_s >= until:
                continue
            held = self._held[gpus[0]]
            if switch_s or held is None or (held.model, held.gpus) != (int(self.problem.model[task]), gpus):
                held = Held(int(self.problem.model[task]), gpus)
                for gpu in gpus:
                    self._held[gpu], self._free[gpu] = held, start
            if start < until:
                self.end[task], self._where[task] = now + float(plan.end[n]), gpus
                for gpu in gpus:
                    self._free[gpu] = float(self.end[task])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--only", help="names of instances, with commas between")
    options = parser.parse_args()
    cases: dict[str, dict[str, float]] = {}
    for name in options.only.split(",") if options.only else RECIPES:
        problem = generate(RECIPES[name])
        bound = lower_bound(problem, online=True).value
        simulation = Simulation(problem, create("online"))
        online = float(simulation.run().end.max())
        other = Replanning(problem, options.iterations)
        replanned = other.run()
        cases[name] = {
            "online": round(online / bound, 3),
            "replanned": round(replanned / bound, 3),
            "online_us": round(1e6 * simulation.planning_s / simulation.events, 1),
            "replanned_us": round(1e6 * other.planning_s / simulation.events, 1),
        }
    means = {key: mean([case[key] for case in cases.values()]) for key in ("online", "replanned")}
    result = {"benchmark": "replanning", "iterations": options.iterations, "geometric_means": means, "cases": cases}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
