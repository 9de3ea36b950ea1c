"""The lower bound against the true optimum of tiny problems, and the optimum against OR-tools' CP-SAT.

CP-SAT needs an older protobuf than gswarm, so it runs in an interpreter of its own, which `GSWARM_ORTOOLS_PYTHON` names:

    python -m venv .cache/ortools && .cache/ortools/bin/pip install "ortools>=9.14"
    GSWARM_ORTOOLS_PYTHON=.cache/ortools/bin/python pytest tests/test_bound.py
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.problem import Gpu, Model, Node, Problem, Request, build
from gswarm.scheduler.validate import validate
from tests.support import cpsat
from tests.support.optimum import optimum
from tests.support.scheduling import makespan, naive, problems

CLOSE_S = 1e-6
tiny = problems(max_tasks=5, max_gpus=3, max_models=3, max_width=3)
tiny_asleep = problems(max_tasks=4, max_gpus=3, max_models=3, max_width=2, tiers=True).map(
    lambda problem: replace(problem, shared=False, host_memory_gb=1000.0, gpus=(Gpu(),) * len(problem.gpus))
)
tiny_optional = problems(max_tasks=4, max_gpus=3, max_models=3, max_width=3, optional=True)


@given(st.one_of(tiny, tiny_optional, tiny_asleep), st.booleans())
@settings(max_examples=250, deadline=None)
def test_the_bound_never_exceeds_the_optimum(problem: Problem, online: bool) -> None:
    best = optimum(problem, online=online)
    assert validate(problem, len(problem.gpus), best, online=online) == []
    least = max([makespan(best), *(run.end for run in problem.running)])
    bound = lower_bound(problem, online=online)
    assert bound.value <= least + CLOSE_S
    assert all(part <= bound.value + CLOSE_S for part in bound.parts.values())


@given(problems(optional=True), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_valid_plan_ends_before_the_bound(problem: Problem, rng: Random, online: bool) -> None:
    plan = naive(problem, rng, online=online)
    least = max([makespan(plan), *(run.end for run in problem.running)])
    assert lower_bound(problem, online=online).value <= least + CLOSE_S


@given(tiny, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=100, deadline=None)
def test_nothing_beats_the_optimum(problem: Problem, rng: Random, online: bool) -> None:
    best = makespan(optimum(problem, online=online))
    for _ in range(5):
        assert makespan(naive(problem, rng, online=online)) >= best - CLOSE_S


def one_model(gpus: int, seconds: list[float], load_s: float) -> Problem:
    requests = [Request(f"r{n}", 0.0, (Node("n", 0),), [s]) for n, s in enumerate(seconds)]
    return build([Model("m", 1, 16.0, load_s)], gpus, requests)


def test_the_bound_is_tight_where_the_answer_is_plain() -> None:
    assert lower_bound(one_model(1, [1.0, 2.0, 3.0], 4.0)).value == pytest.approx(10.0)
    # Two GPUs would each load: 4 + 3.
    assert lower_bound(one_model(2, [3.0, 3.0], 4.0)).value == pytest.approx(7.0)
    chain = (Node("a", 0), Node("b", 0, (0,)), Node("c", 0, (1,)))
    problem = build([Model("m", 1, 16.0, 4.0)], 5, [Request("r", 0.0, chain, [1.0, 2.0, 3.0])])
    assert lower_bound(problem).value == pytest.approx(10.0)
    # Two models on one GPU: 4 + 1 + 16 / 16 + 4 + 1.
    pair = [Request(f"r{n}", 0.0, (Node("n", n),), [1.0]) for n in range(2)]
    both = build([Model("a", 1, 16.0, 4.0), Model("b", 1, 16.0, 4.0)], 1, pair)
    assert lower_bound(both).value == pytest.approx(11.0)
    assert makespan(optimum(both)) == pytest.approx(11.0)


def test_models_beside_each_other_take_their_share_of_the_memory() -> None:
    # Three models of 40 GB on one GPU of 80 GB, each 4 s to load and 12 s to run: two at a time, 16 s * 3 / 2.
    requests = [Request(f"r{n}", 0.0, (Node("n", n),), [12.0]) for n in range(3)]
    models = [Model(f"m{n}", 1, 40.0, 4.0) for n in range(3)]
    assert lower_bound(build(models, [Gpu(80.0)], requests, shared=True)).value == pytest.approx(24.0)
    assert lower_bound(build(models, [Gpu(80.0)], requests)).value == pytest.approx(53.0)


def test_a_model_is_loaded_before_it_can_be_woken() -> None:
    requests = [Request("r", 0.0, (Node("n", 0),), [1.0])]
    problem = build([Model("m", 1, 16.0, 30.0, sleep_s=1.0, wake_s=2.0)], 1, requests, host_memory_gb=100.0)
    assert lower_bound(problem).value == pytest.approx(31.0)


def test_two_of_three_models_on_one_gpu_cannot_be_had_for_half_of_all_work() -> None:
    requests = [Request(f"r{n}", 0.0, (Node("n", n),), [10.0]) for n in range(3)]
    problem = build([Model(f"m{n}", 1, 0.0, 10.0) for n in range(3)], 2, requests)
    assert lower_bound(problem).value == pytest.approx(40.0)  # 3 loads and 3 tasks of 10 s, over 2: 30
    assert makespan(optimum(problem)) == pytest.approx(40.0)


def test_what_is_needed_before_and_after_a_model_that_takes_all_gpus_is_loaded_twice() -> None:
    chain = (Node("a", 0), Node("b", 1, (0,)), Node("c", 0, (1,)))
    models = [Model("m", 1, 16.0, 10.0), Model("w", 2, 16.0, 100.0)]
    problem = build(models, 2, [Request("r", 0.0, chain, [1.0, 1.0, 1.0])])
    # m: 10 + 1, unload 1, w: 100 + 1, unload 1, m: 10 + 1.
    assert makespan(optimum(problem)) == pytest.approx(125.0)
    assert 123.5 <= lower_bound(problem).value <= 125.0


def test_work_beside_a_wide_model_takes_placements_for_the_time_that_it_leaves() -> None:
    requests = [Request("w", 0.0, (Node("w", 0),), [100.0]), Request("n", 0.0, (Node("n", 2),), [1.0])]
    requests += [Request(f"r{n}", 0.0, (Node("m", 1),), [20.0]) for n in range(4)]
    problem = build([Model("w", 4, 0.0, 10.0), Model("m", 2, 0.0, 5.0), Model("n", 1, 0.0, 1.0)], 5, requests)
    # m: 5 + 40 on two times two GPUs, then w: 10 + 100. With m loaded once it takes 85 s rather than 45.
    assert lower_bound(problem).value == pytest.approx(155.0)


def round_about(models: int) -> list[Request]:
    """Each model has a task that the next one's waits for, and the last one's are waited for by the first."""
    pairs = [(n, (n + 1) % models) for n in range(models)]
    return [Request(f"r{a}", 0.0, (Node("a", a), Node("b", b, (0,))), [1.0, 1.0]) for a, b in pairs]


def test_models_that_follow_each_other_and_do_not_fit_are_loaded_twice() -> None:
    one = build([Model(f"m{n}", 1, 0.0, 10.0) for n in range(2)], 1, round_about(2))
    assert lower_bound(one).value == pytest.approx(34.0)  # u v u, or v u v: three loads, four tasks
    assert makespan(optimum(one)) == pytest.approx(34.0)
    # Each of three follows each other one, through others; two GPUs hold two of them: four loads, twelve tasks.
    chains = [
        Request(
            f"r{n}",
            0.0,
            (Node("a", n), Node("b", (n + 1) % 3, (0,)), Node("c", (n + 2) % 3, (1,)), Node("d", n, (2,))),
            [1.0] * 4,
        )
        for n in range(3)
    ]
    three = [Model(f"m{n}", 1, 0.0, 10.0) for n in range(3)]
    assert lower_bound(build(three, 2, chains)).value == pytest.approx(26.0)
    assert lower_bound(build(three, 3, chains)).value < 20.0


def test_four_of_ten_gpus_fit_twice() -> None:
    requests = [Request(f"r{n}", 0.0, (Node("n", 0),), [10.0]) for n in range(6)]
    problem = build([Model("m", 4, 0.0, 0.0)], 10, requests)
    assert lower_bound(problem).value == pytest.approx(30.0)  # 60 x 4 GPU-seconds over 10: 24


def test_arrivals_count_online_only() -> None:
    requests = [Request("r0", 0.0, (Node("n", 0),), [1.0]), Request("r1", 100.0, (Node("n", 0),), [1.0])]
    problem = build([Model("m", 1, 16.0, 4.0)], 1, requests)
    assert lower_bound(problem, online=True).value == pytest.approx(101.0)
    assert lower_bound(problem).value == pytest.approx(6.0)


def instances(count: int) -> list[cpsat.Instance]:
    made = []
    for seed in range(count):
        rng = Random(seed)
        gpus = rng.randint(1, 3)
        models = [
            (rng.randint(1, min(2, gpus)), rng.choice([0, 2, 5, 9]), rng.choice([0, 1, 3]))
            for _ in range(rng.randint(1, 3))
        ]
        tasks = []
        for t in range(rng.randint(2, 5)):
            needs = [n for n in range(t) if rng.random() < 0.25]
            tasks.append((rng.randrange(len(models)), rng.choice([0, 1, 4, 7]), rng.choice([0, 0, 3, 12]), needs))
        made.append(cpsat.Instance(gpus, models, tasks, online=bool(seed % 2)))
    return made


def problem_of(instance: cpsat.Instance) -> Problem:
    models = [Model(f"m{n}", width, 16.0 * unload, load) for n, (width, load, unload) in enumerate(instance.models)]
    nodes = tuple(Node(f"n{n}", model, tuple(needs)) for n, (model, _, _, needs) in enumerate(instance.tasks))
    release = [float(task[2]) for task in instance.tasks]
    request = Request("r", 0.0, nodes, [float(task[1]) for task in instance.tasks], release=release)
    return build(models, instance.gpus, [request])


@pytest.mark.skipif("GSWARM_ORTOOLS_PYTHON" not in os.environ, reason="GSWARM_ORTOOLS_PYTHON names no interpreter")
def test_the_optimum_is_that_of_cp_sat() -> None:
    made = instances(60)
    python = os.environ["GSWARM_ORTOOLS_PYTHON"]
    answer = subprocess.run(
        [python, str(Path(cpsat.__file__))], input=cpsat.encode(made), capture_output=True, text=True, check=True
    )
    for instance, least in zip(made, json.loads(answer.stdout), strict=True):
        problem = problem_of(instance)
        assert makespan(optimum(problem, online=instance.online)) == pytest.approx(least), instance
        assert lower_bound(problem, online=instance.online).value <= least + CLOSE_S
