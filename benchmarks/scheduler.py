"""How good plans are and what planning costs: ratios to the proven bound, and to the list schedulers in the same run.

Instances are generated from fixed seeds: few and many GPUs, deep and wide graphs, loads far above execution, calm and
saturated; `--samples DIR` adds the files there (NAME_config.json with NAME_requests.json or .yaml, GPUs by `--gpus`).
Every plan is validated. Offline: makespan over the bound, greedy and after `--seconds` of search. Online: p99 wait, p99
response and makespan over the best of fifo, baseline and affinity, each metric and case apart, all three of one plan.
Robustness: the share of the gain in p99 response over baseline that is left when times differ by up to 50 % from what was
told. Cost: CPU microseconds of planning, and bytes, per task or decision, by size, as the commands plan: without looking
for garbage; beside it what a turn of a plain Python loop takes, to tell machines and hours apart. Prints one JSON line.

    python benchmarks/scheduler.py [--seconds 8] [--sizes 1000,100000,1000000] [--samples DIR --gpus 8]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gswarm.scheduler.bound import lower_bound
from gswarm.scheduler.formats import problem_of, read_file
from gswarm.scheduler.generate import Recipe, generate
from gswarm.scheduler.plan import Plan, measure
from gswarm.scheduler.problem import Problem
from gswarm.scheduler.simulate import Simulation
from gswarm.scheduler.strategies import create, offline
from gswarm.scheduler.types import Outcome
from gswarm.scheduler.validate import validate

LISTS = ("fifo", "baseline", "affinity")
GOALS = {
    "greedy": 1.065,
    "searched": 1.03,
    "online_wait_p99": 0.65,
    "online_response_p99": 0.48,
    "online_makespan": 0.79,
    "gain_kept_with_noise": 0.8,
    "greedy_us_per_task": 5.0,
    "online_us_per_decision": 10.0,
    "bytes_per_task": 600,
}
RECIPES = {
    "narrow": Recipe(seed=11, requests=120, gpus=4, models=5, workflows=4, wide_share=0.3, saturation=1.5),
    "mixed": Recipe(seed=12, requests=300, gpus=16, models=8, zipf=1.2, width=3, wide_share=0.4, saturation=2, burst=3),
    "deep": Recipe(
        seed=13, requests=80, gpus=6, models=6, depth=9, width=1, wide_share=0, load_over_run=8, saturation=2
    ),
    "slow loads": Recipe(seed=14, requests=200, gpus=8, models=10, depth=4, load_over_run=12, wide_share=0.2),
    "bursts": Recipe(seed=15, requests=400, gpus=32, models=12, depth=4, saturation=3, burst=5),
    "wide": Recipe(seed=16, requests=150, gpus=8, models=4, zipf=0, depth=6, wide_share=0.5, load_over_run=2),
    "skewed": Recipe(seed=17, requests=250, gpus=12, models=9, zipf=1.5, width=3, wide_share=0.3, load_over_run=15),
    "calm": Recipe(seed=18, requests=400, gpus=8, models=8, depth=4, saturation=0.6, load_over_run=6, burst=2),
    "full": Recipe(seed=19, requests=500, gpus=8, models=6, depth=5, load_over_run=6, saturation=1.2),
    "flat": Recipe(seed=20, requests=800, gpus=24, models=10, depth=1, saturation=1.0, load_over_run=4),
}


def checked(problem: Problem, plan: Plan, *, online: bool) -> Plan:
    """The plan, which must be valid."""
    faults = validate(problem, len(problem.gpus), list(plan.executions(problem)), online=online)
    assert not faults, faults[:3]
    return plan


def run(problem: Problem, name: str, noise: float = 0.0) -> Outcome:
    """An event-driven strategy's figures on line."""
    simulation = Simulation(problem, create(name), noise=noise, seed=1)
    plan = simulation.run()
    if not noise:
        checked(problem, plan, online=True)
    return measure(problem, plan, lower_bound(problem, online=True).value)


