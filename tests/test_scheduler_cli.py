"""The scheduler's commands as a person meets them: on generated files, and on small ones whose answers are known by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gswarm.cli import run
from gswarm.scheduler import formats, instances, planning, strategies
from gswarm.scheduler.generate import Recipe
from gswarm.scheduler.generate import generate as make
from gswarm.scheduler.lanes import IDLE, Axis, Block, Form, blocks, draw, initials, owners
from gswarm.scheduler.plan import Execution
from gswarm.scheduler.strategies import fifo
from gswarm.scheduler.strategy import Event, Instruction, Load

GSWARM = Path(sys.executable).with_name("gswarm")
CONFIG = {
    "models": {
        "alpha": {"name": "", "memory_gb": 16, "gpus_required": 1, "load_time_seconds": 10},
        "beta": {"name": "", "memory_gb": 32, "gpus_required": 2, "load_time_seconds": 4},
    },
    "workflows": {
        "w": {
            "name": "w",
            "nodes": [
                {"id": "n1", "model": "alpha", "inputs": [], "outputs": []},
                {"id": "n2", "model": "beta", "inputs": [], "outputs": []},
            ],
            "edges": [{"from": "n1", "to": "n2"}],
        }
    },
}
REQUESTS = {
    "requests": [
        {
            "request_id": "r1",
            "timestamp": "2026-01-01T00:00:00",
            "workflow_id": "w",
            "node_execution_times": {"n1": 5, "n2": 3},
        },
        {
            "request_id": "r2",
            "timestamp": "2026-01-01T00:00:14",
            "workflow_id": "w",
            "node_execution_times": {"n1": 2, "n2": 1},
        },
    ]
}
# GPU 0 loads alpha (10 s) and runs both its tasks; then both GPUs load beta: 4 s, and 16 GB of alpha out at 16 GB/s.
RUNS = [
    Execution("r1", "n1", "alpha", (0,), 10, 15, 10),
    Execution("r2", "n1", "alpha", (0,), 15, 17, 0),
    Execution("r1", "n2", "beta", (0, 1), 22, 25, 5),
    Execution("r2", "n2", "beta", (0, 1), 25, 26, 0),
]


@dataclass
class Done:
    code: int
    out: str
    err: str


class Commands:
    """`gswarm scheduler ...` in this process, in a directory with the small files."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, line: str, *more: str) -> Done:
        self.capture.readouterr()
        code = run(["scheduler", *line.split(), *more])
        out, err = self.capture.readouterr()
        assert "Traceback" not in err and "unforeseen" not in err, err
        return Done(code, out, err)

    def good(self, line: str, *more: str) -> str:
        done = self(line, *more)
        assert done.code == 0, done.err
        return done.out


def write_plan(name: str, runs: list[Execution], gpus: int = 2) -> None:
    Path(name).write_text(json.dumps({"gpus": gpus, "executions": [r._asdict() for r in runs]}))


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    Path("c.json").write_text(json.dumps(CONFIG, indent=1))
    Path("r.json").write_text(json.dumps(REQUESTS, indent=1))
    write_plan("plan.json", RUNS)
    return Commands(capsys)


FILES = "--config c.json --requests r.json"
MADE = "--config gc.json --requests gr.json.gz"


def rows(text: str) -> list[dict[str, object]]:
    found = json.loads(text)
    assert isinstance(found, list)
    return found


# Plan and validate


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("name", planning.names(online=False))
def test_a_plan_of_every_strategy_is_valid_in_its_mode(scheduler: Commands, name: str, mode: str) -> None:
    scheduler.good(f"generate {MADE} --seed 3 --count 25 --gpus 5 --depth 4 --wide-share 0.5")
    line = f"plan {MADE} --gpus 5 --strategy {name} --mode {mode} --iterations 20 --out plan.json.gz --output json"
    if (name, mode) == ("offline", "online"):
        assert "all requests at t = 0" in scheduler(line).err
        return
    (row,) = rows(scheduler.good(line))
    assert scheduler.good(f"validate {MADE} --plan plan.json.gz --mode {mode}").startswith("plan.json.gz is valid: ")
    assert (row["strategy"], row["mode"], row["gpus"]) == (name, mode, 5)
    assert isinstance(row["ratio"], float) and row["ratio"] >= 1
    runs = formats.executions_of(formats.read_file(Path("plan.json.gz")))[1]
    assert row["makespan_s"] == max(r.end for r in runs) and row["tasks"] == len(runs)
    assert row["switches"] == sum(r.switch_seconds > 0 for r in runs)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("name", planning.names(online=True))
