"""The validator: what is wrong with a plan, by the letter of the cost model. It shares no code with any planner.

It replays the executions in the order of their starts and keeps, per GPU, until when it is taken and what it holds.

The simple model (nothing optional in the problem) is checked to the letter: a task runs once, on a set of as many GPUs
as its model takes, for exactly its seconds over the slowest GPU's speed, after what it needs; its GPUs are taken during
[start - switch, end] and by nothing else; there is no switch where the set holds an intact placement of the model, and
else it takes exactly load time + max over the set of the memory of what the GPU holds / 16. Memory that does not fit its
GPU, GPUs that are not free yet, initial placements and tasks that run already are checked too. A running task may be
left out of a plan; if it is there, it is there as it runs.

A plan does not say what is evicted or put to sleep, so of the rest only what follows from it is checked:

* `shared` (several models on a GPU): a placement is resident from its switch to the end of its last execution that is
  not charged again. All that must be resident at once fits the GPU's memory; a GPU without a known memory holds one
  model at a time. Executions of one placement do not overlap, those of several may. A switch is at least the load,
  and what has no room beside that has the time to leave before it, after its last execution. What loads in no time at
  all may have left and come back between any two executions.
* `host_memory_gb` (sleep and wake): a switch is at least the wake time where the model can sleep and an execution of it
  has ended before, else the load time; to that comes what the set holds, each GPU cleared by unload or by sleep, whichever
  is shorter; and it is at most load or wake plus the slowest unload or sleep of what the set holds. An intact placement
  may be charged too: it may have gone to sleep and been woken elsewhere. What was woken (a switch below the load time)
  lay in host memory from when the last of its placements was broken; where several models are on a GPU, from when the
  last of them had no more room beside what must be there. All that must lie there at once fits.

Zero-second executions at one instant on one GPU are legal if they are in some order: they get the order that is best for
the plan, those whose placement is intact first, then by memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from gswarm.scheduler.faults import TOLERANCE_S, Fault, Kind, Run, in_words
from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import Problem
from gswarm.scheduler.replay import Replay


def validate(
    problem: Problem, gpus: int, executions: Sequence[Execution], *, online: bool, limit: int = 20
) -> list[Fault]:
    """The first `limit` faults of a plan for `gpus` GPUs; none: it is valid.

    `online`: neither a start nor a switch may lie before the task's release; else releases are ignored.
    """
    return list(islice(_faults(problem, gpus, executions, online), limit))


def _faults(problem: Problem, gpus: int, executions: Sequence[Execution], online: bool) -> Iterator[Fault]:
    if gpus != len(problem.gpus):
        yield Fault(Kind.GPUS, "", f"the plan is for {gpus} and the problem has {len(problem.gpus)}")
    runs: list[Run] = []
    yield from _read(problem, min(gpus, len(problem.gpus)), executions, runs)
    yield from _check_times(problem, runs, online)
    yield from _check_dependencies(problem, runs)
    runs.sort(key=lambda r: r.start)
    yield from Replay(problem).faults(runs)


def _read(problem: Problem, gpus: int, executions: Sequence[Execution], runs: list[Run]) -> Iterator[Fault]:
    """Put what can be replayed into `runs`; say what is wrong with each execution by itself.

    A task that runs already is not replayed: it is part of what there is at t = 0.
    """
    numbers = {name: number for number, name in enumerate(problem.requests)}
    first, model = problem.first.tolist(), problem.model.tolist()
    running = {r.task: r for r in problem.running}
    times_planned = [0] * problem.tasks
    for request, node, said, ids, start, end, switch in executions:
        name = f"{request}/{node}"
        number = numbers.get(request)
        if number is None:
            yield Fault(Kind.UNKNOWN, name, f"there is no request {request!r}")
            continue
        try:
            task = problem.nodes.index(node, first[number], first[number + 1])
        except ValueError:
            yield Fault(Kind.UNKNOWN, name, f"request {request} has no node {node!r}")
            continue
        times_planned[task] += 1
        if times_planned[task] == 2:
            yield Fault(Kind.DOUBLED, name, "is planned more than once")
        needed = problem.models[model[task]]
        if said != needed.id:
            yield Fault(Kind.MODEL, name, f"needs {needed.id} and is planned on {said}")
        chosen = tuple(sorted(set(ids)))
        if len(chosen) != len(ids):
            yield Fault(Kind.REPEATED, name, f"its GPUs {list(ids)} are not distinct")
        elif len(ids) != needed.width:
            yield Fault(Kind.WIDTH, name, f"{needed.id} needs {needed.width} GPUs and has {list(ids)}")
        if not chosen:
            continue
        if chosen[0] < 0 or chosen[-1] >= gpus:
            yield Fault(Kind.RANGE, name, f"its GPUs are {list(ids)}; there are 0 to {gpus - 1}")
            continue
        if not (math.isfinite(start) and math.isfinite(end) and math.isfinite(switch)) or switch < 0:
            yield Fault(Kind.TIME, name, f"start {start}, end {end}, switch {switch}: finite, switch not negative")
            continue
        if (known := running.get(task)) is None:
            runs.append(Run(task, name, model[task], chosen, start, end, switch, start - switch))
        elif chosen != tuple(sorted(known.gpus)) or abs(end - known.end) > TOLERANCE_S or switch > 0:
            words = f"on {list(chosen)} until {in_words(end)} with a switch of {in_words(switch)}"
            yield Fault(
                Kind.RUNNING, name, f"runs on {list(known.gpus)} until {in_words(known.end)} and is planned {words}"
            )
    for task, count in enumerate(times_planned):
        if not count and task not in running:
            yield Fault(Kind.MISSING, problem.name_of(task), "is not planned")


def _check_times(problem: Problem, runs: Sequence[Run], online: bool) -> Iterator[Fault]:
    seconds, release = problem.seconds.tolist(), problem.release.tolist()
    speeds = [g.speed for g in problem.gpus]
    free = [g.free_at for g in problem.gpus]
    rooms = [math.inf if g.memory_gb is None else g.memory_gb for g in problem.gpus]
    for run in runs:
        expected = seconds[run.task] / min([speeds[g] for g in run.gpus])
        if abs(run.end - run.start - expected) > TOLERANCE_S:
            yield Fault(
                Kind.DURATION,
                run.name,
                f"takes {in_words(expected)} and is planned for {in_words(run.end - run.start)}",
            )
        if run.opens < -TOLERANCE_S:
            yield Fault(Kind.EARLY, run.name, run.begins)
        elif run.opens < (late := max([free[g] for g in run.gpus])) - TOLERANCE_S:
            yield Fault(
                Kind.NOT_FREE, run.name, f"takes {list(run.gpus)} at {in_words(run.opens)}; free at {in_words(late)}"
            )
        needs = problem.models[run.model].memory_gb
        if needs > (room := min([rooms[g] for g in run.gpus])):
            yield Fault(Kind.MEMORY, run.name, f"needs {needs:g} GB; of {list(run.gpus)} the smallest has {room:g}")
        if online and run.opens < release[run.task] - TOLERANCE_S:
            yield Fault(Kind.ARRIVAL, run.name, f"{run.begins}; it is known from {in_words(release[run.task])}")


def _check_dependencies(problem: Problem, runs: Sequence[Run]) -> Iterator[Fault]:
    ends: list[float | None] = [None] * problem.tasks
    for r in problem.running:
        ends[r.task] = r.end
    for run in runs:
        ends[run.task] = run.end
    first, preds = problem.pred_first.tolist(), problem.preds.tolist()
    for run in runs:
        for pred in preds[first[run.task] : first[run.task + 1]]:
            end = ends[pred]
            if end is not None and run.start < end - TOLERANCE_S:
                needed = problem.name_of(pred)
                yield Fault(
                    Kind.DEPENDENCY, run.name, f"starts at {in_words(run.start)}; {needed} ends at {in_words(end)}"
                )
