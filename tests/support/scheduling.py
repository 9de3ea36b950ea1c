"""Scheduling problems for Hypothesis, and a scheduler so simple that its plans are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import (
    UNLOAD_GB_PER_S,
    Gpu,
    Model,
    Node,
    Placement,
    Problem,
    Request,
    Running,
    build,
)

# Equal times and zeros are where ties are; eighths are exact, and thirds are not.
SECONDS = st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.125, 5.0, 40.0, 1 / 3, 0.1, 1e-9])
LOADS = st.sampled_from([0.0, 1.0, 3.0, 10.0, 0.7, 100.0])
NAPS = st.sampled_from([None, 0.0, 0.5, 1.0, 2.0, 30.0])
ROOMS = st.sampled_from([None, 80.0, 80.0, 100.0])
HOSTS = st.sampled_from([0.0, 20.0, 80.0, 1000.0])
DUE = st.sampled_from([1.0, 10.0, 60.0, float("inf")])
MEMORY = st.sampled_from([0.0, 16.0, 8.0, 33.3, 80.0])


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    max_tasks: int = 24,
    max_gpus: int = 5,
    max_models: int = 4,
    max_width: int = 4,
    arrivals: bool = True,
    optional: bool = False,
    tiers: bool = False,
    priorities: bool = False,
) -> Problem:
    """Wide models, any graph, equal and zero times, one GPU, more GPUs than work, arrivals tied or spread.

    With `optional`: also initial placements, tasks that run already, GPUs that are free later or of several speeds.
    With `tiers`: also GPUs of known memory, several models on one, models that sleep in host memory, and deadlines.
    With `priorities`: requests of several.
    """
    gpus = draw(st.integers(1, max_gpus))
    models = [
        Model(f"m{n}", draw(st.integers(1, min(gpus, max_width))), draw(MEMORY), draw(LOADS))
        for n in range(draw(st.integers(1, max_models)))
    ]
    if tiers:
        models = [replace(m, sleep_s=draw(NAPS), wake_s=draw(NAPS)) for m in models]
    due = draw(st.booleans()) if tiers else False
    flows = draw(st.lists(_flows(len(models), max_nodes=min(6, max_tasks)), min_size=1, max_size=3))
    requests: list[Request] = []
    now, left = 0.0, max_tasks
    for number in range(draw(st.integers(1, max_tasks))):
        flow = draw(st.sampled_from(flows))
        if len(flow) > left:
            break
        left -= len(flow)
        if arrivals and number:
            now += draw(st.sampled_from([0.0, 0.0, 1.0, 7.5, 1 / 3]))
        deadline = now + draw(DUE) if due else float("inf")
        rank = draw(st.integers(-1, 2)) if priorities else 0
        times = [draw(SECONDS) for _ in flow]
        requests.append(Request(f"r{number}", now, flow, times, priority=rank, deadline=deadline))
    machines: list[Gpu] = [Gpu()] * gpus
    placements: list[Placement] = []
    if optional:
        free, speed = st.sampled_from([0.0, 0.0, 4.0]), st.sampled_from([1.0, 1.0, 2.0, 0.5])
        machines = [Gpu(None, draw(speed), draw(free)) for _ in range(gpus)]
        empty = list(range(gpus))
        for number, model in enumerate(models):
            if model.width <= len(empty) and draw(st.booleans()):
                placements.append(Placement(number, tuple(empty[: model.width])))
                empty = empty[model.width :]
    tier: dict[str, Any] = {}
    if tiers:
        machines = [replace(machine, memory_gb=draw(ROOMS)) for machine in machines]
        if all(machine.memory_gb is None for machine in machines) or draw(st.booleans()):
            machines = [replace(machine, memory_gb=80.0) for machine in machines]
        if not placements:  # some that not every model fits on
            small = draw(st.integers(0, gpus - max(model.width for model in models)))
            machines = [replace(machine, memory_gb=16.0) for machine in machines[:small]] + machines[small:]
        tier = {"shared": draw(st.booleans()), "host_memory_gb": draw(HOSTS)}
    problem = build(models, machines, requests, placements=tuple(placements), **tier)
    running = []
    for placement in placements:
        roots = [
            task
            for task in range(problem.tasks)
            if problem.model[task] == placement.model and not len(problem.preds_of(task)) and not problem.release[task]
        ]
        end = draw(st.sampled_from([0.5, 4.0]))
        if roots and max(machines[gpu].free_at for gpu in placement.gpus) <= end and draw(st.booleans()):
            running.append(Running(roots[0], placement.gpus, end))
    return replace(problem, running=tuple(running))


@st.composite
def _flows(draw: st.DrawFn, models: int, max_nodes: int) -> tuple[Node, ...]:
    count = draw(st.integers(1, max_nodes))
    shape = draw(st.sampled_from(["free", "chain", "any"]))
    nodes: list[Node] = []
    for number in range(count):
        needs: tuple[int, ...] = ()
        if number and shape == "chain":
            needs = (number - 1,)
        elif number and shape == "any":
            needs = tuple(sorted(draw(st.sets(st.integers(0, number - 1), max_size=3))))
        nodes.append(Node(f"n{number}", draw(st.integers(0, models - 1)), needs))
    # Nodes need not stand in the order of the graph.
    if draw(st.booleans()):
        last = count - 1
        nodes = [Node(n.id, n.model, tuple(last - need for need in n.needs)) for n in reversed(nodes)]
    return tuple(nodes)


def naive(problem: Problem, rng: Random, *, online: bool) -> list[Execution]:
    """A valid plan: any task that is ready, on any set of GPUs, begun as soon as it may be."""
    held: list[tuple[int, float]] = [(-1, 0.0)] * len(problem.gpus)  # serial number of the load, GB
    loads = 0
    intact: dict[tuple[int, tuple[int, ...]], int] = {}
    free = [gpu.free_at for gpu in problem.gpus]

    def put(model: int, gpus: tuple[int, ...]) -> None:
        nonlocal loads
        loads += 1
        intact[model, gpus] = loads
        for gpu in gpus:
            held[gpu] = (loads, problem.models[model].memory_gb)

    for placement in problem.placements:
        put(placement.model, placement.gpus)
    ends = {run.task: run.end for run in problem.running}
    for run in problem.running:
        for gpu in run.gpus:
            free[gpu] = max(free[gpu], run.end)
    plan: list[Execution] = []
    waiting = [task for task in range(problem.tasks) if task not in ends]
    while waiting:
        ready = [t for t in waiting if all(int(p) in ends for p in problem.preds_of(t))]
        task = rng.choice(ready)
        waiting.remove(task)
        number = int(problem.model[task])
        model = problem.models[number]
        gpus = tuple(sorted(rng.sample(range(len(free)), model.width)))
        same = [g for (m, g), n in intact.items() if m == number and all(held[gpu][0] == n for gpu in g)]
        if same and rng.random() < 0.5:
            gpus = rng.choice(same)
        switch = 0.0
        if (number, gpus) not in intact or any(held[gpu][0] != intact[number, gpus] for gpu in gpus):
            switch = model.load_s + max(held[gpu][1] for gpu in gpus) / UNLOAD_GB_PER_S
            put(number, gpus)
        opens = max(free[gpu] for gpu in gpus)
        if online:
            opens = max(opens, float(problem.release[task]))
        start = max([opens + switch, *(ends[int(p)] for p in problem.preds_of(task))])
        # Now and then it idles, so that not every plan is tight.
        start += rng.choice([0.0, 0.0, 0.0, 2.0])
        ends[task] = start + float(problem.seconds[task]) / min(problem.gpus[gpu].speed for gpu in gpus)
        for gpu in gpus:
            free[gpu] = ends[task]
        request = problem.request_of(task)
        plan.append(
            Execution(problem.requests[request], problem.nodes[task], model.id, gpus, start, ends[task], switch)
        )
    return plan


def makespan(executions: Sequence[Execution]) -> float:
    """When the last one ends."""
    return max((run.end for run in executions), default=0.0)