def mean(values: list[float]) -> float:
    """Geometric, of ratios; a ratio of nothing to nothing is 1."""
    return round(math.exp(sum(math.log(max(v, 1e-3)) for v in values) / len(values)), 3)


def judge(problem: Problem, seconds: float) -> dict[str, float]:
    """The ratios of one case."""
    whole = problem.offline()
    bound = lower_bound(whole).value
    found = {"greedy": float(checked(whole, offline.plan(whole), online=False).end.max()) / bound}
    if seconds:
        best = checked(whole, offline.plan(whole, seconds=seconds), online=False)
        found["searched"] = float(best.end.max()) / bound
    rows = {name: run(problem, name) for name in (*LISTS, "online")}
    ours = rows["online"]
    for metric in ("wait_p99", "response_p99", "makespan"):
        others = [float(getattr(rows[name], f"{metric}_s")) for name in LISTS]
        mine = float(getattr(ours, f"{metric}_s"))
        found[f"online_{metric}"] = mine / min(others) if min(others) > 0 else 1.0 + mine
    found["online_makespan_to_bound"] = ours.ratio
    gain = rows["baseline"].response_p99_s / max(ours.response_p99_s, 1e-9)
    noisy = {name: run(problem, name, noise=0.5) for name in ("baseline", "online")}
    found["gain_kept_with_noise"] = (
        noisy["baseline"].response_p99_s / max(noisy["online"].response_p99_s, 1e-9)
    ) / gain
    return found


def cost(tasks: int) -> dict[str, float]:
    """CPU microseconds and bytes of one size, in this process; run it in one of its own."""
    recipe = Recipe(seed=3, requests=max(1, tasks * 10 // 34), gpus=8 if tasks <= 10_000 else 64, saturation=1.5)
    problem = generate(recipe)
    gc.disable()
    offline.plan(generate(Recipe(requests=20)))  # what is done once a process is not a cost of planning
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    offline.plan(problem)
    greedy = time.process_time() - began
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    simulation = Simulation(problem, create("online"))
    simulation.run()
    return {
        "tasks": problem.tasks,
        "greedy_us_per_task": round(1e6 * greedy / problem.tasks, 2),
        "bytes_per_task": round(grown / problem.tasks),
        "online_us_per_decision": round(1e6 * simulation.planning_s / simulation.events, 2),
        "python_loop_ns": round(loop_ns()),
    }


def loop_ns(turns: int = 2_000_000) -> float:
    """CPU nanoseconds of a turn of a loop that adds up numbers."""
    began, total = time.process_time(), 0
    for number in range(turns):
        total += number
    return 1e9 * (time.process_time() - began) / turns


def samples(directory: Path, gpus: int) -> Iterator[tuple[str, Problem]]:
    """The problems whose files lie in a directory."""
    for config in sorted(directory.glob("*_config.json")):
        name = config.name.removesuffix("_config.json")
        for requests in sorted(directory.glob(f"{name}_requests.*")):
            yield name, problem_of(read_file(config), read_file(requests), gpus)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--sizes", default="1000,100000")
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--cost", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        print(json.dumps(cost(options.cost)))
        return
    problems = {name: generate(recipe) for name, recipe in RECIPES.items()}
    if options.samples:
        problems |= dict(samples(options.samples, options.gpus))
    cases = {name: judge(problem, options.seconds) for name, problem in problems.items()}
    keys = list(next(iter(cases.values())))
    costs = [
        json.loads(subprocess.check_output([sys.executable, __file__, "--cost", size]))
        for size in options.sizes.split(",")
    ]
    result = {
        "benchmark": "scheduler",
        "goals": GOALS,
        "geometric_means": {key: mean([case[key] for case in cases.values()]) for key in keys},
        "worst_greedy": round(max(case["greedy"] for case in cases.values()), 3),
        "cases": {name: {key: round(value, 3) for key, value in case.items()} for name, case in cases.items()},
        "costs": costs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
