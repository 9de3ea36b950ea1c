"""`online`: how often a ready task may be passed over is bounded, wide ones too, and that bound is never exceeded."""

from __future__ import annotations

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gswarm.scheduler.generate import Recipe, generate
from gswarm.scheduler.plan import Plan
from gswarm.scheduler.problem import Model, Node, Problem, Request, build
from gswarm.scheduler.simulate import simulate
from gswarm.scheduler.strategies.online import Online
from tests.support.counting import Counting
from tests.support.scheduling import problems


def wide_among_narrow(gpus: int, narrow: int) -> Problem:
    """One task that takes every GPU, and a stream of small ones that would keep each of them busy for ever."""
    models = [Model("small", 1, 8, 1.0), Model("wide", gpus, 60, 20.0)]
    requests = [Request("w", 1.0, (Node("n", 1),), [5.0])]
    small = (Node("n", 0),)
    requests += [Request(f"s{n}", n * 0.4 / gpus, small, [0.5]) for n in range(narrow)]
    return build(models, gpus, sorted(requests, key=lambda r: r.arrival))


@given(problems(max_tasks=40, max_gpus=6, priorities=True), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
@example(wide_among_narrow(4, 200), 10)
@example(wide_among_narrow(3, 120), 0)
def test_no_ready_task_is_passed_over_more_often_than_the_bound(problem: Problem, max_passed: int) -> None:
    strategy = Counting(Online(max_passed=max_passed))
    simulate(problem, strategy)
    passes = strategy.passes()
    assert max(passes.values(), default=0) <= max_passed
    # What it tells is no less: it also counts those that became ready in the same turn, but behind.
    assert all(strategy.told[job] >= count for job, count in passes.items())


def test_the_bound_is_not_what_makes_it_slow() -> None:
    calm = generate(Recipe(seed=5, requests=150, gpus=8, saturation=0.7))
    online = Online()
    strategy = Counting(online)
    simulate(calm, strategy)
    assert max(strategy.passes().values()) < online.max_passed / 2


def test_a_wide_task_gets_its_gpus_although_small_ones_never_end() -> None:
    problem = wide_among_narrow(4, 1500)
    online = Online()
    strategy = Counting(online)
    plan = simulate(problem, strategy)
    wide = problem.task_of("w/n")
    behind = int((plan.start > plan.start[wide]).sum())
    assert strategy.passes()[str(wide)] <= online.max_passed and behind > 500


def placements(problem: Problem, plan: Plan, model: str, before: float = math.inf) -> set[tuple[int, ...]]:
    """The sets of GPUs that tasks of a model started on before a time."""
    return {run.gpus for run in plan.executions(problem) if run.model == model and run.start < before}


def test_a_model_is_not_loaded_more_often_than_it_has_tasks() -> None:
    nodes = (Node("a", 0), Node("b", 0))
    problem = build([Model("m", 1, 8, 30.0)], 10, [Request("r", 0.0, nodes, [300.0, 300.0])])
    strategy = Counting(Online())
    simulate(problem, strategy)
    assert strategy.loads == 2


def test_nor_where_others_give_way_for_it() -> None:
    models = [Model("many", 1, 8, 5.0), Model("one", 1, 8, 5.0)]
    requests = [Request(f"a{n:02}", 0.0, (Node("n", 0),), [2.0]) for n in range(80)]
    requests.append(Request("z", 30.0, (Node("n", 1),), [600.0]))
    strategy = Counting(Online())
    simulate(build(models, 4, requests), strategy)
    assert strategy.loads == 5


def test_models_that_no_one_asks_for_make_no_one_wait() -> None:
    def first_start(models: int) -> float:
        known = [Model(f"m{n}", 1, 8, 10.0) for n in range(models)]
        requests = [Request(f"a{n:03}", 0.0, (Node("n", 0),), [60.0]) for n in range(100)]
        requests += [Request(f"z{n:03}", 5.0, (Node("n", 1),), [10.0]) for n in range(100)]
        problem = build(known, 4, requests)
        return float(simulate(problem, Online()).start[problem.model == 1].min())

    assert first_start(300) == first_start(2) < 700


def test_empty_gpus_are_loaded_in_time_with_as_many_copies_as_will_be_needed() -> None:
    # All second tasks become ready at once. Were their model loaded then, and not before, they would wait for 50 s more.
    first = Node("first", 0)
    nodes = (first, *(Node(f"n{n}", 1, (0,)) for n in range(6)))
    models = [Model("first", 1, 8, 5.0), Model("second", 1, 8, 50.0)]
    problem = build(models, 8, [Request("r", 0.0, nodes, [60.0] + [40.0] * 6)])
    plan = simulate(problem, Online())
    assert len(placements(problem, plan, "second")) == 6
    assert float(plan.end.max()) < 5 + 60 + 50


def test_a_model_with_much_to_come_gets_gpus_of_one_with_little_while_that_still_runs() -> None:
    # Of `long` little is ready at any time, and much waits for it: each chain is 20 of its tasks, one after another.
    chain = tuple(Node(f"n{n}", 0, (n - 1,) if n else ()) for n in range(20))
    models = [Model("long", 1, 8, 10.0), Model("short", 1, 8, 10.0)]
    requests = [Request(f"s{n:03}", 0.0, (Node("n", 1),), [5.0]) for n in range(60)]
    requests += [Request(f"z{n}", 20.0, chain, [5.0] * 20) for n in range(6)]
    problem = build(models, 3, requests)
    plan = simulate(problem, Online())
    last_short = float(plan.start[problem.model == 1].max())
    assert len(placements(problem, plan, "long", before=last_short)) == 2


def test_a_long_chain_does_not_wait_behind_what_nothing_waits_for() -> None:
    # Were the chain begun last, it would run alone in the end, from 55 s to 105 s.
    chain = tuple(Node(f"n{n}", 0, (n - 1,) if n else ()) for n in range(10))
    requests = [Request(f"s{n:02}", 0.0, (Node("n", 0),), [5.0]) for n in range(20)]
    requests.append(Request("z", 0.0, chain, [5.0] * 10))
    plan = simulate(build([Model("m", 1, 0, 5.0)], 2, requests), Online())
    assert float(plan.end.max()) <= 5 + (100 + 50) / 2 + 5


def test_what_has_to_change_models_has_more_to_come() -> None:
    models = [Model("one", 1, 0, 5.0), Model("other", 1, 0, 30.0)]
    stays, changes = (Node("a", 0), Node("b", 0, (0,))), (Node("a", 0), Node("b", 1, (0,)))
    problem = build(models, 1, [Request("stays", 0.0, stays, [5.0, 5.0]), Request("changes", 0.0, changes, [5.0, 5.0])])
    start = simulate(problem, Online()).start
    assert start[problem.task_of("changes/a")] < start[problem.task_of("stays/a")]


def test_a_request_begins_before_an_older_one_ends_but_not_long_before() -> None:
    def begins_first(arrival: float) -> bool:
        pair = (Node("a", 0), Node("b", 0, (0,)))
        requests = [Request("old", 0.0, pair, [20.0, 20.0]), Request("young", arrival, (Node("n", 0),), [20.0])]
        problem = build([Model("m", 1, 0, 5.0)], 1, requests)
        start = simulate(problem, Online()).start
        return bool(start[problem.task_of("young/n")] < start[problem.task_of("old/b")])

    assert begins_first(9.0) and not begins_first(11.0)
