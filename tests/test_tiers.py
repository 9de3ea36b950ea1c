"""Several models on a GPU, models that sleep in host memory, and deadlines: what they are good for, and their limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.scheduler.generate import Recipe, generate
from gswarm.scheduler.plan import Plan, late_requests, measure
from gswarm.scheduler.planning import plan_with
from gswarm.scheduler.problem import Gpu, Model, Node, Placement, Problem, ProblemError, Request, build
from gswarm.scheduler.simulate import Record, simulate
from gswarm.scheduler.strategies import create, names
from gswarm.scheduler.strategies.crowd import Crowd
from gswarm.scheduler.validate import validate
from tests.support.counting import Counting
from tests.support.scheduling import problems

NAMES = names()
ALL = [*NAMES, "offline"]


def ends(plan: Plan) -> float:
    return float(plan.end.max())


def turns(host_gb: float) -> Problem:
    """Two models of 32 GB that take turns on one GPU: 20 s to load, 2 s to unload, 1 s to sleep, 2 s to wake."""
    models = [Model(name, 1, 32.0, 20.0, sleep_s=1.0, wake_s=2.0) for name in "AB"]
    chain = (Node("n0", 0), Node("n1", 1, (0,)), Node("n2", 0, (1,)), Node("n3", 1, (2,)))
    return build(models, 1, [Request("r", 0.0, chain, [1.0] * 4)], host_memory_gb=host_gb)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("host_gb", "makespan"),
    [
        (0.0, 20 + 22 + 22 + 22 + 4),
        (31.0, 20 + 22 + 22 + 22 + 4),
        (32.0, 20 + 21 + (2 + 2) + 21 + 4),  # A sleeps; while it does there is no room for B
        (64.0, 20 + 21 + 3 + 3 + 4),
    ],
)
def test_sleeping_beats_loading_where_it_fits(name: str, host_gb: float, makespan: float) -> None:
    problem = turns(host_gb)
    plan = plan_with(name, problem).plan
    assert ends(plan) == pytest.approx(makespan)
    assert validate(problem, 1, list(plan.executions(problem)), online=False) == []


@pytest.mark.parametrize("name", ALL)
def test_two_small_models_side_by_side_beat_taking_turns(name: str) -> None:
    models = [Model(name, 1, 32.0, 10.0) for name in "AB"]
    requests = [Request(f"r{n}", 0.0, (Node("n", n % 2),), [2.0]) for n in range(10)]
    alone = build(models, [Gpu(80.0)], requests)
    assert ends(plan_with(name, replace(alone, shared=True)).plan) == pytest.approx(10 + 5 * 2)
    assert ends(plan_with(name, alone).plan) >= 10 + 5 * 2 + 12 + 5 * 2
    # On a GPU that has no room for both they take turns all the same.
    small = replace(alone, shared=True, gpus=(Gpu(63.0),))
    assert ends(plan_with(name, small).plan) >= 10 + 5 * 2 + 12 + 5 * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_sleeper_wakes_on_other_gpus_beside_what_is_there(name: str) -> None:
    """A, then B and C that need all memory but A's host memory, then A again: no second load of A."""
    models = [Model("A", 1, 50.0, 30.0, sleep_s=1.0, wake_s=1.0), Model("B", 1, 60.0, 5.0)]
    chain = (Node("a", 0), Node("b", 1, (0,)), Node("c", 0, (1,)))
    requests = [Request("r", 0.0, chain, [1.0, 1.0, 1.0])]
    problem = build(models, [Gpu(80.0)], requests, shared=True, host_memory_gb=50.0)
    plan = plan_with(name, problem).plan
    # 30 + 1, then A sleeps in 1 s and B loads in 5 s, then B is unloaded in 60 / 16 s and A wakes in 1 s.
    assert plan.switch_s.tolist() == pytest.approx([30.0, 6.0, 60 / 16 + 1])


