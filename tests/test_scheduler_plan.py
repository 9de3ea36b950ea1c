"""Planning as a person asks for it: figures, files, and plans that are held valid or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gswarm.scheduler import formats, planning
from tests.support.scheduler_commands import (
    FILES,
    MADE,
    REQUESTS,
    RUNS,
    Commands,
    commands,
    rows,
    write_plan,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


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


def test_a_plan_for_more_gpus_than_there_are_is_not_valid(scheduler: Commands) -> None:
    scheduler.good(f"plan {FILES} --gpus 3 --strategy fifo --out plan.json")
    assert scheduler(f"validate {FILES} --plan plan.json --gpus 3").code == 0
    done = scheduler(f"validate {FILES} --plan plan.json --gpus 2")
    assert done.code == 5 and "the plan is for 3 and the problem has 2" in done.out
    done = scheduler(f"validate {FILES} --plan plan.json --gpus 0")
    assert done.code == 2 and "there cannot be 0 GPUs" in done.err


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
