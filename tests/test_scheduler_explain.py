"""Explanations of a task of a plan: what it waited for, what the switch cost, who overtook it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gswarm.scheduler import formats
from gswarm.scheduler.plan import Execution
from tests.support.scheduler_commands import (
    CONFIG,
    FILES,
    MADE,
    RUNS,
    Commands,
    commands,
    write_plan,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


def test_an_explanation_names_what_it_waited_for_and_what_the_switch_cost(scheduler: Commands) -> None:
    assert scheduler.good(f"explain {FILES} --plan plan.json --task r1/n2").splitlines() == [
        "r1/n2 (beta) runs on GPUs 0, 1, 22 s to 25 s",
        "  ready    at 15 s, when r1/n1, which it needs, ended on GPU 0",
        "  before   GPU 0: r2/n1 (alpha) from 15 s to 17 s",
        "           GPU 1: nothing: it is the first task there",
        "  switch   5 s = 4 s to load beta + 1 s to unload 16 GB of alpha on GPU 0 at 16 GB/s",
        "  start    as soon as its GPUs were loaded, 7 s after it was ready",
        "  instead  began in the 7 s that it waited: alpha ×1; on its own GPUs alpha ×1; 0 of them became ready later",
        "  next     GPU 0: r2/n2 (beta) from 25 s to 26 s",
        "           GPU 1: r2/n2 (beta) from 25 s to 26 s",
    ]


def test_an_explanation_knows_arrivals_and_avoided_switches(scheduler: Commands) -> None:
    told = scheduler.good(f"explain {FILES} --plan plan.json --task r2/n1 --mode online")
    assert "ready    at 14 s, when its request arrived; it needs no other task" in told
    assert "switch   avoided: alpha is there since 10 s, loaded for r1/n1, and has served 1 task" in told
    assert "start    as soon as its GPUs were free, 1 s after it was ready" in told
    found = json.loads(scheduler.good(f"explain {FILES} --plan plan.json --task r2/n2 --output json"))
    assert (found["ready_after"], found["ready_s"], found["free_s"]) == ("r2/n1", 17, 25)
    assert found["instead"] == {"beta": 1} and found["overtaken_by"] == 0
    assert [n["task"] for n in found["before"]] == ["r1/n2", "r1/n2"]


def test_an_explanation_knows_what_there_was_at_first(scheduler: Commands) -> None:
    cluster = {"gpus": [{"free_at_seconds": 3}], "placements": [{"model": "beta", "gpus": [0, 1]}]}
    Path("c.json").write_text(json.dumps({**CONFIG, "cluster": cluster}))
    write_plan("plan.json", [Execution("r1", "n1", "alpha", (0,), 15, 20, 12)])
    told = scheduler.good(f"explain {FILES} --plan plan.json --task r1/n1")
    assert "switch   12 s = 10 s to load alpha + 2 s to unload 32 GB of beta on GPU 0 at 16 GB/s\n" in told
    assert "start    as soon as its GPUs were loaded, 15 s after it was ready" in told


def test_on_shared_gpus_an_explanation_tells_what_ran_there_and_says_not_that_they_were_idle(
    scheduler: Commands,
) -> None:
    Path("c.json").write_text(json.dumps({**CONFIG, "cluster": {"shared": True, "gpu_memory_gb": 40}}))
    runs = [
        Execution("r1", "n1", "alpha", (0,), 10, 15, 10),
        Execution("r2", "n1", "alpha", (0,), 15, 17, 0),
        Execution("r1", "n2", "beta", (0, 1), 22, 25, 5),
    ]
    write_plan("plan.json", runs)
    told = scheduler.good(f"explain {FILES} --plan plan.json --task r1/n2")
    assert "before   GPU 0: r2/n1 (alpha) from 15 s to 17 s\n" in told
    assert "GPU 1: nothing: it is the first task there" in told and "kept idle" not in told


def test_an_explanation_counts_who_overtook(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --seed 9 --count 60 --gpus 3 --saturation 2")
    scheduler.good(f"plan {MADE} --gpus 3 --strategy online --mode online --out p.json")
    runs = formats.executions_of(formats.read_file(Path("p.json")))[1]
    problem = formats.problem_of(formats.read_file(Path("gc.json")), formats.read_file(Path("gr.json.gz")), 3)
    by_name = {f"{r.request_id}/{r.node_id}": r for r in runs}

    def ready(name: str) -> float:
        task = problem.task_of(name)
        before = [by_name[problem.name_of(p)].end for p in problem.preds_of(task).tolist()]
        return max([float(problem.release[task]), *before])

    overtaken = 0
    for name in list(by_name)[::17]:
        ours = by_name[name]
        later = [n for n, r in by_name.items() if ready(name) <= r.start < ours.start and ready(n) > ready(name)]
        found = json.loads(scheduler.good(f"explain {MADE} --plan p.json --mode online --output json --task", name))
        assert (found["overtaken_by"], found["ready_s"]) == (len(later), ready(name))
        overtaken += len(later)
    assert overtaken, "it was seen at work"


def test_a_waking_is_explained(scheduler: Commands) -> None:
    config = json.loads(Path("c.json").read_text())
    config["models"]["alpha"] |= {"sleep_seconds": 1, "wake_seconds": 2}
    config["cluster"] = {"host_memory_gb": 100}
    Path("t.json").write_text(json.dumps(config))
    run = Execution("r2", "n1", "alpha", (0,), 43, 45, 3)
    write_plan("woken.json", [*RUNS[:1], RUNS[2], run])
    line = "explain --config t.json --requests r.json --plan woken.json --task r2/n1"
    assert "3 s = 2 s to wake alpha from host memory + 1 s for what left its GPUs" in scheduler.good(line)