def test_memory_tiers_and_deadlines_go_through_every_command(scheduler: Commands, name: str, mode: str) -> None:
    scheduler.good(
        f"generate {MADE} --seed 3 --count 25 --gpus 5 --models 8 --gpu-memory-gb 80 --shared --host-memory-gb 300"
        " --deadline-over-run 4"
    )
    line = f"plan {MADE} --gpus 5 --strategy {name} --mode {mode} --out plan.json --output json"
    (row,) = rows(scheduler.good(line))
    assert isinstance(row["late"], int) and 0 <= row["late"] <= 25
    assert scheduler.good(f"validate {MADE} --plan plan.json --mode {mode}").startswith("plan.json is valid: ")
    assert " LATE " in scheduler.good(f"compare {MADE} --gpus 5 --mode online --strategy {name}").splitlines()[0]
    told = scheduler.good(f"simulate {MADE} --gpus 5 --strategy {name} --mode {mode} --output json --out again.json")
    assert {"arrival", "load", "loaded", "start", "end"} <= {json.loads(line)["kind"] for line in told.splitlines()}
    assert Path("plan.json").read_bytes() == Path("again.json").read_bytes()
    assert "gpu4" in scheduler.good(f"show --plan plan.json {MADE} --mode {mode}")
    loaded = next(r for r in formats.executions_of(formats.read_file(Path("plan.json")))[1] if r.switch_seconds)
    task = f"{loaded.request_id}/{loaded.node_id}"
    assert f" to load {loaded.model}" in scheduler.good(f"explain {MADE} --plan plan.json --task {task} --mode {mode}")


def test_without_deadlines_nothing_is_late(scheduler: Commands) -> None:
    assert "LATE" not in scheduler.good(f"compare {FILES} --gpus 2 --seconds 0")


def test_models_beside_each_other_have_a_lane_each(scheduler: Commands) -> None:
    runs = [
        Execution("r1", "n1", "alpha", (0,), 10, 30, 10),
        Execution("r2", "n1", "gamma", (0,), 12, 20, 10),
        Execution("r3", "n1", "alpha", (0,), 30, 40, 0),
        Execution("r4", "n1", "gamma", (0,), 20, 40, 0),
    ]
    write_plan("beside.json", runs, gpus=1)
    _, _, first, second, legend = scheduler.good("show --plan beside.json --width 60").splitlines()
    assert first.startswith("gpu0 ") and "alpha ×2" in first and "gamma" not in first
    assert second.startswith("     ") and "gamma ×2" in second and "alpha" in legend


def test_a_waking_is_explained(scheduler: Commands) -> None:
    config = json.loads(Path("c.json").read_text())
    config["models"]["alpha"] |= {"sleep_seconds": 1, "wake_seconds": 2}
    config["cluster"] = {"host_memory_gb": 100}
    Path("t.json").write_text(json.dumps(config))
    run = Execution("r2", "n1", "alpha", (0,), 43, 45, 3)
    write_plan("woken.json", [*RUNS[:1], RUNS[2], run])
    line = "explain --config t.json --requests r.json --plan woken.json --task r2/n1"
    assert "3 s = 2 s to wake alpha from host memory + 1 s for what left its GPUs" in scheduler.good(line)


def test_a_plan_goes_to_standard_output_and_its_figures_do_not(scheduler: Commands) -> None:
    done = scheduler(f"plan {FILES} --gpus 2 --strategy fifo --out -")
    assert (done.code, json.loads(done.out)["gpus"]) == (0, 2)
    assert done.err.startswith("STRATEGY  MAKESPAN  /BOUND") and "fifo" in done.err