class Ledger:
    """What is on GPUs and in host memory by what the simulator tells."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.on: Counter[tuple[int, int]] = Counter((gpu, p.model) for p in problem.placements for gpu in p.gpus)
        self.asleep: Counter[int] = Counter()

    def __call__(self, record: Record) -> None:
        models = self.problem.models
        if record.kind in ("load", "wake"):
            self.asleep[record.model] -= record.kind == "wake"
            assert self.asleep[record.model] >= 0
        for gpu in record.gpus:
            if record.kind in ("load", "wake"):
                self.on[gpu, record.model] += 1
            elif record.kind in ("unload", "sleep"):
                self.on[gpu, record.model] -= 1
            room = self.problem.gpus[gpu].memory_gb
            there = [models[m] for (g, m), count in self.on.items() if g == gpu for _ in range(count)]
            assert room is None or sum(m.memory_gb for m in there) <= room + 1e-6
            assert len(there) <= 1 or (self.problem.shared and room is not None)
        if record.kind in ("sleep", "drop"):
            self.asleep[record.model] += 1 if record.kind == "sleep" else -1
        slept = sum(models[m].memory_gb * models[m].width * count for m, count in self.asleep.items())
        assert slept <= self.problem.host_memory_gb + 1e-6


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems(tiers=True))
@settings(max_examples=300, deadline=None)
def test_memory_is_never_exceeded(name: str, problem: Problem) -> None:
    simulate(problem, create(name, shared=problem.shared), watch=Ledger(problem))


def test_what_cannot_be_there_at_first_is_refused() -> None:
    models = [Model("A", 1, 50.0, 1.0), Model("B", 2, 40.0, 1.0)]

    def there(*placed: tuple[int, tuple[int, ...]], **more: object) -> None:
        build(models, [Gpu(80.0)] * 2, [], placements=[Placement(m, gpus) for m, gpus in placed], **more)

    there((0, (0,)), (0, (1,)))
    with pytest.raises(ProblemError, match="GPU 1 holds A and B at t = 0"):
        there((0, (1,)), (1, (0, 1)))
    with pytest.raises(ProblemError, match="GPU 1 would hold 90 GB at t = 0 and has 80 GB"):
        there((0, (1,)), (1, (0, 1)), shared=True)
    with pytest.raises(ProblemError, match=r"model B takes 2 GPUs and is on \[0\] at t = 0"):
        there((1, (0,)))


# How much it helps


def test_tiers_make_online_faster_on_the_whole() -> None:
    ratios = []
    for seed in range(4):
        recipe = Recipe(seed=seed, requests=150, gpus=5, models=8, load_over_run=8, zipf=0.8, gpu_memory_gb=80)
        alone, asleep = generate(recipe), generate(replace(recipe, host_memory_gb=1000.0))
        found = (alone, asleep, replace(alone, shared=True), replace(asleep, shared=True))
        ratios.append([measure(p, plan_with("online", p).plan, 1.0).response_p99_s for p in found])
    mean = np.exp(np.log(np.array(ratios)).mean(axis=0))
    assert (mean[1:] < 0.9 * mean[0]).all() and mean[3] < 0.75 * mean[0]


def test_offline_alone_on_a_gpu_is_never_missed() -> None:
    problem = generate(Recipe(seed=2, requests=60, gpus=6, models=8, load_over_run=10, gpu_memory_gb=80)).offline()
    shared = plan_with("offline", replace(problem, shared=True)).plan
    assert ends(shared) <= ends(plan_with("offline", problem).plan) + 1e-6


def test_offline_is_no_worse_where_models_may_sleep_too() -> None:
    recipe = Recipe(seed=1, requests=80, gpus=6, models=8, load_over_run=4, zipf=0.8, gpu_memory_gb=80, shared=True)
    awake, asleep = (plan_with("offline", generate(replace(recipe, host_memory_gb=gb))).plan for gb in (0.0, 1000.0))
    assert ends(asleep) <= ends(awake) + 1e-6


def test_nothing_is_loaded_on_a_gpu_before_what_leaves_it_is_gone() -> None:
    models = [Model("there", 1, 80.0, 1.0), Model("a", 1, 16.0, 1.0), Model("b", 1, 16.0, 1.0)]
    requests = [Request(f"r{m}", 0.0, (Node("n", m),), [1.0]) for m in (1, 2)]
    problem = build(models, [Gpu(80.0)], requests, shared=True, placements=(Placement(0, (0,)),))
    for name in ("baseline", "affinity", "online"):
        plan = plan_with(name, problem).plan
        assert plan.start.tolist() == pytest.approx([6.0, 6.0]), f"{name}: 80 GB take 5 s, for both"


# Deadlines


def hurried(shared: bool) -> Problem:
    """Ten tasks of 2 s on one GPU; the three that came last are due first."""
    requests = [Request(f"r{n}", 0.0, (Node("n", 0),), [2.0]) for n in range(7)]
    requests += [Request(f"d{n}", 0.0, (Node("n", 0),), [2.0], deadline=14.0 - n) for n in range(3)]
    return build([Model("m", 1, 16.0, 5.0)], [Gpu(80.0)], requests, shared=shared)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["online", "offline"])
def test_what_is_due_goes_first_where_it_costs_nothing(name: str, shared: bool) -> None:
    problem = hurried(shared)
    plan = plan_with(name, problem).plan
    assert late_requests(problem, plan) == 0
    assert ends(plan) == pytest.approx(25.0)
    assert late_requests(problem, plan_with("fifo", problem).plan) == 3


@pytest.mark.parametrize("shared", [False, True])
def test_what_cannot_be_in_time_does_not_hold_up_what_can(shared: bool) -> None:
    # Both are due; the first is too long for it. Earliest deadline first would make both late.
    requests = [
        Request("lost", 0.0, (Node("n", 0),), [50.0], deadline=20.0),
        Request("well", 0.0, (Node("n", 0),), [10.0], deadline=25.0),
    ]
    problem = build([Model("m", 1, 16.0, 5.0)], [Gpu(80.0)], requests, shared=shared)
    plan = plan_with("online", problem).plan
    assert late_requests(problem, plan) == 1 and plan.end[1] == pytest.approx(15.0)


def test_a_deadline_counts_for_what_a_request_needs_too() -> None:
    # The second request's first task has to go before the first request's only one, although that is due sooner.
    requests = [
        Request("one", 0.0, (Node("n", 0),), [2.0], deadline=13.0),
        Request("two", 0.0, (Node("a", 0), Node("b", 1, (0,))), [2.0, 6.0], deadline=13.5),
    ]
    models = [Model("m", 1, 16.0, 5.0), Model("k", 1, 16.0, 5.0)]
    problem = build(models, 2, requests, placements=(Placement(1, (1,)),))
    for name in ("online", "offline"):
        assert late_requests(problem, plan_with(name, problem).plan) == 0


def test_late_requests_are_told_only_where_there_are_deadlines() -> None:
    problem = hurried(False)
    without = replace(problem, deadline=None)
    assert measure(problem, plan_with("fifo", problem).plan, 1.0).late == 3
    assert measure(without, plan_with("fifo", without).plan, 1.0).late is None


# The bound on being passed over


@given(problems(max_tasks=40, max_gpus=6, tiers=True, priorities=True), st.integers(0, 12))
@settings(max_examples=400, deadline=None)
def test_no_ready_task_is_passed_over_more_often_than_the_bound_on_shared_gpus(
    problem: Problem, max_passed: int
) -> None:
    problem = replace(problem, shared=True)
    strategy = Counting(Crowd(max_passed=max_passed))
    simulate(problem, strategy)
    assert max(strategy.passes().values(), default=0) <= max_passed
