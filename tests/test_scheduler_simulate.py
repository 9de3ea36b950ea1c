"""Simulating and comparing strategies from the command line: what happens is told, noise is seeded, figures are plotted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from gswarm.scheduler import formats, planning, strategies
from gswarm.scheduler.strategies import fifo
from gswarm.scheduler.strategy import Event, Instruction, Load
from tests.support.scheduler_commands import (
    FILES,
    GSWARM,
    MADE,
    Commands,
    commands,
    rows,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


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


def test_without_deadlines_nothing_is_late(scheduler: Commands) -> None:
    assert "LATE" not in scheduler.good(f"compare {FILES} --gpus 2 --seconds 0")