def test_the_figures_of_a_plan_are_those_of_the_cost_model(scheduler: Commands) -> None:
    (row,) = rows(scheduler.good(f"plan {FILES} --gpus 2 --strategy offline --iterations 400 --output json"))
    # alpha once, for both its tasks (10 + 5 + 2), then beta (5 + 3 + 1) makes 26; alpha on a GPU each (10 + 5) makes 24.
    assert row["makespan_s"] == 24
    assert (row["switches"], row["switch_s"]) == (3, 25)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda runs: runs[:-1], "r2/n2: task missing"),
        (lambda runs: [*runs, runs[0]], "r1/n1: task doubled"),
        (lambda runs: [*runs[:-1], runs[-1]._replace(start=24.0, end=25.0)], "r2/n2: overlap"),
        (lambda runs: [*runs[:2], runs[2]._replace(switch_seconds=4.0), runs[3]], "r1/n2: switch too short"),
        (lambda runs: [*runs[:-1], runs[-1]._replace(model="alpha")], "r2/n2: wrong model"),
        (lambda runs: [*runs[:-1], runs[-1]._replace(gpus=(0, 2))], "r2/n2: no such GPU"),
    ],
)
def test_a_broken_plan_is_refused_with_the_reason(scheduler: Commands, change: object, told: str) -> None:
    assert scheduler.good(f"validate {FILES} --plan plan.json") == "plan.json is valid: 4 tasks on 2 GPUs, offline\n"
    assert callable(change)
    write_plan("plan.json", change(RUNS))
    done = scheduler(f"validate {FILES} --plan plan.json")
    assert done.code == 5 and done.out.startswith("plan.json is not valid (offline): ") and told in done.out
    done = scheduler(f"validate {FILES} --plan plan.json --output json")
    assert done.code == 5
    assert not json.loads(done.out)["valid"] and json.loads(done.out)["flaws"]


def test_a_plan_is_held_to_its_mode(scheduler: Commands) -> None:
    early = [*RUNS[:1], RUNS[1]._replace(start=15.0, end=17.0), *RUNS[2:]]
    write_plan("plan.json", early)
    Path("r.json").write_text(json.dumps(REQUESTS).replace("00:00:14", "00:00:16"))
    assert scheduler(f"validate {FILES} --plan plan.json").code == 0
    done = scheduler(f"validate {FILES} --plan plan.json --mode online")
    assert done.code == 5 and "r2/n1: before arrival" in done.out


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_a_plan_for_another_number_of_gpus_is_not_valid_or_still_right(scheduler: Commands, gpus: int) -> None:
    """Too few, even for the widest model, is a fault of the plan; one idle more is none."""
    write_plan("plan.json", RUNS, gpus)
    done = scheduler(f"validate {FILES} --plan plan.json --limit 1")
    assert done.code == (0 if gpus == 3 else 5)
    assert gpus == 3 or ("wrong number of GPUs" in done.out and "1 fault or more" in done.out)


# Simulate and compare


