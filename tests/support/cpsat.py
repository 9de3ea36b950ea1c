"""The least makespan of small problems by OR-tools' CP-SAT, in an interpreter of its own: it needs an older protobuf.

Run as a script it reads a list of instances from standard input and prints the list of optima. Times are whole numbers.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Instance:
    """GPUs that are alike and empty; models are (width, load, unload), tasks (model, seconds, release, needs)."""

    gpus: int
    models: list[tuple[int, int, int]]
    tasks: list[tuple[int, int, int, list[int]]]
    online: bool


def encode(instances: list[Instance]) -> str:
    """What `main` reads."""
    return json.dumps([asdict(instance) for instance in instances])


def least_makespan(instance: Instance) -> int:
    """A circuit of tasks per GPU: who follows whom on it says what it holds, and so what each switch takes.

    The placement is intact where all GPUs of the set come from the same task, of the same model on the same set.
    """
    from ortools.sat.python import cp_model  # type: ignore[import-not-found]

    gpus, models, tasks = range(instance.gpus), instance.models, instance.tasks
    horizon = sum(s + models[m][1] + max(u for _, _, u in models) for m, s, _, _ in tasks)
    horizon += max((r for _, _, r, _ in tasks), default=0)
    model: Any = cp_model.CpModel()
    start = [model.new_int_var(0, horizon, f"start {t}") for t in range(len(tasks))]
    switch = [model.new_int_var(0, horizon, f"switch {t}") for t in range(len(tasks))]
    on: list[dict[tuple[int, ...], Any]] = []
    for t, (m, _, _, needs) in enumerate(tasks):
        on.append({s: model.new_bool_var(f"{t} on {s}") for s in itertools.combinations(gpus, models[m][0])})
        model.add_exactly_one(on[t].values())
        for need in needs:
            model.add(start[t] >= start[need] + tasks[need][1])
        if instance.online:
            model.add(start[t] >= tasks[t][2] + switch[t])
    follows: dict[tuple[int, int, int], Any] = {}
    for g in gpus:
        arcs = [(0, 0, idle := model.new_bool_var(f"{g} idle"))]
        for t in range(len(tasks)):
            here = sum(lit for s, lit in on[t].items() if g in s)
            absent = model.new_bool_var(f"{t} not on {g}")
            model.add(absent + here == 1)
            model.add_implication(idle, absent)
            first, last = model.new_bool_var(""), model.new_bool_var("")
            arcs += [(t + 1, t + 1, absent), (0, t + 1, first), (t + 1, 0, last)]
            model.add(start[t] >= switch[t]).only_enforce_if(first)
            for u in range(len(tasks)):
                if u != t:
                    arc = follows[g, u, t] = model.new_bool_var(f"{t} after {u} on {g}")
                    arcs.append((u + 1, t + 1, arc))
                    model.add(start[t] >= start[u] + tasks[u][1] + switch[t]).only_enforce_if(arc)
        model.add_circuit(arcs)
    for t, (m, _, _, _) in enumerate(tasks):
        intact = []
        for u in range(len(tasks)):
            if u == t or tasks[u][0] != m:
                continue
            for s, lit in on[t].items():
                kept = model.new_bool_var(f"{t} finds {u} intact on {s}")
                for needed in [lit, on[u][s], *(follows[g, u, t] for g in s)]:
                    model.add_implication(kept, needed)
                intact.append(kept)
        loads = model.new_bool_var(f"{t} loads")
        model.add(sum(intact) + loads == 1)
        model.add(switch[t] >= models[m][1]).only_enforce_if(loads)
        for g in gpus:
            for u in range(len(tasks)):
                if u != t:
                    least = models[m][1] + models[tasks[u][0]][2]
                    model.add(switch[t] >= least).only_enforce_if([loads, follows[g, u, t]])
    makespan = model.new_int_var(0, horizon, "makespan")
    for t, (_, seconds, _, _) in enumerate(tasks):
        model.add(makespan >= start[t] + seconds)
    model.minimize(makespan)
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    if solver.solve(model) != cp_model.OPTIMAL:
        raise RuntimeError("no proven optimum")
    return int(solver.value(makespan))


if __name__ == "__main__":
    print(json.dumps([least_makespan(Instance(**body)) for body in json.load(sys.stdin)]))  # noqa: T201
