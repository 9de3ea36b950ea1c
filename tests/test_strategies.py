"""Every strategy, on random problems: its plans are valid by the validator's letter, causal, and the same each time."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.faults import Kind
from gswarm.scheduler.plan import Plan
from gswarm.scheduler.planning import noisy_bound, plan_with
from gswarm.scheduler.problem import Gpu, Model, Node, Problem, Request, build
from gswarm.scheduler.simulate import perturbed, simulate
from gswarm.scheduler.sizing import Sized
from gswarm.scheduler.strategies import create, names, offline
from gswarm.scheduler.strategies.batching import Pass
from gswarm.scheduler.strategies.instance import Instance
from gswarm.scheduler.strategies.mirrored import MirroredPass, is_reversible
from gswarm.scheduler.strategies.policy import GREEDY, drawn
from gswarm.scheduler.validate import validate
from tests.support.scheduling import problems

NAMES = names()
CLOSE_S = 1e-6


def faults(problem: Problem, plan: Plan, *, online: bool) -> list[str]:
    found = validate(problem, len(problem.gpus), list(plan.executions(problem)), online=online)
    return [str(fault) for fault in found]


def same(one: Plan, other: Plan) -> bool:
    columns = ("start", "end", "switch_s")
    sets = [[plan.sets[w] for w in plan.where.tolist()] for plan in (one, other)]
    return sets[0] == sets[1] and all(np.array_equal(getattr(one, c), getattr(other, c)) for c in columns)


@pytest.mark.parametrize("name", NAMES)
@given(problem=st.one_of(problems(), problems(priorities=True)))
@settings(max_examples=60, deadline=None)
def test_plans_on_line_are_valid(name: str, problem: Problem) -> None:
    assert faults(problem, simulate(problem, create(name)), online=True) == []


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems(arrivals=False, max_tasks=40, max_gpus=8))
@settings(max_examples=40, deadline=None)
def test_plans_of_everything_at_once_are_valid_and_above_the_bound(name: str, problem: Problem) -> None:
    plan = simulate(problem.offline(), create(name))
    assert faults(problem, plan, online=False) == []
    assert lower_bound(problem).value <= float(plan.end.max()) + CLOSE_S


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems(optional=True))
@settings(max_examples=40, deadline=None)
def test_what_is_loaded_or_runs_already_and_unequal_gpus_are_honoured(name: str, problem: Problem) -> None:
    assert faults(problem, simulate(problem, create(name)), online=True) == []


@pytest.mark.parametrize("name", NAMES)
@given(problem=st.one_of(problems(), problems(optional=True)), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_with_noise_only_the_times_differ_from_what_was_told(name: str, problem: Problem, seed: int) -> None:
    plan = simulate(problem, create(name), noise=0.5, seed=seed)
    real = perturbed(problem, plan)
    found = validate(real, len(real.gpus), list(plan.executions(real)), online=True)
    assert {fault.kind for fault in found} <= {Kind.TOO_SHORT, Kind.TOO_LONG}
    assert noisy_bound(real, 0.5, online=True) <= max(plan.end.tolist(), default=0.0) + CLOSE_S


def test_a_bound_for_times_that_were_off_knows_that_wakings_were_too() -> None:
    models = [Model(name, load_s=10.0, sleep_s=0.0, wake_s=8.0) for name in "ab"]
    nodes = [Node("a", 0), Node("b", 1, (0,)), Node("c", 0, (1,))]
    problem = build(models, 1, [Request("r", 0.0, nodes, [1.0] * 3)], host_memory_gb=100.0)
    # At their shortest, two loads of 5 s, a waking of 4 s, and three tasks.
    assert noisy_bound(problem, 0.5, online=False) == pytest.approx(5 + 5 + 4 + 3)


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems())
@settings(max_examples=20, deadline=None)
def test_the_same_problem_gives_the_same_plan(name: str, problem: Problem) -> None:
    assert same(simulate(problem, create(name)), simulate(problem, create(name)))


def until(problem: Problem, time: float) -> Problem:
    """The requests that arrive before `time`."""
    kept = int(np.searchsorted(problem.arrivals, time, side="left"))
    flows = [range(int(problem.first[r]), int(problem.first[r + 1])) for r in range(kept)]
    requests = [
        Request(
            problem.requests[r],
            float(problem.arrivals[r]),
            [
                Node(problem.nodes[t], int(problem.model[t]), tuple(int(p) - flow[0] for p in problem.preds_of(t)))
                for t in flow
            ],
            [float(problem.seconds[t]) for t in flow],
            deadline=float("inf") if problem.deadline is None or not flow else float(problem.deadline[flow[0]]),
        )
        for r, flow in enumerate(flows)
    ]
    tiers = {"shared": problem.shared, "host_memory_gb": problem.host_memory_gb}
    return build(problem.models, problem.gpus, requests, **tiers)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("late", [24.0, 80.0])
@pytest.mark.parametrize("name", [*NAMES, "offline"])
def test_gpus_too_small_are_left_alone_also_where_some_come_later(name: str, late: float, shared: bool) -> None:
    gpus = [Gpu(24.0), Gpu(80.0), Gpu(late, free_at=6.0)]
    requests = [Request(f"r{n}", 0.0, (Node("n", n % 2),), [10.0]) for n in range(4)]
    problem = build([Model(m, 1, 60.0, 5.0) for m in "mn"], gpus, requests, shared=shared)
    assert faults(problem, plan_with(name, problem).plan, online=False) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_small_model_leaves_the_large_gpu_to_one_that_fits_nowhere_else(name: str) -> None:
    models = [Model("large", 1, 60.0, 5.0), Model("small", 1, 10.0, 5.0)]
    requests = [Request(f"r{n}", 0.0, (Node("n", n),), [seconds]) for n, seconds in enumerate((1.0, 10.0))]
    problem = build(models, [Gpu(80.0), Gpu(24.0)], requests)
    plan = simulate(problem, create(name))
    assert faults(problem, plan, online=True) == []
    assert name != "static" or plan.end.tolist() == [6.0, 15.0]


# `static` is sized beforehand to the whole mix: that is what it is.
CAUSAL = [name for name in NAMES if not isinstance(create(name), Sized)]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("tiers", [False, True])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_is_decided_by_what_comes_later(name: str, tiers: bool, data: st.DataObject) -> None:
    problem = data.draw(problems(max_tasks=30, tiers=tiers))
    time = data.draw(st.sampled_from(sorted(set(problem.arrivals.tolist()))))
    part = until(problem, time)
    whole, prefix = plan_with(name, problem).plan, plan_with(name, part).plan
    for task in range(part.tasks):
        if min(whole.start[task], prefix.start[task]) < time:
            assert whole.start[task] == prefix.start[task]
            assert whole.switch_s[task] == prefix.switch_s[task]
            assert whole.sets[whole.where[task]] == prefix.sets[prefix.where[task]]


# Several models on a GPU, models that sleep in host memory, deadlines


@pytest.mark.parametrize("name", [*NAMES, "offline"])
@given(problem=st.one_of(problems(tiers=True), problems(tiers=True, optional=True)), online=st.booleans())
@settings(max_examples=150, deadline=None)
def test_plans_with_memory_tiers_are_valid_and_above_the_bound(name: str, problem: Problem, online: bool) -> None:
    online = online and name != "offline"
    problem = problem if online else problem.offline()
    plan = plan_with(name, problem, iterations=2, seed=1).plan
    assert faults(problem, plan, online=online) == []
    assert lower_bound(problem, online=online).value <= max(plan.end.tolist(), default=0.0) + CLOSE_S


# Offline


@given(problems(max_tasks=40, max_gpus=8), st.integers(0, 20), st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_offline_plans_are_valid_and_above_the_bound(problem: Problem, iterations: int, seed: int) -> None:
    plan = offline.plan(problem, iterations=iterations, seed=seed)
    assert faults(problem, plan, online=False) == []
    assert lower_bound(problem).value <= float(plan.end.max()) + CLOSE_S


@given(problems(optional=True), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_offline_honours_what_is_loaded_or_runs_already_and_unequal_gpus(problem: Problem, iterations: int) -> None:
    assert faults(problem, offline.plan(problem, iterations=iterations), online=False) == []


@given(problems(), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_a_search_is_never_worse_than_no_search_and_the_same_each_time(problem: Problem, iterations: int) -> None:
    greedy = offline.plan(problem)
    searched = offline.plan(problem, iterations=iterations, seed=1)
    assert float(searched.end.max()) <= float(greedy.end.max()) + CLOSE_S
    assert same(searched, offline.plan(problem, iterations=iterations, seed=1))


@given(problems(arrivals=False, max_tasks=40, max_gpus=8), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_a_pass_from_the_end_gives_a_valid_plan_of_the_makespan_it_says(problem: Problem, seed: int) -> None:
    assume(is_reversible(problem))
    made = MirroredPass(Instance(problem).mirrored(), drawn(Random(seed)))
    ends = made.run()
    plan = made.plan()
    assert faults(problem, plan, online=False) == []
    assert float(plan.end.max()) == ends


@given(problems(arrivals=False, max_tasks=40, max_gpus=8), st.integers(0, 1000), st.floats(0.5, 1.5))
@settings(max_examples=80, deadline=None)
def test_a_pass_from_the_end_that_may_stop_early_gives_the_same_or_no_less(
    problem: Problem, seed: int, part: float
) -> None:
    assume(is_reversible(problem))
    instance, policy = Instance(problem).mirrored(), drawn(Random(seed))
    whole = MirroredPass(instance, policy).run()
    stop = part * whole
    stopped = MirroredPass(instance, policy).run(stop)
    assert stopped == whole or stopped >= stop


@given(problems(arrivals=False, max_tasks=40, max_gpus=8))
@settings(max_examples=60, deadline=None)
def test_greedy_is_never_worse_for_passes_from_the_end(problem: Problem) -> None:
    instance = Instance(problem)
    forwards = [Pass(instance, policy).run() for policy in GREEDY]
    assert float(offline.plan(problem).end.max()) <= max(min(forwards), offline.ENOUGH * instance.target)


@given(problems(optional=True, tiers=True))
@settings(max_examples=40, deadline=None)
def test_what_is_there_at_the_start_is_not_planned_from_the_end(problem: Problem) -> None:
    told = (problem.placements, problem.running, problem.shared, problem.host_memory_gb, problem.deadline is not None)
    unlike = {(gpu.memory_gb, gpu.speed, gpu.free_at) for gpu in problem.gpus}
    if any(told) or len(unlike) > 1:
        assert not is_reversible(problem)


def test_tasks_go_first_that_a_loaded_model_waits_for() -> None:
    models = [Model("a", load_s=20.0), Model("b", load_s=20.0)]
    alone = [Request(f"l{n}", 0.0, [Node("n", 0)], [20.0]) for n in range(4)]
    chains = [Request(f"c{n}", 0.0, [Node("a", 0), Node("b", 1, (0,))], [1.0, 10.0]) for n in range(5)]
    plan = offline.plan(build(models, 2, alone + chains))
    assert float(plan.end.max()) == 20.0 + 5 * 1.0 + 4 * 20.0, "a is never idle nor loaded twice, b runs beside it"


def test_a_model_comes_first_that_much_work_waits_for() -> None:
    models = [Model(name, load_s=5.0) for name in ("early", "late", "x", "y")]
    chains = [Request(f"c{n}", 0.0, [Node("e", 0), Node("l", 1, (0,))], [5.0, 15.0]) for n in range(4)]
    alone = [Request(f"{m}{n}", 0.0, [Node("n", m)], [10.0]) for n in range(6) for m in (2, 3)]
    plan = offline.plan(build(models, 2, chains + alone))
    # x and y have more work of their own. One after the other on a GPU, and the two others on the other one: 130.
    assert float(plan.start[0]) == 5.0 and float(plan.end.max()) < 120.0


@pytest.mark.parametrize("name", [*NAMES, "offline"])
@pytest.mark.parametrize("gpus", [1, 3])
def test_no_tasks_and_a_single_one(name: str, gpus: int) -> None:
    for requests in ([], [Request("r", 0.0, (Node("n", 0),), [2.0])]):
        problem = build([Model("m", 1, 16.0, 3.0)], gpus, requests)
        plan = offline.plan(problem) if name == "offline" else simulate(problem, create(name))
        assert faults(problem, plan, online=True) == []
        assert plan.end.tolist() == [5.0] * len(requests)
