"""Why a task of a plan runs where and when it does: what it waited for, what its GPUs did, the switch, who went before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from gswarm.scheduler.faults import TOLERANCE_S
from gswarm.scheduler.plan import Execution
from gswarm.scheduler.problem import UNLOAD_GB_PER_S, Model, Problem, ProblemError
from gswarm.scheduler.types import Explanation, Neighbour, told_s


def explain(problem: Problem, executions: Sequence[Execution], task: str) -> Explanation:
    """The explanation of "request/node" in a plan (pass `problem.offline()` for one that ignores arrivals).

    Raises ProblemError for a task that the problem or the plan does not have.
    """
    number = problem.task_of(task)
    ours = next((run for run in executions if _name(run) == task), None)
    if ours is None:
        raise ProblemError(f"the plan does not have task {task}")
    if ours.model != (needed := problem.models[int(problem.model[number])].id):
        raise ProblemError(f"the plan runs {task} on {ours.model} and it needs {needed}: it is the plan of other files")
    ends = {_name(run): run.end for run in executions}
    names = _names(problem)
    ready = _ready_times(problem, names, ends)
    after, ready_s = _made_ready(problem, number, names, ends)
    # Where several models are on a GPU, only what runs on the same placement is in the way.
    there = [r for r in executions if not problem.shared or (r.model, r.gpus) == (ours.model, ours.gpus)]
    history = {gpu: sorted((r for r in there if gpu in r.gpus), key=lambda r: (r.start, r.end)) for gpu in ours.gpus}
    before = {gpu: _at(runs, ours, -1) for gpu, runs in history.items()}
    free_s = max((run.end if run else _free_at(problem, gpu) for gpu, run in before.items()), default=0.0)
    if problem.shared and ours.switch_seconds:
        before = {gpu: _ended_last(executions, gpu, ours) for gpu in ours.gpus}
    meanwhile = [run for run in executions if ready_s <= run.start < ours.start - TOLERANCE_S and run is not ours]
    return Explanation(
        task=task,
        model=ours.model,
        gpus=ours.gpus,
        start_s=ours.start,
        end_s=ours.end,
        switch_s=ours.switch_seconds,
        ready_s=ready_s,
        ready_after=after,
        free_s=free_s,
        ready=_why_ready(problem, number, after, ready_s, executions),
        switch=_why_switch(problem, ours, before, history[ours.gpus[0]] if ours.gpus else []),
        start=_why_then(ours, ready_s, max(free_s, float(problem.release[number])), shared=problem.shared),
        before=tuple(_neighbour(gpu, run) for gpu, run in before.items()),
        next=tuple(_neighbour(gpu, _at(runs, ours, 1)) for gpu, runs in history.items()),
        instead=_by_model(meanwhile),
        instead_there=_by_model([run for run in meanwhile if set(run.gpus) & set(ours.gpus)]),
        overtaken_by=sum(ready.get(_name(run), 0.0) > ready_s + TOLERANCE_S for run in meanwhile),
    )


def _name(run: Execution) -> str:
    return f"{run.request_id}/{run.node_id}"


def _names(problem: Problem) -> list[str]:
    requests = problem.request_column().tolist()
    return [f"{problem.requests[r]}/{node}" for r, node in zip(requests, problem.nodes, strict=True)]


def _ready_times(problem: Problem, names: Sequence[str], ends: Mapping[str, float]) -> dict[str, float]:
    """When each task is ready in this plan; what the plan lacks holds nothing up."""
    release, first, preds = problem.release.tolist(), problem.pred_first.tolist(), problem.preds.tolist()
    return {
        name: max([release[t], *(ends.get(names[p], 0.0) for p in preds[first[t] : first[t + 1]])])
        for t, name in enumerate(names)
    }


def _made_ready(problem: Problem, number: int, names: Sequence[str], ends: Mapping[str, float]) -> tuple[str, float]:
    """The predecessor that ended last (none: its arrival came later) and when the task was ready."""
    after, at = "", float(problem.release[number])
    for p in problem.preds_of(number).tolist():
        if ends.get(names[p], -1.0) > at:
            after, at = names[p], ends[names[p]]
    return after, at


def _at(runs: Sequence[Execution], ours: Execution, step: int) -> Execution | None:
    position = next(n for n, run in enumerate(runs) if run is ours) + step
    return runs[position] if 0 <= position < len(runs) else None


def _free_at(problem: Problem, gpu: int) -> float:
    return problem.gpus[gpu].free_at if 0 <= gpu < len(problem.gpus) else 0.0  # an invalid plan is explained too


def _ended_last(executions: Sequence[Execution], gpu: int, ours: Execution) -> Execution | None:
    """What ran last on a GPU before the switch of `ours`, of whatever model."""
    opens = ours.start - ours.switch_seconds + TOLERANCE_S
    ended = [run for run in executions if gpu in run.gpus and run.end <= opens and run is not ours]
    return max(ended, key=lambda run: run.end, default=None)


def _neighbour(gpu: int, run: Execution | None) -> Neighbour:
    if run is None:
        return Neighbour(gpu)
    return Neighbour(gpu, _name(run), run.model, run.start, run.end, run.switch_seconds)


def _by_model(runs: Sequence[Execution]) -> dict[str, int]:
    return dict(Counter(run.model for run in runs).most_common())


def _why_ready(problem: Problem, number: int, after: str, at: float, executions: Sequence[Execution]) -> str:
    count = len(problem.preds_of(number))
    if after:
        where = next(run.gpus for run in executions if _name(run) == after)
        others = f", the last of the {count} it needs" if count > 1 else ", which it needs"
        return f"at {told_s(at)}, when {after}{others}, ended on {_gpus(where)}"
    needs = "; what it needs had ended" if count else "; it needs no other task"
    return f"at {told_s(at)}, when its request arrived{needs}" if at else f"from the beginning{needs}"


def _why_switch(
    problem: Problem, ours: Execution, before: Mapping[int, Execution | None], runs: Sequence[Execution]
) -> str:
    models = {m.id: m for m in problem.models}
    model = models.get(ours.model)
    load_s = model.load_s if model else 0.0
    if not ours.switch_seconds:
        past = [run for run in runs if run.start <= ours.start and run is not ours]
        loaded = next((run for run in reversed(past) if run.switch_seconds and run.gpus == ours.gpus), None)
        if loaded is None or loaded.model != ours.model:
            return "none is charged"
        ran = sum(run.start >= loaded.start for run in past)
        served = "1 task" if ran == 1 else f"{ran} tasks"
        return (
            f"avoided: {ours.model} is there since {told_s(loaded.start)}, loaded for {_name(loaded)}, and has served {served};"
            f" elsewhere it would cost {told_s(load_s)} or more"
        )
    if model is not None and (problem.shared or problem.host_memory_gb):
        return _of_tiers(ours.switch_seconds, model)
    held = [(models[run.model].memory_gb, gpu, run.model) for gpu, run in before.items() if run and run.model in models]
    told = f"{told_s(ours.switch_seconds)} = {told_s(load_s)} to load {ours.model}"
    first = {gpu: problem.models[placed.model] for placed in problem.placements for gpu in placed.gpus}
    held += [(first[gpu].memory_gb, gpu, first[gpu].id) for gpu, run in before.items() if not run and gpu in first]
    memory, gpu, name = max(held, default=(0.0, 0, ""))
    due = load_s + memory / UNLOAD_GB_PER_S
    if name:
        told += f" + {told_s(memory / UNLOAD_GB_PER_S)} to unload {memory:g} GB of {name} on GPU {gpu} at 16 GB/s"
    else:
        told += " on what was empty"
    return told if abs(due - ours.switch_seconds) <= TOLERANCE_S else f"{told}; but that makes {told_s(due)}"


def _of_tiers(switch_s: float, model: Model) -> str:
    """A plan does not say what left for it, or how."""
    woken = model.wake_s is not None and switch_s < model.load_s - TOLERANCE_S
    cost_s = model.wake_s if woken and model.wake_s is not None else model.load_s
    what = f"wake {model.id} from host memory" if woken else f"load {model.id}"
    rest_s = switch_s - cost_s
    rest = f" + {told_s(rest_s)} for what left its GPUs" if rest_s > TOLERANCE_S else ""
    return f"{told_s(switch_s)} = {told_s(cost_s)} to {what}{rest}"


def _why_then(ours: Execution, ready_s: float, free_s: float, *, shared: bool) -> str:
    if ours.start < ready_s - TOLERANCE_S:
        return "before it is ready: the plan is not valid"
    loaded_s = free_s + ours.switch_seconds
    then = "loaded" if ours.switch_seconds else "free"
    late = ours.start - max(ready_s, loaded_s)
    if late > TOLERANCE_S and shared:
        return f"{told_s(late)} after it was ready: its turn, or memory for it on its GPUs, came later"
    if late > TOLERANCE_S:
        return f"{told_s(late)} after it was ready and its GPUs {then}: they were kept idle"
    if ready_s > loaded_s + TOLERANCE_S:
        return f"as soon as it was ready; its GPUs could have taken it {told_s(ready_s - loaded_s)} before"
    if ready_s >= loaded_s - TOLERANCE_S:
        return "at once"
    return f"as soon as its GPUs were {then}, {told_s(loaded_s - ready_s)} after it was ready"


def _gpus(gpus: Sequence[int]) -> str:
    return f"GPU {gpus[0]}" if len(gpus) == 1 else f"GPUs {', '.join(map(str, gpus))}"