def test_a_simulation_tells_everything_that_happens(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --seed 1 --count 20 --gpus 4")
    line = f"simulate {MADE} --gpus 4 --strategy online --out sim.json --output json"
    done = scheduler(line)
    told = [json.loads(row) for row in done.out.splitlines()]
    runs = formats.executions_of(formats.read_file(Path("sim.json")))[1]
    begun = {t["task"]: t for t in told if t["kind"] == "start"}
    ended = {t["task"]: t["time_s"] for t in told if t["kind"] == "end"}
    assert len(begun) == len(runs) == sum(t["kind"] == "start" for t in told)
    for r in runs:
        name = f"{r.request_id}/{r.node_id}"
        assert (begun[name]["time_s"], tuple(begun[name]["gpus"]), ended[name]) == (r.start, r.gpus, r.end)
    assert {"arrival", "load", "loaded"} <= {t["kind"] for t in told}
    assert all(a["time_s"] <= b["time_s"] for a, b in pairwise(t for t in told if t["kind"] == "end"))
    assert done.err.splitlines()[0].startswith("STRATEGY") and done.err.splitlines()[1].startswith("online")
    assert scheduler.good(f"validate {MADE} --plan sim.json --mode online")
    table = scheduler.good(line.removesuffix(" --output json")).splitlines()
    assert len(table) == len(told) and all(t["kind"] in row for t, row in zip(told, table, strict=True))


def test_noise_changes_times_and_is_seeded(scheduler: Commands) -> None:
    line = f"simulate {FILES} --gpus 2 --strategy baseline --output json"
    plain, noisy = scheduler.good(line), scheduler.good(f"{line} --noise 0.5 --seed 4")
    assert noisy == scheduler.good(f"{line} --noise 0.5 --seed 4") != scheduler.good(f"{line} --noise 0.5 --seed 5")
    assert plain != noisy

    def seconds(text: str) -> dict[str, float]:
        told = [json.loads(row) for row in text.splitlines()]
        return {t["task"]: t["seconds"] for t in told if t["kind"] == "start"}

    assert all(0.5 <= seconds(noisy)[task] / s <= 1.5 for task, s in seconds(plain).items())


def test_a_reader_may_leave_a_simulation(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --count 3000")
    words = f"simulate {MADE} --gpus 8 --strategy fifo".split()
    child = subprocess.Popen([GSWARM, "scheduler", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stderr
    assert "arrival" in child.stdout.readline()
    child.stdout.close()
    assert child.wait(60) == 0 and child.stderr.read() == ""


def test_strategies_stand_side_by_side(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --seed 5 --count 30 --gpus 4")
    found = rows(scheduler.good(f"compare {MADE} --gpus 4 --iterations 10 --output json"))
    assert [row["strategy"] for row in found] == planning.names(online=False)
    assert len({row["bound_s"] for row in found}) == 1 and all(row["ratio"] >= 1 for row in found)  # type: ignore[operator]
    assert min(found, key=lambda row: row["makespan_s"])["strategy"] == "offline"  # type: ignore[return-value,arg-type]
    online = scheduler.good(f"compare {MADE} --gpus 4 --mode online").splitlines()
    assert [row.split()[0] for row in online[1:]] == planning.names(online=True)
    some = rows(scheduler.good(f"compare {MADE} --gpus 4 --strategy static --strategy fifo --output json"))
    assert [row["strategy"] for row in some] == ["static", "fifo"]


def test_a_strategy_that_cannot_do_it_is_left_out_with_a_warning(
    scheduler: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(fifo.Fifo):
        """Loads every model on one device."""

        def handle(self, now: float, events: Sequence[Event]) -> list[Instruction]:
            out = super().handle(now, events)
            return [replace(i, devices=i.devices[:1]) if isinstance(i, Load) else i for i in out]

    monkeypatch.setattr(fifo, "Narrow", Narrow, raising=False)
    monkeypatch.setitem(strategies.OURS, "narrow", "fifo:Narrow")
    done = scheduler(f"compare {FILES} --gpus 2 --strategy narrow --strategy fifo --output json")
    assert done.code == 0 and "warning: narrow cannot do this: " in done.err
    assert [row["strategy"] for row in rows(done.out)] == ["fifo"]
    done = scheduler(f"plan {FILES} --gpus 2 --strategy narrow --out p.json")
    assert (done.code, done.out) == (1, "") and "the model takes 2 GPUs" in done.err and not Path("p.json").exists()


def test_a_comparison_is_plotted_the_same_each_time(scheduler: Commands) -> None:
    pytest.importorskip("matplotlib")
    line = f"compare {FILES} --gpus 2 --strategy fifo --strategy affinity --plot"
    scheduler.good(line, "a.png")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    scheduler.good(line, "a.svg")
    picture = Path("a.svg").read_text()
    assert all(word in picture for word in ("fifo", "affinity", "makespan / lower bound", "r.json: 4 tasks on 2 GPUs"))


def test_without_matplotlib_it_says_what_to_install(scheduler: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = scheduler(f"compare {FILES} --gpus 2 --plot a.svg")
    assert (done.code, done.out) == (5, "") and 'pip install "gswarm[plot]"' in done.err


# Generate


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(requests=40),
        Recipe(seed=2, requests=40, models=1, workflows=1, depth=1, width=1, gpus=1),
        Recipe(seed=3, requests=40, depth=7, width=4, wide_share=1.0, burst=9.0, saturation=0.1),
        Recipe(seed=4, requests=2, run_s=0.0, load_over_run=0.0),
        Recipe(seed=5, requests=40, gpu_memory_gb=80, shared=True, host_memory_gb=512, deadline_over_run=3),
    ],
    ids=["default", "one of each", "deep, wide and calm", "no time", "memory tiers and deadlines"],
)
def test_files_of_a_problem_read_back_as_the_same_problem(recipe: Recipe) -> None:
    made = make(recipe)
    config = formats.Document("c.json", "".join(instances.config_lines(made)).encode())
    requests = formats.Document("r.json", "".join(instances.request_lines(made)).encode())
    read = formats.problem_of(config, requests, recipe.gpus)
    assert (read.models, read.gpus, read.requests, read.nodes) == (made.models, made.gpus, made.requests, made.nodes)
    assert (read.shared, read.host_memory_gb, read.placements) == (made.shared, made.host_memory_gb, made.placements)
    for column in ("arrivals", "first", "model", "seconds", "pred_first", "preds", "release", "deadline"):
        assert np.array_equal(getattr(read, column), getattr(made, column)), column


def test_a_seed_gives_the_same_files(scheduler: Commands) -> None:
    files = []
    for seed, name in ((7, "x"), (7, "y"), (8, "z")):
        scheduler.good(f"generate --config {name}.json --requests {name}.json.gz --count 30 --seed {seed}")
        files.append((Path(f"{name}.json").read_bytes(), Path(f"{name}.json.gz").read_bytes()))
    assert files[0] == files[1] and files[0][1] != files[2][1]
    assert files[0][1].startswith(b"\x1f\x8b")


# Explain


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


# Show


def test_lanes_at_80_columns_without_colour(scheduler: Commands) -> None:
    shown = scheduler.good("show --plan plan.json").splitlines()
    assert shown[0] == "makespan 26.0 s · 2 switches, 15.0 s · utilisation 29%"
    assert shown[1] == "     0s            5s             10s           15s            20s           25s"
    # 75 cells of 0.347 s: 10 s of load are 28.8 of them, 7 s of alpha 20.2, 5 s of load 14.4, 4 s of beta 11.5.
    assert shown[2] == f"gpu0 {'░' * 29}▌alpha ×2{'─' * 11}{'░' * 14}▌beta ×2────"
    assert shown[3] == f"gpu1 {' ' * 49}{'░' * 14}▌beta ×2────"
    assert shown[4] == "▌alpha (A)  ▌beta (B)  ░ load  1 cell 0.347 s"
    assert len(shown) == 5 and all(len(line) <= 80 and "\x1b" not in line for line in shown)
    told = scheduler.good(f"show --plan plan.json {FILES}").splitlines()[0]
    assert " × bound · " in told and len(told) <= 80


@pytest.mark.parametrize("width", [1, 10, 40, 200])
def test_lanes_fit_any_width(scheduler: Commands, width: int) -> None:
    scheduler.good(f"generate {MADE} --count 50 --gpus 12")
    scheduler.good(f"plan {MADE} --gpus 12 --strategy baseline --out p.json")
    shown = scheduler.good(f"show --plan p.json --width {width}").splitlines()
    assert sum(line.startswith("gpu"[:width]) for line in shown[2:14]) == 12
    assert all(len(line) <= max(width, len("gpu11 ") + 1) for line in shown)


def test_lanes_in_ascii_where_the_locale_has_no_more(scheduler: Commands) -> None:
    asked = scheduler.good("show --plan plan.json --ascii")
    assert asked.isascii() and "[alpha x2===" in asked and ":::" in asked
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    words = [str(GSWARM), "scheduler", "show", "--plan", "plan.json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == asked


def test_a_part_of_a_plan_is_shown_alone(scheduler: Commands) -> None:
    shown = scheduler.good("show --plan plan.json --start 17 --end 26").splitlines()
    assert shown[2].startswith("gpu0 ░░░░") and "alpha" not in shown[2] and "beta ×2" in shown[2]
    assert shown[2][5:] == shown[3][5:]


def test_colours_tell_models_apart_and_change_no_cell() -> None:
    plain, coloured = (draw(RUNS, 2, width=60, form=form) for form in (Form.PLAIN, Form.COLOUR))
    assert "\x1b[30;43m▌alpha ×2" in coloured[1] and "\x1b[30;46m▌beta ×2" in coloured[1]
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured]
    assert bare == [line.replace("─", " ") for line in plain]


def test_blocks_end_at_a_load_another_model_or_a_pause() -> None:
    assert blocks(RUNS, 2) == [
        [Block("alpha", 10, 17, 10, 2), Block("beta", 22, 26, 5, 2)],
        [Block("beta", 22, 26, 5, 2)],
    ]
    apart = [RUNS[0], RUNS[1]._replace(start=18.0, end=20.0)]
    assert [b.count for b in blocks(apart, 1)[0]] == [1, 1]
    assert [b.count for b in blocks(apart, 1, gap_s=3.0)[0]] == [2]
    again = [RUNS[0], RUNS[1]._replace(start=25.0, end=27.0, switch_seconds=10.0)]
    assert [b.load_s for b in blocks(again, 1, gap_s=100.0)[0]] == [10, 10]


def test_a_cell_shows_what_takes_most_of_it_and_nothing_vanishes() -> None:
    lane = [Block("a", 1, 1.2, 0, 1), Block("b", 1.2, 1.9, 0, 1), Block("c", 5, 5, 0, 1)]
    assert owners(lane, Axis(0, 8, 8)) == [(n, False) for n in (IDLE, 1, IDLE, IDLE, IDLE, 2, IDLE, IDLE)]
    assert owners([Block("a", 4, 8, 2, 1)], Axis(0, 8, 4)) == [(IDLE, False), (0, True), (0, False), (0, False)]


def test_names_are_shortened_as_far_as_they_stay_apart() -> None:
    assert initials(["llama", "sdxl", "sd"]) == {"llama": "L", "sdxl": "Sdx", "sd": "sd"}


def test_a_name_cannot_steer_the_terminal() -> None:
    runs = [RUNS[0]._replace(model="a\x1b[2Jb")]
    assert "\x1b" not in "".join(draw(runs, 1, width=60, form=Form.PLAIN))


# Errors, interruption, cost


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"plan {FILES} --gpus 0 --strategy fifo", "there cannot be 0 GPUs"),
        (f"plan {FILES} --gpus 1 --strategy fifo", "c.json:12: models.beta.gpus_required: 2 GPUs"),
        (f"plan {FILES} --gpus two --strategy fifo", "'two' is not a valid int"),
        (f"plan {FILES} --gpus 2 --strategy onlin", "there is no strategy 'onlin'. Did you mean online"),
        (f"plan {FILES} --gpus 2 --strategy offline --mode online", "needs all requests at t = 0"),
        (f"plan {FILES} --gpus 2 --strategy offline --seconds -1", "a search takes no less"),
        (f"plan {FILES} --gpus 2 --strategy fifo --out no/p.json", "cannot write no/p.json: no such file"),
        ("plan --config no.json --requests r.json --gpus 2 --strategy fifo", "cannot read no.json: no such file"),
        ("plan --config . --requests r.json --gpus 2 --strategy fifo", "cannot read .: is a directory"),
        ("plan --config r.json --requests r.json --gpus 2 --strategy fifo", "r.json:1: models: is missing"),
        ("plan --config c.json --requests bad.json --gpus 2 --strategy fifo", "bad.json:2: is no JSON"),
        (f"validate {FILES} --plan c.json", "c.json:1: gpus: is missing"),
        (f"validate {FILES} --plan plan.json --limit 0", "--limit is 0"),
        (f"simulate {FILES} --gpus 2 --noise 1", "--noise is 1"),
        (f"simulate {FILES} --gpus 2 --strategy offline", "nothing to simulate"),
        (f"compare {FILES} --gpus 2 --strategy fifi", "there is no strategy 'fifi'"),
        (f"compare {FILES} --gpus 2 --plot a.pdf", "ends in .svg or .png"),
        ("generate --config x --requests y --count 0", "at least 1"),
        ("generate --config x --requests y --saturation 0", "saturation is above 0"),
        ("generate --config x --requests ./x", "are both x"),
        ("generate --config x --requests y --zipf -1", "not negative"),
        (f"explain {FILES} --plan plan.json --task r9/n1", "there is no request 'r9'"),
        (f"explain {FILES} --plan plan.json --task r9/n1", "REQUEST/NODE. There are: r1, r2"),
        ("explain --config other.json --requests r.json --plan plan.json --task r1/n1", "the plan of other files"),
        (f"explain {FILES} --plan plan.json --task r1/n9", "request r1 has no node 'n9': n1, n2"),
        ("show --plan plan.json --config c.json", "belong together"),
        ("show --plan plan.json --start 9 --end 3", "nothing to show"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(scheduler: Commands, line: str, told: str) -> None:
    Path("bad.json").write_text('{"requests":\n nope}')
    Path("other.json").write_text(json.dumps(CONFIG).replace('"model": "alpha"', '"model": "beta"'))
    done = scheduler(line)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gswarm: error: ") and told in done.err and done.err.count("\n") == 1
    assert not {"x", "y", "a.pdf"} & {p.name for p in Path().iterdir()}


def test_what_is_ignored_is_said(scheduler: Commands) -> None:
    edge = '{"from": "n1", "to": "n2"}'
    text = json.dumps(CONFIG).replace(edge, f'{edge}, {{"from": "n1", "to": "nowhere"}}')
    Path("c.json").write_text(text)
    done = scheduler(f"plan {FILES} --gpus 2 --strategy fifo")
    assert done.code == 0 and "warning: c.json: workflows.w.edges[1]: ignored" in done.err
    assert "warning" not in done.out


def test_nothing_to_do_is_a_plan_too(scheduler: Commands) -> None:
    Path("r.json").write_text('{"requests": []}')
    for name in planning.names(online=False):
        scheduler.good(f"plan {FILES} --gpus 2 --strategy {name} --out plan.json")
        assert "0 tasks on 2 GPUs" in scheduler.good(f"validate {FILES} --plan plan.json")
    assert scheduler.good("show --plan plan.json").startswith("makespan 0.0 s")


def test_an_interrupt_ends_it_at_once_and_leaves_no_file(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --count 300")
    words = f"plan {MADE} --gpus 8 --strategy offline --seconds 100 --out p.json".split()
    child = subprocess.Popen([GSWARM, "scheduler", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr and child.stdout
    assert child.stderr.readline().startswith("planning with offline"), "what takes long says so"
    child.send_signal(signal.SIGINT)
    said, out = child.stderr.read(), child.stdout.read()
    assert child.wait(20) == 130 and "error" not in said and out == ""
    assert not [p.name for p in Path().iterdir() if "p.json" in p.name]


def test_help_loads_nothing_that_plans() -> None:
    code = (
        "import sys; from gswarm.cli import run; run(['scheduler', 'plan', '--help']);"
        "sys.exit(', '.join(sys.modules.keys() & {'numpy', 'yaml', 'matplotlib', 'gswarm.scheduler.access'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--strategy" in done.stdout and done.stderr.strip() == "", done.stderr
